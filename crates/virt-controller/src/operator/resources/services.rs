//! Services, the authorities' ConfigMap, and disruption budgets.

use serde_json::{Map, Value, json};

use super::{CA_BUNDLE_KEY, CA_CONFIG_MAP, Draft};
use crate::operator::Component;
use crate::operator::inputs::Inputs;

/// virt-api's Service.
pub const API_SERVICE: &str = "virt-api";
/// The operator's Service for its webhooks.
pub const OPERATOR_SERVICE: &str = "kubevirt-operator-webhook";
/// The Service that all `/metrics` are behind.
pub const METRICS_SERVICE: &str = "kubevirt-prometheus-metrics";
/// Label of pods that serve `/metrics`.
pub const METRICS_LABEL: &str = "prometheus.kubevirt.io";

pub fn render(inputs: &Inputs) -> Vec<Draft> {
    let mut bundle = Map::new();
    bundle.insert(CA_BUNDLE_KEY.to_owned(), inputs.ca_bundle.clone().into());
    let mut all = vec![
        Draft::base("Service", service(API_SERVICE, "kubevirt.io", "virt-api", false)),
        Draft::base("Service", service(METRICS_SERVICE, METRICS_LABEL, "true", true)),
        Draft::base(
            "ConfigMap",
            json!({"metadata": {"name": CA_CONFIG_MAP, "labels": {"kubevirt.io": ""}}, "data": bundle}),
        ),
    ];
    if inputs.operator_webhooks {
        let service = service(OPERATOR_SERVICE, "kubevirt.io", "virt-operator", false);
        all.push(Draft::base("Service", service));
    }
    let replicas = inputs.infra_replicas();
    if replicas > 1 {
        for component in [Component::Api, Component::Controller] {
            let name = component.name();
            all.push(Draft::base(
                "PodDisruptionBudget",
                json!({
                    "metadata": {"name": format!("{name}-pdb"), "labels": {"kubevirt.io": name}},
                    "spec": {"minAvailable": replicas - 1, "selector": {"matchLabels": {"kubevirt.io": name}}},
                }),
            ));
        }
    }
    all
}

fn service(name: &str, key: &str, value: &str, headless: bool) -> Value {
    let port = if headless { "metrics" } else { "webhooks" };
    let mut labels = Map::from_iter([("kubevirt.io".to_owned(), Value::from(name))]);
    if headless {
        labels.insert("kubevirt.io".to_owned(), "".into());
        labels.insert(METRICS_LABEL.to_owned(), "true".into());
    }
    let mut body = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "selector": {key: value},
            "ports": [{"name": port, "port": 443, "protocol": "TCP", "targetPort": "metrics"}],
        },
    });
    if headless {
        body["spec"]["clusterIP"] = "None".into();
    }
    body
}
