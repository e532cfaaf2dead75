//! The installation: its KubeVirt object, and `virtctl permitted-devices`.

use anyhow::{Context, bail};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, ResourceExt};
use serde_json::Value;

use crate::connection::Connection;
use crate::say;

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("kubevirt.io", "v1", "KubeVirt"), "kubevirts")
}

/// The KubeVirt objects of a namespace.
pub(crate) fn of(connection: &Connection, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(connection.client.clone(), namespace, &resource())
}

/// The only KubeVirt object of a cluster.
pub(crate) async fn find(connection: &Connection) -> anyhow::Result<DynamicObject> {
    let all: Api<DynamicObject> = Api::all_with(connection.client.clone(), &resource());
    let found = all.list(&ListParams::default()).await;
    let mut found = found.context("cannot list KubeVirt objects")?.items;
    match (found.pop(), found.pop()) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(other)) => bail!(
            "there are several KubeVirt objects, among them {}/{} and {}/{}",
            one.namespace().unwrap_or_default(),
            one.name_any(),
            other.namespace().unwrap_or_default(),
            other.name_any()
        ),
        (None, _) => bail!("there is no KubeVirt object in the cluster"),
    }
}

/// Prints what machines may have.
pub(crate) async fn permitted_devices(connection: &Connection) -> anyhow::Result<()> {
    let found = find(connection).await?;
    say(listing(&found.data))
}

/// By kinds, the resource names that specifications refer to.
fn listing(kubevirt: &Value) -> String {
    let permitted = &kubevirt["spec"]["configuration"]["permittedHostDevices"];
    let names = |kinds: &[&str]| {
        let devices = kinds.iter().filter_map(|kind| permitted[kind].as_array()).flatten();
        let mut names: Vec<&str> = devices.filter_map(|device| device["resourceName"].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    };
    format!(
        "Permitted Devices: \nHost Devices: \n{}\nGPU Devices: \n{}",
        names(&["pciHostDevices", "usb"]),
        names(&["mediatedDevices"])
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices() {
        let permitted = json!({
            "pciHostDevices": [
                {"pciVendorSelector": "10DE:1", "resourceName": "nvidia.com/b"},
                {"pciVendorSelector": "10DE:2", "resourceName": "nvidia.com/a"},
                {"pciVendorSelector": "10DE:3", "resourceName": "nvidia.com/a"},
            ],
            "usb": [{"resourceName": "kubevirt.io/stick"}],
            "mediatedDevices": [{"mdevNameSelector": "T4", "resourceName": "nvidia.com/t4"}],
        });
        let kubevirt = json!({"spec": {"configuration": {"permittedHostDevices": permitted}}});
        assert_eq!(
            listing(&kubevirt),
            "Permitted Devices: \nHost Devices: \nkubevirt.io/stick, nvidia.com/a, nvidia.com/b\nGPU Devices: \nnvidia.com/t4"
        );
        assert_eq!(
            listing(&json!({})),
            "Permitted Devices: \nHost Devices: \n\nGPU Devices: \n"
        );
    }
}
