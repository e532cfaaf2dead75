//! Schemas of kinds, compiled once and shared: validation, pruning, defaulting, and how lists and maps merge.
//!
//! A [`Schema`] is a root in an [`Arena`] of nodes. Equal subtrees are one node, so that the many kinds that embed the
//! same specification cost their memory once per kind and not once per mention; recursion is an index, not a pointer.

mod compile;
mod formats;
mod object;
#[cfg(test)]
mod tests;
mod validate;

use std::fmt;
use std::sync::Arc;

use serde_json::{Number, Value};

pub use compile::SchemaError;
pub(crate) use compile::{Arena, compile_definitions, object_meta};

/// One thing wrong with one field, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Path such as `spec.containers[0].name`.
    pub field: String,
    /// `FieldValueInvalid`, `FieldValueRequired` … as in `status.details.causes[].reason`.
    pub reason: &'static str,
    /// The message without the field.
    pub message: String,
}

impl Cause {
    /// `Required value` (with a detail, if not empty).
    #[must_use]
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, "FieldValueRequired", "Required value", detail)
    }

    /// `Invalid value: …: detail`.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(
            field,
            "FieldValueInvalid",
            &format!("Invalid value: {}", quoted(value)),
            detail,
        )
    }

    /// `Forbidden: detail`.
    #[must_use]
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, "FieldValueForbidden", "Forbidden", detail)
    }

    /// `Duplicate value: …`.
    #[must_use]
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(
            field,
            "FieldValueDuplicate",
            &format!("Duplicate value: {}", quoted(value)),
            "",
        )
    }

    /// `Unsupported value: "x": supported values: "a", "b"`.
    #[must_use]
    pub fn unsupported<S: fmt::Display>(field: impl Into<String>, value: &Value, supported: &[S]) -> Self {
        let mut names: Vec<String> = supported.iter().map(|s| format!("{:?}", s.to_string())).collect();
        names.sort();
        let message = format!("Unsupported value: {}", quoted(value));
        Self::new(
            field,
            "FieldValueNotSupported",
            &message,
            &format!("supported values: {}", names.join(", ")),
        )
    }

    pub(crate) fn new(field: impl Into<String>, reason: &'static str, what: &str, detail: &str) -> Self {
        let message = if detail.is_empty() {
            what.to_owned()
        } else {
            format!("{what}: {detail}")
        };
        Self {
            field: field.into(),
            reason,
            message,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// The text of a 422 `Invalid`: `Pod "x" is invalid: …`. `kind` is `Kind` or `Kind.group`.
#[must_use]
pub fn invalid_message(kind: &str, name: &str, causes: &[Cause]) -> String {
    let texts: Vec<String> = causes.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [] => format!("{kind} {name:?} is invalid"),
        [one] => format!("{kind} {name:?} is invalid: {one}"),
        many => format!("{kind} {name:?} is invalid: [{}]", many.join(", ")),
    }
}

/// As Kubernetes prints values in messages: strings quoted, everything else as JSON.
fn quoted(value: &Value) -> String {
    value.to_string()
}

/// Index of a node in its arena.
pub(crate) type NodeId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Type {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// How two versions of a list become one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum ListType {
    /// One value: the whole list has one owner.
    #[default]
    Atomic,
    /// Each element is its own.
    Set,
    /// Elements are found by the values of these fields.
    Map(Box<[Box<str>]>),
}

/// How a strategic merge patch treats a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PatchList {
    /// Elements are merged by this field.
    MergeBy(Box<str>),
    /// Elements are scalars, joined as a set.
    Union,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Additional {
    #[default]
    None,
    Any,
    Node(NodeId),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) ty: Option<Type>,
    pub(crate) nullable: bool,
    pub(crate) int_or_string: bool,
    pub(crate) preserve: bool,
    pub(crate) embedded: bool,
    pub(crate) atomic_map: bool,
    pub(crate) list: ListType,
    pub(crate) patch_list: Option<PatchList>,
    pub(crate) additional: Additional,
    pub(crate) items: Option<NodeId>,
    /// Sorted by name.
    pub(crate) properties: Box<[(Box<str>, NodeId)]>,
    pub(crate) required: Box<[Box<str>]>,
    pub(crate) default: Option<Box<Value>>,
    pub(crate) rules: Option<Box<Rules>>,
}

impl Node {
    pub(crate) fn property(&self, name: &str) -> Option<NodeId> {
        self.properties
            .binary_search_by(|(n, _)| (**n).cmp(name))
            .ok()
            .map(|i| self.properties[i].1)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    pub(crate) format: Option<Box<str>>,
    pub(crate) pattern: Option<usize>,
    pub(crate) enumeration: Box<[Value]>,
    pub(crate) minimum: Option<(Number, bool)>,
    pub(crate) maximum: Option<(Number, bool)>,
    pub(crate) multiple_of: Option<Number>,
    pub(crate) length: (Option<u64>, Option<u64>),
    pub(crate) items: (Option<u64>, Option<u64>),
    pub(crate) properties: (Option<u64>, Option<u64>),
    pub(crate) unique_items: bool,
    pub(crate) all_of: Box<[NodeId]>,
    pub(crate) any_of: Box<[NodeId]>,
    pub(crate) one_of: Box<[NodeId]>,
    pub(crate) not: Option<NodeId>,
}

/// What is known of a kind: what its objects may contain and how their parts merge. Cheap to clone.
#[derive(Clone)]
pub struct Schema {
    arena: Arc<Arena>,
    root: NodeId,
    /// A custom resource: unknown fields outside the schema are pruned, `null` and defaults follow CRD rules.
    custom: bool,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema")
            .field("root", &self.root)
            .field("nodes", &self.arena.nodes.len())
            .finish()
    }
}

impl Schema {
    /// Compiles the `openAPIV3Schema` of a CRD version. `apiVersion`, `kind` and `metadata` are added.
    ///
    /// # Errors
    /// The schema is not structural; every problem is listed with its path.
    pub fn from_json(schema: &Value) -> Result<Self, SchemaError> {
        let (arena, root) = compile::compile_custom(schema)?;
        Ok(Self {
            arena: Arc::new(arena),
            root,
            custom: true,
        })
    }

    /// A schema that knows only `apiVersion`, `kind` and `metadata` and keeps everything else as it is.
    #[must_use]
    pub fn any() -> Self {
        let schema = serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        Self::from_json(&schema).unwrap_or_else(|_| Self {
            arena: Arc::default(),
            root: 0,
            custom: true,
        })
    }

    /// A root in an arena that was compiled from definitions that refer to each other.
    pub(crate) fn in_arena(arena: Arc<Arena>, definition: &str) -> Option<Self> {
        let root = *arena.names.get(definition)?;
        Some(Self {
            arena,
            root,
            custom: false,
        })
    }

    /// Whether it is the schema of a custom resource.
    #[must_use]
    pub fn is_custom(&self) -> bool {
        self.custom
    }

    /// The root, to walk down from.
    #[must_use]
    pub fn root(&self) -> At<'_> {
        At {
            arena: &self.arena,
            id: Some(self.root),
        }
    }

    /// The node at a path of field names; `*` or a number steps into list elements or map values.
    #[must_use]
    pub fn lookup(&self, path: &[&str]) -> At<'_> {
        path.iter().fold(self.root(), |at, step| match at.list_type() {
            Some(_) => at.item(),
            None => at.field(step),
        })
    }
}

/// A place in a schema; also stands for places that the schema does not describe.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub(crate) arena: &'a Arena,
    pub(crate) id: Option<NodeId>,
}

impl<'a> At<'a> {
    pub(crate) fn node(self) -> Option<&'a Node> {
        self.id.and_then(|id| self.arena.nodes.get(id as usize))
    }

    fn to(self, id: Option<NodeId>) -> Self {
        Self { arena: self.arena, id }
    }

    /// Whether the schema says anything about this place.
    #[must_use]
    pub fn is_known(self) -> bool {
        self.id.is_some()
    }

    /// The field of an object, or the value type of a map.
    #[must_use]
    pub fn field(self, name: &str) -> Self {
        let Some(node) = self.node() else { return self };
        self.to(node.property(name).or(match node.additional {
            Additional::Node(id) => Some(id),
            Additional::None | Additional::Any => None,
        }))
    }

    /// Whether `name` is a declared field here (in contrast to a key of a map).
    #[must_use]
    pub fn declares(self, name: &str) -> bool {
        self.node().is_some_and(|n| n.property(name).is_some())
    }

    /// The elements of a list.
    #[must_use]
    pub fn item(self) -> Self {
        self.to(self.node().and_then(|n| n.items))
    }

    /// How the list here merges; `None` if this is no list.
    #[must_use]
    pub fn list_type(self) -> Option<&'a ListType> {
        self.node().filter(|n| n.ty == Some(Type::Array)).map(|n| &n.list)
    }

    /// Whether the object here is one value.
    #[must_use]
    pub fn is_atomic_map(self) -> bool {
        self.node().is_some_and(|n| n.atomic_map)
    }

    pub(crate) fn patch_list(self) -> Option<&'a PatchList> {
        self.node().and_then(|n| n.patch_list.as_ref())
    }

    /// Default of a field of this list's elements, which takes part in finding elements by key.
    pub(crate) fn default_of(self, name: &str) -> Option<&'a Value> {
        self.field(name).node().and_then(|n| n.default.as_deref())
    }
}
