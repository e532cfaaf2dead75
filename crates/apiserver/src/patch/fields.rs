//! Which fields an object has, and which differ between two, by the lists and maps of a schema.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::field_set::{FieldSet, Step};
use crate::schema::{At, ListType};

/// Whether the whole value at this place is one field: a scalar, or something atomic.
pub(super) fn is_leaf(at: At<'_>, value: &Value) -> bool {
    match value {
        Value::Object(_) => at.is_atomic_map(),
        Value::Array(_) => !matches!(at.list_type(), Some(ListType::Set | ListType::Map(_))),
        _ => true,
    }
}

/// How an element of a list is found again. Elements without their keys go by position.
pub(super) fn step_of(at: At<'_>, index: usize, item: &Value) -> Step {
    match at.list_type() {
        Some(ListType::Set) => Step::Value(item.clone()),
        Some(ListType::Map(names)) => {
            let mut keys = BTreeMap::new();
            for name in names {
                let default = at.item().default_of(name);
                if let Some(value) = item.get(&**name).or(default) {
                    keys.insert(name.to_string(), value.clone());
                }
            }
            if keys.is_empty() {
                Step::Index(index)
            } else {
                Step::Key(keys)
            }
        }
        Some(ListType::Atomic) | None => Step::Index(index),
    }
}

/// All fields of a value. `at` describes where it stands.
pub(super) fn fields_of(at: At<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match value {
        _ if is_leaf(at, value) => set.member = true,
        Value::Object(map) => {
            set.member = map.is_empty();
            for (name, child) in map {
                let mut below = fields_of(at.field(name), child);
                // The presence of a map's key is a field of its own; declared fields are there anyway.
                below.member |= !at.declares(name);
                set.put(Step::Field(name.clone()), below);
            }
        }
        Value::Array(list) => {
            set.member = list.is_empty();
            for (index, item) in list.iter().enumerate() {
                let mut below = fields_of(at.item(), item);
                below.member = true;
                set.put(step_of(at, index, item), below);
            }
        }
        _ => set.member = true,
    }
    set
}

/// What distinguishes two objects.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    pub(super) fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    fn put(&mut self, step: &Step, below: Self) {
        self.added.put(step.clone(), below.added);
        self.modified.put(step.clone(), below.modified);
        self.removed.put(step.clone(), below.removed);
    }
}

/// Compares two values at the same place.
pub(super) fn compare(at: At<'_>, old: Option<&Value>, new: Option<&Value>) -> Comparison {
    let mut result = Comparison::default();
    let (old, new) = match (old, new) {
        (None, None) => return result,
        (Some(old), None) => {
            result.removed = present(at, old);
            return result;
        }
        (None, Some(new)) => {
            result.added = present(at, new);
            return result;
        }
        (Some(old), Some(new)) if old == new => return result,
        (Some(old), Some(new)) => (old, new),
    };
    match (old, new) {
        (Value::Object(a), Value::Object(b)) if !at.is_atomic_map() => {
            for name in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let below = compare(at.field(name), a.get(name), b.get(name));
                result.put(&Step::Field(name.clone()), below);
            }
        }
        (Value::Array(a), Value::Array(b)) if !is_leaf(at, old) && !is_leaf(at, new) => {
            let (a, b) = (by_step(at, a), by_step(at, b));
            let steps = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            for step in steps {
                let below = compare(at.item(), a.get(step).copied(), b.get(step).copied());
                result.put(step, below);
            }
        }
        _ if is_leaf(at, old) && is_leaf(at, new) => result.modified.member = true,
        _ => {
            result.removed = present(at, old).difference(&present(at, new));
            result.added = present(at, new).difference(&present(at, old));
            result.modified.member = true;
        }
    }
    result
}

/// A value that came or went as a whole: its containers count too.
fn present(at: At<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::leaf();
    if !is_leaf(at, value) {
        match value {
            Value::Object(map) => {
                for (name, child) in map {
                    set.put(Step::Field(name.clone()), present(at.field(name), child));
                }
            }
            Value::Array(list) => {
                for (index, item) in list.iter().enumerate() {
                    set.put(step_of(at, index, item), present(at.item(), item));
                }
            }
            _ => {}
        }
    }
    set
}

fn by_step<'a>(at: At<'_>, list: &'a [Value]) -> BTreeMap<Step, &'a Value> {
    list.iter()
        .enumerate()
        .map(|(index, item)| (step_of(at, index, item), item))
        .collect()
}

/// Removes everything in `remove`, subtrees included.
pub(super) fn remove_fields(at: At<'_>, value: &mut Value, remove: &FieldSet) {
    match value {
        Value::Object(map) => remove_from_map(at, map, remove),
        Value::Array(list) if !matches!(at.list_type(), Some(ListType::Atomic) | None) => {
            let mut index = 0;
            list.retain_mut(|item| {
                let step = step_of(at, index, item);
                index += 1;
                match remove.children.get(&step) {
                    Some(set) if set.member => false,
                    Some(set) => {
                        remove_fields(at.item(), item, set);
                        true
                    }
                    None => true,
                }
            });
        }
        _ => {}
    }
}

fn remove_from_map(at: At<'_>, map: &mut Map<String, Value>, remove: &FieldSet) {
    map.retain(|name, child| match remove.children.get(&Step::Field(name.clone())) {
        Some(set) if set.member => false,
        Some(set) => {
            remove_fields(at.field(name), child, set);
            true
        }
        None => true,
    });
}
