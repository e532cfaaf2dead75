//! Status writes as JSON patches of what changed, each guarded by tests of what it is based on.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use kube::core::object::HasStatus;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::context::{Trouble, gone, outdated};

/// The patch that turns one status into another, field by field, or `None` if they are equal. `tested` names the
/// fields whose old value must still be there even if they do not change: what the decision was based on. An object of
/// the same name that came later is not meant, so the UID is tested, too.
///
/// # Errors
/// A status cannot be serialized.
pub fn status_patch<S: Serialize>(
    old: Option<&S>,
    new: &S,
    tested: &[&str],
    meta: &ObjectMeta,
) -> Result<Option<Patch<()>>, serde_json::Error> {
    let new = fields(new)?;
    let same = test_uid(meta);
    let Some(old) = old else {
        if new.is_empty() {
            return Ok(None);
        }
        let mut ops: Vec<Value> = same.into_iter().collect();
        if let Some(version) = &meta.resource_version {
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
    let ops = same.into_iter().chain(tests).chain(changes.iter().cloned()).collect();
    patch(ops).map(Some)
}

/// The operation that fails on another object of the same name.
#[must_use]
pub fn test_uid(meta: &ObjectMeta) -> Option<Value> {
    let uid = meta.uid.as_ref()?;
    Some(json!({"op": "test", "path": "/metadata/uid", "value": uid}))
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

/// What became of a status write.
#[derive(Debug)]
pub enum Written<K> {
    /// Nothing was to be written, or the object is gone.
    Nothing,
    /// This is the object now.
    Now(K),
    /// Somebody else was quicker: decide again on this.
    Outdated(K),
}

/// Writes `status` over that of `object`, unless they are equal; see [`status_patch`].
///
/// # Errors
/// The API server did not take it.
pub async fn write_status<K>(
    api: &Api<K>,
    object: &K,
    resource_version: Option<&str>,
    status: &K::Status,
    tested: &[&str],
) -> Result<Written<K>, Trouble>
where
    K: Resource<DynamicType = ()> + HasStatus + Clone + Debug + DeserializeOwned,
    K::Status: Serialize + PartialEq + Clone,
{
    let (name, parameters) = (object.name_any(), PatchParams::default());
    let meta = |version: Option<String>| ObjectMeta {
        uid: object.meta().uid.clone(),
        resource_version: version,
        ..ObjectMeta::default()
    };
    let version = meta(resource_version.map(str::to_owned));
    let change = status_patch(object.status(), status, tested, &version).map_err(Trouble::patch)?;
    let Some(change) = change else {
        return Ok(Written::Nothing);
    };
    let failed = |error| Trouble::call("writing a status", error);
    match api.patch_status(&name, &parameters, &change).await {
        Ok(object) => return Ok(Written::Now(object)),
        Err(error) if gone(&error) => return Ok(Written::Nothing),
        Err(error) if outdated(&error) => {}
        Err(error) => return Err(failed(error)),
    }
    let Some(fresh) = api.get_opt(&name).await.map_err(failed)? else {
        return Ok(Written::Nothing);
    };
    if fresh.status() != object.status() || fresh.meta().uid != object.meta().uid {
        return Ok(Written::Outdated(fresh));
    }
    // The same status, spelled differently by another writer: its text fails the tests, its version does not.
    let version = meta(fresh.resource_version());
    let Some(change) = status_patch(None, status, tested, &version).map_err(Trouble::patch)? else {
        return Ok(Written::Nothing);
    };
    match api.patch_status(&name, &parameters, &change).await {
        Ok(object) => Ok(Written::Now(object)),
        Err(error) if gone(&error) => Ok(Written::Nothing),
        Err(error) => Err(failed(error)),
    }
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
        let meta = ObjectMeta {
            uid: Some("u".to_owned()),
            resource_version: Some("7".to_owned()),
            ..ObjectMeta::default()
        };
        let patch = status_patch(old.as_ref(), &new, tested, &meta).unwrap();
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
                {"op": "test", "path": "/metadata/uid", "value": "u"},
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
                {"op": "test", "path": "/metadata/uid", "value": "u"},
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/status", "value": {"phase": "Pending"}},
            ])
        );
    }
}
