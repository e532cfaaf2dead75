//! What the sidecars of network bindings are told (`downwardAPI: device-info`): the devices behind a VMI's networks, as
//! Multus wrote them down at the pod, by the VMI's names. Pure.

use ferrovirt_api::v1::{Interface, VirtualMachineInstance};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::names::{NETWORK_INFO_ANNOTATION, NETWORK_STATUS_ANNOTATION, pod_interface};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One interface of the pod, as Multus tells of it.
#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    interface: String,
    #[serde(default)]
    default: bool,
    #[serde(default)]
    mac: String,
    #[serde(default, rename = "device-info")]
    device: Option<Value>,
}

#[derive(Serialize)]
struct Info<'a> {
    interfaces: Vec<InterfaceInfo<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceInfo<'a> {
    network: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_info: Option<&'a Value>,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
}

/// What a pod has to be told; `None`: nothing, or it was told, or Multus has not written yet.
pub fn news(vmi: &VirtualMachineInstance, config: &ClusterConfig, pod: &Pod) -> Option<String> {
    let wants = |interface: &&Interface| {
        let plugin = interface.binding.as_ref().map(|binding| &binding.name);
        let registered = plugin.and_then(|name| config.binding_plugins.get(name)?.as_ref().ok());
        registered.is_some_and(|plugin| plugin.device_info)
    };
    let wanted: Vec<&Interface> = vmi.spec.domain.devices.interfaces.iter().filter(wants).collect();
    if wanted.is_empty() || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let told: Vec<Told> = serde_json::from_str(pod.annotations().get(NETWORK_STATUS_ANNOTATION)?).ok()?;
    let secondary = |name: &str| {
        let network = vmi.spec.networks.iter().find(|network| network.name == name);
        let multus = network.and_then(|network| network.multus.as_ref());
        multus.is_some_and(|multus| multus.default != Some(true))
    };
    let info = |interface: &&'_ Interface| {
        let name = interface.name.as_str();
        let own = secondary(name).then(|| pod_interface(name));
        let found = told.iter().find(|told| match &own {
            Some(own) => told.interface == *own,
            None => told.default,
        })?;
        Some((found.device.as_ref(), found.mac.as_str()))
    };
    let interfaces = wanted.iter().filter_map(|interface| {
        let (device_info, mac) = info(interface)?;
        Some(InterfaceInfo {
            network: &interface.name,
            device_info,
            mac,
        })
    });
    let info = Info {
        interfaces: interfaces.collect(),
    };
    let text = serde_json::to_string(&info).ok()?;
    (pod.annotations().get(NETWORK_INFO_ANNOTATION) != Some(&text)).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vmi() -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x", "namespace": "n"},
            "spec": {
                "networks": [
                    {"name": "default", "pod": {}}, {"name": "red", "multus": {"networkName": "net"}},
                    {"name": "blue", "multus": {"networkName": "net"}},
                ],
                "domain": {"devices": {"interfaces": [
                    {"name": "default", "binding": {"name": "vdpa"}}, {"name": "red", "binding": {"name": "vdpa"}},
                    {"name": "blue", "binding": {"name": "plain"}},
                ]}},
            },
        }))
        .unwrap()
    }

    fn config() -> ClusterConfig {
        let plugins =
            json!({"vdpa": {"sidecarImage": "r/v", "downwardAPI": "device-info"}, "plain": {"sidecarImage": "r/p"}});
        let configuration = json!({"network": {"binding": plugins}});
        ClusterConfig::from_kubevirt(&serde_json::from_value(configuration).unwrap())
    }

    fn pod(status: Option<Value>, info: Option<&str>) -> Pod {
        let mut annotations = json!({});
        if let Some(status) = status {
            annotations[NETWORK_STATUS_ANNOTATION] = status.to_string().into();
        }
        if let Some(info) = info {
            annotations[NETWORK_INFO_ANNOTATION] = info.into();
        }
        serde_json::from_value(json!({"metadata": {"name": "p", "annotations": annotations}})).unwrap()
    }

    /// Shows `spec.domain.devices.interfaces[].binding.name`.
    #[test]
    fn devices_are_told_by_the_names_of_networks() {
        let device = json!({"type": "vdpa", "version": "1.1.0", "vdpa": {"path": "/dev/vhost-vdpa-0"}});
        let status = json!([
            {"name": "cni", "interface": "eth0", "default": true, "mac": "02:00:00:00:00:01"},
            {"name": "n/net", "interface": pod_interface("red"), "mac": "02:00:00:00:00:02", "device-info": device},
            {"name": "n/net", "interface": pod_interface("blue"), "mac": "02:00:00:00:00:03"},
        ]);
        let told = news(&vmi(), &config(), &pod(Some(status.clone()), None)).unwrap();
        let expected = json!({"interfaces": [
            {"network": "default", "mac": "02:00:00:00:00:01"},
            {"network": "red", "deviceInfo": device, "mac": "02:00:00:00:00:02"},
        ]});
        assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), expected);
        assert_eq!(
            news(&vmi(), &config(), &pod(Some(status.clone()), Some(&told))),
            None,
            "told"
        );
        assert_eq!(news(&vmi(), &config(), &pod(None, None)), None, "not yet");
        assert_eq!(news(&vmi(), &ClusterConfig::default(), &pod(Some(status), None)), None);
    }
}
