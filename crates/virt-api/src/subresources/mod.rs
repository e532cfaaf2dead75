//! The group `subresources.kubevirt.io`: what users do to a running machine.
//!
//! Who may do it is decided by the caller: the embedded home by its API server, a cluster by a
//! SubjectAccessReview of [`attributes`].

mod body;
mod expand;
mod guestfs;
mod portforward;
mod route;
mod sessions;
mod sev;
mod stream;
mod vm;
mod vmi;
mod websocket;

use std::sync::Arc;

use axum::body::Body;
use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::refusal::Refusal as Rule;
use ferrovirt_protocol::streams::NodeAgent;
use http::{Request, Response, StatusCode};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

pub use route::{Attributes, attributes};

use crate::nodes::{Nodes, OneNode};
use crate::status::{self, Refusal};
use route::{Kind, Route, Verb};
use sessions::Sessions;

/// The API group.
pub const GROUP: &str = "subresources.kubevirt.io";
/// Its versions, the preferred one first.
pub const VERSIONS: [&str; 2] = ["v1", "v1alpha3"];

/// One entry of the group's discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// For example `virtualmachineinstances`.
    pub resource: &'static str,
    /// For example `console`; empty for a resource of its own.
    pub subresource: &'static str,
    /// Verbs that a role grants.
    pub verb: &'static str,
}

impl Resource {
    /// For example `virtualmachineinstances/console`.
    pub fn name(&self) -> String {
        if self.subresource.is_empty() {
            return self.resource.to_owned();
        }
        format!("{}/{}", self.resource, self.subresource)
    }
}

/// What discovery lists: only what works.
pub fn resources() -> Vec<Resource> {
    route::working()
        .map(|(kind, subresource, method)| Resource {
            resource: kind.plural(),
            subresource,
            verb: if method == http::Method::GET { "get" } else { "update" },
        })
        .chain([Resource {
            resource: route::EXPAND_VM_SPEC,
            subresource: "",
            verb: "update",
        }])
        .collect()
}

/// Answers requests of the group.
#[derive(Clone)]
pub struct Subresources {
    client: kube::Client,
    nodes: Arc<dyn Nodes>,
    sessions: Sessions,
    /// Image of `virtctl guestfs`.
    guestfs: Option<String>,
}

impl Subresources {
    /// In a home with one node. Objects are read and changed through `client`, which acts as virt-api; guests are
    /// reached through `node`.
    pub fn new(client: kube::Client, node: Arc<dyn NodeAgent>) -> Self {
        Self::on_cluster(client, Arc::new(OneNode(node)))
    }

    /// In a home with many nodes.
    pub fn on_cluster(client: kube::Client, nodes: Arc<dyn Nodes>) -> Self {
        Self {
            client,
            nodes,
            sessions: Sessions::default(),
            guestfs: None,
        }
    }

    /// Tells of the image that `virtctl guestfs` starts as a pod; without one such a pod could not run.
    #[must_use]
    pub fn with_guestfs(mut self, image: Option<String>) -> Self {
        self.guestfs = image.filter(|image| !image.is_empty());
        self
    }

    /// Adds the metrics of open streams.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.sessions.register(registry);
    }

    /// Who reaches the guest of a VMI.
    fn agent(&self, vmi: &VirtualMachineInstance) -> Arc<dyn NodeAgent> {
        let status = vmi.status.as_ref();
        let node = status.and_then(|status| status.node_name.as_deref());
        self.nodes.agent(node.unwrap_or_default())
    }

    /// Answers any request below `/apis/subresources.kubevirt.io/VERSION`, which the caller has authorized.
    /// A stream needs hyper's `OnUpgrade` in the request's extensions; after the 101 it lives in its own task.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        match self.answer(request).await {
            Ok(response) => response,
            Err(refusal) => status::refuse(&refusal),
        }
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        match route::parse(request.method(), request.uri().path())? {
            Route::Discovery { version } => Ok(status::json(StatusCode::OK, &discovery(version))),
            Route::Version => Ok(status::json(StatusCode::OK, &version())),
            Route::Guestfs => guestfs::answer(self.guestfs.as_deref()),
            Route::Healthz => self.healthz().await,
            Route::ExpandVmSpec { namespace } => expand::given(&namespace, request).await,
            Route::Object {
                kind,
                namespace,
                name,
                verb,
            } => {
                let target = Target { kind, namespace, name };
                self.act(target, verb, request).await
            }
        }
    }

    async fn act(&self, target: Target, verb: Verb, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        match verb {
            Verb::Start => self.start(&target, body::read(request).await?).await,
            Verb::Stop => self.stop(&target, body::read(request).await?).await,
            Verb::Restart => self.restart(&target, body::read(request).await?).await,
            Verb::Pause => self.pause(&target, body::read(request).await?).await,
            Verb::Unpause => self.unpause(&target, body::read(request).await?).await,
            Verb::SoftReboot => self.soft_reboot(&target).await,
            Verb::Reset => self.reset(&target).await,
            Verb::GuestOsInfo | Verb::UserList | Verb::FilesystemList => self.guest_info(&target, verb).await,
            Verb::Freeze => self.freeze(&target, body::read(request).await?).await,
            Verb::Unfreeze => self.unfreeze(&target).await,
            Verb::Screenshot => {
                self.screenshot(&target, request.uri().query().unwrap_or_default())
                    .await
            }
            Verb::EvacuateCancel => self.cancel_evacuation(&target, body::read(request).await?).await,
            Verb::ExpandSpec => self.expand_spec(&target).await,
            Verb::UsbRedir => self.usbredir(&target, request).await,
            Verb::Vsock => self.vsock(&target, request).await,
            Verb::SevCertificates => self.sev_platform(&target).await,
            Verb::SevSession => self.sev_session(&target, request).await,
            Verb::SevMeasurement => self.sev_measurement(&target).await,
            Verb::SevSecret => self.sev_secret(&target, request).await,
            Verb::Console => self.console(&target, request).await,
            Verb::Vnc => self.vnc(&target, request).await,
            Verb::PortForward(port, transport) => self.port_forward(&target, port, transport, request).await,
        }
    }

    async fn healthz(&self) -> Result<Response<Body>, Refusal> {
        let apiserver = match self.client.apiserver_version().await {
            Ok(info) => json!({"connectivity": "ok", "version": info.git_version}),
            Err(error) => json!({"connectivity": "failed", "error": status::chain(&error)}),
        };
        let code = if apiserver["connectivity"] == "ok" {
            StatusCode::OK
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Ok(status::json(code, &json!({"apiserver": apiserver})))
    }
}

/// The object that a request is about.
#[derive(Clone, Debug)]
struct Target {
    kind: Kind,
    namespace: String,
    name: String,
}

impl Target {
    /// The answer to a rule that this target's state breaks.
    fn refuse(&self, rule: Rule) -> Refusal {
        status::from_rule(self.kind.singular(), &self.name, rule)
    }
}

fn discovery(version: &str) -> Value {
    let resources: Vec<Value> = resources()
        .iter()
        .map(|resource| {
            json!({
                "name": resource.name(),
                "singularName": "",
                "namespaced": true,
                "kind": "",
                "verbs": [resource.verb],
            })
        })
        .collect();
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{version}"),
        "resources": resources,
    })
}

/// `version.Info`, as `virtctl version` prints it. Fields of Go builds that have no meaning here are empty.
fn version() -> Value {
    json!({
        "gitVersion": concat!("v", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
    })
}

fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether `dryRun` asks for one.
///
/// # Errors
/// 400 for anything but `All`.
fn dry_run(values: &[String]) -> Result<bool, Refusal> {
    match values {
        [] => Ok(false),
        all if all.iter().all(|value| value == "All") => Ok(true),
        other => Err(status::bad_request(format!(
            "dryRun: unsupported value {:?}: supported values: \"All\"",
            other.join(",")
        ))),
    }
}
