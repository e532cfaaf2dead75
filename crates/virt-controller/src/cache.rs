//! What this process knows of one kind: fed by one watch, read by every reconciler.
//!
//! A reconciler also puts in the answers to its own writes ([`Cache::observe`]), so that it never decides on a state
//! that it has changed itself. Older versions never replace newer ones, and deleted objects do not come back.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use ferrovirt_api::v1::{KubeVirt, VirtualMachine, VirtualMachineInstance};
use ferrovirt_core::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodSpec};
use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::DynamicObject;
use kube::runtime::watcher::Event;

use crate::vmi::claims::THICK;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is kept of a kind: decisions need little of most objects, and there may be many.
pub trait Kept: Resource {
    /// Drops what nobody here asks for. Half of an object is `managedFields`, and nothing is decided on them.
    fn trim(&mut self) {
        self.meta_mut().managed_fields = None;
    }
}

impl Kept for VirtualMachine {}

impl Kept for VirtualMachineInstance {}

impl Kept for KubeVirt {}

impl Kept for DynamicObject {}

/// Drops all annotations but those that something is decided on.
fn keep_annotations(metadata: &mut ObjectMeta, kept: &[&str]) {
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, _| kept.contains(&key.as_str()));
    }
}

impl Kept for PersistentVolumeClaim {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        keep_annotations(&mut self.metadata, &THICK);
    }
}

impl Kept for Pod {
    /// What a pod was made of is in its VMI; what became of it is in its metadata, node and status.
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        let networks = [names::NETWORK_STATUS_ANNOTATION, names::NETWORK_INFO_ANNOTATION];
        keep_annotations(&mut self.metadata, &networks);
        if let Some(spec) = &mut self.spec {
            *spec = PodSpec {
                node_name: spec.node_name.take(),
                ..PodSpec::default()
            };
        }
        let Some(status) = &mut self.status else { return };
        let lists = [&mut status.container_statuses, &mut status.init_container_statuses];
        for container in lists.into_iter().flatten().flatten() {
            container.allocated_resources = None;
            container.allocated_resources_status = None;
            container.resources = None;
            container.volume_mounts = None;
        }
    }
}

/// A change of the cache.
#[derive(Debug)]
pub struct Change<K> {
    /// Before.
    pub old: Option<Arc<K>>,
    /// After.
    pub new: Option<Arc<K>>,
}

/// An object and when this process saw it first.
#[derive(Debug)]
pub struct Entry<K> {
    /// The newest version seen.
    pub object: Arc<K>,
    /// First sight of this object (not of this version).
    pub seen: Timestamp,
}

impl<K> Clone for Entry<K> {
    fn clone(&self) -> Self {
        Self {
            object: Arc::clone(&self.object),
            seen: self.seen,
        }
    }
}

/// How many deleted objects are remembered.
const TOMBSTONES: usize = 1024;

#[derive(Debug)]
struct Inner<K> {
    entries: HashMap<Key, Entry<K>>,
    by_owner: HashMap<String, BTreeSet<Key>>,
    tombstones: VecDeque<String>,
    /// Keys seen since the watch began to list anew.
    listing: Option<HashSet<Key>>,
}

/// See the module.
#[derive(Debug)]
pub struct Cache<K> {
    inner: RwLock<Inner<K>>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            inner: RwLock::new(Inner {
                entries: HashMap::new(),
                by_owner: HashMap::new(),
                tombstones: VecDeque::new(),
                listing: None,
            }),
        }
    }
}

/// One cache for each kind. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    /// All VMs.
    pub vms: Arc<Cache<VirtualMachine>>,
    /// All VMIs.
    pub vmis: Arc<Cache<VirtualMachineInstance>>,
    /// All launcher pods.
    pub pods: Arc<Cache<Pod>>,
    /// All claims.
    pub claims: Arc<Cache<PersistentVolumeClaim>>,
}

/// UID of the controlling owner.
pub fn owner_uid<K: Resource>(object: &K) -> Option<&str> {
    let owners = object.meta().owner_references.as_ref()?;
    owners
        .iter()
        .find(|o| o.controller == Some(true))
        .map(|o| o.uid.as_str())
}

fn version<K: Resource>(object: &K) -> u64 {
    let text = object.meta().resource_version.as_deref().unwrap_or_default();
    text.parse().unwrap_or_default()
}

impl<K: Kept> Inner<K> {
    fn put(&mut self, mut object: K, now: Timestamp) -> Option<Change<K>> {
        let key = Key::of(&object);
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        }
        let same = self
            .entries
            .get(&key)
            .filter(|e| e.object.meta().uid == object.meta().uid);
        if let Some(known) = same.map(|e| &e.object) {
            match version(&**known).cmp(&version(&object)) {
                Ordering::Less => {}
                // The answer to an own write came first; those who follow this kind do not know of it yet.
                Ordering::Equal => {
                    let known = Some(Arc::clone(known));
                    return Some(Change {
                        old: known.clone(),
                        new: known,
                    });
                }
                Ordering::Greater => return None,
            }
        }
        let seen = same.map_or(now, |e| e.seen);
        let old = self.remove(&key);
        if let Some(owner) = owner_uid(&object) {
            self.by_owner.entry(owner.to_owned()).or_default().insert(key.clone());
        }
        object.trim();
        let object = Arc::new(object);
        let new = Some(Arc::clone(&object));
        self.entries.insert(key, Entry { object, seen });
        Some(Change { old, new })
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.entries.remove(key)?.object;
        if let Some(owner) = owner_uid(&*old)
            && let Some(keys) = self.by_owner.get_mut(owner)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_owner.remove(owner);
            }
        }
        Some(old)
    }

    /// Whether an object of this UID is known to be gone.
    fn buried(&self, uid: Option<&str>) -> bool {
        uid.is_some_and(|uid| self.tombstones.iter().any(|buried| buried == uid))
    }

    fn bury(&mut self, uid: Option<&str>) {
        let Some(uid) = uid else { return };
        if self.tombstones.len() == TOMBSTONES {
            self.tombstones.pop_front();
        }
        self.tombstones.push_back(uid.to_owned());
    }
}

impl<K: Kept> Cache<K> {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner<K>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner<K>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object with this key.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().entries.get(key).map(|e| Arc::clone(&e.object))
    }

    /// The objects that the object with this UID controls, in the order of their keys.
    pub fn owned_by(&self, uid: &str) -> Vec<Entry<K>> {
        let inner = self.read();
        let keys = inner.by_owner.get(uid).into_iter().flatten();
        keys.filter_map(|key| inner.entries.get(key).cloned()).collect()
    }

    /// All objects, in no order.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read().entries.values().map(|e| Arc::clone(&e.object)).collect()
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        self.read().entries.keys().cloned().collect()
    }

    /// Takes in the answer to a write of this process.
    pub fn observe(&self, object: K, now: Timestamp) {
        let mut inner = self.write();
        let fresh = inner.entries.contains_key(&Key::of(&object)) || object.meta().deletion_timestamp.is_none();
        if fresh && !inner.buried(object.meta().uid.as_deref()) {
            inner.put(object, now);
        }
    }

    /// Takes in an event of the watch. Returns what changed.
    pub fn apply(&self, event: Event<K>, now: Timestamp) -> Vec<Change<K>> {
        let mut inner = self.write();
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                // The watch knows: an object that could not be read for a while is back.
                let uid = object.meta().uid.as_deref();
                if inner.buried(uid) {
                    inner.tombstones.retain(|buried| Some(buried.as_str()) != uid);
                }
                inner.put(object, now).into_iter().collect()
            }
            Event::Delete(object) => {
                inner.bury(object.meta().uid.as_deref());
                let key = Key::of(&object);
                // A new object of the same name may already be known from the answer to its creation.
                let stale = inner
                    .entries
                    .get(&key)
                    .is_some_and(|e| e.object.meta().uid == object.meta().uid);
                let old = if stale { inner.remove(&key) } else { None };
                old.map(|old| Change {
                    old: Some(old),
                    new: None,
                })
                .into_iter()
                .collect()
            }
            Event::Init => {
                inner.listing = Some(HashSet::new());
                Vec::new()
            }
            Event::InitDone => {
                let listed = inner.listing.take().unwrap_or_default();
                let gone: Vec<Key> = inner.entries.keys().filter(|k| !listed.contains(*k)).cloned().collect();
                let removed: Vec<Arc<K>> = gone.iter().filter_map(|key| inner.remove(key)).collect();
                // An answer that was on its way does not bring it back.
                for old in &removed {
                    inner.bury(old.meta().uid.as_deref());
                }
                let change = |old| Change {
                    old: Some(old),
                    new: None,
                };
                removed.into_iter().map(change).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        serde_json::from_value(json!({"metadata": {
            "namespace": "n", "name": name, "uid": uid, "resourceVersion": version.to_string(),
            "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "o", "uid": "owner", "controller": true}]
        }}))
        .unwrap()
    }

    fn versions(cache: &Cache<Pod>) -> Vec<(String, u64)> {
        let all = cache.owned_by("owner");
        all.iter()
            .map(|e| (e.object.metadata.name.clone().unwrap(), version(&*e.object)))
            .collect()
    }

    fn expect(cache: &Cache<Pod>, expected: &[(&str, u64)]) {
        let expected: Vec<(String, u64)> = expected.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        assert_eq!(versions(cache), expected);
    }

    #[test]
    fn what_is_decided_on_is_kept() {
        let annotated = |kept: &[&str]| {
            let all = kept
                .iter()
                .copied()
                .chain(["kubectl.kubernetes.io/last-applied-configuration"]);
            let all: BTreeMap<String, String> = all.map(|key| (key.to_owned(), "true".to_owned())).collect();
            json!({"metadata": {"namespace": "n", "name": "x", "uid": "u", "resourceVersion": "1", "annotations": all,
                "managedFields": []}})
        };
        let networks = [names::NETWORK_STATUS_ANNOTATION, names::NETWORK_INFO_ANNOTATION];
        let mut pod: Pod = serde_json::from_value(annotated(&networks)).unwrap();
        pod.trim();
        let mut claim: PersistentVolumeClaim = serde_json::from_value(annotated(&THICK)).unwrap();
        claim.trim();
        for (metadata, kept) in [(pod.metadata, networks), (claim.metadata, THICK)] {
            let found = metadata.annotations.unwrap();
            assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), kept);
        }
    }

    #[test]
    fn older_versions_and_deleted_objects_stay_away() {
        let cache = Cache::default();
        let t = |s| Timestamp::from_second(s).unwrap();
        cache.observe(pod("a", "1", 5), t(1));
        assert!(cache.apply(Event::Apply(pod("a", "1", 4)), t(2)).is_empty());
        assert_eq!(cache.apply(Event::Apply(pod("a", "1", 6)), t(3)).len(), 1);
        assert_eq!(cache.owned_by("owner")[0].seen, t(1));
        expect(&cache, &[("a", 6)]);
        assert_eq!(cache.apply(Event::Apply(pod("a", "1", 6)), t(3)).len(), 1);
        assert_eq!(cache.apply(Event::Delete(pod("a", "1", 7)), t(4)).len(), 1);
        cache.observe(pod("a", "1", 6), t(5));
        expect(&cache, &[]);
        cache.observe(pod("a", "2", 8), t(6));
        assert!(cache.apply(Event::Delete(pod("a", "1", 7)), t(7)).is_empty());
        expect(&cache, &[("a", 8)]);
    }

    #[test]
    fn of_a_pod_remains_what_is_decided_on() {
        let cache = Cache::default();
        let mut whole = pod("a", "1", 1);
        whole.spec = serde_json::from_value(json!({"nodeName": "n1", "containers": [{"name": "compute"}]})).unwrap();
        whole.status = serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{
            "name": "compute", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {}}, "resources": {"requests": {"cpu": "1"}}}]}))
        .unwrap();
        whole.metadata.managed_fields = Some(vec![]);
        cache.observe(whole, Timestamp::UNIX_EPOCH);
        let kept = serde_json::to_value(&*cache.owned_by("owner")[0].object).unwrap();
        assert_eq!(kept["spec"], json!({"containers": [], "nodeName": "n1"}));
        assert_eq!(
            kept["status"],
            json!({"phase": "Running", "containerStatuses": [{
                "name": "compute", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {}}}]})
        );
        assert_eq!(kept["metadata"].get("managedFields"), None);
    }

    #[test]
    fn a_new_list_forgets_what_is_not_on_it() {
        let cache = Cache::default();
        let now = Timestamp::UNIX_EPOCH;
        cache.observe(pod("a", "1", 1), now);
        cache.observe(pod("b", "2", 2), now);
        cache.apply(Event::Init, now);
        cache.apply(Event::InitApply(pod("b", "2", 2)), now);
        cache.observe(pod("c", "3", 3), now);
        assert_eq!(cache.apply(Event::InitDone, now).len(), 1);
        expect(&cache, &[("b", 2), ("c", 3)]);
        cache.observe(pod("a", "1", 4), now);
        expect(&cache, &[("b", 2), ("c", 3)]);
        cache.observe(pod("a", "4", 5), now);
        expect(&cache, &[("a", 5), ("b", 2), ("c", 3)]);
        cache.apply(Event::Apply(pod("a", "1", 6)), now);
        cache.observe(pod("a", "1", 7), now);
        expect(&cache, &[("a", 7), ("b", 2), ("c", 3)]);
    }
}
