//! Reads an object as its type, and finds all of its fields that cannot be read, not only the first.

use std::collections::BTreeMap;

use ferrovirt_core::cause::Cause;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serde_path_to_error::{Path, Segment};

/// So many fields of wrong types are told at once.
const MOST: usize = 100;

/// Reads an object as `T`, and judges it. Fields that `T` does not know are complained about, too. Where fields have
/// wrong types or are missing, those are told, and nothing is judged.
pub(super) fn typed<T>(object: &Value, judge: impl FnOnce(T) -> Vec<Cause>) -> Vec<(String, String)>
where
    T: DeserializeOwned + Serialize,
{
    let mut reader = Reader {
        readable: object.clone(),
        causes: Vec::new(),
        guesses: BTreeMap::new(),
    };
    let read: T = loop {
        match serde_path_to_error::deserialize(&reader.readable) {
            Ok(read) => break read,
            Err(error) => {
                let path = error.path().clone();
                if !reader.mend(&path, error.into_inner().to_string()) {
                    return reader.causes;
                }
            }
        }
    };
    let known = serde_json::to_value(&read).unwrap_or_default();
    unknown(&reader.readable, &known, "", &mut reader.causes);
    if reader.readable == *object {
        let judged = judge(read);
        reader
            .causes
            .extend(judged.into_iter().map(|cause| (cause.field, cause.message)));
    }
    reader.causes
}

/// What is made of an object, so that all of it can be read, and what was wrong with it.
struct Reader {
    readable: Value,
    causes: Vec<(String, String)>,
    /// By their fields: how many values were tried in place of what is missing, or cannot be read.
    guesses: BTreeMap<String, usize>,
}

impl Reader {
    /// Tells what is wrong at a path, and makes it readable; whether it could.
    fn mend(&mut self, path: &Path, message: String) -> bool {
        let field = path.to_string();
        let field = if field == "." { String::new() } else { field };
        if let Some(name) = missing(&message).map(str::to_owned) {
            let whole = if field.is_empty() {
                name.clone()
            } else {
                format!("{field}.{name}")
            };
            // What is missing of a value that was put there, or taken away, is not the user's mistake.
            if !self.is_ours(&whole) {
                if self.causes.len() == MOST {
                    return false;
                }
                self.causes.push((field, message));
            }
            self.guesses.entry(whole).or_insert(0);
            let fields = at(&mut self.readable, path.iter()).and_then(Value::as_object_mut);
            return fields.is_some_and(|fields| fields.insert(name, json!({})).is_none());
        }
        if let Some(guesses) = self.guesses.get_mut(&field) {
            // It is of another type than what was put in its place.
            *guesses += 1;
            let (place, value) = (at(&mut self.readable, path.iter()), guess(*guesses));
            return place.zip(value).map(|(place, value)| *place = value).is_some();
        }
        if self.causes.len() == MOST {
            return false;
        }
        self.causes.push((field.clone(), message));
        self.guesses.insert(field, 0);
        clear(&mut self.readable, path)
    }

    /// Whether a field, or what it is in, was mended before.
    fn is_ours(&self, field: &str) -> bool {
        let holds = |outer: &String| {
            let rest = field.strip_prefix(outer.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.guesses.keys().any(holds)
    }
}

/// Name of the field that a message says is missing.
fn missing(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.split('`').next()
}

/// What a field may be, so that the rest can be read.
fn guess(index: usize) -> Option<Value> {
    [json!({}), json!(""), json!([]), json!(0), json!(false)]
        .get(index)
        .cloned()
}

fn at<'v, 's>(object: &'v mut Value, steps: impl IntoIterator<Item = &'s Segment>) -> Option<&'v mut Value> {
    steps.into_iter().try_fold(object, |at, step| match step {
        Segment::Map { key } => at.get_mut(key),
        Segment::Seq { index } => at.get_mut(*index),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

/// Takes away what cannot be read, or empties an item of a list, whose others keep their places; whether it was there.
fn clear(object: &mut Value, path: &Path) -> bool {
    let mut steps: Vec<&Segment> = path.iter().collect();
    let last = steps.pop();
    match (at(object, steps), last) {
        (Some(Value::Object(fields)), Some(Segment::Map { key })) => fields.remove(key).is_some(),
        (Some(Value::Array(items)), Some(Segment::Seq { index })) => {
            items.get_mut(*index).map(|item| *item = json!({})).is_some()
        }
        _ => false,
    }
}

/// Fields of `given` that are not in `known`, which was made of it: nobody knows them. What is empty may be left out.
fn unknown(given: &Value, known: &Value, path: &str, causes: &mut Vec<(String, String)>) {
    match (given, known) {
        (Value::Object(fields), Value::Object(known)) => {
            for (key, value) in fields.iter().filter(|(key, _)| !(path.is_empty() && *key == "status")) {
                let path = match path {
                    "" => key.clone(),
                    _ if key.contains(['.', '/']) => format!("{path}[{key}]"),
                    _ => format!("{path}.{key}"),
                };
                match known.get(key) {
                    Some(known) => unknown(value, known, &path, causes),
                    None if is_empty(value) => {}
                    None => causes.push((path, "unknown field".to_owned())),
                }
            }
        }
        (Value::Array(items), Value::Array(known)) => {
            for (index, (item, known)) in items.iter().zip(known).enumerate() {
                unknown(item, known, &format!("{path}[{index}]"), causes);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}
