//! Paths and operations of resources.

use serde_json::{Map, Value, json};

use super::components::{DELETE_OPTIONS, Dialect, PATCH, SCALE, STATUS, definition_name, gvk, list_name};
use crate::builtin::{ResourceInfo, SchemaSource, Subresource};

/// One operation, before it is written in a dialect.
struct Operation<'a> {
    resource: &'a ResourceInfo,
    method: &'static str,
    action: &'static str,
    /// Group, version and kind of what is sent.
    kind: (&'a str, &'a str, &'a str),
    verb: &'static str,
    subresource: Option<&'a str>,
    one_namespace: bool,
    body: Option<String>,
    answer: String,
    query: &'static [Parameter],
}

type Parameter = (&'static str, &'static str, &'static str);

const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const APPLY: &[Parameter] = &[
    DRY_RUN,
    FIELD_MANAGER,
    FIELD_VALIDATION,
    (
        "force",
        "boolean",
        "Take fields over that other managers own. Only for apply patches.",
    ),
];
const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "With \"All\", the request is processed and nothing is stored.",
);
const FIELD_MANAGER: Parameter = ("fieldManager", "string", "Name of the actor that makes the change.");
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What to do about unknown or duplicate fields: Ignore, Warn (the default) or Strict.",
);
const DELETE: &[Parameter] = &[
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "Seconds until the object is deleted; 0 is at once.",
    ),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
];
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Ask for BOOKMARK events."),
    ("continue", "string", "Where the previous page ended."),
    ("fieldSelector", "string", "Restricts the list by fields."),
    ("labelSelector", "string", "Restricts the list by labels."),
    ("limit", "integer", "The most items to return."),
    ("resourceVersion", "string", "From which version on."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant."),
    ("sendInitialEvents", "boolean", "Begin a watch with the current items."),
    ("timeoutSeconds", "integer", "How long the call may last."),
    ("watch", "boolean", "Send changes instead of a list."),
];
const NONE: &[Parameter] = &[];

/// Every path of the resources.
pub(super) fn paths(resources: &[&ResourceInfo], dialect: Dialect) -> Value {
    let mut paths = Map::new();
    for resource in resources {
        let root = match resource.group.as_str() {
            "" => format!("/api/{}", resource.version),
            group => format!("/apis/{group}/{}", resource.version),
        };
        let collection = if resource.namespaced {
            format!("{root}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{root}/{}", resource.plural)
        };
        if resource.namespaced && resource.is_stored() {
            let all = vec![list(resource, false)];
            paths.insert(format!("{root}/{}", resource.plural), item(all, false, false, dialect));
        }
        paths.insert(
            collection.clone(),
            item(on_collection(resource), false, resource.namespaced, dialect),
        );
        if resource.is_stored() {
            let one = format!("{collection}/{{name}}");
            for subresource in &resource.subresources {
                let operations = on_subresource(resource, subresource);
                let path = format!("{one}/{}", subresource.name);
                paths.insert(path, item(operations, true, resource.namespaced, dialect));
            }
            paths.insert(one, item(on_object(resource), true, resource.namespaced, dialect));
        }
    }
    Value::Object(paths)
}

fn operation<'a>(
    resource: &'a ResourceInfo,
    method: &'static str,
    action: &'static str,
    verb: &'static str,
) -> Operation<'a> {
    Operation {
        resource,
        method,
        action,
        kind: (&resource.group, &resource.version, &resource.kind),
        verb,
        subresource: None,
        one_namespace: resource.namespaced,
        body: None,
        answer: definition_name(resource),
        query: NONE,
    }
}

fn list(resource: &ResourceInfo, one_namespace: bool) -> Operation<'_> {
    let base = operation(resource, "get", "list", "list");
    Operation {
        one_namespace,
        answer: list_name(resource),
        query: LIST,
        ..base
    }
}

fn on_collection(resource: &ResourceInfo) -> Vec<Operation<'_>> {
    let base = operation(resource, "post", "post", "create");
    let create = Operation {
        body: Some(definition_name(resource)),
        query: WRITE,
        ..base
    };
    if !resource.is_stored() {
        return vec![create];
    }
    let delete = Operation {
        body: Some(DELETE_OPTIONS.to_owned()),
        answer: STATUS.to_owned(),
        query: LIST,
        ..operation(resource, "delete", "deletecollection", "deleteCollection")
    };
    vec![list(resource, resource.namespaced), create, delete]
}

fn on_object(resource: &ResourceInfo) -> Vec<Operation<'_>> {
    let name = definition_name(resource);
    vec![
        operation(resource, "get", "get", "read"),
        Operation {
            body: Some(name),
            query: WRITE,
            ..operation(resource, "put", "put", "replace")
        },
        Operation {
            body: Some(PATCH.to_owned()),
            query: APPLY,
            ..operation(resource, "patch", "patch", "patch")
        },
        Operation {
            body: Some(DELETE_OPTIONS.to_owned()),
            answer: STATUS.to_owned(),
            query: DELETE,
            ..operation(resource, "delete", "delete", "delete")
        },
    ]
}

fn on_subresource<'a>(resource: &'a ResourceInfo, subresource: &'a Subresource) -> Vec<Operation<'a>> {
    let definition = match subresource.name.as_str() {
        "scale" => SCALE.to_owned(),
        _ => definition_name(resource),
    };
    let connects = matches!(subresource.name.as_str(), "attach" | "exec" | "portforward");
    let mut all = Vec::new();
    for verb in &subresource.verbs {
        let (method, action, verb, body, query) = match verb.as_str() {
            "get" => ("get", if connects { "connect" } else { "get" }, "read", None, NONE),
            "update" => ("put", "put", "replace", Some(definition.clone()), WRITE),
            "patch" => ("patch", "patch", "patch", Some(PATCH.to_owned()), APPLY),
            "create" if connects => ("post", "connect", "connect", None, NONE),
            "create" => ("post", "post", "create", None, WRITE),
            _ => continue,
        };
        all.push(Operation {
            kind: (&subresource.group, &subresource.version, &subresource.kind),
            subresource: Some(&subresource.name),
            body,
            query,
            answer: definition.clone(),
            ..operation(resource, method, action, verb)
        });
    }
    all
}

fn item(operations: Vec<Operation<'_>>, name: bool, namespace: bool, dialect: Dialect) -> Value {
    let mut item = Map::new();
    for operation in operations {
        item.insert(operation.method.to_owned(), operation.render(dialect));
    }
    let path = |name: &str, description: &str| {
        let mut parameter = json!({"name": name, "in": "path", "required": true, "description": description});
        set_type(&mut parameter, "string", dialect);
        parameter
    };
    let mut parameters = Vec::new();
    if name {
        parameters.push(path("name", "Name of the object."));
    }
    if namespace {
        parameters.push(path("namespace", "Namespace of the object."));
    }
    parameters.push(query(
        &("pretty", "string", "If \"true\", the output is indented."),
        dialect,
    ));
    item.insert("parameters".into(), parameters.into());
    Value::Object(item)
}

fn set_type(parameter: &mut Value, ty: &str, dialect: Dialect) {
    match dialect {
        Dialect::V2 => parameter["type"] = ty.into(),
        Dialect::V3 => parameter["schema"] = json!({"type": ty}),
    }
    parameter["uniqueItems"] = true.into();
    if dialect == Dialect::V3
        && let Some(parameter) = parameter.as_object_mut()
    {
        parameter.remove("uniqueItems");
    }
}

fn query((name, ty, description): &Parameter, dialect: Dialect) -> Value {
    let mut parameter = json!({"name": name, "in": "query", "description": description});
    set_type(&mut parameter, ty, dialect);
    parameter
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

impl Operation<'_> {
    fn media_types(&self) -> Vec<&'static str> {
        if self.method != "patch" {
            return vec!["application/json", "application/yaml"];
        }
        let mut types = vec![
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
        ];
        if matches!(self.resource.source, SchemaSource::Builtin { .. }) {
            types.push("application/strategic-merge-patch+json");
        }
        types
    }

    /// `listCoreV1NamespacedPod`, `patchKubevirtIoV1NamespacedVirtualMachineStatus`.
    fn id(&self) -> String {
        let group = match self.resource.group.as_str() {
            "" => "Core".to_owned(),
            group => group.split(['.', '-']).map(capitalized).collect(),
        };
        let version = capitalized(&self.resource.version);
        let scope = if self.one_namespace { "Namespaced" } else { "" };
        let all = if self.resource.namespaced && !self.one_namespace {
            "ForAllNamespaces"
        } else {
            ""
        };
        let subresource = capitalized(self.subresource.unwrap_or_default());
        format!(
            "{}{group}{version}{scope}{}{subresource}{all}",
            self.verb, self.resource.kind
        )
    }

    fn render(&self, dialect: Dialect) -> Value {
        let (group, version, kind) = self.kind;
        let parameters: Vec<Value> = self.query.iter().map(|p| query(p, dialect)).collect();
        let what = self.subresource.map_or_else(String::new, |s| format!("{s} of "));
        let mut operation = json!({
            "description": format!("{} {what}{}", self.action, self.resource.kind),
            "operationId": self.id(),
            "tags": [self.resource.api_version().replace(['/', '.'], "_")],
            "parameters": parameters,
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": gvk(group, version, kind),
        });
        let answer = dialect.reference(&self.answer);
        let code = if self.action == "post" { "201" } else { "200" };
        match dialect {
            Dialect::V3 => {
                let content = |types: &[&str], schema: &Value| -> Map<String, Value> {
                    types
                        .iter()
                        .map(|t| ((*t).to_owned(), json!({"schema": schema})))
                        .collect()
                };
                if let Some(body) = &self.body {
                    let schema = dialect.reference(body);
                    operation["requestBody"] = json!({"content": content(&self.media_types(), &schema)});
                }
                let answers = content(&["application/json", "application/yaml"], &answer);
                operation["responses"] = json!({code: {"description": "OK", "content": answers}});
            }
            Dialect::V2 => {
                if let Some(body) = &self.body {
                    let schema = dialect.reference(body);
                    let body = json!({"name": "body", "in": "body", "required": true, "schema": schema});
                    if let Some(parameters) = operation["parameters"].as_array_mut() {
                        parameters.insert(0, body);
                    }
                }
                operation["consumes"] = self.media_types().into();
                operation["produces"] = json!(["application/json", "application/yaml"]);
                operation["schemes"] = json!(["https"]);
                operation["responses"] = json!({code: {"description": "OK", "schema": answer}});
            }
        }
        operation
    }
}
