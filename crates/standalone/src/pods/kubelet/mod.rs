//! What a kubelet answers through the API server: `pods/log`, `pods/exec`, `pods/portforward`.

mod channels;
mod exec;
mod logs;

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use ferrovirt_apiserver::{Kubelet, LogOptions};
use http::{Request, Response, StatusCode, header};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::{Api, ResourceExt};

use super::container::in_start_order;
use super::pod::Context;

pub(super) use logs::LogLimits;

/// A refusal as Kubernetes clients understand it.
#[derive(Debug)]
pub(super) struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

impl Failure {
    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            code: StatusCode::BAD_REQUEST,
            reason: "BadRequest",
            message: message.into(),
        }
    }

    fn internal(message: impl Into<String>) -> Self {
        Self {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "InternalError",
            message: message.into(),
        }
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: StatusCode::NOT_FOUND,
            reason: "NotFound",
            message: message.into(),
        }
    }

    fn response(self) -> Response<Body> {
        let status = Status {
            status: Some("Failure".into()),
            code: Some(self.code.as_u16().into()),
            reason: Some(self.reason.into()),
            message: Some(self.message),
            ..Status::default()
        };
        let mut value = serde_json::to_value(status).unwrap_or_default();
        value["apiVersion"] = "v1".into();
        value["kind"] = "Status".into();
        let mut response = Response::new(Body::from(value.to_string()));
        *response.status_mut() = self.code;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        response
    }
}

/// Answers for the pods of one pod runner.
pub(super) struct NodeKubelet {
    pub context: Arc<Context>,
}

impl NodeKubelet {
    async fn pod(&self, namespace: &str, name: &str) -> Result<Pod, Failure> {
        let api = Api::<Pod>::namespaced(self.context.client.clone(), namespace);
        match api.get_opt(name).await {
            Ok(Some(pod)) => Ok(pod),
            Ok(None) => Err(Failure::not_found(format!("pods \"{name}\" not found"))),
            Err(error) => Err(Failure::internal(format!("cannot read pod \"{name}\": {error}"))),
        }
    }
}

/// The container that is meant: the named one, the annotated default, or the only one.
fn choose<'a>(pod: &'a Pod, wanted: Option<&str>) -> Result<&'a Container, Failure> {
    let all: Vec<&Container> = pod
        .spec
        .iter()
        .flat_map(in_start_order)
        .map(|(_, container)| container)
        .collect();
    let annotated = pod
        .annotations()
        .get("kubectl.kubernetes.io/default-container")
        .map(String::as_str);
    let name = match wanted.filter(|name| !name.is_empty()).or(annotated) {
        Some(name) => name,
        None => match all.as_slice() {
            [only] => return Ok(only),
            _ => {
                let names: Vec<&str> = all.iter().map(|container| container.name.as_str()).collect();
                return Err(Failure::bad_request(format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    pod.name_any(),
                    names.join(" ")
                )));
            }
        },
    };
    all.into_iter()
        .find(|container| container.name == name)
        .ok_or_else(|| Failure::bad_request(format!("container {name} is not valid for pod {}", pod.name_any())))
}

#[async_trait]
impl Kubelet for NodeKubelet {
    async fn logs(&self, namespace: &str, pod: &str, options: LogOptions) -> Response<Body> {
        let answer = async {
            let object = self.pod(namespace, pod).await?;
            let container = choose(&object, options.container.as_deref())?.name.clone();
            logs::answer(&self.context, &object, &container, &options)
        };
        answer.await.unwrap_or_else(Failure::response)
    }

    async fn connect(&self, namespace: &str, pod: &str, subresource: &str, request: Request<Body>) -> Response<Body> {
        let answer = async {
            let object = self.pod(namespace, pod).await?;
            match subresource {
                "exec" => exec::answer(&self.context, &object, request).await,
                "attach" => Err(Failure::bad_request(
                    "containers of virtual machine pods have no standard input to attach to; use \"kubectl logs -f\", \
                     or \"virtctl console\" for the guest",
                )),
                "portforward" => Err(Failure::bad_request(
                    "port-forward to pods is not supported on one machine; use \"virtctl port-forward vmi/NAME PORT\" \
                     for the guest, or the pod's address, which this machine reaches directly",
                )),
                other => Err(Failure::not_found(format!("pods/{other} is not known"))),
            }
        };
        answer.await.unwrap_or_else(Failure::response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_meant_container_is_found() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"initContainers": [{"name": "a"}], "containers": [{"name": "b"}, {"name": "c"}]},
        }))
        .unwrap();
        assert_eq!(choose(&pod, Some("a")).unwrap().name, "a");
        assert!(
            choose(&pod, Some("x"))
                .unwrap_err()
                .message
                .contains("container x is not valid for pod p")
        );
        assert!(
            choose(&pod, None)
                .unwrap_err()
                .message
                .contains("choose one of: [a b c]")
        );
        pod.annotations_mut()
            .insert("kubectl.kubernetes.io/default-container".into(), "c".into());
        assert_eq!(choose(&pod, None).unwrap().name, "c");
    }
}
