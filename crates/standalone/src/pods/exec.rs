//! One more process in a container that runs.
//!
//! The process is made like a container's first one: a thread enters the container's PID namespace and starts
//! `container-exec`, which enters the other namespaces, gives up privileges and executes the command.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use nix::sched::{CloneFlags, setns};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::container::{DEFAULT_PATH, Refusal, environment, user};
use super::init::EXEC_SUBCOMMAND;
use super::process::{Exit, Process, ProcessId};
use super::spec::{ExecSpec, User};

/// How long output is read that the children of an ended process may still write.
const LAST_OUTPUT: Duration = Duration::from_millis(100);

/// Who a process in `container` is and what environment it has; without a command yet.
///
/// # Errors
/// The container itself could not be started like this.
pub(super) fn describe(pod: &Pod, container: &Container, ips: &[IpAddr]) -> Result<ExecSpec, Refusal> {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut env = environment(pod, container, ips)?;
    env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    Ok(ExecSpec {
        user: user(&spec, container)?,
        command: Vec::new(),
        env,
        tty: false,
    })
}

/// How a command went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// It ended.
    Ended(Exit),
    /// It was killed when its time was over.
    TimedOut,
}

/// Runs a command without input to its end, and tells the first `most` bytes of all its output.
///
/// # Errors
/// As [`start`].
///
/// # Cancel safety
/// A process whose end nobody awaits any more is still killed after `timeout`, and reaped.
pub(super) async fn run(
    executable: PathBuf,
    container: ProcessId,
    spec: ExecSpec,
    timeout: Duration,
    most: usize,
) -> io::Result<(Ran, Vec<u8>)> {
    let task = tokio::spawn(async move {
        let mut started = start(&executable, container, &spec, false).await?;
        let mut output = Vec::new();
        let end = tokio::time::timeout(timeout, started.collect(&mut output, most)).await;
        let ran = match end {
            Ok(exit) => Ran::Ended(exit),
            Err(_) => {
                started.process.signal(Signal::KILL);
                started.process.exited().await;
                Ran::TimedOut
            }
        };
        Ok((ran, output))
    });
    task.await.map_err(io::Error::other)?
}

impl Started {
    /// Reads until the process has ended. What is more than `most` is read and forgotten.
    async fn collect(&mut self, output: &mut Vec<u8>, most: usize) -> Exit {
        let process = self.process.clone();
        let end = process.exited();
        tokio::pin!(end);
        tokio::select! {
            exit = &mut end => {
                // Its children may hold the pipes open for ever.
                let _ = tokio::time::timeout(LAST_OUTPUT, self.read_all(output, most)).await;
                return exit;
            }
            () = self.read_all(output, most) => {}
        }
        end.await
    }

    async fn read_all(&mut self, output: &mut Vec<u8>, most: usize) {
        let (mut out, mut err) = (vec![0; 4 << 10], vec![0; 4 << 10]);
        let (mut out_open, mut err_open) = (true, self.stderr.is_some());
        while out_open || err_open {
            let (count, bytes, open) = tokio::select! {
                read = self.stdout.read(&mut out), if out_open => (read, &out, &mut out_open),
                read = read_some(&mut self.stderr, &mut err), if err_open => (read, &err, &mut err_open),
            };
            match count {
                Ok(count @ 1..) => {
                    let room = most.saturating_sub(output.len());
                    output.extend_from_slice(&bytes[..count.min(room)]);
                }
                Ok(0) | Err(_) => *open = false,
            }
        }
    }
}

/// Reads from what may not be there: then it never has anything.
pub(super) async fn read_some(reader: &mut Option<Reader>, buffer: &mut [u8]) -> io::Result<usize> {
    match reader {
        Some(reader) => reader.read(buffer).await,
        None => std::future::pending().await,
    }
}

pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A process in a container, and its ends.
pub(super) struct Started {
    pub process: Process,
    pub stdin: Option<Writer>,
    pub stdout: Reader,
    /// A terminal has none.
    pub stderr: Option<Reader>,
    /// Our end of it.
    pub terminal: Option<OwnedFd>,
}

/// Starts what `spec` describes in the running container of which `container` is the first process.
///
/// # Errors
/// The container has ended, or no process or terminal can be made.
pub(super) async fn start(
    executable: &Path,
    container: ProcessId,
    spec: &ExecSpec,
    stdin: bool,
) -> io::Result<Started> {
    // Proves that the pid still means the container, and keeps it so.
    let alive = Process::adopt(container)?;
    let text = serde_json::to_string(spec)?;
    let terminal = spec.tty.then(|| open_terminal(container, &spec.user)).transpose()?;
    let (mine, theirs) = terminal.map_or((None, None), |(mine, theirs)| (Some(mine), Some(theirs)));
    let stdio = match &theirs {
        Some(slave) => [stdio(slave)?, stdio(slave)?, stdio(slave)?],
        None => [
            if stdin { Stdio::piped() } else { Stdio::null() },
            Stdio::piped(),
            Stdio::piped(),
        ],
    };
    let executable = executable.to_owned();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("container-exec".into())
        .spawn(move || {
            let child = (|| {
                let pid = Pid::from_raw(container.pid).ok_or(io::ErrorKind::InvalidInput)?;
                setns(pidfd_open(pid, PidfdFlags::empty())?, CloneFlags::CLONE_NEWPID)?;
                let [stdin, stdout, stderr] = stdio;
                std::process::Command::new(executable)
                    .arg0("ferrovirt")
                    .arg(EXEC_SUBCOMMAND)
                    .arg(text)
                    .env_clear()
                    .current_dir("/")
                    .stdin(stdin)
                    .stdout(stdout)
                    .stderr(stderr)
                    .spawn()
            })();
            let _ = sender.send(child);
        })?;
    let mut child = receiver.await.map_err(io::Error::other)??;
    drop((theirs, alive));
    let process = Process::of_child(&child)?;
    if let Some(master) = mine {
        let reader = tokio::fs::File::from_std(File::from(master.try_clone()?));
        let writer = tokio::fs::File::from_std(File::from(master.try_clone()?));
        return Ok(Started {
            process,
            stdin: stdin.then(|| Box::new(writer) as Writer),
            stdout: Box::new(reader),
            stderr: None,
            terminal: Some(master),
        });
    }
    let missing = || io::Error::other("the process has no pipes");
    let stdout = tokio::process::ChildStdout::from_std(child.stdout.take().ok_or_else(missing)?)?;
    let stderr = tokio::process::ChildStderr::from_std(child.stderr.take().ok_or_else(missing)?)?;
    let stdin = child
        .stdin
        .take()
        .map(tokio::process::ChildStdin::from_std)
        .transpose()?;
    Ok(Started {
        process,
        stdin: stdin.map(|stdin| Box::new(stdin) as Writer),
        stdout: Box::new(stdout),
        stderr: Some(Box::new(stderr)),
        terminal: None,
    })
}

/// A terminal of the container's own `/dev/pts`, so that it has a name there: our end, and the process's.
fn open_terminal(container: ProcessId, user: &User) -> io::Result<(OwnedFd, OwnedFd)> {
    let multiplexer = format!("/proc/{}/root/dev/pts/ptmx", container.pid);
    let flags = i32::try_from(OFlags::NOCTTY.bits()).map_err(io::Error::other)?;
    let mine = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(multiplexer)?;
    unlockpt(&mine)?;
    let theirs = ioctl_tiocgptpeer(&mine, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    std::os::unix::fs::fchown(&theirs, Some(user.uid), None)?;
    Ok((mine.into(), theirs))
}

fn stdio(fd: &OwnedFd) -> io::Result<Stdio> {
    Ok(fd.as_fd().try_clone_to_owned()?.into())
}
