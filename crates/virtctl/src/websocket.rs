//! Streams: websockets with subprotocol `plain.kubevirt.io`, over the same connection settings as requests.

use anyhow::{Context, bail};
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::connection::Connection;

/// What both ends speak.
const SUBPROTOCOL: &str = "plain.kubevirt.io";
/// Bytes read at once; holds any UDP datagram.
const CHUNK: usize = 64 * 1024;

/// An open stream.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Opens a stream. The server's refusals are `kube::Error::Api`.
pub(crate) async fn open(connection: &Connection, path: &str) -> anyhow::Result<Socket> {
    let key = generate_key();
    let request = Request::get(path)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .body(Body::empty())
        .context("cannot build the request")?;
    let response = connection.send(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(response).await);
    }
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accepted.map(HeaderValue::as_bytes) != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        bail!("the server answered with a wrong websocket handshake");
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .context("the connection broke during the handshake")?;
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
}

async fn refused(response: http::Response<Body>) -> anyhow::Error {
    let code = response.status();
    let bytes = match response.into_body().collect_bytes().await {
        Ok(bytes) => bytes,
        Err(error) => return anyhow::Error::new(error).context(format!("the server answered with {code}")),
    };
    match serde_json::from_slice::<kube::core::Status>(&bytes) {
        Ok(status) => kube::Error::Api(status.boxed()).into(),
        Err(_) => {
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim();
            let more = if text.is_empty() {
                String::new()
            } else {
                format!(": {text}")
            };
            anyhow::anyhow!("the server refused the stream with {code}{more}")
        }
    }
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The input ended, or had the escape byte.
    Local,
    /// The output cannot be written any more.
    Output,
    /// The server closed the stream.
    Closed,
    /// The connection broke.
    Broken,
}

/// Copies both ways until an end closes. `escape` in the input ends the stream and is not sent.
pub(crate) async fn pump<S, R, W>(socket: WebSocketStream<S>, mut input: R, mut output: W, escape: Option<u8>) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut to_server, mut from_server) = socket.split();
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = match input.read(&mut buffer).await {
                Ok(0) | Err(_) => break End::Local,
                Ok(length) => length,
            };
            let data = &buffer[..length];
            let stop = escape.and_then(|escape| data.iter().position(|byte| *byte == escape));
            let data = &data[..stop.unwrap_or(length)];
            if !data.is_empty() && to_server.send(Message::binary(data.to_vec())).await.is_err() {
                break End::Broken;
            }
            if stop.is_some() {
                break End::Local;
            }
        }
    };
    let inward = async {
        loop {
            let data = match from_server.next().await {
                None | Some(Ok(Message::Close(_))) => break End::Closed,
                Some(Err(_)) => break End::Broken,
                Some(Ok(Message::Binary(data))) => data,
                Some(Ok(Message::Text(text))) => text.into(),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            };
            if output.write_all(&data).await.is_err() || output.flush().await.is_err() {
                break End::Output;
            }
        }
    };
    let end = tokio::select! {
        end = outward => end,
        end = inward => end,
    };
    let goodbye = async { to_server.close().await };
    // The other side may be gone already; it notices anyway.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), goodbye).await;
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn the_escape_byte_ends_the_stream() {
        let (near, far) = duplex(1024);
        let client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let mut server = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        let (mut keys, input) = duplex(64);
        let task = tokio::spawn(pump(client, input, tokio::io::sink(), Some(29)));
        keys.write_all(b"ab\x1dcd").await.unwrap();
        assert_eq!(server.next().await.unwrap().unwrap(), Message::binary(b"ab".to_vec()));
        assert!(matches!(server.next().await.unwrap().unwrap(), Message::Close(_)));
        assert_eq!(task.await.unwrap(), End::Local);
    }

    #[tokio::test]
    async fn the_server_ends_the_stream() {
        let (near, far) = duplex(1024);
        let client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let mut server = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        let (_keys, input) = duplex(64);
        let (output, mut screen) = duplex(64);
        let task = tokio::spawn(pump(client, input, output, Some(29)));
        server.send(Message::binary(b"login:".to_vec())).await.unwrap();
        server.close(None).await.unwrap();
        let mut shown = [0; 6];
        screen.read_exact(&mut shown).await.unwrap();
        assert_eq!(&shown, b"login:");
        assert_eq!(task.await.unwrap(), End::Closed);
    }
}
