//! Definitions of the kinds, in the dialects of OpenAPI 3 and 2.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::builtin::definitions::{LIST_META, OBJECT_META, generate};
use crate::builtin::{ResourceInfo, SchemaSource};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub(super) fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    /// A reference with a description beside it, which OpenAPI 3 does not allow as such.
    fn described(self, name: &str, description: &str) -> Value {
        let mut reference = self.reference(name);
        if self == Self::V3 {
            return json!({"allOf": [reference], "description": description});
        }
        reference["description"] = description.into();
        reference
    }
}

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should \
    convert recognized schemas to the latest internal value, and may reject unrecognized values.";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this \
    from the endpoint the client submits requests to. Cannot be updated. In CamelCase.";
const METADATA: &str = "Standard object's metadata.";

/// Name of the definition of a resource's kind: `io.kubevirt.v1.VirtualMachine`.
pub(super) fn definition_name(resource: &ResourceInfo) -> String {
    match &resource.source {
        SchemaSource::Builtin { definition, .. } => (*definition).to_owned(),
        SchemaSource::Custom(_) => {
            let group: Vec<&str> = resource.group.split('.').rev().collect();
            format!("{}.{}.{}", group.join("."), resource.version, resource.kind)
        }
    }
}

pub(super) fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "kind": kind, "version": version})
}

pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
pub(super) const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    let _reference = generator.subschema_for::<T>();
}

/// Yields each definition by name; those of custom resources are parsed one at a time.
pub(super) struct Components<'a> {
    dialect: Dialect,
    builtin: std::vec::IntoIter<(String, Value)>,
    custom: std::vec::IntoIter<&'a ResourceInfo>,
    lists: std::vec::IntoIter<&'a ResourceInfo>,
}

impl<'a> Components<'a> {
    pub(super) fn of(resources: &[&'a ResourceInfo], dialect: Dialect) -> Self {
        let mut adds: Vec<fn(&mut SchemaGenerator)> = vec![
            add::<meta::ObjectMeta>,
            add::<meta::ListMeta>,
            add::<meta::DeleteOptions>,
            add::<meta::Status>,
        ];
        let (mut custom, mut lists) = (Vec::new(), Vec::new());
        let mut kinds: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for resource in resources {
            match &resource.source {
                SchemaSource::Builtin { definition, add } => {
                    adds.push(*add);
                    let kind = gvk(&resource.group, &resource.version, &resource.kind);
                    kinds.entry(definition).or_default().push(kind);
                }
                SchemaSource::Custom(_) => custom.push(*resource),
            }
            if resource.is_stored() {
                lists.push(*resource);
            }
            if resource.scale.is_some() {
                adds.push(add::<Scale>);
            }
        }
        let mut definitions = generate(&adds);
        definitions.insert(
            PATCH.to_owned(),
            json!({"type": "object", "description": "A patch of an object."}),
        );
        kinds.entry(SCALE).or_default().push(gvk("autoscaling", "v1", "Scale"));
        for (name, kinds) in kinds {
            if let Some(definition) = definitions.get_mut(name) {
                definition["x-kubernetes-group-version-kind"] = kinds.into();
            }
        }
        let mut builtin: Vec<(String, Value)> = definitions.into_iter().collect();
        for (name, definition) in &mut builtin {
            scalar(name, definition, dialect);
            translate(definition, dialect);
        }
        Self {
            dialect,
            builtin: builtin.into_iter(),
            custom: custom.into_iter(),
            lists: lists.into_iter(),
        }
    }

    /// All definitions as the inside of a JSON object.
    pub(super) fn join(self) -> String {
        let mut text = String::new();
        for (name, definition) in self {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{}:{}", Value::from(name), definition.get());
        }
        text
    }

    fn custom(&self, resource: &ResourceInfo, schema: &str) -> Option<Box<RawValue>> {
        let mut root: BTreeMap<&str, Box<RawValue>> = serde_json::from_str(schema).ok()?;
        let mut properties: BTreeMap<String, Box<RawValue>> = root
            .get("properties")
            .and_then(|p| serde_json::from_str(p.get()).ok())
            .unwrap_or_default();
        if self.dialect == Dialect::V2 {
            for property in properties.values_mut() {
                let mut value: Value = serde_json::from_str(property.get()).ok()?;
                translate_custom(&mut value);
                *property = raw(&value)?;
            }
            root.retain(|name, _| matches!(*name, "type" | "description" | "required"));
        }
        for (name, value) in type_meta(self.dialect, OBJECT_META, METADATA) {
            properties.insert(name, raw(&value)?);
        }
        root.insert("properties", serde_json::value::to_raw_value(&properties).ok()?);
        let kinds = json!([gvk(&resource.group, &resource.version, &resource.kind)]);
        root.insert("x-kubernetes-group-version-kind", raw(&kinds)?);
        serde_json::value::to_raw_value(&root).ok()
    }

    fn list(&self, resource: &ResourceInfo) -> Value {
        let mut properties = type_meta(self.dialect, LIST_META, "Standard list metadata.");
        let items = self.dialect.reference(&definition_name(resource));
        let description = format!("List of {}.", resource.plural);
        properties.insert(
            "items".into(),
            json!({"type": "array", "description": description, "items": items}),
        );
        json!({
            "type": "object", "required": ["items"], "properties": properties,
            "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
            "x-kubernetes-group-version-kind": [gvk(&resource.group, &resource.version, &resource.list_kind)],
        })
    }
}

pub(super) fn list_name(resource: &ResourceInfo) -> String {
    let name = definition_name(resource);
    let prefix = name.strip_suffix(&resource.kind).unwrap_or(&name);
    format!("{prefix}{}", resource.list_kind)
}

impl Iterator for Components<'_> {
    type Item = (String, Box<RawValue>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((name, definition)) = self.builtin.next() {
            return Some((name, raw(&definition)?));
        }
        if let Some(resource) = self.custom.next() {
            let SchemaSource::Custom(schema) = &resource.source else {
                return self.next();
            };
            let definition = self
                .custom(resource, schema)
                .or_else(|| raw(&json!({"type": "object"})))?;
            return Some((definition_name(resource), definition));
        }
        let resource = self.lists.next()?;
        Some((list_name(resource), raw(&self.list(resource))?))
    }
}

fn raw(value: &Value) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(value).ok()
}

fn type_meta(dialect: Dialect, metadata: &str, description: &str) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert(
        "apiVersion".into(),
        json!({"type": "string", "description": API_VERSION}),
    );
    map.insert("kind".into(), json!({"type": "string", "description": KIND}));
    map.insert("metadata".into(), dialect.described(metadata, description));
    map
}

/// Types that are several in JSON have forms of their own.
fn scalar(name: &str, definition: &mut Value, dialect: Dialect) {
    let short = name.rsplit('.').next().unwrap_or_default();
    let form = match (short, dialect) {
        ("Quantity", Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        ("Quantity", Dialect::V2) => json!({"type": "string"}),
        ("IntOrString", Dialect::V3) => {
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
        }
        ("IntOrString", Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
        ("JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray", _) => json!({}),
        _ => return,
    };
    let description = definition["description"].take();
    *definition = form;
    if description.is_string() {
        definition["description"] = description;
    }
}

/// References of generated definitions, in the dialect's form.
fn translate(value: &mut Value, dialect: Dialect) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                let name = reference.rsplit('/').next().unwrap_or_default().to_owned();
                let description = map.get("description").and_then(Value::as_str).map(ToOwned::to_owned);
                *value = match description {
                    Some(description) => dialect.described(&name, &description),
                    None => dialect.reference(&name),
                };
                return;
            }
            map.values_mut().for_each(|child| translate(child, dialect));
        }
        Value::Array(list) => list.iter_mut().for_each(|child| translate(child, dialect)),
        _ => {}
    }
}

/// OpenAPI 2 can say less: what it cannot is left out, so that clients do not refuse what the server takes.
fn translate_custom(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for name in ["nullable", "anyOf", "allOf", "oneOf", "not", "default"] {
        map.remove(name);
    }
    let is_set = |map: &Map<String, Value>, name: &str| map.get(name) == Some(&Value::Bool(true));
    if is_set(map, "x-kubernetes-int-or-string") {
        map.remove("type");
    }
    if is_set(map, "x-kubernetes-preserve-unknown-fields") {
        for name in ["type", "items", "properties"] {
            map.remove(name);
        }
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(translate_custom);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(child) = map.get_mut(name) {
            translate_custom(child);
        }
    }
}
