//! What the pod runner tells `container-init`: one container, completely, as JSON on its standard input.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container to become.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Empty directory of the host on which the container's root is mounted, in a private mount namespace.
    pub mount_point: PathBuf,
    /// Directory with the skeleton (`bin/…` placeholders) that is laid over the host's `/usr`.
    pub skeleton: PathBuf,
    /// Executables of ours: file on the host, path in the container (a placeholder of the skeleton exists there).
    pub executables: Vec<(PathBuf, PathBuf)>,
    /// Files below `/etc` with their content.
    pub etc: BTreeMap<String, String>,
    /// Volumes and other binds.
    pub mounts: Vec<Mount>,
    /// Device nodes beyond the standard ones.
    pub devices: Vec<Device>,
    /// Network namespace to join.
    pub netns: PathBuf,
    /// `cgroup.procs` files to enter.
    pub cgroups: Vec<PathBuf>,
    /// UTS host name.
    pub hostname: String,
    /// Output of the container.
    pub log: PathBuf,
    /// Who it runs as.
    pub user: User,
    /// Command and arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: PathBuf,
}

/// Identity and privileges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities kept, in the kernel's spelling (`CAP_NET_BIND_SERVICE`); all others are dropped.
    pub capabilities: Vec<String>,
}

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// Absolute, in the container.
    pub target: PathBuf,
    /// Cannot be written through this mount.
    pub read_only: bool,
}

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Below `/dev`.
    pub name: String,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Group that owns it.
    pub gid: u32,
}

/// A command to run in a container that runs already: JSON, the argument of `container-exec`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Who it runs as.
    pub user: User,
    /// Command and arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Standard input is a terminal that becomes the controlling one.
    pub tty: bool,
}
