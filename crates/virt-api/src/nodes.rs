//! How guests are reached: directly in the embedded home, through virt-handler of their node on a cluster.

use std::error::Error;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ferrovirt_api::v1::{SEVMeasurementInfo, SEVPlatformInfo, SEVSecretOptions};
use ferrovirt_protocol::launcher::Action;
use ferrovirt_protocol::node::{self, Call, Failure};
use ferrovirt_protocol::streams::{Duplex, NodeAgent, Stream, StreamError};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A node that is gone must not hold a request for minutes.
const CONNECT: Duration = Duration::from_secs(10);
/// virt-handler gives an action 60 s.
const ANSWER: Duration = Duration::from_secs(65);
/// What a guest agent says about its guest.
const MAX_ANSWER: usize = 4 << 20;
/// virt-handler bounds the pictures of screens, too.
const MAX_PICTURE: usize = 33 << 20;

/// Finds who reaches the guests of a node.
pub trait Nodes: Send + Sync + 'static {
    /// The agent of the node with this name.
    fn agent(&self, node: &str) -> Arc<dyn NodeAgent>;
}

/// A home with one node.
pub(crate) struct OneNode(pub(crate) Arc<dyn NodeAgent>);

impl Nodes for OneNode {
    fn agent(&self, _: &str) -> Arc<dyn NodeAgent> {
        Arc::clone(&self.0)
    }
}

/// The virt-handlers of a cluster. Nothing is remembered of them: each request looks for the pod of its node, and makes
/// a connection of its own.
#[derive(Clone)]
pub struct Handlers {
    pods: Api<Pod>,
    tls: TlsConnector,
    port: u16,
}

impl Handlers {
    /// The pods of virt-handler in `namespace`, which listen on `port`. `tls` shows virt-api's client certificate and
    /// knows virt-handler by its common name.
    pub fn new(client: kube::Client, namespace: &str, tls: Arc<ClientConfig>, port: u16) -> Self {
        Self {
            pods: Api::namespaced(client, namespace),
            tls: TlsConnector::from(tls),
            port,
        }
    }
}

impl Nodes for Handlers {
    fn agent(&self, node: &str) -> Arc<dyn NodeAgent> {
        Arc::new(Handler {
            node: node.to_owned(),
            all: self.clone(),
        })
    }
}

/// virt-handler of one node.
struct Handler {
    node: String,
    all: Handlers,
}

impl Handler {
    fn unreachable(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> StreamError {
        StreamError::Unreachable {
            node: self.node.clone(),
            source: source.into(),
        }
    }

    /// Fails when it takes too long.
    async fn within<T, E>(&self, limit: Duration, work: impl Future<Output = Result<T, E>>) -> Result<T, StreamError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        match timeout(limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.unreachable(error)),
            Err(_) => Err(self.unreachable(format!("no answer within {} s", limit.as_secs()))),
        }
    }

    async fn address(&self) -> Result<SocketAddr, StreamError> {
        if self.node.is_empty() {
            return Err(self.unreachable("the VirtualMachineInstance has no node yet"));
        }
        // Any version will do, so the API server answers from memory.
        let parameters = ListParams::default()
            .labels(node::HANDLER_LABEL)
            .fields(&format!("spec.nodeName={}", self.node))
            .match_any();
        let pods = self.within(CONNECT, self.all.pods.list(&parameters)).await?;
        let address = pods
            .items
            .iter()
            .filter_map(|pod| address(pod).map(|address| (pod.metadata.deletion_timestamp.is_some(), address)))
            .min_by_key(|(going, _)| *going);
        match address {
            Some((_, address)) => Ok(SocketAddr::new(address, self.all.port)),
            None => Err(self.unreachable("there is no running pod of virt-handler")),
        }
    }

    /// Asks, and returns the answer if its code is `expected`.
    async fn ask(
        &self,
        namespace: &str,
        vmi: &str,
        call: Call,
        expected: StatusCode,
    ) -> Result<Response<Incoming>, StreamError> {
        self.ask_with(namespace, vmi, call, Bytes::new(), expected).await
    }

    /// [`Self::ask`] with a body.
    async fn ask_with(
        &self,
        namespace: &str,
        vmi: &str,
        call: Call,
        body: Bytes,
        expected: StatusCode,
    ) -> Result<Response<Incoming>, StreamError> {
        let (method, path) = call
            .request(namespace, vmi)
            .ok_or_else(|| StreamError::Refused(format!("{call:?} is nothing that virt-handler does for virt-api")))?;
        let address = self.address().await?;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            self.all
                .tls
                .connect(ServerName::IpAddress(address.ip().into()), stream)
                .await
        };
        let stream = self.within(CONNECT, connect).await?;
        let exchange = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection.with_upgrades());
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, address.to_string());
            if expected == StatusCode::SWITCHING_PROTOCOLS {
                request = request
                    .header(header::CONNECTION, "Upgrade")
                    .header(header::UPGRADE, node::UPGRADE);
            }
            let request = request.body(Full::new(body))?;
            Ok::<_, Box<dyn Error + Send + Sync>>(sender.send_request(request).await?)
        };
        let response = self.within(ANSWER, exchange).await?;
        if response.status() == expected {
            return Ok(response);
        }
        let status = response.status();
        let body = self.body(response, MAX_ANSWER).await?;
        match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => Err(failure.into_error(&format!("the guest through node {}", self.node))),
            Err(_) => Err(self.unreachable(format!("it answered {status}"))),
        }
    }

    /// Asks what is answered by JSON.
    async fn ask_json<T: DeserializeOwned>(&self, namespace: &str, vmi: &str, call: Call) -> Result<T, StreamError> {
        let response = self.ask(namespace, vmi, call, StatusCode::OK).await?;
        let body = self.body(response, MAX_ANSWER).await?;
        serde_json::from_slice(&body).map_err(|error| self.unreachable(error))
    }

    async fn body(&self, response: Response<Incoming>, limit: usize) -> Result<Bytes, StreamError> {
        let body = Limited::new(response.into_body(), limit);
        let collected = self.within(ANSWER, body.collect()).await?;
        Ok(collected.to_bytes())
    }
}

fn address(pod: &Pod) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() != Some("Running") {
        return None;
    }
    status.pod_ip.as_deref()?.parse().ok()
}

#[async_trait]
impl NodeAgent for Handler {
    async fn stream(&self, namespace: &str, vmi: &str, stream: Stream) -> Result<Box<dyn Duplex>, StreamError> {
        let call = Call::Stream(stream);
        let response = self.ask(namespace, vmi, call, StatusCode::SWITCHING_PROTOCOLS).await?;
        let upgraded = self.within(CONNECT, hyper::upgrade::on(response)).await?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    async fn act(&self, namespace: &str, vmi: &str, action: Action) -> Result<(), StreamError> {
        self.ask(namespace, vmi, Call::Act(action), StatusCode::OK).await?;
        Ok(())
    }

    async fn freeze(&self, namespace: &str, vmi: &str, thaw_after: Duration) -> Result<(), StreamError> {
        let thaw_seconds = thaw_after.as_secs() + u64::from(thaw_after.subsec_nanos() > 0);
        let call = Call::Freeze { thaw_seconds };
        self.ask(namespace, vmi, call, StatusCode::OK).await?;
        Ok(())
    }

    async fn screenshot(&self, namespace: &str, vmi: &str, move_cursor: bool) -> Result<Vec<u8>, StreamError> {
        let call = Call::Screenshot { move_cursor };
        let response = self.ask(namespace, vmi, call, StatusCode::OK).await?;
        let body = self.body(response, MAX_PICTURE).await?;
        Ok(body.into())
    }

    async fn guest_info(&self, namespace: &str, vmi: &str) -> Result<Value, StreamError> {
        self.ask_json(namespace, vmi, Call::GuestInfo).await
    }

    async fn sev_platform(&self, namespace: &str, vmi: &str) -> Result<SEVPlatformInfo, StreamError> {
        self.ask_json(namespace, vmi, Call::SevPlatform).await
    }

    async fn sev_measurement(&self, namespace: &str, vmi: &str) -> Result<SEVMeasurementInfo, StreamError> {
        self.ask_json(namespace, vmi, Call::SevMeasurement).await
    }

    async fn sev_secret(&self, namespace: &str, vmi: &str, secret: SEVSecretOptions) -> Result<(), StreamError> {
        let body = serde_json::to_vec(&secret).map_err(|error| self.unreachable(error))?;
        self.ask_with(namespace, vmi, Call::SevSecret, body.into(), StatusCode::OK)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_running_pods_have_an_address() {
        for (status, expected) in [
            (json!({"phase": "Running", "podIP": "10.0.0.1"}), Some("10.0.0.1")),
            (json!({"phase": "Running", "podIP": "fd00::1"}), Some("fd00::1")),
            (json!({"phase": "Running"}), None),
            (json!({"phase": "Pending", "podIP": "10.0.0.1"}), None),
            (Value::Null, None),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap();
            assert_eq!(address(&pod), expected.map(|text| text.parse().unwrap()), "{status}");
        }
    }
}
