//! Who the launcher is: never root for longer than it takes to become someone else.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{Gid, Uid, User, chown, geteuid, setgid, setgroups, setuid};

use crate::layout::Layout;

/// The user of VM pods.
pub const POD_USER: u32 = 107;

/// Why the launcher cannot run as the user it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libvirt insists on a name for the user.
    #[error("user id {0} has no entry in /etc/passwd, and libvirt starts no guest without one; add it to the image")]
    Nameless(u32),
    /// The step to the other user failed.
    #[error("cannot become user {user}: {step} failed")]
    Become {
        /// User id.
        user: u32,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory could not be made or given away.
    #[error("cannot prepare directory {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Makes the launcher's directories and, if it was started as root, becomes `user`, keeping only the right to serve
/// DHCP. Must be called before there are threads.
pub fn settle(layout: &Layout, user: u32) -> Result<(), Error> {
    let root = geteuid().is_root();
    for path in layout.own_dirs() {
        let owner = if root { Some(user) } else { None };
        own(&path, owner).map_err(|source| Error::Directory {
            path: path.clone(),
            source,
        })?;
    }
    if root {
        if !has_name(user) {
            name_in_own_namespace(layout, user).map_err(|source| Error::Become {
                user,
                step: "naming it",
                source,
            })?;
        }
        become_user(user)?;
    }
    let user = geteuid().as_raw();
    if has_name(user) {
        Ok(())
    } else {
        Err(Error::Nameless(user))
    }
}

fn own(path: &Path, owner: Option<u32>) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    fs::create_dir_all(path)?;
    let Some(owner) = owner else { return Ok(()) };
    for dir in missing.into_iter().chain([path]) {
        chown(dir, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    }
    // Group for virt-handler and the console log's reader, which have the pod's fsGroup.
    fs::set_permissions(path, Permissions::from_mode(0o770))
}

fn has_name(user: u32) -> bool {
    User::from_uid(Uid::from_raw(user)).is_ok_and(|entry| entry.is_some())
}

/// Outside a pod: adds the user to a copy of /etc/passwd that only this process and its children see.
fn name_in_own_namespace(layout: &Layout, user: u32) -> io::Result<()> {
    let mut passwd = fs::read_to_string("/etc/passwd")?;
    passwd.push_str(&format!("qemu:x:{user}:{user}:qemu:/:/usr/sbin/nologin\n"));
    let copy = layout.private().join("passwd");
    fs::write(&copy, passwd)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some(&copy), "/etc/passwd", none, MsFlags::MS_BIND, none)?;
    // The mount keeps the file alive.
    fs::remove_file(&copy)
}

/// Outside a pod, as root: shows this process and its children `/dev/kvm` as a pod's launcher finds it, usable or not at
/// all. The node's device is not touched.
pub fn show_kvm(scratch: &Path, user: u32, usable: bool) -> io::Result<()> {
    let device = Path::new("/dev/kvm");
    if !geteuid().is_root() || !device.exists() {
        return Ok(());
    }
    let stand_in = scratch.join("kvm");
    if usable {
        let number = fs::metadata(device)?.rdev();
        mknod(&stand_in, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), number)?;
        chown(&stand_in, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
    } else {
        fs::write(&stand_in, "")?;
        fs::set_permissions(&stand_in, Permissions::from_mode(0o000))?;
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some(&stand_in), device, none, MsFlags::MS_BIND, none)?;
    Ok(())
}

fn become_user(user: u32) -> Result<(), Error> {
    let fail = |step| move |source: io::Error| Error::Become { user, step, source };
    let caps_fail = |step| {
        move |error: caps::errors::CapsError| Error::Become {
            user,
            step,
            source: io::Error::other(error),
        }
    };
    let wanted = [Capability::CAP_NET_BIND_SERVICE].into_iter().collect();
    prctl::set_keepcaps(true).map_err(|errno| fail("keeping capabilities")(errno.into()))?;
    setgroups(&[]).map_err(|errno| fail("dropping groups")(errno.into()))?;
    setgid(Gid::from_raw(user)).map_err(|errno| fail("setgid")(errno.into()))?;
    setuid(Uid::from_raw(user)).map_err(|errno| fail("setuid")(errno.into()))?;
    caps::set(None, CapSet::Effective, &wanted).map_err(caps_fail("dropping capabilities"))?;
    caps::set(None, CapSet::Permitted, &wanted).map_err(caps_fail("dropping capabilities"))?;
    Ok(())
}
