//! `customizeComponents.patches`: users' patches of what is installed.

use ferrovirt_api::v1::{CustomizeComponents, CustomizeComponentsPatch};
use serde_json::{Map, Value};

use super::Id;

/// A patch that cannot be applied.
#[derive(Debug, thiserror::Error)]
#[error(
    "spec.customizeComponents.patches: the {kind} patch of {resource_type} {resource_name} cannot be applied: {why}"
)]
pub struct InvalidPatch {
    kind: String,
    resource_type: String,
    resource_name: String,
    why: String,
}

/// Applies the patches that are meant for this object.
pub fn apply(customize: &CustomizeComponents, id: &Id, body: &mut Value) -> Result<(), InvalidPatch> {
    let meant = |patch: &&CustomizeComponentsPatch| {
        patch.resource_name == id.name && patch.resource_type.eq_ignore_ascii_case(id.kind.kind)
    };
    for patch in customize.patches.iter().filter(meant) {
        patched(patch, body).map_err(|why| InvalidPatch {
            kind: patch.r#type.clone(),
            resource_type: patch.resource_type.clone(),
            resource_name: patch.resource_name.clone(),
            why,
        })?;
    }
    Ok(())
}

fn patched(patch: &CustomizeComponentsPatch, body: &mut Value) -> Result<(), String> {
    let bad = |error: serde_json::Error| error.to_string();
    match patch.r#type.as_str() {
        "json" => {
            let operations: json_patch::Patch = serde_json::from_str(&patch.patch).map_err(bad)?;
            json_patch::patch(body, &operations).map_err(|error| error.to_string())
        }
        "merge" => {
            let change: Value = serde_json::from_str(&patch.patch).map_err(bad)?;
            json_patch::merge(body, &change);
            Ok(())
        }
        "strategic" => {
            let change: Value = serde_json::from_str(&patch.patch).map_err(bad)?;
            merge(body, change, "");
            Ok(())
        }
        other => Err(format!("the type {other:?} is none of json, merge, strategic")),
    }
}

/// Fields whose lists are merged entry by entry, and the field that names an entry, as Kubernetes has it for pods.
const MERGED_LISTS: &[(&str, &str)] = &[
    ("containers", "name"),
    ("env", "name"),
    ("hostAliases", "ip"),
    ("imagePullSecrets", "name"),
    ("initContainers", "name"),
    ("ports", "containerPort"),
    ("tolerations", "key"),
    ("topologySpreadConstraints", "topologyKey"),
    ("volumeDevices", "devicePath"),
    ("volumeMounts", "mountPath"),
    ("volumes", "name"),
    ("webhooks", "name"),
];

/// Directive of a strategic merge patch.
const DIRECTIVE: &str = "$patch";

/// A strategic merge of `change` into `target`, which is the value of `field`.
fn merge(target: &mut Value, change: Value, field: &str) {
    match (&mut *target, change) {
        (Value::Object(target), Value::Object(mut change)) => {
            if change.remove(DIRECTIVE) == Some("replace".into()) {
                *target = change;
                return;
            }
            for (key, value) in change {
                merge_field(target, key, value);
            }
        }
        (Value::Array(entries), Value::Array(changes)) => match merge_key(field) {
            Some(key) => merge_list(entries, changes, key),
            None => *entries = changes,
        },
        (target, change) => *target = without_directives(change),
    }
}

fn merge_field(target: &mut Map<String, Value>, key: String, value: Value) {
    if key.starts_with('$') {
        return;
    }
    if value.is_null() || directive(&value) == Some("delete") {
        target.remove(&key);
    } else if let Some(old) = target.get_mut(&key) {
        merge(old, value, &key);
    } else {
        target.insert(key, without_directives(value));
    }
}

fn merge_list(entries: &mut Vec<Value>, changes: Vec<Value>, key: &str) {
    if changes.iter().any(|c| directive(c) == Some("replace")) {
        *entries = changes.into_iter().filter(|c| directive(c).is_none()).collect();
        return;
    }
    for change in changes {
        let at = entries.iter().position(|e| !e[key].is_null() && e[key] == change[key]);
        match (at, directive(&change)) {
            (Some(at), Some("delete")) => drop(entries.remove(at)),
            (None, Some("delete")) => {}
            (Some(at), _) => merge(&mut entries[at], change, ""),
            (None, _) => entries.push(without_directives(change)),
        }
    }
}

fn merge_key(field: &str) -> Option<&'static str> {
    MERGED_LISTS
        .iter()
        .find(|(name, _)| *name == field)
        .map(|(_, key)| *key)
}

fn directive(value: &Value) -> Option<&str> {
    value.get(DIRECTIVE).and_then(Value::as_str)
}

fn without_directives(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.retain(|key, _| !key.starts_with('$'));
    }
    value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::operator::resources::Kind;

    fn patch(kind: &str, patch: &Value) -> CustomizeComponents {
        CustomizeComponents {
            flags: None,
            patches: vec![CustomizeComponentsPatch {
                patch: patch.to_string(),
                resource_name: "virt-api".to_owned(),
                resource_type: "deployment".to_owned(),
                r#type: kind.to_owned(),
            }],
        }
    }

    #[test]
    fn patches() {
        let body = json!({"spec": {"replicas": 2, "containers": [
            {"name": "a", "env": [{"name": "E", "value": "1"}], "args": ["x"]}, {"name": "b"}]}});
        for (kind, change, expected) in [
            (
                "json",
                json!([{"op": "replace", "path": "/spec/replicas", "value": 5}]),
                json!({"spec": {"replicas": 5, "containers": body["spec"]["containers"]}}),
            ),
            (
                "merge",
                json!({"spec": {"containers": null}}),
                json!({"spec": {"replicas": 2}}),
            ),
            (
                "strategic",
                json!({"spec": {"replicas": null, "containers": [
                    {"name": "b", "$patch": "delete"},
                    {"name": "a", "args": ["y"], "env": [{"name": "F", "value": "2"}]}, {"name": "c"}]}}),
                json!({"spec": {"containers": [
                    {"name": "a", "args": ["y"], "env": [{"name": "E", "value": "1"}, {"name": "F", "value": "2"}]},
                    {"name": "c"}]}}),
            ),
            (
                "strategic",
                json!({"spec": {"$patch": "replace", "replicas": 1}}),
                json!({"spec": {"replicas": 1}}),
            ),
        ] {
            let id = Id {
                kind: Kind::named("Deployment"),
                namespace: "kubevirt".to_owned(),
                name: "virt-api".to_owned(),
            };
            let mut result = body.clone();
            apply(&patch(kind, &change), &id, &mut result).unwrap();
            assert_eq!(result, expected, "{kind}");
            let other = Id {
                name: "virt-controller".to_owned(),
                ..id
            };
            let mut result = body.clone();
            apply(&patch(kind, &change), &other, &mut result).unwrap();
            assert_eq!(result, body);
        }
    }

    #[test]
    fn a_patch_that_cannot_be_applied_is_named() {
        let id = Id {
            kind: Kind::named("Deployment"),
            namespace: "kubevirt".to_owned(),
            name: "virt-api".to_owned(),
        };
        let bad = patch("json", &json!([{"op": "remove", "path": "/nothing"}]));
        let error = apply(&bad, &id, &mut json!({})).unwrap_err().to_string();
        assert!(error.contains("json patch of deployment virt-api"), "{error}");
        assert!(apply(&patch("xml", &json!({})), &id, &mut json!({})).is_err());
    }
}
