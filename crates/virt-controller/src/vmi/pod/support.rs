//! What the containers beside the guest's may take: `supportContainerResources` of the KubeVirt object comes before what
//! we know of them.

use std::collections::BTreeMap;

use ferrovirt_api::v1::ResourceRequirementsWithoutClaims;
use ferrovirt_core::ClusterConfig;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::wire;

/// The type of a container in `supportContainerResources`, by its name.
fn kind(name: &str) -> Option<&'static str> {
    match name {
        "container-disk-binary" => Some("container-disk"),
        "guest-console-log" => Some("guest-console-log"),
        _ if name.starts_with("hook-sidecar-") => Some("sidecar"),
        _ if name.starts_with("virtiofs-") => Some("virtiofs"),
        _ if name.starts_with("volume") => Some("container-disk"),
        _ => None,
    }
}

/// Gives a container what the administrator says that its type gets.
pub(super) fn supply(container: &mut Container, config: &ClusterConfig) {
    let Some(own) = kind(&container.name).and_then(|kind| config.support_containers.get(kind)) else {
        return;
    };
    let ResourceRequirementsWithoutClaims { limits, requests } = own;
    let resources = container.resources.get_or_insert_default();
    let all_limits = resources.limits.get_or_insert_default();
    all_limits.extend(wire(limits));
    let all_requests = resources.requests.get_or_insert_default();
    all_requests.extend(wire(requests));
    lower(all_requests, all_limits, requests.keys());
}

/// A limit below what is requested without anybody's wish lowers the request.
fn lower<'a>(
    requests: &mut BTreeMap<String, Quantity>,
    limits: &BTreeMap<String, Quantity>,
    wished: impl Iterator<Item = &'a String>,
) {
    let wished: Vec<&String> = wished.collect();
    let millis = |quantity: &Quantity| ferrovirt_api::Quantity(quantity.0.clone()).millis().ok();
    for (name, request) in requests.iter_mut().filter(|(name, _)| !wished.contains(name)) {
        if let Some(limit) = limits.get(name).filter(|limit| millis(limit) < millis(request)) {
            *request = limit.clone();
        }
    }
}

/// All that a pod has is guaranteed, and CPUs are given away, only if each of its containers asks for as much as it may
/// have.
pub(super) fn guarantee(container: &mut Container) {
    if let Some(resources) = &mut container.resources {
        let limits = resources.limits.clone().unwrap_or_default();
        resources.requests.get_or_insert_default().extend(limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_gets_its_own() {
        let configuration = serde_json::from_value(serde_json::json!({"supportContainerResources": [
            {"type": "container-disk", "resources": {"limits": {"memory": "64M"}}},
            {"type": "sidecar", "resources": {"requests": {"cpu": "7m"}, "limits": {"cpu": "5m", "memory": "1M"}}},
            {"type": "guest-console-log", "resources": {"requests": {"memory": "30M"}}},
        ]}));
        let config = ClusterConfig::from_kubevirt(&configuration.unwrap());
        let supplied = |name: &str| {
            let mut container: Container = serde_json::from_value(serde_json::json!({
                "name": name,
                "resources": {"requests": {"cpu": "1m", "memory": "2M"}, "limits": {"memory": "40M"}},
            }))
            .unwrap();
            supply(&mut container, &config);
            serde_json::to_value(container.resources).unwrap()
        };
        let disk = serde_json::json!({"requests": {"cpu": "1m", "memory": "2M"}, "limits": {"memory": "64M"}});
        assert_eq!(supplied("volumeroot"), disk);
        assert_eq!(supplied("container-disk-binary"), disk);
        assert_eq!(
            supplied("hook-sidecar-0"),
            serde_json::json!({"requests": {"cpu": "7m", "memory": "1M"}, "limits": {"cpu": "5m", "memory": "1M"}})
        );
        assert_eq!(supplied("guest-console-log")["requests"]["memory"], "30M");
        assert_eq!(
            supplied("virtiofs-share"),
            serde_json::json!({"requests": {"cpu": "1m", "memory": "2M"}, "limits": {"memory": "40M"}})
        );
    }
}
