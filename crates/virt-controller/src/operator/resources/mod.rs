//! The objects of an installation, from [`Inputs`] alone. No I/O.

mod access;
mod admission;
mod customize;
mod kinds;
mod monitoring;
mod roles;
mod services;
mod workloads;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};

pub use access::{Rule, operator_rules};
pub use customize::InvalidPatch;
pub use kinds::{KINDS, Kind};
pub use monitoring::dashboard::dashboard;
pub use monitoring::rules as prometheus_rules;
pub use roles::{OPERATOR_ACCOUNT, PRIORITY_CLASS, account};
pub use services::METRICS_LABEL;
pub use workloads::USER;

use super::Component;
use super::inputs::{Inputs, hex};

/// Label of all that the operator installs.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`], and the operator's field manager.
pub const OPERATOR: &str = "virt-operator";
/// Annotation: version of what is installed.
pub const VERSION_ANNOTATION: &str = "kubevirt.io/install-strategy-version";
const REGISTRY_ANNOTATION: &str = "kubevirt.io/install-strategy-registry";
const IDENTIFIER_ANNOTATION: &str = "kubevirt.io/install-strategy-identifier";

/// ConfigMap of the authorities' certificates.
pub const CA_CONFIG_MAP: &str = "kubevirt-ca";
/// Its key.
pub const CA_BUNDLE_KEY: &str = "ca-bundle";

/// When an object is installed. What comes later relies on what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The kinds.
    Definitions,
    /// What processes need: accounts, rights, certificates, services, webhooks.
    Base,
    /// A process.
    Workload(Component),
}

/// Names an object among all that the operator installs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Its kind.
    pub kind: &'static Kind,
    /// Namespace, empty for what has none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name } = self;
        match namespace.as_str() {
            "" => write!(f, "{} {name}", kind.kind),
            namespace => write!(f, "{} {namespace}/{name}", kind.kind),
        }
    }
}

/// An object that should exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Which.
    pub id: Id,
    /// When.
    pub stage: Stage,
    /// The whole object, with `apiVersion` and `kind`.
    pub body: Value,
    /// Of the body; differs when it does.
    pub hash: String,
}

/// All objects of the installation, in the order of their [`Stage`]s; Secrets of certificates are not among them.
///
/// # Errors
/// A patch of `customizeComponents` cannot be applied; it names it.
pub fn render(inputs: &Inputs) -> Result<Vec<Object>, InvalidPatch> {
    let mut drafts = Vec::new();
    for crd in ferrovirt_api::crds() {
        // This one comes with the operator.
        if crd.spec.names.kind != "KubeVirt" {
            let body = serde_json::to_value(&crd).unwrap_or_default();
            drafts.push(Draft::new("CustomResourceDefinition", Stage::Definitions, body));
        }
    }
    drafts.extend(roles::render(inputs));
    drafts.extend(services::render(inputs));
    drafts.extend(admission::render(inputs));
    drafts.extend(workloads::render(inputs));
    if let Some(monitoring) = &inputs.monitoring {
        drafts.extend(monitoring::render(inputs, monitoring));
    }
    let mut objects = Vec::new();
    for draft in drafts {
        objects.push(finish(draft, inputs)?);
    }
    objects.sort_by(|a, b| (a.stage, &a.id).cmp(&(b.stage, &b.id)));
    Ok(objects)
}

/// An object without what all have in common.
struct Draft {
    kind: &'static str,
    stage: Stage,
    body: Value,
}

impl Draft {
    fn new(kind: &'static str, stage: Stage, body: Value) -> Self {
        Self { kind, stage, body }
    }

    /// Installed with [`Stage::Base`].
    fn base(kind: &'static str, body: Value) -> Self {
        Self::new(kind, Stage::Base, body)
    }
}

fn finish(draft: Draft, inputs: &Inputs) -> Result<Object, InvalidPatch> {
    let kind = Kind::named(draft.kind);
    let Draft { stage, mut body, .. } = draft;
    body["apiVersion"] = kind.api_version().into();
    body["kind"] = kind.kind.into();
    let metadata = &mut body["metadata"];
    if kind.namespaced && metadata["namespace"].is_null() {
        metadata["namespace"] = inputs.namespace.clone().into();
    }
    for (key, value) in labels(inputs) {
        let labels = &mut metadata["labels"];
        if labels[&key].is_null() {
            labels[&key] = value.into();
        }
    }
    for (key, value) in [
        (VERSION_ANNOTATION, inputs.version.clone()),
        (REGISTRY_ANNOTATION, inputs.registry.clone()),
        (IDENTIFIER_ANNOTATION, inputs.deployment_id()),
    ] {
        metadata["annotations"][key] = value.into();
    }
    let text = |field: &str| body["metadata"][field].as_str().unwrap_or_default().to_owned();
    let id = Id {
        kind,
        namespace: text("namespace"),
        name: text("name"),
    };
    customize::apply(&inputs.customize, &id, &mut body)?;
    let hash = hex(&Sha1::digest(body.to_string().as_bytes()));
    Ok(Object { id, stage, body, hash })
}

/// Labels of every object.
pub fn labels(inputs: &Inputs) -> BTreeMap<String, String> {
    let own = [(MANAGED_BY, OPERATOR), ("app.kubernetes.io/component", "kubevirt")];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(inputs.product_labels.clone()).collect()
}

/// Labels that a component's objects and pods carry.
fn component_labels(inputs: &Inputs, component: Component) -> Map<String, Value> {
    let mut all: Map<String, Value> = labels(inputs).into_iter().map(|(k, v)| (k, v.into())).collect();
    all.insert("kubevirt.io".to_owned(), component.name().into());
    all
}

/// `caBundle` of webhooks and APIServices.
fn ca_bundle(inputs: &Inputs) -> Value {
    STANDARD.encode(&inputs.ca_bundle).into()
}

/// A list of texts as JSON.
fn list(texts: &[&str]) -> Value {
    json!(texts)
}

#[cfg(test)]
mod tests;
