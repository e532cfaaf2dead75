//! Status writes as JSON patches of what changed, each guarded by tests of what it is based on.

use kube::api::Patch;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The patch that turns one status into another, field by field, or `None` if they are equal. `tested` names the
/// fields whose old value must still be there even if they do not change: what the decision was based on.
///
/// # Errors
/// A status cannot be serialized.
pub fn status_patch<S: Serialize>(
    old: Option<&S>,
    new: &S,
    tested: &[&str],
    resource_version: Option<&str>,
) -> Result<Option<Patch<()>>, serde_json::Error> {
    let new = fields(new)?;
    let Some(old) = old else {
        if new.is_empty() {
            return Ok(None);
        }
        let mut ops = Vec::new();
        if let Some(version) = resource_version {
            ops.push(json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
        }
        ops.push(json!({"op": "add", "path": "/status", "value": new}));
        return patch(ops).map(Some);
    };
    let old = fields(old)?;
    let mut changes = Vec::new();
    for (field, value) in &new {
        if old.get(field) != Some(value) {
            changes.push(json!({"op": "add", "path": path(field), "value": value}));
        }
    }
    for field in old.keys().filter(|f| !new.contains_key(*f)) {
        changes.push(json!({"op": "remove", "path": path(field)}));
    }
    if changes.is_empty() {
        return Ok(None);
    }
    let tests = tested.iter().filter_map(|field| {
        let value = old.get(*field)?;
        Some(json!({"op": "test", "path": path(field), "value": value}))
    });
    let ops = tests.chain(changes.iter().cloned()).collect();
    patch(ops).map(Some)
}

fn path(field: &str) -> String {
    format!("/status/{}", field.replace('~', "~0").replace('/', "~1"))
}

fn fields<S: Serialize>(status: &S) -> Result<Map<String, Value>, serde_json::Error> {
    Ok(match serde_json::to_value(status)? {
        Value::Object(map) => map,
        _ => Map::new(),
    })
}

/// Operations as a patch.
///
/// # Errors
/// They are no JSON patch.
pub fn patch(operations: Vec<Value>) -> Result<Patch<()>, serde_json::Error> {
    serde_json::from_value(Value::Array(operations)).map(Patch::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(old: Option<Value>, new: Value, tested: &[&str]) -> Value {
        let patch = status_patch(old.as_ref(), &new, tested, Some("7")).unwrap();
        match patch {
            None => Value::Null,
            Some(Patch::Json(patch)) => serde_json::to_value(patch).unwrap(),
            Some(other) => panic!("{other:?} is no JSON patch"),
        }
    }

    #[test]
    fn only_changes_are_written_and_only_their_ground_is_tested() {
        let old = json!({"phase": "Pending", "reason": "x", "conditions": [1], "nodeName": "n"});
        let new = json!({"phase": "Scheduled", "conditions": [1], "nodeName": "n"});
        assert_eq!(
            diff(Some(old.clone()), new, &["phase", "conditions", "absent"]),
            json!([
                {"op": "test", "path": "/status/phase", "value": "Pending"},
                {"op": "test", "path": "/status/conditions", "value": [1]},
                {"op": "add", "path": "/status/phase", "value": "Scheduled"},
                {"op": "remove", "path": "/status/reason"},
            ])
        );
        assert_eq!(diff(Some(old.clone()), old, &["phase"]), Value::Null);
        assert_eq!(
            diff(None, json!({"phase": "Pending"}), &["phase"]),
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/status", "value": {"phase": "Pending"}},
            ])
        );
    }
}
