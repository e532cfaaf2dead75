//! `portforward`: the client's websocket joined with a connection to the guest's first address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use ferrovirt_api::v1::VirtualMachineInstance;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::route::Transport;
use super::{Subresources, Target, vmi, websocket};
use crate::status::{self, Refusal};

/// A guest that drops the packets must not hold the request for minutes.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);

impl Subresources {
    pub(super) async fn port_forward(
        &self,
        target: &Target,
        port: u16,
        transport: Transport,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        let address = SocketAddr::new(address(target, &self.vmi(target).await?)?, port);
        let handshake = websocket::handshake(&mut request)?;
        let what = format!("port {address} of {}/{}", target.namespace, target.name);
        let failed = |error: io::Error| status::internal(format!("dialing VM: {address}: {error}"));
        match transport {
            Transport::Tcp => {
                let dialed = timeout(DIAL_DEADLINE, TcpStream::connect(address)).await;
                let connection = dialed
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(failed)?;
                connection.set_nodelay(true).map_err(failed)?;
                Ok(handshake.join(what, connection))
            }
            Transport::Udp => Ok(handshake.join(what, Datagrams::connect(address).await.map_err(failed)?)),
        }
    }
}

/// Where the guest is reached, if it can be.
fn address(target: &Target, found: &VirtualMachineInstance) -> Result<IpAddr, Refusal> {
    if vmi::phase(found) != "Running" {
        return Err(target.conflict("VMI is not running"));
    }
    if vmi::condition(found, "Paused") {
        return Err(target.conflict("VMI is paused"));
    }
    let interfaces = found.status.iter().flat_map(|status| &status.interfaces);
    let Some(interface) = interfaces.into_iter().next() else {
        return Err(status::bad_request("no network interfaces are present"));
    };
    let text = interface.ip_address.as_deref().unwrap_or_default();
    let bare = text.split('/').next().unwrap_or_default();
    bare.parse().map_err(|_| {
        status::bad_request(format!(
            "status.interfaces[0].ipAddress: {text:?} is no IP address (yet): the guest cannot be reached"
        ))
    })
}

/// A connected UDP socket as a stream: each read is one datagram, each write is one.
struct Datagrams(UdpSocket);

impl Datagrams {
    async fn connect(address: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if address.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(address).await?;
        Ok(Self(socket))
    }
}

impl AsyncRead for Datagrams {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            ready!(self.0.poll_recv(context, buffer))?;
            // An empty datagram would look like the end of the stream.
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Datagrams {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_send(context, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subresources::vmi::tests::{target, vmi};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn where_a_guest_is() {
        let at = |text: &str| json!([{"name": "default", "ipAddress": text}, {"ipAddress": "10.9.9.9"}]);
        let paused = json!([{"type": "Paused", "status": "True"}]);
        let rows = [
            ("Running", json!([]), at("10.0.0.5"), Ok("10.0.0.5")),
            ("Running", json!([]), at("fd00::5/64"), Ok("fd00::5")),
            ("Running", json!([]), json!([]), Err(400)),
            ("Running", json!([]), at(""), Err(400)),
            ("Running", paused, at("10.0.0.5"), Err(409)),
            ("Scheduled", json!([]), at("10.0.0.5"), Err(409)),
        ];
        for (phase, conditions, interfaces, expected) in rows {
            let status = json!({"phase": phase, "conditions": conditions, "interfaces": interfaces});
            let found = vmi(&json!({"domain": {"devices": {}}}), &status);
            let got = address(&target(), &found).map_err(|refusal| refusal.code.unwrap());
            assert_eq!(got, expected.map(|text| text.parse().unwrap()), "{status}");
        }
    }

    #[tokio::test]
    async fn datagrams_keep_their_borders() {
        let guest = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut stream = Datagrams::connect(guest.local_addr().unwrap()).await.unwrap();
        stream.write_all(b"one").await.unwrap();
        stream.write_all(b"two").await.unwrap();
        let mut buffer = [0; 16];
        let (length, from) = guest.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"one");
        let (length, _) = guest.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"two");
        guest.send_to(b"", from).await.unwrap();
        guest.send_to(b"answer", from).await.unwrap();
        let length = stream.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"answer");
    }
}
