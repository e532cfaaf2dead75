//! `pods/exec`: one more process in a container that runs, for a client.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use rustix::process::Signal;
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::exec::{self, Started, read_some};
use super::super::pod::Context;
use super::super::process::Exit;
use super::super::spec::ExecSpec;
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
    let mut exec = exec::describe(pod, container, &[]).map_err(|refusal| Failure::bad_request(refusal.message))?;
    if query.tty {
        exec.env.insert("TERM".into(), "xterm".into());
    }
    let exec = ExecSpec {
        command: query.command.clone(),
        tty: query.tty,
        ..exec
    };
    let (response, upgrade) = accept(&mut request)?;
    let started = exec::start(&context.config.executable, record.process, &exec, query.stdin).await;
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
