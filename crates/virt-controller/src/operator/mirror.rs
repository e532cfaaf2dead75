//! What is there of all that the operator has installed: one watch per kind, of metadata only, but for processes, whose
//! status says whether they have been rolled out.

use std::pin::pin;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use kube::api::{Api, DynamicObject, ObjectMeta};
use kube::core::PartialObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::resources::{Id, KINDS, Kind, MANAGED_BY, OPERATOR};
use crate::cache::{Cache, Key};

/// How long the API server keeps a watch open. Bookmarks come meanwhile.
pub const WATCH_SECONDS: u32 = 1500;

/// See the module.
pub struct Mirror {
    client: Client,
    namespace: String,
    caches: Vec<Cache<DynamicObject>>,
    /// How many watches have seen everything.
    synced: watch::Sender<usize>,
    /// Something has changed.
    pub changed: Arc<Notify>,
}

/// Something that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Which object of this name.
    pub uid: String,
    /// Changes when what matters of it does; see [`revision`].
    pub revision: String,
    /// It is being deleted.
    pub deleting: bool,
    /// A process: how far it has been rolled out.
    pub rollout: Option<Rollout>,
}

/// What tells whether somebody has changed an object: its generation where status does not count, else its version.
pub fn revision(kind: &Kind, metadata: &ObjectMeta) -> String {
    match metadata.generation {
        Some(generation) if kind.generation => generation.to_string(),
        _ => metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// How far a process is rolled out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Every replica is of the newest kind and available.
    pub complete: bool,
    /// Replicas, or nodes, that it should have.
    pub desired: i64,
}

impl Mirror {
    /// Of this namespace, and of what has none. Tells `changed` of every change.
    pub fn new(client: Client, namespace: &str, changed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            client,
            namespace: namespace.to_owned(),
            caches: KINDS.iter().map(|_| Cache::default()).collect(),
            synced: watch::Sender::new(0),
            changed,
        })
    }

    /// Starts the watches of the kinds that every cluster has.
    pub fn start(self: &Arc<Self>, tasks: &mut JoinSet<&'static str>, stop: &CancellationToken) {
        for kind in KINDS.iter().filter(|kind| !kind.optional) {
            self.start_one(kind, tasks, stop);
        }
    }

    /// Starts the watch of a kind.
    pub fn start_one(
        self: &Arc<Self>,
        kind: &'static Kind,
        tasks: &mut JoinSet<&'static str>,
        stop: &CancellationToken,
    ) {
        let (mirror, stop) = (Arc::clone(self), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = mirror.feed(kind) => {}
            }
            "watch of installed objects"
        });
    }

    /// Waits until all watches of [`Self::start`] have seen everything.
    pub async fn synced(&self) {
        let all = KINDS.iter().filter(|kind| !kind.optional).count();
        let mut synced = self.synced.subscribe();
        // The sender is ours.
        let _ = synced.wait_for(|n| *n >= all).await;
    }

    /// A client of a kind's objects in a namespace, or in none.
    pub fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        self.api_of(kind, namespace)
    }

    fn api_of<K>(&self, kind: &Kind, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
    {
        let resource = kind.api_resource();
        match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    /// What is known of an object.
    pub fn get(&self, id: &Id) -> Option<Present> {
        let object = self.caches[id.kind.index()].get(&key(id))?;
        Some(Present {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            revision: revision(id.kind, &object.metadata),
            deleting: object.metadata.deletion_timestamp.is_some(),
            rollout: rollout(id.kind, &object),
        })
    }

    /// All that exists.
    pub fn all(&self) -> Vec<Id> {
        let of = |(kind, cache): (&'static Kind, &Cache<DynamicObject>)| {
            let keys = cache.keys().into_iter();
            keys.map(move |key| Id {
                kind,
                namespace: key.namespace,
                name: key.name,
            })
        };
        KINDS.iter().zip(&self.caches).flat_map(of).collect()
    }

    /// Takes in the answer to a write of this process.
    pub fn observe(&self, id: &Id, metadata: ObjectMeta) {
        let cache = &self.caches[id.kind.index()];
        let status = cache.get(&key(id)).map_or(Value::Null, |known| known.data.clone());
        cache.observe(trimmed(metadata, status), Timestamp::now());
    }

    async fn feed(&self, kind: &'static Kind) {
        let namespace = if kind.namespaced && !kind.optional {
            self.namespace.as_str()
        } else {
            ""
        };
        let selected = watcher::Config::default()
            .labels(&format!("{MANAGED_BY}={OPERATOR}"))
            .timeout(WATCH_SECONDS);
        let events = if matches!(kind.kind, "Deployment" | "DaemonSet") {
            let full = watcher(self.api(kind, namespace), selected);
            let trim = |object: DynamicObject| trimmed(object.metadata, status(&object.data));
            full.map_ok(move |event| map(event, trim)).boxed()
        } else {
            let api = self.api_of::<PartialObjectMeta<DynamicObject>>(kind, namespace);
            let trim = |object: PartialObjectMeta<DynamicObject>| trimmed(object.metadata, Value::Null);
            watcher(api, selected).map_ok(move |event| map(event, trim)).boxed()
        };
        let mut events = pin!(events.default_backoff());
        let mut complete = false;
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(kind = kind.kind, %error, "a watch failed and starts anew");
                    continue;
                }
            };
            let done = matches!(event, Event::InitDone);
            let changes = self.caches[kind.index()].apply(event, Timestamp::now());
            if done && !complete {
                complete = true;
                self.synced.send_modify(|n| *n += 1);
            }
            if !changes.is_empty() {
                self.changed.notify_one();
            }
        }
    }
}

fn key(id: &Id) -> Key {
    Key {
        namespace: id.namespace.clone(),
        name: id.name.clone(),
    }
}

fn map<A, B>(event: Event<A>, change: impl Fn(A) -> B) -> Event<B> {
    match event {
        Event::Apply(object) => Event::Apply(change(object)),
        Event::Delete(object) => Event::Delete(change(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(change(object)),
        Event::InitDone => Event::InitDone,
    }
}

fn trimmed(metadata: ObjectMeta, data: Value) -> DynamicObject {
    DynamicObject {
        types: None,
        metadata: ObjectMeta {
            annotations: None,
            labels: None,
            managed_fields: None,
            ..metadata
        },
        data,
    }
}

/// What a rollout is read from.
fn status(object: &Value) -> Value {
    json!({"replicas": object["spec"]["replicas"], "status": object["status"]})
}

fn rollout(kind: &Kind, object: &DynamicObject) -> Option<Rollout> {
    let status = &object.data["status"];
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let (desired, updated, available) = match kind.kind {
        "Deployment" => (
            number(&object.data["replicas"]),
            // Those of an older kind are gone.
            number(&status["updatedReplicas"])
                .min(2 * number(&status["updatedReplicas"]) - number(&status["replicas"])),
            number(&status["availableReplicas"]),
        ),
        "DaemonSet" => (
            number(&status["desiredNumberScheduled"]),
            number(&status["updatedNumberScheduled"]),
            number(&status["numberAvailable"]),
        ),
        _ => return None,
    };
    let observed = number(&status["observedGeneration"]) >= object.metadata.generation.unwrap_or_default();
    Some(Rollout {
        complete: observed && updated >= desired && available >= desired,
        desired,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollouts() {
        for (kind, object, complete) in [
            ("Deployment", json!({"spec": {"replicas": 2}}), false),
            (
                "Deployment",
                json!({"spec": {"replicas": 2}, "status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}}),
                true,
            ),
            (
                "Deployment",
                json!({"spec": {"replicas": 2}, "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}}),
                false,
            ),
            (
                "Deployment",
                json!({"spec": {"replicas": 2}, "status": {"observedGeneration": 3, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}}),
                false,
            ),
            (
                "DaemonSet",
                json!({"status": {"observedGeneration": 3, "desiredNumberScheduled": 2, "updatedNumberScheduled": 1, "numberAvailable": 2}}),
                false,
            ),
            (
                "DaemonSet",
                json!({"status": {"observedGeneration": 3, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2}}),
                true,
            ),
            (
                "DaemonSet",
                json!({"status": {"observedGeneration": 3, "desiredNumberScheduled": 0}}),
                true,
            ),
        ] {
            let metadata = ObjectMeta {
                generation: Some(3),
                ..ObjectMeta::default()
            };
            let data = status(&object);
            let object = trimmed(metadata, data);
            let found = rollout(Kind::named(kind), &object).unwrap();
            assert_eq!(found.complete, complete, "{kind} {object:?}");
        }
    }
}
