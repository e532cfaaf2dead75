//! The client of the Kubernetes API that every process uses.
//!
//! ```no_run
//! # async fn example(args: ferrovirt_runtime::client::ClientArgs, metrics: ferrovirt_runtime::metrics::Metrics)
//! # -> Result<(), ferrovirt_runtime::client::ClientError> {
//! let client = args.connect("virt-api", env!("CARGO_PKG_VERSION"), &metrics).await?;
//! # Ok(()) }
//! ```

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use kube::client::{Body, ClientBuilder};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tower::layer::layer_fn;

use crate::metrics::Metrics;

const CONNECT: Duration = Duration::from_secs(10);
const WRITE: Duration = Duration::from_secs(30);
/// Watches are ended by the server after five minutes at most, and bookmarks come each minute.
const READ: Duration = Duration::from_secs(310);

/// Where the API server is; flatten it into a process's arguments.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClientArgs {
    /// Kubeconfig of the API server; without it, the service account of this pod
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig.
    #[error("cannot use the kubeconfig {path}")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// The service account.
    #[error("there is no --kubeconfig, and this is no pod with a service account")]
    InCluster(#[source] Box<InClusterError>),
    /// TLS or addresses.
    #[error("cannot make a client of the API server")]
    Build(#[source] Box<kube::Error>),
}

impl ClientArgs {
    /// A client that calls itself `component/version`, with bounded timeouts. Its requests are counted in
    /// `rest_client_requests_total`. Nothing is sent yet.
    ///
    /// # Errors
    /// There is no usable configuration.
    pub async fn connect(&self, component: &str, version: &str, metrics: &Metrics) -> Result<Client, ClientError> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT);
        config.write_timeout = Some(WRITE);
        config.read_timeout = Some(READ);
        config.reset_reader_on_write = true;
        if let Ok(agent) = HeaderValue::from_str(&format!("{component}/{version}")) {
            config.headers.push((HeaderName::from_static("user-agent"), agent));
        }
        let requests = Family::<Labels, Counter>::default();
        metrics.register(|registry| {
            let help = "Requests to the API server, by method, resource, verb and answer.";
            registry.register("rest_client_requests", help, requests.clone());
        });
        let builder = ClientBuilder::try_from(config).map_err(|source| ClientError::Build(Box::new(source)))?;
        let counted = layer_fn(move |inner| Counted {
            inner,
            requests: requests.clone(),
        });
        Ok(builder.with_layer(&counted).build())
    }

    async fn config(&self) -> Result<Config, ClientError> {
        let Some(path) = &self.kubeconfig else {
            return Config::incluster().map_err(|source| ClientError::InCluster(Box::new(source)));
        };
        let failed = |source| ClientError::Kubeconfig {
            path: path.clone(),
            source: Box::new(source),
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(failed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    code: String,
    method: String,
    resource: String,
    verb: &'static str,
}

/// Resource (its plural) and verb of a request, as Kubernetes' authorization names them; `none` where the path is of no
/// resource. Names of objects and namespaces are in neither, so there are only so many label values.
fn resource_and_verb(method: &Method, uri: &Uri) -> (String, &'static str) {
    let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
    // /api/VERSION or /apis/GROUP/VERSION
    let group = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => 0,
    };
    let parts: Vec<_> = parts.skip(group).collect();
    let (resource, name) = match parts.as_slice() {
        _ if group == 0 => (None, None),
        ["namespaces", name, "status" | "finalize"] => (Some("namespaces"), Some(*name)),
        ["namespaces", _, resource, rest @ ..] | [resource, rest @ ..] => (Some(*resource), rest.first().copied()),
        [] => (None, None),
    };
    let watched = uri
        .query()
        .is_some_and(|query| query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")));
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if name.is_some() => "delete",
        Method::DELETE => "deletecollection",
        _ if watched => "watch",
        _ if name.is_some() || resource.is_none() => "get",
        _ => "list",
    };
    (resource.unwrap_or("none").to_owned(), verb)
}

/// Counts requests on their way.
struct Counted<S> {
    inner: S,
    requests: Family<Labels, Counter>,
}

impl<S, B> tower::Service<Request<Body>> for Counted<S>
where
    S: tower::Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: fmt::Display,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (resource, verb) = resource_and_verb(request.method(), request.uri());
        let method = request.method().to_string();
        let requests = self.requests.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = match &answer {
                Ok(response) => response.status().as_u16().to_string(),
                Err(_) => "<error>".to_owned(),
            };
            let labels = Labels {
                code,
                method,
                resource,
                verb,
            };
            requests.get_or_create(&labels).inc();
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_known_by_resource_and_verb() {
        for (method, path, resource, verb) in [
            ("GET", "/api/v1/namespaces/a/pods/b", "pods", "get"),
            ("GET", "/api/v1/pods?watch=true&labelSelector=a", "pods", "watch"),
            ("GET", "/api/v1/pods?limit=500&watch=1", "pods", "watch"),
            ("GET", "/api/v1/namespaces/a/pods?limit=500", "pods", "list"),
            ("GET", "/api/v1/namespaces", "namespaces", "list"),
            ("GET", "/api/v1/namespaces/a", "namespaces", "get"),
            ("PUT", "/api/v1/namespaces/a/finalize", "namespaces", "update"),
            ("POST", "/api/v1/namespaces/a/events", "events", "create"),
            (
                "PATCH",
                "/apis/kubevirt.io/v1/namespaces/a/virtualmachineinstances/b/status",
                "virtualmachineinstances",
                "patch",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments/b",
                "deployments",
                "delete",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deployments",
                "deletecollection",
            ),
            (
                "GET",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/a",
                "clusterroles",
                "get",
            ),
            ("GET", "/apis", "none", "get"),
            ("GET", "/api/v1", "none", "get"),
            ("GET", "/version", "none", "get"),
            ("POST", "/openapi/v3/pods", "none", "create"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let got = resource_and_verb(&method, &path.parse().expect("a path"));
            assert_eq!(got, (resource.to_owned(), verb), "{method} {path}");
        }
    }
}
