//! Kubernetes Events: the few things that a user must be told about an object and finds nowhere else.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Mutex;

/// What an event is about; the same key again raises the count of the first event.
type Key = (String, String, String);

/// Remembered keys, at most; then it starts anew.
const REMEMBERED: usize = 1024;

/// Writes events of one component.
#[derive(Clone)]
pub(crate) struct Events {
    client: Client,
    source: EventSource,
    seen: Arc<Mutex<HashMap<Key, (String, i32)>>>,
}

impl Events {
    pub(crate) fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        let source = EventSource {
            component: Some(component.to_owned()),
            host: host.map(str::to_owned),
        };
        Self {
            client,
            source,
            seen: Arc::default(),
        }
    }

    /// Tells users something went wrong with an object. Failures are only logged: no event may stop work.
    pub(crate) async fn warn(&self, about: &ObjectReference, reason: &str, message: &str) {
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api = Api::<Event>::namespaced(self.client.clone(), &namespace);
        let key = (
            about.uid.clone().unwrap_or_default(),
            reason.to_owned(),
            message.to_owned(),
        );
        let mut seen = self.seen.lock().await;
        if seen.len() > REMEMBERED {
            seen.clear();
        }
        let now = Time(Timestamp::now());
        if let Some((name, count)) = seen.get_mut(&key) {
            *count += 1;
            let patch = Patch::Merge(json!({ "count": count, "lastTimestamp": now }));
            if api.patch(name, &PatchParams::default(), &patch).await.is_ok() {
                return;
            }
        }
        let name = event_name(about);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: about.clone(),
            type_: Some("Warning".into()),
            reason: Some(reason.to_owned()),
            message: Some(message.chars().take(1024).collect()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            source: Some(self.source.clone()),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                seen.insert(key, (name, 1));
            }
            Err(error) => tracing::warn!(reason, message, %error, "cannot write an event"),
        }
    }
}

fn event_name(about: &ObjectReference) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let name: String = about.name.as_deref().unwrap_or_default().chars().take(230).collect();
    format!("{name}.{}", &unique[..16])
}
