//! The server on the network: TLS, HTTP/2 and HTTP/1.1, upgrades.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pki;
use crate::server::ApiServer;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(60);
/// How long requests may still run when the server is told to end.
const GRACE: Duration = Duration::from_secs(2);

impl ApiServer {
    /// Serves until `shutdown`, then ends watches, lets other requests finish for two seconds, and returns. A client
    /// certificate that `tls` has verified says who asks; else the bearer token; else the client is anonymous.
    pub async fn serve(&self, listener: TcpListener, tls: Arc<ServerConfig>, shutdown: CancellationToken) {
        let acceptor = TlsAcceptor::from(tls);
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
                    connections.spawn(async move { server.connection(stream, acceptor, shutdown).await });
                }
                Err(error) => {
                    // Out of descriptors, for example: others may end meanwhile.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        self.shutdown();
        connections.close();
        if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
            tracing::debug!("some requests did not end in time");
        }
    }

    async fn connection(&self, stream: TcpStream, acceptor: TlsAcceptor, shutdown: CancellationToken) {
        _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        };
        let user = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(pki::user_of);
        let service = service_fn(|request: Request<Incoming>| {
            let (server, user) = (self.clone(), user.clone());
            async move {
                let mut request = request.map(Body::new);
                if let Some(user) = user {
                    request.extensions_mut().insert(user);
                }
                Ok::<_, Infallible>(server.handle(request).await)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let done = tokio::select! {
            done = connection.as_mut() => done,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = done {
            tracing::debug!(error, "a connection broke");
        }
    }
}
