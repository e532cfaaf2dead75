//! Byte streams into a guest: console, VNC, USB redirection, virtual sockets.

use std::time::Duration;

use async_trait::async_trait;
use ferrovirt_api::v1::{SEVMeasurementInfo, SEVPlatformInfo, SEVSecretOptions};
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of raw bytes, both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Which of a guest's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The first serial port.
    Console,
    /// The display, RFB (RFC 6143).
    Vnc {
        /// Refuse when somebody is connected, instead of taking over.
        preserve_session: bool,
    },
    /// A free port of USB redirection.
    UsbRedir,
    /// A program in the guest that listens on its virtual socket device (vsock(7)).
    Vsock {
        /// On this port.
        port: u32,
        /// It speaks TLS, and wants to see virt-handler's certificate.
        tls: bool,
    },
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The VMI does not run on this node.
    #[error("VirtualMachineInstance {0} has no guest on this node")]
    NotHere(String),
    /// Somebody is connected and asked to stay so.
    #[error("there is an active session to {0}")]
    Busy(String),
    /// The socket could not be reached.
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The guest's end was reached and said no.
    #[error("{0}")]
    Refused(String),
    /// The VMI's node was not reached.
    #[error("cannot reach virt-handler on node {node}")]
    Unreachable {
        /// Which node.
        node: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What virt-api asks the node of a VMI for. In the embedded home virt-handler is called directly;
/// on a cluster the same verbs travel over mutual TLS.
#[async_trait]
pub trait NodeAgent: Send + Sync + 'static {
    /// Opens a stream. A second client of the same stream closes the first one, unless it preserves the session.
    ///
    /// # Errors
    /// See [`StreamError`].
    async fn stream(&self, namespace: &str, vmi: &str, stream: Stream) -> Result<Box<dyn Duplex>, StreamError>;

    /// Does one thing to a guest and waits until it is done.
    ///
    /// # Errors
    /// The guest is not here, or the launcher refused.
    async fn act(&self, namespace: &str, vmi: &str, action: crate::launcher::Action) -> Result<(), StreamError>;

    /// Freezes the guest's file systems, and waits until it is done. They thaw after `thaw_after` in any case, if
    /// that is not zero.
    ///
    /// # Errors
    /// The guest is not here, or its agent does not do it.
    async fn freeze(&self, namespace: &str, vmi: &str, thaw_after: Duration) -> Result<(), StreamError>;

    /// The guest's screen as a PNG. With `move_cursor` one that is asleep is woken first.
    ///
    /// # Errors
    /// The guest is not here, or shows nothing.
    async fn screenshot(&self, namespace: &str, vmi: &str, move_cursor: bool) -> Result<Vec<u8>, StreamError>;

    /// JSON of `launcher.GuestInfoReply`.
    ///
    /// # Errors
    /// The guest is not here, or its agent does not answer.
    async fn guest_info(&self, namespace: &str, vmi: &str) -> Result<serde_json::Value, StreamError>;

    /// The AMD SEV of the guest's node; the guest need not have been started.
    ///
    /// # Errors
    /// The guest is not here, or the node has no SEV.
    async fn sev_platform(&self, namespace: &str, vmi: &str) -> Result<SEVPlatformInfo, StreamError>;

    /// What AMD's firmware measured when the guest was started.
    ///
    /// # Errors
    /// The guest is not here, or has no SEV.
    async fn sev_measurement(&self, namespace: &str, vmi: &str) -> Result<SEVMeasurementInfo, StreamError>;

    /// Gives a guest that is still paused a secret of its owner.
    ///
    /// # Errors
    /// The guest is not here, runs, or AMD's firmware does not take the secret.
    async fn sev_secret(&self, namespace: &str, vmi: &str, secret: SEVSecretOptions) -> Result<(), StreamError>;
}
