//! The patch types of Kubernetes as pure functions, and the ownership of fields.

pub mod field_set;
mod fields;
pub mod managed_fields;
mod merge;
mod strategic;
#[cfg(test)]
mod tests;

use json_patch::{Patch, PatchErrorKind};
use serde_json::Value;

use crate::schema::Schema;

pub use managed_fields::{ApplyError, Conflict, server_side_apply, track_update};
pub use strategic::strategic_merge;

/// What a `PATCH` request's content type asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own, which knows how lists merge. Only for built-in kinds.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchKind {
    /// The kind for a `Content-Type` header, parameters ignored.
    #[must_use]
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        Some(match content_type.split(';').next()?.trim() {
            "application/json-patch+json" => Self::Json,
            "application/merge-patch+json" => Self::Merge,
            "application/strategic-merge-patch+json" => Self::Strategic,
            "application/apply-patch+yaml" | "application/apply-patch" => Self::Apply,
            _ => return None,
        })
    }
}

/// Why a patch was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400 `BadRequest`.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: 422 `Invalid`.
    #[error("the server rejected our request due to an error in our request: {0}")]
    DoesNotApply(String),
    /// More operations than the server takes: 413 `RequestEntityTooLarge`.
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    /// This kind of patch is not for this resource: 415 `UnsupportedMediaType`.
    #[error("{0}")]
    Unsupported(String),
}

impl PatchError {
    /// The HTTP status that belongs to it.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::DoesNotApply(_) => 422,
            Self::TooManyOperations(_) => 413,
            Self::Unsupported(_) => 415,
        }
    }

    /// The `reason` of its `Status`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "BadRequest",
            Self::DoesNotApply(_) => "Invalid",
            Self::TooManyOperations(_) => "RequestEntityTooLarge",
            Self::Unsupported(_) => "UnsupportedMediaType",
        }
    }
}

/// As in Kubernetes.
const MAX_OPERATIONS: usize = 10_000;

/// `current` changed by `patch`. Server-side apply is [`server_side_apply`], not this.
///
/// # Errors
/// The patch is malformed, does not fit, or is of a kind that this resource does not take.
pub fn apply_patch(kind: PatchKind, current: &Value, patch: &Value, schema: &Schema) -> Result<Value, PatchError> {
    match kind {
        PatchKind::Json => json_patch(current, patch),
        PatchKind::Merge if patch.is_object() => {
            let mut patched = current.clone();
            json_patch::merge(&mut patched, patch);
            Ok(patched)
        }
        PatchKind::Merge => Err(PatchError::Malformed(
            "error decoding patch: a merge patch must be an object".into(),
        )),
        PatchKind::Strategic if schema.is_custom() => Err(PatchError::Unsupported(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                .into(),
        )),
        PatchKind::Strategic => strategic_merge(current, patch, schema),
        PatchKind::Apply => Err(PatchError::Unsupported("an apply patch needs a field manager".into())),
    }
}

fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations: Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    if operations.0.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations(operations.0.len()));
    }
    let mut patched = current.clone();
    json_patch::patch(&mut patched, &operations.0).map_err(|error| {
        let path = error.path.as_str();
        PatchError::DoesNotApply(match &error.kind {
            PatchErrorKind::TestFailed => format!("testing value {path} failed"),
            kind => format!("operation {} at {path:?} cannot be done: {kind}", error.operation),
        })
    })?;
    Ok(patched)
}
