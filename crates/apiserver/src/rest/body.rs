//! Request bodies: JSON or YAML, bounded, with duplicate fields noticed.

use std::fmt;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::failure::{Failure, Result};
use crate::protobuf::{self, ProtobufError};

/// The largest body that is read.
pub const LIMIT: usize = 3 << 20;
const SUPPORTED: &str = "application/json, application/yaml";

/// Reads a body of at most [`LIMIT`] bytes.
///
/// # Errors
/// 413 if it is larger, 400 if the connection breaks.
pub async fn read(body: Body) -> Result<Bytes> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(Failure::too_large(LIMIT)),
        Err(error) => Err(Failure::bad_request(format!(
            "cannot read the body of the request: {error}"
        ))),
    }
}

/// A parsed body.
#[derive(Debug)]
pub struct Parsed {
    /// The document.
    pub value: Value,
    /// Paths of fields that were given more than once; the last one counts.
    pub duplicates: Vec<String>,
}

/// Parses a body by its content type (JSON if there is none).
///
/// # Errors
/// 415 for other types, 400 for malformed documents.
pub fn parse(content_type: &str, bytes: &[u8]) -> Result<Parsed> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    match media {
        "" | "application/json" | "*/*" => parse_json(bytes),
        "application/yaml" | "application/x-yaml" | "text/yaml" => parse_yaml(bytes),
        protobuf::MEDIA_TYPE => parse_protobuf(bytes),
        other if other.ends_with("+json") => parse_json(bytes),
        other if other.ends_with("+yaml") => parse_yaml(bytes),
        other => Err(Failure::unsupported_media_type(other, SUPPORTED)),
    }
}

fn parse_yaml(bytes: &[u8]) -> Result<Parsed> {
    let value = serde_yaml_ng::from_slice(bytes)
        .map_err(|error| Failure::bad_request(format!("error converting YAML to JSON: yaml: {error}")))?;
    Ok(Parsed {
        value,
        duplicates: Vec::new(),
    })
}

fn parse_protobuf(bytes: &[u8]) -> Result<Parsed> {
    let value = protobuf::decode(bytes).map_err(|error| match error {
        ProtobufError::UnknownKind { .. } => Failure::unsupported_media_type(protobuf::MEDIA_TYPE, SUPPORTED),
        other => Failure::bad_request(format!("couldn't decode the object provided: {other}")),
    })?;
    Ok(Parsed {
        value,
        duplicates: Vec::new(),
    })
}

fn parse_json(bytes: &[u8]) -> Result<Parsed> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed {
        path: String::new(),
        duplicates: &mut duplicates,
    }
    .deserialize(&mut deserializer)
    .and_then(|value| deserializer.end().map(|()| value))
    .map_err(|error| {
        Failure::bad_request(format!(
            "the object provided is unrecognized: couldn't parse JSON: {error}"
        ))
    })?;
    Ok(Parsed { value, duplicates })
}

struct Seed<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Seed {
            path: format!("{}[{}]", self.path, list.len()),
            duplicates: self.duplicates,
        })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = if self.path.is_empty() {
                key.clone()
            } else {
                format!("{}.{key}", self.path)
            };
            let value = entries.next_value_seed(Seed {
                path: path.clone(),
                duplicates: self.duplicates,
            })?;
            if map.insert(key, value).is_some() {
                self.duplicates.push(path);
            }
        }
        Ok(Value::Object(map))
    }
}
