//! `portforward`: the client's websocket joined with a connection to the guest's first address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use ferrovirt_core::vmi::actions::{VmiAction, first_address};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::route::{Kind, Transport};
use super::{Subresources, Target, websocket};
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
        if target.kind == Kind::VirtualMachine {
            self.started(target).await?;
        }
        let address = SocketAddr::new(
            address(first_address(&self.admitted(target, VmiAction::PortForward).await?))?,
            port,
        );
        let handshake = websocket::handshake(&mut request)?;
        let what = format!("port {address} of {}/{}", target.namespace, target.name);
        let failed = |error: io::Error| status::internal(dialed(target, address, &error));
        let session = self.sessions.ports.begin(target);
        match transport {
            Transport::Tcp => {
                let connection = timeout(DIAL_DEADLINE, TcpStream::connect(address)).await;
                let connection = connection
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(failed)?;
                connection.set_nodelay(true).map_err(failed)?;
                Ok(handshake.join(what, connection, session))
            }
            Transport::Udp => {
                let datagrams = Datagrams::connect(address).await.map_err(failed)?;
                Ok(handshake.join(what, datagrams, session))
            }
        }
    }
}

/// What a user is told when the guest does not answer.
fn dialed(target: &Target, address: SocketAddr, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing in the guest listens on this port".to_owned(),
        io::ErrorKind::TimedOut => format!("no answer within {} s", DIAL_DEADLINE.as_secs()),
        _ => error.to_string(),
    };
    format!("dialing VM {}/{} at {address}: {why}", target.namespace, target.name)
}

/// Where the guest is reached: status writes an address with or without its prefix length.
fn address(text: Option<&str>) -> Result<IpAddr, Refusal> {
    let text = text.unwrap_or_default();
    let bare = text.split('/').next().unwrap_or_default();
    bare.parse()
        .map_err(|_| status::bad_request(format!("status.interfaces: {text:?} is no IP address")))
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("10.0.0.5", Some("10.0.0.5")),
            ("fd00::5/64", Some("fd00::5")),
            ("x", None),
        ] {
            assert_eq!(
                address(Some(text)).ok(),
                expected.map(|text| text.parse().unwrap()),
                "{text}"
            );
        }
        assert_eq!(address(None).unwrap_err().code, Some(400));
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
