//! What virt-api asks for, over HTTP: the other side of [`ferrovirt_protocol::node`].

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::response::IntoResponse;
use ferrovirt_api::v1::SEVSecretOptions;
use ferrovirt_protocol::node::{Call, Failure, MAX_BODY, UPGRADE};
use ferrovirt_protocol::streams::{Duplex, NodeAgent, StreamError};
use hyper_util::rt::TokioIo;

use crate::Agent;

/// Largest buffer of each direction of a stream: a screen's update goes in few pieces, and idle streams cost little.
const BUFFER: usize = 16 << 10;

/// The routes.
pub(super) fn router(agent: Agent) -> Router {
    Router::new().fallback(answer).with_state(agent)
}

async fn answer(State(agent): State<Agent>, mut request: Request) -> Response<Body> {
    let uri = request.uri().clone();
    let Some((namespace, vmi, call)) = Call::parse(request.method().as_str(), uri.path(), uri.query()) else {
        return (StatusCode::NOT_FOUND, "virt-handler knows no such call\n").into_response();
    };
    match call {
        Call::Stream(_) if !wants_stream(request.headers()) => {
            let text = format!("a stream needs the header Upgrade: {UPGRADE}\n");
            (StatusCode::UPGRADE_REQUIRED, text).into_response()
        }
        Call::Stream(stream) => match agent.stream(namespace, vmi, stream).await {
            Ok(guest) => {
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(relay(upgrade, guest));
                let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, UPGRADE)];
                (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
            }
            Err(error) => failure(&error),
        },
        Call::Act(action) => match agent.act(namespace, vmi, action).await {
            Ok(()) => StatusCode::OK.into_response(),
            Err(error) => failure(&error),
        },
        Call::Freeze { thaw_seconds } => match agent.freeze(namespace, vmi, Duration::from_secs(thaw_seconds)).await {
            Ok(()) => StatusCode::OK.into_response(),
            Err(error) => failure(&error),
        },
        Call::Screenshot { move_cursor } => match agent.screenshot(namespace, vmi, move_cursor).await {
            Ok(png) => ([(header::CONTENT_TYPE, "image/png")], png).into_response(),
            Err(error) => failure(&error),
        },
        Call::GuestInfo => match agent.guest_info(namespace, vmi).await {
            Ok(info) => axum::Json(info).into_response(),
            Err(error) => failure(&error),
        },
        Call::SevPlatform => match agent.sev_platform(namespace, vmi).await {
            Ok(info) => axum::Json(info).into_response(),
            Err(error) => failure(&error),
        },
        Call::SevMeasurement => match agent.sev_measurement(namespace, vmi).await {
            Ok(info) => axum::Json(info).into_response(),
            Err(error) => failure(&error),
        },
        Call::SevSecret => match secret(request).await {
            Ok(secret) => match agent.sev_secret(namespace, vmi, secret).await {
                Ok(()) => StatusCode::OK.into_response(),
                Err(error) => failure(&error),
            },
            Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
        },
    }
}

async fn secret(request: Request) -> Result<SEVSecretOptions, String> {
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY).await;
    let body = body.map_err(|error| format!("cannot read the secret: {error}\n"))?;
    serde_json::from_slice(&body).map_err(|error| format!("the body is no secret: {error}\n"))
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(UPGRADE))
}

fn failure(error: &StreamError) -> Response<Body> {
    let failure = Failure::from(error);
    let code = StatusCode::from_u16(failure.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, axum::Json(failure)).into_response()
}

/// Copies both ways until both ends are silent, or one breaks.
async fn relay(upgrade: hyper::upgrade::OnUpgrade, mut guest: Box<dyn Duplex>) {
    let client = match upgrade.await {
        Ok(client) => client,
        Err(error) => return tracing::debug!(%error, "virt-api went away before the stream began"),
    };
    let mut client = TokioIo::new(client);
    let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut guest, BUFFER, BUFFER).await;
    if let Err(error) = copied {
        tracing::debug!(%error, "a stream into a guest broke");
    }
}
