//! Networks of a VMI that devices of nodes are set aside for: those of its virtual functions (`sriov`), and those of
//! network bindings (`binding`), if their definitions name a resource.

use std::collections::BTreeMap;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::names::NETWORK_RESOURCE_ANNOTATION;
use ferrovirt_core::vmi::conditions as rules;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ApiResource;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};

use crate::context::{Trouble, gone};

/// Namespace and name of the NetworkAttachmentDefinition that a VMI in `namespace` calls `definition`.
pub fn qualified<'a>(definition: &'a str, namespace: &'a str) -> (&'a str, &'a str) {
    definition.split_once('/').unwrap_or((namespace, definition))
}

/// Namespace and name of the NetworkAttachmentDefinition of each interface that may be a device.
fn definitions(vmi: &VirtualMachineInstance) -> Vec<(String, String)> {
    let namespace = vmi.namespace().unwrap_or_default();
    let interfaces = &vmi.spec.domain.devices.interfaces;
    // What the plugin of a binding makes its interfaces of, is not known; a definition without a resource needs none.
    let of_devices = interfaces
        .iter()
        .filter(|interface| interface.sriov.is_some() || interface.binding.is_some());
    let definition = |name: &str| {
        let network = vmi.spec.networks.iter().find(|network| network.name == name)?;
        let (namespace, name) = qualified(&network.multus.as_ref()?.network_name, &namespace);
        Some((namespace.to_owned(), name.to_owned()))
    };
    of_devices.filter_map(|interface| definition(&interface.name)).collect()
}

/// How many devices of which resource of nodes the VMI's networks need. Asks for definitions only if such an
/// interface is there.
///
/// # Errors
/// A definition is missing or cannot be read.
pub async fn resources(client: &Client, vmi: &VirtualMachineInstance) -> Result<BTreeMap<String, u32>, Trouble> {
    let mut counts = BTreeMap::new();
    let kind = GroupVersionKind::gvk("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition");
    let kind = ApiResource::from_gvk_with_plural(&kind, "network-attachment-definitions");
    for (namespace, name) in definitions(vmi) {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &kind);
        let definition = api.get_metadata(&name).await.map_err(|error| {
            let doing = format!("failed to locate network attachment definition {namespace}/{name}");
            if gone(&error) {
                let message = format!("{doing}: there is none, or Multus is not installed");
                return Trouble::Failed {
                    reason: rules::FAILED_CREATE,
                    message,
                };
            }
            Trouble::failed(rules::FAILED_CREATE, &doing, &error)
        })?;
        // A plugin for this may have put the devices into the pod instead.
        if let Some(resource) = definition.annotations().get(NETWORK_RESOURCE_ANNOTATION) {
            *counts.entry(resource.clone()).or_default() += 1;
        }
    }
    Ok(counts)
}

/// Makes a pod ask for these devices, beside the ones that it asks for already.
pub fn ask(pod: &mut Pod, resources: &BTreeMap<String, u32>) {
    let containers = pod.spec.iter_mut().flat_map(|spec| &mut spec.containers);
    let Some(compute) = containers.into_iter().find(|container| container.name == "compute") else {
        return;
    };
    let all = compute.resources.get_or_insert_default();
    for (name, count) in resources {
        let asked = all.limits.as_ref().and_then(|limits| limits.get(name));
        let asked: u32 = asked.and_then(|asked| asked.0.parse().ok()).unwrap_or_default();
        let total = Quantity((asked + count).to_string());
        all.limits.get_or_insert_default().insert(name.clone(), total.clone());
        all.requests.get_or_insert_default().insert(name.clone(), total);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Shows `spec.domain.devices.interfaces[].sriov`.
    #[test]
    fn virtual_functions_and_plugins_have_definitions_and_others_have_not() {
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x", "namespace": "n"},
            "spec": {
                "networks": [
                    {"name": "a", "multus": {"networkName": "net"}}, {"name": "b", "multus": {"networkName": "other/net"}},
                    {"name": "c", "multus": {"networkName": "plain"}}, {"name": "d", "pod": {}},
                    {"name": "e", "multus": {"networkName": "macvtap"}},
                ],
                "domain": {"devices": {"interfaces": [
                    {"name": "a", "sriov": {}}, {"name": "b", "sriov": {}}, {"name": "c", "bridge": {}},
                    {"name": "d", "masquerade": {}}, {"name": "e", "binding": {"name": "macvtap"}},
                ]}},
            },
        }))
        .unwrap();
        let definition = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let expected = [
            definition("n", "net"),
            definition("other", "net"),
            definition("n", "macvtap"),
        ];
        assert_eq!(definitions(&vmi), expected);
    }

    #[test]
    fn a_pod_asks_for_more_of_what_it_asks_for() {
        let mut pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "other"},
            {"name": "compute", "resources": {
                "limits": {"ex.com/nic": "1"}, "requests": {"ex.com/nic": "1", "cpu": "100m"},
            }},
        ]}}))
        .unwrap();
        ask(
            &mut pod,
            &BTreeMap::from([("ex.com/nic".to_owned(), 2), ("ex.com/vf".to_owned(), 1)]),
        );
        let containers = pod.spec.unwrap().containers;
        assert_eq!(containers[0].resources, None);
        assert_eq!(
            serde_json::to_value(&containers[1].resources).unwrap(),
            json!({
                "limits": {"ex.com/nic": "3", "ex.com/vf": "1"},
                "requests": {"ex.com/nic": "3", "ex.com/vf": "1", "cpu": "100m"},
            })
        );
    }
}
