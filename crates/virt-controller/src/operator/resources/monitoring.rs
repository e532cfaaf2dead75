//! What Prometheus' operator is told: where `/metrics` are, what is recorded, and when to alert.

use serde_json::{Value, json};

use super::Draft;
use super::services::METRICS_LABEL;
use crate::operator::inputs::{Inputs, Monitoring};

const NAME: &str = "prometheus-kubevirt-rules";

/// Name and expression; `NS` stands for our namespace.
const RECORDS: &[(&str, &str)] = &[
    (
        "kubevirt_virt_api_up",
        "sum(up{namespace='NS', pod=~'virt-api-.*'}) or vector(0)",
    ),
    (
        "kubevirt_virt_controller_up",
        "sum(up{namespace='NS', pod=~'virt-controller-.*'}) or vector(0)",
    ),
    (
        "kubevirt_virt_handler_up",
        "sum(up{namespace='NS', pod=~'virt-handler-.*'}) or vector(0)",
    ),
    (
        "kubevirt_virt_operator_up",
        "sum(up{namespace='NS', pod=~'virt-operator-.*'}) or vector(0)",
    ),
    (
        "kubevirt_virt_controller_ready",
        "sum(kubevirt_virt_controller_ready_status{namespace='NS'}) or vector(0)",
    ),
    (
        "kubevirt_virt_operator_ready",
        "sum(kubevirt_virt_operator_ready_status{namespace='NS'}) or vector(0)",
    ),
    (
        "kubevirt_virt_operator_leading",
        "sum(kubevirt_virt_operator_leading_status{namespace='NS'}) or vector(0)",
    ),
    (
        "cluster:kubevirt_virt_controller_pods_running:count",
        "count(kube_pod_status_phase{pod=~'virt-controller-.*', namespace='NS', phase='Running'} == 1)",
    ),
    (
        "kubevirt_allocatable_nodes",
        "count(kube_node_labels{label_kubevirt_io_schedulable='true'}) or vector(0)",
    ),
];

struct Alert {
    name: &'static str,
    expression: &'static str,
    pending: &'static str,
    summary: &'static str,
    severity: &'static str,
    impact: &'static str,
}

const fn alert(
    name: &'static str,
    expression: &'static str,
    pending: &'static str,
    (severity, impact): (&'static str, &'static str),
    summary: &'static str,
) -> Alert {
    Alert {
        name,
        expression,
        pending,
        summary,
        severity,
        impact,
    }
}

const CRITICAL: (&str, &str) = ("critical", "critical");
const WARNING: (&str, &str) = ("warning", "warning");

const ALERTS: &[Alert] = &[
    alert(
        "VirtAPIDown",
        "kubevirt_virt_api_up == 0",
        "10m",
        CRITICAL,
        "No virt-api answers: VMs cannot be created, changed, started or stopped.",
    ),
    alert(
        "VirtControllerDown",
        "kubevirt_virt_controller_up == 0",
        "10m",
        CRITICAL,
        "No virt-controller runs: what VMs should do is not done.",
    ),
    alert(
        "VirtHandlerDown",
        "kubevirt_virt_handler_up == 0",
        "10m",
        CRITICAL,
        "No virt-handler runs: nothing is known of guests, and none can be started or stopped.",
    ),
    alert(
        "VirtOperatorDown",
        "kubevirt_virt_operator_up == 0",
        "10m",
        CRITICAL,
        "No virt-operator runs: certificates are not renewed.",
    ),
    alert(
        "NoReadyVirtController",
        "kubevirt_virt_controller_ready == 0",
        "10m",
        CRITICAL,
        "No virt-controller is ready.",
    ),
    alert(
        "NoReadyVirtOperator",
        "kubevirt_virt_operator_ready == 0",
        "10m",
        CRITICAL,
        "No virt-operator is ready.",
    ),
    alert(
        "NoLeadingVirtOperator",
        "kubevirt_virt_operator_leading == 0",
        "10m",
        CRITICAL,
        "No virt-operator leads: certificates are not renewed.",
    ),
    alert(
        "LowReadyVirtControllersCount",
        "kubevirt_virt_controller_ready < cluster:kubevirt_virt_controller_pods_running:count",
        "10m",
        WARNING,
        "Some virt-controllers run but are not ready.",
    ),
    alert(
        "KubeVirtNoAvailableNodesToRunVMs",
        "kubevirt_allocatable_nodes == 0",
        "5m",
        WARNING,
        "No node may run VMs.",
    ),
];

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
            json!({
                "metadata": metadata,
                "spec": {"groups": [
                    {"name": "recordingRules.rules", "rules": records(inputs)},
                    {"name": "alerts.rules", "rules": alerts()},
                ]},
            }),
        ),
    ]
}

fn records(inputs: &Inputs) -> Value {
    let rule = |(name, expression): &(&str, &str)| json!({"record": name, "expr": expression.replace("NS", &inputs.namespace)});
    RECORDS.iter().map(rule).collect()
}

fn alerts() -> Value {
    let rule = |alert: &Alert| {
        json!({
            "alert": alert.name, "expr": alert.expression, "for": alert.pending,
            "annotations": {"summary": alert.summary},
            "labels": {
                "severity": alert.severity, "operator_health_impact": alert.impact,
                "kubernetes_operator_part_of": "kubevirt", "kubernetes_operator_component": "kubevirt",
            },
        })
    };
    ALERTS.iter().map(rule).collect()
}
