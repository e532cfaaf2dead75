//! Volumes of a launcher pod.

use std::collections::BTreeSet;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::machine::{CloudInitData, Disk, Machine, Source};
use ferrovirt_protocol::paths;
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, HostPathVolumeSource, ImageVolumeSource, LocalObjectReference, SecretVolumeSource, Volume,
    VolumeMount,
};

use super::container_disk::Held;
use crate::image_volumes::ContainerDisks;

/// Volumes of the pod, and where its compute container finds them.
pub(super) struct Storage {
    pub(super) volumes: Vec<Volume>,
    pub(super) mounts: Vec<VolumeMount>,
    pub(super) pull_secrets: Option<Vec<LocalObjectReference>>,
    /// containerDisks that are no volumes.
    pub(super) held: Vec<Held>,
    way: ContainerDisks,
}

pub(super) fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

fn volume(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        ..Volume::default()
    }
}

fn empty_dir(name: &str) -> Volume {
    Volume {
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..volume(name)
    }
}

impl Storage {
    pub(super) fn of(vmi: &VirtualMachineInstance, machine: &Machine, way: ContainerDisks) -> Self {
        let mut storage = Self {
            volumes: Vec::new(),
            mounts: Vec::new(),
            pull_secrets: None,
            held: Vec::new(),
            way,
        };
        // Parents come before what is mounted below them.
        for (name, path) in [
            (paths::PRIVATE_VOLUME, paths::PRIVATE_DIR),
            ("public", "/var/run/kubevirt"),
            (paths::SOCKETS_VOLUME, paths::SOCKETS_DIR),
            ("libvirt-runtime", paths::LIBVIRT_RUNTIME_DIR),
            ("ephemeral-disks", paths::EPHEMERAL_DIR),
        ] {
            storage.add(empty_dir(name), path.to_owned(), false);
        }
        let mut secrets = BTreeSet::new();
        for disk in &machine.disks {
            let source = vmi
                .spec
                .volumes
                .get(disk.volume_index)
                .and_then(|v| v.container_disk.as_ref());
            secrets.extend(
                source
                    .and_then(|s| s.image_pull_secret.clone())
                    .filter(|s| !s.is_empty()),
            );
            let policy = source.and_then(|s| s.image_pull_policy.clone());
            storage.add_disk(disk, policy);
        }
        if !storage.held.is_empty() {
            // What is mounted there is virt-handler's business, and the launcher's to read.
            let shared = empty_dir(paths::CONTAINER_DISKS_VOLUME);
            storage.add(shared, paths::IMAGE_VOLUME_DIR.to_owned(), true);
            storage.volumes.push(empty_dir(super::container_disk::BIN_VOLUME));
        }
        if !secrets.is_empty() {
            storage.pull_secrets = Some(secrets.into_iter().map(|name| LocalObjectReference { name }).collect());
        }
        storage
    }

    fn add(&mut self, volume: Volume, path: String, read_only: bool) {
        let read_only = read_only.then_some(true);
        self.mounts.push(VolumeMount {
            read_only,
            ..mount(&volume.name, &path)
        });
        self.volumes.push(volume);
    }

    fn add_disk(&mut self, disk: &Disk, pull_policy: Option<String>) {
        match &disk.source {
            Source::ContainerDisk { image, path: _ } if self.way == ContainerDisks::Helper => self.held.push(Held {
                disk: disk.name.clone(),
                index: disk.volume_index,
                image: image.clone(),
                pull_policy,
            }),
            Source::ContainerDisk { image, path: _ } => {
                let image = Some(ImageVolumeSource {
                    pull_policy,
                    reference: Some(image.clone()),
                });
                let path = format!("{}/disk_{}", paths::IMAGE_VOLUME_DIR, disk.volume_index);
                self.add(
                    Volume {
                        image,
                        ..volume(&disk.name)
                    },
                    path,
                    true,
                );
            }
            Source::HostDisk { path, create } => {
                let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                let kind = if create.is_some() {
                    "DirectoryOrCreate"
                } else {
                    "Directory"
                };
                let host_path = Some(HostPathVolumeSource {
                    path: if directory.is_empty() {
                        "/".to_owned()
                    } else {
                        directory.to_owned()
                    },
                    type_: Some(kind.to_owned()),
                });
                let path = format!("{}/{}", paths::HOST_DISK_DIR, disk.name);
                self.add(
                    Volume {
                        host_path,
                        ..volume(&disk.name)
                    },
                    path,
                    false,
                );
            }
            Source::CloudInit(init) => {
                for (data, suffix) in [(&init.user_data, "udata"), (&init.network_data, "ndata")] {
                    if let Some(CloudInitData::Secret(secret)) = data {
                        self.add_secret(&format!("{}-{suffix}", disk.name), secret);
                    }
                }
            }
            Source::EmptyDisk { .. } => {}
        }
    }

    fn add_secret(&mut self, name: &str, secret: &str) {
        let source = SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            ..SecretVolumeSource::default()
        };
        let path = format!("{}/{name}", paths::SECRET_DIR);
        self.add(
            Volume {
                secret: Some(source),
                ..volume(name)
            },
            path,
            true,
        );
    }
}
