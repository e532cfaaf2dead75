//! Merging an applied configuration into a live object.

use serde_json::{Map, Value};

use super::field_set::Step;
use super::fields::{is_leaf, step_of};
use crate::schema::At;

/// `live` with everything that `applied` says. Nothing is removed.
pub(super) fn merge(at: At<'_>, live: &Value, applied: &Value) -> Value {
    match (live, applied) {
        (Value::Object(a), Value::Object(b)) if !at.is_atomic_map() => {
            let mut merged: Map<String, Value> = a.clone();
            for (name, value) in b {
                let value = match a.get(name) {
                    Some(old) => merge(at.field(name), old, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(a), Value::Array(b)) if !is_leaf(at, live) => Value::Array(merge_lists(at, a, b)),
        _ => applied.clone(),
    }
}

/// The applied order wins; live elements that were not applied stay before the element they stood before.
fn merge_lists(at: At<'_>, live: &[Value], applied: &[Value]) -> Vec<Value> {
    let steps = |list: &[Value]| -> Vec<Step> { list.iter().enumerate().map(|(i, v)| step_of(at, i, v)).collect() };
    let (live_steps, applied_steps) = (steps(live), steps(applied));
    let mut merged = Vec::with_capacity(live.len() + applied.len());
    let mut next = 0;
    for (item, step) in applied.iter().zip(&applied_steps) {
        let found = live_steps.iter().position(|s| s == step);
        if let Some(found) = found {
            while next < found {
                if !applied_steps.contains(&live_steps[next]) {
                    merged.push(live[next].clone());
                }
                next += 1;
            }
            next = next.max(found + 1);
        }
        merged.push(found.map_or_else(|| item.clone(), |i| merge(at.item(), &live[i], item)));
    }
    let rest = live
        .iter()
        .zip(&live_steps)
        .skip(next)
        .filter(|(_, step)| !applied_steps.contains(step));
    merged.extend(rest.map(|(item, _)| item.clone()));
    merged
}
