//! A daemon of the node whose socket guests' pods get.

use std::os::unix::fs::{FileTypeExt, lchown};
use std::path::{Path, PathBuf};

use ferrovirt_protocol::paths;

use super::api::{AllocateResponse, ContainerAllocateResponse, Mount};

/// A daemon that listens in a directory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Daemon {
    /// Last part of the resource's name.
    pub(crate) name: &'static str,
    /// On the node and in the container.
    pub(crate) directory: PathBuf,
    socket: &'static str,
    /// Who may talk to it.
    user: u32,
}

impl Daemon {
    /// The one that reserves LUNs; guests run as `user`.
    pub(crate) fn of_reservations(user: u32) -> Self {
        Self::at("pr-helper", Path::new(paths::RESERVATION_DIR), user)
    }

    pub(crate) fn at(name: &'static str, directory: &Path, user: u32) -> Self {
        Self {
            name,
            directory: directory.to_owned(),
            socket: paths::RESERVATION_SOCKET,
            user,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(self.socket)
    }

    /// Whether it listens; it begins by making its socket anew.
    pub(crate) fn is_there(&self) -> bool {
        std::fs::symlink_metadata(self.socket()).is_ok_and(|metadata| metadata.file_type().is_socket())
    }

    /// Lets guests talk to it: its socket is its own user's.
    pub(crate) fn open(&self) {
        let path = self.socket();
        if let Err(error) = lchown(&path, Some(self.user), Some(self.user)) {
            tracing::warn!(path = %path.display(), %error, "guests cannot be let in to a daemon");
        }
    }

    /// Every container of the request gets the directory: after a restart of the daemon there is another socket in it.
    pub(crate) fn allocate(&self, containers: usize) -> AllocateResponse {
        let path = self.directory.display().to_string();
        let container = ContainerAllocateResponse {
            mounts: vec![Mount {
                container_path: path.clone(),
                host_path: path,
                read_only: true,
            }],
            ..ContainerAllocateResponse::default()
        };
        AllocateResponse {
            container_responses: vec![container; containers],
        }
    }
}
