//! The part of the store that is in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{Change, Event, Expired, Key, Retention, Stored};

/// One resource.
pub(super) struct Collection {
    objects: BTreeMap<Arc<str>, Arc<Stored>>,
    events: VecDeque<Arc<Event>>,
    /// Revision of the newest change of this resource that is no longer in `events`.
    dropped: u64,
    changed: watch::Sender<u64>,
}

impl Collection {
    fn new(dropped: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            events: VecDeque::new(),
            dropped,
            changed: watch::Sender::new(0),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Which part of a list is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page<'a> {
    /// Only objects after this path.
    pub after: Option<&'a str>,
}

/// A list at one revision.
#[derive(Debug)]
pub struct Snapshot {
    /// The revision.
    pub revision: u64,
    /// The objects in the order of their paths.
    pub objects: Vec<Arc<Stored>>,
}

/// Everything current, and the retained log.
pub(super) struct State {
    revision: u64,
    /// Changes up to this revision were dropped when the store was loaded.
    compacted: u64,
    collections: HashMap<Arc<str>, Collection>,
    uids: HashMap<Box<str>, Key>,
    dependents: HashMap<Box<str>, BTreeSet<Key>>,
    /// All retained events, oldest first, as (resource, bytes).
    order: VecDeque<(Arc<str>, usize)>,
    bytes: usize,
    retention: Retention,
    journals: Vec<mpsc::UnboundedSender<Arc<Event>>>,
}

impl State {
    pub(super) fn new(retention: Retention) -> Self {
        Self {
            revision: 0,
            compacted: 0,
            collections: HashMap::new(),
            uids: HashMap::new(),
            dependents: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            retention,
            journals: Vec::new(),
        }
    }

    /// Starts from a log whose changes up to `compacted` are incomplete.
    pub(super) fn set_floor(&mut self, revision: u64, compacted: u64) {
        self.revision = revision;
        self.compacted = compacted;
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The resource as one shared string.
    pub(super) fn intern(&mut self, resource: &str) -> Arc<str> {
        if let Some((name, _)) = self.collections.get_key_value(resource) {
            return name.clone();
        }
        let name: Arc<str> = resource.into();
        self.collections.insert(name.clone(), Collection::new(self.compacted));
        name
    }

    pub(super) fn collection(&mut self, resource: &Arc<str>) -> &mut Collection {
        let compacted = self.compacted;
        self.collections
            .entry(resource.clone())
            .or_insert_with(|| Collection::new(compacted))
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.collections.get(&key.resource)?.objects.get(&key.path).cloned()
    }

    pub(super) fn by_uid(&self, uid: &str) -> Option<Arc<Stored>> {
        self.uids.get(uid).and_then(|key| self.get(key))
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<Arc<Stored>> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|key| self.get(key))
            .collect()
    }

    pub(super) fn resources(&self) -> Vec<Arc<str>> {
        self.collections
            .iter()
            .filter(|(_, c)| !c.objects.is_empty())
            .map(|(name, _)| name.clone())
            .collect()
    }

    pub(super) fn changes(&self, resource: &str) -> Option<watch::Receiver<u64>> {
        self.collections
            .get(resource)
            .map(|collection| collection.changed.subscribe())
    }

    pub(super) fn journal(&mut self) -> mpsc::UnboundedReceiver<Arc<Event>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.journals.push(sender);
        receiver
    }

    pub(super) fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: Option<u64>,
        page: Page<'_>,
    ) -> Result<Snapshot, Expired> {
        let revision = at.unwrap_or(self.revision);
        let Some(collection) = self.collections.get(resource) else {
            return if revision < self.compacted {
                Err(Expired { oldest: self.compacted })
            } else {
                Ok(Snapshot {
                    revision,
                    objects: Vec::new(),
                })
            };
        };
        if revision < collection.dropped {
            return Err(Expired {
                oldest: collection.dropped,
            });
        }
        let prefix = namespace.map(|namespace| format!("{namespace}/"));
        let start = match (page.after, &prefix) {
            (Some(after), _) => Bound::Excluded(after),
            (None, Some(prefix)) => Bound::Included(prefix.as_str()),
            (None, None) => Bound::Unbounded,
        };
        let wanted = |path: &str| {
            prefix.as_deref().is_none_or(|prefix| path.starts_with(prefix))
                && page.after.is_none_or(|after| path > after)
        };
        let mut objects: BTreeMap<&str, &Arc<Stored>> = collection
            .objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(path, _)| prefix.as_deref().is_none_or(|prefix| path.starts_with(prefix)))
            .map(|(path, object)| (&**path, object))
            .collect();
        // Undo what happened since the revision asked for.
        for event in collection
            .events
            .iter()
            .rev()
            .take_while(|event| event.object.revision > revision)
        {
            let path = &*event.object.key.path;
            match &event.previous {
                _ if !wanted(path) => {}
                Some(previous) => {
                    objects.insert(path, previous);
                }
                None => {
                    objects.remove(path);
                }
            }
        }
        Ok(Snapshot {
            revision,
            objects: objects.into_values().cloned().collect(),
        })
    }

    pub(super) fn events_after(&self, resource: &str, revision: u64) -> Result<(Vec<Arc<Event>>, u64), Expired> {
        let Some(collection) = self.collections.get(resource) else {
            return if revision < self.compacted {
                Err(Expired { oldest: self.compacted })
            } else {
                Ok((Vec::new(), self.revision))
            };
        };
        if revision < collection.dropped {
            return Err(Expired {
                oldest: collection.dropped,
            });
        }
        let from = collection
            .events
            .partition_point(|event| event.object.revision <= revision);
        Ok((collection.events.range(from..).cloned().collect(), self.revision))
    }

    /// Takes over one durable change. `Err` is the object's last version, which is gone.
    pub(super) fn apply(&mut self, change: Result<Arc<Stored>, Arc<Stored>>) {
        let (object, deleted) = match change {
            Ok(object) => (object, false),
            Err(object) => (object, true),
        };
        let key = object.key.clone();
        self.revision = self.revision.max(object.revision);
        let previous = if deleted {
            self.collection(&key.resource).objects.remove(&key.path)
        } else {
            self.collection(&key.resource)
                .objects
                .insert(key.path.clone(), object.clone())
        };
        if let Some(previous) = &previous {
            self.unindex(previous);
        }
        if !deleted {
            self.index(&object);
        }
        let change = match (&previous, deleted) {
            (_, true) => Change::Deleted,
            (Some(_), false) => Change::Modified,
            (None, false) => Change::Added,
        };
        if object.revision > self.compacted {
            self.remember(Arc::new(Event {
                change,
                object,
                previous,
            }));
        }
    }

    fn index(&mut self, object: &Stored) {
        self.uids.insert(object.uid.clone(), object.key.clone());
        for owner in &object.owners {
            self.dependents
                .entry(owner.clone())
                .or_default()
                .insert(object.key.clone());
        }
    }

    fn unindex(&mut self, object: &Stored) {
        self.uids.remove(&object.uid);
        for owner in &object.owners {
            if let Some(keys) = self.dependents.get_mut(owner) {
                keys.remove(&object.key);
                if keys.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }

    fn remember(&mut self, event: Arc<Event>) {
        let size = event.object.body.len();
        let resource = event.object.key.resource.clone();
        self.journals.retain(|journal| journal.send(event.clone()).is_ok());
        self.collection(&resource).events.push_back(event);
        self.order.push_back((resource, size));
        self.bytes += size;
        while self.order.len() > 1 && (self.order.len() > self.retention.events || self.bytes > self.retention.bytes) {
            let Some((resource, size)) = self.order.pop_front() else {
                break;
            };
            self.bytes -= size;
            let collection = self.collection(&resource);
            if let Some(event) = collection.events.pop_front() {
                collection.dropped = event.object.revision;
            }
        }
    }

    /// The revision up to which the log is not needed any more.
    pub(super) fn floor(&self) -> u64 {
        self.collections
            .values()
            .map(|collection| collection.dropped)
            .max()
            .unwrap_or(0)
    }

    /// Wakes those who watch the resource.
    pub(super) fn signal(&self, resource: &str) {
        if let Some(collection) = self.collections.get(resource) {
            collection.changed.send_replace(self.revision);
        }
    }

    /// Wakes everybody who watches, so that they learn a newer revision before theirs expires.
    pub(super) fn signal_all(&self) {
        for collection in self.collections.values() {
            collection.changed.send_replace(self.revision);
        }
    }
}
