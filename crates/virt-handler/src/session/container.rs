//! Devices in a launcher's container.
//!
//! The container runtime makes device nodes with the owner and mode that they have on the node, which need not let
//! the launcher's user in. They are given to it here, in the container's own `/dev`.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::makedev;
use nix::unistd::{Gid, Uid, fchownat};

use crate::sockets;

/// Devices that guests use: path, major and minor number.
const DEVICES: [(&str, u64, u64); 4] = [
    (KVM, 10, 232),
    ("dev/net/tun", 10, 200),
    ("dev/vhost-net", 10, 238),
    ("dev/vhost-vsock", 10, 241),
];
const KVM: &str = "dev/kvm";
/// Where AMD's secure processor is; its number is another one on each node.
const SEV: &str = "dev/sev";
/// Directories of devices of the node, with how many levels of directories are below them.
const DIRECTORIES: [(&str, u32); 2] = [("dev/vfio", 1), ("dev/bus/usb", 1)];

/// Why a device could not be given away.
#[derive(Debug, thiserror::Error)]
#[error("/{device} cannot be given to user {user}")]
pub(crate) struct Error {
    device: String,
    user: u32,
    #[source]
    source: io::Error,
}

/// What the container has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// `/dev/kvm`.
    pub(crate) kvm: bool,
}

/// Lets `user` use the devices that are in the container whose root directory is `root`.
pub(crate) fn hand_over(root: &File, user: u32) -> Result<Given, Error> {
    let mut given = Given::default();
    for (device, major, minor) in DEVICES {
        let there = hand_over_one(root, device, makedev(major, minor), user);
        let there = there.map_err(|source| Error {
            device: device.to_owned(),
            user,
            source,
        })?;
        given.kvm |= there && device == KVM;
    }
    let sev = sockets::open_in_root(root, SEV, OFlag::O_PATH | OFlag::O_NOFOLLOW);
    if let Ok(number) = sev.and_then(|file| file.metadata()).map(|metadata| metadata.rdev()) {
        hand_over_one(root, SEV, number, user).map_err(|source| Error {
            device: SEV.to_owned(),
            user,
            source,
        })?;
    }
    for (directory, depth) in DIRECTORIES {
        hand_over_all(root, directory, depth, user)?;
    }
    Ok(given)
}

/// Gives away all devices in a directory. What is there is what the kubelet let in: no container can make device nodes.
fn hand_over_all(root: &File, directory: &str, depth: u32, user: u32) -> Result<(), Error> {
    let failed = |source| Error {
        device: directory.to_owned(),
        user,
        source,
    };
    let opened = match sockets::open_in_root(
        root,
        directory,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW,
    ) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let entries = std::fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(failed)?;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() && depth > 0 {
            hand_over_all(root, &path, depth - 1, user)?;
        } else if kind.is_char_device() {
            let number = entry.metadata().map_err(failed)?.rdev();
            hand_over_one(root, &path, number, user).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether the device is there.
fn hand_over_one(root: &File, path: &str, number: u64, user: u32) -> io::Result<bool> {
    let file = match sockets::open_in_root(root, path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.file_type().is_char_device() || metadata.rdev() != number {
        return Ok(false);
    }
    if !is_open_to(&metadata, user) {
        let (uid, gid) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
        fchownat(&file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    }
    Ok(true)
}

fn is_open_to(metadata: &Metadata, user: u32) -> bool {
    let may = |bits: u32| metadata.mode() & bits == bits;
    user == 0 || may(0o006) || (metadata.gid() == user && may(0o060)) || (metadata.uid() == user && may(0o600))
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::{Mode, SFlag, mknod};

    use super::*;

    #[test]
    fn nodes_are_given_away_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("dev/net")).unwrap();
        let node = |name: &str, mode: u32, number| {
            mknod(&at(name), SFlag::S_IFCHR, Mode::from_bits_truncate(mode), number).unwrap();
        };
        node("dev/kvm", 0o600, makedev(10, 232));
        node("dev/net/tun", 0o666, makedev(10, 200));
        for directory in ["dev/vfio", "dev/bus/usb/003"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        node("dev/sev", 0o600, makedev(10, 124));
        node("dev/vfio/12", 0o600, makedev(240, 0));
        node("dev/bus/usb/003/011", 0o600, makedev(189, 266));
        std::fs::write(at("dev/vfio/file"), "").unwrap();
        std::os::unix::fs::symlink("../kvm-other", at("dev/vfio/link")).unwrap();
        // Another device by that name, and a link to one.
        node("dev/vhost-net", 0o600, makedev(1, 3));
        std::os::unix::fs::symlink("kvm", at("dev/vhost-vsock")).unwrap();
        // The umask took what everybody may do.
        std::fs::set_permissions(at("dev/net/tun"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();

        let directory = File::open(root.path()).unwrap();
        assert_eq!(hand_over(&directory, 107).unwrap(), Given { kvm: true });
        let owner = |name: &str| std::fs::symlink_metadata(at(name)).unwrap().uid();
        assert_eq!(
            (owner("dev/kvm"), owner("dev/net/tun"), owner("dev/vhost-net")),
            (107, 0, 0)
        );
        let owners = ["dev/vfio/12", "dev/bus/usb/003/011", "dev/vfio/file", "dev/vfio/link"].map(owner);
        assert_eq!(owners, [107, 107, 0, 0]);
        assert_eq!(owner("dev/sev"), 107);

        std::fs::remove_file(at("dev/kvm")).unwrap();
        assert_eq!(hand_over(&directory, 107).unwrap(), Given { kvm: false });
    }
}
