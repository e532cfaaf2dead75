//! Real connections on loopback, with certificates of authorities made here.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::routing::get;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::http;
use authority::Authority;

mod authority;

const SERVER: &str = "kubevirt.io:system:node:virt-handler";
const CLIENT: &str = "kubevirt.io:system:client:virt-api";

impl Authority {
    fn identity(&self, name: &str) -> Identity {
        let (certificate, key) = self.sign(name);
        Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
    }

    fn trust(&self, names: &[&str]) -> Trust {
        Trust::new(
            Authorities::from_pem(self.pem.as_bytes()).unwrap(),
            names.iter().copied(),
        )
    }
}

/// Serves until the test ends; says who asks.
async fn start(tls: ServerTls) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let who = async |peer: Option<Extension<Peer>>| peer.map_or("nobody".to_owned(), |peer| peer.0.common_name);
    let app = Router::new().route("/", get(who));
    tokio::spawn(http::serve(listener, tls, app, CancellationToken::new()));
    address
}

async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    // The name does not matter.
    let name = ServerName::try_from("10.1.2.3").unwrap();
    TlsConnector::from(config).connect(name, stream).await
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn open(address: SocketAddr, config: Arc<ClientConfig>) -> Result<Sender, String> {
    let stream = connect(address, config).await.map_err(|error| error.to_string())?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// TLS 1.3 tells a client of its refusal only when it reads.
async fn ask(sender: &mut Sender) -> Result<String, String> {
    let request = hyper::Request::get("/").header("host", "x").body(Empty::new()).unwrap();
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

async fn once(address: SocketAddr, config: Arc<ClientConfig>) -> Result<String, String> {
    ask(&mut open(address, config).await?).await
}

#[tokio::test]
async fn both_ends_are_known_by_name() {
    let ours = Authority::new("ours");
    let foreign = Authority::new("foreign");
    let trust = ours.trust(&[CLIENT]);
    let address = start(server(&ours.identity(SERVER), Clients::Required(trust), &["http/1.1"]).unwrap()).await;
    let client = |identity: Option<&Identity>, trust: Trust| client(identity, trust, &["http/1.1"]).unwrap();
    let known = ours.trust(&[SERVER]);

    assert_eq!(
        once(address, client(Some(&ours.identity(CLIENT)), known.clone()))
            .await
            .unwrap(),
        CLIENT
    );
    for (why, identity) in [
        ("no certificate", None),
        (
            "another name",
            Some(ours.identity("kubevirt.io:system:client:virt-handler")),
        ),
        ("another authority", Some(foreign.identity(CLIENT))),
    ] {
        assert!(
            once(address, client(identity.as_ref(), known.clone())).await.is_err(),
            "{why}"
        );
    }
    let (certificate, key) = ours.sign_for(CLIENT, &[ExtendedKeyUsagePurpose::ServerAuth]);
    let server_only = Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    assert!(once(address, client(Some(&server_only), known)).await.is_err());

    let me = ours.identity(CLIENT);
    for (trust, expected) in [
        (ours.trust(&["kubevirt.io:system:node:other"]), "is that of"),
        (foreign.trust(&[SERVER]), "UnknownIssuer"),
    ] {
        let refused = once(address, client(Some(&me), trust)).await.unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }
}

#[tokio::test]
async fn strangers_learn_who_calls() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let trust = Clients::Required(ours.trust(&[CLIENT]));
    let address = start(server(&foreign.identity("a guest"), trust, &["http/1.1"]).unwrap()).await;
    let caller = |identity: Identity| client_of_strangers(&identity).unwrap();
    assert_eq!(once(address, caller(ours.identity(CLIENT))).await.unwrap(), CLIENT);
    assert!(once(address, caller(foreign.identity(CLIENT))).await.is_err());
}

#[tokio::test]
async fn an_optional_certificate_counts_only_when_it_is_trusted() {
    let ours = Authority::new("ours");
    let foreign = Authority::new("foreign");
    // As long as nothing is known of the front proxy, it is nobody.
    let trust = Trust::new(Authorities::default(), Vec::<String>::new());
    let tls = server(&ours.identity(SERVER), Clients::Optional(trust.clone()), &["http/1.1"]).unwrap();
    let address = start(tls).await;
    let asks = async |identity: Option<Identity>| {
        once(
            address,
            client(identity.as_ref(), ours.trust(&[]), &["http/1.1"]).unwrap(),
        )
        .await
        .unwrap()
    };
    assert_eq!(asks(Some(ours.identity("front-proxy-client"))).await, "nobody");
    assert!(trust.authorities().replace(ours.pem.as_bytes()).unwrap());
    assert_eq!(
        asks(Some(ours.identity("front-proxy-client"))).await,
        "front-proxy-client"
    );
    trust.set_names(vec!["aggregator".to_owned()]);
    assert_eq!(asks(Some(ours.identity("front-proxy-client"))).await, "nobody");
    assert_eq!(asks(Some(ours.identity("aggregator"))).await, "aggregator");
    assert_eq!(asks(Some(foreign.identity("aggregator"))).await, "nobody");
    assert_eq!(asks(None).await, "nobody");
}

/// Writes files as the kubelet mounts them: links to `..data`, which is a link that is replaced.
fn mount(directory: &Path, generation: u32, files: &[(&str, &str)]) {
    let real = directory.join(format!("..{generation}"));
    fs::create_dir(&real).unwrap();
    for (name, text) in files {
        fs::write(real.join(name), text).unwrap();
        if !directory.join(name).exists() {
            symlink(Path::new("..data").join(name), directory.join(name)).unwrap();
        }
    }
    symlink(format!("..{generation}"), directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !check().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn certificates_rotate_under_an_open_connection() {
    let (secret, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let pair = |authority: &Authority, generation| {
        let (certificate, key) = authority.sign(SERVER);
        mount(
            secret.path(),
            generation,
            &[("tls.crt", &certificate), ("tls.key", &key)],
        );
    };
    pair(&old, 1);
    mount(bundle.path(), 1, &[("ca-bundle", &old.pem)]);
    let mut files = Files::default();
    let identity = files.identity(secret.path()).unwrap();
    let authorities = files.authorities(bundle.path().join("ca-bundle")).unwrap();
    let stop = CancellationToken::new();
    let follow = tokio::spawn(files.follow(stop.clone()));
    let tls = server(
        &identity,
        Clients::Required(Trust::new(authorities, [CLIENT])),
        &["http/1.1"],
    )
    .unwrap();
    let address = start(tls).await;

    let of_old = client(Some(&old.identity(CLIENT)), old.trust(&[SERVER]), &["http/1.1"]).unwrap();
    let of_new = client(Some(&new.identity(CLIENT)), new.trust(&[SERVER]), &["http/1.1"]).unwrap();
    let mut open = open(address, Arc::clone(&of_old)).await.unwrap();
    assert_eq!(ask(&mut open).await.unwrap(), CLIENT);
    assert!(once(address, Arc::clone(&of_new)).await.is_err());

    // Halves of a pair, and rubbish, change nothing.
    let (certificate, _) = new.sign(SERVER);
    let (_, key) = new.sign(SERVER);
    mount(secret.path(), 2, &[("tls.crt", &certificate), ("tls.key", &key)]);
    mount(bundle.path(), 2, &[("ca-bundle", "nothing")]);
    assert_eq!(once(address, Arc::clone(&of_old)).await.unwrap(), CLIENT);

    pair(&new, 3);
    mount(bundle.path(), 3, &[("ca-bundle", &new.pem)]);
    eventually("the new certificates are not served", async || {
        once(address, Arc::clone(&of_new)).await.is_ok()
    })
    .await;
    assert!(once(address, of_old).await.is_err());
    assert_eq!(ask(&mut open).await.unwrap(), CLIENT);
    stop.cancel();
    follow.await.unwrap().unwrap();
}

#[test]
fn what_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    let text = files.identity(directory.path()).unwrap_err().to_string();
    assert!(text.ends_with("tls.crt"), "{text}");
    let (certificate, key) = Authority::new("a").sign("a");
    let (_, other) = Authority::new("b").sign("b");
    for (certificate, key, expected) in [
        ("", key.as_str(), "the certificate holds no certificate"),
        (certificate.as_str(), "", "the private key is not PEM"),
        (
            certificate.as_str(),
            other.as_str(),
            "the certificate with its key cannot be used",
        ),
    ] {
        let error = Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let error = Authorities::from_pem(b"").unwrap_err();
    assert_eq!(error.to_string(), "the bundle of authorities holds no certificate");
}

#[tokio::test]
async fn both_protocols_and_operations() {
    let ours = Authority::new("ours");
    let tls = server(&ours.identity(SERVER), Clients::Anyone, &["h2", "http/1.1"]).unwrap();
    let readiness = http::Readiness::default();
    let gate = readiness.wait_for("caches");
    let app = http::operations(&crate::metrics::Metrics::new("1"), &readiness);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(http::serve(listener, tls, app, stop.clone()));
    let config = client(None, ours.trust(&[SERVER]), &["h2"]).unwrap();
    let stream = connect(address, config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut get = async |path: &str| {
        let request = hyper::Request::get(format!("https://x{path}"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(get("/healthz").await, (200, "ok".to_owned()));
    assert_eq!(get("/readyz").await, (503, "waiting for caches\n".to_owned()));
    gate.ready();
    assert_eq!(get("/readyz").await.0, 200);
    assert!(get("/metrics").await.1.contains("kubevirt_info"));
    stop.cancel();
    served.await.unwrap().unwrap();
}

/// Clients of HTTP/1 leave a server that is about to end with its last answer to each, not by a closed connection.
#[tokio::test]
async fn hands_over() {
    let ours = Authority::new("ours");
    let tls = server(&ours.identity(SERVER), Clients::Anyone, &["http/1.1"]).unwrap();
    let readiness = http::Readiness::default();
    let app = http::operations(&crate::metrics::Metrics::new("1"), &readiness);
    let app = http::hand_over(app, &readiness);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(http::serve(listener, tls, app, stop.clone()));
    let config = client(None, ours.trust(&[SERVER]), &["http/1.1"]).unwrap();
    let stream = connect(address, config).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut closes = async || {
        let request = hyper::Request::get("/healthz").body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        let closes = response
            .headers()
            .get("connection")
            .is_some_and(|value| value == "close");
        response.into_body().collect().await.unwrap();
        closes
    };
    assert!(!closes().await);
    assert!(!closes().await);
    let _end = readiness.wait_for("the end");
    assert!(closes().await);
    // The server has closed it, and nothing was lost.
    connection.await.unwrap().unwrap();
    stop.cancel();
    served.await.unwrap().unwrap();
}
