//! TLS between the processes of a cluster. Keys and certificates are files of mounted Secrets and ConfigMaps, which the
//! kubelet replaces while we run; nothing is restarted for that, and open connections stay open.
//!
//! ```text
//!  Secret      ──mounted──► DIR/tls.crt, DIR/tls.key ──► Identity ──┐
//!  ConfigMap   ──mounted──► FILE (PEM bundle) ─────────► Authorities ──► Trust (and which common names) ──┐
//!                                └── Files::follow (inotify) replaces both in place                       │
//!  server(identity, Clients::{Anyone | Optional(trust) | Required(trust)}) ──► ServerTls ◄────────────────┤
//!  client(identity, trust) ──► rustls::ClientConfig: the peer is known by its common name ◄───────────────┘
//! ```
//!
//! A process does
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use ferrovirt_runtime::supervisor::Supervisor;
//! use ferrovirt_runtime::tls::{self, Clients, Files, Trust};
//!
//! let mut parts = Supervisor::default();
//! let mut files = Files::default();
//! let identity = files.identity("/etc/virt-handler/servercertificates")?;
//! let authorities = files.authorities("/etc/kubevirt-ca/ca-bundle")?;
//! let trust = Trust::new(authorities, ["kubevirt.io:system:client:virt-api"]);
//! let tls = tls::server(&identity, Clients::Required(trust), &["http/1.1"])?; // for crate::http::serve
//! parts.critical("certificates", files.follow(parts.token()));
//! # Ok(()) }
//! ```
//!
//! Sessions are never resumed: each connection is judged by the certificates and authorities of its own time.

mod files;
mod identity;
#[cfg(test)]
mod tests;
mod trust;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem;
use rustls::{ClientConfig, ServerConfig, ServerConnection};

pub use files::Files;
pub use identity::Identity;
pub use trust::{Authorities, Peer, Trust};
use trust::{ClientVerifier, ServerVerifier};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What should be PEM is not.
    #[error("{what} is not PEM")]
    Pem {
        /// Which text.
        what: String,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// There is no certificate in it.
    #[error("{what} holds no certificate")]
    Empty {
        /// Which text.
        what: String,
    },
    /// Certificate and key do not fit, or cannot be used.
    #[error("{what} cannot be used")]
    Unusable {
        /// Which text.
        what: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Changes of files cannot be seen.
    #[error("cannot watch {path} for changes")]
    Watch {
        /// Which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The cryptography of every connection.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a server asks of its clients.
#[derive(Clone, Debug)]
pub enum Clients {
    /// No certificate is asked for.
    Anyone,
    /// Who shows a certificate that is trusted becomes a [`Peer`]; others are served without one. What a
    /// certificate that is not trusted says is not looked at.
    Optional(Trust),
    /// Without a trusted certificate there is no connection.
    Required(Trust),
}

/// How a server speaks TLS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    clients: Clients,
}

impl ServerTls {
    /// For `tokio_rustls::TlsAcceptor`.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Who is at the other end, if a certificate has proved it. Call it once, when the handshake is done.
    #[must_use]
    pub fn peer(&self, connection: &ServerConnection) -> Option<Peer> {
        let (Clients::Optional(trust) | Clients::Required(trust)) = &self.clients else {
            return None;
        };
        match trust.client(connection.peer_certificates()?) {
            Ok(peer) => Some(peer),
            Err(error) => {
                tracing::debug!(%error, "a client's certificate is not trusted");
                None
            }
        }
    }
}

/// A server that shows `identity` and speaks one of `protocols` (ALPN names, the preferred one first).
///
/// # Errors
/// The cryptography is not available.
pub fn server(identity: &Identity, clients: Clients, protocols: &[&str]) -> Result<ServerTls, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unavailable)?;
    let builder = match &clients {
        Clients::Anyone => builder.with_no_client_auth(),
        Clients::Optional(_) => builder.with_client_cert_verifier(Arc::new(ClientVerifier::optional())),
        Clients::Required(trust) => {
            builder.with_client_cert_verifier(Arc::new(ClientVerifier::required(trust.clone())))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(ServerTls {
        config: Arc::new(config),
        clients,
    })
}

/// A client that shows `identity`, if any, and talks to whom `trust` knows by common name. The name or address that
/// is dialed does not matter.
///
/// # Errors
/// The cryptography is not available.
pub fn client(identity: Option<&Identity>, trust: Trust, protocols: &[&str]) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unavailable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier(Some(trust))));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity.clone())),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A client that shows `identity` to servers whose certificates nobody can judge: it is for them to know who calls, and
/// the line between the two is otherwise secured. Like a guest's on its own node, which only the node's kernel carries.
///
/// # Errors
/// The cryptography is not available.
pub fn client_of_strangers(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unavailable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier(None)))
        .with_client_cert_resolver(Arc::new(identity.clone()));
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn unavailable(source: rustls::Error) -> TlsError {
    TlsError::Unusable {
        what: "TLS".to_owned(),
        source,
    }
}
