//! From OpenAPI v3 JSON to the arena.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::{Additional, Cause, ListType, Node, NodeId, PatchList, Rules, Type};

/// A CRD schema that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("schema is not structural: {}", .causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct SchemaError {
    /// Every problem, with paths from `openAPIV3Schema`.
    pub causes: Vec<Cause>,
}

/// All nodes of one CRD version, or of all built-in kinds.
#[derive(Default)]
pub(crate) struct Arena {
    pub(crate) nodes: Vec<Node>,
    pub(crate) names: HashMap<Box<str>, NodeId>,
    patterns: Vec<(Box<str>, OnceLock<Option<Regex>>)>,
}

impl Arena {
    /// The pattern's text, and the expression if it is a valid one. Compiled at first use: most never are.
    pub(crate) fn pattern(&self, index: usize) -> (&str, Option<&Regex>) {
        let (text, regex) = &self.patterns[index];
        (text, regex.get_or_init(|| Regex::new(text).ok()).as_ref())
    }
}

/// `metadata` as every kind has it.
pub(crate) fn object_meta() -> Value {
    let string = json!({"type": "string"});
    let strings = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let time = json!({"type": "string", "format": "date-time", "nullable": true});
    let owner = json!({
        "type": "object", "required": ["apiVersion", "kind", "name", "uid"], "x-kubernetes-map-type": "atomic",
        "properties": {"apiVersion": string, "kind": string, "name": string, "uid": string,
            "controller": {"type": "boolean"}, "blockOwnerDeletion": {"type": "boolean"}},
    });
    let entry = json!({
        "type": "object",
        "properties": {"manager": string, "operation": string, "apiVersion": string, "time": time, "fieldsType": string,
            "subresource": string, "fieldsV1": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
    });
    json!({
        "type": "object",
        "properties": {
            "name": string, "generateName": string, "namespace": string, "selfLink": string, "uid": string,
            "resourceVersion": string, "generation": {"type": "integer", "format": "int64"},
            "creationTimestamp": time, "deletionTimestamp": time,
            "deletionGracePeriodSeconds": {"type": "integer", "format": "int64"},
            "labels": strings, "annotations": strings,
            "ownerReferences": {"type": "array", "items": owner, "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["uid"], "x-kubernetes-patch-merge-key": "uid"},
            "finalizers": {"type": "array", "items": string, "x-kubernetes-list-type": "set",
                "x-kubernetes-patch-strategy": "merge"},
            "managedFields": {"type": "array", "items": entry},
        },
    })
}

pub(super) fn compile_custom(schema: &Value) -> Result<(Arena, NodeId), SchemaError> {
    let mut compiler = Compiler {
        structural: true,
        ..Compiler::default()
    };
    let mut path = "openAPIV3Schema".to_owned();
    let mut node = compiler.node(schema, &mut path, true);
    if node.ty != Some(Type::Object) {
        compiler.causes.push(Cause::invalid(
            "openAPIV3Schema.type",
            &schema["type"],
            "must be object at the root",
        ));
    }
    compiler.add_type_meta(&mut node);
    if !compiler.causes.is_empty() {
        return Err(SchemaError {
            causes: compiler.causes,
        });
    }
    let root = compiler.intern(node);
    Ok((compiler.finish(), root))
}

/// Compiles definitions that refer to each other by `#/…/NAME`; unknown names mean "anything".
pub(crate) fn compile_definitions(definitions: &Map<String, Value>) -> Arena {
    let mut compiler = Compiler::default();
    for (id, name) in (0..).zip(definitions.keys()) {
        compiler.nodes.push(Node::default());
        compiler.names.insert(name.as_str().into(), id);
    }
    let mut path = String::new();
    for (id, schema) in definitions.values().enumerate() {
        compiler.nodes[id] = compiler.node(schema, &mut path, false);
    }
    compiler.finish()
}

#[derive(Default)]
struct Compiler {
    nodes: Vec<Node>,
    names: HashMap<Box<str>, NodeId>,
    patterns: Vec<Box<str>>,
    by_hash: HashMap<u64, Vec<NodeId>>,
    state: RandomState,
    /// CRD rules: types are required, references are not allowed.
    structural: bool,
    causes: Vec<Cause>,
}

impl Compiler {
    fn finish(self) -> Arena {
        let mut nodes = self.nodes;
        nodes.shrink_to_fit();
        Arena {
            nodes,
            names: self.names,
            patterns: self.patterns.into_iter().map(|p| (p, OnceLock::new())).collect(),
        }
    }

    /// The id of a node that equals this one.
    fn intern(&mut self, node: Node) -> NodeId {
        let hash = self.state.hash_one(&node);
        let same = self.by_hash.entry(hash).or_default();
        if let Some(id) = same.iter().find(|id| self.nodes[**id as usize] == node) {
            return *id;
        }
        let id = NodeId::try_from(self.nodes.len()).unwrap_or(NodeId::MAX);
        same.push(id);
        self.nodes.push(node);
        id
    }

    fn add_type_meta(&mut self, node: &mut Node) {
        let mut properties: Vec<_> = node.properties.to_vec();
        properties.retain(|(name, _)| !matches!(&**name, "apiVersion" | "kind" | "metadata"));
        let string = self.child(&json!({"type": "string"}), "");
        let metadata = self.child(&object_meta(), "");
        for (name, id) in [("apiVersion", string), ("kind", string), ("metadata", metadata)] {
            properties.push((name.into(), id));
        }
        properties.sort();
        node.properties = properties.into();
    }

    fn child(&mut self, schema: &Value, path: &str) -> NodeId {
        let mut path = path.to_owned();
        self.subschema(schema, &mut path, "", true)
    }

    fn subschema(&mut self, schema: &Value, path: &mut String, step: &str, typed: bool) -> NodeId {
        if let Some(id) = reference(schema).and_then(|name| self.names.get(name)) {
            return *id;
        }
        let length = path.len();
        path.push_str(step);
        let node = self.node(schema, path, typed);
        path.truncate(length);
        self.intern(node)
    }

    fn node(&mut self, schema: &Value, path: &mut String, typed: bool) -> Node {
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let ty = type_of(&schema["type"]);
        let mut node = Node {
            ty,
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            atomic_map: schema["x-kubernetes-map-type"] == "atomic",
            list: list_type(schema),
            required: strings(&schema["required"]),
            default: schema.get("default").map(|d| Box::new(d.clone())),
            ..Node::default()
        };
        node.patch_list = patch_list(schema, &node.list);
        if self.structural {
            self.check(schema, &node, path, typed);
        }
        self.children(schema, &mut node, path, typed);
        if node.embedded && typed {
            self.add_type_meta(&mut node);
        }
        node.rules = self.rules(schema, path);
        node
    }

    fn children(&mut self, schema: &Value, node: &mut Node, path: &mut String, typed: bool) {
        if let Some(properties) = schema["properties"].as_object() {
            let mut all: Vec<(Box<str>, NodeId)> = properties
                .iter()
                .map(|(k, v)| {
                    (
                        k.as_str().into(),
                        self.subschema(v, path, &format!(".properties[{k}]"), typed),
                    )
                })
                .collect();
            all.sort();
            node.properties = all.into();
        }
        node.additional = match &schema["additionalProperties"] {
            Value::Bool(true) => Additional::Any,
            additional @ Value::Object(_) => {
                Additional::Node(self.subschema(additional, path, ".additionalProperties", typed))
            }
            _ => Additional::None,
        };
        if schema["items"].is_object() {
            node.items = Some(self.subschema(&schema["items"], path, ".items", typed));
        }
    }

    /// The rules for structural schemas that would change what is stored if they were broken.
    fn check(&mut self, schema: &Value, node: &Node, path: &str, typed: bool) {
        let at = |field: &str| format!("{path}.{field}");
        if !schema.is_object() {
            self.causes
                .push(Cause::invalid(path, schema, "must be a schema object"));
            return;
        }
        if let Some(name) = schema.get("$ref") {
            self.causes
                .push(Cause::invalid(at("$ref"), name, "must not be used in a CRD"));
        }
        if let Some(name) = schema.get("type")
            && node.ty.is_none()
        {
            let known = ["array", "boolean", "integer", "number", "object", "string"];
            self.causes.push(Cause::unsupported(at("type"), name, &known));
        } else if typed && node.ty.is_none() && !node.int_or_string && !node.preserve {
            let detail = "must not be empty for specified object fields";
            self.causes.push(Cause::required(at("type"), detail));
        }
        if schema["properties"].is_object() && schema["additionalProperties"].is_object() {
            let detail = "additionalProperties and properties are mutual exclusive";
            self.causes.push(Cause::forbidden(at("additionalProperties"), detail));
        }
        if typed && node.ty == Some(Type::Array) && !schema["items"].is_object() {
            self.causes.push(Cause::required(at("items"), "must be specified"));
        }
        if let ListType::Map(keys) = &node.list {
            let properties = &schema["items"]["properties"];
            for key in keys.iter().filter(|k| properties.get(&***k).is_none()) {
                let detail = "entries must all be names of item properties";
                self.causes
                    .push(Cause::invalid(at("x-kubernetes-list-map-keys"), &json!(key), detail));
            }
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && let Err(error) = Regex::new(pattern)
        {
            let detail = format!("must be a valid regular expression, but isn't: {error}");
            self.causes
                .push(Cause::invalid(at("pattern"), &json!(pattern), &detail));
        }
    }

    fn rules(&mut self, schema: &Value, path: &mut String) -> Option<Box<Rules>> {
        let number = |name: &str| schema[name].as_number().cloned();
        let bound = |name: &str, exclusive: &str| match &schema[exclusive] {
            Value::Number(n) => Some((n.clone(), true)),
            flag => number(name).map(|n| (n, flag == true)),
        };
        let range = |min: &str, max: &str| (schema[min].as_u64(), schema[max].as_u64());
        let rules = Rules {
            format: schema["format"].as_str().map(Into::into),
            pattern: schema["pattern"].as_str().map(|p| self.pattern(p)),
            enumeration: schema["enum"].as_array().cloned().unwrap_or_default().into(),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            length: range("minLength", "maxLength"),
            items: range("minItems", "maxItems"),
            properties: range("minProperties", "maxProperties"),
            unique_items: schema["uniqueItems"] == true,
            all_of: self.junctor(schema, "allOf", path),
            any_of: self.junctor(schema, "anyOf", path),
            one_of: self.junctor(schema, "oneOf", path),
            not: schema.get("not").map(|n| self.subschema(n, path, ".not", false)),
        };
        (rules != Rules::default()).then(|| Box::new(rules))
    }

    fn junctor(&mut self, schema: &Value, name: &str, path: &mut String) -> Box<[NodeId]> {
        let Some(list) = schema[name].as_array() else {
            return Box::default();
        };
        list.iter()
            .enumerate()
            .map(|(i, s)| self.subschema(s, path, &format!(".{name}[{i}]"), false))
            .collect()
    }

    fn pattern(&mut self, pattern: &str) -> usize {
        self.patterns.iter().position(|p| &**p == pattern).unwrap_or_else(|| {
            self.patterns.push(pattern.into());
            self.patterns.len() - 1
        })
    }
}

/// The name that `$ref` points to, also when it is wrapped in a single `allOf`.
fn reference(schema: &Value) -> Option<&str> {
    let schema = match schema["allOf"].as_array().map(Vec::as_slice) {
        Some([only]) => only,
        _ => schema,
    };
    schema["$ref"].as_str().and_then(|r| r.rsplit('/').next())
}

fn type_of(value: &Value) -> Option<Type> {
    Some(match value.as_str()? {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ => return None,
    })
}

fn strings(value: &Value) -> Box<[Box<str>]> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Into::into)
        .collect()
}

fn list_type(schema: &Value) -> ListType {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => ListType::Set,
        Some("map") => ListType::Map(strings(&schema["x-kubernetes-list-map-keys"])),
        _ => ListType::Atomic,
    }
}

fn patch_list(schema: &Value, list: &ListType) -> Option<PatchList> {
    if let Some(key) = schema["x-kubernetes-patch-merge-key"].as_str() {
        return Some(PatchList::MergeBy(key.into()));
    }
    let merges = schema["x-kubernetes-patch-strategy"]
        .as_str()
        .is_some_and(|s| s.contains("merge"));
    (merges && *list == ListType::Set).then_some(PatchList::Union)
}
