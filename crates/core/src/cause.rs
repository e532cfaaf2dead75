//! Why an object is refused, in the words of the Kubernetes API.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;

/// The kinds of causes that admission answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CauseReason {
    /// A field that must be there is missing or empty.
    FieldValueRequired,
    /// A value is malformed or contradicts another one.
    FieldValueInvalid,
    /// A value or field is known, but not available here.
    FieldValueNotSupported,
    /// A value occurs twice where it must be unique.
    FieldValueDuplicate,
}

impl CauseReason {
    /// The API's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FieldValueRequired => "FieldValueRequired",
            Self::FieldValueInvalid => "FieldValueInvalid",
            Self::FieldValueNotSupported => "FieldValueNotSupported",
            Self::FieldValueDuplicate => "FieldValueDuplicate",
        }
    }
}

impl fmt::Display for CauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One reason to refuse an object: which field, why, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable kind.
    pub reason: CauseReason,
    /// JSON path of the field, e.g. `spec.domain.devices.disks[0].name`.
    pub field: String,
    /// For people; complete without the field.
    pub message: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for Cause {}

impl From<Cause> for StatusCause {
    fn from(cause: Cause) -> Self {
        Self {
            field: Some(cause.field),
            message: Some(cause.message),
            reason: Some(cause.reason.as_str().to_owned()),
        }
    }
}

/// One line out of all causes: the message of the `Status` that carries them.
#[must_use]
pub fn summary(causes: &[Cause]) -> String {
    match causes {
        [] => String::new(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}

/// A JSON path that grows towards the leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath(String);

impl FieldPath {
    /// A path's first element.
    #[must_use]
    pub fn root(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The field `name` below this one; dots in it descend further.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self(format!("{}.{name}", self.0))
    }

    /// The element `index` of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The entry `key` of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Collects causes: no rule stops at the first mistake.
#[derive(Debug, Default)]
pub(crate) struct Causes(Vec<Cause>);

impl Causes {
    fn push(&mut self, reason: CauseReason, field: &FieldPath, message: impl Into<String>) {
        let cause = Cause {
            reason,
            field: field.to_string(),
            message: message.into(),
        };
        if !self.0.contains(&cause) {
            self.0.push(cause);
        }
    }

    pub(crate) fn required(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.push(CauseReason::FieldValueRequired, field, message);
    }

    pub(crate) fn invalid(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.push(CauseReason::FieldValueInvalid, field, message);
    }

    pub(crate) fn not_supported(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.push(CauseReason::FieldValueNotSupported, field, message);
    }

    pub(crate) fn duplicate(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.push(CauseReason::FieldValueDuplicate, field, message);
    }

    /// Valid in the API, not built here: refused rather than ignored.
    pub(crate) fn not_yet(&mut self, field: &FieldPath) {
        self.not_supported(field, format!("not supported yet: {field}"));
    }

    /// [`Self::not_yet`] for each field of `parent` that is set.
    pub(crate) fn none_of(&mut self, parent: &FieldPath, fields: &[(&str, bool)]) {
        for (name, set) in fields {
            if *set {
                self.not_yet(&parent.child(name));
            }
        }
    }

    /// Refuses `value` unless it is one of `allowed`; says which are.
    pub(crate) fn one_of(&mut self, field: &FieldPath, value: &str, allowed: &[&str]) -> bool {
        let known = allowed.contains(&value);
        if !known {
            let list = allowed.join(", ");
            self.not_supported(field, format!("\"{value}\" is not one of {list}"));
        }
        known
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<Cause> {
        self.0
    }

    pub(crate) fn extend(&mut self, others: Vec<Cause>) {
        for cause in others {
            if !self.0.contains(&cause) {
                self.0.push(cause);
            }
        }
    }
}
