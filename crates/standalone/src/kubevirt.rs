//! The `KubeVirt` object: tools look for it, and the administrator configures us by it.

use ferrovirt_api::v1::KubeVirt;
use ferrovirt_core::ClusterConfig;
use ferrovirt_runtime::kubevirt::config;
use jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

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
    Ok(config(&ClusterConfig::standalone(), &found))
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
