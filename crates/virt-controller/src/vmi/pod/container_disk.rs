//! containerDisks on clusters without image volumes: a container of the user's image for each, in which a static
//! executable of ours waits, so that virt-handler finds the image's files and mounts them into the launcher.
//!
//! ```text
//!   container-disk-binary   the launcher's image: copies the executable into a volume
//!   volume<disk>            the user's image, with that volume as /usr/bin; starts before and ends after the guest
//! ```

use ferrovirt_core::ClusterConfig;
use ferrovirt_protocol::paths;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements, VolumeMount};

use super::storage::mount;
use super::{label_of, quantities, security};
use crate::Options;

/// The volume with the executable.
pub(super) const BIN_VOLUME: &str = "virt-bin-share-dir";
const EXECUTABLE: &str = "/usr/bin/container-disk";
/// Where the launcher's image finds the volume: its own `/usr/bin` stays.
const INSTALL_DIR: &str = "/init/usr/bin";

/// What a container of an image holds: a disk, or a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Name of the container.
    pub(super) container: String,
    /// Where the image's root is found: `disk_<index of the volume>`, or the place of kernels.
    pub(super) place: String,
    pub(super) image: String,
    pub(super) pull_policy: Option<String>,
}

/// The init containers for `held`, in order.
pub(super) fn containers(held: &[Held], config: &ClusterConfig, options: &Options) -> Vec<Container> {
    if held.is_empty() {
        return Vec::new();
    }
    let install = Container {
        command: Some([EXECUTABLE, "--install", INSTALL_DIR].map(str::to_owned).to_vec()),
        image: Some(options.launcher_image.clone()),
        image_pull_policy: Some(config.image_pull_policy.clone()),
        name: "container-disk-binary".to_owned(),
        resources: Some(resources()),
        security_context: Some(security(&[])),
        volume_mounts: Some(vec![mount(BIN_VOLUME, INSTALL_DIR)]),
        ..Container::default()
    };
    std::iter::once(install).chain(held.iter().map(container)).collect()
}

fn container(held: &Held) -> Container {
    let path = format!("{}/{}", paths::CONTAINER_DISKS_DIR, held.place);
    let executable = VolumeMount {
        read_only: Some(true),
        ..mount(BIN_VOLUME, "/usr/bin")
    };
    Container {
        command: Some(vec![EXECUTABLE.to_owned(), "--copy-path".to_owned(), path]),
        image: Some(held.image.clone()),
        image_pull_policy: held.pull_policy.clone(),
        // Not longer than a name may be.
        name: label_of(&held.container),
        resources: Some(resources()),
        // Ends with the guest's container, and its end is not the pod's.
        restart_policy: Some("Always".to_owned()),
        security_context: Some(security(&[])),
        volume_mounts: Some(vec![
            executable,
            mount(paths::CONTAINER_DISKS_VOLUME, paths::CONTAINER_DISKS_DIR),
        ]),
        // Whatever the image says.
        working_dir: Some("/".to_owned()),
        ..Container::default()
    }
}

/// It waits. Its limit of CPU also holds for the container runtime's own start in there.
fn resources() -> ResourceRequirements {
    ResourceRequirements {
        claims: None,
        limits: Some(quantities(&[("cpu", "100m"), ("memory", "40M")])),
        requests: Some(quantities(&[
            ("cpu", "1m"),
            ("ephemeral-storage", "50M"),
            ("memory", "1M"),
        ])),
    }
}
