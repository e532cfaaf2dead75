//! A certificate and its key, which may be replaced.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{TlsError, provider};

/// Who we are. Clones are the same identity: all see a replacement, from the next handshake on.
#[derive(Clone, Debug)]
pub struct Identity(Arc<RwLock<Arc<CertifiedKey>>>);

impl Identity {
    /// From a chain of certificates, our own first, and its private key, both as PEM.
    ///
    /// # Errors
    /// It is not PEM, or the key is not that of the certificate.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        parse(certificates, key).map(|parsed| Self(Arc::new(RwLock::new(parsed))))
    }

    /// Replaces it, and says whether the certificates are others.
    ///
    /// # Errors
    /// As for [`Self::from_pem`]; then it stays as it is.
    pub fn replace(&self, certificates: &[u8], key: &[u8]) -> Result<bool, TlsError> {
        let parsed = parse(certificates, key)?;
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = current.cert != parsed.cert;
        *current = parsed;
        Ok(changed)
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn parse(certificates: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificates)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem {
            what: "the certificate".to_owned(),
            source,
        })?;
    if chain.is_empty() {
        return Err(TlsError::Empty {
            what: "the certificate".to_owned(),
        });
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem {
        what: "the private key".to_owned(),
        source,
    })?;
    // Looks whether the key is that of the certificate: a mount may be read between the change of the one and the other.
    CertifiedKey::from_der(chain, key, &provider())
        .map(Arc::new)
        .map_err(|source| TlsError::Unusable {
            what: "the certificate with its key".to_owned(),
            source,
        })
}
