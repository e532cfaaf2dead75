//! PersistentVolumeClaims of one machine: the storage class `local`, whose volumes are directories.
//!
//! Claims, volumes, classes and the pods that use claims are watched; after each change every claim and volume takes its
//! [next step](plan). A step is one write, and the event that it causes leads to the next one, so nothing is lost
//! when this ends at any point. Data is only removed when the API server itself says that the claim is gone.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::scheduler::{Cache, Key, takes_place};
use plan::{
    Around, CLAIM_PROTECTION, CLASS, ClaimStep, PROVISIONER, VOLUME_PROTECTION, VolumeStep, claim_step, volume_name,
    volume_step,
};

/// Group that may write to new volumes: that of launchers.
const GROUP: u32 = 107;
/// After a failed write, everything is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// The provisioner cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the watch of {0} ended")]
pub(crate) struct WatchEnded(&'static str);

/// A step that did not happen.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Call(#[from] kube::Error),
    #[error("{}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes sure that there is the storage class. What the administrator has made of it stays.
///
/// # Errors
/// The API server refused.
pub(crate) async fn ensure_class(client: &Client) -> Result<(), kube::Error> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": true,
    });
    let class: StorageClass = serde_json::from_value(class).map_err(kube::Error::SerdeError)?;
    let api = Api::<StorageClass>::all(client.clone());
    if api.get_opt(CLASS).await?.is_none() {
        api.create(&PostParams::default(), &class).await?;
    }
    Ok(())
}

/// Serves claims until `stop`; `root` is the directory of all volumes.
///
/// # Errors
/// A watch ended, which it never does by itself.
pub(crate) async fn run(
    client: Client,
    node: String,
    root: PathBuf,
    stop: CancellationToken,
) -> Result<(), WatchEnded> {
    let config = watcher::Config::default;
    let mut claims = std::pin::pin!(watcher(Api::<PersistentVolumeClaim>::all(client.clone()), config()));
    let mut volumes = std::pin::pin!(watcher(Api::<PersistentVolume>::all(client.clone()), config()));
    let mut classes = std::pin::pin!(watcher(Api::<StorageClass>::all(client.clone()), config()));
    let mut pods = std::pin::pin!(watcher(Api::<Pod>::all(client.clone()), config()));
    let mut local = Local {
        events: Events::new(client.clone(), "persistentvolume-controller", None),
        client,
        node,
        root,
        claims: Cache::default(),
        volumes: Cache::default(),
        classes: Cache::default(),
        pods: Cache::default(),
        told: HashMap::new(),
    };
    let mut again: Option<Instant> = None;
    loop {
        let retry = async {
            match again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = retry => true,
            event = claims.next() => take(&mut local.claims, event.ok_or(WatchEnded("claims"))?, |_| true).await,
            event = volumes.next() => take(&mut local.volumes, event.ok_or(WatchEnded("volumes"))?, |_| true).await,
            event = classes.next() => take(&mut local.classes, event.ok_or(WatchEnded("classes"))?, |_| true).await,
            event = pods.next() => {
                let event = event.ok_or(WatchEnded("pods"))?;
                // Most pods use no claims.
                let concerns = match &event {
                    Ok(Event::Apply(pod) | Event::Delete(pod)) => claims_of(pod).next().is_some(),
                    _ => true,
                };
                take(&mut local.pods, event, uses_claims).await && concerns
            }
        };
        if changed {
            again = match local.step_all().await {
                true => None,
                false => Some(Instant::now() + AGAIN),
            };
        }
    }
}

/// Takes an event in; returns whether something may have changed.
async fn take<K: ResourceExt>(
    cache: &mut Cache<K>,
    event: Result<Event<K>, watcher::Error>,
    keep: impl Fn(&K) -> bool,
) -> bool {
    match event {
        Ok(Event::InitApply(object)) => {
            cache.apply(Event::InitApply(object), keep);
            false
        }
        Ok(event) => {
            cache.apply(event, keep);
            true
        }
        Err(error) => {
            tracing::warn!(%error, "a watch of the provisioner was interrupted");
            tokio::time::sleep(Duration::from_millis(500)).await;
            false
        }
    }
}

/// Names of the claims of a pod.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

fn uses_claims(pod: &Pod) -> bool {
    takes_place(pod) && claims_of(pod).next().is_some()
}

struct Local {
    client: Client,
    events: Events,
    node: String,
    root: PathBuf,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    /// Those that use claims.
    pods: Cache<Pod>,
    /// What was last said of a claim that stays pending, by UID.
    told: HashMap<String, String>,
}

impl Local {
    /// Returns whether all that was to be done was done.
    async fn step_all(&mut self) -> bool {
        if !(self.claims.synced && self.volumes.synced && self.classes.synced && self.pods.synced) {
            return true;
        }
        let mut done = true;
        for claim in self.claims.objects.values().cloned().collect::<Vec<_>>() {
            let step = self.next_of(&claim);
            if let Err(error) = self.apply(&claim, step).await {
                let (name, namespace) = (claim.name_any(), claim.namespace().unwrap_or_default());
                tracing::warn!(
                    name,
                    namespace,
                    error = ferrovirt_runtime::logs::chain(&error),
                    "a claim has to wait"
                );
                done = false;
            }
        }
        let exist: BTreeSet<String> = self.claims.objects.values().filter_map(|claim| claim.uid()).collect();
        self.told.retain(|uid, _| exist.contains(uid));
        for volume in self.volumes.objects.values().cloned().collect::<Vec<_>>() {
            let step = volume_step(&volume, claimed(&volume, &exist));
            if let Err(error) = self.apply_to_volume(&volume, step).await {
                let name = volume.name_any();
                tracing::warn!(
                    name,
                    error = ferrovirt_runtime::logs::chain(&error),
                    "a volume has to wait"
                );
                done = false;
            }
        }
        done
    }

    fn next_of(&self, claim: &PersistentVolumeClaim) -> ClaimStep {
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        let name = named
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| volume_name(claim));
        let classes: Vec<&StorageClass> = self.classes.objects.values().map(|class| &**class).collect();
        let key: Key = (claim.namespace().unwrap_or_default(), claim.name_any());
        let uses = |pod: &Pod| pod.namespace().as_ref() == Some(&key.0) && claims_of(pod).any(|name| name == key.1);
        let around = Around {
            volume: self.volumes.objects.get(&(String::new(), name)).map(|volume| &**volume),
            classes: &classes,
            in_use: self.pods.objects.values().any(|pod| uses(pod)),
            node: &self.node,
            root: &self.root,
        };
        claim_step(claim, &around)
    }

    async fn apply(&mut self, claim: &PersistentVolumeClaim, step: ClaimStep) -> Result<(), StepError> {
        let meta = &claim.metadata;
        let change = match step {
            ClaimStep::Rest => return Ok(()),
            ClaimStep::Refuse(reason, message) => {
                self.tell(claim, reason, &message).await;
                return Ok(());
            }
            ClaimStep::Provision(volume) => return self.provision(&volume).await,
            ClaimStep::Bound => {
                let spec = claim.spec.clone().unwrap_or_default();
                let capacity = spec.resources.and_then(|resources| resources.requests);
                let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": capacity});
                return self.patch_status(claim, &status).await;
            }
            ClaimStep::Lost => return self.patch_status(claim, &json!({"phase": "Lost"})).await,
            ClaimStep::Protect => {
                let finalizers: Vec<_> = claim
                    .finalizers()
                    .iter()
                    .map(String::as_str)
                    .chain([CLAIM_PROTECTION])
                    .collect();
                json!({"metadata": {"finalizers": finalizers}})
            }
            ClaimStep::Release => json!({"metadata": {"finalizers": without(claim.finalizers(), CLAIM_PROTECTION)}}),
            ClaimStep::Assign(class) => json!({"spec": {"storageClassName": class}}),
            ClaimStep::Bind(volume) => json!({
                "metadata": {"annotations": {
                    "pv.kubernetes.io/bind-completed": "yes",
                    "pv.kubernetes.io/bound-by-controller": "yes",
                    "volume.kubernetes.io/storage-provisioner": PROVISIONER,
                }},
                "spec": {"volumeName": volume},
            }),
        };
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let change = Patch::Merge(guarded(change, meta.uid.as_ref(), meta.resource_version.as_ref()));
        settled(api.patch(&claim.name_any(), &PatchParams::default(), &change).await)
    }

    async fn patch_status(&self, claim: &PersistentVolumeClaim, status: &Value) -> Result<(), StepError> {
        let meta = &claim.metadata;
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let change = guarded(
            json!({"status": status}),
            meta.uid.as_ref(),
            meta.resource_version.as_ref(),
        );
        settled(
            api.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(change))
                .await,
        )
    }

    /// Says why a claim stays pending, once.
    async fn tell(&mut self, claim: &PersistentVolumeClaim, reason: &str, message: &str) {
        let uid = claim.uid().unwrap_or_default();
        if self.told.get(&uid).is_some_and(|told| told == message) {
            return;
        }
        self.events.warn(&claim.object_ref(&()), reason, message).await;
        self.told.insert(uid, message.to_owned());
    }

    /// The directory is there before the volume, so that nobody finds a volume without one.
    async fn provision(&self, volume: &PersistentVolume) -> Result<(), StepError> {
        let path = self.root.join(volume.name_any());
        make(&self.root, &path).map_err(|source| StepError::Directory { path, source })?;
        let api = Api::<PersistentVolume>::all(self.client.clone());
        settled(api.create(&PostParams::default(), volume).await)
    }

    async fn apply_to_volume(&self, volume: &PersistentVolume, step: VolumeStep) -> Result<(), StepError> {
        let (meta, name) = (&volume.metadata, volume.name_any());
        let api = Api::<PersistentVolume>::all(self.client.clone());
        let guarded = |change| Patch::Merge(guarded(change, meta.uid.as_ref(), meta.resource_version.as_ref()));
        match step {
            VolumeStep::Rest => Ok(()),
            VolumeStep::Phase(phase) => {
                let change = guarded(json!({"status": {"phase": phase}}));
                settled(api.patch_status(&name, &PatchParams::default(), &change).await)
            }
            VolumeStep::Delete => {
                if self.claim_exists(volume).await? {
                    return Ok(());
                }
                let parameters = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: meta.uid.clone(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                settled(api.delete(&name, &parameters).await)
            }
            VolumeStep::Erase { data } => {
                if self.claim_exists(volume).await? {
                    return Ok(());
                }
                if data {
                    let path = self.root.join(&name);
                    let erased = erase(path.clone()).await;
                    erased.map_err(|source| StepError::Directory { path, source })?;
                }
                let rest = without(volume.finalizers(), VOLUME_PROTECTION);
                let change = guarded(json!({"metadata": {"finalizers": rest}}));
                settled(api.patch(&name, &PatchParams::default(), &change).await)
            }
        }
    }

    /// What a watch says may be old, and data that is removed does not come back.
    async fn claim_exists(&self, volume: &PersistentVolume) -> Result<bool, StepError> {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let reference = reference.unwrap_or_default();
        let api =
            Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &reference.namespace.unwrap_or_default());
        let claim = api.get_opt(&reference.name.unwrap_or_default()).await?;
        Ok(claim.is_some_and(|claim| claim.uid() == reference.uid))
    }
}

fn claimed(volume: &PersistentVolume, exist: &BTreeSet<String>) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| reference.uid.as_ref().is_some_and(|uid| exist.contains(uid)))
}

fn without(finalizers: &[String], name: &str) -> Vec<String> {
    finalizers
        .iter()
        .filter(|finalizer| *finalizer != name)
        .cloned()
        .collect()
}

/// The change only of exactly this version of the object.
fn guarded(mut change: Value, uid: Option<&String>, version: Option<&String>) -> Value {
    change["metadata"]["uid"] = json!(uid);
    change["metadata"]["resourceVersion"] = json!(version);
    change
}

/// Somebody else was quicker: there is, or will be, an event, and it is decided anew.
fn settled<T>(answer: Result<T, kube::Error>) -> Result<(), StepError> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn make(root: &Path, path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    fs::create_dir_all(path)?;
    chown(path, Some(0), Some(GROUP))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o2770))
}

/// Renamed first, so that a half-removed volume is never found under its name.
async fn erase(path: PathBuf) -> io::Result<()> {
    let work = move || {
        let gone = path.with_extension("gone");
        match fs::rename(&path, &gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match fs::remove_dir_all(&gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
