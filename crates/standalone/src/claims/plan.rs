//! What should happen next to a claim or a volume. Pure.
//!
//! ```text
//!  claim   created ─► protected ─► gets the default class ─► its volume is made ─► names it ─► Bound
//!  volume  made ─► Bound ─────────────── the claim goes ─► deleted ─► its directory goes ─► gone
//! ```

use std::path::Path;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::ObjectMeta;

/// The storage class.
pub(super) const CLASS: &str = "local";
/// Who makes its volumes.
pub(super) const PROVISIONER: &str = "ferrovirt.io/local";
/// Keeps a claim while a pod uses it.
pub(super) const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while it has a claim.
pub(super) const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Who made a volume.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// What a decision about a claim depends on, besides the claim.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    /// The volume that the claim names, or that is named after it.
    pub(super) volume: Option<&'a PersistentVolume>,
    pub(super) classes: &'a [&'a StorageClass],
    /// A pod that has not ended uses it.
    pub(super) in_use: bool,
    pub(super) node: &'a str,
    /// Directory of all volumes.
    pub(super) root: &'a Path,
}

/// Next step of a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ClaimStep {
    /// There is nothing to do.
    Rest,
    /// Keep it while a pod uses it.
    Protect,
    /// Give it the default class.
    Assign(String),
    /// Make its volume.
    Provision(Box<PersistentVolume>),
    /// Let it name its volume.
    Bind(String),
    /// Its status says that it is bound.
    Bound,
    /// Its status says that its volume is gone.
    Lost,
    /// Nobody uses it any more: let it go.
    Release,
    /// It stays pending, and an event says why.
    Refuse(&'static str, String),
}

/// Next step of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    /// There is nothing to do.
    Rest,
    /// Its status says this phase.
    Phase(&'static str),
    /// Delete the object; the directory follows.
    Delete,
    /// Remove the directory, if it is to be, and let the object go.
    Erase {
        /// The data goes, too.
        data: bool,
    },
}

pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid().unwrap_or_default())
}

fn is(text: Option<&String>, value: &str) -> bool {
    text.is_some_and(|text| text == value)
}

fn default_class<'a>(classes: &[&'a StorageClass]) -> Option<&'a StorageClass> {
    let marked = |class: &&&StorageClass| is(class.annotations().get(DEFAULT_CLASS), "true");
    // As Kubernetes: the newest of several.
    let age = |class: &&&StorageClass| class.creation_timestamp().map(|time| time.0);
    classes.iter().filter(marked).max_by_key(age).copied()
}

/// Whether a bound claim's status says the size that is asked for: a directory has room for more at once.
fn has_its_size(claim: &PersistentVolumeClaim) -> bool {
    let spec = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let wanted = spec.and_then(|resources| resources.requests.as_ref()?.get("storage"));
    let status = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
    wanted == status.and_then(|capacity| capacity.get("storage"))
}

pub(super) fn claim_step(claim: &PersistentVolumeClaim, around: &Around<'_>) -> ClaimStep {
    let protected = claim.finalizers().iter().any(|f| f == CLAIM_PROTECTION);
    if claim.metadata.deletion_timestamp.is_some() {
        let free = protected && !around.in_use;
        return if free { ClaimStep::Release } else { ClaimStep::Rest };
    }
    if !protected {
        return ClaimStep::Protect;
    }
    let spec = claim.spec.as_ref();
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_ref());
    if let Some(name) = spec
        .and_then(|spec| spec.volume_name.as_ref())
        .filter(|name| !name.is_empty())
    {
        return match around.volume {
            Some(volume) if is_of(volume, claim) && is(phase, "Bound") && has_its_size(claim) => ClaimStep::Rest,
            Some(volume) if is_of(volume, claim) => ClaimStep::Bound,
            Some(_) => ClaimStep::Refuse("FailedBinding", format!("volume \"{name}\" belongs to another claim")),
            None if is(phase, "Lost") => ClaimStep::Rest,
            None if is(phase, "Bound") => ClaimStep::Lost,
            None => ClaimStep::Refuse("FailedBinding", format!("volume \"{name}\" does not exist")),
        };
    }
    unbound(claim, around)
}

/// The claim names no volume yet.
fn unbound(claim: &PersistentVolumeClaim, around: &Around<'_>) -> ClaimStep {
    let refuse = |message: String| ClaimStep::Refuse("ProvisioningFailed", message);
    let spec = claim.spec.clone().unwrap_or_default();
    let class = match spec.storage_class_name.as_deref() {
        None => match default_class(around.classes) {
            Some(class) => return ClaimStep::Assign(class.name_any()),
            None => "",
        },
        Some(name) => name,
    };
    if class.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return ClaimStep::Refuse("FailedBinding", message.to_owned());
    }
    let Some(class) = around.classes.iter().find(|known| known.name_any() == class) else {
        return refuse(format!("storageclass.storage.k8s.io \"{class}\" not found"));
    };
    if class.provisioner != PROVISIONER {
        return refuse(format!(
            "nobody on this machine makes volumes of the storage class \"{}\" (provisioner {}); use \"{CLASS}\"",
            class.name_any(),
            class.provisioner
        ));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return refuse(format!(
            "volumes of the storage class \"{}\" are directories: volumeMode Block is not supported, use Filesystem",
            class.name_any()
        ));
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return refuse("a new volume begins empty: dataSource and dataSourceRef are not supported".to_owned());
    }
    if spec.selector.is_some() {
        return refuse("a volume is made for each claim: spec.selector is not supported".to_owned());
    }
    match around.volume {
        Some(volume) if is_of(volume, claim) => ClaimStep::Bind(volume.name_any()),
        Some(volume) => refuse(format!("volume \"{}\" belongs to another claim", volume.name_any())),
        None => ClaimStep::Provision(Box::new(volume(claim, class, around))),
    }
}

/// The volume was made for exactly this claim.
fn is_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| reference.uid == claim.uid())
}

fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, around: &Around<'_>) -> PersistentVolume {
    let name = volume_name(claim);
    let spec = claim.spec.clone().unwrap_or_default();
    let here = NodeSelectorRequirement {
        key: "kubernetes.io/hostname".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![around.node.to_owned()]),
    };
    let term = NodeSelectorTerm {
        match_expressions: Some(vec![here]),
        match_fields: None,
    };
    PersistentVolume {
        metadata: ObjectMeta {
            annotations: Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into()),
            finalizers: Some(vec![VOLUME_PROTECTION.to_owned()]),
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: spec.resources.and_then(|resources| resources.requests),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                name: Some(claim.name_any()),
                namespace: claim.namespace(),
                uid: claim.uid(),
                ..ObjectReference::default()
            }),
            local: Some(LocalVolumeSource {
                fs_type: None,
                path: around.root.join(&name).to_string_lossy().into_owned(),
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector {
                    node_selector_terms: vec![term],
                }),
            }),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone().or_else(|| Some("Delete".to_owned())),
            storage_class_name: Some(class.name_any()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// `claimed`: the claim that the volume was made for exists.
pub(super) fn volume_step(volume: &PersistentVolume, claimed: bool) -> VolumeStep {
    if !is(volume.annotations().get(PROVISIONED_BY), PROVISIONER) {
        return VolumeStep::Rest;
    }
    let policy = volume.spec.as_ref();
    let policy = policy.and_then(|spec| spec.persistent_volume_reclaim_policy.as_ref());
    let data = is(policy, "Delete");
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_ref());
    let wanted = if claimed { "Bound" } else { "Released" };
    if volume.metadata.deletion_timestamp.is_some() && !claimed {
        let held = volume.finalizers().iter().any(|f| f == VOLUME_PROTECTION);
        return if held {
            VolumeStep::Erase { data }
        } else {
            VolumeStep::Rest
        };
    }
    if !claimed && data {
        return VolumeStep::Delete;
    }
    if is(phase, wanted) {
        VolumeStep::Rest
    } else {
        VolumeStep::Phase(wanted)
    }
}
