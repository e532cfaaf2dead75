//! Directories that the guest shares by virtiofs: a container for each, which has its volume and serves it.
//!
//! They start before the launcher and end after it, and a failure of theirs is not the pod's: they are tried again.

use std::collections::BTreeMap;

use ferrovirt_api::v1::ResourceRequirementsWithoutClaims;
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::machine::Machine;
use ferrovirt_protocol::paths;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::storage::mount;
use super::{quantities, security, wire};
use crate::Options;

const EXECUTABLE: &str = "/usr/bin/virtiofs-server";
/// The containers' type in `supportContainerResources`.
const TYPE: &str = "virtiofs";
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
            resources: Some(resources(machine, config)),
            restart_policy: Some("Always".to_owned()),
            security_context: Some(security(&[])),
            volume_mounts: Some(mounts),
            ..Container::default()
        }
    })
}

/// What the administrator says of it comes first.
fn resources(machine: &Machine, config: &ClusterConfig) -> ResourceRequirements {
    // The container is charged for pages of the guest's memory that it is the first to touch; with CPUs of its own, the
    // guest has touched all of them before.
    let (cpu, memory) = if machine.cpu.pinning.is_some() {
        ("100m", MEMORY)
    } else {
        ("1", machine.memory.guest.saturating_add(MEMORY))
    };
    let mut limits = quantities(&[("cpu", cpu), ("memory", &memory.to_string())]);
    let mut requests = quantities(&[("cpu", "10m"), ("memory", "8M")]);
    if let Some(own) = config.support_containers.get(TYPE) {
        let ResourceRequirementsWithoutClaims {
            limits: own_limits,
            requests: own_requests,
        } = own;
        limits.extend(wire(own_limits));
        requests.extend(wire(own_requests));
        lower(&mut requests, &limits, own_requests.keys());
    }
    ResourceRequirements {
        claims: None,
        limits: Some(limits),
        requests: Some(requests),
    }
}

/// A limit below what is requested without anybody's wish lowers the request.
fn lower<'a>(
    requests: &mut BTreeMap<String, Quantity>,
    limits: &BTreeMap<String, Quantity>,
    wished: impl Iterator<Item = &'a String>,
) {
    let wished: Vec<&String> = wished.collect();
    let millis = |quantity: &Quantity| ferrovirt_api::Quantity(quantity.0.clone()).millis().ok();
    for (name, request) in requests.iter_mut().filter(|(name, _)| !wished.contains(name)) {
        if let Some(limit) = limits.get(name).filter(|limit| millis(limit) < millis(request)) {
            *request = limit.clone();
        }
    }
}
