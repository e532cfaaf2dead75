//! `spec.domain.devices.filesystems`, joined with the volumes.

use ferrovirt_api::v1::{Devices, Filesystem as WireFilesystem, FilesystemVirtiofs, Volume};

use super::Cx;
use crate::cause::FieldPath;
use crate::config::GATE_VIRTIOFS_STORAGE;
use crate::machine::{FilesOrigin, Filesystem, FilesystemSource, Source};

/// virtio's limit of a tag, in bytes.
const MAX_TAG: usize = 36;

impl Cx<'_> {
    pub(super) fn filesystems(
        &mut self,
        devices: &Devices,
        volumes: &[Volume],
        sources: &[Option<Source>],
        path: &FieldPath,
    ) -> Vec<Filesystem> {
        for (i, volume) in volumes.iter().enumerate() {
            let named = devices.filesystems.iter().any(|other| other.name == volume.name);
            if volume.container_path.is_some() && !named {
                let field = path.child("volumes").index(i).child("containerPath");
                self.causes.invalid(
                    &field,
                    "a directory is no disk: add a filesystem with the name of the volume",
                );
            }
        }
        let path = path.child("domain.devices.filesystems");
        let mut parsed = Vec::new();
        for (i, filesystem) in devices.filesystems.iter().enumerate() {
            let WireFilesystem {
                name,
                virtiofs: FilesystemVirtiofs {},
            } = filesystem;
            let path = path.index(i);
            let field = path.child("name");
            if devices.filesystems[..i].iter().any(|other| other.name == *name) {
                self.causes
                    .duplicate(&field, format!("another filesystem has the name \"{name}\""));
            }
            if name.len() > MAX_TAG {
                self.causes.invalid(
                    &field,
                    format!("\"{name}\" is too long for what a guest mounts: at most {MAX_TAG} characters"),
                );
            }
            if devices.disks.iter().any(|disk| disk.name == *name) {
                self.causes
                    .invalid(&field, format!("volume \"{name}\" is a disk; it cannot be both"));
            }
            let volume = volumes.iter().enumerate().find(|(_, volume)| volume.name == *name);
            let Some((volume_index, volume)) = volume else {
                self.causes
                    .invalid(&field, format!("there is no volume \"{name}\" for this filesystem"));
                continue;
            };
            let source = sources.get(volume_index).and_then(Option::as_ref);
            let Some(source) = self.shared(volume, source, &path) else {
                continue;
            };
            let read_only = match &source {
                FilesystemSource::Claim(claim) => claim.read_only,
                // Kubernetes writes them.
                FilesystemSource::Files(_) => true,
                FilesystemSource::ContainerPath(_) => is_read_only(volume),
            };
            parsed.push(Filesystem {
                name: name.clone(),
                volume_index,
                read_only,
                source,
            });
        }
        parsed
    }

    /// What of a volume is shared; a source that was refused already has its cause.
    fn shared(&mut self, volume: &Volume, source: Option<&Source>, path: &FieldPath) -> Option<FilesystemSource> {
        if let Some(container) = &volume.container_path {
            return Some(FilesystemSource::ContainerPath(container.path.clone()));
        }
        match source? {
            Source::Claim(claim) if !claim.ephemeral => {
                self.gate(GATE_VIRTIOFS_STORAGE, path);
                Some(FilesystemSource::Claim(claim.clone()))
            }
            Source::Files(files) if !is_sysprep(&files.origin) => Some(FilesystemSource::Files(files.origin.clone())),
            _ => {
                let kinds = "persistentVolumeClaim, configMap, secret, serviceAccount, downwardAPI or containerPath";
                self.causes.invalid(
                    &path.child("name"),
                    format!("volume \"{}\" is no directory; share a {kinds}", volume.name),
                );
                None
            }
        }
    }
}

fn is_read_only(volume: &Volume) -> bool {
    let path = volume.container_path.as_ref();
    path.is_none_or(|path| path.read_only.unwrap_or(true))
}

fn is_sysprep(origin: &FilesOrigin) -> bool {
    matches!(origin, FilesOrigin::SysprepConfigMap(_) | FilesOrigin::SysprepSecret(_))
}
