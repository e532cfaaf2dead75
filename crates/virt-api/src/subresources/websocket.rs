//! Websockets of KubeVirt's streams: subprotocol `plain.kubevirt.io`, raw bytes in binary frames.
//!
//! ```text
//! request ──check──► Handshake ──(the other end is connected first)──► 101 ──hyper hands over──► pump
//!            └ 400                              └ 4xx/5xx Status          until either end closes,
//!                                                                         or nothing is heard for 60 s
//! ```

use std::time::Duration;

use axum::body::Body;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::status::{self, Refusal};

/// What both ends have to speak.
pub(crate) const SUBPROTOCOL: &str = "plain.kubevirt.io";
/// The server pings this often, so that a dead client is noticed and middle boxes keep the connection.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A client that is silent (it does not even answer pings) for so long is gone.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// How long the client may take to answer our close frame.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How long hyper may take to hand the connection over.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// The largest frame that a client may send.
const MAX_MESSAGE: usize = 1 << 20;
/// Bytes read from the guest at once: holds any UDP datagram.
const CHUNK: usize = 64 * 1024;

/// A request that asks properly for a websocket, and has not been answered.
pub(crate) struct Handshake {
    on_upgrade: OnUpgrade,
    accept: String,
    subprotocol: bool,
}

/// Looks whether a request asks for a websocket.
///
/// # Errors
/// 400 that says what is missing.
pub(crate) fn handshake(request: &mut Request<Body>) -> Result<Handshake, Refusal> {
    let headers = request.headers();
    if !has_token(headers, header::CONNECTION, "upgrade") || !has_token(headers, header::UPGRADE, "websocket") {
        return Err(status::bad_request("this is a stream: ask for an upgrade to websocket"));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(status::bad_request("Sec-WebSocket-Version must be 13"));
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return Err(status::bad_request("Sec-WebSocket-Key is missing"));
    };
    let accept = derive_accept_key(key.as_bytes());
    let subprotocol = has_token(headers, header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    if !subprotocol && headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Err(status::bad_request(format!(
            "Sec-WebSocket-Protocol must offer {SUBPROTOCOL}"
        )));
    }
    let on_upgrade = request
        .extensions_mut()
        .remove::<OnUpgrade>()
        .ok_or_else(|| status::bad_request("this connection cannot be upgraded: use HTTP/1.1"))?;
    Ok(Handshake {
        on_upgrade,
        accept,
        subprotocol,
    })
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

impl Handshake {
    /// The 101 answer. From then on the client and `far` are joined, in a task of its own, until one of them ends;
    /// `while_open` is dropped then.
    pub(crate) fn join<D, G>(self, what: String, far: D, while_open: G) -> Response<Body>
    where
        D: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        G: Send + 'static,
    {
        let on_upgrade = self.on_upgrade;
        tokio::spawn(async move {
            let _while_open = while_open;
            let upgraded = match timeout(HANDSHAKE_DEADLINE, on_upgrade).await {
                Ok(Ok(upgraded)) => upgraded,
                Ok(Err(error)) => {
                    tracing::debug!(stream = what, %error, "the client left before the stream began");
                    return;
                }
                Err(_) => {
                    tracing::debug!(stream = what, "the connection was not handed over in time");
                    return;
                }
            };
            let config = WebSocketConfig::default()
                .read_buffer_size(CHUNK)
                .max_message_size(Some(MAX_MESSAGE))
                .max_frame_size(Some(MAX_MESSAGE));
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
            let end = pump(socket, far).await;
            tracing::debug!(stream = what, ?end, "stream ended");
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if self.subprotocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        }
        response
    }
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client closed, vanished or broke the protocol.
    Client,
    /// Nothing was heard from the client for the read deadline.
    Silence,
    /// The guest's end closed.
    Guest,
}

/// Copies both ways until an end closes.
async fn pump<S, D>(socket: WebSocketStream<S>, far: D) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(far);
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        let mut ping = interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Both arms are cancel-safe: a read that was not taken has read nothing.
            let message = tokio::select! {
                read = from_guest.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break End::Guest,
                    Ok(length) => Message::binary(buffer[..length].to_vec()),
                },
                _ = ping.tick() => Message::Ping(Vec::new().into()),
            };
            if to_client.send(message).await.is_err() {
                break End::Client;
            }
        }
    };
    let inward = async {
        loop {
            let data = match timeout(READ_DEADLINE, from_client.next()).await {
                Err(_) => break End::Silence,
                Ok(None | Some(Err(_) | Ok(Message::Close(_)))) => break End::Client,
                Ok(Some(Ok(Message::Binary(data)))) => data,
                Ok(Some(Ok(Message::Text(text)))) => text.into(),
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => continue,
            };
            if to_guest.write_all(&data).await.is_err() || to_guest.flush().await.is_err() {
                break End::Guest;
            }
        }
    };
    let end = tokio::select! {
        end = outward => end,
        end = inward => end,
    };
    // The guest's end is free for the next client at once, however slow this client says goodbye.
    drop((from_guest, to_guest));
    let deadline = Instant::now() + CLOSE_DEADLINE;
    let goodbye = async {
        if to_client.close().await.is_ok() {
            while let Some(Ok(_)) = from_client.next().await {}
        }
    };
    if tokio::time::timeout_at(deadline, goodbye).await.is_err() {
        tracing::debug!("the client did not answer the close frame");
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    async fn pair() -> (
        WebSocketStream<DuplexStream>,
        DuplexStream,
        tokio::task::JoinHandle<End>,
    ) {
        let (near, far) = duplex(1 << 16);
        let (guest, guest_far) = duplex(1 << 16);
        let server = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
        let client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        (client, guest, tokio::spawn(pump(server, guest_far)))
    }

    async fn data(client: &mut WebSocketStream<DuplexStream>) -> Vec<u8> {
        loop {
            match client.next().await.unwrap().unwrap() {
                Message::Binary(data) => return data.to_vec(),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_go_both_ways_and_the_guest_ends_it() {
        let (mut client, mut guest, task) = pair().await;
        client.send(Message::binary(b"\x00in\xff".to_vec())).await.unwrap();
        client.send(Message::text("text")).await.unwrap();
        let mut read = [0; 8];
        guest.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"\x00in\xfftext");
        guest.write_all(b"out").await.unwrap();
        assert_eq!(data(&mut client).await, b"out");
        drop(guest);
        while let Some(Ok(message)) = client.next().await {
            assert!(matches!(message, Message::Ping(_) | Message::Close(_)), "{message:?}");
        }
        assert_eq!(task.await.unwrap(), End::Guest);
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_closes() {
        let (mut client, mut guest, task) = pair().await;
        client.close(None).await.unwrap();
        while let Some(Ok(_)) = client.next().await {}
        assert_eq!(task.await.unwrap(), End::Client);
        assert_eq!(guest.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_given_up_and_a_live_one_is_not() {
        let (mut client, _guest, task) = pair().await;
        // Answers pings for longer than the deadline, by reading only.
        let live = timeout(READ_DEADLINE * 2, async {
            while let Some(Ok(_)) = client.next().await {}
        })
        .await;
        assert!(live.is_err(), "the stream ended although the client answers");
        // Stops reading, so it answers nothing.
        assert_eq!(task.await.unwrap(), End::Silence);
    }

    #[test]
    fn handshakes() {
        let full = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (without, expected) in [
            ("connection", "upgrade to websocket"),
            ("upgrade", "upgrade to websocket"),
            ("sec-websocket-version", "Version must be 13"),
            ("sec-websocket-key", "Key is missing"),
            ("nothing", "cannot be upgraded"),
        ] {
            let mut request = Request::new(Body::empty());
            for (name, value) in full.into_iter().filter(|(name, _)| *name != without) {
                request.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            let refusal = handshake(&mut request).err().unwrap();
            assert!(refusal.message.unwrap().contains(expected), "{without}");
        }
    }
}
