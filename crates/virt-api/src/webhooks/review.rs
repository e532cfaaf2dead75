//! `admission.k8s.io/v1` AdmissionReview: what the API server asks, and how it is answered.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admission::{self, Operation, User};

/// The question.
#[derive(Debug, Deserialize)]
pub(crate) struct Review {
    pub(crate) request: Request,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Request {
    pub(crate) uid: String,
    resource: Resource,
    sub_resource: Option<String>,
    pub(crate) name: String,
    namespace: Option<String>,
    operation: String,
    user_info: Account,
    pub(crate) object: Option<Value>,
    old_object: Option<Value>,
    pub(crate) dry_run: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resource {
    group: String,
    version: String,
    resource: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Account {
    username: String,
    groups: Vec<String>,
}

impl Request {
    /// As the rules take it; `None` for an operation that has none.
    pub(crate) fn for_rules(&self) -> Option<admission::Request<'_>> {
        let operation = match self.operation.as_str() {
            "CREATE" => Operation::Create,
            "UPDATE" => Operation::Update,
            "DELETE" => Operation::Delete,
            _ => return None,
        };
        Some(admission::Request {
            operation,
            group: &self.resource.group,
            version: &self.resource.version,
            resource: &self.resource.resource,
            subresource: filled(self.sub_resource.as_deref()),
            namespace: filled(self.namespace.as_deref()),
            name: &self.name,
            old: self.old_object.as_ref(),
            user: User {
                username: &self.user_info.username,
                groups: &self.user_info.groups,
            },
            dry_run: self.dry_run.unwrap_or_default(),
        })
    }

    /// Whether a pod is to be evicted, and which.
    pub(crate) fn evicts(&self) -> Option<(&str, &str)> {
        let pods = self.resource.group.is_empty() && self.resource.resource == "pods";
        let evicts = pods && self.sub_resource.as_deref() == Some("eviction") && self.operation == "CREATE";
        evicts.then_some((self.namespace.as_deref()?, self.name.as_str()))
    }
}

fn filled(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// What was decided.
pub(crate) type Decision = Result<Allowed, Box<Status>>;

#[derive(Debug, Default)]
pub(crate) struct Allowed {
    pub(crate) warnings: Vec<String>,
    /// The object before and after, if it was to be completed.
    pub(crate) patch: Option<json_patch::Patch>,
}

/// The answer.
pub(crate) fn answer(uid: &str, decision: Decision) -> Value {
    let mut response = json!({"uid": uid, "allowed": decision.is_ok()});
    match decision {
        Ok(Allowed { warnings, patch }) => {
            if !warnings.is_empty() {
                response["warnings"] = warnings.into();
            }
            if let Some(patch) = patch.filter(|patch| !patch.is_empty()) {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = STANDARD.encode(patch.to_string()).into();
            }
        }
        Err(status) => response["status"] = json!(status),
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}
