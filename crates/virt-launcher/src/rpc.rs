//! The launcher's gRPC service, on a unix socket.

use std::ffi::CString;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use ferrovirt_core::vmi::attestation::check_blob;
use ferrovirt_protocol::launcher::launcher_server::{Launcher, LauncherServer};
use ferrovirt_protocol::launcher::{
    ActReply, ActRequest, Action as WireAction, AgentExecReply, AgentExecRequest, AgentPingReply, AgentPingRequest,
    GuestInfoReply, GuestInfoRequest, GuestState, ScreenshotPart, ScreenshotRequest, SevMeasurementReply,
    SevMeasurementRequest, SevPlatformReply, SevPlatformRequest, SevSecretReply, SevSecretRequest, Stat, StatsReply,
    StatsRequest, SyncReply, SyncRequest, WatchRequest, stat,
};
use futures::{Stream, stream};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::agent::{AgentError, Command};
use crate::driver::{Action, Input, RequestError, is_final};
use crate::hypervisor::Value;
use crate::hypervisor::sev::Secret;

/// Longest time after which file systems thaw by themselves.
const MAX_FREEZE: u64 = 24 * 3600;
/// Pieces that a picture is sent in.
const PIECE: usize = 64 << 10;
/// Largest VMI that is accepted.
const MAX_REQUEST: usize = 8 << 20;

/// Opens the socket. It is listening before it appears under its name, so whoever sees it can connect.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let staging = path.with_extension("new");
    let _ = std::fs::remove_file(&staging);
    let listener = UnixListener::bind(&staging)?;
    std::fs::rename(staging, path)?;
    Ok(listener)
}

/// Serves until `stop`, and then until every watcher has got the last state.
pub async fn serve(
    listener: UnixListener,
    inputs: mpsc::UnboundedSender<Input>,
    published: watch::Receiver<GuestState>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = LauncherServer::new(Service { inputs, published }).max_decoding_message_size(MAX_REQUEST);
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
        .await
}

struct Service {
    inputs: mpsc::UnboundedSender<Input>,
    published: watch::Receiver<GuestState>,
}

impl Service {
    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<Result<T, RequestError>>) -> Input) -> Result<T, Status> {
        let ended = || Status::failed_precondition("the guest has ended");
        let (reply, answer) = oneshot::channel();
        self.inputs.send(input(reply)).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?.map_err(|error| match error {
            RequestError::Denied(_) | RequestError::NoAgent => Status::failed_precondition(error.to_string()),
            RequestError::Libvirt(_) | RequestError::Screen(_) | RequestError::Firmware(..) => {
                Status::internal(error.to_string())
            }
            RequestError::Agent(AgentError::TimedOut(_)) => Status::deadline_exceeded(error.to_string()),
            RequestError::Agent(AgentError::Busy(_)) => Status::resource_exhausted(error.to_string()),
            RequestError::Agent(_) => Status::unavailable(error.to_string()),
        })
    }
}

#[tonic::async_trait]
impl Launcher for Service {
    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncReply>, Status> {
        let SyncRequest { vmi, node } = request.into_inner();
        let vmi = serde_json::from_slice(&vmi)
            .map_err(|error| Status::invalid_argument(format!("vmi is not a VirtualMachineInstance: {error}")))?;
        self.ask(|reply| Input::Sync(Box::new(vmi), node.unwrap_or_default(), reply))
            .await?;
        Ok(Response::new(SyncReply {}))
    }

    async fn act(&self, request: Request<ActRequest>) -> Result<Response<ActReply>, Status> {
        let request = request.into_inner();
        let grace = Duration::from_secs(request.grace_seconds);
        let action = match request.action() {
            WireAction::Pause => Action::Pause,
            WireAction::Unpause => Action::Unpause,
            WireAction::Shutdown => Action::Shutdown,
            WireAction::Kill => Action::Kill,
            WireAction::Reset => Action::Reset,
            WireAction::SoftReboot => {
                self.ask(Input::SoftReboot).await?;
                return Ok(Response::new(ActReply {}));
            }
            WireAction::Freeze => {
                let thaw_after =
                    (request.thaw_seconds > 0).then(|| Duration::from_secs(request.thaw_seconds.min(MAX_FREEZE)));
                self.ask(|reply| Input::Freeze(thaw_after, reply)).await?;
                return Ok(Response::new(ActReply {}));
            }
            WireAction::Unfreeze => {
                self.ask(Input::Thaw).await?;
                return Ok(Response::new(ActReply {}));
            }
            WireAction::Unspecified => return Err(Status::invalid_argument("action is missing or unknown")),
        };
        match self.ask(|reply| Input::Act(action, grace, reply)).await {
            // The guest has ended and its driver with it, before it could say so: that is what was asked for.
            Err(_) if self.inputs.is_closed() && matches!(action, Action::Shutdown | Action::Kill) => {}
            answer => answer?,
        }
        Ok(Response::new(ActReply {}))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<GuestState, Status>> + Send>>;

    async fn watch(&self, _request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut published = self.published.clone();
        published.mark_changed();
        // Ends after the final state, so a graceful stop of the server delivers it first.
        let states = stream::unfold((published, false), |(mut published, done)| async move {
            if done || published.changed().await.is_err() {
                return None;
            }
            let state = published.borrow_and_update().clone();
            let done = is_final(&state);
            Some((Ok(state), (published, done)))
        });
        Ok(Response::new(Box::pin(states)))
    }

    type ScreenshotStream = Pin<Box<dyn Stream<Item = Result<ScreenshotPart, Status>> + Send>>;

    async fn screenshot(
        &self,
        request: Request<ScreenshotRequest>,
    ) -> Result<Response<Self::ScreenshotStream>, Status> {
        let wake = request.into_inner().move_cursor;
        let png = self.ask(|reply| Input::Screenshot(wake, reply)).await?;
        let parts: Vec<_> = png
            .chunks(PIECE)
            .map(|piece| Ok(ScreenshotPart { png: piece.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(stream::iter(parts))))
    }

    async fn stats(&self, _request: Request<StatsRequest>) -> Result<Response<StatsReply>, Status> {
        let stats = self.ask(Input::Stats).await?;
        let stats = stats.into_iter().map(|(name, value)| Stat {
            name,
            value: Some(match value {
                Value::Number(number) => stat::Value::Number(number),
                Value::Text(text) => stat::Value::Text(text),
            }),
        });
        Ok(Response::new(StatsReply { stats: stats.collect() }))
    }

    async fn guest_info(&self, _request: Request<GuestInfoRequest>) -> Result<Response<GuestInfoReply>, Status> {
        let json = self.ask(Input::GuestInfo).await?;
        Ok(Response::new(GuestInfoReply { json }))
    }
    async fn agent_ping(&self, request: Request<AgentPingRequest>) -> Result<Response<AgentPingReply>, Status> {
        let timeout = seconds(request.into_inner().timeout_seconds);
        self.ask(|reply| Input::Ping(timeout, reply)).await?;
        Ok(Response::new(AgentPingReply {}))
    }

    async fn sev_platform(&self, _request: Request<SevPlatformRequest>) -> Result<Response<SevPlatformReply>, Status> {
        self.ask(Input::SevPlatform).await.map(Response::new)
    }

    async fn sev_measurement(
        &self,
        _request: Request<SevMeasurementRequest>,
    ) -> Result<Response<SevMeasurementReply>, Status> {
        self.ask(Input::SevMeasurement).await.map(Response::new)
    }

    async fn sev_secret(&self, request: Request<SevSecretRequest>) -> Result<Response<SevSecretReply>, Status> {
        let SevSecretRequest { header, secret } = request.into_inner();
        let secret = Secret {
            header: blob("header", header).map_err(Status::invalid_argument)?,
            secret: blob("secret", secret).map_err(Status::invalid_argument)?,
        };
        self.ask(|reply| Input::SevSecret(secret, reply)).await?;
        Ok(Response::new(SevSecretReply {}))
    }

    async fn agent_exec(&self, request: Request<AgentExecRequest>) -> Result<Response<AgentExecReply>, Status> {
        let request = request.into_inner();
        if request.command.is_empty() {
            return Err(Status::invalid_argument("command is missing"));
        }
        let command = Command {
            program: request.command,
            arguments: request.args,
            timeout: seconds(request.timeout_seconds),
        };
        let ended = self.ask(|reply| Input::Exec(command, reply)).await?;
        Ok(Response::new(AgentExecReply {
            exit_code: ended.exit_code,
            stdout: ended.stdout,
            stderr: ended.stderr,
        }))
    }
}

/// Base64 that is not too large; such text holds no zero byte.
fn blob(name: &str, text: String) -> Result<CString, String> {
    let wrong = |why: &str| format!("{name}: {why}");
    if text.is_empty() {
        return Err(wrong("is missing"));
    }
    check_blob(&text).map_err(|why| wrong(&why))?;
    CString::new(text).map_err(|_| wrong("is not valid base64"))
}

/// Nothing is asked for no time.
fn seconds(timeout: u32) -> Duration {
    Duration::from_secs(timeout.max(1).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guest_that_has_ended_meanwhile_is_stopped() {
        let (inputs, gone) = mpsc::unbounded_channel();
        let (_publisher, published) = watch::channel(GuestState::default());
        let service = Service { inputs, published };
        drop(gone);
        for (action, fine) in [
            (WireAction::Kill, true),
            (WireAction::Shutdown, true),
            (WireAction::Pause, false),
            (WireAction::Reset, false),
        ] {
            let request = ActRequest {
                action: action.into(),
                ..ActRequest::default()
            };
            let answer = service.act(Request::new(request)).await;
            assert_eq!(answer.is_ok(), fine, "{action:?}: {answer:?}");
        }
    }
}
