//! Every resource the server knows by itself, and what a resource is: built-in or from a CRD.

mod catalog;
mod columns;
pub mod definitions;
pub mod events;
mod pod_columns;
mod pods;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use schemars::SchemaGenerator;
use serde_json::Value;

use crate::schema::{Cause, Schema, SchemaError};
use crate::table::{Column, custom_columns};

pub use catalog::builtin_resources;

/// A part of a resource with an endpoint of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `log` …
    pub name: String,
    /// Kind of what is sent and received.
    pub kind: String,
    /// Group of that kind, if it is not the resource's.
    pub group: String,
    /// Version of that kind.
    pub version: String,
    /// As discovery lists them.
    pub verbs: Vec<String>,
}

/// Where `/scale` reads and writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// JSONPath of the wanted number.
    pub spec_replicas: String,
    /// JSONPath of the actual number.
    pub status_replicas: String,
    /// JSONPath of the selector in text form.
    pub label_selector: Option<String>,
}

/// Where the kind's full schema, with descriptions, comes from. It is large and rarely needed, so it is not kept parsed.
#[derive(Clone)]
pub enum SchemaSource {
    /// Generated on demand.
    Builtin {
        /// Its name among the definitions.
        definition: &'static str,
        /// Adds it and all that it refers to.
        add: fn(&mut SchemaGenerator),
    },
    /// `openAPIV3Schema` of the CRD, as JSON text.
    Custom(Arc<str>),
}

/// What a built-in kind does beyond its schema.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Runs once, when an object is created: what the server initializes (`status.phase` …).
    pub create: fn(&mut Value),
    /// Fills in defaults; idempotent.
    pub default: fn(&mut Value),
    /// Judges an object, with the stored one on updates.
    pub validate: fn(&Value, Option<&Value>) -> Vec<Cause>,
}

/// A resource that the server serves.
#[derive(Clone)]
pub struct ResourceInfo {
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Kind of lists.
    pub list_kind: String,
    /// Name in URLs.
    pub plural: String,
    /// Name for one.
    pub singular: String,
    /// For example `vmi`.
    pub short_names: Vec<String>,
    /// For example `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs, as discovery lists them. Kinds with `create` only are answered and not stored.
    pub verbs: Vec<String>,
    /// Further endpoints.
    pub subresources: Vec<Subresource>,
    /// Where `/scale` looks.
    pub scale: Option<ScalePaths>,
    /// What `kubectl get` shows.
    pub columns: Arc<[Column]>,
    /// Fields that field selectors may use beside name and namespace.
    pub selectable: Vec<String>,
    /// Compiled schema.
    pub schema: Schema,
    /// Full schema for OpenAPI.
    pub source: SchemaSource,
    /// Built-in rules.
    pub rules: Option<Rules>,
    /// Resource whose storage this one shows in another form: convert with [`events`].
    pub stored_as: Option<(&'static str, &'static str)>,
}

/// The verbs of stored resources.
pub const STORED_VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

impl ResourceInfo {
    /// `v1`, `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods`, `virtualmachines.kubevirt.io`, as messages name resources.
    #[must_use]
    pub fn qualified_plural(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    /// `Pod`, `VirtualMachine.kubevirt.io`, as messages name kinds.
    #[must_use]
    pub fn qualified_kind(&self) -> String {
        qualified(&self.kind, &self.group)
    }

    /// Whether objects of this resource are stored (in contrast to reviews, which are only answered).
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.verbs.iter().any(|v| v == "get")
    }

    /// The subresource of that name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// What the server initializes in a new object.
    pub fn prepare_create(&self, object: &mut Value) {
        if let Some(rules) = &self.rules {
            (rules.create)(object);
        }
    }

    /// Defaults from the schema and from built-in rules; idempotent.
    pub fn default(&self, object: &mut Value) {
        self.schema.default(object);
        if let Some(rules) = &self.rules {
            (rules.default)(object);
        }
    }

    /// Everything wrong with an object, by the schema and by built-in rules.
    #[must_use]
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = self.schema.validate(object, old);
        if let Some(rules) = &self.rules {
            for cause in (rules.validate)(object, old) {
                if !causes.iter().any(|c| c.field == cause.field) {
                    causes.push(cause);
                }
            }
        }
        causes
    }

    /// The resource that a served version of a CRD (an object of `apiextensions.k8s.io/v1`) defines.
    ///
    /// # Errors
    /// Its schema is not structural.
    pub fn from_crd(crd: &Value, version: &Value) -> Result<Self, SchemaError> {
        let schema = &version["schema"]["openAPIV3Schema"];
        let source = SchemaSource::Custom(schema.to_string().into());
        Ok(Self::with_schema(crd, version, Schema::from_json(schema)?, source))
    }

    /// As [`Self::from_crd`], with the version's schema already compiled.
    #[must_use]
    pub fn with_schema(crd: &Value, version: &Value, schema: Schema, source: SchemaSource) -> Self {
        let spec = &crd["spec"];
        let names = &spec["names"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let texts = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
        let (group, version_name, kind) = (text(&spec["group"]), text(&version["name"]), text(&names["kind"]));
        let or = |value: &Value, other: String| value.as_str().map_or(other, ToOwned::to_owned);
        let selectable = version["selectableFields"].as_array().into_iter().flatten();
        Self {
            list_kind: or(&names["listKind"], format!("{kind}List")),
            singular: or(&names["singular"], kind.to_lowercase()),
            plural: text(&names["plural"]),
            short_names: texts(&names["shortNames"]),
            categories: texts(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            verbs: STORED_VERBS.map(ToOwned::to_owned).to_vec(),
            subresources: custom_subresources(&version["subresources"], &group, &version_name, &kind),
            scale: scale_paths(&version["subresources"]["scale"]),
            columns: custom_columns(version.get("additionalPrinterColumns")).into(),
            selectable: selectable
                .map(|f| text(&f["jsonPath"]).trim_start_matches('.').to_owned())
                .collect(),
            schema,
            source,
            rules: None,
            stored_as: None,
            group,
            version: version_name,
            kind,
        }
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

fn custom_subresources(declared: &Value, group: &str, version: &str, kind: &str) -> Vec<Subresource> {
    let verbs = || ["get", "patch", "update"].map(ToOwned::to_owned).to_vec();
    let mut all = Vec::new();
    let of = |name: &str, group: &str, version: &str, kind: &str| Subresource {
        name: name.to_owned(),
        kind: kind.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        verbs: verbs(),
    };
    if declared["status"].is_object() {
        all.push(of("status", group, version, kind));
    }
    if declared["scale"].is_object() {
        all.push(of("scale", "autoscaling", "v1", "Scale"));
    }
    all
}

fn scale_paths(scale: &Value) -> Option<ScalePaths> {
    Some(ScalePaths {
        spec_replicas: scale["specReplicasPath"].as_str()?.to_owned(),
        status_replicas: scale["statusReplicasPath"].as_str()?.to_owned(),
        label_selector: scale["labelSelectorPath"].as_str().map(ToOwned::to_owned),
    })
}
