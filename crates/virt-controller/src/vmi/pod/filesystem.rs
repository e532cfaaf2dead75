//! Directories that the guest shares by virtiofs: a container for each, which has its volume and serves it.
//!
//! They start before the launcher and end after it, and a failure of theirs is not the pod's: they are tried again.

use ferrovirt_core::ClusterConfig;
use ferrovirt_core::machine::Machine;
use ferrovirt_protocol::paths;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements, VolumeMount};

use super::storage::mount;
use super::{quantities, security};
use crate::Options;

const EXECUTABLE: &str = "/usr/bin/virtiofs-server";
/// Bytes that serving a directory takes: the process, and what the kernel keeps of files that a guest knows.
const MEMORY: u64 = 80_000_000;

/// A directory that a container serves.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shared {
    /// Name of the file system.
    pub(super) name: String,
    /// Where the container has it.
    pub(super) directory: String,
    /// The guest cannot write.
    pub(super) read_only: bool,
    /// What belongs to the launcher's user belongs to the guest's root. A kubelet's links to what is new belong to that
    /// user, and a guest follows nobody else's in a directory that everybody may write to.
    pub(super) owned_by_root: bool,
    /// What of the pod's volumes the container has for it.
    pub(super) mounts: Vec<VolumeMount>,
}

/// The containers that serve `shared`.
pub(super) fn containers<'a>(
    shared: &'a [Shared],
    machine: &'a Machine,
    config: &'a ClusterConfig,
    options: &'a Options,
) -> impl Iterator<Item = Container> + 'a {
    shared.iter().map(move |shared| {
        let mut command = vec![
            EXECUTABLE.to_owned(),
            "--socket".to_owned(),
            format!("{}/{}.sock", paths::VIRTIOFS_DIR, shared.name),
            "--directory".to_owned(),
            shared.directory.clone(),
        ];
        if shared.read_only {
            command.push("--read-only".to_owned());
        }
        if shared.owned_by_root {
            command.push("--owned-by-root".to_owned());
        }
        let mut mounts = vec![mount(paths::VIRTIOFS_VOLUME, paths::VIRTIOFS_DIR)];
        mounts.extend(shared.mounts.clone());
        Container {
            command: Some(command),
            image: Some(options.launcher_image.clone()),
            image_pull_policy: Some(config.image_pull_policy.clone()),
            name: format!("virtiofs-{}", shared.name),
            resources: Some(resources(machine)),
            restart_policy: Some("Always".to_owned()),
            security_context: Some(security(&[])),
            volume_mounts: Some(mounts),
            ..Container::default()
        }
    })
}

fn resources(machine: &Machine) -> ResourceRequirements {
    // The container is charged for pages of the guest's memory that it is the first to touch; where it is guaranteed
    // what it has, the guest has touched all of them before.
    let (cpu, memory) = if machine.guaranteed {
        ("100m", MEMORY)
    } else {
        ("1", machine.memory.guest.saturating_add(MEMORY))
    };
    let limits = quantities(&[("cpu", cpu), ("memory", &memory.to_string())]);
    let requests = quantities(&[("cpu", "10m"), ("memory", "8M")]);
    ResourceRequirements {
        claims: None,
        limits: Some(limits),
        requests: Some(requests),
    }
}
