//! Rules of `metadata` that hold for every kind.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, StatusCause};
use rand::Rng;
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Result, cause};

const FIELDS: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];
const ANNOTATIONS_LIMIT: usize = 256 << 10;
/// The longest generated name is 63 characters, 5 of them random.
const PREFIX_LIMIT: usize = 58;

/// Now, as Kubernetes writes it: whole seconds, UTC.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A text field of `metadata`, empty if absent.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// Whether the object is being deleted.
pub fn deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// The finalizers.
pub fn finalizers(object: &Value) -> Vec<String> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|f| f.as_str().map(str::to_owned))
        .collect()
}

/// Sets or removes the finalizers.
pub fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return;
    };
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
}

/// The metadata as a map; the object must have passed [`decode`].
pub fn map_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]
        .as_object_mut()
        .unwrap_or_else(|| unreachable!("it was just made an object"))
}

/// Checks the shape of an object and of its metadata; removes unknown and empty metadata fields and returns the paths of the unknown ones.
///
/// # Errors
/// 400 if a field has a wrong type.
pub fn decode(object: &mut Value) -> Result<Vec<String>> {
    let Some(map) = object.as_object_mut() else {
        return Err(Failure::bad_request(
            "the object provided is unrecognized: it is not a JSON object",
        ));
    };
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    if let Err(error) = serde::Deserialize::deserialize(&*metadata).map(|_: ObjectMeta| ()) {
        return Err(Failure::bad_request(format!(
            "the object provided is unrecognized: metadata: {error}"
        )));
    }
    let Some(metadata) = metadata.as_object_mut() else {
        return Err(Failure::bad_request(
            "the object provided is unrecognized: metadata: it is not a JSON object",
        ));
    };
    let unknown: Vec<String> = metadata
        .keys()
        .filter(|key| !FIELDS.contains(&key.as_str()))
        .cloned()
        .collect();
    metadata.retain(|key, value| {
        let empty = match value {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        !empty && key != "selfLink" && FIELDS.contains(&key.as_str())
    });
    Ok(unknown.into_iter().map(|key| format!("metadata.{key}")).collect())
}

/// `PREFIX` with five random characters.
pub fn generate_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let end = prefix
        .char_indices()
        .map(|(at, _)| at)
        .take_while(|at| *at <= PREFIX_LIMIT)
        .last()
        .unwrap_or(0);
    let prefix = if prefix.len() > PREFIX_LIMIT {
        &prefix[..end]
    } else {
        prefix
    };
    let mut random = rand::rng();
    let suffix: String = (0..5)
        .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
        .collect();
    format!("{prefix}{suffix}")
}

/// What a name may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters.
    Subdomain,
    /// RFC 1123 label, at most 63 characters.
    Label,
    /// RFC 1035 label: begins with a letter.
    ServiceLabel,
    /// Anything that can be one segment of a path.
    PathSegment,
}

impl NameRule {
    /// The rule of a resource.
    pub fn of(group: &str, resource: &str) -> Self {
        match (group, resource) {
            ("", "namespaces") => Self::Label,
            ("", "services") => Self::ServiceLabel,
            ("rbac.authorization.k8s.io", _) => Self::PathSegment,
            _ => Self::Subdomain,
        }
    }

    /// Why the name is wrong, in Kubernetes' words.
    pub fn problems(self, name: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let limit = if matches!(self, Self::Label | Self::ServiceLabel) {
            63
        } else {
            253
        };
        if self != Self::PathSegment && name.len() > limit {
            problems.push(format!("must be no more than {limit} characters"));
        }
        let fits = match self {
            Self::Subdomain => name.split('.').all(is_label),
            Self::Label => is_label(name),
            Self::ServiceLabel => is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()),
            Self::PathSegment => {
                if name == "." || name == ".." {
                    problems.push(format!("may not be '{name}'"));
                }
                for forbidden in ["/", "%"].into_iter().filter(|c| name.contains(*c)) {
                    problems.push(format!("may not contain '{forbidden}'"));
                }
                true
            }
        };
        if !fits {
            problems.push(self.text().to_owned());
        }
        problems
    }

    fn text(self) -> &'static str {
        match self {
            Self::Subdomain | Self::PathSegment => {
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            }
            Self::Label => {
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            }
            Self::ServiceLabel => {
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            }
        }
    }
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_qualified_part(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// `[PREFIX/]NAME` of labels, annotations and finalizers.
fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => NameRule::Subdomain.problems(prefix).is_empty() && is_qualified_part(name),
        None => is_qualified_part(text),
    }
}

const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Everything wrong with the metadata of an object that is about to be stored.
pub fn validate(group: &str, resource: &str, namespaced: bool, object: &Value) -> Vec<StatusCause> {
    let invalid = |field: &str, value: &str, why: &str| {
        cause(field, "FieldValueInvalid", format!("Invalid value: \"{value}\": {why}"))
    };
    let mut causes = Vec::new();
    let name = text(object, "name");
    if name.is_empty() {
        causes.push(cause(
            "metadata.name",
            "FieldValueRequired",
            "Required value: name or generateName is required",
        ));
    }
    let rule = NameRule::of(group, resource);
    causes.extend(
        rule.problems(name)
            .iter()
            .filter(|_| !name.is_empty())
            .map(|why| invalid("metadata.name", name, why)),
    );
    if !namespaced && !text(object, "namespace").is_empty() {
        causes.push(cause(
            "metadata.namespace",
            "FieldValueForbidden",
            "Forbidden: not allowed on this type",
        ));
    }
    let strings = |field: &str| -> BTreeMap<&str, &str> {
        let map = object["metadata"][field].as_object();
        map.into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
            .collect()
    };
    for (key, value) in strings("labels") {
        if !is_qualified_name(key) {
            causes.push(invalid("metadata.labels", key, QUALIFIED));
        }
        if value.len() > 63 {
            causes.push(invalid("metadata.labels", value, "must be no more than 63 characters"));
        }
        if !value.is_empty() && value.len() <= 63 && !is_qualified_part(value) {
            causes.push(invalid("metadata.labels", value, LABEL_VALUE));
        }
    }
    let annotations = strings("annotations");
    for key in annotations
        .keys()
        .filter(|key| !is_qualified_name(&key.to_ascii_lowercase()))
    {
        causes.push(invalid("metadata.annotations", key, QUALIFIED));
    }
    if annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum::<usize>()
        > ANNOTATIONS_LIMIT
    {
        causes.push(cause(
            "metadata.annotations",
            "FieldValueTooLong",
            format!("Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"),
        ));
    }
    for (index, finalizer) in finalizers(object)
        .iter()
        .enumerate()
        .filter(|(_, finalizer)| !is_qualified_name(finalizer))
    {
        causes.push(invalid(&format!("metadata.finalizers[{index}]"), finalizer, QUALIFIED));
    }
    causes.extend(validate_owners(object));
    causes
}

fn validate_owners(object: &Value) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let mut controllers = 0;
    for (index, owner) in object["metadata"]["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let field = format!("metadata.ownerReferences[{index}].{field}");
                causes.push(cause(
                    &field,
                    "FieldValueInvalid",
                    "Invalid value: \"\": must not be empty",
                ));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        let why = "Invalid value: Only one reference can have Controller set to true";
        causes.push(cause("metadata.ownerReferences", "FieldValueInvalid", why));
    }
    causes
}
