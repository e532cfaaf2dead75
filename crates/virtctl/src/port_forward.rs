//! `virtctl port-forward`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures::{SinkExt, StreamExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::cli;
use crate::connection::{Connection, explain};
use crate::listen;
use crate::ports::Forward;
use crate::target::{Kind, Target};
use crate::websocket::{self, End, Socket};
use crate::{note, say};

/// Datagrams of one client that wait for its stream; more are lost, as on any network.
const UDP_QUEUE: usize = 64;
/// The largest datagram.
const DATAGRAM: usize = 65_535;

/// Opens streams to one port of the guest.
#[derive(Clone)]
struct Far {
    connection: Connection,
    path: Arc<str>,
}

impl Far {
    fn new(connection: &Connection, arguments: &cli::PortForward, forward: Forward) -> anyhow::Result<Self> {
        let target = &arguments.target;
        let (kind, sub) = match (arguments.vsock, forward.udp) {
            (true, true) => bail!("--vsock has no udp"),
            // Only instances have one.
            (true, false) => (
                Kind::Vmi,
                format!("vsock?port={}&tls={}", forward.remote, arguments.vsock_tls),
            ),
            (false, _) => (
                target.kind,
                format!("portforward/{}/{}", forward.remote, forward.protocol()),
            ),
        };
        let path = connection.path(kind, &target.name, target.namespace.as_deref(), &sub)?;
        Ok(Self {
            connection: connection.clone(),
            path: path.into(),
        })
    }

    async fn open(&self) -> anyhow::Result<Socket> {
        websocket::open(&self.connection, &self.path).await
    }
}

/// Forwards until it is interrupted, or, with standard input and output, until one side closes.
pub(crate) async fn run(connection: &Connection, arguments: &cli::PortForward) -> anyhow::Result<()> {
    let target = &arguments.target;
    if arguments.stdio {
        let [forward] = arguments.ports.as_slice() else {
            bail!("--stdio joins exactly one port with standard input and output");
        };
        return stdio(&Far::new(connection, arguments, *forward)?, target, *forward).await;
    }
    let mut tasks = JoinSet::new();
    for forward in &arguments.ports {
        let far = Far::new(connection, arguments, *forward)?;
        let wanted = (listen::host(&arguments.address), forward.local);
        let remote = forward.remote;
        let address = if forward.udp {
            let socket = UdpSocket::bind(wanted)
                .await
                .with_context(|| format!("cannot listen on udp {}:{}", wanted.0, wanted.1))?;
            let address = socket.local_addr().context("cannot find out the local port")?;
            tasks.spawn(udp(Arc::new(socket), far));
            address
        } else {
            let listener = listen::tcp(&arguments.address, forward.local).await?;
            let address = listener.local_addr().context("cannot find out the local port")?;
            tasks.spawn(tcp(listener, far));
            address
        };
        say(format_args!(
            "Forwarding {} from {address} -> {remote}",
            forward.protocol()
        ))?;
    }
    match tasks.join_next().await {
        Some(ended) => ended.context("a forwarder failed")?,
        None => Ok(()),
    }
}

async fn stdio(far: &Far, target: &Target, forward: Forward) -> anyhow::Result<()> {
    let what = || format!("port {} of {}/{}", forward.remote, target.kind.short(), target.name);
    let socket = far.open().await.with_context(|| format!("cannot reach {}", what()))?;
    match websocket::pump(socket, tokio::io::stdin(), tokio::io::stdout(), None).await {
        End::Broken => bail!("the connection to {} broke", what()),
        End::Local | End::Output | End::Closed => Ok(()),
    }
}

async fn tcp(listener: TcpListener, far: Far) -> anyhow::Result<()> {
    loop {
        let (accepted, client) = listener.accept().await.context("cannot accept connections")?;
        let far = far.clone();
        // Ends with its connection, or with the process.
        tokio::spawn(async move {
            match far.open().await {
                Ok(socket) => {
                    let (read, write) = accepted.into_split();
                    websocket::pump(socket, read, write, None).await;
                }
                Err(error) => note(format_args!("cannot serve {client}: {}", explain(&error))),
            }
        });
    }
}

/// One stream per client address, since the guest answers to a client.
async fn udp(socket: Arc<UdpSocket>, far: Far) -> anyhow::Result<()> {
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (length, client) = socket
            .recv_from(&mut buffer)
            .await
            .context("cannot receive datagrams")?;
        let datagram = buffer[..length].to_vec();
        clients.retain(|_, queue| !queue.is_closed());
        let queue = clients.entry(client).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(UDP_QUEUE);
            let (socket, far) = (socket.clone(), far.clone());
            tokio::spawn(async move {
                if let Err(error) = udp_client(&socket, client, &far, receiver).await {
                    note(format_args!("cannot serve {client}: {}", explain(&error)));
                }
            });
            sender
        });
        // A full queue loses the datagram.
        let _ = queue.try_send(datagram);
    }
}

async fn udp_client(
    local: &UdpSocket,
    client: SocketAddr,
    far: &Far,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> anyhow::Result<()> {
    let (mut to_guest, mut from_guest) = far.open().await?.split();
    loop {
        tokio::select! {
            datagram = queue.recv() => match datagram {
                Some(datagram) => to_guest.send(Message::binary(datagram)).await?,
                None => return Ok(()),
            },
            message = from_guest.next() => match message {
                Some(Ok(Message::Binary(datagram))) => {
                    local.send_to(&datagram, client).await?;
                }
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            },
        }
    }
}
