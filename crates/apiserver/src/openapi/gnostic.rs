//! The part of gnostic's `openapi.v2.Document` that Kubernetes clients read, encoded from the JSON form.

use prost::Message;
use serde_json::Value;

use super::components::Components;

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<NamedSchemas>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "2")]
    get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
    #[prost(message, repeated, tag = "9")]
    parameters: Vec<ParametersItem>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(string, repeated, tag = "1")]
    tags: Vec<String>,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "5")]
    operation_id: String,
    #[prost(string, repeated, tag = "6")]
    produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(string, repeated, tag = "10")]
    schemes: Vec<String>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

/// One of the two.
#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "1")]
    body: Option<BodyParameter>,
    #[prost(message, optional, tag = "2")]
    other: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct BodyParameter {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    place: String,
    #[prost(bool, tag = "4")]
    required: bool,
    #[prost(message, optional, tag = "5")]
    schema: Option<Schema>,
}

/// One of the two.
#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
    #[prost(message, optional, tag = "4")]
    path: Option<PathParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    ty: String,
    #[prost(bool, tag = "20")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PathParameter {
    #[prost(bool, tag = "1")]
    required: bool,
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "5")]
    ty: String,
    #[prost(bool, tag = "19")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {
    #[prost(message, repeated, tag = "1")]
    response_code: Vec<NamedResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedResponseValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    response: Option<Response>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(message, optional, tag = "2")]
    schema: Option<SchemaItem>,
}

#[derive(Clone, PartialEq, Message)]
struct SchemaItem {
    #[prost(message, optional, tag = "1")]
    schema: Option<Schema>,
}

/// `Definitions` and `Properties`.
#[derive(Clone, PartialEq, Message)]
struct NamedSchemas {
    #[prost(message, repeated, tag = "1")]
    additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(message, optional, tag = "5")]
    default: Option<Any>,
    #[prost(double, tag = "7")]
    maximum: f64,
    #[prost(double, tag = "9")]
    minimum: f64,
    #[prost(int64, tag = "11")]
    max_length: i64,
    #[prost(int64, tag = "12")]
    min_length: i64,
    #[prost(string, tag = "13")]
    pattern: String,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, repeated, tag = "20")]
    enumeration: Vec<Any>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<AdditionalProperties>>,
    #[prost(message, optional, tag = "22")]
    ty: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    items: Option<ItemsItem>,
    #[prost(message, optional, tag = "25")]
    properties: Option<NamedSchemas>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

/// One of the two.
#[derive(Clone, PartialEq, Message)]
struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
    #[prost(bool, optional, tag = "2")]
    boolean: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ItemsItem {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// Encodes the document. Definitions are encoded one after the other.
pub(super) fn encode(paths: &Value, definitions: &mut Components<'_>, server: &str) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (name, definition) in definitions {
        let value = serde_json::from_str(definition.get()).unwrap_or_default();
        let schemas = NamedSchemas {
            additional_properties: vec![NamedSchema {
                name,
                value: Some(schema(&value)),
            }],
        };
        // Fields of the same message, written one after the other, are one repeated field.
        encoded.extend(schemas.encode_to_vec());
    }
    let document = Document {
        swagger: "2.0".to_owned(),
        info: Some(Info {
            title: "Kubernetes".to_owned(),
            version: server.to_owned(),
        }),
        paths: Some(Paths {
            path: fields(paths).map(|(name, item)| path_item(name, item)).collect(),
        }),
        definitions: None,
    };
    let mut bytes = document.encode_to_vec();
    prost::encoding::encode_key(9, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(encoded.len() as u64, &mut bytes);
    bytes.extend(encoded);
    bytes
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn any(value: &Value) -> Any {
    // JSON is YAML.
    Any {
        yaml: format!("{value}\n"),
    }
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    let extensions = fields(value).filter(|(name, _)| name.starts_with("x-"));
    extensions
        .map(|(name, value)| NamedAny {
            name: name.clone(),
            value: Some(any(value)),
        })
        .collect()
}

fn path_item(name: &str, item: &Value) -> NamedPathItem {
    let method = |name: &str| item.get(name).map(operation);
    let value = PathItem {
        get: method("get"),
        put: method("put"),
        post: method("post"),
        delete: method("delete"),
        patch: method("patch"),
        parameters: parameters(&item["parameters"]),
    };
    NamedPathItem {
        name: name.to_owned(),
        value: Some(value),
    }
}

fn operation(operation: &Value) -> Operation {
    let responses = fields(&operation["responses"]).map(|(code, response)| NamedResponseValue {
        name: code.clone(),
        value: Some(ResponseValue {
            response: Some(Response {
                description: text(&response["description"]),
                schema: Some(SchemaItem {
                    schema: Some(schema(&response["schema"])),
                }),
            }),
        }),
    });
    Operation {
        tags: texts(&operation["tags"]),
        description: text(&operation["description"]),
        operation_id: text(&operation["operationId"]),
        produces: texts(&operation["produces"]),
        consumes: texts(&operation["consumes"]),
        parameters: parameters(&operation["parameters"]),
        responses: Some(Responses {
            response_code: responses.collect(),
        }),
        schemes: texts(&operation["schemes"]),
        vendor_extension: extensions(operation),
    }
}

fn parameters(list: &Value) -> Vec<ParametersItem> {
    let items = list.as_array().into_iter().flatten();
    items
        .map(|item| ParametersItem {
            parameter: Some(parameter(item)),
        })
        .collect()
}

fn parameter(item: &Value) -> Parameter {
    let (name, place, description) = (text(&item["name"]), text(&item["in"]), text(&item["description"]));
    let (required, unique_items) = (item["required"] == true, item["uniqueItems"] == true);
    let ty = text(&item["type"]);
    match place.as_str() {
        "body" => {
            let body = BodyParameter {
                name,
                place,
                required,
                schema: Some(schema(&item["schema"])),
            };
            Parameter {
                body: Some(body),
                other: None,
            }
        }
        "path" => {
            let path = Some(PathParameter {
                required,
                place,
                description,
                name,
                ty,
                unique_items,
            });
            Parameter {
                body: None,
                other: Some(NonBodyParameter { query: None, path }),
            }
        }
        _ => {
            let query = Some(QueryParameter {
                place,
                description,
                name,
                ty,
                unique_items,
            });
            Parameter {
                body: None,
                other: Some(NonBodyParameter { query, path: None }),
            }
        }
    }
}

fn schema(value: &Value) -> Schema {
    let integer = |name: &str| value[name].as_i64().unwrap_or_default();
    let float = |name: &str| value[name].as_f64().unwrap_or_default();
    let additional = match &value["additionalProperties"] {
        Value::Bool(boolean) => Some(AdditionalProperties {
            schema: None,
            boolean: Some(*boolean),
        }),
        object @ Value::Object(_) => Some(AdditionalProperties {
            schema: Some(Box::new(schema(object))),
            boolean: None,
        }),
        _ => None,
    };
    let properties: Vec<NamedSchema> = fields(&value["properties"])
        .map(|(name, child)| NamedSchema {
            name: name.clone(),
            value: Some(schema(child)),
        })
        .collect();
    Schema {
        reference: text(&value["$ref"]),
        format: text(&value["format"]),
        description: text(&value["description"]),
        default: value.get("default").map(any),
        maximum: float("maximum"),
        minimum: float("minimum"),
        max_length: integer("maxLength"),
        min_length: integer("minLength"),
        pattern: text(&value["pattern"]),
        required: texts(&value["required"]),
        enumeration: value["enum"].as_array().into_iter().flatten().map(any).collect(),
        additional_properties: additional.map(Box::new),
        ty: value["type"].as_str().map(|ty| TypeItem {
            value: vec![ty.to_owned()],
        }),
        items: value.get("items").map(|items| ItemsItem {
            schema: vec![schema(items)],
        }),
        properties: (!properties.is_empty()).then_some(NamedSchemas {
            additional_properties: properties,
        }),
        vendor_extension: extensions(value),
    }
}
