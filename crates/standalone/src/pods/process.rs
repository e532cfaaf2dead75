//! Container processes: started through `container-init`, watched through pidfds, found again after a restart.
//!
//! A container's process 1 is a direct child of the pod runner (its thread unshares the PID namespace, then starts
//! one process), so there is no shim between them, and no memory spent on one. When the pod runner dies, the process goes on in
//! its own session; the next pod runner finds it by pid and start time.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::init::INIT_SUBCOMMAND;
use super::spec::ContainerSpec;
use super::sys;

/// How long building a container's root may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the exit status of somebody else's child is awaited after its end; an init process reaps at once, most do.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// What names a process for good: pids are used again, pairs of pid and start time are not (within one boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// As the pod runner sees it.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

impl ProcessId {
    /// Reads the start time of `pid`.
    fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time =
            start_time(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is unreadable")))?;
        Ok(Self { pid, start_time })
    }
}

/// Field 22 of `/proc/PID/stat`; the command in field 2 may contain anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It ended while nobody watched, or was somebody else's child on a kernel that does not tell.
    Unknown,
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No process could be made.
    #[error("cannot start a process for the container")]
    Spawn(#[source] io::Error),
    /// The process could not become the container; `container-init` says why.
    #[error("{0}")]
    Init(String),
    /// The process did not become the container in time.
    #[error("the container was not ready to run after {}s", START_TIMEOUT.as_secs())]
    Timeout,
}

/// A running process of which the exit can be awaited. Dropping it does not end the process.
#[derive(Clone, Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: Arc<AsyncFd<OwnedFd>>,
}

impl Process {
    /// Starts the container `spec` describes. `record` is called with the new process before the container
    /// gets to run anything; if it fails, or this process dies before it returns, the container never runs.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        executable: &Path,
        spec: &ContainerSpec,
        record: impl AsyncFnOnce(ProcessId) -> io::Result<()>,
    ) -> Result<Self, StartError> {
        let text = serde_json::to_vec(spec).map_err(|error| StartError::Spawn(error.into()))?;
        let mut child = spawn_in_new_pid_namespace(executable.to_owned())
            .await
            .map_err(StartError::Spawn)?;
        let process = Self::of_child(&child).map_err(StartError::Spawn)?;
        let started = async {
            record(process.id).await.map_err(StartError::Spawn)?;
            let pipes = (child.stdin.take(), child.stdout.take());
            let (Some(stdin), Some(stdout)) = pipes else {
                return Err(StartError::Spawn(io::Error::other("the process has no pipes")));
            };
            hand_over(stdin, stdout, &text).await
        };
        let outcome = tokio::time::timeout(START_TIMEOUT, started)
            .await
            .unwrap_or(Err(StartError::Timeout));
        if let Err(error) = outcome {
            process.signal(Signal::KILL);
            process.exited().await;
            return Err(error);
        }
        Ok(process)
    }

    /// The process `id` if it still runs.
    ///
    /// # Errors
    /// It does not.
    pub fn adopt(id: ProcessId) -> io::Result<Self> {
        let process = Self::open(id)?;
        // Only now the pid cannot be given to another process unnoticed.
        if ProcessId::of(id.pid)? == id && !sys::is_zombie(id.pid) {
            Ok(process)
        } else {
            Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("process {} is another one now", id.pid),
            ))
        }
    }

    /// A child of this process that nobody else waits for.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(super) fn of_child(child: &Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        ProcessId::of(pid).and_then(Self::open)
    }

    fn open(id: ProcessId) -> io::Result<Self> {
        let pid = Pid::from_raw(id.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self {
            id,
            pidfd: Arc::new(sys::watch(pidfd)?),
        })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(self.pidfd.as_fd(), signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.id.pid, ?signal, %error, "cannot signal a container");
        }
    }

    /// Waits for its end. Cancel safe; only the first caller that gets through is told the exit of a child.
    pub async fn exited(&self) -> Exit {
        let Ok(mut ready) = self.pidfd.readable().await else {
            return Exit::Unknown;
        };
        if let Some(exit) = self.reap() {
            return exit;
        }
        // Not our child: the kernel tells (since Linux 6.15) once its parent has reaped it.
        let told = async {
            loop {
                match sys::exit_of_reaped(self.pidfd.as_fd()) {
                    Ok(Some(exit)) => return exit,
                    Ok(None) => {}
                    Err(_) => return Exit::Unknown,
                }
                ready.clear_ready();
                match self.pidfd.readable().await {
                    Ok(guard) => ready = guard,
                    Err(_) => return Exit::Unknown,
                }
            }
        };
        tokio::time::timeout(REAP_TIMEOUT, told).await.unwrap_or(Exit::Unknown)
    }

    fn reap(&self) -> Option<Exit> {
        let status = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )
        .ok()??;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        })
    }
}

/// Waits until the process that a pidfd names has ended. Does not take its exit status. Cancel safe.
///
/// # Errors
/// The descriptor cannot be watched.
pub(crate) async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    sys::watch(pidfd)?.readable().await.map(drop)
}

/// A thread of its own: the change of namespace must not reach any other.
async fn spawn_in_new_pid_namespace(executable: PathBuf) -> io::Result<Child> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("container-spawn".into())
        .spawn(move || {
            let child = unshare(CloneFlags::CLONE_NEWPID)
                .map_err(io::Error::from)
                .and_then(|()| {
                    Command::new(executable)
                        .arg0("ferrovirt")
                        .arg(INIT_SUBCOMMAND)
                        .env_clear()
                        .current_dir("/")
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped())
                        .stderr(Stdio::null())
                        .spawn()
                });
            // The receiver only goes away with the whole task; the child then sees the end of its input and ends.
            let _ = sender.send(child);
        })?;
    receiver.await.map_err(io::Error::other)?
}

/// Gives `container-init` its description and waits for its answer.
async fn hand_over(
    stdin: std::process::ChildStdin,
    stdout: std::process::ChildStdout,
    text: &[u8],
) -> Result<(), StartError> {
    let mut stdin = tokio::process::ChildStdin::from_std(stdin).map_err(StartError::Spawn)?;
    let mut stdout = tokio::process::ChildStdout::from_std(stdout).map_err(StartError::Spawn)?;
    stdin.write_all(text).await.map_err(StartError::Spawn)?;
    drop(stdin);
    let mut complaint = String::new();
    stdout.read_to_string(&mut complaint).await.map_err(StartError::Spawn)?;
    if complaint.is_empty() {
        Ok(())
    } else {
        Err(StartError::Init(complaint))
    }
}

#[cfg(test)]
#[expect(clippy::zombie_processes, reason = "waiting for them is what is tested")]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_command() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2";
        assert_eq!(start_time(stat), Some(98765));
        assert_eq!(start_time("garbage"), None);
    }

    #[tokio::test]
    async fn a_child_is_awaited_and_its_exit_told() {
        let child = Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        let process = Process::open(id).unwrap();
        assert_eq!(process.exited().await, Exit::Code(7));
        assert!(Process::adopt(id).is_err());
    }

    #[tokio::test]
    async fn a_signal_is_told() {
        let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        let process = Process::adopt(id).unwrap();
        process.signal(Signal::KILL);
        assert_eq!(process.exited().await, Exit::Signal(9));
    }

    #[tokio::test]
    async fn another_process_with_the_same_pid_is_not_adopted() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let mut id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        id.start_time += 1;
        assert!(Process::adopt(id).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
