//! A node: the processes of a machine (containerd, kubelet, kube-proxy) in namespaces that make it one.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::cgroup;
use super::control::{flag, kubernetes};
use super::fetch::Programs;
use super::layout::{CONTROL, DNS, Layout, Node, PODS, REGISTRY, write};
use super::net::node_hosts;
use super::process::{Component, Place, Process, ensure, tail};
use super::run::until;

const INIT: &str = include_str!("../../cluster/node-init.sh");
/// What runs on a node beside its first process and containerd.
pub const AGENTS: [&str; 3] = ["kubelet", "kube-proxy", "network-policy"];
const SOCKET: &str = "run/containerd/containerd.sock";

/// The name of a node's first process.
pub fn init_name(node: Node) -> String {
    node.component("init")
}

/// Starts a node's first process and containerd, if they do not run, and waits for them.
///
/// # Errors
/// One of them ends, or is not ready in time: then with the end of its log.
pub fn boot(layout: &Layout, programs: &Programs, node: Node) -> Result<()> {
    configure(layout, node)?;
    let directory = layout.node(node);
    let name = init_name(node);
    let ready = directory.join("ready");
    if Process::of(layout, &name).is_none() {
        let _ = fs::remove_file(&ready);
        cgroup::clear(node)?;
        let mut command = Command::new("sh");
        command.args(["-c", INIT, "node-init", &node.name()]).args([
            &directory,
            &layout.dir,
            &layout.cache,
            &programs.pause,
        ]);
        ensure(
            layout,
            Component {
                name: name.clone(),
                place: Place::NewNode(node),
                command,
            },
        )?;
    }
    wait(layout, &name, Duration::from_secs(15), || {
        Ok((!ready.exists()).then(|| format!("{} has not set up its file systems", node.name())))
    })?;
    let containerd = node.component("containerd");
    let mut command = Command::new(programs.containerd.join("containerd"));
    command
        .arg("--config")
        .arg(directory.join("containerd.toml"))
        .env("PATH", path(programs));
    ensure(
        layout,
        Component {
            name: containerd.clone(),
            place: Place::Node(node),
            command,
        },
    )?;
    wait(layout, &containerd, Duration::from_secs(30), || {
        let socket = Process::of(layout, &name)
            .map(|init| PathBuf::from(format!("/proc/{}/root", init.pid)).join(SOCKET))
            .unwrap_or_default();
        Ok(std::os::unix::net::UnixStream::connect(&socket)
            .err()
            .map(|error| format!("containerd of {} does not listen: {error}", node.name())))
    })
}

/// One of a node's [`AGENTS`].
pub fn agent(layout: &Layout, programs: &Programs, node: Node, what: &str) -> Component {
    let mut command = if what == "network-policy" {
        let mut command = Command::new(&programs.network_policy);
        command.arg(flag("kubeconfig", &layout.kubeconfig(what)));
        command.arg(format!("--node={}", node.name()));
        command
    } else {
        kubernetes_agent(layout, programs, node, what)
    };
    command.env("PATH", path(programs));
    Component {
        name: node.component(what),
        place: Place::Node(node),
        command,
    }
}

fn kubernetes_agent(layout: &Layout, programs: &Programs, node: Node, what: &str) -> Command {
    let directory = layout.node(node);
    let mut command = kubernetes(
        programs,
        what,
        [flag("config", &directory.join(format!("{what}.json")))],
    );
    command.arg(format!("--hostname-override={}", node.name()));
    if what == "kubelet" {
        command
            .arg(flag("kubeconfig", &layout.kubeconfig(&node.component("kubelet"))))
            .arg(format!("--node-ip={}", node.address()));
    }
    command
}

/// Waits for a component, whose end ends the waiting.
pub fn wait(
    layout: &Layout,
    component: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<String>>,
) -> Result<()> {
    let log = layout.log(component);
    let result = until(limit, || {
        if Process::of(layout, component).is_none() {
            bail!("{component} has ended");
        }
        ready()
    });
    result.map_err(|error| error.context(format!("{component} is not ready; the end of {}", tail(&log))))
}

fn path(programs: &Programs) -> String {
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        programs.containerd.display()
    )
}

fn configure(layout: &Layout, node: Node) -> Result<()> {
    let directory = layout.node(node);
    write(&directory.join("hosts"), &node_hosts(node))?;
    write(&directory.join("resolv.conf"), &format!("nameserver {CONTROL}\n"))?;
    write(&directory.join("cni/10-pods.conflist"), &cni(node).to_string())?;
    write(&directory.join("containerd.toml"), &containerd(layout, node))?;
    write(&directory.join("kubelet.json"), &kubelet(layout, node).to_string())?;
    write(&directory.join("kube-proxy.json"), &proxy(layout, node).to_string())?;
    // The name in images' references, the address for those who cannot resolve it, and what stands for every other
    // registry: nothing beyond the machine is reached, and `demo/tiny:1` means here what it means in one machine's home.
    for host in [REGISTRY.to_owned(), format!("{CONTROL}:5000"), "_default".to_owned()] {
        write(
            &directory.join("certs.d").join(host).join("hosts.toml"),
            &format!(
                "server = \"http://{CONTROL}:5000\"\n\n[host.\"http://{CONTROL}:5000\"]\n\
                 capabilities = [\"pull\", \"resolve\"]\n"
            ),
        )?;
    }
    Ok(())
}

fn cni(node: Node) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    // Ends with the node, as the pods do.
                    "dataDir": "/run/cni",
                    "ranges": [[{"subnet": node.pods()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
}

fn containerd(layout: &Layout, node: Node) -> String {
    let directory = layout.node(node);
    let directory = directory.display();
    format!(
        r#"version = 3
disabled_plugins = [
  "io.containerd.internal.v1.tracing",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]

[plugins."io.containerd.cri.v1.images"]
discard_unpacked_layers = true

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{REGISTRY}/pause:1"

[plugins."io.containerd.cri.v1.images".registry]
config_path = "{directory}/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
# For machines without CAP_SYS_RESOURCE, where no process may lower its score.
restrict_oom_score_adj = true
# Block volumes belong to the user that the pod asks for.
device_ownership_from_security_context = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
conf_dir = "{directory}/cni"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

fn kubelet(layout: &Layout, node: Node) -> Value {
    let server = node.component("kubelet-server");
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address().to_string(),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout.pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": layout.pki(&format!("{server}.crt")),
        "tlsPrivateKeyFile": layout.pki(&format!("{server}.key")),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup::of_node(node),
        "clusterDNS": [DNS.to_string()],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix:///{SOCKET}"),
        // The nodes share the host's disk, which is not theirs to tidy.
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "failCgroupV1": false,
        "failSwapOn": false,
        "healthzBindAddress": node.address().to_string(),
        "oomScoreAdj": 0,
        "resolvConf": "/etc/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
    })
}

fn proxy(layout: &Layout, node: Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": layout.kubeconfig("proxy")},
        "clusterCIDR": PODS,
        "conntrack": {"maxPerCore": 0, "min": 0},
        "healthzBindAddress": format!("{}:10256", node.address()),
        "metricsBindAddress": "127.0.0.1:10249",
        "mode": "nftables",
        "oomScoreAdj": 0,
    })
}
