//! Events on VMIs, for people.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource};

use ferrovirt_api::v1::VirtualMachineInstance;

/// The guest runs.
pub(crate) const STARTED: &str = "Started";
/// The guest was asked to shut down.
pub(crate) const SHUTTING_DOWN: &str = "ShuttingDown";
/// The guest was stopped at once.
pub(crate) const DELETED: &str = "Deleted";
/// The guest was paused and runs again.
pub(crate) const RESUMED: &str = "Resumed";
/// The guest has ended.
pub(crate) const STOPPED: &str = "Stopped";
/// The guest could not be made what the VMI says.
pub(crate) const SYNC_FAILED: &str = "SyncFailed";

/// The guest's users have their keys and passwords.
pub(crate) const CREDENTIALS_SYNCED: &str = "AccessCredentialsSyncSuccess";
/// They have not.
pub(crate) const CREDENTIALS_NOT_SYNCED: &str = "AccessCredentialsSyncFailed";

/// How long an event waits: what a start waits for comes first at the API server.
const BEHIND: Duration = Duration::from_secs(1);

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) reason: &'static str,
    pub(crate) warning: bool,
    pub(crate) message: String,
}

impl Note {
    pub(crate) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            warning: false,
            message: message.into(),
        }
    }

    pub(crate) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            warning: true,
            message: message.into(),
        }
    }
}

/// What to tell when a guest was asked to end within `grace` seconds, the first time or once more.
pub(crate) fn asked_to_end(first: bool, grace: u64) -> Option<Note> {
    match grace {
        0 => Some(Note::normal(DELETED, "Signaled Deletion")),
        _ if first => {
            let message = format!("The guest was asked to shut down; it is stopped after {grace} s.");
            Some(Note::normal(SHUTTING_DOWN, message))
        }
        _ => None,
    }
}

/// Creates the event in the background, a moment later: telling must not delay doing, and a lost event harms nobody.
pub(crate) fn emit(client: Client, node: &str, vmi: &VirtualMachineInstance, mut note: Note) {
    // The API's limit.
    note.message.truncate(note.message.floor_char_boundary(1024));
    let now = jiff::Timestamp::now();
    let namespace = vmi.metadata.namespace.clone().unwrap_or_default();
    let event = Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}.", vmi.metadata.name.as_deref().unwrap_or_default())),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: vmi.object_ref(&()),
        reason: Some(note.reason.to_owned()),
        message: Some(note.message),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource {
            component: Some("virt-handler".to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("virt-handler".to_owned()),
        reporting_instance: Some(node.to_owned()),
        action: Some(note.reason.to_owned()),
        event_time: Some(MicroTime(now)),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    tokio::spawn(async move {
        tokio::time::sleep(BEHIND).await;
        let events: Api<Event> = Api::namespaced(client, &namespace);
        match events.create(&PostParams::default(), &event).await {
            Ok(_) => {}
            // The namespace is being deleted: nobody is left to read the event.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::debug!(reason = note.reason, %status, "no event");
            }
            Err(error) => tracing::warn!(reason = note.reason, %error, "cannot create an event"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_to_end_is_told_of_once_each_way() {
        for (first, grace, expected) in [
            (true, 30, Some("ShuttingDown")),
            (false, 10, None),
            (false, 0, Some("Deleted")),
            (true, 0, Some("Deleted")),
        ] {
            let note = asked_to_end(first, grace);
            assert_eq!(note.as_ref().map(|note| note.reason), expected, "{first} {grace}");
            assert!(note.is_none_or(|note| !note.warning));
        }
    }
}
