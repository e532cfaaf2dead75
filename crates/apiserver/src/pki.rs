//! Certificates of a server that is its own authority: made once, kept in a directory, renewed when they near their end.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{ToSpan, Zoned};
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::hooks::UserInfo;

const CA_YEARS: i64 = 10;
const LEAF_YEARS: i64 = 2;
/// Certificates are renewed this long before they end.
const RENEW_SECONDS: i64 = 60 * 86_400;

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make the certificate of {name}")]
    Make {
        /// Whose.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A stored certificate or key is damaged.
    #[error("{path} is damaged: {message}; remove the directory to have new certificates made")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// TLS refuses the certificates.
    #[error("cannot serve with these certificates: {0}")]
    Tls(String),
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// The authority, and what it has signed.
pub struct Pki {
    directory: PathBuf,
    authority: Identity,
    serving: Identity,
    admin: Identity,
    token_key: Vec<u8>,
}

impl Pki {
    /// Reads the certificates of a directory; makes what is missing, about to end, or does not cover `names` (beside
    /// `localhost`, `127.0.0.1`, `::1` and the service names). Private files have mode 0600.
    ///
    /// # Errors
    /// The directory cannot be used, or its authority is damaged.
    pub fn load_or_create(directory: &Path, names: &[String]) -> Result<Self, PkiError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::File { path, source }
        };
        fs::create_dir_all(directory).map_err(failed(directory))?;
        let authority = load(directory, "ca")?
            .filter(|found| lasts(&found.certificate))
            .map_or_else(
                || {
                    let made = make_authority()?;
                    store(directory, "ca", &made)?;
                    Ok(made)
                },
                Ok,
            )?;
        let mut all: Vec<String> = [
            "localhost",
            "127.0.0.1",
            "::1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ]
        .map(str::to_owned)
        .to_vec();
        all.extend(
            names
                .iter()
                .filter(|name| !["localhost", "127.0.0.1", "::1"].contains(&name.as_str()))
                .cloned(),
        );
        let serving = ensure(
            directory,
            "apiserver",
            &authority,
            |found| covers(found, &all),
            |issuer| leaf(issuer, "kube-apiserver", &[], &all),
        )?;
        let groups = ["system:masters"];
        let admin = ensure(
            directory,
            "admin",
            &authority,
            |_| true,
            |issuer| leaf(issuer, "kubernetes-admin", &groups, &[]),
        )?;
        let path = directory.join("token.key");
        let token_key = match fs::read(&path) {
            Ok(key) if key.len() >= 32 => key,
            _ => {
                let mut key = vec![0; 32];
                rand::rng().fill_bytes(&mut key);
                write_private(&path, &key).map_err(failed(&path))?;
                key
            }
        };
        Ok(Self {
            directory: directory.to_owned(),
            authority,
            serving,
            admin,
            token_key,
        })
    }

    /// The authority's certificate, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.authority.certificate
    }

    /// The identity of `kubernetes-admin`, member of `system:masters`.
    pub fn admin(&self) -> &Identity {
        &self.admin
    }

    /// The key for [`crate::Config::token_key`].
    pub fn token_key(&self) -> Vec<u8> {
        self.token_key.clone()
    }

    /// A new client certificate.
    ///
    /// # Errors
    /// The authority is damaged.
    pub fn client_identity(&self, user: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        let issuer = issuer(&self.directory, &self.authority)?;
        leaf(&issuer, user, groups, &[])
    }

    /// TLS for [`crate::ApiServer::serve`]: HTTP/2 and HTTP/1.1, client certificates of this authority welcome but not required.
    ///
    /// # Errors
    /// The certificates are damaged.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let tls = |error: &dyn std::fmt::Display| PkiError::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.authority.certificate.as_bytes()).map_err(|e| tls(&e))?;
        roots.add(ca).map_err(|e| tls(&e))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| tls(&e))?;
        let certificate = CertificateDer::from_pem_slice(self.serving.certificate.as_bytes()).map_err(|e| tls(&e))?;
        let key = PrivateKeyDer::from_pem_slice(self.serving.key.as_bytes()).map_err(|e| tls(&e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .map_err(|e| tls(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A kubeconfig of the administrator for a server such as `https://127.0.0.1:6443`; `name` names cluster and context.
    pub fn kubeconfig(&self, server: &str, name: &str) -> String {
        let encode = |text: &str| STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {name}\n\
             clusters:\n- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
             contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: kubernetes-admin\n    namespace: default\n\
             users:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            encode(&self.authority.certificate),
            encode(&self.admin.certificate),
            encode(&self.admin.key),
        )
    }

    /// Writes that kubeconfig with mode 0600.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, server: &str, name: &str) -> Result<(), PkiError> {
        write_private(path, self.kubeconfig(server, name).as_bytes()).map_err(|source| PkiError::File {
            path: path.to_owned(),
            source,
        })
    }
}

/// The user of a client certificate that TLS has verified: common name and organizations.
pub(crate) fn user_of(certificate: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let username = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok().map(str::to_owned))
        .collect();
    groups.push("system:authenticated".into());
    Some(UserInfo {
        username,
        groups,
        ..UserInfo::default()
    })
}

/// Replaces a file at once, readable by its owner only.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn load(directory: &Path, name: &str) -> Result<Option<Identity>, PkiError> {
    let read = |extension: &str| {
        let path = directory.join(format!("{name}.{extension}"));
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PkiError::File { path, source }),
        }
    };
    Ok(read("crt")?
        .zip(read("key")?)
        .map(|(certificate, key)| Identity { certificate, key }))
}

fn store(directory: &Path, name: &str, identity: &Identity) -> Result<(), PkiError> {
    // The key first: a certificate without its key would be found and believed.
    for (extension, text) in [("key", &identity.key), ("crt", &identity.certificate)] {
        let path = directory.join(format!("{name}.{extension}"));
        write_private(&path, text.as_bytes()).map_err(|source| PkiError::File {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn with_certificate<T>(pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    Some(read(&parsed))
}

fn lasts(pem: &str) -> bool {
    let until = jiff::Timestamp::now().as_second() + RENEW_SECONDS;
    with_certificate(pem, |certificate| certificate.validity().not_after.timestamp() > until).unwrap_or(false)
}

fn covers(pem: &str, names: &[String]) -> bool {
    let found = with_certificate(pem, |certificate| {
        let extension = certificate.subject_alternative_name().ok().flatten();
        let names = extension.iter().flat_map(|extension| &extension.value.general_names);
        names
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match bytes.len() {
                    4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
                    _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
                },
                _ => None,
            })
            .collect::<Vec<String>>()
    });
    found.is_some_and(|found| names.iter().all(|name| found.contains(name)))
}

fn signed_by(pem: &str, authority: &Identity) -> bool {
    with_certificate(&authority.certificate, |ca| {
        with_certificate(pem, |leaf| leaf.issuer() == ca.subject())
    })
    .flatten()
    .unwrap_or(false)
}

fn ensure(
    directory: &Path,
    name: &str,
    authority: &Identity,
    good: impl FnOnce(&str) -> bool,
    make: impl FnOnce(&Issuer<'_, KeyPair>) -> Result<Identity, PkiError>,
) -> Result<Identity, PkiError> {
    if let Some(found) = load(directory, name)?
        && lasts(&found.certificate)
        && signed_by(&found.certificate, authority)
        && good(&found.certificate)
    {
        return Ok(found);
    }
    let made = make(&issuer(directory, authority)?)?;
    store(directory, name, &made)?;
    Ok(made)
}

fn issuer<'a>(directory: &Path, authority: &Identity) -> Result<Issuer<'a, KeyPair>, PkiError> {
    let damaged = |error: rcgen::Error| PkiError::Damaged {
        path: directory.join("ca.key"),
        message: error.to_string(),
    };
    let key = KeyPair::from_pem(&authority.key).map_err(damaged)?;
    Issuer::from_ca_cert_pem(&authority.certificate, key).map_err(damaged)
}

fn parameters(name: &str, groups: &[&str], years: i64) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let now = Zoned::now();
    let day = |date: &Zoned| {
        date_time_ymd(
            i32::from(date.year()),
            u8::try_from(date.month()).unwrap_or(1),
            u8::try_from(date.day()).unwrap_or(1),
        )
    };
    // From yesterday, so that clocks may differ.
    parameters.not_before = day(&now.saturating_sub(1.day()));
    parameters.not_after = day(&now.saturating_add(years.years()));
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    for group in groups {
        distinguished.push(DnType::OrganizationName, *group);
    }
    parameters.distinguished_name = distinguished;
    parameters
}

fn make_authority() -> Result<Identity, PkiError> {
    // The name is new each time, so that what an earlier authority signed is recognized as foreign.
    let name = format!("ferrovirt-ca-{}", uuid::Uuid::new_v4().simple());
    let mut parameters = parameters(&name, &[], CA_YEARS);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let made = KeyPair::generate().and_then(|key| parameters.self_signed(&key).map(|certificate| (certificate, key)));
    let (certificate, key) = made.map_err(|source| PkiError::Make { name, source })?;
    Ok(Identity {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn leaf(issuer: &Issuer<'_, KeyPair>, name: &str, groups: &[&str], names: &[String]) -> Result<Identity, PkiError> {
    let failed = |source| PkiError::Make {
        name: name.to_owned(),
        source,
    };
    let mut parameters = parameters(name, groups, LEAF_YEARS);
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![if names.is_empty() {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    }];
    for name in names {
        parameters.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.clone().try_into().map_err(failed)?),
        });
    }
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = parameters.signed_by(&key, issuer).map_err(failed)?;
    Ok(Identity {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_kept_and_renewed_for_new_names() {
        let directory = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(directory.path(), &[]).unwrap();
        let again = Pki::load_or_create(directory.path(), &[]).unwrap();
        assert_eq!(first.serving.certificate, again.serving.certificate);
        assert_eq!(first.admin.certificate, again.admin.certificate);
        let named = Pki::load_or_create(directory.path(), &["10.0.0.1".into(), "host.example".into()]).unwrap();
        assert_ne!(first.serving.certificate, named.serving.certificate);
        assert_eq!(first.ca_pem(), named.ca_pem());
        named.server_config().unwrap();
        let der = CertificateDer::from_pem_slice(named.admin().certificate.as_bytes()).unwrap();
        let user = user_of(&der).unwrap();
        assert_eq!(user.username, "kubernetes-admin");
        assert!(user.is_in("system:masters"));
        use std::os::unix::fs::PermissionsExt;
        let path = directory.path().join("kubeconfig");
        named.write_kubeconfig(&path, "https://127.0.0.1:1", "test").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
