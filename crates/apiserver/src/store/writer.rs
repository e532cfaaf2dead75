//! The one thread that writes: takes what waits, makes it durable together, then visible.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::log::Log;
use super::state::State;
use super::{Expect, Key, Request, Stored, Write, WriteError};

/// Writes that share one sync at most.
const GROUP: usize = 256;
/// Revisions between two compactions of the log on disk.
const COMPACT_EVERY: u64 = 1024;

/// Starts the thread; it ends when all senders are gone.
pub(super) fn spawn(
    state: Arc<RwLock<State>>,
    log: Option<Log>,
    requests: mpsc::UnboundedReceiver<Request>,
) -> std::io::Result<()> {
    let floor = state.read().unwrap_or_else(PoisonError::into_inner).floor();
    let writer = Writer {
        state,
        log,
        compacted: floor,
    };
    std::thread::Builder::new()
        .name("store".into())
        .stack_size(512 << 10)
        .spawn(move || writer.run(requests))?;
    Ok(())
}

struct Writer {
    state: Arc<RwLock<State>>,
    log: Option<Log>,
    compacted: u64,
}

type Reply = oneshot::Sender<Result<Arc<Stored>, WriteError>>;

impl Writer {
    fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut group = Vec::new();
        while let Some(first) = requests.blocking_recv() {
            group.push(first);
            while group.len() < GROUP {
                let Ok(next) = requests.try_recv() else { break };
                group.push(next);
            }
            self.write(group.drain(..));
            self.compact();
        }
    }

    fn write(&mut self, group: impl Iterator<Item = Request>) {
        let mut revision = self.state.read().unwrap_or_else(PoisonError::into_inner).revision();
        let mut pending: HashMap<Key, Option<Arc<Stored>>> = HashMap::new();
        let mut changes = Vec::new();
        let mut replies: Vec<Reply> = Vec::new();
        for request in group {
            let current = match pending.get(&request.key) {
                Some(current) => current.clone(),
                None => self
                    .state
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get(&request.key),
            };
            match next(current, request.key, request.expect, request.write, revision + 1) {
                Ok(change) => {
                    revision += 1;
                    let (key, now) = match &change {
                        Ok(object) => (object.key.clone(), Some(object.clone())),
                        Err(object) => (object.key.clone(), None),
                    };
                    pending.insert(key, now);
                    changes.push(change);
                    replies.push(request.reply);
                }
                Err(error) => _ = request.reply.send(Err(error)),
            }
        }
        if changes.is_empty() {
            return;
        }
        if let Some(Err(error)) = self.log.as_mut().map(|log| log.append(&changes)) {
            tracing::error!(%error, "cannot write the store");
            for reply in replies {
                _ = reply.send(Err(WriteError::Disk(error.to_string())));
            }
            return;
        }
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            for change in &changes {
                state.apply(change.clone());
            }
            for change in &changes {
                let (Ok(object) | Err(object)) = change;
                state.signal(&object.key.resource);
            }
        }
        for (change, reply) in changes.into_iter().zip(replies) {
            let (Ok(object) | Err(object)) = change;
            _ = reply.send(Ok(object));
        }
    }

    fn compact(&mut self) {
        let (floor, revision) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            (state.floor(), state.revision())
        };
        if floor < self.compacted + COMPACT_EVERY {
            return;
        }
        self.compacted = floor;
        if let Some(log) = &mut self.log
            && let Err(error) = log.compact(floor, revision)
        {
            // The log only grows until the next try.
            tracing::warn!(%error, "cannot compact the store");
        }
        self.state.read().unwrap_or_else(PoisonError::into_inner).signal_all();
    }
}

/// The change that a request makes, with its revision.
fn next(
    current: Option<Arc<Stored>>,
    key: Key,
    expect: Expect,
    write: Write,
    revision: u64,
) -> Result<Result<Arc<Stored>, Arc<Stored>>, WriteError> {
    match (expect, &current) {
        (Expect::Absent, Some(_)) => return Err(WriteError::Exists),
        (Expect::Revision(_), None) => return Err(WriteError::Missing),
        (Expect::Revision(expected), Some(current)) if current.revision != expected => {
            return Err(WriteError::Conflict);
        }
        _ => {}
    }
    let (mut object, deleted) = match write {
        Write::Put(object) => (object, false),
        Write::Delete => (current.as_ref().ok_or(WriteError::Missing)?.value(), true),
    };
    object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
    let body: Box<[u8]> = serde_json::to_vec(&object)
        .map_err(|error| WriteError::Disk(error.to_string()))?
        .into();
    let meta = Meta::of(&object);
    let stored = Arc::new(Stored {
        key,
        revision,
        body,
        uid: meta.uid,
        owners: meta.owners,
    });
    Ok(if deleted { Err(stored) } else { Ok(stored) })
}

/// What the store indexes.
#[derive(Default)]
pub(super) struct Meta {
    pub(super) uid: Box<str>,
    pub(super) owners: Box<[Box<str>]>,
}

impl Meta {
    fn of(object: &Value) -> Self {
        let metadata = &object["metadata"];
        let owners = metadata["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|owner| owner["uid"].as_str());
        Self {
            uid: metadata["uid"].as_str().unwrap_or_default().into(),
            owners: owners.map(Into::into).collect(),
        }
    }

    pub(super) fn read(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            #[serde(default)]
            uid: Box<str>,
            #[serde(default)]
            owner_references: Vec<Owner>,
        }
        #[derive(Deserialize)]
        struct Owner {
            uid: Box<str>,
        }
        serde_json::from_slice::<Object>(body).map_or_else(
            |_| Self::default(),
            |object| Self {
                uid: object.metadata.uid,
                owners: object
                    .metadata
                    .owner_references
                    .into_iter()
                    .map(|owner| owner.uid)
                    .collect(),
            },
        )
    }
}
