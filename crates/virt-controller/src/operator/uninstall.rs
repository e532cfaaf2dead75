//! Whether an installation may be removed, and what processes leave behind that no watch of ours shows.

use ferrovirt_api::v1::{KubeVirt, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Client, Resource, ResourceExt};
use serde_json::{Map, Value, json};

use super::Trouble;
use crate::context::gone;

/// Leases of the processes that are removed.
const LEASES: &[&str] = &["virt-controller"];
/// Label of nodes that virt-handler has run on.
const SCHEDULABLE: &str = "kubevirt.io/schedulable";

/// Why a KubeVirt object may not be removed now, if so.
///
/// # Errors
/// The API server cannot tell whether there are workloads.
pub async fn blocked(client: &Client, kubevirt: &KubeVirt) -> Result<Option<String>, Trouble> {
    if kubevirt.spec.uninstall_strategy.as_deref() != Some("BlockUninstallIfWorkloadsExist") {
        return Ok(None);
    }
    let found = [
        some::<VirtualMachine>(client).await?,
        some::<VirtualMachineInstance>(client).await?,
        some::<VirtualMachineInstanceReplicaSet>(client).await?,
    ];
    let first = found.into_iter().flatten().next();
    Ok(first.map(|first| {
        format!(
            "there are still workloads, such as {first}: remove them all, or set spec.uninstallStrategy to RemoveWorkloads"
        )
    }))
}

/// An object of a kind, if there is one.
async fn some<K>(client: &Client) -> Result<Option<String>, Trouble>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let one = ListParams::default().limit(1);
    match Api::<K>::all(client.clone()).list_metadata(&one).await {
        Ok(list) => Ok(list.items.first().map(|object: &PartialObjectMeta<K>| {
            let namespace = object.namespace().unwrap_or_default();
            format!("{} {namespace}/{}", K::kind(&()), object.name_any())
        })),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(Trouble::call("looking for workloads", error)),
    }
}

/// Removes leases, and labels and annotations of nodes.
///
/// # Errors
/// The API server refused.
pub async fn traces(client: &Client, namespace: &str) -> Result<(), Trouble> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    for lease in LEASES {
        match leases.delete(lease, &DeleteParams::default()).await {
            Err(error) if !gone(&error) => return Err(Trouble::call("removing a lease", error)),
            _ => {}
        }
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let found = nodes.list_metadata(&ListParams::default().labels(SCHEDULABLE)).await;
    for node in found.map_err(|e| Trouble::call("looking for labels of nodes", e))? {
        let cleared =
            json!({"metadata": {"labels": cleared(node.labels()), "annotations": cleared(node.annotations())}});
        let done = nodes
            .patch_metadata(&node.name_any(), &PatchParams::default(), &Patch::Merge(cleared))
            .await;
        match done {
            Err(error) if !gone(&error) => return Err(Trouble::call("removing labels of a node", error)),
            _ => {}
        }
    }
    Ok(())
}

/// A merge patch that removes our keys.
fn cleared(keys: &std::collections::BTreeMap<String, String>) -> Map<String, Value> {
    let domain = |key: &&String| {
        key.split('/')
            .next()
            .is_some_and(|domain| domain.ends_with("kubevirt.io"))
    };
    keys.keys()
        .filter(domain)
        .map(|key| (key.clone(), Value::Null))
        .collect()
}
