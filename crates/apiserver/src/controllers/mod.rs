//! What the server does by itself when objects change: garbage collection, namespaces and CRDs on their way out, old events.
//!
//! One task reads the journal of all changes and turns them into work. Nothing is polled: an object that waits for others is
//! looked at again when one of those changes. Only work that failed is tried again by time.

mod events;
mod gc;
mod namespaces;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::failure::{Failure, Result};
use crate::rest::context::Context;
use crate::rest::delete::{self, Options};
use crate::rest::{kinds, meta};
use crate::server::Inner;
use crate::store::{Change, Event, Key, Page, Stored};
use events::OldEvents;

/// Field manager and user name of this work.
const NAME: &str = "generic-garbage-collector";
/// Wait before failed work is tried again: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// A piece of work. Doing it again does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// Are the owners of this object still there?
    Dependent(Key),
    /// May this owner, which waits for its dependents, go?
    Owner(Box<str>),
    /// Is this namespace, which is being deleted, empty?
    Namespace(Box<str>),
    /// Has this namespace its default account?
    Account(Box<str>),
    /// Are the objects of this CRD, which is being deleted, gone?
    Crd(Box<str>),
}

/// Starts the task. It ends with the server.
pub fn spawn(server: &Arc<Inner>, journal: mpsc::UnboundedReceiver<Arc<Event>>) {
    let mut controllers = Controllers::new(server);
    controllers.scan(server);
    tokio::spawn(controllers.run(journal));
}

struct Controllers {
    server: Weak<Inner>,
    queue: VecDeque<Work>,
    queued: HashSet<Work>,
    /// Failed work, when it is tried again and how long it waited last.
    retries: Vec<(Instant, Duration, Work)>,
    /// Namespaces that are being deleted.
    namespaces: HashSet<Box<str>>,
    /// Resources whose CRD is being deleted, with its name.
    crds: HashSet<(Arc<str>, Box<str>)>,
    events: OldEvents,
}

impl Controllers {
    fn new(server: &Arc<Inner>) -> Self {
        Self {
            server: Arc::downgrade(server),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            retries: Vec::new(),
            namespaces: HashSet::new(),
            crds: HashSet::new(),
            events: OldEvents::default(),
        }
    }

    fn add(&mut self, work: Work) {
        if self.queued.insert(work.clone()) {
            self.queue.push_back(work);
        }
    }

    /// Everything that was left undone when the last process ended.
    fn scan(&mut self, server: &Inner) {
        for resource in server.store.resources() {
            let list = server.store.list(&resource, None, None, Page::default());
            for stored in list.map(|list| list.objects).unwrap_or_default() {
                self.see(&stored, None, false);
            }
        }
    }

    async fn run(mut self, mut journal: mpsc::UnboundedReceiver<Arc<Event>>) {
        loop {
            while let Ok(event) = journal.try_recv() {
                self.event(&event);
            }
            let Some(server) = self.server.upgrade() else { return };
            if let Some(work) = self.queue.pop_front() {
                self.queued.remove(&work);
                self.perform(&server, work, None).await;
                continue;
            }
            self.events.prune(&server).await;
            drop(server);
            let next = self.retries.iter().map(|(at, ..)| *at).min();
            let retry = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = journal.recv() => match event {
                    Some(event) => self.event(&event),
                    None => return,
                },
                () = retry => self.retry().await,
            }
        }
    }

    async fn retry(&mut self) {
        let Some(server) = self.server.upgrade() else { return };
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.retries)
            .into_iter()
            .partition(|(at, ..)| *at <= now);
        self.retries = later;
        for (_, waited, work) in due {
            self.perform(&server, work, Some(waited)).await;
        }
    }

    async fn perform(&mut self, server: &Arc<Inner>, work: Work, waited: Option<Duration>) {
        let done = match &work {
            Work::Dependent(key) => gc::dependent(server, key).await,
            Work::Owner(uid) => match gc::owner(server, uid).await {
                Ok(dependents) => {
                    dependents.into_iter().for_each(|key| self.add(Work::Dependent(key)));
                    Ok(())
                }
                Err(failure) => Err(failure),
            },
            Work::Namespace(name) => namespaces::namespace(server, name).await,
            Work::Account(name) => namespaces::account(server, name).await,
            Work::Crd(name) => namespaces::crd(server, name).await,
        };
        let Err(failure) = done else { return };
        let wait = waited.map_or(RETRY.0, |waited| (waited * 2).min(RETRY.1));
        tracing::warn!(?work, error = failure.0.message, retry = ?wait, "cannot finish a deletion");
        if !self.retries.iter().any(|(_, _, other)| *other == work) {
            self.retries.push((Instant::now() + wait, wait, work));
        }
    }

    fn event(&mut self, event: &Event) {
        self.see(
            &event.object,
            event.previous.as_deref(),
            event.change == Change::Deleted,
        );
    }

    /// What follows from an object's state, or from its end.
    fn see(&mut self, object: &Stored, previous: Option<&Stored>, deleted: bool) {
        let key = &object.key;
        if deleted {
            let server = self.server.upgrade();
            let dependents = server
                .map(|server| server.store.dependents(&object.uid))
                .unwrap_or_default();
            dependents
                .into_iter()
                .for_each(|dependent| self.add(Work::Dependent(dependent.key.clone())));
            object
                .owners
                .iter()
                .for_each(|owner| self.add(Work::Owner(owner.clone())));
            if self.namespaces.contains(key.namespace()) {
                self.add(Work::Namespace(key.namespace().into()));
            }
            let crds: Vec<_> = self
                .crds
                .iter()
                .filter(|(resource, _)| *resource == key.resource)
                .cloned()
                .collect();
            crds.into_iter().for_each(|(_, name)| self.add(Work::Crd(name)));
        } else {
            let before = previous.map(|previous| &*previous.owners).unwrap_or_default();
            if *before != *object.owners {
                self.add(Work::Dependent(key.clone()));
                before
                    .iter()
                    .filter(|owner| !object.owners.contains(owner))
                    .for_each(|owner| self.add(Work::Owner(owner.clone())));
            }
            if mentions(&object.body, delete::FOREGROUND) || mentions(&object.body, delete::ORPHAN) {
                self.add(Work::Owner(object.uid.clone()));
            }
        }
        match &*key.resource {
            kinds::NAMESPACES => self.see_namespace(object, deleted),
            kinds::CRDS => self.see_crd(object, deleted),
            kinds::ACCOUNTS if deleted && key.name() == "default" => self.add(Work::Account(key.namespace().into())),
            kinds::EVENTS if !deleted => self.events.add(key, previous.is_some()),
            _ => {}
        }
    }

    fn see_namespace(&mut self, object: &Stored, deleted: bool) {
        let name: Box<str> = object.key.name().into();
        if deleted {
            self.namespaces.remove(&name);
        } else if meta::deleting(&object.value()) {
            self.namespaces.insert(name.clone());
            self.add(Work::Namespace(name));
        } else {
            self.add(Work::Account(name));
        }
    }

    fn see_crd(&mut self, object: &Stored, deleted: bool) {
        let name: Box<str> = object.key.name().into();
        self.crds.retain(|(_, crd)| *crd != name);
        let crd = object.value();
        if !deleted && meta::deleting(&crd) {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let storage = format!(
                "{}/{}",
                text(&crd["spec"]["group"]),
                text(&crd["spec"]["names"]["plural"])
            );
            self.crds.insert((storage.into(), name.clone()));
            self.add(Work::Crd(name));
        }
    }
}

/// Whether a document may contain a text; cheaper than parsing it.
fn mentions(body: &[u8], text: &str) -> bool {
    let quoted = format!("\"{text}\"");
    body.windows(quoted.len()).any(|window| window == quoted.as_bytes())
}

/// A request of this work to one stored object's resource.
fn context(server: &Arc<Inner>, key: &Key) -> Option<Context> {
    let served = server.registry().stored(&key.resource)?;
    Some(Context::internal(server, served, Some(key.namespace()), NAME))
}

/// Deletes one object if it still is the one that was seen.
async fn delete_object(server: &Arc<Inner>, stored: &Stored, propagation: Option<delete::Propagation>) -> Result<()> {
    let Some(mut context) = context(server, &stored.key) else {
        return Ok(());
    };
    let options = Options {
        uid: Some(stored.uid.to_string()),
        propagation,
        ..Options::default()
    };
    gone_is_fine(
        delete::delete(&mut context, stored.key.name(), &options)
            .await
            .map(|_| ()),
    )
}

/// That an object is gone, or another one, is what was wanted.
fn gone_is_fine(done: Result<()>) -> Result<()> {
    match done {
        Err(Failure(status)) if status.code == Some(i32::from(StatusCode::NOT_FOUND.as_u16())) => Ok(()),
        Err(Failure(status))
            if status
                .message
                .as_deref()
                .is_some_and(|text| text.contains("UID in precondition")) =>
        {
            Ok(())
        }
        done => done,
    }
}
