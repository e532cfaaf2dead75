//! The process behind a socket in a pod's volume, and proof that it is inside that pod.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::UnixStream;

use crate::{sockets, syscall};

/// A process in a pod.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) pid: i32,
    /// Says when it has ended.
    pub(crate) process: OwnedFd,
}

/// Where a pod mounts one of its volumes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) pods_dir: &'a Path,
    pub(crate) pod_uid: &'a str,
    pub(crate) volume: &'a str,
    pub(crate) path: &'a str,
}

/// Why a process is not believed to be the pod's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// It is somebody else's.
    #[error("{0}")]
    Impostor(String),
    /// It has ended meanwhile.
    #[error("the process has ended")]
    Gone,
    /// It cannot be looked at.
    #[error("cannot look at the process behind the socket")]
    Io(#[from] io::Error),
}

impl Peer {
    /// Looks at the process that listens on the other end of `stream`.
    ///
    /// Guarantees: it runs as `user` and has the pod's volume mounted where the pod's containers have it, so it is
    /// inside this pod.
    pub(crate) fn of(stream: &UnixStream, place: Place<'_>, user: u32) -> Result<Self, PeerError> {
        let credentials = stream.peer_cred()?;
        if credentials.uid() != user {
            let uid = credentials.uid();
            return Err(PeerError::Impostor(format!("it runs as user {uid}, not {user}")));
        }
        let pid = credentials
            .pid()
            .filter(|pid| *pid > 0)
            .ok_or_else(|| PeerError::Impostor("it is not on this node".to_owned()))?;
        let process = match syscall::peer_pidfd(stream.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => syscall::pidfd_open(pid),
            result => result,
        }?;
        let peer = Self { pid, process };
        let root = peer.look(|proc| File::open(proc.join("root")))?;
        let volume = sockets::open_beneath(place.pods_dir, &sockets::volume(place.pod_uid, place.volume))?;
        let elsewhere = || {
            let volume = place.volume;
            PeerError::Impostor(format!("it does not have the pod's volume `{volume}` mounted"))
        };
        let mounted = match sockets::open_in_root(&root, place.path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(mounted) => mounted,
            // What the process itself decides by its root directory; anything else says nothing about it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                return Err(elsewhere());
            }
            Err(error) => return Err(error.into()),
        };
        if sockets::same_file(&mounted, &volume)? {
            Ok(peer)
        } else {
            Err(elsewhere())
        }
    }

    /// What `read` finds in the process's directory of `/proc`; nothing, if it may have been another process's.
    pub(crate) fn look<T>(&self, read: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, PeerError> {
        look(self.pid, &self.process, read)
    }
}

/// See [`Peer::look`].
pub(crate) fn look<T>(pid: i32, process: &OwnedFd, read: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, PeerError> {
    let found = read(&Path::new("/proc").join(pid.to_string()));
    // It was read while this very process was alive, so it is not another's.
    if has_exited(process)? {
        Err(PeerError::Gone)
    } else {
        Ok(found?)
    }
}

fn has_exited(process: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}
