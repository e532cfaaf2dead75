//! The cluster's configuration, as the `KubeVirt` object says it.

use std::sync::Arc;
use std::time::Duration;

use ferrovirt_api::v1::KubeVirt;
use ferrovirt_core::{ClusterConfig, names};
use futures::StreamExt;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// The home's defaults, changed by what the object says.
#[must_use]
pub fn config(defaults: &ClusterConfig, kubevirt: &KubeVirt) -> ClusterConfig {
    let mut config = match &kubevirt.spec.configuration {
        Some(configuration) => defaults.clone().with(configuration),
        None => defaults.clone(),
    };
    let annotations = kubevirt.metadata.annotations.as_ref();
    let skip = annotations.and_then(|all| all.get(names::SKIP_BACKUP_HOOKS_ANNOTATION));
    if let Some(skip) = skip.and_then(|value| names::boolean(value)) {
        config.skip_backup_hooks = skip;
    }
    config
}

/// What the one `KubeVirt` object of the cluster says now; `defaults` if there is none.
///
/// # Errors
/// The API server refused.
pub async fn read(client: &Client, defaults: &ClusterConfig) -> Result<ClusterConfig, kube::Error> {
    let all = Api::<KubeVirt>::all(client.clone())
        .list(&ListParams::default().limit(1))
        .await?;
    Ok(all
        .items
        .first()
        .map_or_else(|| defaults.clone(), |object| config(defaults, object)))
}

/// As [`read`], as soon as the API server answers. Cancel safe.
pub async fn first(client: &Client, defaults: &ClusterConfig) -> ClusterConfig {
    loop {
        match read(client, defaults).await {
            Ok(config) => return config,
            Err(error) => {
                let error = crate::logs::chain(&error);
                tracing::warn!(error, "cannot read the KubeVirt object yet");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Keeps `sender` at what the object says, until `stop`.
///
/// # Errors
/// The watch ended, which it never does by itself.
pub async fn follow(
    client: Client,
    defaults: ClusterConfig,
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
                let new = config(&defaults, &object);
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
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_of_the_object_are_configuration_too() {
        let defaults = ClusterConfig::default();
        for (annotations, expected) in [
            (json!({}), false),
            (json!({names::SKIP_BACKUP_HOOKS_ANNOTATION: "true"}), true),
            (json!({names::SKIP_BACKUP_HOOKS_ANNOTATION: "false"}), false),
            (json!({names::SKIP_BACKUP_HOOKS_ANNOTATION: "perhaps"}), false),
        ] {
            let kubevirt = json!({
                "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt",
                "metadata": {"name": "kubevirt", "annotations": annotations}, "spec": {},
            });
            let kubevirt: KubeVirt = serde_json::from_value(kubevirt).unwrap();
            assert_eq!(
                config(&defaults, &kubevirt).skip_backup_hooks,
                expected,
                "{annotations}"
            );
        }
    }
}
