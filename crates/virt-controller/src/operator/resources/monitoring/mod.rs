//! What Prometheus' operator is told: where `/metrics` are, what is recorded, and when to alert.
//!
//! Names are KubeVirt's. There is no rule that nothing feeds: tests compare the metrics in all expressions with those that our
//! processes export, those that rules record, and the few of kube-state-metrics and the kubelet that are named there.

mod alerts;
pub mod dashboard;
mod records;

use serde_json::{Value, json};

use super::Draft;
use super::services::METRICS_LABEL;
use crate::operator::inputs::{Inputs, Monitoring};

const NAME: &str = "prometheus-kubevirt-rules";
/// Stands for our namespace in expressions.
const NAMESPACE: &str = "$NS";

pub fn render(inputs: &Inputs, monitoring: &Monitoring) -> [Draft; 2] {
    let metadata = json!({
        "name": NAME, "namespace": monitoring.namespace,
        "labels": {"openshift.io/cluster-monitoring": "", METRICS_LABEL: "true", "k8s-app": "kubevirt"},
    });
    [
        Draft::base(
            "ServiceMonitor",
            json!({
                "metadata": metadata,
                "spec": {
                    "selector": {"matchLabels": {METRICS_LABEL: "true"}},
                    "namespaceSelector": {"matchNames": [inputs.namespace]},
                    "endpoints": [{
                        "port": "metrics", "scheme": "https", "honorLabels": true,
                        "tlsConfig": {"insecureSkipVerify": true},
                    }],
                },
            }),
        ),
        Draft::base(
            "PrometheusRule",
            json!({"metadata": metadata, "spec": rules(&inputs.namespace, inputs.infra_replicas())}),
        ),
    ]
}

/// All rules, as Prometheus reads them from a file, of an installation in this namespace with so many replicas of virt-api and
/// virt-controller.
#[must_use]
pub fn rules(namespace: &str, replicas: i32) -> Value {
    let in_namespace = |expression: &str| expression.replace(NAMESPACE, namespace);
    let record = |(name, expression): (String, String)| json!({"record": name, "expr": in_namespace(&expression)});
    let alert = |alert: alerts::Alert| {
        let mut annotations = json!({"summary": alert.summary});
        if let Some(description) = alert.description {
            annotations["description"] = description.into();
        }
        json!({
            "alert": alert.name, "expr": in_namespace(&alert.expression), "for": alert.pending,
            "annotations": annotations,
            "labels": {
                "severity": alert.level.severity, "operator_health_impact": alert.level.impact,
                "kubernetes_operator_part_of": "kubevirt", "kubernetes_operator_component": "kubevirt",
            },
        })
    };
    let records: Value = records::all().into_iter().map(record).collect();
    let alerts: Value = alerts::all(replicas).into_iter().map(alert).collect();
    json!({"groups": [
        {"name": "recordingRules.rules", "rules": records},
        {"name": "alerts.rules", "rules": alerts},
    ]})
}

#[cfg(test)]
mod tests;
