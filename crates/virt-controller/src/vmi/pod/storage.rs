//! Volumes of a launcher pod.

use std::collections::BTreeSet;
use std::path::Path;

use ferrovirt_api::v1::{KernelBootContainer, VirtualMachineInstance};
use ferrovirt_core::machine::{
    Binding, Claim, CloudInitData, Disk, FilesOrigin, Filesystem, FilesystemSource, Interface, Machine, NicNetwork,
    ObjectRef, Source,
};
use ferrovirt_core::names;
use ferrovirt_protocol::paths;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, ConfigMapVolumeSource, DownwardAPIProjection, DownwardAPIVolumeFile, DownwardAPIVolumeSource,
    EmptyDirVolumeSource, HostPathVolumeSource, ImageVolumeSource, KeyToPath, LocalObjectReference,
    ObjectFieldSelector, PersistentVolumeClaimVolumeSource, ProjectedVolumeSource, SecretVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeDevice, VolumeMount, VolumeProjection,
};

use super::super::claims::Claims;
use super::container_disk::Held;
use super::filesystem::Shared;
use crate::Home;
use crate::image_volumes::ContainerDisks;

/// Volume, or container, with a kernel.
const KERNEL_VOLUME: &str = "kernel-boot-volume";

/// Volume with the token of the pod's account.
const ACCOUNT_VOLUME: &str = "kube-api-access";

/// Volume with what of firmware and TPM outlives the pod.
const STATE_VOLUME: &str = "vm-state";

/// Volume for what swtpm_setup writes to /tmp, wherever TMPDIR points to.
const TPM_VOLUME: &str = "swtpm-tmp";

/// Volumes of the pod, and where its compute container finds them.
pub(super) struct Storage {
    pub(super) volumes: Vec<Volume>,
    pub(super) mounts: Vec<VolumeMount>,
    /// Volumes that it has as block devices.
    pub(super) devices: Vec<VolumeDevice>,
    pub(super) pull_secrets: Option<Vec<LocalObjectReference>>,
    /// containerDisks that are no volumes.
    pub(super) held: Vec<Held>,
    /// Directories that the guest shares.
    pub(super) shared: Vec<Shared>,
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

fn claim_volume(name: &str, claim: &str, read_only: bool) -> Volume {
    let source = PersistentVolumeClaimVolumeSource {
        claim_name: claim.to_owned(),
        read_only: read_only.then_some(true),
    };
    Volume {
        persistent_volume_claim: Some(source),
        ..volume(name)
    }
}

pub(super) fn empty_dir(name: &str) -> Volume {
    Volume {
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..volume(name)
    }
}

impl Storage {
    pub(super) fn of(
        vmi: &VirtualMachineInstance,
        machine: &Machine,
        way: ContainerDisks,
        home: Home,
        claims: &Claims,
    ) -> Self {
        let mut storage = Self {
            volumes: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            pull_secrets: None,
            held: Vec::new(),
            shared: Vec::new(),
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
            let facts = vmi
                .spec
                .volumes
                .get(disk.volume_index)
                .and_then(|v| v.downward_api.as_ref());
            if let Some(facts) = facts {
                storage.add_facts(&disk.name, &facts.fields);
            }
            match &disk.source {
                Source::Claim(claim) => storage.add_claim(&disk.name, claim, claims.is_block(&claim.name)),
                _ => storage.add_disk(disk, policy),
            }
        }
        for filesystem in &machine.filesystems {
            storage.share(vmi, filesystem, machine, home);
        }
        storage.add_credentials(machine);
        let boot = vmi.spec.domain.firmware.as_ref().and_then(|f| f.kernel_boot.as_ref());
        if let Some(container) = boot.and_then(|boot| boot.container.as_ref()) {
            secrets.extend(container.image_pull_secret.clone().filter(|s| !s.is_empty()));
            storage.add_kernel(container);
        }
        storage.add_state(machine, home, claims);
        // On a cluster, admission adds the token to every pod that does not refuse it.
        if home == Home::Standalone && machine.service_account.as_ref().is_some_and(|account| account.token) {
            storage.volumes.push(account_token());
            storage.mounts.push(account_mount());
        }
        if !storage.shared.is_empty() {
            let sockets = empty_dir(paths::VIRTIOFS_VOLUME);
            storage.add(sockets, paths::VIRTIOFS_DIR.to_owned(), false);
        }
        if !storage.held.is_empty() {
            // What is mounted there is virt-handler's business, and the launcher's to read.
            let shared = empty_dir(paths::CONTAINER_DISKS_VOLUME);
            storage.add(shared, paths::IMAGE_VOLUME_DIR.to_owned(), true);
            storage.volumes.push(empty_dir(super::container_disk::BIN_VOLUME));
        }
        super::hook_sidecar::add_volumes(machine, &mut storage);
        storage.add_network_status(machine);
        if !secrets.is_empty() {
            storage.pull_secrets = Some(secrets.into_iter().map(|name| LocalObjectReference { name }).collect());
        }
        storage
    }

    /// What firmware and TPM write.
    fn add_state(&mut self, machine: &Machine, home: Home, claims: &Claims) {
        if let Some(state) = claims.state().and_then(|claim| claim.metadata.name.as_deref()) {
            let volume = claim_volume(STATE_VOLUME, state, false);
            self.add(volume, paths::STATE_DIR.to_owned(), false);
        }
        if machine.tpm.is_some() && home == Home::Cluster {
            self.add(empty_dir(TPM_VOLUME), "/tmp".to_owned(), false);
        }
    }

    fn add_network_status(&mut self, machine: &Machine) {
        let told = |nic: &Interface| nic.binding == Binding::Sriov && matches!(nic.network, NicNetwork::Multus { .. });
        if machine.interfaces.iter().any(told) {
            let status = annotation(
                paths::POD_INFO_VOLUME,
                names::NETWORK_STATUS_ANNOTATION,
                paths::NETWORK_STATUS,
            );
            self.add(status, paths::POD_INFO_DIR.to_owned(), true);
        }
    }

    fn add_credentials(&mut self, machine: &Machine) {
        let mut mounted = BTreeSet::new();
        for credential in &machine.access_credentials {
            if mounted.insert(&credential.volume) {
                self.add_secret(&credential.volume, paths::SECRET_DIR, &needed(&credential.secret));
            }
        }
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
                container: format!("volume{}", disk.name),
                place: format!("disk_{}", disk.volume_index),
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
            Source::HostDisk {
                path,
                create,
                shared: _,
            } => {
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
                        self.add_secret(&format!("{}-{suffix}", disk.name), paths::SECRET_DIR, &needed(secret));
                    }
                }
            }
            // The launcher makes it.
            Source::DownwardMetrics => {}
            Source::Files(files) => self.add_files(&disk.name, &files.origin),
            // With what is known of it.
            Source::Claim(_) => {}
            Source::EmptyDisk { .. } | Source::Empty => {}
        }
    }

    /// The volume of a shared directory, which only the container that serves it has.
    fn share(&mut self, vmi: &VirtualMachineInstance, filesystem: &Filesystem, machine: &Machine, home: Home) {
        let Filesystem {
            name,
            volume_index,
            read_only,
            source,
        } = filesystem;
        let launchers = self.mounts.len();
        // On a cluster, admission adds it to every container.
        let token = machine.service_account.as_ref().is_some_and(|account| account.token);
        let account = home == Home::Standalone && token;
        let directory = match source {
            FilesystemSource::Claim(claim) => {
                self.add_claim(name, claim, false);
                None
            }
            FilesystemSource::Files(FilesOrigin::ServiceAccount) => {
                self.mounts.extend(account.then(account_mount));
                Some(paths::SERVICE_ACCOUNT_DIR)
            }
            FilesystemSource::Files(FilesOrigin::DownwardApi) => {
                let volume = vmi.spec.volumes.get(*volume_index);
                let facts = volume.and_then(|volume| volume.downward_api.as_ref());
                self.add_facts(name, facts.map_or(&[], |facts| &facts.fields));
                None
            }
            FilesystemSource::Files(origin) => {
                self.add_files(name, origin);
                None
            }
            // On a cluster, who adds a volume to the launcher adds it to all containers.
            FilesystemSource::ContainerPath(path) => {
                let inside = Path::new(path).starts_with(paths::SERVICE_ACCOUNT_DIR);
                self.mounts.extend((account && inside).then(account_mount));
                Some(path.as_str())
            }
        };
        let mounts = self.mounts.split_off(launchers);
        let directory = directory.or(mounts.first().map(|mount| mount.mount_path.as_str()));
        self.shared.push(Shared {
            name: name.clone(),
            directory: directory.unwrap_or_default().to_owned(),
            read_only: *read_only,
            owned_by_root: !matches!(source, FilesystemSource::Claim(_)),
            mounts,
        });
    }

    fn add_claim(&mut self, name: &str, claim: &Claim, block: bool) {
        let volume = claim_volume(name, &claim.name, claim.read_only);
        if block {
            self.devices.push(VolumeDevice {
                device_path: format!("/dev/{name}"),
                name: name.to_owned(),
            });
            self.volumes.push(volume);
            return;
        }
        let path = format!("{}/{name}", paths::HOST_DISK_DIR);
        self.add(volume, path, claim.read_only || claim.ephemeral);
    }

    fn add_kernel(&mut self, container: &KernelBootContainer) {
        let image = container.image.clone();
        let pull_policy = container.image_pull_policy.clone().filter(|p| !p.is_empty());
        if self.way == ContainerDisks::Helper {
            self.held.push(Held {
                container: KERNEL_VOLUME.to_owned(),
                place: paths::KERNEL_BOOT.to_owned(),
                image,
                pull_policy,
            });
            return;
        }
        let image = Some(ImageVolumeSource {
            pull_policy,
            reference: Some(image),
        });
        self.add(
            Volume {
                image,
                ..volume(KERNEL_VOLUME)
            },
            format!("{}/{}", paths::IMAGE_VOLUME_DIR, paths::KERNEL_BOOT),
            true,
        );
    }

    fn add_files(&mut self, name: &str, origin: &FilesOrigin) {
        match origin {
            FilesOrigin::ConfigMap(map) => self.add_config_map(name, paths::CONFIG_MAP_DIR, map),
            FilesOrigin::SysprepConfigMap(map) => self.add_config_map(name, paths::SYSPREP_DIR, &needed(map)),
            FilesOrigin::Secret(secret) => self.add_secret(name, paths::SECRET_DIR, secret),
            FilesOrigin::SysprepSecret(secret) => self.add_secret(name, paths::SYSPREP_DIR, &needed(secret)),
            // By the fields of the spec, and by the account of the pod.
            FilesOrigin::DownwardApi | FilesOrigin::ServiceAccount => {}
        }
    }

    fn add_facts(&mut self, name: &str, fields: &[DownwardAPIVolumeFile]) {
        let source = DownwardAPIVolumeSource {
            default_mode: None,
            items: Some(fields.to_vec()),
        };
        self.add(
            Volume {
                downward_api: Some(source),
                ..volume(name)
            },
            format!("{}/{name}", paths::DOWNWARD_API_DIR),
            true,
        );
    }

    fn add_config_map(&mut self, name: &str, parent: &str, map: &ObjectRef) {
        let source = ConfigMapVolumeSource {
            name: map.name.clone(),
            optional: map.optional.then_some(true),
            ..ConfigMapVolumeSource::default()
        };
        self.add(
            Volume {
                config_map: Some(source),
                ..volume(name)
            },
            format!("{parent}/{name}"),
            true,
        );
    }

    fn add_secret(&mut self, name: &str, parent: &str, secret: &ObjectRef) {
        let source = SecretVolumeSource {
            optional: secret.optional.then_some(true),
            secret_name: Some(secret.name.clone()),
            ..SecretVolumeSource::default()
        };
        let path = format!("{parent}/{name}");
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

fn needed(name: &str) -> ObjectRef {
    ObjectRef {
        name: name.to_owned(),
        optional: false,
    }
}

/// A year: what a cluster gives pods, too, and nothing renews what a guest has been given.
const TOKEN_SECONDS: i64 = 365 * 24 * 3600;

/// What a cluster's admission adds to containers.
fn account_mount() -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(ACCOUNT_VOLUME, paths::SERVICE_ACCOUNT_DIR)
    }
}

/// An annotation of the pod as a file.
pub(super) fn annotation(name: &str, annotation: &str, file: &str) -> Volume {
    let item = DownwardAPIVolumeFile {
        field_ref: Some(ObjectFieldSelector {
            api_version: None,
            field_path: format!("metadata.annotations['{annotation}']"),
        }),
        path: file.to_owned(),
        ..DownwardAPIVolumeFile::default()
    };
    Volume {
        downward_api: Some(DownwardAPIVolumeSource {
            default_mode: None,
            items: Some(vec![item]),
        }),
        ..volume(name)
    }
}

/// What a cluster's admission adds to pods.
fn account_token() -> Volume {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            audience: None,
            expiration_seconds: Some(TOKEN_SECONDS),
            path: "token".to_owned(),
        }),
        ..VolumeProjection::default()
    };
    let authority = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            items: Some(vec![KeyToPath {
                key: "ca.crt".to_owned(),
                mode: None,
                path: "ca.crt".to_owned(),
            }]),
            name: "kube-root-ca.crt".to_owned(),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let namespace = VolumeProjection {
        downward_api: Some(DownwardAPIProjection {
            items: Some(vec![DownwardAPIVolumeFile {
                field_ref: Some(ObjectFieldSelector {
                    api_version: None,
                    field_path: "metadata.namespace".to_owned(),
                }),
                path: "namespace".to_owned(),
                ..DownwardAPIVolumeFile::default()
            }]),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        projected: Some(ProjectedVolumeSource {
            default_mode: None,
            sources: Some(vec![token, authority, namespace]),
        }),
        ..volume(ACCOUNT_VOLUME)
    }
}
