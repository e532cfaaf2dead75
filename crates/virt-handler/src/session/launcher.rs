//! The connection to one launcher, and proof that it is the one in the pod.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use ferrovirt_protocol::launcher::launcher_client::LauncherClient;
use ferrovirt_protocol::paths;
use hyper_util::rt::TokioIo;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::limits;
use super::peer::{self, Peer, PeerError, Place};
use crate::network::{Dns, NetworkNamespace};
use crate::{sockets, syscall};

/// Longest answer of a launcher that is listened to; the longest honest one holds a guest agent's report.
const MAX_ANSWER: usize = 1 << 20;
/// How much of what it says waits to be listened to, per call and in all.
const WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
/// Longest headers of an answer, with the words of a refusal among them.
const MAX_HEADERS: u32 = 16 << 10;

/// A launcher that was found to be its pod's.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    pub(crate) client: LauncherClient<Channel>,
    pub(crate) namespace: Arc<NetworkNamespace>,
    /// Of the pod.
    pub(crate) dns: Dns,
    pid: i32,
    process: Arc<AsyncFd<OwnedFd>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody listens.
    #[error("nobody listens on the launcher's socket")]
    Refused,
    /// Somebody listens who is not the pod's launcher.
    #[error("refused to talk to the process behind the launcher's socket: {0}")]
    Impostor(String),
    /// Anything else; worth another try.
    #[error("cannot connect to the launcher")]
    Io(#[source] io::Error),
    /// The HTTP/2 handshake failed.
    #[error("the launcher does not speak our protocol")]
    Handshake(#[source] tonic::transport::Error),
}

impl Launcher {
    /// Connects to the launcher of pod `pod_uid`.
    ///
    /// Guarantees: the process runs as `user`, in a network namespace of its own, and has the pod's `sockets`
    /// volume mounted where a launcher has it, so it is inside this pod.
    pub(crate) async fn connect(pods_dir: &Path, pod_uid: &str, user: u32) -> Result<Self, ConnectError> {
        let stream = match sockets::connect_beneath(pods_dir, &sockets::launcher_socket(pod_uid)).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(ConnectError::Refused),
            Err(error) => return Err(ConnectError::Io(error)),
        };
        let Seen {
            pid,
            process,
            namespace,
            dns,
        } = inspect(&stream, pods_dir, pod_uid, user)?;
        let process = syscall::await_process(process).map_err(ConnectError::Io)?;
        let client = LauncherClient::new(channel(stream).await.map_err(ConnectError::Handshake)?);
        Ok(Self {
            client: client.max_decoding_message_size(MAX_ANSWER),
            namespace: Arc::new(namespace),
            dns,
            pid,
            process: Arc::new(process),
        })
    }

    /// The root directory of its container. Keep it no longer than needed: it holds the container's file systems.
    pub(crate) fn root(&self) -> Result<File, PeerError> {
        peer::look(self.pid, self.process.get_ref(), |proc| File::open(proc.join("root")))
    }

    /// The mount namespace of its container.
    pub(crate) fn mount_namespace(&self) -> Result<File, PeerError> {
        peer::look(self.pid, self.process.get_ref(), |proc| File::open(proc.join("ns/mnt")))
    }

    /// The launcher and all that it has started.
    pub(crate) fn processes(&self) -> Result<Vec<i32>, PeerError> {
        peer::look(self.pid, self.process.get_ref(), |_| limits::family(self.pid))
    }

    /// Returns when the process is gone.
    pub(crate) async fn exited(&self) -> io::Result<()> {
        self.process.readable().await.map(drop)
    }
}

/// What was found out about the process behind a socket.
struct Seen {
    pid: i32,
    process: OwnedFd,
    namespace: NetworkNamespace,
    dns: Dns,
}

/// Whether this is the network namespace of the node, or of this agent.
fn is_nodes(namespace: &NetworkNamespace) -> io::Result<bool> {
    // Where the first process may not be looked into, the pod's spec must do (see the registry).
    let node = NetworkNamespace::open(Path::new("/proc/1/ns/net")).ok();
    let nodes = node.is_some_and(|node| node.id() == namespace.id());
    Ok(nodes || namespace.id() == NetworkNamespace::own()?.id())
}

impl From<PeerError> for ConnectError {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Impostor(why) => Self::Impostor(why),
            PeerError::Gone => Self::Refused,
            PeerError::Io(source) => Self::Io(source),
        }
    }
}

/// Looks at the process behind a connected socket.
fn inspect(stream: &UnixStream, pods_dir: &Path, pod_uid: &str, user: u32) -> Result<Seen, ConnectError> {
    let place = Place {
        pods_dir,
        pod_uid,
        volume: paths::SOCKETS_VOLUME,
        path: paths::SOCKETS_DIR,
    };
    let peer = Peer::of(stream, place, user)?;
    let (namespace, dns) = peer.look(|proc| {
        let namespace = NetworkNamespace::open(&proc.join("ns/net"))?;
        Ok((namespace, resolver(&File::open(proc.join("root"))?)))
    })?;
    if is_nodes(&namespace).map_err(ConnectError::Io)? {
        let why = "it is in the network namespace of the node";
        return Err(ConnectError::Impostor(why.to_owned()));
    }
    Ok(Seen {
        pid: peer.pid,
        process: peer.process,
        namespace,
        dns,
    })
}

/// The resolver settings that the pod was given. The file is the launcher's to forge, which harms only its guest.
fn resolver(root: &File) -> Dns {
    let read = || -> io::Result<String> {
        let file = sockets::open_in_root(root, "etc/resolv.conf", OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        let kind = SFlag::from_bits_truncate(fstat(&file)?.st_mode & SFlag::S_IFMT.bits());
        if kind != SFlag::S_IFREG {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut text = String::new();
        file.take(16 * 1024).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map(|text| Dns::parse(&text)).unwrap_or_default()
}

/// gRPC over a stream that is connected already. A channel never connects anew: that is the session's business,
/// because whoever answers then has to be looked at again.
async fn channel(stream: UnixStream) -> Result<Channel, tonic::transport::Error> {
    let mut once = Some(TokioIo::new(stream));
    let connector = service_fn(move |_: Uri| {
        let stream = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { stream }
    });
    Endpoint::from_static("http://launcher")
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .http2_max_header_list_size(MAX_HEADERS)
        .connect_with_connector(connector)
        .await
}
