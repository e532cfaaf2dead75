//! Events for users: written behind the work, never in its way, and never twice for the same thing.
//!
//! Notices wait a moment before they are written: what is told several times meanwhile is one event with a count, and a
//! start that is being waited for comes first at the API server.

use std::collections::VecDeque;
use std::time::Duration;

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

/// How long notices are gathered before they are written.
const GATHERED: Duration = Duration::from_secs(1);
/// How long a process that ends still writes what it has to tell.
const FAREWELL: Duration = Duration::from_secs(2);

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

/// What was told, how often, and when first and last.
#[derive(Debug, PartialEq)]
struct Told {
    about: ObjectReference,
    notice: Notice,
    count: i32,
    first: Timestamp,
    last: Timestamp,
}

/// Puts a notice to those that wait.
fn gather(waiting: &mut Vec<Told>, (about, notice): (ObjectReference, Notice), now: Timestamp) {
    let same = waiting
        .iter_mut()
        .find(|told| told.about.uid == about.uid && told.notice == notice);
    if let Some(told) = same {
        told.count = told.count.saturating_add(1);
        told.last = now;
        return;
    }
    waiting.push(Told {
        about,
        notice,
        count: 1,
        first: now,
        last: now,
    });
}

impl Writer {
    /// Writes notices until `shutdown`, and then those that wait. Failures are logged: an event is not worth a retry.
    pub async fn run(mut self, client: Client, shutdown: CancellationToken) {
        let mut written: VecDeque<Written> = VecDeque::new();
        let mut waiting = Vec::new();
        loop {
            let first = tokio::select! {
                () = shutdown.cancelled() => None,
                received = self.0.recv() => received,
            };
            let more = first.is_some();
            if let Some(first) = first {
                gather(&mut waiting, first, Timestamp::now());
                self.gather_for_a_while(&mut waiting, &shutdown).await;
            }
            while let Ok(next) = self.0.try_recv() {
                gather(&mut waiting, next, Timestamp::now());
            }
            let writing = async {
                for told in waiting.drain(..) {
                    write(&client, &mut written, told).await;
                }
            };
            if more {
                writing.await;
                continue;
            }
            // Whoever ends this process does not wait long.
            if tokio::time::timeout(FAREWELL, writing).await.is_err() {
                tracing::debug!("events were not written before the end");
            }
            return;
        }
    }

    async fn gather_for_a_while(&mut self, waiting: &mut Vec<Told>, shutdown: &CancellationToken) {
        let enough = tokio::time::sleep(GATHERED);
        tokio::pin!(enough);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = &mut enough => return,
                received = self.0.recv() => match received {
                    None => return,
                    Some(next) => gather(waiting, next, Timestamp::now()),
                },
            }
        }
    }
}

async fn write(client: &Client, written: &mut VecDeque<Written>, told: Told) {
    let namespace = told.about.namespace.clone().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let known = written
        .iter_mut()
        .find(|w| w.about.uid == told.about.uid && w.notice == told.notice);
    let result = match known {
        Some(known) => {
            known.count = known.count.saturating_add(told.count);
            let change = json!({"count": known.count, "lastTimestamp": Time(told.last)});
            api.patch(&known.name, &PatchParams::default(), &Patch::Merge(change))
                .await
                .map(|_| ())
        }
        None => {
            let event = event(&told);
            let name = event.metadata.name.clone().unwrap_or_default();
            if written.len() == REMEMBERED {
                written.pop_front();
            }
            let result = api.create(&PostParams::default(), &event).await.map(|_| ());
            written.push_back(Written {
                about: told.about,
                notice: told.notice,
                name,
                count: told.count,
            });
            result
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an event was not written");
    }
}

fn event(told: &Told) -> Event {
    let Told { about, notice, .. } = told;
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
        count: Some(told.count),
        first_timestamp: Some(Time(told.first)),
        last_timestamp: Some(Time(told.last)),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: None,
        }),
        reporting_component: Some(COMPONENT.to_owned()),
        event_time: None::<MicroTime>,
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_again_is_counted() {
        let about = |uid: &str| ObjectReference {
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let (created, failed) = (Notice::normal("Created", "pod"), Notice::warning("Failed", "pod"));
        let mut waiting = Vec::new();
        for (uid, notice, second) in [
            ("a", &created, 1),
            ("a", &failed, 2),
            ("a", &failed, 3),
            ("b", &failed, 4),
            ("a", &failed, 5),
        ] {
            gather(&mut waiting, (about(uid), notice.clone()), at(second));
        }
        let got: Vec<_> = waiting
            .iter()
            .map(|told| {
                let uid = told.about.uid.as_deref().unwrap_or_default();
                (uid, told.notice.reason, told.count, told.first, told.last)
            })
            .collect();
        assert_eq!(
            got,
            [
                ("a", "Created", 1, at(1), at(1)),
                ("a", "Failed", 3, at(2), at(5)),
                ("b", "Failed", 1, at(4), at(4)),
            ]
        );
        let event = event(&waiting[1]);
        assert_eq!((event.count, event.type_.as_deref()), (Some(3), Some("Warning")));
    }
}
