//! `spec.volumes`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ferrovirt_api::v1::{
    CloudInitConfigDriveSource, CloudInitNoCloudSource, ContainerDiskSource, ContainerPathVolumeSource,
    EmptyDiskSource, HostDisk, Volume,
};
use k8s_openapi::api::core::v1::LocalObjectReference;

use super::{Cx, is_dns_label, is_dns_subdomain, on, text};
use crate::cause::FieldPath;
use crate::config::{GATE_CONTAINER_PATH, GATE_DOWNWARD_METRICS, GATE_HOST_DISK};
use crate::machine::{CloudInit, CloudInitData, CloudInitFlavor, Source};

/// Most bytes of cloud-init data in the spec; more belongs into a Secret.
const CLOUD_INIT_MAX: usize = 2048;
/// Where a launcher has what is nobody else's.
const OWN_DIRECTORIES: [&str; 7] = [
    "/dev",
    "/proc",
    "/run/kubevirt",
    "/run/libvirt",
    "/sys",
    "/var/run/kubevirt",
    "/var/run/libvirt",
];
pub(super) const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// The three places one piece of cloud-init data can come from, and their field names.
struct CloudInitFields<'a> {
    what: &'a str,
    plain: (&'a str, &'a Option<String>),
    base64: (&'a str, &'a Option<String>),
    secret: (&'a str, &'a Option<LocalObjectReference>),
}

impl Cx<'_> {
    /// The source of each volume, `None` where a cause was found.
    pub(super) fn volumes(&mut self, volumes: &[Volume], path: &FieldPath) -> Vec<Option<Source>> {
        let path = path.child("volumes");
        let mut sources = Vec::new();
        for (i, volume) in volumes.iter().enumerate() {
            let path = path.index(i);
            let field = path.child("name");
            if volume.name.is_empty() {
                self.causes.required(&field, "a volume needs a name");
            } else if !is_dns_label(&volume.name) {
                self.causes.invalid(
                    &field,
                    format!("\"{}\" is not a DNS label (a-z, 0-9 and -, at most 63)", volume.name),
                );
            } else if volumes[..i].iter().any(|other| other.name == volume.name) {
                self.causes
                    .duplicate(&field, format!("another volume has the name \"{}\"", volume.name));
            }
            if volume.downward_metrics.is_some() {
                self.only_metrics(&volumes[..i], &path.child("downwardMetrics"));
            }
            sources.push(self.volume(volume, &path));
        }
        sources
    }

    /// A guest reads one report.
    fn only_metrics(&mut self, earlier: &[Volume], field: &FieldPath) {
        self.gate(GATE_DOWNWARD_METRICS, field);
        if earlier.iter().any(|other| other.downward_metrics.is_some()) {
            self.causes
                .invalid(field, "a machine has one downwardMetrics volume at most");
        }
    }

    fn volume(&mut self, volume: &Volume, path: &FieldPath) -> Option<Source> {
        let Volume {
            cloud_init_config_drive,
            cloud_init_no_cloud,
            config_map,
            container_disk,
            container_path,
            data_volume,
            downward_api,
            downward_metrics,
            empty_disk,
            ephemeral,
            host_disk,
            memory_dump,
            name: _,
            persistent_volume_claim,
            secret,
            service_account,
            sysprep,
        } = volume;
        let later = [
            ("dataVolume", data_volume.is_some()),
            ("memoryDump", memory_dump.is_some()),
        ];
        let built = [
            cloud_init_config_drive.is_some(),
            cloud_init_no_cloud.is_some(),
            config_map.is_some(),
            container_disk.is_some(),
            container_path.is_some(),
            downward_api.is_some(),
            downward_metrics.is_some(),
            empty_disk.is_some(),
            ephemeral.is_some(),
            host_disk.is_some(),
            persistent_volume_claim.is_some(),
            secret.is_some(),
            service_account.is_some(),
            sysprep.is_some(),
        ];
        let count = later
            .iter()
            .map(|(_, set)| *set)
            .chain(built)
            .filter(|set| *set)
            .count();
        self.one_source(count, path);
        self.causes.none_of(path, &later);
        if let Some(source) = container_disk {
            return self.container_disk(source, &path.child("containerDisk"));
        }
        if let Some(source) = container_path {
            self.container_path(source, &path.child("containerPath"));
        }
        if let Some(source) = empty_disk {
            return self.empty_disk(source, &path.child("emptyDisk"));
        }
        if let Some(source) = host_disk {
            return self.host_disk(source, &path.child("hostDisk"));
        }
        if let Some(source) = cloud_init_no_cloud {
            return self.no_cloud(source, &path.child("cloudInitNoCloud"));
        }
        if let Some(source) = cloud_init_config_drive {
            return self.config_drive(source, &path.child("cloudInitConfigDrive"));
        }
        if let Some(source) = persistent_volume_claim {
            return Some(self.claim(source, &path.child("persistentVolumeClaim")));
        }
        if let Some(source) = ephemeral {
            return self.ephemeral(source, &path.child("ephemeral"));
        }
        if downward_metrics.is_some() {
            return Some(Source::DownwardMetrics);
        }
        self.files(volume, path).map(Source::Files)
    }

    fn one_source(&mut self, count: usize, path: &FieldPath) {
        match count {
            0 => self
                .causes
                .required(path, "a volume needs a source, such as containerDisk"),
            1 => {}
            _ => self
                .causes
                .invalid(path, format!("a volume has one source, not {count}")),
        }
    }

    fn empty_disk(&mut self, source: &EmptyDiskSource, path: &FieldPath) -> Option<Source> {
        let EmptyDiskSource { capacity } = source;
        let field = path.child("capacity");
        let capacity = self.bytes(capacity, &field)?;
        if capacity <= 0 {
            self.causes.invalid(&field, "must be greater than 0");
        }
        Some(Source::EmptyDisk {
            capacity: u64::try_from(capacity).ok()?,
        })
    }

    fn container_disk(&mut self, source: &ContainerDiskSource, path: &FieldPath) -> Option<Source> {
        let ContainerDiskSource {
            image,
            image_pull_policy,
            image_pull_secret,
            path: file,
        } = source;
        self.image(image, image_pull_policy.as_deref(), image_pull_secret.as_deref(), path);
        let file = file.clone().filter(|p| !p.is_empty());
        if let Some(file) = &file {
            let field = path.child("path");
            if !is_file_path(file) {
                self.causes.invalid(
                    &field,
                    format!("\"{file}\" must be the absolute path of a file, without . and .."),
                );
            }
        }
        Some(Source::ContainerDisk {
            image: image.clone(),
            path: file,
        })
    }

    /// No source of disks: it is read where it is shared.
    fn container_path(&mut self, source: &ContainerPathVolumeSource, path: &FieldPath) {
        let ContainerPathVolumeSource {
            path: directory,
            read_only: _,
        } = source;
        self.gate(GATE_CONTAINER_PATH, path);
        let field = path.child("path");
        let own = |own: &str| {
            directory
                .strip_prefix(own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '-']))
        };
        if directory.is_empty() {
            self.causes
                .required(&field, "a containerPath needs the path of its directory");
        } else if !is_file_path(directory) {
            self.causes.invalid(
                &field,
                format!("\"{directory}\" must be the absolute path of a directory, without . and .."),
            );
        } else if OWN_DIRECTORIES.into_iter().any(own) {
            self.causes.invalid(
                &field,
                format!("\"{directory}\" is the launcher's own; share what was mounted into its container"),
            );
        }
    }

    /// An image, and how it is pulled.
    pub(super) fn image(&mut self, image: &str, policy: Option<&str>, secret: Option<&str>, path: &FieldPath) {
        if image.trim().is_empty() {
            self.causes.required(&path.child("image"), "this needs an image");
        } else if image.contains(char::is_whitespace) || !text::is_printable(image) {
            self.causes
                .invalid(&path.child("image"), "an image reference has no white space");
        }
        if let Some(policy) = policy.filter(|p| !p.is_empty()) {
            self.causes
                .one_of(&path.child("imagePullPolicy"), policy, &PULL_POLICIES);
        }
        if let Some(name) = secret.filter(|s| !s.is_empty()) {
            self.object_name(name, &path.child("imagePullSecret"));
        }
    }

    fn host_disk(&mut self, source: &HostDisk, path: &FieldPath) -> Option<Source> {
        let HostDisk {
            capacity,
            path: file,
            shared,
            r#type,
        } = source;
        self.gate(GATE_HOST_DISK, path);
        let field = path.child("path");
        if file.is_empty() {
            self.causes.required(&field, "a hostDisk needs the path of its file");
        } else if !is_file_path(file) {
            self.causes.invalid(
                &field,
                format!("\"{file}\" must be the absolute path of a file, without . and .."),
            );
        }
        let bytes = capacity.as_ref().map(|c| self.bytes(c, &path.child("capacity")));
        if bytes.flatten().is_some_and(|b| b <= 0) {
            self.causes.invalid(&path.child("capacity"), "must be greater than 0");
        }
        let create = match (r#type.as_str(), bytes) {
            ("Disk", None) => None,
            ("Disk", Some(_)) => {
                self.causes
                    .invalid(&path.child("capacity"), "capacity belongs to type DiskOrCreate only");
                None
            }
            ("DiskOrCreate", Some(bytes)) => bytes.and_then(|b| u64::try_from(b).ok()),
            // It may be there; the launcher says so when it is not.
            ("DiskOrCreate", None) => None,
            (other, _) => {
                self.causes
                    .one_of(&path.child("type"), other, &["Disk", "DiskOrCreate"]);
                None
            }
        };
        Some(Source::HostDisk {
            path: file.clone(),
            create,
            shared: on(*shared),
        })
    }

    fn no_cloud(&mut self, source: &CloudInitNoCloudSource, path: &FieldPath) -> Option<Source> {
        let CloudInitNoCloudSource {
            network_data,
            network_data_base64,
            network_data_secret_ref,
            secret_ref,
            user_data,
            user_data_base64,
        } = source;
        let user = user_fields(user_data, user_data_base64, secret_ref);
        let network = network_fields(network_data, network_data_base64, network_data_secret_ref);
        self.cloud_init(CloudInitFlavor::NoCloud, &user, &network, path)
    }

    fn config_drive(&mut self, source: &CloudInitConfigDriveSource, path: &FieldPath) -> Option<Source> {
        let CloudInitConfigDriveSource {
            network_data,
            network_data_base64,
            network_data_secret_ref,
            secret_ref,
            user_data,
            user_data_base64,
        } = source;
        let user = user_fields(user_data, user_data_base64, secret_ref);
        let network = network_fields(network_data, network_data_base64, network_data_secret_ref);
        self.cloud_init(CloudInitFlavor::ConfigDrive, &user, &network, path)
    }

    fn cloud_init(
        &mut self,
        flavor: CloudInitFlavor,
        user: &CloudInitFields<'_>,
        network: &CloudInitFields<'_>,
        path: &FieldPath,
    ) -> Option<Source> {
        let (user_set, user_data) = self.cloud_init_data(user, path);
        let (network_set, network_data) = self.cloud_init_data(network, path);
        if !user_set && !network_set {
            self.causes.required(
                path,
                "cloud-init needs userData, userDataBase64, secretRef or network data",
            );
        }
        Some(Source::CloudInit(CloudInit {
            flavor,
            user_data,
            network_data,
        }))
    }

    /// Whether any source is set, and the data if it can be read.
    fn cloud_init_data(&mut self, fields: &CloudInitFields<'_>, path: &FieldPath) -> (bool, Option<CloudInitData>) {
        let set = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
        let (plain, encoded) = (set(fields.plain.1), set(fields.base64.1));
        let secret = fields.secret.1.as_ref().filter(|secret| !secret.name.is_empty());
        let given = [plain.is_some(), encoded.is_some(), secret.is_some()];
        let count = given.iter().filter(|given| **given).count();
        if count > 1 {
            let (a, b, c) = (fields.plain.0, fields.base64.0, fields.secret.0);
            let what = fields.what;
            self.causes
                .invalid(path, format!("{what} comes from one of {a}, {b} and {c}"));
        }
        let inline = match (plain, encoded) {
            (Some(text), _) => Some((fields.plain.0, text.into_bytes())),
            (None, Some(encoded)) => {
                // Tools that encode break lines.
                let decoded = STANDARD.decode(encoded.trim().replace(['\r', '\n'], ""));
                if decoded.is_err() {
                    let field = path.child(fields.base64.0);
                    self.causes.invalid(&field, "is not valid base64");
                }
                decoded.ok().map(|data| (fields.base64.0, data))
            }
            (None, None) => None,
        };
        if let Some((name, data)) = &inline
            && data.len() > CLOUD_INIT_MAX
        {
            self.causes.invalid(
                &path.child(name),
                format!(
                    "{} bytes are more than {CLOUD_INIT_MAX}; put them into a Secret",
                    data.len()
                ),
            );
        }
        let data = inline.map(|(_, data)| CloudInitData::Inline(data)).or_else(|| {
            let name = secret?.name.clone();
            self.object_name(&name, &path.child(fields.secret.0).child("name"));
            Some(CloudInitData::Secret(name))
        });
        (count > 0, data)
    }

    /// The name of another object.
    pub(super) fn object_name(&mut self, name: &str, field: &FieldPath) {
        if name.is_empty() {
            self.causes.required(field, "a name is needed");
        } else if !is_dns_subdomain(name) {
            self.causes
                .invalid(field, format!("\"{name}\" is not the name of an object"));
        }
    }
}

fn user_fields<'a>(
    plain: &'a Option<String>,
    base64: &'a Option<String>,
    secret: &'a Option<LocalObjectReference>,
) -> CloudInitFields<'a> {
    CloudInitFields {
        what: "user data",
        plain: ("userData", plain),
        base64: ("userDataBase64", base64),
        secret: ("secretRef", secret),
    }
}

fn network_fields<'a>(
    plain: &'a Option<String>,
    base64: &'a Option<String>,
    secret: &'a Option<LocalObjectReference>,
) -> CloudInitFields<'a> {
    CloudInitFields {
        what: "network data",
        plain: ("networkData", plain),
        base64: ("networkDataBase64", base64),
        secret: ("networkDataSecretRef", secret),
    }
}

/// Absolute, names a file, and no element leads elsewhere than it says.
pub(super) fn is_file_path(path: &str) -> bool {
    let Some(relative) = path.strip_prefix('/') else {
        return false;
    };
    text::is_printable(path) && path.len() < 4096 && relative.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
