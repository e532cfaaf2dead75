//! Whom we believe: signed by an authority of ours, and by which name.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TlsError, provider};

/// Certificates of authorities, which may be replaced. Clones are the same authorities.
#[derive(Clone, Debug, Default)]
pub struct Authorities(Arc<RwLock<Arc<Roots>>>);

#[derive(Debug)]
struct Roots {
    store: Arc<RootCertStore>,
    /// None: there is no authority.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            store: Arc::new(RootCertStore::empty()),
            clients: None,
        }
    }
}

impl Authorities {
    /// From certificates as PEM.
    ///
    /// # Errors
    /// It is not PEM, or holds no certificate of an authority.
    pub fn from_pem(bundle: &[u8]) -> Result<Self, TlsError> {
        let authorities = Self::default();
        authorities.replace(bundle)?;
        Ok(authorities)
    }

    /// Replaces them, and says whether they are others.
    ///
    /// # Errors
    /// As for [`Self::from_pem`]; then they stay as they are.
    pub fn replace(&self, bundle: &[u8]) -> Result<bool, TlsError> {
        let roots = parse(bundle)?;
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = current.store.roots != roots.store.roots;
        *current = Arc::new(roots);
        Ok(changed)
    }

    fn current(&self) -> Arc<Roots> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn parse(bundle: &[u8]) -> Result<Roots, TlsError> {
    let what = || "the bundle of authorities".to_owned();
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|source| TlsError::Pem { what: what(), source })?;
        store
            .add(certificate)
            .map_err(|source| TlsError::Unusable { what: what(), source })?;
    }
    if store.is_empty() {
        return Err(TlsError::Empty { what: what() });
    }
    let store = Arc::new(store);
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), provider())
        .build()
        .map_err(|error| TlsError::Unusable {
            what: what(),
            source: Error::General(error.to_string()),
        })?;
    Ok(Roots {
        store,
        clients: Some(clients),
    })
}

/// Somebody whose certificate is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
}

/// Authorities, and the common names that may come with their signature. Clones are the same trust.
#[derive(Clone, Debug)]
pub struct Trust {
    authorities: Authorities,
    names: Arc<RwLock<Vec<String>>>,
}

impl Trust {
    /// Trusts who is signed by one of the authorities and has one of these names; without names, any name.
    pub fn new<N: Into<String>>(authorities: Authorities, names: impl IntoIterator<Item = N>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self {
            authorities,
            names: Arc::new(RwLock::new(names)),
        }
    }

    /// The authorities, to replace them.
    #[must_use]
    pub fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// Replaces the names; none means any.
    pub fn set_names(&self, names: Vec<String>) {
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Who a client is that has proved to own the first certificate of `chain`.
    ///
    /// # Errors
    /// It is not signed by an authority, is out of date, not meant for clients, or of another name.
    pub fn client(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let roots = self.authorities.current();
        let verifier = roots.clients.as_ref().ok_or(unknown)?;
        verifier.verify_client_cert(leaf, intermediates, UnixTime::now())?;
        self.named(leaf)
    }

    fn server(&self, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let roots = self.authorities.current();
        let algorithms = provider().signature_verification_algorithms;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, chain, now, algorithms.all)?;
        self.named(leaf).map(drop)
    }

    fn named(&self, leaf: &CertificateDer<'_>) -> Result<Peer, Error> {
        let peer = subject(leaf).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        if names.is_empty() || names.contains(&peer.common_name) {
            return Ok(peer);
        }
        Err(Error::General(format!(
            "the certificate is that of {:?}, expected {}",
            peer.common_name,
            names.join(" or ")
        )))
    }
}

fn subject(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    Some(Peer {
        common_name: subject.iter_common_name().next()?.as_str().ok()?.to_owned(),
        organizations: subject
            .iter_organization()
            .filter_map(|name| name.as_str().ok().map(str::to_owned))
            .collect(),
    })
}

/// Judges clients during the handshake, or only lets them prove that they own what they show.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    trust: Option<Trust>,
    provider: Arc<CryptoProvider>,
}

impl ClientVerifier {
    /// Any certificate or none; it is judged after the handshake.
    pub(super) fn optional() -> Self {
        Self {
            trust: None,
            provider: provider(),
        }
    }

    /// Only whom `trust` trusts.
    pub(super) fn required(trust: Trust) -> Self {
        Self {
            trust: Some(trust),
            provider: provider(),
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.trust.is_some()
    }

    /// None, else clients of the Go library would send a certificate only if its issuer is listed, and the list changes.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(trust) = &self.trust {
            let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
            trust.client(&chain)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Judges servers by their common name, or, without anybody to trust, not at all.
#[derive(Debug)]
pub(super) struct ServerVerifier(pub(super) Option<Trust>);

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.0 {
            trust.server(leaf, intermediates, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
