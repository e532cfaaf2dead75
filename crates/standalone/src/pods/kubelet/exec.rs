//! `pods/exec`: one more process in a container that runs.
//!
//! The process is made like a container's first one: a thread enters the container's PID namespace and starts
//! `container-exec`, which enters the other namespaces, gives up privileges and executes the command.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use nix::sched::{CloneFlags, setns};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::container::{environment, user};
use super::super::init::EXEC_SUBCOMMAND;
use super::super::pod::Context;
use super::super::process::{Exit, Process, ProcessId};
use super::super::spec::{ExecSpec, User};
use super::super::state::PodRecord;
use super::channels::{Channels, FromClient, STDERR, STDOUT, accept};
use super::{Failure, choose};

/// What the query of `pods/exec` asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    command: Vec<String>,
    container: Option<String>,
    stdin: bool,
    tty: bool,
}

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            match key.as_ref() {
                "command" => query.command.push(value.into_owned()),
                "container" => query.container = Some(value.into_owned()),
                "stdin" => query.stdin = value == "true" || value == "1",
                "tty" => query.tty = value == "true" || value == "1",
                _ => {}
            }
        }
        query
    }
}

/// Answers `pods/exec`.
pub(super) async fn answer(
    context: &Arc<Context>,
    pod: &Pod,
    mut request: Request<Body>,
) -> Result<Response<Body>, Failure> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let container = choose(pod, query.container.as_deref())?;
    if query.command.is_empty() {
        return Err(Failure::bad_request(
            "you must specify at least one command for the container",
        ));
    }
    let record = PodRecord::load(&context.directory(&pod.uid().unwrap_or_default()))
        .ok()
        .flatten();
    let record = record
        .as_ref()
        .and_then(|record| record.containers.get(&container.name));
    let Some(record) = record.filter(|record| record.ended.is_none()) else {
        return Err(Failure::bad_request(format!(
            "container \"{}\" is not running",
            container.name
        )));
    };
    let refused = |refusal: super::super::container::Refusal| Failure::bad_request(refusal.message);
    let spec = pod
        .spec
        .as_ref()
        .ok_or_else(|| Failure::internal("the pod has no spec"))?;
    let mut env = environment(pod, container, &[]).map_err(refused)?;
    env.entry("PATH".into())
        .or_insert_with(|| super::super::container::DEFAULT_PATH.into());
    if query.tty {
        env.insert("TERM".into(), "xterm".into());
    }
    let exec = ExecSpec {
        user: user(spec, container).map_err(refused)?,
        command: query.command.clone(),
        env,
        tty: query.tty,
    };
    let (response, upgrade) = accept(&mut request)?;
    let started = start(context.config.executable.clone(), record.process, &exec, query.stdin).await;
    let started =
        started.map_err(|error| Failure::internal(format!("cannot start a process in the container: {error}")))?;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => started.serve(Channels::new(upgraded).await).await,
            Err(error) => {
                tracing::debug!(%error, "the client of an exec left before it began");
                started.process.signal(Signal::KILL);
            }
        }
    });
    Ok(response)
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A process in a container, and its ends.
struct Started {
    process: Process,
    stdin: Option<Writer>,
    stdout: Reader,
    stderr: Option<Reader>,
    terminal: Option<OwnedFd>,
}

async fn start(executable: PathBuf, container: ProcessId, spec: &ExecSpec, stdin: bool) -> io::Result<Started> {
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

impl Started {
    /// Carries bytes both ways until the process has ended and said all, or the client is gone (which ends the process).
    async fn serve(mut self, mut channels: Channels) {
        let (mut out, mut err) = (vec![0; 32 << 10], vec![0; 32 << 10]);
        let (mut out_open, mut err_open) = (true, self.stderr.is_some());
        while out_open || err_open {
            tokio::select! {
                read = self.stdout.read(&mut out), if out_open => match read {
                    Ok(count @ 1..) => {
                        if !channels.send(STDOUT, &out[..count]).await {
                            break;
                        }
                    }
                    // A terminal gives an error when its last process is gone.
                    Ok(0) | Err(_) => out_open = false,
                },
                read = read_some(&mut self.stderr, &mut err), if err_open => match read {
                    Ok(count @ 1..) => {
                        if !channels.send(STDERR, &err[..count]).await {
                            break;
                        }
                    }
                    Ok(0) | Err(_) => err_open = false,
                },
                message = channels.receive() => match message {
                    Some(message) => self.take(message).await,
                    None => break,
                },
            }
        }
        if out_open || err_open {
            self.process.signal(Signal::KILL);
        }
        let exit = self.process.exited().await;
        channels.finish(&status(exit)).await;
    }

    async fn take(&mut self, message: FromClient) {
        match message {
            FromClient::Stdin(data) => {
                if let Some(stdin) = &mut self.stdin
                    && (stdin.write_all(&data).await.is_err() || stdin.flush().await.is_err())
                {
                    self.stdin = None;
                }
            }
            FromClient::StdinClosed if self.terminal.is_none() => self.stdin = None,
            FromClient::Resize { width, height } => {
                if let Some(terminal) = &self.terminal {
                    let size = Winsize {
                        ws_col: width,
                        ws_row: height,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    let _ = tcsetwinsize(terminal, size);
                }
            }
            FromClient::StdinClosed | FromClient::Other => {}
        }
    }
}

async fn read_some(reader: &mut Option<Reader>, buffer: &mut [u8]) -> io::Result<usize> {
    match reader {
        Some(reader) => reader.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// What the client is told at the end.
fn status(exit: Exit) -> Value {
    let code = match exit {
        Exit::Code(0) => return json!({ "metadata": {}, "status": "Success" }),
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
        Exit::Unknown => {
            return json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": "the exit code of the command is not known",
            });
        }
    };
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_read() {
        let query =
            Query::parse("command=sh&command=-c&command=echo+a%26b&container=compute&stdin=true&tty=1&stdout=true");
        assert_eq!(query.command, ["sh", "-c", "echo a&b"]);
        assert_eq!(query.container.as_deref(), Some("compute"));
        assert!(query.stdin && query.tty);
    }

    #[test]
    fn exit_codes_are_told_as_kubectl_reads_them() {
        assert_eq!(status(Exit::Code(0))["status"], "Success");
        assert_eq!(status(Exit::Code(3))["details"]["causes"][0]["message"], "3");
        assert_eq!(status(Exit::Signal(9))["details"]["causes"][0]["message"], "137");
    }
}
