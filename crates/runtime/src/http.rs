//! HTTP over TLS, bounded: how every process of a cluster answers.
//!
//! ```no_run
//! # async fn example(tls: ferrovirt_runtime::tls::ServerTls) -> Result<(), Box<dyn std::error::Error>> {
//! use ferrovirt_runtime::http::{self, Readiness};
//! use ferrovirt_runtime::metrics::Metrics;
//! use ferrovirt_runtime::supervisor::Supervisor;
//!
//! let mut parts = Supervisor::default();
//! let readiness = Readiness::default();
//! let caches = readiness.wait_for("caches"); // later: caches.ready()
//! let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
//! let app = http::operations(&metrics, &readiness); // .route(…) or .merge(…) what the process does
//! let listener = http::listen(8443).await?;
//! parts.critical("HTTP", http::serve(listener, tls, app, parts.token()));
//! # Ok(()) }
//! ```
//!
//! A request carries [`crate::tls::Peer`] in its extensions if the client's certificate is trusted.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, Response, StatusCode, Version, header};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::metrics::Metrics;
use crate::tls::ServerTls;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Until a request's headers are complete. Longer than the 90 s for which Go's clients keep an idle connection: a
/// webhook call must not meet a connection that is just being closed.
const HEADERS: Duration = Duration::from_secs(120);
/// How long a body may take.
const BODY: Duration = Duration::from_secs(30);
const MAX_HEADER_BYTES: u32 = 64 * 1024;
const MAX_STREAMS: u32 = 250;
/// Each stream into a guest is a connection of its own.
const MAX_CONNECTIONS: usize = 1000;
/// How long requests may still run when the server is told to end.
const GRACE: Duration = Duration::from_secs(3);

/// Listens on a port of all addresses of this host or pod.
///
/// # Errors
/// The port is taken or not allowed.
pub async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        // There may be no IPv6 here.
        Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await,
    }
}

/// Serves until `shutdown`, then takes no more connections, lets requests finish for some seconds, and returns.
///
/// # Errors
/// None today; the type is what [`crate::supervisor::Supervisor::critical`] takes.
pub async fn serve(listener: TcpListener, tls: ServerTls, app: Router, shutdown: CancellationToken) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        // Beyond the limit connections wait in the kernel's queue.
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, slot)) => {
                let connection = connection(stream, tls.clone(), app.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, for example: others may end meanwhile.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::debug!(connections = connections.len(), "some requests did not end in time");
    }
    Ok(())
}

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

async fn connection(stream: TcpStream, tls: ServerTls, app: Router, shutdown: CancellationToken) {
    _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls.config()).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    // Known before the first byte: a connection that has said nothing yet when the server ends is not cut off.
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let peer = tls.peer(stream.get_ref().1);
    let service = service_fn(|request: Request<Incoming>| {
        let (app, peer) = (app.clone(), peer.clone());
        async move {
            let mut request = request.map(Body::new);
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let response = app.oneshot(request).await?;
            tracing::debug!(%method, path, status = response.status().as_u16(), "request");
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(stream);
    let done = if h2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(MAX_STREAMS);
        let mut connection = pin!(builder.serve_connection(io, service));
        tokio::select! {
            done = connection.as_mut() => done,
            // What the client has sent, or sends before it hears of this, is still answered.
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(MAX_HEADER_BYTES as usize);
        let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());
        tokio::select! {
            done = connection.as_mut() => done,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Why a request's body is refused.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is longer than allowed, or the connection broke.
    #[error("cannot read the request's body of at most {limit} bytes")]
    Unreadable {
        /// What is allowed.
        limit: usize,
        /// What happened.
        #[source]
        source: axum::Error,
    },
    /// It did not come in time.
    #[error("the request's body did not come within {} s", BODY.as_secs())]
    Slow,
}

/// A body of at most `limit` bytes.
///
/// # Errors
/// It is larger, slow or broken.
pub async fn body(body: Body, limit: usize) -> Result<Bytes, BodyError> {
    match tokio::time::timeout(BODY, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(source)) => Err(BodyError::Unreadable { limit, source }),
        Err(_) => Err(BodyError::Slow),
    }
}

/// What has to happen before a process is ready. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<&'static str>>>);

/// One thing that a process waits for before it is ready.
#[derive(Debug)]
pub struct Gate {
    readiness: Readiness,
    what: &'static str,
}

impl Readiness {
    /// Not ready until [`Gate::ready`] is called.
    #[must_use]
    pub fn wait_for(&self, what: &'static str) -> Gate {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        Gate {
            readiness: self.clone(),
            what,
        }
    }

    /// What is still waited for.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Gate {
    /// It has happened.
    pub fn ready(self) {
        let mut missing = self.readiness.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = missing.iter().position(|what| *what == self.what) {
            missing.remove(index);
        }
    }
}

/// `/healthz` (the process answers), `/readyz` (nothing is waited for) and `/metrics`.
pub fn operations(metrics: &Metrics, readiness: &Readiness) -> Router {
    let (metrics, readiness) = (metrics.clone(), readiness.clone());
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(async move || ready(&readiness)))
        .route("/metrics", get(async move || scrape(&metrics)))
}

/// As long as something is waited for, each answer over HTTP/1 is the last one of its connection. A process that is about
/// to end waits for the end (a [`Gate`]) for a while first: so its clients, among them the API server with its webhooks,
/// which it calls by HTTP/1.1 only, leave its connections one by one, and none is closed under a request on its way.
pub fn hand_over(router: Router, readiness: &Readiness) -> Router {
    let readiness = readiness.clone();
    router.layer(from_fn(move |request: Request<Body>, next: Next| {
        let readiness = readiness.clone();
        async move {
            let one_by_one = request.version() < Version::HTTP_2;
            let mut response = next.run(request).await;
            let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if one_by_one && !upgraded && !readiness.missing().is_empty() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        }
    }))
}

fn ready(readiness: &Readiness) -> Response<Body> {
    let missing = readiness.missing();
    if missing.is_empty() {
        return "ok".into_response();
    }
    let text = format!("waiting for {}\n", missing.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

fn scrape(metrics: &Metrics) -> Response<Body> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.text()).into_response()
}
