//! Connections from the node to programs in its guests, by virtual sockets (vsock(7)). Nothing but the node's kernel and
//! the guest's carries them.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ferrovirt_protocol::streams::{Duplex, StreamError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_vsock::{VsockAddr, VsockStream};

/// The hypervisor, the machine itself and the host have the context IDs below (vsock(7)).
const FIRST_GUEST: u32 = 3;
/// A guest that does not listen refuses at once; one that hangs does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What virt-handler shows to programs in guests; nothing where it has no certificate, as on a single machine.
#[derive(Clone, Default)]
pub(crate) struct Credentials(Arc<OnceLock<Arc<ClientConfig>>>);

impl Credentials {
    /// Shows this from now on. Only the first counts: its certificate is renewed in place.
    pub(crate) fn set(&self, config: Arc<ClientConfig>) {
        let _ = self.0.set(config);
    }
}

/// The context ID in a VMI's status, if a guest can have it.
pub(crate) fn context_id(status: Option<i64>) -> Option<u32> {
    let guest = |cid: &u32| (FIRST_GUEST..u32::MAX).contains(cid);
    status.and_then(|cid| u32::try_from(cid).ok()).filter(guest)
}

/// Connects to `port` of the guest with this context ID, which `who` is about.
///
/// # Errors
/// Nobody listens there, or, with `tls`, does not speak it, or there is no certificate to show.
pub(crate) async fn connect(
    who: &str,
    cid: Option<u32>,
    port: u32,
    tls: bool,
    credentials: &Credentials,
) -> Result<Box<dyn Duplex>, StreamError> {
    let cid =
        cid.ok_or_else(|| StreamError::Refused(format!("VirtualMachineInstance {who} has no virtual sockets")))?;
    let tls = if tls { Some(connector(credentials)?) } else { None };
    let failed = |source| StreamError::Connect {
        path: format!("port {port} of the virtual sockets of VirtualMachineInstance {who}"),
        source,
    };
    let stream = patiently(VsockStream::connect(VsockAddr::new(cid, port)))
        .await
        .map_err(failed)?;
    match tls {
        None => Ok(Box::new(stream)),
        Some(tls) => patiently(secured(&tls, stream)).await.map_err(failed),
    }
}

fn connector(credentials: &Credentials) -> Result<TlsConnector, StreamError> {
    let config = credentials.0.get().ok_or_else(|| {
        StreamError::Refused("this node has no certificate to show to guests; ask with tls=false".to_owned())
    })?;
    Ok(TlsConnector::from(Arc::clone(config)))
}

/// The guest learns who calls; what it shows itself cannot be judged.
async fn secured(tls: &TlsConnector, stream: impl Duplex + 'static) -> io::Result<Box<dyn Duplex>> {
    let name = ServerName::try_from("vsock").map_err(io::Error::other)?;
    Ok(Box::new(tls.connect(name, stream).await?))
}

async fn patiently<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let connected = timeout(PATIENCE, connecting).await;
    connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the guest does not answer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_guests_are_reached() {
        for (status, expected) in [
            (None, None),
            (Some(-1), None),
            (Some(0), None),
            (Some(1), None),
            (Some(2), None),
            (Some(3), Some(3)),
            (Some(i64::from(u32::MAX)), None),
            (Some(i64::MAX), None),
        ] {
            assert_eq!(context_id(status), expected, "{status:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_before_anything_is_connected() {
        let credentials = Credentials::default();
        for (cid, tls, expected) in [
            (None, false, "has no virtual sockets"),
            (Some(3), true, "ask with tls=false"),
        ] {
            let refused = connect("ns/vm", cid, 1024, tls, &credentials).await.map(drop);
            let Err(StreamError::Refused(why)) = refused else {
                panic!("{refused:?}");
            };
            assert!(why.contains(expected), "{why}");
        }
    }

    /// No guest has this context ID, and no host here carries virtual sockets: whatever the kernel says is passed on.
    #[tokio::test(start_paused = true)]
    async fn a_guest_that_is_not_there_is_named() {
        let refused = connect(
            "ns/vm",
            context_id(Some(0x7fff_fff0)),
            1024,
            false,
            &Credentials::default(),
        )
        .await;
        let error = refused.map(drop).unwrap_err();
        let StreamError::Connect { path, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(path, "port 1024 of the virtual sockets of VirtualMachineInstance ns/vm");
    }
}
