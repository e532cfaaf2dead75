//! The control plane: processes in a network namespace of their own, with the ports that everybody knows.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::fetch::Programs;
use super::layout::{CONTROL, Layout, Node, PODS, REGISTRY_NAME, SERVICES, write};
use super::process::{Component, Place};

/// Their components, in the order in which they start.
pub const STORE: [&str; 3] = ["etcd", "kube-apiserver", "registry"];
/// What takes an API server.
pub const CONTROLLERS: [&str; 4] = ["kube-controller-manager", "kube-scheduler", "coredns", "volumes"];

/// A component of the control plane by its name in [`STORE`] or [`CONTROLLERS`].
///
/// # Errors
/// Its configuration cannot be written.
pub fn component(layout: &Layout, programs: &Programs, name: &str) -> Result<Component> {
    let command = match name {
        "etcd" => etcd(layout, programs),
        "kube-apiserver" => apiserver(layout, programs),
        "registry" => registry(layout)?,
        "kube-controller-manager" => controller_manager(layout, programs),
        "kube-scheduler" => {
            let kubeconfig = layout.kubeconfig("scheduler");
            kubernetes(
                programs,
                name,
                [
                    flag("kubeconfig", &kubeconfig),
                    flag("authentication-kubeconfig", &kubeconfig),
                    flag("authorization-kubeconfig", &kubeconfig),
                    "--leader-elect=false".into(),
                ],
            )
        }
        "volumes" => volumes(layout, programs),
        _ => coredns(layout, programs)?,
    };
    Ok(Component {
        name: name.to_owned(),
        place: Place::Control,
        command,
    })
}

/// A command of the executable that holds all of Kubernetes.
pub fn kubernetes(programs: &Programs, name: &str, flags: impl IntoIterator<Item = OsString>) -> Command {
    let mut command = Command::new(&programs.kubernetes);
    command.arg(name).args(flags);
    command
}

/// `--name=path`.
pub fn flag(name: &str, value: &Path) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value);
    flag
}

/// Without waiting for the disk: a cluster for tests does not outlive its machine.
fn etcd(layout: &Layout, programs: &Programs) -> Command {
    let mut command = Command::new(&programs.etcd);
    command
        .arg(flag("data-dir", &layout.dir.join("etcd")))
        .args("--name=control --log-level=warn --unsafe-no-fsync".split(' '))
        .args(["--listen-client-urls", "--advertise-client-urls"].map(|name| format!("{name}=http://127.0.0.1:2379")))
        .args(
            ["--listen-peer-urls", "--initial-advertise-peer-urls"].map(|name| format!("{name}=http://127.0.0.1:2380")),
        )
        .arg("--initial-cluster=control=http://127.0.0.1:2380");
    command
}

fn apiserver(layout: &Layout, programs: &Programs) -> Command {
    let files = [
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
        ("kubelet-client-key", "apiserver-kubelet-client.key"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("requestheader-client-ca-file", "front-proxy-ca.crt"),
        ("proxy-client-cert-file", "front-proxy-client.crt"),
        ("proxy-client-key-file", "front-proxy-client.key"),
    ];
    let mut command = kubernetes(
        programs,
        "kube-apiserver",
        files.map(|(name, file)| flag(name, &layout.pki(file))),
    );
    command
        .arg(format!("--advertise-address={CONTROL}"))
        .arg(format!("--service-cluster-ip-range={SERVICES}"))
        .args(
            "--secure-port=6443 --etcd-servers=http://127.0.0.1:2379 --allow-privileged=true \
             --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
             --service-account-issuer=https://kubernetes.default.svc.cluster.local \
             --kubelet-preferred-address-types=InternalIP,Hostname \
             --requestheader-allowed-names=front-proxy-client \
             --requestheader-extra-headers-prefix=X-Remote-Extra- \
             --requestheader-group-headers=X-Remote-Group \
             --requestheader-username-headers=X-Remote-User \
             --enable-aggregator-routing=true"
                .split_whitespace(),
        );
    if !layout.has_image_volumes() {
        // From 1.36 they can no longer be turned off; kubelets do what the API server lets through.
        command.args(["--emulated-version=kube=1.35", "--feature-gates=kube:ImageVolume=false"]);
    }
    command
}

fn controller_manager(layout: &Layout, programs: &Programs) -> Command {
    let kubeconfig = layout.kubeconfig("controller-manager");
    let mut command = kubernetes(
        programs,
        "kube-controller-manager",
        [
            flag("kubeconfig", &kubeconfig),
            flag("authentication-kubeconfig", &kubeconfig),
            flag("authorization-kubeconfig", &kubeconfig),
            flag("service-account-private-key-file", &layout.pki("sa.key")),
            flag("root-ca-file", &layout.pki("ca.crt")),
            flag("cluster-signing-cert-file", &layout.pki("ca.crt")),
            flag("cluster-signing-key-file", &layout.pki("ca.key")),
            flag("flex-volume-plugin-dir", &layout.dir.join("flexvolumes")),
        ],
    );
    // The nodes have their ranges from the beginning: nothing is to be allocated.
    command
        .args("--use-service-account-credentials=true --leader-elect=false --allocate-node-cidrs=false".split(' '))
        .arg(format!("--cluster-cidr={PODS}"))
        .arg(format!("--service-cluster-ip-range={SERVICES}"));
    command
}

fn coredns(layout: &Layout, programs: &Programs) -> Result<Command> {
    let path = layout.dir.join("Corefile");
    write(
        &path,
        &format!(
            ".:53 {{\n    bind {CONTROL}\n    errors\n    health {CONTROL}:8080\n    ready {CONTROL}:8181\n    \
             hosts {{\n        {CONTROL} {REGISTRY_NAME}\n        fallthrough\n    }}\n    \
             kubernetes cluster.local in-addr.arpa ip6.arpa {{\n        kubeconfig {}\n        pods insecure\n        \
             fallthrough in-addr.arpa ip6.arpa\n        ttl 5\n    }}\n    cache 5\n    loadbalance\n}}\n",
            layout.kubeconfig("coredns").display()
        ),
    )?;
    let mut command = Command::new(&programs.coredns);
    command.arg("-conf").arg(path);
    Ok(command)
}

fn volumes(layout: &Layout, programs: &Programs) -> Command {
    let mut command = Command::new(&programs.volumes);
    command
        .arg(flag("kubeconfig", &layout.kubeconfig("volumes")))
        .arg(flag("directory", &layout.dir.join("volumes")));
    command
}

fn registry(layout: &Layout) -> Result<Command> {
    let path = layout.dir.join("registry.yaml");
    let config: Value = json!({
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": true}},
        "storage": {
            "filesystem": {"rootdirectory": layout.dir.join("registry")},
            "delete": {"enabled": true},
        },
        "http": {"addr": format!("{CONTROL}:5000")},
    });
    write(&path, &config.to_string())?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(path);
    Ok(command)
}

/// The objects that kubelets find when they come: with the pods' range, which only an administrator may set.
pub fn node_object(node: Node) -> Value {
    let mut labels = json!({"kubernetes.io/hostname": node.name(), "kubernetes.io/os": "linux"});
    if node.is_first() {
        labels["node-role.kubernetes.io/control-plane"] = json!("");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name(), "labels": labels},
        "spec": {"podCIDR": node.pods(), "podCIDRs": [node.pods()]},
    })
}
