//! DHCPv4 for the guest: one client, one address, never a pool.

mod reply;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use ferrovirt_core::machine::DhcpOptions;
use ferrovirt_protocol::launcher::Nic;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use tokio::net::UdpSocket;

pub use reply::{Lease, LeaseError};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Why DHCP cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What to serve does not make sense.
    #[error("DHCP for network {network:?} is described wrongly")]
    Lease {
        /// Network.
        network: String,
        /// What is wrong.
        #[source]
        source: LeaseError,
    },
    /// No socket.
    #[error("cannot serve DHCP for network {network:?} on {bridge}; it needs CAP_NET_BIND_SERVICE")]
    Socket {
        /// Network.
        network: String,
        /// Device.
        bridge: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Opens the server for one NIC; `None` if it wants no DHCP. Requests are queued from now on.
pub fn open(nic: &Nic, options: &DhcpOptions) -> Result<Option<Server>, Error> {
    if nic.dhcp.is_none() {
        return Ok(None);
    }
    let lease = Lease::new(nic, options).map_err(|source| Error::Lease {
        network: nic.network.clone(),
        source,
    })?;
    let socket = listen(&nic.bridge).map_err(|source| Error::Socket {
        network: nic.network.clone(),
        bridge: nic.bridge.clone(),
        source,
    })?;
    Ok(Some(Server {
        socket,
        lease,
        bridge: nic.bridge.clone(),
    }))
}

fn listen(bridge: &str) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::Broadcast, &true)?;
    setsockopt(&fd, sockopt::BindToDevice, &bridge.into())?;
    let any = SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT));
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &any)?;
    UdpSocket::from_std(fd.into())
}

/// A DHCP server for one guest NIC.
pub struct Server {
    socket: UdpSocket,
    lease: Lease,
    bridge: String,
}

impl Server {
    /// Answers until the process ends. What is not understood or not from the guest is ignored.
    pub async fn run(self) {
        let mut packet = [0; 1500];
        let client = SocketAddr::from((Ipv4Addr::BROADCAST, CLIENT_PORT));
        loop {
            let length = match self.socket.recv_from(&mut packet).await {
                Ok((length, _)) => length,
                Err(error) => {
                    tracing::warn!(bridge = self.bridge, %error, "DHCP: cannot receive");
                    continue;
                }
            };
            let Some(answer) = self.lease.answer(&packet[..length]) else {
                continue;
            };
            if let Err(error) = self.socket.send_to(&answer, client).await {
                tracing::warn!(bridge = self.bridge, %error, "DHCP: cannot answer");
            }
        }
    }
}
