//! The processes: two Deployments and a DaemonSet.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::roles::{PRIORITY_CLASS, account};
use super::services::METRICS_LABEL;
use super::{CA_CONFIG_MAP, Draft, Stage, component_labels};
use crate::operator::Component;
use crate::operator::certificates::Leaf;
use crate::operator::inputs::Inputs;
use ferrovirt_api::v1::NodePlacement;
use ferrovirt_protocol::paths;

/// User of the processes that need no privilege.
pub const USER: i64 = 1001;
/// Health and metrics.
pub const PORT: u16 = 8443;
/// virt-handler's port for virt-api.
const HANDLER_PORT: u16 = 8186;
/// Container and volume of the daemon that reserves LUNs for guests.
const RESERVATIONS: &str = "pr-helper";
const CA_DIRECTORY: &str = "/etc/kubevirt-ca";
const EXECUTABLE: &str = "/usr/bin/ferrovirt";

pub fn render(inputs: &Inputs) -> [Draft; 3] {
    let draft = |kind, component, body| Draft::new(kind, Stage::Workload(component), body);
    [
        draft("Deployment", Component::Api, deployment(inputs, Component::Api)),
        draft(
            "Deployment",
            Component::Controller,
            deployment(inputs, Component::Controller),
        ),
        draft("DaemonSet", Component::Handler, daemon_set(inputs)),
    ]
}

fn deployment(inputs: &Inputs, component: Component) -> Value {
    let name = component.name();
    let container = match component {
        Component::Api => api(inputs),
        Component::Controller | Component::Handler => controller(inputs),
    };
    let mut pod = pod(inputs, component, container, &inputs.infra);
    pod["spec"]["securityContext"] = json!({
        "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let apart = json!([{"weight": 1, "podAffinityTerm": {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"kubevirt.io": name}},
    }}]);
    let preferred = &mut pod["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    match preferred {
        Value::Array(users) => users.extend(apart.as_array().cloned().unwrap_or_default()),
        none => *none = apart,
    }
    json!({
        "metadata": {"name": name, "labels": component_labels(inputs, component)},
        "spec": {
            "replicas": inputs.infra_replicas(),
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": {"kubevirt.io": name}},
            // The new one is ready before the old one goes, also where there is only one.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": pod,
        },
    })
}

fn daemon_set(inputs: &Inputs) -> Value {
    let component = Component::Handler;
    let name = component.name();
    let mut pod = pod(inputs, component, handler(inputs), &inputs.workloads);
    let spec = &mut pod["spec"];
    // It finds launchers and their namespaces by their process IDs.
    spec["hostPID"] = true.into();
    spec["terminationGracePeriodSeconds"] = 15.into();
    // Guests stay where they are when a node is tainted, and so does who looks after them.
    if let Some(tolerations) = spec["tolerations"].as_array_mut() {
        tolerations.push(json!({"effect": "NoExecute", "operator": "Exists"}));
    }
    let volumes = spec["volumes"].as_array_mut();
    volumes.into_iter().for_each(|volumes| {
        volumes.extend(
            HOST_PATHS
                .iter()
                .map(|path| json!({"name": path.name, "hostPath": {"path": path.path, "type": path.kind}})),
        );
    });
    if inputs.persistent_reservation {
        reserve(inputs, spec);
    }
    // The launcher's image is on the node before the first VM asks for it.
    spec["initContainers"] = json!([{
        "name": "virt-launcher",
        "image": inputs.launcher_image,
        "imagePullPolicy": inputs.image_pull_policy,
        "command": ["/usr/bin/virt-launcher", "--version"],
        "resources": {"requests": {"cpu": "1m", "memory": "10Mi"}},
        "securityContext": {
            "runAsUser": 107, "runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        },
    }]);
    json!({
        "metadata": {"name": name, "labels": component_labels(inputs, component)},
        "spec": {
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": {"kubevirt.io": name}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
            "template": pod,
        },
    })
}

/// Adds the daemon that reserves LUNs for guests, and lets virt-handler offer its socket to them.
fn reserve(inputs: &Inputs, spec: &mut Value) {
    let volume = json!({
        "name": RESERVATIONS, "hostPath": {"path": paths::RESERVATION_DIR, "type": "DirectoryOrCreate"},
    });
    let mount = json!({"name": RESERVATIONS, "mountPath": paths::RESERVATION_DIR});
    let daemon = json!({
        "name": RESERVATIONS,
        "image": inputs.handler_image,
        "imagePullPolicy": inputs.image_pull_policy,
        "command": ["/usr/bin/qemu-pr-helper"],
        "args": ["-k", format!("{}/{}", paths::RESERVATION_DIR, paths::RESERVATION_SOCKET)],
        "volumeMounts": [mount],
        "resources": {"requests": {"cpu": "1m", "memory": "10Mi"}},
        // QEMU opens the device and hands it over. All but SYS_RAWIO is what the daemon needs to give up the rest.
        "securityContext": {
            "runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["SYS_RAWIO", "SETPCAP", "SETGID", "SETUID"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    for (place, new) in [
        ("/volumes", volume),
        ("/containers/0/volumeMounts", mount),
        ("/containers", daemon),
    ] {
        if let Some(Value::Array(list)) = spec.pointer_mut(place) {
            list.push(new);
        }
    }
}

fn pod(inputs: &Inputs, component: Component, container: Container, placement: &NodePlacement) -> Value {
    let mut labels = component_labels(inputs, component);
    labels.insert(METRICS_LABEL.to_owned(), "true".into());
    labels.insert("name".to_owned(), component.name().into());
    let mut volumes = vec![json!({"name": CA_CONFIG_MAP, "configMap": {"name": CA_CONFIG_MAP}})];
    for (leaf, _) in &container.certificates {
        volumes.push(json!({"name": leaf.secret, "secret": {"secretName": leaf.secret}}));
    }
    let mut spec = json!({
        "containers": [container.render(inputs, component)],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "priorityClassName": PRIORITY_CLASS,
        "serviceAccountName": account(component),
        "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
        "volumes": volumes,
    });
    place(&mut spec, placement);
    if !inputs.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] = json!(inputs.image_pull_secrets);
    }
    json!({
        "metadata": {"labels": labels, "annotations": {"kubectl.kubernetes.io/default-container": component.name()}},
        "spec": spec,
    })
}

/// Adds what a user says about nodes.
fn place(spec: &mut Value, placement: &NodePlacement) {
    for (key, value) in &placement.node_selector {
        spec["nodeSelector"][key] = value.clone().into();
    }
    if let Some(tolerations) = spec["tolerations"].as_array_mut() {
        tolerations.extend(placement.tolerations.iter().map(|t| json!(t)));
    }
    if let Some(affinity) = &placement.affinity {
        spec["affinity"] = json!(affinity);
    }
}

/// What differs between the processes' containers.
struct Container {
    image: String,
    arguments: Vec<String>,
    /// Where certificates are mounted.
    certificates: Vec<(&'static Leaf, &'static str)>,
    environment: Vec<Value>,
    ports: Vec<Value>,
    mounts: Vec<Value>,
    memory: &'static str,
    security: Value,
}

impl Container {
    fn render(self, inputs: &Inputs, component: Component) -> Value {
        let mut mounts = vec![json!({"name": CA_CONFIG_MAP, "mountPath": CA_DIRECTORY, "readOnly": true})];
        for (leaf, path) in &self.certificates {
            mounts.push(json!({"name": leaf.secret, "mountPath": path, "readOnly": true}));
        }
        mounts.extend(self.mounts);
        let probe = |path: &str, period: i32, failures: i32| {
            json!({
                "httpGet": {"path": path, "port": "metrics", "scheme": "HTTPS"},
                "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5,
            })
        };
        let mut arguments = self.arguments;
        if let Some(level) = inputs.log_verbosity.get(&component) {
            arguments.extend(["-v".to_owned(), level.to_string()]);
        }
        set_flags(&mut arguments, custom_flags(inputs, component));
        let mut environment = vec![
            field("NAMESPACE", "metadata.namespace"),
            field("POD_NAME", "metadata.name"),
        ];
        environment.extend(self.environment);
        json!({
            "name": component.name(),
            "image": self.image,
            "imagePullPolicy": inputs.image_pull_policy,
            "command": [EXECUTABLE],
            "args": arguments,
            "env": environment,
            "ports": self.ports,
            "volumeMounts": mounts,
            // Quick while it starts, rare when it runs.
            "startupProbe": probe("/readyz", 1, 300),
            "readinessProbe": probe("/readyz", 10, 3),
            "livenessProbe": probe("/healthz", 30, 3),
            "resources": {"requests": {"cpu": "10m", "memory": self.memory}},
            "securityContext": self.security,
            "terminationMessagePolicy": "FallbackToLogsOnError",
        })
    }
}

fn custom_flags(inputs: &Inputs, component: Component) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let Some(flags) = &inputs.customize.flags else {
        return &NONE;
    };
    match component {
        Component::Api => &flags.api,
        Component::Controller => &flags.controller,
        Component::Handler => &flags.handler,
    }
}

/// Adds flags; one that is there already is replaced together with its value.
fn set_flags(arguments: &mut Vec<String>, flags: &BTreeMap<String, String>) {
    for (name, value) in flags {
        let flag = match name.as_str() {
            name if name.starts_with('-') => name.to_owned(),
            name if name.len() == 1 => format!("-{name}"),
            name => format!("--{name}"),
        };
        if let Some(at) = arguments.iter().position(|a| *a == flag) {
            let has_value = arguments.get(at + 1).is_some_and(|next| !next.starts_with('-'));
            arguments.drain(at..at + 1 + usize::from(has_value));
        }
        arguments.push(flag);
        if !value.is_empty() {
            arguments.push(value.clone());
        }
    }
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn port(name: &str, number: u16) -> Value {
    json!({"name": name, "containerPort": number, "protocol": "TCP"})
}

fn arguments(subcommand: &str, flags: &[(&str, &str)]) -> Vec<String> {
    let flags = flags.iter().flat_map(|(flag, value)| [*flag, *value]);
    [subcommand].into_iter().chain(flags).map(str::to_owned).collect()
}

fn unprivileged() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
    })
}

const API_CERTIFICATES: &str = "/etc/virt-api/certificates";
const API_CLIENT_CERTIFICATES: &str = "/etc/virt-api/clientcertificates";
const CONTROLLER_CERTIFICATES: &str = "/etc/virt-controller/certificates";
const HANDLER_SERVER_CERTIFICATES: &str = "/etc/virt-handler/servercertificates";
const HANDLER_CLIENT_CERTIFICATES: &str = "/etc/virt-handler/clientcertificates";
const CA_FILE: &str = "/etc/kubevirt-ca/ca-bundle";

fn api(inputs: &Inputs) -> Container {
    Container {
        image: inputs.api_image.clone(),
        arguments: arguments(
            "virt-api",
            &[
                ("--port", "8443"),
                ("--cert-dir", API_CERTIFICATES),
                ("--client-cert-dir", API_CLIENT_CERTIFICATES),
                ("--ca-bundle", CA_FILE),
            ],
        ),
        certificates: vec![
            (&Leaf::API, API_CERTIFICATES),
            (&Leaf::API_CLIENT, API_CLIENT_CERTIFICATES),
        ],
        environment: vec![
            json!({"name": "GS_IMAGE", "value": inputs.guestfs_image}),
            json!({"name": "VIRT_LAUNCHER_IMAGE", "value": inputs.launcher_image}),
            json!({"name": "KUBEVIRT_VERSION", "value": inputs.version}),
        ],
        ports: vec![port("metrics", PORT)],
        mounts: Vec::new(),
        memory: "40Mi",
        security: unprivileged(),
    }
}

fn controller(inputs: &Inputs) -> Container {
    Container {
        image: inputs.controller_image.clone(),
        arguments: arguments(
            "virt-controller",
            &[("--port", "8443"), ("--cert-dir", CONTROLLER_CERTIFICATES)],
        ),
        certificates: vec![(&Leaf::CONTROLLER, CONTROLLER_CERTIFICATES)],
        environment: vec![
            json!({"name": "SIDECAR_SHIM_IMAGE", "value": inputs.sidecar_shim_image}),
            json!({"name": "VIRT_LAUNCHER_IMAGE", "value": inputs.launcher_image}),
            json!({"name": "KUBEVIRT_VERSION", "value": inputs.version}),
        ],
        ports: vec![port("metrics", PORT)],
        mounts: Vec::new(),
        memory: "40Mi",
        security: unprivileged(),
    }
}

struct HostPath {
    name: &'static str,
    path: &'static str,
    kind: &'static str,
}

const HOST_PATHS: &[HostPath] = &[
    // Pods' volumes with launchers' sockets, and the sockets of device plugins.
    HostPath {
        name: "kubelet",
        path: "/var/lib/kubelet",
        kind: "Directory",
    },
    // What a node has found out about itself, for its next start.
    HostPath {
        name: "kubevirt",
        path: "/var/lib/kubevirt",
        kind: "DirectoryOrCreate",
    },
];

fn handler(inputs: &Inputs) -> Container {
    let mounts = HOST_PATHS.iter().map(|path| {
        // Volumes that the kubelet mounts later are seen; nothing that is mounted here leaves the pod.
        json!({"name": path.name, "mountPath": path.path, "mountPropagation": "HostToContainer"})
    });
    Container {
        image: inputs.handler_image.clone(),
        arguments: vec!["virt-handler".to_owned()],
        certificates: vec![
            (&Leaf::HANDLER_SERVER, HANDLER_SERVER_CERTIFICATES),
            (&Leaf::HANDLER_CLIENT, HANDLER_CLIENT_CERTIFICATES),
        ],
        environment: vec![
            field("NODE_NAME", "spec.nodeName"),
            field("POD_IP", "status.podIP"),
            json!({"name": "VIRT_LAUNCHER_IMAGE", "value": inputs.launcher_image}),
        ],
        ports: vec![port("metrics", PORT), port("console", HANDLER_PORT)],
        mounts: mounts.collect(),
        memory: "40Mi",
        security: json!({"privileged": true, "runAsUser": 0}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_replace_those_of_the_same_name() {
        let mut arguments = arguments("virt-api", &[("--port", "8443"), ("--cert-dir", "/a")]);
        let flags = [("port", "9"), ("v", "5"), ("--ca-bundle", "/b"), ("pprof", "")];
        let flags = flags.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        set_flags(&mut arguments, &flags);
        assert_eq!(
            arguments.join(" "),
            "virt-api --cert-dir /a --ca-bundle /b --port 9 --pprof -v 5"
        );
    }
}
