//! What a user applies to get an operator. `deploy/` is made from this.

use ferrovirt_api::v1::KubeVirt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource;
use serde_json::{Value, json};

use super::resources::{METRICS_LABEL, OPERATOR, OPERATOR_ACCOUNT, PRIORITY_CLASS, USER, operator_rules};

/// Where images are, and where things go. The texts may be templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Registry and path of the images.
    pub registry: String,
    /// Their tag, and the version that is installed.
    pub tag: String,
    /// Namespace of everything.
    pub namespace: String,
    /// When images are pulled.
    pub pull_policy: String,
}

impl Source {
    fn image(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.registry, self.tag)
    }
}

/// The kinds that the operator itself answers: KubeVirt and CDI. It installs the others.
#[must_use]
pub fn definitions() -> [Value; 2] {
    let mut crds = ferrovirt_api::crds().into_iter();
    let kubevirt = crds.find(|crd| crd.spec.names.kind == KubeVirt::kind(&()));
    let labelled = |crd: Option<CustomResourceDefinition>, label: &str| {
        let mut crd = serde_json::to_value(crd).unwrap_or_default();
        crd["metadata"]["labels"] = json!({label: ""});
        crd
    };
    [
        labelled(kubevirt, "operator.kubevirt.io"),
        labelled(Some(ferrovirt_api::cdi_crd()), "operator.cdi.kubevirt.io"),
    ]
}

/// The namespace.
#[must_use]
pub fn namespace(source: &Source) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": source.namespace,
            "labels": {"kubevirt.io": "", "pod-security.kubernetes.io/enforce": "privileged"},
        },
    })
}

/// The operator: account, rights, process.
#[must_use]
pub fn operator(source: &Source) -> Vec<Value> {
    let (wide, narrow) = operator_rules();
    let rbac = "rbac.authorization.k8s.io/v1";
    let metadata = json!({"name": OPERATOR_ACCOUNT, "labels": {"kubevirt.io": ""}});
    let mut local = metadata.clone();
    local["namespace"] = source.namespace.clone().into();
    let subjects = json!([{"kind": "ServiceAccount", "name": OPERATOR_ACCOUNT, "namespace": source.namespace}]);
    let role = |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": OPERATOR_ACCOUNT});
    vec![
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": PRIORITY_CLASS},
            "value": 1_000_000_000, "globalDefault": false,
            "description": "This priority class should be used for core kubevirt components only.",
        }),
        json!({
            "apiVersion": rbac, "kind": "ClusterRole",
            "metadata": {
                "name": "kubevirt.io:operator",
                "labels": {"kubevirt.io": "", "rbac.authorization.k8s.io/aggregate-to-admin": "true"},
            },
            "rules": [{
                "apiGroups": ["kubevirt.io"], "resources": ["kubevirts"],
                "verbs": ["get", "delete", "create", "update", "patch", "list", "watch", "deletecollection"],
            }],
        }),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": local}),
        json!({"apiVersion": rbac, "kind": "ClusterRole", "metadata": metadata, "rules": wide}),
        json!({
            "apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": metadata,
            "roleRef": role("ClusterRole"), "subjects": subjects,
        }),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": local, "rules": narrow}),
        json!({
            "apiVersion": rbac, "kind": "RoleBinding", "metadata": local,
            "roleRef": role("Role"), "subjects": subjects,
        }),
        deployment(source),
    ]
}

fn deployment(source: &Source) -> Value {
    let labels = json!({"kubevirt.io": OPERATOR, "name": OPERATOR, METRICS_LABEL: "true"});
    let probe = |path: &str, period: i32, failures: i32| {
        json!({
            "httpGet": {"path": path, "port": "metrics", "scheme": "HTTPS"},
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5,
        })
    };
    let env = |name: &str, value: &str| json!({"name": name, "value": value});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let images = [
        ("VIRT_OPERATOR_IMAGE", "ferrovirt"),
        ("VIRT_API_IMAGE", "ferrovirt"),
        ("VIRT_CONTROLLER_IMAGE", "ferrovirt"),
        ("VIRT_HANDLER_IMAGE", "virt-handler"),
        ("VIRT_LAUNCHER_IMAGE", "virt-launcher"),
        ("GS_IMAGE", "libguestfs-tools"),
        ("SIDECAR_SHIM_IMAGE", "sidecar-shim"),
    ];
    let mut environment = vec![
        field("NAMESPACE", "metadata.namespace"),
        field("POD_NAME", "metadata.name"),
        env("KUBEVIRT_VERSION", &source.tag),
    ];
    environment.extend(images.map(|(name, image)| env(name, &source.image(image))));
    let container = json!({
        "name": OPERATOR,
        "image": source.image("ferrovirt"),
        "imagePullPolicy": source.pull_policy,
        "command": ["/usr/bin/ferrovirt"],
        "args": [OPERATOR, "--port", "8443"],
        "env": environment,
        "ports": [{"name": "metrics", "containerPort": 8443, "protocol": "TCP"}],
        "startupProbe": probe("/readyz", 1, 300),
        "readinessProbe": probe("/readyz", 10, 3),
        "livenessProbe": probe("/healthz", 30, 3),
        "resources": {"requests": {"cpu": "10m", "memory": "40Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": OPERATOR, "namespace": source.namespace, "labels": {"kubevirt.io": OPERATOR}},
        "spec": {
            "replicas": 2,
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": {"kubevirt.io": OPERATOR}},
            "strategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {"kubectl.kubernetes.io/default-container": OPERATOR},
                },
                "spec": {
                    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                        "weight": 1, "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"kubevirt.io": OPERATOR}},
                        },
                    }]}},
                    "containers": [container],
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "priorityClassName": PRIORITY_CLASS,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "serviceAccountName": OPERATOR_ACCOUNT,
                    "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
                },
            },
        },
    })
}

/// The object that has the operator install everything else.
#[must_use]
pub fn kubevirt(namespace: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt",
        "metadata": {"name": "kubevirt", "namespace": namespace},
        "spec": {
            "certificateRotateStrategy": {},
            "configuration": {"developerConfiguration": {"featureGates": []}},
            "customizeComponents": {},
            "imagePullPolicy": "IfNotPresent",
            "workloadUpdateStrategy": {},
        },
    })
}
