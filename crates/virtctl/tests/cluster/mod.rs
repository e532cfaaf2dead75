//! A server over TLS that wants client certificates or tokens, kubeconfigs for it, and the real executable.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test binary uses a part; a test may panic"
)]

#[path = "../../../virt-api/tests/fixture/mod.rs"]
pub mod fixture;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrovirt_apiserver::UserInfo;
use fixture::{Home, TOKEN, serve};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// How long anything may take.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What comes in time.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap()
}

/// Runs with pipes on all three.
pub fn piped(cluster: &Cluster, arguments: &[&str]) -> tokio::process::Child {
    let mut command = tokio::process::Command::from(cluster.virtctl(arguments));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().unwrap()
}

/// A running server and the files that clients need.
pub struct Cluster {
    pub home: Home,
    pub directory: tempfile::TempDir,
    pub url: String,
    /// Who has the client certificate.
    pub user: Arc<Mutex<UserInfo>>,
}

struct Certificates {
    ca_pem: String,
    acceptor: TlsAcceptor,
    client_pem: String,
    client_key: String,
}

fn certificates() -> Certificates {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let server_key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = CertificateParams::new(names)
        .unwrap()
        .signed_by(&server_key, &issuer)
        .unwrap();
    let client_key = KeyPair::generate().unwrap();
    let client = CertificateParams::new(vec!["jane".to_owned()])
        .unwrap()
        .signed_by(&client_key, &issuer)
        .unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![server.der().clone()],
            PrivateKeyDer::Pkcs8(server_key.serialize_der().into()),
        )
        .unwrap();
    Certificates {
        ca_pem: ca.pem(),
        acceptor: TlsAcceptor::from(Arc::new(config)),
        client_pem: client.pem(),
        client_key: client_key.serialize_pem(),
    }
}

impl Cluster {
    pub async fn open() -> Self {
        let home = Home::open().await;
        let certificates = certificates();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (server, acceptor) = (home.server.clone(), certificates.acceptor.clone());
        let user = Arc::new(Mutex::new(UserInfo::admin("jane")));
        let proves = user.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, acceptor) = (server.clone(), acceptor.clone());
                let user = proves.lock().unwrap().clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let proved = stream.get_ref().1.peer_certificates().is_some();
                    serve(server, stream, proved.then_some(user)).await;
                });
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let cluster = Self {
            home,
            directory,
            url,
            user,
        };
        cluster.write("ca.pem", &certificates.ca_pem);
        cluster.write("client.pem", &certificates.client_pem);
        cluster.write("client.key", &certificates.client_key);
        cluster.write("config", &cluster.kubeconfig());
        cluster
    }

    /// Two contexts: `certificate` is current, `token` works in another namespace.
    fn kubeconfig(&self) -> String {
        let url = &self.url;
        format!(
            "apiVersion: v1
kind: Config
current-context: certificate
clusters:
- name: c
  cluster: {{server: '{url}', certificate-authority: ca.pem}}
users:
- name: certificate
  user: {{client-certificate: client.pem, client-key: client.key}}
- name: token
  user: {{token: {TOKEN}}}
contexts:
- name: certificate
  context: {{cluster: c, user: certificate}}
- name: token
  context: {{cluster: c, user: token, namespace: elsewhere}}
"
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// The executable, with the kubeconfig.
    pub fn virtctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtctl"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .env("KUBECONFIG", self.path("config"))
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub async fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, &[]).await
    }

    /// Runs it to its end with more environment.
    pub async fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let mut command = self.virtctl(arguments);
        command.envs(environment.iter().copied());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        output.into()
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Outcome {
    /// Asserts success, and what was printed.
    pub fn prints(self, stdout: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), stdout), "{}", self.stderr);
    }

    /// Asserts failure with code 1, nothing printed, and an error that contains `why`, perhaps after notices.
    pub fn fails(self, why: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{}", self.stderr);
        let starts = |line: &str| line.starts_with("Error: ") || line.starts_with("error: ");
        let told = self.stderr.lines().any(starts);
        assert!(told && self.stderr.contains(why), "{}", self.stderr);
    }
}
