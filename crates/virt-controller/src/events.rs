//! Events for users: written beside the work, never in its way, and never twice for the same thing.

use std::collections::VecDeque;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Component name in events.
const COMPONENT: &str = "virtualmachine-controller";
/// How many events are remembered, to count repetitions instead of writing new ones.
const REMEMBERED: usize = 256;

/// What happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// It is a warning.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Notice {
    /// Something went as it should.
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            warning: false,
            reason,
            message: message.into(),
        }
    }

    /// Something did not.
    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            warning: true,
            reason,
            message: message.into(),
        }
    }
}

/// Where notices are sent to.
#[derive(Clone, Debug)]
pub struct Recorder(mpsc::UnboundedSender<(ObjectReference, Notice)>);

impl Recorder {
    /// Has a notice about `object` written.
    pub fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, notice: Notice) {
        // The writer is only gone when the process ends.
        let _ = self.0.send((object.object_ref(&()), notice));
    }
}

/// Notices that wait to be written.
#[derive(Debug)]
pub struct Writer(mpsc::UnboundedReceiver<(ObjectReference, Notice)>);

/// A new recorder.
pub fn recorder() -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Recorder(sender), Writer(receiver))
}

struct Written {
    about: ObjectReference,
    notice: Notice,
    name: String,
    count: i32,
}

impl Writer {
    /// Writes notices until `shutdown`. Failures are logged: an event is not worth a retry.
    pub async fn run(mut self, client: Client, shutdown: CancellationToken) {
        let mut written: VecDeque<Written> = VecDeque::new();
        loop {
            let (about, notice) = tokio::select! {
                () = shutdown.cancelled() => return,
                received = self.0.recv() => match received {
                    None => return,
                    Some(received) => received,
                },
            };
            let namespace = about.namespace.clone().unwrap_or_default();
            let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
            let known = written
                .iter_mut()
                .find(|w| w.about.uid == about.uid && w.notice == notice);
            let result = match known {
                Some(known) => {
                    known.count = known.count.saturating_add(1);
                    let change = json!({"count": known.count, "lastTimestamp": Time(Timestamp::now())});
                    api.patch(&known.name, &PatchParams::default(), &Patch::Merge(change))
                        .await
                        .map(|_| ())
                }
                None => {
                    let event = event(&about, &notice, Timestamp::now());
                    let name = event.metadata.name.clone().unwrap_or_default();
                    if written.len() == REMEMBERED {
                        written.pop_front();
                    }
                    let result = api.create(&PostParams::default(), &event).await.map(|_| ());
                    written.push_back(Written {
                        about,
                        notice,
                        name,
                        count: 1,
                    });
                    result
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "an event was not written");
            }
        }
    }
}

fn event(about: &ObjectReference, notice: &Notice, now: Timestamp) -> Event {
    let name = format!(
        "{}.{:016x}",
        about.name.as_deref().unwrap_or_default(),
        rand::random::<u64>()
    );
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: about.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            resource_version: None,
            ..about.clone()
        },
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(notice.reason.to_owned()),
        message: Some(notice.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: None,
        }),
        reporting_component: Some(COMPONENT.to_owned()),
        event_time: None::<MicroTime>,
        ..Event::default()
    }
}
