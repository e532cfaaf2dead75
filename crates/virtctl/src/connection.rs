//! The way to the API server: the kubeconfig that kubectl would use, and requests to subresources.

mod config;
mod proxy;

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{Method, Request, Response, header};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::client::Body;
use serde::Serialize;
use serde_json::Value;

use crate::cli::Global;
use crate::target::Kind;

/// Group and version of the subresources that are asked for.
const SUBRESOURCES: &str = "/apis/subresources.kubevirt.io/v1";

/// An API server, and the namespace to work in. Nothing is sent before the first request.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    limit: Option<Duration>,
}

impl Connection {
    /// Reads the kubeconfig and prepares TLS.
    pub(crate) fn open(global: &Global) -> anyhow::Result<Self> {
        let config = config::load(global)?;
        let namespace = config.default_namespace.clone();
        let url = config.cluster_url.clone();
        let client = Client::try_from(config).with_context(|| format!("cannot prepare a connection to {url}"))?;
        let limit = global.request_timeout.filter(|limit| !limit.is_zero());
        Ok(Self {
            client,
            namespace,
            limit,
        })
    }

    /// Path of an object's subresource; names were checked by the caller or are checked by the server.
    pub(crate) fn path(&self, kind: Kind, name: &str, namespace: Option<&str>, sub: &str) -> anyhow::Result<String> {
        let namespace = namespace.unwrap_or(&self.namespace);
        for part in [name, namespace] {
            if part.is_empty() || !crate::target::is_name(part) {
                bail!("{part:?} is no name of a Kubernetes object");
            }
        }
        Ok(format!(
            "{SUBRESOURCES}/namespaces/{namespace}/{}/{name}/{sub}",
            kind.plural()
        ))
    }

    /// Waits for an answer as long as the user allows.
    async fn within<T>(&self, answer: impl Future<Output = Result<T, kube::Error>>) -> anyhow::Result<T> {
        let Some(limit) = self.limit else {
            return Ok(answer.await?);
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => bail!("the server did not answer within {limit:?}"),
        }
    }

    /// PUTs an object to the group itself, and gets its answer.
    pub(crate) async fn put_object(&self, path: &str, object: &impl Serialize) -> anyhow::Result<Value> {
        let body = serde_json::to_vec(object).context("cannot write the request")?;
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("{SUBRESOURCES}/{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .context("cannot build the request")?;
        self.within(self.client.request(request)).await
    }

    /// GETs bytes from a subresource.
    pub(crate) async fn get_bytes(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = Request::get(path)
            .body(Body::empty())
            .context("cannot build the request")?;
        let answer = async {
            let response = self.client.send(request).await?;
            let failed = !response.status().is_success();
            let bytes = response.into_body().collect_bytes().await?;
            if failed {
                return Err(match serde_json::from_slice::<kube::core::Status>(&bytes) {
                    Ok(status) => kube::Error::Api(status.boxed()),
                    Err(error) => kube::Error::SerdeError(error),
                });
            }
            Ok(bytes.to_vec())
        };
        self.within(answer).await
    }

    /// PUTs options to a subresource.
    pub(crate) async fn put(&self, path: &str, options: &impl Serialize) -> anyhow::Result<()> {
        let body = serde_json::to_vec(options).context("cannot write the request")?;
        let request = Request::builder()
            .method(Method::PUT)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .context("cannot build the request")?;
        self.within(self.client.request_text(request)).await.map(drop)
    }

    /// GETs JSON from a subresource.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = Request::get(path)
            .body(Vec::new())
            .context("cannot build the request")?;
        self.within(self.client.request(request)).await
    }

    /// GETs JSON from the group itself.
    pub(crate) async fn group(&self, what: &str) -> anyhow::Result<Value> {
        self.get(&format!("{SUBRESOURCES}/{what}")).await
    }

    /// Sends a request as it is; the answer may be an upgrade.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        self.client.send(request).await
    }

    /// Objects of a kind, read leniently: this program may be older or newer than the server.
    pub(crate) fn objects(&self, kind: Kind) -> Api<DynamicObject> {
        let name = match kind {
            Kind::Vm => "VirtualMachine",
            Kind::Vmi => "VirtualMachineInstance",
        };
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("kubevirt.io", "v1", name), kind.plural());
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }
}

/// The namespace that commands work in, without a connection.
pub(crate) fn namespace(global: &Global) -> anyhow::Result<String> {
    Ok(config::load(global)?.default_namespace)
}

/// The code of the server's refusal, if it is one.
pub(crate) fn code(error: &anyhow::Error) -> Option<u16> {
    error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        })
}

/// An error for people: each cause once, and of the server's answers only what they say.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut push = |part: &dyn Display| {
        let part = part.to_string();
        let part = part.trim();
        if part.is_empty() || text.contains(part) {
            return;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(part);
    };
    for cause in error.chain() {
        match cause.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if status.message.is_empty() => {
                push(&format!("the server answered with code {}", status.code));
            }
            Some(kube::Error::Api(status)) => {
                push(&status.message);
                break;
            }
            // Its sources say it all.
            Some(kube::Error::Service(_) | kube::Error::HyperError(_)) => push(&"cannot talk to the API server"),
            _ => push(&cause),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_for_people() {
        let status = kube::core::Status::failure("vm.kubevirt.io \"x\" not found", "NotFound").with_code(404);
        let error = anyhow::Error::new(kube::Error::Api(status.boxed())).context("cannot start VirtualMachine x");
        assert_eq!(
            explain(&error),
            "cannot start VirtualMachine x: vm.kubevirt.io \"x\" not found"
        );
    }
}
