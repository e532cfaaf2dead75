//! PersistentVolumeClaims of a VMI: those that its volumes name, and the one with what of its firmware and TPM outlives
//! a stop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use ferrovirt_api::v1::{PersistentVolumeClaimInfo, VirtualMachineInstance, VirtualMachineInstanceSpec, Volume};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::vmi::keeps_state;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::pod;
use crate::cache::{Cache, Key};

/// Label of a claim with state: name of the VMI. Its name begins with it, too.
pub const STATE_LABEL: &str = "persistent-state-for";
/// Size of such a claim.
const STATE_SIZE: &str = "10Mi";
/// Annotations by which CDI tells that it took all room of a claim at once, and that somebody else did.
pub(crate) const THICK: [&str; 2] = [
    "cdi.kubevirt.io/storage.preallocation",
    "cdi.kubevirt.io/storage.thick-provisioned",
];
/// Annotation of the storage class for disks of VMs.
const DEFAULT_VIRT_CLASS: &str = "storageclass.kubevirt.io/is-default-virt-class";
/// Annotation of the storage class for everything.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Volumes that are claims, each with the name of its claim.
pub fn named(spec: &VirtualMachineInstanceSpec) -> impl Iterator<Item = (&Volume, &str)> {
    spec.volumes.iter().filter_map(|volume| {
        let own = volume.persistent_volume_claim.as_ref().map(|claim| &claim.claim_name);
        let ephemeral = volume
            .ephemeral
            .as_ref()
            .and_then(|e| e.persistent_volume_claim.as_ref());
        let name = own.or_else(|| ephemeral.map(|claim| &claim.claim_name))?;
        Some((volume, name.as_str()))
    })
}

/// What is known of the claims of a VMI.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    named: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    state: Option<Arc<PersistentVolumeClaim>>,
}

impl Claims {
    /// Looks them up.
    pub fn of(vmi: &VirtualMachineInstance, all: &Cache<PersistentVolumeClaim>) -> Self {
        let namespace = vmi.namespace().unwrap_or_default();
        let named = named(&vmi.spec).filter_map(|(_, name)| {
            let key = Key {
                namespace: namespace.clone(),
                name: name.to_owned(),
            };
            Some((key.name.clone(), all.get(&key)?))
        });
        Self {
            named: named.collect(),
            state: keeps_state(&vmi.spec).then(|| find_state(vmi, all)).flatten(),
        }
    }

    /// Claims, by name.
    #[cfg(test)]
    pub fn new(claims: Vec<PersistentVolumeClaim>, state: Option<PersistentVolumeClaim>) -> Self {
        let named = claims.into_iter().map(|claim| (claim.name_any(), Arc::new(claim)));
        Self {
            named: named.collect(),
            state: state.map(Arc::new),
        }
    }

    /// The first claim that a spec names and that does not exist.
    pub fn missing<'a>(&self, spec: &'a VirtualMachineInstanceSpec) -> Option<&'a str> {
        named(spec)
            .map(|(_, name)| name)
            .find(|name| !self.named.contains_key(*name))
    }

    /// Whether a claim is a block device.
    pub fn is_block(&self, name: &str) -> bool {
        let claim = self.named.get(name).and_then(|claim| claim.spec.as_ref());
        claim.is_some_and(|spec| spec.volume_mode.as_deref() == Some("Block"))
    }

    /// The claim with the guest's state.
    pub fn state(&self) -> Option<&PersistentVolumeClaim> {
        self.state.as_deref()
    }

    /// What `status.volumeStatus` tells of each volume that is a claim, by the volume's name.
    pub fn describe<'a>(
        &'a self,
        spec: &'a VirtualMachineInstanceSpec,
    ) -> impl Iterator<Item = (String, PersistentVolumeClaimInfo)> + 'a {
        let named = named(spec).filter_map(|(volume, name)| Some((volume.name.clone(), self.named.get(name)?)));
        let state = self.state.iter().map(|claim| (claim.name_any(), claim));
        named.chain(state).map(|(volume, claim)| (volume, info(claim)))
    }
}

fn info(claim: &PersistentVolumeClaim) -> PersistentVolumeClaimInfo {
    let spec = claim.spec.as_ref();
    let status = claim.status.as_ref();
    let amounts = |map: Option<&BTreeMap<String, K8sQuantity>>| {
        let amounts = map.into_iter().flatten();
        amounts
            .map(|(name, amount)| (name.clone(), amount.clone().into()))
            .collect()
    };
    let resources = spec.and_then(|spec| spec.resources.as_ref());
    PersistentVolumeClaimInfo {
        access_modes: spec.and_then(|spec| spec.access_modes.clone()).unwrap_or_default(),
        capacity: amounts(status.and_then(|status| status.capacity.as_ref())),
        claim_name: Some(claim.name_any()),
        preallocated: is_thick(claim).then_some(true),
        requests: amounts(resources.and_then(|resources| resources.requests.as_ref())),
        volume_mode: spec.and_then(|spec| spec.volume_mode.clone()),
        ..PersistentVolumeClaimInfo::default()
    }
}

/// Whether all room of a claim's image was taken when CDI made it.
fn is_thick(claim: &PersistentVolumeClaim) -> bool {
    let said = |annotation: &str| claim.annotations().get(annotation).is_some_and(|value| value == "true");
    THICK.into_iter().any(said)
}

/// Whether a claim that a spec names exists and is not bound.
pub fn unbound(namespace: &str, spec: &VirtualMachineInstanceSpec, all: &Cache<PersistentVolumeClaim>) -> bool {
    named(spec).any(|(_, name)| {
        let claim = all.get(&Key {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        });
        let phase = |claim: &PersistentVolumeClaim| claim.status.as_ref().and_then(|status| status.phase.clone());
        claim.is_some_and(|claim| phase(&claim).as_deref() != Some("Bound"))
    })
}

/// A claim that its owner was deleted of is not taken over by a VM of the same name.
fn find_state(vmi: &VirtualMachineInstance, all: &Cache<PersistentVolumeClaim>) -> Option<Arc<PersistentVolumeClaim>> {
    let label = pod::label_of(&vmi.name_any());
    let owner = state_owner(vmi);
    let ours = |claim: &Arc<PersistentVolumeClaim>| {
        claim.namespace() == vmi.namespace()
            && claim.labels().get(STATE_LABEL) == Some(&label)
            && claim.metadata.deletion_timestamp.is_none()
            && claim.owner_references().iter().all(|o| Some(&o.uid) == owner.as_ref())
    };
    all.all().into_iter().filter(ours).min_by_key(|claim| claim.name_any())
}

/// UID of whom the state belongs to: the VM, or the VMI if it has none.
fn state_owner(vmi: &VirtualMachineInstance) -> Option<String> {
    let owner = vmi.owner_references().first().map(|owner| owner.uid.clone());
    owner.or_else(|| vmi.uid())
}

/// The VMI that a claim with state is for.
pub fn owning_vmi(claim: &PersistentVolumeClaim) -> Option<Key> {
    claim.labels().get(STATE_LABEL)?;
    Some(Key {
        namespace: claim.namespace()?,
        // A VM and its VMI have the same name.
        name: claim.owner_references().first()?.name.clone(),
    })
}

/// The claim with the state of a VMI: its name follows from the owner, so there is only ever one.
pub fn state_claim(vmi: &VirtualMachineInstance, class: String, config: &ClusterConfig) -> PersistentVolumeClaim {
    let suffix = pod::suffix(&state_owner(vmi).unwrap_or_default());
    // A class that was chosen for this serves several nodes; the default one may not.
    let mode = match config.vm_state_storage_class {
        Some(_) => "ReadWriteMany",
        None => "ReadWriteOnce",
    };
    let mut owners = vmi.owner_references().to_vec();
    if owners.is_empty() {
        owners.push(pod::owner(vmi));
    }
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            labels: Some([(STATE_LABEL.to_owned(), pod::label_of(&vmi.name_any()))].into()),
            name: Some(format!("{STATE_LABEL}-{}-{suffix}", vmi.name_any())),
            namespace: vmi.namespace(),
            owner_references: Some(owners),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![mode.to_owned()]),
            resources: Some(VolumeResourceRequirements {
                limits: None,
                requests: Some([("storage".to_owned(), K8sQuantity(STATE_SIZE.to_owned()))].into()),
            }),
            storage_class_name: Some(class),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// The class for state: the chosen one, or else the default one for VMs, or else the default one.
pub fn state_class(config: &ClusterConfig, classes: &[StorageClass]) -> Option<String> {
    let default = |annotation: &str| {
        let marked = |class: &&StorageClass| class.annotations().get(annotation).is_some_and(|value| value == "true");
        classes.iter().find(marked).map(ResourceExt::name_any)
    };
    let chosen = config.vm_state_storage_class.clone();
    chosen
        .or_else(|| default(DEFAULT_VIRT_CLASS))
        .or_else(|| default(DEFAULT_CLASS))
}

/// Which VMIs name which claims.
#[derive(Debug, Default)]
pub struct Users(RwLock<Index>);

#[derive(Debug, Default)]
struct Index {
    by_claim: HashMap<Key, BTreeSet<Key>>,
    by_vmi: HashMap<Key, Vec<Key>>,
}

impl Users {
    /// Takes in what a VMI is now; `None`: it is gone.
    pub fn set(&self, key: &Key, vmi: Option<&VirtualMachineInstance>) {
        let claims: Vec<Key> = vmi
            .iter()
            .flat_map(|vmi| named(&vmi.spec))
            .map(|(_, name)| Key {
                namespace: key.namespace.clone(),
                name: name.to_owned(),
            })
            .collect();
        let mut index = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for old in index.by_vmi.remove(key).unwrap_or_default() {
            if let Some(users) = index.by_claim.get_mut(&old) {
                users.remove(key);
                if users.is_empty() {
                    index.by_claim.remove(&old);
                }
            }
        }
        if claims.is_empty() {
            return;
        }
        for claim in &claims {
            index.by_claim.entry(claim.clone()).or_default().insert(key.clone());
        }
        index.by_vmi.insert(key.clone(), claims);
    }

    /// The VMIs that name a claim.
    pub fn of(&self, claim: &Key) -> Vec<Key> {
        let index = self.0.read().unwrap_or_else(PoisonError::into_inner);
        index.by_claim.get(claim).into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vmi(owner: Option<&str>, volumes: serde_json::Value) -> VirtualMachineInstance {
        let owners: Vec<_> = owner
            .map(|uid| json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "x", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "x", "namespace": "n", "uid": "vmi", "ownerReferences": owners},
            "spec": {"domain": {"devices": {"tpm": {"persistent": true}}}, "volumes": volumes},
        }))
        .unwrap()
    }

    fn class(name: &str, annotation: &str) -> StorageClass {
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {annotation: "true"}}, "provisioner": "p",
        }))
        .unwrap()
    }

    #[test]
    fn claims_whose_room_is_taken_are_told() {
        for (annotations, thick) in [
            (json!({"cdi.kubevirt.io/storage.preallocation": "true"}), true),
            (json!({"cdi.kubevirt.io/storage.thick-provisioned": "true"}), true),
            (json!({"cdi.kubevirt.io/storage.preallocation": "false"}), false),
            (
                json!({"cdi.kubevirt.io/storage.preallocation.requested": "true"}),
                false,
            ),
            (json!({}), false),
        ] {
            let claim = json!({"metadata": {"name": "c", "annotations": annotations}});
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            assert_eq!(info(&claim).preallocated == Some(true), thick, "{annotations}");
        }
    }

    #[test]
    fn the_class_for_state() {
        let (plain, virt) = (class("plain", DEFAULT_CLASS), class("virt", DEFAULT_VIRT_CLASS));
        let other = class("other", "x");
        let chosen = ClusterConfig {
            vm_state_storage_class: Some("chosen".into()),
            ..ClusterConfig::default()
        };
        let config = ClusterConfig::default();
        for (config, classes, expected) in [
            (&chosen, vec![plain.clone(), virt.clone()], Some("chosen")),
            (&config, vec![other.clone(), plain.clone(), virt], Some("virt")),
            (&config, vec![other.clone(), plain], Some("plain")),
            (&config, vec![other], None),
            (&config, vec![], None),
        ] {
            assert_eq!(state_class(config, &classes).as_deref(), expected);
        }
    }

    /// Shows `spec.domain.devices.tpm.persistent`, `spec.domain.firmware.bootloader.efi.persistent`.
    #[test]
    fn state_belongs_to_the_vm_and_follows_it() {
        let config = ClusterConfig::default();
        let all = Cache::default();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let first = vmi(Some("vm1"), json!([]));
        let mut claim = state_claim(&first, "c".into(), &config);
        assert_eq!(claim, state_claim(&first, "c".into(), &config));
        insta::assert_yaml_snapshot!(claim, @"
        apiVersion: v1
        kind: PersistentVolumeClaim
        metadata:
          labels:
            persistent-state-for: x
          name: persistent-state-for-x-qsjvj
          namespace: n
          ownerReferences:
            - apiVersion: kubevirt.io/v1
              controller: true
              kind: VirtualMachine
              name: x
              uid: vm1
        spec:
          accessModes:
            - ReadWriteOnce
          resources:
            requests:
              storage: 10Mi
          storageClassName: c
          volumeMode: Filesystem
        ");
        claim.metadata.uid = Some("claim".into());
        claim.metadata.resource_version = Some("1".into());
        assert!(Claims::of(&first, &all).state().is_none());
        all.observe(claim.clone(), now);
        assert_eq!(Claims::of(&first, &all).state(), Some(&claim));
        assert_eq!(owning_vmi(&claim).unwrap().to_string(), "n/x");
        let second = vmi(Some("vm2"), json!([]));
        assert!(Claims::of(&second, &all).state().is_none());
        assert_ne!(state_claim(&second, "c".into(), &config).name_any(), claim.name_any());
        let alone = state_claim(&vmi(None, json!([])), "c".into(), &config);
        assert_eq!(alone.owner_references()[0].uid, "vmi");
    }

    #[test]
    fn users_follow_the_specs() {
        let volume = |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
        let key = |name: &str| Key {
            namespace: "n".into(),
            name: name.into(),
        };
        let users = Users::default();
        users.set(&key("x"), Some(&vmi(None, json!([volume("a"), volume("b")]))));
        let ephemeral = json!([{"name": "e", "ephemeral": {"persistentVolumeClaim": {"claimName": "a"}}}]);
        users.set(&key("y"), Some(&vmi(None, ephemeral)));
        assert_eq!(users.of(&key("a")), [key("x"), key("y")]);
        users.set(&key("x"), Some(&vmi(None, json!([volume("b")]))));
        assert_eq!(
            (users.of(&key("a")), users.of(&key("b"))),
            (vec![key("y")], vec![key("x")])
        );
        users.set(&key("x"), None);
        users.set(&key("y"), None);
        let index = users.0.read().unwrap();
        assert!(index.by_claim.is_empty() && index.by_vmi.is_empty());
    }
}
