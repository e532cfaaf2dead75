//! Sets of field paths: the `fieldsV1` format of `metadata.managedFields`.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A field of an object, or a key of a map.
    Field(String),
    /// An element of a list of objects, by the values of its key fields.
    Key(BTreeMap<String, Value>),
    /// An element of a set.
    Value(Value),
    /// An element of a list by position.
    Index(usize),
}

impl Step {
    /// As in `fieldsV1`: `f:name`, `k:{…}`, `v:…`, `i:…`.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => {
                let map: Map<String, Value> = keys.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                format!("k:{}", Value::Object(map))
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        Some(match kind {
            "f" => Self::Field(rest.to_owned()),
            "k" => match serde_json::from_str(rest).ok()? {
                Value::Object(map) => Self::Key(map.into_iter().collect()),
                _ => return None,
            },
            "v" => Self::Value(serde_json::from_str(rest).ok()?),
            "i" => Self::Index(rest.parse().ok()?),
            _ => return None,
        })
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.encode().cmp(&other.encode()),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", parts.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A set of paths, as a tree. A node can be in the set itself and have descendants that are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether this very path is in the set.
    pub member: bool,
    /// What lies below; never an empty set.
    pub children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    /// A set of only the path it stands at.
    #[must_use]
    pub fn leaf() -> Self {
        Self {
            member: true,
            children: BTreeMap::new(),
        }
    }

    /// Whether no path is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Puts a set below `step`; an empty one leaves nothing behind.
    pub fn put(&mut self, step: Step, set: Self) {
        if !set.is_empty() {
            self.children.entry(step).or_default().unite(set);
        }
    }

    /// Adds everything of `other`.
    pub fn unite(&mut self, other: Self) {
        self.member |= other.member;
        for (step, set) in other.children {
            self.put(step, set);
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut result = Self {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (step, set) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                result.put(step.clone(), set.intersection(theirs));
            }
        }
        result
    }

    /// What is here and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut result = Self {
            member: self.member && !other.member,
            children: BTreeMap::new(),
        };
        for (step, set) in &self.children {
            let rest = other
                .children
                .get(step)
                .map_or_else(|| set.clone(), |theirs| set.difference(theirs));
            result.put(step.clone(), rest);
        }
        result
    }

    /// What is here and neither in `other` nor below a member of it.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        if other.member {
            return Self::default();
        }
        let mut result = Self {
            member: self.member,
            children: BTreeMap::new(),
        };
        for (step, set) in &self.children {
            let rest = other
                .children
                .get(step)
                .map_or_else(|| set.clone(), |theirs| set.recursive_difference(theirs));
            result.put(step.clone(), rest);
        }
        result
    }

    /// The subtree at a path of fields.
    #[must_use]
    pub fn at(&self, fields: &[&str]) -> Option<&Self> {
        fields
            .iter()
            .try_fold(self, |set, field| set.children.get(&Step::Field((*field).to_owned())))
    }

    /// Drops the subtree at a path of fields.
    pub fn remove(&mut self, fields: &[&str]) {
        let Some((first, rest)) = fields.split_first() else {
            return;
        };
        let step = Step::Field((*first).to_owned());
        if rest.is_empty() {
            self.children.remove(&step);
        } else if let Some(child) = self.children.get_mut(&step) {
            child.remove(rest);
            if child.is_empty() {
                self.children.remove(&step);
            }
        }
    }

    /// Every path, printed as `.spec.containers[name="x"].image`.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths(&mut String::new(), &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &mut String, paths: &mut Vec<String>) {
        if self.member {
            paths.push(prefix.clone());
        }
        for (step, set) in &self.children {
            let length = prefix.len();
            prefix.push_str(&step.to_string());
            set.collect_paths(prefix, paths);
            prefix.truncate(length);
        }
    }

    /// The `fieldsV1` form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (step, set) in &self.children {
            map.insert(step.encode(), set.to_json());
        }
        Value::Object(map)
    }

    /// Reads `fieldsV1`; `None` if a step is malformed.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let mut set = Self::read(value)?;
        // The root is an object that nobody owns as such.
        set.member = false;
        Some(set)
    }

    fn read(value: &Value) -> Option<Self> {
        let map = value.as_object()?;
        let mut set = Self {
            member: map.is_empty(),
            children: BTreeMap::new(),
        };
        for (key, child) in map {
            if key == "." {
                set.member = true;
            } else {
                set.put(Step::decode(key)?, Self::read(child)?);
            }
        }
        Some(set)
    }
}
