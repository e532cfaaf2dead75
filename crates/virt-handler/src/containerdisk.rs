//! containerDisks of pods that have them not as image volumes but held by containers of their images.
//!
//! ```text
//!   volume container-disks:  disk_0.sock ◄── container-disk listens, in a container of the image
//!                            disk_0/     ◄── that container's root, read-only, in the launcher's mounts alone
//! ```
//!
//! The launcher then finds what it finds in an image volume, at the same place, and treats it alike. Images are hostile,
//! so nothing in them is looked at here: only the root directory is passed on, without what is mounted below it. The
//! mounts belong to the launcher's container and end with it; nothing has to be cleaned up.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_protocol::paths;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, mkdirat};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::session::launcher::Launcher;
use crate::session::peer::{Peer, PeerError, Place};
use crate::sockets;

/// The containers run before the launcher does, so what listens in them is there, or nearly.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a containerDisk is not in the launcher's container.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume:?}: cannot mount the containerDisk")]
pub(crate) struct Error {
    volume: String,
    #[source]
    source: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("the container of its image is not ready")]
    NotReady,
    #[error("refused to use the process in the container of its image")]
    Peer(#[from] PeerError),
    #[error("cannot use the pod's volume `{}`", paths::CONTAINER_DISKS_VOLUME)]
    Volume(#[source] io::Error),
    #[error("cannot reach the container of its image")]
    Socket(#[source] io::Error),
    #[error("cannot mount its root directory")]
    Mount(#[source] io::Error),
}

/// The pod that has the disks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod<'a> {
    pub(crate) pods_dir: &'a Path,
    pub(crate) uid: &'a str,
    /// Whom its processes run as.
    pub(crate) user: u32,
}

/// Mounts all containerDisks of `vmi` that are not mounted yet into the container of its `launcher`.
pub(crate) async fn mount(vmi: &VirtualMachineInstance, pod: Pod<'_>, launcher: &Launcher) -> Result<(), Error> {
    let volumes = vmi.spec.volumes.iter().enumerate();
    for (index, volume) in volumes.filter(|(_, volume)| volume.container_disk.is_some()) {
        let mounted = mount_one(&format!("disk_{index}"), pod, launcher).await;
        mounted.map_err(|source| Error {
            volume: volume.name.clone(),
            source,
        })?;
    }
    let boot = vmi.spec.domain.firmware.as_ref().and_then(|f| f.kernel_boot.as_ref());
    if boot.is_some_and(|boot| boot.container.is_some()) {
        let mounted = mount_one(paths::KERNEL_BOOT, pod, launcher).await;
        mounted.map_err(|source| Error {
            volume: paths::KERNEL_BOOT.to_owned(),
            source,
        })?;
    }
    Ok(())
}

async fn mount_one(name: &str, pod: Pod<'_>, launcher: &Launcher) -> Result<(), Problem> {
    let volume = sockets::volume(pod.uid, paths::CONTAINER_DISKS_VOLUME);
    let place = placeholder(pod.pods_dir, &volume, name).map_err(Problem::Volume)?;
    let target = target(&launcher.root()?, name).map_err(Problem::Volume)?;
    if !sockets::same_file(&place, &target).map_err(Problem::Volume)? {
        // Only we mount anything there.
        return Ok(());
    }
    let socket = volume.join(format!("{name}.sock"));
    match timeout(PATIENCE, sockets::appeared(pod.pods_dir, &socket)).await {
        Ok(appeared) => appeared.map_err(Problem::Socket)?,
        Err(_) => return Err(Problem::NotReady),
    }
    let stream = sockets::connect_beneath(pod.pods_dir, &socket).await;
    let stream = stream.map_err(Problem::Socket)?;
    let inside = Place {
        pods_dir: pod.pods_dir,
        pod_uid: pod.uid,
        volume: paths::CONTAINER_DISKS_VOLUME,
        path: paths::CONTAINER_DISKS_DIR,
    };
    let helper = Peer::of(&stream, inside, pod.user)?;
    let (root, from) = helper.look(|proc| Ok((File::open(proc.join("root"))?, File::open(proc.join("ns/mnt"))?)))?;
    let to = launcher.mount_namespace()?;
    graft(Graft { root, from, target, to }).await.map_err(Problem::Mount)
}

/// The directory in the volume that is mounted upon. The launcher cannot write there.
fn placeholder(pods_dir: &Path, volume: &Path, name: &str) -> io::Result<File> {
    let directory = sockets::open_beneath(pods_dir, volume)?;
    match mkdirat(&directory, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    sockets::open_beneath(pods_dir, &volume.join(name))
}

/// What the launcher has there.
fn target(root: &File, name: &str) -> io::Result<File> {
    let path = format!("{}/{name}", paths::IMAGE_VOLUME_DIR);
    sockets::open_in_root(root, &path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
}

/// A directory in one mount namespace, to be mounted on another in another one.
struct Graft {
    root: File,
    from: File,
    target: File,
    to: File,
}

impl Graft {
    /// Changes the calling thread's mount namespace for good.
    fn perform(&self) -> io::Result<()> {
        // A thread that shares its root and working directory with others may not change its mount namespace.
        unshare(CloneFlags::CLONE_FS)?;
        setns(&self.from, CloneFlags::CLONE_NEWNS)?;
        let tree = crate::syscall::detached_copy(self.root.as_fd())?;
        setns(&self.to, CloneFlags::CLONE_NEWNS)?;
        crate::syscall::attach(tree.as_fd(), self.target.as_fd())
    }
}

/// On a thread of its own, which ends with it. Dropping the future does not stop it.
async fn graft(work: Graft) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("container-disk".to_owned())
        // A dropped receiver means that nobody waits any more.
        .spawn(move || drop(sender.send(work.perform())))?;
    receiver
        .await
        .map_err(|_| io::Error::other("the thread that mounts panicked"))?
}
