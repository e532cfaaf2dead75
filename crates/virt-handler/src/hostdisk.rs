//! Disks in directories of the node: hostDisks, and claims whose volumes have no owner of their own. The launcher runs as another user than the owner of the node's directories, so what
//! needs privilege is done here: a missing `DiskOrCreate` file is made (empty: the launcher gives it its size), and the
//! file becomes the launcher's. The files are reached as the launcher sees them, so only what its pod mounts is touched.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, fchown};
use std::path::{Path, PathBuf};

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::vmi::keeps_state;
use ferrovirt_protocol::paths;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{Mode, mkdirat};

use crate::sockets;

/// May be a link in the container's image; the launcher cannot change it.
const RUN: &str = "var/run";

/// Why a file could not be handed over.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume:?}: cannot give {} to the guest's user", path.display())]
pub(crate) struct Error {
    volume: String,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Prepares all hostDisks of a VMI, in the launcher's container whose root directory is `root`. A file that is missing
/// and may not be created is left to the launcher to report.
pub(crate) fn prepare(vmi: &VirtualMachineInstance, root: &File, user: u32) -> Result<(), Error> {
    for volume in &vmi.spec.volumes {
        let Some(disk) = &volume.host_disk else { continue };
        let path = PathBuf::from(&disk.path);
        let prepared = directory(root, paths::HOST_DISK_DIR).and_then(|directory| {
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            hand_over(
                &directory,
                &Path::new(&volume.name).join(name),
                disk.r#type == "DiskOrCreate" && disk.capacity.is_some(),
                user,
            )
        });
        prepared.map_err(|source| Error {
            volume: volume.name.clone(),
            path,
            source,
        })?;
    }
    claims(vmi, root, user)?;
    if keeps_state(&vmi.spec) {
        let state = |name| directory(root, paths::STATE_DIR).and_then(|state| own_directory(&state, name, user));
        for name in [paths::STATE_NVRAM, paths::STATE_TPM] {
            state(name).map_err(|source| Error {
                volume: "vm-state".to_owned(),
                path: name.into(),
                source,
            })?;
        }
    }
    Ok(())
}

/// An image that is missing is made, empty; the launcher gives it its size.
fn claims(vmi: &VirtualMachineInstance, root: &File, user: u32) -> Result<(), Error> {
    for volume in &vmi.spec.volumes {
        let claim = volume.persistent_volume_claim.as_ref();
        if claim.is_none_or(|claim| claim.read_only == Some(true)) {
            continue;
        }
        let path = Path::new(&volume.name).join(paths::CLAIM_IMAGE);
        let prepared = match block_device(root, &volume.name) {
            Some(device) => own_device(&device, user),
            None => directory(root, paths::HOST_DISK_DIR).and_then(|disks| hand_over(&disks, &path, true, user)),
        };
        prepared.map_err(|source| Error {
            volume: volume.name.clone(),
            path,
            source,
        })?;
    }
    Ok(())
}

/// Open for its path only: opening a device may have effects.
fn block_device(root: &File, volume: &str) -> Option<File> {
    let device = sockets::open_in_root(root, &format!("dev/{volume}"), OFlag::O_PATH).ok()?;
    let is_block = device
        .metadata()
        .is_ok_and(|metadata| metadata.file_type().is_block_device());
    is_block.then_some(device)
}

fn own_device(device: &File, user: u32) -> io::Result<()> {
    let metadata = device.metadata()?;
    if (metadata.uid(), metadata.gid()) != (user, user) {
        chown(format!("/proc/self/fd/{}", device.as_raw_fd()), Some(user), Some(user))?;
    }
    Ok(())
}

fn own_directory(parent: &File, name: &str, user: u32) -> io::Result<()> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let directory = open(parent, Path::new(name), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let metadata = directory.metadata()?;
    if (metadata.uid(), metadata.gid()) != (user, user) {
        fchown(&directory, Some(user), Some(user))?;
    }
    Ok(())
}

/// A directory below /var/run, where the pod mounts its volumes.
fn directory(root: &File, path: &str) -> io::Result<File> {
    let run = sockets::open_in_root(root, RUN, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let below = path.trim_start_matches('/');
    let below = below.strip_prefix(RUN).unwrap_or(below).trim_start_matches('/');
    open(&run, Path::new(below), OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// No link is followed: the launcher owns some of the directories on the way.
fn open(directory: &File, path: &Path, flags: OFlag) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let how = if flags.contains(OFlag::O_CREAT) {
        how.mode(Mode::from_bits_truncate(0o660))
    } else {
        how
    };
    Ok(File::from(sockets::openat2_settled(directory, path, how)?))
}

fn hand_over(directory: &File, path: &Path, create: bool, user: u32) -> io::Result<()> {
    // Not blocking, should it be a FIFO.
    let mut flags = OFlag::O_RDWR | OFlag::O_NONBLOCK;
    flags.set(OFlag::O_CREAT, create);
    let file = match open(directory, path, flags) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !create => return Ok(()),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if (metadata.uid(), metadata.gid()) != (user, user) {
        fchown(&file, Some(user), Some(user))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_and_handed_over_and_links_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/kubevirt-private/vmi-disks/data/directory")).unwrap();
        std::fs::create_dir(root.path().join("var")).unwrap();
        std::os::unix::fs::symlink("/run", root.path().join("var/run")).unwrap();
        let disks = root.path().join("run/kubevirt-private/vmi-disks");
        std::os::unix::fs::symlink("data", disks.join("linked")).unwrap();
        let vmi = |volume: &str, path: &str, (kind, capacity): (&str, Option<&str>)| -> VirtualMachineInstance {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x"},
                "spec": {"domain": {"devices": {}}, "volumes": [{"name": volume, "hostDisk": {"path": path, "type": kind, "capacity": capacity}}]},
            }))
            .unwrap()
        };
        let directory = File::open(root.path()).unwrap();
        let file = disks.join("data/disk.img");
        let create = ("DiskOrCreate", Some("1Gi"));
        for existing in [("Disk", None), ("DiskOrCreate", None)] {
            prepare(&vmi("data", "/srv/disk.img", existing), &directory, 107).unwrap();
            assert!(!file.exists(), "a missing disk is the launcher's to report");
        }
        prepare(&vmi("data", "/srv/disk.img", create), &directory, 107).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.len()), (107, 0));
        std::fs::remove_file(&file).unwrap();
        let claimed = |source: serde_json::Value| -> VirtualMachineInstance {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x"},
                "spec": {"domain": {"devices": {"tpm": {"persistent": true}}}, "volumes": [source]},
            }))
            .unwrap()
        };
        let claim = |read_only: bool| {
            let source = serde_json::json!({"claimName": "c", "readOnly": read_only});
            claimed(serde_json::json!({"name": "data", "persistentVolumeClaim": source}))
        };
        assert!(
            prepare(&claim(true), &directory, 107).is_err(),
            "there is no place for the state"
        );
        std::fs::create_dir(root.path().join("run/kubevirt-private/vm-state")).unwrap();
        prepare(&claim(true), &directory, 107).unwrap();
        assert!(!file.exists(), "nothing is written to what is read-only");
        prepare(&claim(false), &directory, 107).unwrap();
        assert_eq!(file.metadata().unwrap().uid(), 107);
        for name in ["nvram", "swtpm"] {
            let kept = root.path().join("run/kubevirt-private/vm-state").join(name);
            assert_eq!(kept.metadata().unwrap().uid(), 107);
        }
        std::os::unix::fs::symlink(&file, disks.join("data/link.img")).unwrap();
        for (volume, path) in [
            ("data", "/srv/link.img"),
            ("data", "/srv/directory"),
            ("data", "/srv/.."),
            ("linked", "/srv/disk.img"),
            ("absent", "/srv/disk.img"),
        ] {
            let refused = prepare(&vmi(volume, path, create), &directory, 107);
            assert!(refused.is_err(), "{volume} {path}");
        }
    }
}
