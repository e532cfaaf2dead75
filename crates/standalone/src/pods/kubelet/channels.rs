//! Kubernetes' remote command protocol over websockets: `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//! Each binary message begins with the number of its channel.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};

use super::Failure;

/// Newest first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// How long a client may take to answer our close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the channel in the next byte is closed.
const CLOSE: u8 = 255;

/// What the client sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromClient {
    Stdin(Bytes),
    StdinClosed,
    Resize {
        width: u16,
        height: u16,
    },
    /// Of no meaning to us.
    Other,
}

fn decode(message: &[u8]) -> FromClient {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    match message {
        [STDIN, data @ ..] => FromClient::Stdin(Bytes::copy_from_slice(data)),
        [RESIZE, data @ ..] => match serde_json::from_slice::<Size>(data) {
            Ok(Size { width, height }) => FromClient::Resize { width, height },
            Err(_) => FromClient::Other,
        },
        [CLOSE, STDIN, ..] => FromClient::StdinClosed,
        _ => FromClient::Other,
    }
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// The 101 answer, and what will become the connection.
pub(super) fn accept(request: &mut Request<Body>) -> Result<(Response<Body>, OnUpgrade), Failure> {
    let headers = request.headers();
    if !has_token(headers, &header::UPGRADE, "websocket") {
        return Err(Failure::bad_request(
            "only websockets are supported here: use kubectl 1.31 or newer, without KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false",
        ));
    }
    let offered = PROTOCOLS
        .iter()
        .find(|protocol| has_token(headers, &header::SEC_WEBSOCKET_PROTOCOL, protocol));
    let Some(protocol) = offered else {
        return Err(Failure::bad_request(format!(
            "Sec-WebSocket-Protocol must offer one of {}",
            PROTOCOLS.join(", ")
        )));
    };
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let accept = key
        .map(|key| derive_accept_key(key.as_bytes()))
        .and_then(|key| HeaderValue::from_str(&key).ok());
    let accept = accept.ok_or_else(|| Failure::bad_request("Sec-WebSocket-Key is missing"))?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(|| Failure::bad_request("this connection cannot be upgraded: use HTTP/1.1"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok((response, upgrade))
}

/// A connection of channels.
pub(super) struct Channels(WebSocketStream<TokioIo<Upgraded>>);

impl Channels {
    pub(super) async fn new(upgraded: Upgraded) -> Self {
        Self(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await)
    }

    /// The client's next message; `None` when it is gone. Cancel safe.
    pub(super) async fn receive(&mut self) -> Option<FromClient> {
        loop {
            match self.0.next().await? {
                Ok(Message::Binary(data)) => return Some(decode(&data)),
                Ok(Message::Text(text)) => return Some(decode(text.as_bytes())),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Ok(Message::Close(_)) | Err(_) => return None,
            }
        }
    }

    /// Returns whether the client is still there.
    pub(super) async fn send(&mut self, channel: u8, data: &[u8]) -> bool {
        let mut message = Vec::with_capacity(data.len() + 1);
        message.push(channel);
        message.extend_from_slice(data);
        self.0.send(Message::Binary(message.into())).await.is_ok()
    }

    /// Says how it ended, and ends.
    pub(super) async fn finish(mut self, status: &Value) {
        self.send(ERROR, status.to_string().as_bytes()).await;
        let normal = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        if self.0.close(Some(normal)).await.is_ok() {
            // The client closes, too; it must not find the connection gone before.
            let answer = async { while self.receive().await.is_some() {} };
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, answer).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_by_their_channel() {
        assert_eq!(decode(b"\x00ls\n"), FromClient::Stdin("ls\n".into()));
        assert_eq!(
            decode(b"\x04{\"Width\":80,\"Height\":24}"),
            FromClient::Resize { width: 80, height: 24 }
        );
        assert_eq!(decode(b"\xff\x00"), FromClient::StdinClosed);
        for other in [&b""[..], b"\x04nonsense", b"\xff\x01", b"\x09"] {
            assert_eq!(decode(other), FromClient::Other);
        }
    }
}
