//! Child processes of a PID 1: every child, ours or adopted, is reaped in one place.
//!
//! As PID 1 (or as subreaper outside a pod) the launcher inherits QEMU and whatever else loses its parent, so a
//! `waitpid` per known child is not enough, and two reapers would steal from each other. Hence `std`'s and tokio's
//! waiting is not used; children are started here and their ends are told through a channel.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(Signal),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A started child.
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: Pid,
    /// Resolves when it was reaped.
    pub exit: oneshot::Receiver<Exit>,
}

/// The children of this process.
#[derive(Clone, Default)]
pub struct Children {
    waiting: Arc<Mutex<HashMap<Pid, oneshot::Sender<Exit>>>>,
}

impl Children {
    /// Starts a child. The lock is held from fork to registration, so its end cannot be missed.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = Pid::from_raw(i32::try_from(command.spawn()?.id()).map_err(io::Error::other)?);
        let (sender, exit) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok(Child { pid, exit })
    }

    /// Runs a command to its end, and kills it after `limit`.
    pub async fn run(&self, command: &mut Command, limit: Duration) -> io::Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = self.spawn(command)?;
        match tokio::time::timeout(limit, child.exit).await {
            Ok(Ok(Exit::Code(0))) => Ok(()),
            Ok(Ok(exit)) => Err(io::Error::other(format!("{program} ended with {exit}"))),
            Ok(Err(_)) => Err(io::Error::other(format!("{program} was not reaped"))),
            Err(_) => {
                let _ = kill(child.pid, Signal::SIGKILL);
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{program} took longer than {limit:?}"),
                ))
            }
        }
    }

    /// Reaps what has ended, until the end of the process.
    pub async fn reap(self) -> io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            self.reap_now();
            ended.recv().await;
        }
    }

    fn reap_now(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot reap children");
                    return;
                }
            };
            match waiting.remove(&pid) {
                Some(sender) => drop(sender.send(exit)),
                None => tracing::debug!(%pid, %exit, "reaped an adopted process"),
            }
        }
    }
}
