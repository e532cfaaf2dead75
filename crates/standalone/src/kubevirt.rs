//! The `KubeVirt` object: tools look for it, and the administrator configures us by it.

use std::sync::Arc;

use ferrovirt_api::v1::KubeVirt;
use ferrovirt_core::ClusterConfig;
use futures::StreamExt;
use jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Namespace of the object.
pub const NAMESPACE: &str = "kubevirt";
/// Its name.
const NAME: &str = "kubevirt";

/// Makes sure that there is a `KubeVirt` object, marks it as deployed, and reads the configuration from it.
///
/// # Errors
/// The API server refused.
pub async fn ensure(client: &Client) -> Result<ClusterConfig, kube::Error> {
    let all = Api::<KubeVirt>::all(client.clone())
        .list(&ListParams::default())
        .await?;
    let found = match all.items.into_iter().next() {
        Some(found) => found,
        None => {
            let object = json!({
                "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt",
                "metadata": { "name": NAME, "namespace": NAMESPACE },
                "spec": { "configuration": { "developerConfiguration": { "useEmulation": true } } },
            });
            let object: KubeVirt = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
            let api = Api::<KubeVirt>::namespaced(client.clone(), NAMESPACE);
            api.create(&PostParams::default(), &object).await?
        }
    };
    let version = env!("CARGO_PKG_VERSION");
    let current = found
        .status
        .as_ref()
        .and_then(|status| status.observed_kube_virt_version.as_deref());
    if current != Some(version) {
        let namespace = found.namespace().unwrap_or_else(|| NAMESPACE.to_owned());
        let api = Api::<KubeVirt>::namespaced(client.clone(), &namespace);
        let status = Patch::Merge(json!({ "status": status(version) }));
        api.patch_status(&found.name_any(), &PatchParams::default(), &status)
            .await?;
    }
    Ok(config(&found))
}

fn status(version: &str) -> Value {
    let now = Timestamp::now();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({ "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now });
    json!({
        "phase": "Deployed",
        "operatorVersion": version, "observedKubeVirtVersion": version, "targetKubeVirtVersion": version,
        "conditions": [
            condition("Available", "True", "AllComponentsReady", "All components are ready."),
            condition("Progressing", "False", "AllComponentsReady", "All components are ready."),
            condition("Degraded", "False", "AllComponentsReady", "All components are ready."),
            condition("Created", "True", "AllResourcesCreated", "All resources were created."),
        ],
    })
}

/// The embedded home's defaults, changed by what the object says.
fn config(kubevirt: &KubeVirt) -> ClusterConfig {
    match &kubevirt.spec.configuration {
        Some(configuration) => ClusterConfig::standalone().with(configuration),
        None => ClusterConfig::standalone(),
    }
}

/// Keeps `sender` at what the object says, until `stop`.
///
/// # Errors
/// The watch ended, which it never does by itself.
pub async fn follow(
    client: Client,
    sender: watch::Sender<Arc<ClusterConfig>>,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let mut events = std::pin::pin!(watcher(Api::<KubeVirt>::all(client), watcher::Config::default()));
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = events.next() => event.ok_or_else(|| std::io::Error::other("the watch of KubeVirt objects ended"))?,
        };
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                let new = config(&object);
                sender.send_if_modified(|old| {
                    let changed = **old != new;
                    if changed {
                        tracing::info!("the cluster configuration changed");
                        *old = Arc::new(new);
                    }
                    changed
                });
            }
            Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(%error, "the watch of KubeVirt objects was interrupted");
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        }
    }
}
