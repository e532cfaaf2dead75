//! Strategic merge patches: merge patches that know which lists are keyed.

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{At, PatchList, Schema};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// `current` changed by a strategic merge patch.
///
/// # Errors
/// The patch is no object, or its directives are malformed.
pub fn strategic_merge(current: &Value, patch: &Value, schema: &Schema) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(malformed("a strategic merge patch must be an object"));
    };
    let empty = Map::new();
    merge_map(schema.root(), current.as_object().unwrap_or(&empty), patch).map(Value::Object)
}

fn malformed(text: &str) -> PatchError {
    PatchError::Malformed(format!("error decoding patch: {text}"))
}

fn directive(patch: &Map<String, Value>) -> Result<Option<&str>, PatchError> {
    match patch.get(PATCH) {
        None => Ok(None),
        Some(Value::String(name)) if matches!(name.as_str(), "delete" | "replace" | "merge") => Ok(Some(name)),
        Some(other) => Err(malformed(&format!("unknown $patch directive {other}"))),
    }
}

fn is_directive(name: &str) -> bool {
    name == PATCH || name == RETAIN_KEYS || name.starts_with(ORDER) || name.starts_with(DELETE_FROM)
}

fn merge_map(
    at: At<'_>,
    current: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    match directive(patch)? {
        Some("delete") => return Ok(Map::new()),
        Some("replace") => {
            let rest = patch.iter().filter(|(name, _)| !is_directive(name));
            return Ok(rest.map(|(k, v)| (k.clone(), v.clone())).collect());
        }
        _ => {}
    }
    let mut result = current.clone();
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = keys.as_array().ok_or_else(|| malformed("$retainKeys must be a list"))?;
        result.retain(|name, _| keys.iter().any(|key| key == name));
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            let remove = value
                .as_array()
                .ok_or_else(|| malformed("$deleteFromPrimitiveList must be a list"))?;
            if let Some(Value::Array(items)) = result.get_mut(list) {
                items.retain(|item| !remove.contains(item));
            }
        }
    }
    for (name, value) in patch.iter().filter(|(name, _)| !is_directive(name)) {
        match value {
            Value::Null => {
                result.remove(name);
            }
            value => {
                if let Some(merged) = merge_value(at.field(name), result.get(name), value)? {
                    result.insert(name.clone(), merged);
                } else {
                    result.remove(name);
                }
            }
        }
    }
    for (name, order) in patch {
        if let Some(list) = name.strip_prefix(ORDER) {
            let order = order
                .as_array()
                .ok_or_else(|| malformed("$setElementOrder must be a list"))?;
            if let Some(Value::Array(items)) = result.get_mut(list) {
                sort_by(at.field(list), items, order);
            }
        }
    }
    Ok(result)
}

/// `None`: the value is to be deleted.
fn merge_value(at: At<'_>, current: Option<&Value>, patch: &Value) -> Result<Option<Value>, PatchError> {
    let empty = Map::new();
    Ok(Some(match (current, patch) {
        (_, Value::Object(patch)) if patch.get(PATCH).is_some_and(|p| p == "delete") => return Ok(None),
        (Some(Value::Object(current)), Value::Object(patch)) => Value::Object(merge_map(at, current, patch)?),
        (_, Value::Object(patch)) => Value::Object(merge_map(at, &empty, patch)?),
        (current, Value::Array(patch)) => {
            let current = current.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            Value::Array(merge_list(at, current, patch)?)
        }
        (_, patch) => patch.clone(),
    }))
}

fn merge_list(at: At<'_>, current: &[Value], patch: &[Value]) -> Result<Vec<Value>, PatchError> {
    match at.patch_list() {
        None => Ok(patch.to_vec()),
        Some(PatchList::Union) => {
            let mut result = current.to_vec();
            for item in patch {
                if !result.contains(item) {
                    result.push(item.clone());
                }
            }
            Ok(result)
        }
        Some(PatchList::MergeBy(key)) => merge_keyed(at, key, current, patch),
    }
}

fn merge_keyed(at: At<'_>, key: &str, current: &[Value], patch: &[Value]) -> Result<Vec<Value>, PatchError> {
    let replaces = patch.iter().any(|item| item[PATCH] == "replace");
    let mut result = if replaces { Vec::new() } else { current.to_vec() };
    for item in patch {
        let Value::Object(fields) = item else {
            return Err(malformed(&format!(
                "elements merged by {key:?} must be objects, not {item}"
            )));
        };
        let directive = directive(fields)?;
        if directive == Some("replace") && fields.len() == 1 {
            continue;
        }
        let Some(id) = fields.get(key) else {
            return Err(malformed(&format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        };
        if directive == Some("delete") {
            result.retain(|other| other.get(key) != Some(id));
            continue;
        }
        let empty = Map::new();
        match result.iter_mut().find(|other| other.get(key) == Some(id)) {
            Some(found) => *found = Value::Object(merge_map(at.item(), found.as_object().unwrap_or(&empty), fields)?),
            None => result.push(Value::Object(merge_map(at.item(), &empty, fields)?)),
        }
    }
    Ok(result)
}

/// Elements in `order` come in that order; others stay behind the element that they stood behind.
fn sort_by(at: At<'_>, items: &mut Vec<Value>, order: &[Value]) {
    let rank = |item: &Value| match at.patch_list() {
        Some(PatchList::MergeBy(key)) => order.iter().position(|o| o.get(&**key) == item.get(&**key)),
        _ => order.iter().position(|o| o == item),
    };
    let mut ranked: Vec<(usize, Value)> = Vec::with_capacity(items.len());
    // Unlisted elements have the rank of the listed one before them.
    let mut last = 0;
    for item in items.drain(..) {
        if let Some(rank) = rank(&item) {
            last = rank + 1;
        }
        ranked.push((last, item));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    items.extend(ranked.into_iter().map(|(_, item)| item));
}
