//! The Node object of this machine, and its name: chosen once per data directory and kept in `node.json`, because pods
//! and volumes are bound to it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use ferrovirt_core::names::VHOST_VSOCK_RESOURCE;
use ferrovirt_core::overhead::huge_page_resource;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::paths::DataDir;

/// Memory that is left to the machine itself.
const RESERVED: u64 = 512 << 20;
/// Pods that fit on one machine, if their memory does.
const PODS: u32 = 500;

/// Why the node has no name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The file.
    #[error(
        "cannot use {path}, which keeps the name of the node; write {{\"name\": \"NAME\"}} into it, with the name that \
         the node had: the host name, unless --node-name gave another one"
    )]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node has a name already.
    #[error(
        "--node-name {wanted}: the node of this data directory is {kept}, which {path} keeps, and its pods and volumes \
         are bound to that name; leave --node-name out, or choose another place with --data-dir"
    )]
    Another {
        /// What was asked for.
        wanted: String,
        /// What it is called.
        kept: String,
        /// Where that is kept.
        path: PathBuf,
    },
}

/// What `node.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    name: String,
}

/// The name of a data directory's node: the kept one; if there is none yet, the wanted one, else the host name.
///
/// # Errors
/// See [`NameError`].
pub fn name(data: &DataDir, wanted: Option<&str>) -> Result<String, NameError> {
    match (kept_name(data)?, wanted) {
        (Some(kept), Some(wanted)) if kept != wanted => Err(NameError::Another {
            wanted: wanted.to_owned(),
            kept,
            path: data.node(),
        }),
        (Some(kept), _) => Ok(kept),
        (None, wanted) => Ok(wanted.map_or_else(host_name, str::to_owned)),
    }
}

/// Keeps the name of the node for the next starts. To be called when the API server has taken it: a name that it
/// refuses must not stay.
///
/// # Errors
/// The file cannot be used.
pub fn keep_name(data: &DataDir, name: &str) -> Result<(), NameError> {
    if kept_name(data)?.as_deref() == Some(name) {
        return Ok(());
    }
    write_name(data, name).map_err(|source| NameError::File {
        path: data.node(),
        source,
    })
}

fn kept_name(data: &DataDir) -> Result<Option<String>, NameError> {
    let path = data.node();
    read_name(&path).map_err(|source| NameError::File { path, source })
}

fn read_name(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice::<Kept>(&text)?.name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whatever happens, no half of it is there afterwards.
fn write_name(data: &DataDir, name: &str) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(data.path())?;
    serde_json::to_writer(&mut file, &Kept { name: name.to_owned() })?;
    file.as_file().sync_all()?;
    file.persist(data.node()).map_err(|error| error.error)?;
    Ok(())
}

/// What there is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Name of the node.
    pub name: String,
    /// Address that others reach it by.
    pub address: IpAddr,
    /// Processors.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system that holds the data directory.
    pub storage: u64,
    /// Bytes that are reserved as huge pages, by their resource's name, such as `hugepages-2Mi`.
    pub huge_pages: BTreeMap<String, u64>,
    /// Whether its kernel offers sockets between guests and their host.
    pub vsock: bool,
    machine_id: String,
    boot_id: String,
    kernel: String,
    os_image: String,
}

impl Facts {
    /// Looks at this machine.
    #[must_use]
    pub fn gather(name: &str, data: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let memory = read("/proc/meminfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0);
        let storage = nix::sys::statvfs::statvfs(data).map_or(0, |fs| fs.blocks() * fs.fragment_size());
        let os_release = read("/etc/os-release");
        let os_image = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Self {
            name: name.to_owned(),
            address: address(),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory: memory * 1024,
            storage,
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            vsock: Path::new("/dev/vhost-vsock").exists(),
            machine_id: read("/etc/machine-id"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: os_image.unwrap_or("Linux").trim_matches('"').to_owned(),
        }
    }

    fn labels(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("kubernetes.io/hostname", self.name.clone()),
            ("kubernetes.io/arch", arch().to_owned()),
            ("kubernetes.io/os", "linux".to_owned()),
            ("node-role.kubernetes.io/control-plane", String::new()),
            (ferrovirt_core::names::SCHEDULABLE_LABEL, "true".to_owned()),
        ])
    }

    fn status(&self, now: Timestamp) -> Value {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            })
        };
        // As the kubelet counts: what is reserved as huge pages is no memory for anything else.
        let reserved = RESERVED.min(self.memory / 4) + self.huge_pages.values().sum::<u64>();
        let amounts = |memory: u64| {
            let mut amounts = json!({
                "cpu": self.cpus.to_string(), "memory": format!("{}Ki", memory / 1024),
                "pods": PODS.to_string(), "ephemeral-storage": format!("{}Ki", self.storage / 1024),
            });
            for (name, bytes) in &self.huge_pages {
                amounts[name] = format!("{}Ki", bytes / 1024).into();
            }
            if self.vsock {
                amounts[VHOST_VSOCK_RESOURCE] = PODS.to_string().into();
            }
            amounts
        };
        json!({
            "capacity": amounts(self.memory),
            "allocatable": amounts(self.memory.saturating_sub(reserved)),
            "addresses": [
                { "type": "InternalIP", "address": self.address },
                { "type": "Hostname", "address": self.name },
            ],
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "the machine has memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "the machine has disk space available"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "the machine has process ids available"),
                condition("Ready", "True", "KubeletReady", "the pod runner is running"),
            ],
            "nodeInfo": {
                "machineID": self.machine_id, "systemUUID": self.machine_id, "bootID": self.boot_id,
                "kernelVersion": self.kernel, "osImage": self.os_image, "architecture": arch(), "operatingSystem": "linux",
                "containerRuntimeVersion": format!("ferrovirt://{}", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": format!("v1.36.0-ferrovirt-{}", env!("CARGO_PKG_VERSION")), "kubeProxyVersion": "",
            },
        })
    }

    /// Creates the Node object, or brings it up to date. What others wrote to it stays.
    ///
    /// # Errors
    /// The API server refused.
    pub async fn publish(&self, client: &Client) -> Result<(), kube::Error> {
        let nodes = Api::<Node>::all(client.clone());
        let labels = json!({ "metadata": { "labels": self.labels() } });
        if nodes.get_opt(&self.name).await?.is_none() {
            let mut node = labels;
            node["metadata"]["name"] = self.name.clone().into();
            let node: Node = serde_json::from_value(node).map_err(kube::Error::SerdeError)?;
            nodes.create(&PostParams::default(), &node).await?;
        } else {
            nodes
                .patch(&self.name, &PatchParams::default(), &Patch::Merge(labels))
                .await?;
        }
        let status = Patch::Merge(json!({ "status": self.status(Timestamp::now()) }));
        nodes.patch_status(&self.name, &PatchParams::default(), &status).await?;
        Ok(())
    }
}

/// Bytes of huge pages that the machine's administrator has reserved, by the names of Kubernetes' resources. `sys` is the
/// kernel's directory of them (its `Documentation/admin-guide/mm/hugetlbpage.rst`): `hugepages-<size>kB/nr_hugepages`.
fn huge_pages(sys: &Path) -> BTreeMap<String, u64> {
    let page = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let number = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        let number: u64 = number.trim().parse().ok()?;
        let page = kib.checked_mul(1024)?;
        Some((huge_page_resource(page), number.saturating_mul(page)))
    };
    let entries = fs::read_dir(sys).into_iter().flatten().flatten();
    entries.filter_map(page).collect()
}

/// This machine's architecture as Kubernetes calls it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The host name as a DNS label.
fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    label(&name)
}

fn label(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let clean: String = lower
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let clean: String = clean.trim_matches(['-', '.']).chars().take(63).collect();
    if clean.is_empty() { "ferrovirt".into() } else { clean }
}

/// The address that traffic to the outside has; nothing is sent to find it.
fn address() -> IpAddr {
    let outside = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // TEST-NET-1: connecting a datagram socket only chooses a route.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    outside().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_labels() {
        for (name, expected) in [
            ("Node_1", "node-1"),
            ("-a.b-", "a.b"),
            ("", "ferrovirt"),
            ("___", "ferrovirt"),
        ] {
            assert_eq!(label(name), expected);
        }
    }

    #[test]
    fn the_name_of_a_node_stays() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path());
        assert_eq!(name(&data, None).unwrap(), host_name());
        assert_eq!(name(&data, Some("a")).unwrap(), "a", "nothing was kept yet");
        keep_name(&data, "a").unwrap();
        keep_name(&data, "a").unwrap();
        for wanted in [None, Some("a")] {
            assert_eq!(name(&data, wanted).unwrap(), "a");
        }
        let refused = name(&data, Some("b")).unwrap_err().to_string();
        let file = data.node().display().to_string();
        for part in ["--node-name b", "is a,", &file, "leave --node-name out"] {
            assert!(refused.contains(part), "{part:?} is not in {refused}");
        }
        fs::write(data.node(), "").unwrap();
        let unreadable = name(&data, None).unwrap_err().to_string();
        assert!(
            unreadable.contains(&file) && unreadable.contains(r#"{"name": "NAME"}"#),
            "{unreadable}"
        );
    }

    #[test]
    fn huge_pages_are_resources() {
        let sys = tempfile::tempdir().unwrap();
        for (name, number) in [
            ("2048kB", "3\n"),
            ("1048576kB", "1\n"),
            ("64kB", "0\n"),
            ("other", "1\n"),
        ] {
            let directory = sys.path().join(format!("hugepages-{name}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("nr_hugepages"), number).unwrap();
        }
        let found = huge_pages(sys.path());
        let expected = [
            ("hugepages-1Gi", 1 << 30),
            ("hugepages-2Mi", 6 << 20),
            ("hugepages-64Ki", 0),
        ];
        assert_eq!(found, expected.map(|(name, bytes)| (name.to_owned(), bytes)).into());
        assert!(huge_pages(&sys.path().join("missing")).is_empty());

        let mut facts = Facts::gather("n", Path::new("/"));
        facts.memory = 8 << 30;
        facts.huge_pages = found;
        facts.vsock = true;
        let status = facts.status(Timestamp::UNIX_EPOCH);
        assert_eq!(status["allocatable"]["hugepages-2Mi"], "6144Ki");
        assert_eq!(status["allocatable"]["devices.kubevirt.io/vhost-vsock"], "500");
        let left = (8 << 20) - (RESERVED >> 10) - (1 << 20) - 6144;
        assert_eq!(status["allocatable"]["memory"], format!("{left}Ki"));
        assert_eq!(status["capacity"]["memory"], format!("{}Ki", 8 << 20));
    }

    #[test]
    fn the_machine_has_something_to_give() {
        let facts = Facts::gather("n", Path::new("/"));
        let status = facts.status(Timestamp::UNIX_EPOCH);
        assert!(facts.memory > 0 && facts.storage > 0 && facts.cpus > 0);
        assert_ne!(status["allocatable"]["memory"], status["capacity"]["memory"]);
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
    }
}
