//! Where everything of the cluster is: names, addresses, directories. One cluster per machine, so they are fixed.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The bridge on the host that joins the nodes.
pub const BRIDGE: &str = "fv-cluster0";
/// The host's own address on the bridge.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);
/// Where the control plane, CoreDNS and the registry listen.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 2);
/// The network namespace of the control plane.
pub const CONTROL_NAMESPACE: &str = "fv-cluster";
/// All pods.
pub const PODS: &str = "10.244.0.0/16";
/// All Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// `kubernetes.default`.
pub const KUBERNETES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// `kube-dns`.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The name of the registry in images' references, on the host, on the nodes and in the pods.
pub const REGISTRY: &str = "registry.local:5000";
/// The same without its port.
pub const REGISTRY_NAME: &str = "registry.local";
/// Most nodes that the address plan has room for.
pub const MAX_NODES: u8 = 9;
/// The directory, in each hierarchy, of all control groups of the cluster.
pub const CGROUP: &str = "ferrovirt-cluster";

/// The directories that the command was given.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The state of the running cluster; gone after `down`.
    pub dir: PathBuf,
    /// What is built or downloaded once.
    pub cache: PathBuf,
}

impl Layout {
    /// The administrator's kubeconfig.
    pub fn admin(&self) -> PathBuf {
        self.kubeconfig("admin")
    }

    /// The kubeconfig of a component.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join("kubeconfig").join(format!("{user}.conf"))
    }

    /// Certificates and keys.
    pub fn pki(&self, file: &str) -> PathBuf {
        self.dir.join("pki").join(file)
    }

    /// What a component prints.
    pub fn log(&self, component: &str) -> PathBuf {
        self.dir.join("log").join(format!("{component}.log"))
    }

    /// The process of a component.
    pub fn pid_file(&self, component: &str) -> PathBuf {
        self.dir.join("pid").join(component)
    }

    /// How many nodes the cluster of this directory has: 0 without a cluster.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        let path = self.dir.join("nodes");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let count = text
                    .trim()
                    .parse()
                    .with_context(|| format!("{} does not hold a number of nodes", path.display()))?;
                Ok(Node::first(count))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Keeps the number of nodes.
    pub fn set_nodes(&self, count: usize) -> Result<()> {
        write(&self.dir.join("nodes"), &count.to_string())
    }

    /// Whether its API server knows image volumes; kept for those who repair the cluster.
    pub fn has_image_volumes(&self) -> bool {
        !self.without_image_volumes().exists()
    }

    /// Its presence says so.
    pub fn without_image_volumes(&self) -> PathBuf {
        self.dir.join("without-image-volumes")
    }

    /// Its presence says that the cluster is for one use: whoever began it ends it.
    pub fn one_use(&self) -> PathBuf {
        self.dir.join("one-use")
    }

    /// The directory of a node.
    pub fn node(&self, node: Node) -> PathBuf {
        self.dir.join(node.name())
    }
}

/// One node, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(u8);

impl Node {
    /// The first `count` nodes.
    pub fn first(count: u8) -> Vec<Self> {
        (1..=count.min(MAX_NODES)).map(Self).collect()
    }

    /// Its name in Kubernetes, and its host name.
    pub fn name(self) -> String {
        format!("node{}", self.0)
    }

    /// Its name in Kubernetes is the suffix of all its components' names.
    pub fn component(self, what: &str) -> String {
        format!("{what}-{}", self.name())
    }

    /// The first one also has the label of the control plane.
    pub fn is_first(self) -> bool {
        self.0 == 1
    }

    /// Its address on the bridge.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 100, 0, 10 + self.0)
    }

    /// Its part of [`PODS`].
    pub fn pods(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    /// Its network namespace.
    pub fn namespace(self) -> String {
        format!("{CONTROL_NAMESPACE}-{}", self.name())
    }

    /// The host's end of its cable.
    pub fn cable(self) -> String {
        format!("fvc-{}", self.name())
    }
}

/// Writes a file and the directories above it. One that holds the text already is not touched: kube-proxy ends when its
/// configuration is written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
