//! What a program that embeds the API server plugs into it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde_json::Value;

/// Who makes a request. Stored in the request's extensions by authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// `kubernetes-admin`, `system:serviceaccount:NS:NAME`, `system:anonymous` …
    pub username: String,
    /// Stable id of the user; may be empty.
    pub uid: String,
    /// `system:masters`, `system:authenticated` …
    pub groups: Vec<String>,
    /// Further attributes (`X-Remote-Extra-*`).
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A member of `system:masters`, who may do everything.
    pub fn admin(username: &str) -> Self {
        let groups = ["system:masters", "system:authenticated"].map(str::to_owned).to_vec();
        Self {
            username: username.to_owned(),
            groups,
            ..Self::default()
        }
    }

    /// A controller inside this process: may do everything, and is recorded as `system:serviceaccount:kube-system:NAME`.
    pub fn controller(name: &str) -> Self {
        Self::admin(&format!("system:serviceaccount:kube-system:{name}"))
    }

    /// Somebody who gave no credentials.
    pub fn anonymous() -> Self {
        Self {
            username: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// Whether this is a member of the group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|member| member == group)
    }
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// An existing object is replaced, patched or applied to.
    Update,
    /// An object is deleted; there is no new object.
    Delete,
}

/// One write that is about to be stored.
#[derive(Clone, Debug)]
pub struct AdmissionInput<'a> {
    /// What is done.
    pub operation: Operation,
    /// API group, empty for core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Plural resource name.
    pub resource: &'a str,
    /// `status`, `scale`, `binding` …
    pub subresource: Option<&'a str>,
    /// Namespace, if the kind has one.
    pub namespace: Option<&'a str>,
    /// Object name; empty when the server still has to generate it.
    pub name: &'a str,
    /// The stored object, for updates and deletes.
    pub old: Option<&'a Value>,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Nothing is going to be stored.
    pub dry_run: bool,
}

/// Rules that writes pass before they are stored. Called after schema validation and defaulting;
/// validation sees the object after every mutation. The server re-validates the schema after `mutate`.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Changes the object in place. Returns warnings for the client (RFC 9110 `Warning` headers, code 299).
    ///
    /// # Errors
    /// The request is refused with this `Status`.
    async fn mutate(&self, input: &AdmissionInput<'_>, object: &mut Value) -> Result<Vec<String>, Box<Status>>;

    /// Judges the final object (`None` for deletes).
    ///
    /// # Errors
    /// The request is refused with this `Status`.
    async fn validate(&self, input: &AdmissionInput<'_>, object: Option<&Value>) -> Result<Vec<String>, Box<Status>>;
}

/// A resource that an aggregated group lists in discovery.
#[derive(Clone, Debug)]
pub struct AggregatedResource {
    /// For example `virtualmachineinstances/console`.
    pub name: String,
    /// Kind that discovery shows.
    pub kind: String,
    /// Whether it lives in a namespace.
    pub namespaced: bool,
    /// Verbs, as discovery shows them.
    pub verbs: Vec<String>,
}

/// An API group version whose requests somebody else answers, like a Kubernetes APIService.
#[async_trait]
pub trait Aggregated: Send + Sync + 'static {
    /// Group, such as `subresources.kubevirt.io`.
    fn group(&self) -> &str;
    /// Versions, the preferred one first.
    fn versions(&self) -> Vec<String>;
    /// What discovery lists.
    fn resources(&self) -> Vec<AggregatedResource>;
    /// Answers any request below `/apis/GROUP/VERSION/…`. The request is authenticated and authorized,
    /// carries [`UserInfo`] in its extensions, and hyper's `OnUpgrade` if it asks for an upgrade.
    async fn handle(&self, request: Request<Body>) -> Response<Body>;
}

/// Query of `pods/log`.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Container name; the pod's default container if absent.
    pub container: Option<String>,
    /// Keep streaming.
    pub follow: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only what is younger than this many seconds.
    pub since_seconds: Option<u64>,
    /// Prefix each line with an RFC 3339 time.
    pub timestamps: bool,
    /// Of the previous instance of the container.
    pub previous: bool,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// What runs pods: answers the connecting subresources of `pods`.
#[async_trait]
pub trait Kubelet: Send + Sync + 'static {
    /// `pods/log`: a text stream.
    async fn logs(&self, namespace: &str, pod: &str, options: LogOptions) -> Response<Body>;
    /// `pods/exec`, `pods/attach` and `pods/portforward`: a websocket (or SPDY, refused with a clear message) upgrade.
    async fn connect(&self, namespace: &str, pod: &str, subresource: &str, request: Request<Body>) -> Response<Body>;
}
