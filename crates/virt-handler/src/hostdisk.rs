//! hostDisk files of the node. The launcher runs as another user than the owner of the node's directories, so what
//! needs privilege is done here: a missing `DiskOrCreate` file is made (empty: the launcher gives it its size), and the
//! file becomes the launcher's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use ferrovirt_api::v1::VirtualMachineInstance;

/// Why a file could not be handed over.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume:?}: cannot give hostDisk {} to the guest's user", path.display())]
pub(crate) struct Error {
    volume: String,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Prepares all hostDisks of a VMI. A file that is missing and may not be created is left to the launcher to report.
pub(crate) fn prepare(vmi: &VirtualMachineInstance, user: u32) -> Result<(), Error> {
    for volume in &vmi.spec.volumes {
        let Some(disk) = &volume.host_disk else { continue };
        let path = PathBuf::from(&disk.path);
        hand_over(&path, disk.r#type == "DiskOrCreate", user).map_err(|source| Error {
            volume: volume.name.clone(),
            path,
            source,
        })?;
    }
    Ok(())
}

fn hand_over(path: &Path, create: bool, user: u32) -> io::Result<()> {
    let mut open = OpenOptions::new();
    // No link is followed: the path names the file itself. Not blocking, should it be a FIFO.
    open.read(true)
        .write(true)
        .mode(0o660)
        .create(create)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    let file: File = match open.open(path) {
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
        let dir = tempfile::tempdir().expect("a temp dir");
        let file = dir.path().join("disk.img");
        hand_over(&file, false, 107).expect("a missing disk is the launcher's to report");
        assert!(!file.exists());
        hand_over(&file, true, 107).expect("is made");
        let metadata = file.metadata().expect("is there");
        assert_eq!((metadata.uid(), metadata.len()), (107, 0));
        let link = dir.path().join("link.img");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        assert!(hand_over(&link, true, 107).is_err());
        assert!(hand_over(dir.path(), true, 107).is_err());
    }
}
