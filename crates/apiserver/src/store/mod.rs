//! The objects, their one global revision, and the log of what changed.
//!
//! Every write gets the next revision. The log on disk holds one row per revision; an object is the newest row of its key, so
//! a write is one row and a restart is one scan. All current objects and the retained part of the log are also in memory,
//! serialized, and reads never touch the disk.
//!
//! Guarantees:
//! * A write that was answered is durable: the log is synced once per group of waiting writes (`synchronous=FULL`), so neither
//!   a killed process nor lost power takes back what a client was told.
//! * Writes are visible in revision order, and only after they are durable.
//! * A watch from revision R sees every later change of its resource exactly once, or is told [`Expired`].
//! * Nothing runs while nothing is asked: no timers, no background writes.

mod log;
mod state;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use state::State;
pub use state::{Page, Snapshot};

/// Where the store lives.
#[derive(Clone, Debug)]
pub enum Storage {
    /// A SQLite database (WAL), created if absent. Its directory must exist.
    File(PathBuf),
    /// Memory only; for tests.
    Memory,
}

/// How much of the log is kept for watches that come back.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Number of changes.
    pub events: usize,
    /// Bytes of the objects in them.
    pub bytes: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            events: 4096,
            bytes: 6 << 20,
        }
    }
}

/// Where an object is stored: its resource (`GROUP/PLURAL`, the group is empty for core) and its place in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `kubevirt.io/virtualmachines`, `/pods`.
    pub resource: Arc<str>,
    /// `NAMESPACE/NAME`; the namespace is empty for cluster-wide kinds.
    pub path: Arc<str>,
}

impl Key {
    /// The key of one object.
    pub fn new(resource: &Arc<str>, namespace: &str, name: &str) -> Self {
        Self {
            resource: resource.clone(),
            path: format!("{namespace}/{name}").into(),
        }
    }

    /// Namespace, empty for cluster-wide kinds.
    pub fn namespace(&self) -> &str {
        self.path.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Object name.
    pub fn name(&self) -> &str {
        self.path.split_once('/').map_or(&*self.path, |(_, name)| name)
    }
}

/// One version of one object.
#[derive(Debug)]
pub struct Stored {
    /// Where it is stored.
    pub key: Key,
    /// The revision that wrote it; equals its `metadata.resourceVersion`.
    pub revision: u64,
    /// The object as JSON.
    pub body: Box<[u8]>,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// The uids in `metadata.ownerReferences`.
    pub owners: Box<[Box<str>]>,
}

impl Stored {
    /// The object, parsed.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It was replaced.
    Modified,
    /// It is gone.
    Deleted,
}

/// One entry of the log.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// The new object; for deletes the last one, with the revision of the delete.
    pub object: Arc<Stored>,
    /// The object before, unless it is new.
    pub previous: Option<Arc<Stored>>,
}

/// What the writer found when it chose the object's next version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is no such object.
    Absent,
    /// The object has this revision.
    Revision(u64),
}

/// The new state of an object.
#[derive(Debug)]
pub enum Write {
    /// This object; its `metadata.resourceVersion` is set by the store.
    Put(Value),
    /// None.
    Delete,
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Expected absent.
    #[error("the object exists already")]
    Exists,
    /// Expected a revision, but there is no object.
    #[error("the object does not exist")]
    Missing,
    /// Expected another revision.
    #[error("the object has been modified")]
    Conflict,
    /// The disk refused.
    #[error("cannot write the store: {0}")]
    Disk(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// SQLite refused.
    #[error("cannot open the store {path}")]
    Database {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file was written by another version.
    #[error("the store {path} has format {found}, this program reads format {expected}")]
    Format {
        /// The database file.
        path: PathBuf,
        /// Found in the file.
        found: i64,
        /// Understood by this program.
        expected: i64,
    },
    /// The writer thread could not be started.
    #[error("cannot start the store's writer thread")]
    Thread(#[source] std::io::Error),
}

/// The revision asked for is no longer in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The oldest revision that could be served.
    pub oldest: u64,
}

struct Request {
    key: Key,
    expect: Expect,
    write: Write,
    reply: oneshot::Sender<Result<Arc<Stored>, WriteError>>,
}

/// A handle of the store; clones share it. The writer thread ends when the last handle is gone.
#[derive(Clone)]
pub struct Store {
    state: Arc<RwLock<State>>,
    writes: mpsc::UnboundedSender<Request>,
}

impl Store {
    /// Opens or creates the store and reads it.
    ///
    /// # Errors
    /// The database cannot be opened, read, or has another format.
    pub fn open(storage: &Storage, retention: Retention) -> Result<Self, OpenError> {
        let mut state = State::new(retention);
        let log = match storage {
            Storage::Memory => None,
            Storage::File(path) => Some(log::Log::open(path, &mut state)?),
        };
        let state = Arc::new(RwLock::new(state));
        let (writes, requests) = mpsc::unbounded_channel();
        writer::spawn(state.clone(), log, requests).map_err(OpenError::Thread)?;
        Ok(Self { state, writes })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.read().revision()
    }

    /// The current version of an object.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.read().get(key)
    }

    /// The current object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<Stored>> {
        self.read().by_uid(uid)
    }

    /// The objects that name this uid in their owner references.
    pub fn dependents(&self, uid: &str) -> Vec<Arc<Stored>> {
        self.read().dependents(uid)
    }

    /// The objects of a resource, in one namespace or all, as they were at `at` (now if `None`).
    ///
    /// # Errors
    /// The log does not reach back to `at`.
    pub fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: Option<u64>,
        page: Page<'_>,
    ) -> Result<Snapshot, Expired> {
        self.read().list(resource, namespace, at, page)
    }

    /// All resources that have objects.
    pub fn resources(&self) -> Vec<Arc<str>> {
        self.read().resources()
    }

    /// Is signalled with each change of the resource, and when the log was shortened.
    pub fn changes(&self, resource: &Arc<str>) -> watch::Receiver<u64> {
        if let Some(receiver) = self.read().changes(resource) {
            return receiver;
        }
        let mut state = self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.collection(resource).subscribe()
    }

    /// The changes of a resource after `revision`, and the store's revision at which that was all.
    ///
    /// # Errors
    /// The log does not reach back to `revision`.
    pub fn events_after(&self, resource: &str, revision: u64) -> Result<(Vec<Arc<Event>>, u64), Expired> {
        self.read().events_after(resource, revision)
    }

    /// Every change from now on, of all resources, in order. For work inside the server that keeps up.
    pub fn journal(&self) -> mpsc::UnboundedReceiver<Arc<Event>> {
        let mut state = self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.journal()
    }

    /// Writes one object if it is as expected. Returns the new version (for deletes: the last one, with the revision of the delete).
    /// Cancel safety: a write whose future was dropped may still be done.
    ///
    /// # Errors
    /// The object is not as expected, or the disk refused.
    pub async fn write(&self, key: Key, expect: Expect, write: Write) -> Result<Arc<Stored>, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.writes
            .send(Request {
                key,
                expect,
                write,
                reply,
            })
            .map_err(|_| WriteError::Closed)?;
        answer.await.map_err(|_| WriteError::Closed)?
    }
}

#[cfg(test)]
mod tests;
