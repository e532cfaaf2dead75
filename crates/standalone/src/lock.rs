//! One control plane per data directory: the file `lock` is locked by it, and says where it is.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::paths::DataDir;

/// A control plane that runs, or ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Its process.
    pub pid: i32,
    /// `https://127.0.0.1:6443`
    pub url: String,
    /// When it began.
    pub since: Timestamp,
    /// Its version.
    pub version: String,
    /// It serves requests.
    pub ready: bool,
}

/// The lock, held as long as this lives, and by the kernel no longer than the process does.
#[derive(Debug)]
pub struct Lock(Flock<File>);

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another control plane has it.
    #[error("a control plane is already running on this data directory")]
    Held(Option<Running>),
    /// The file cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The lock file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock of a data directory that exists.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take(data: &DataDir) -> Result<Self, LockError> {
        let path = data.lock();
        let failed = |source: io::Error| LockError::File {
            path: path.clone(),
            source,
        };
        let open = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        match Flock::lock(open.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => Err(LockError::Held(read_from(&mut file))),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Tells others where this control plane is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn tell(&mut self, running: &Running) -> io::Result<()> {
        let text = serde_json::to_vec(running)?;
        self.0.seek(SeekFrom::Start(0))?;
        self.0.write_all(&text)?;
        self.0.set_len(text.len() as u64)
    }
}

fn read_from(file: &mut File) -> Option<Running> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// The control plane that runs on a data directory, if any. `Some(None)`: one is just starting.
#[must_use]
pub fn running(data: &DataDir) -> Option<Option<Running>> {
    if !Path::new(&data.lock()).exists() {
        return None;
    }
    match Lock::take(data) {
        Err(LockError::Held(running)) => Some(running),
        Ok(_) | Err(LockError::File { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path());
        assert_eq!(running(&data), None);
        let mut lock = Lock::take(&data).unwrap();
        assert_eq!(running(&data), Some(None));
        let told = Running {
            pid: 7,
            url: "https://127.0.0.1:6443".into(),
            since: Timestamp::UNIX_EPOCH,
            version: "0".into(),
            ready: true,
        };
        lock.tell(&Running {
            url: "https://127.0.0.1:16443/longer".into(),
            ..told.clone()
        })
        .unwrap();
        lock.tell(&told).unwrap();
        assert_eq!(running(&data), Some(Some(told)));
        drop(lock);
        assert_eq!(running(&data), None);
    }
}
