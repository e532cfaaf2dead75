//! Between the JSON that the server stores and the types that the rules speak about.

use ferrovirt_core::cause::Cause;
use k8s_openapi::serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::Value;

use super::denial::Denial;
use crate::status::{self, Refusal};

/// Reads an object.
pub(super) fn read<T: DeserializeOwned>(object: &Value, denial: &Denial) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(object).map_err(|error| denial.unreadable(&error))
}

/// Lets `change` complete an object; what it leaves alone stays as it was written, and what cannot be read is the
/// schema's to refuse, which names everything that is wrong. Of its metadata only labels, annotations and finalizers are taken over:
/// the rest belongs to the server.
pub(super) fn edit<T, F>(object: &mut Value, denial: &Denial, change: F) -> Result<Vec<String>, Refusal>
where
    T: Clone + DeserializeOwned + PartialEq + Serialize,
    F: FnOnce(&mut T) -> Result<Vec<String>, Cause>,
{
    let Ok(mut typed) = T::deserialize(&*object) else {
        return Ok(Vec::new());
    };
    let before = typed.clone();
    let warnings = match change(&mut typed) {
        Ok(warnings) => warnings,
        Err(cause) => return denial.unless_empty(vec![cause]).map(|()| Vec::new()),
    };
    if typed == before {
        return Ok(warnings);
    }
    let mut changed = serde_json::to_value(&typed).map_err(status::internal)?;
    let mut put = |parent: Option<&str>, field: &str| {
        let (from, to) = match parent {
            None => (Some(&mut changed), Some(&mut *object)),
            Some(parent) => (changed.get_mut(parent), object.get_mut(parent)),
        };
        let (Some(from), Some(Value::Object(to))) = (from, to) else {
            return;
        };
        if let Some(value) = from.get_mut(field).map(Value::take).filter(|value| !value.is_null()) {
            to.insert(field.to_owned(), value);
        }
    };
    for field in ["labels", "annotations", "finalizers"] {
        put(Some("metadata"), field);
    }
    put(None, "spec");
    put(None, "status");
    Ok(warnings)
}
