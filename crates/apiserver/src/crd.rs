//! CustomResourceDefinitions: from the object to what is served, and the conditions that say so.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use serde_json::{Value, json};

use crate::builtin::ResourceInfo;
use crate::failure::cause;
use crate::registry::{Registry, Served, api_version};
use crate::schema::Schema;

/// Fills in what users leave out: `singular`, `listKind`, the conversion.
pub fn default(crd: &mut Value) {
    let spec = &mut crd["spec"];
    let kind = spec["names"]["kind"].as_str().unwrap_or_default().to_owned();
    if spec["names"].is_object() && !kind.is_empty() {
        for (field, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
            if spec["names"][field].as_str().unwrap_or_default().is_empty() {
                spec["names"][field] = Value::String(value);
            }
        }
    }
    if spec.is_object() && spec["conversion"].is_null() {
        spec["conversion"] = json!({"strategy": "None"});
    }
}

/// Everything that makes a CRD unusable.
pub fn validate(crd: &Value) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let spec = &crd["spec"];
    let mut required = |path: &str, value: &Value| {
        let text = value.as_str().unwrap_or_default().to_owned();
        if text.is_empty() {
            causes.push(cause(path, "FieldValueRequired", "Required value"));
        }
        text
    };
    let group = required("spec.group", &spec["group"]);
    let plural = required("spec.names.plural", &spec["names"]["plural"]);
    required("spec.names.kind", &spec["names"]["kind"]);
    let scope = required("spec.scope", &spec["scope"]);
    if !scope.is_empty() && !matches!(scope.as_str(), "Namespaced" | "Cluster") {
        let why = format!("Unsupported value: \"{scope}\": supported values: \"Cluster\", \"Namespaced\"");
        causes.push(cause("spec.scope", "FieldValueNotSupported", why));
    }
    let name = crd["metadata"]["name"].as_str().unwrap_or_default();
    if name != format!("{plural}.{group}") {
        let why = format!("Invalid value: \"{name}\": must be spec.names.plural+\".\"+spec.group");
        causes.push(cause("metadata.name", "FieldValueInvalid", why));
    }
    let strategy = spec["conversion"]["strategy"].as_str().unwrap_or("None");
    if strategy != "None" {
        let why = format!(
            "Unsupported value: \"{strategy}\": supported values: \"None\" (webhook conversion is not supported yet)"
        );
        causes.push(cause("spec.conversion.strategy", "FieldValueNotSupported", why));
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let why = "Invalid value: must have exactly one version marked as storage version";
        causes.push(cause("spec.versions", "FieldValueInvalid", why));
    }
    let mut compiled: Vec<&Value> = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        if version["name"].as_str().unwrap_or_default().is_empty() {
            causes.push(cause(&format!("{path}.name"), "FieldValueRequired", "Required value"));
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        let path = format!("{path}.schema.openAPIV3Schema");
        if schema.is_null() {
            causes.push(cause(
                &path,
                "FieldValueRequired",
                "Required value: schemas are required",
            ));
        } else if compiled.contains(&schema) {
            // Versions often share one schema.
        } else if let Err(error) = Schema::from_json(schema) {
            causes.push(cause(&path, "FieldValueInvalid", format!("Invalid value: {error}")));
        } else {
            compiled.push(schema);
        }
    }
    causes
}

/// Sets the status that the server owns: accepted names, conditions, stored versions.
pub fn set_status(crd: &mut Value, registry: &Registry, now: &str) {
    let spec = &crd["spec"];
    let (group, plural) = (
        spec["group"].as_str().unwrap_or_default(),
        spec["names"]["plural"].as_str().unwrap_or_default(),
    );
    let taken = registry.taken(group, plural, crd["metadata"]["name"].as_str().unwrap_or_default());
    let names = spec["names"].clone();
    let storage = storage_version(spec).to_owned();
    let mut stored: Vec<String> = crd["status"]["storedVersions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect();
    if !stored.contains(&storage) {
        stored.push(storage);
    }
    let conditions = if taken {
        let message = format!("\"{plural}\" is already in use");
        vec![
            condition(crd, "NamesAccepted", false, "PluralConflict", &message, now),
            condition(
                crd,
                "Established",
                false,
                "NotAccepted",
                "not all names are accepted",
                now,
            ),
        ]
    } else {
        vec![
            condition(crd, "NamesAccepted", true, "NoConflicts", "no conflicts found", now),
            condition(
                crd,
                "Established",
                true,
                "InitialNamesAccepted",
                "the initial names have been accepted",
                now,
            ),
        ]
    };
    crd["status"] = json!({"acceptedNames": names, "conditions": conditions, "storedVersions": stored});
}

fn condition(crd: &Value, kind: &str, holds: bool, reason: &str, message: &str, now: &str) -> Value {
    let status = if holds { "True" } else { "False" };
    let old = crd["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == kind && c["status"] == status);
    let since = old.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
    json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
}

fn storage_version(spec: &Value) -> &str {
    let versions = spec["versions"].as_array().into_iter().flatten();
    versions
        .into_iter()
        .find(|version| version["storage"] == true)
        .and_then(|v| v["name"].as_str())
        .unwrap_or_default()
}

/// What the server serves for a CRD; nothing while its names are not accepted.
pub fn served(crd: &Value) -> Vec<Served> {
    let spec = &crd["spec"];
    let holds = |c: &Value| c["type"] == "Established" && c["status"] == "True";
    if !crd["status"]["conditions"].as_array().into_iter().flatten().any(holds) {
        return Vec::new();
    }
    let group = spec["group"].as_str().unwrap_or_default();
    let storage: Arc<str> = format!("{group}/{}", spec["names"]["plural"].as_str().unwrap_or_default()).into();
    let mut all: Vec<Served> = Vec::new();
    // Versions often share one schema; it is compiled and kept once.
    let mut compiled: Vec<(&Value, ResourceInfo)> = Vec::new();
    for version in spec["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["served"] == true)
    {
        let document = &version["schema"]["openAPIV3Schema"];
        let known = compiled.iter().find(|(known, _)| *known == document);
        let info = match known {
            Some((_, first)) => ResourceInfo::with_schema(crd, version, first.schema.clone(), first.source.clone()),
            None => match ResourceInfo::from_crd(crd, version) {
                Ok(info) => info,
                Err(error) => {
                    // Validation refuses such CRDs; this one was stored by another version of this program.
                    tracing::warn!(crd = %crd["metadata"]["name"], %error, "a CRD version is not served");
                    continue;
                }
            },
        };
        if known.is_none() {
            compiled.push((document, info.clone()));
        }
        all.push(Served {
            storage: storage.clone(),
            storage_version: api_version(group, storage_version(spec)),
            crd: crd["metadata"]["name"].as_str().map(Into::into),
            status: version["subresources"]["status"].is_object(),
            generation: true,
            terminating: crate::rest::meta::deleting(crd),
            warning: (version["deprecated"] == true).then(|| {
                let default = || format!("{} {} is deprecated", api_version(group, &info.version), info.kind);
                version["deprecationWarning"]
                    .as_str()
                    .map_or_else(default, str::to_owned)
            }),
            info,
        });
    }
    all.sort_by_key(|served| std::cmp::Reverse(crate::registry::version_rank(&served.info.version)));
    all
}
