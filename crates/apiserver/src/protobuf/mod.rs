//! Reading Kubernetes' protobuf bodies. Go clients (kubectl among them) send typed objects of built-in kinds this way and
//! cannot be talked out of it; they all read JSON answers.
//!
//! The messages are a table in text form, searched when a body arrives: nothing of it is kept in memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value, json};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
const MESSAGES: &str = include_str!("messages.txt");
/// Deeper than any built-in kind.
const MAX_DEPTH: usize = 40;

/// A body that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not begin as Kubernetes' envelope does.
    #[error("the body is not in Kubernetes' protobuf envelope")]
    NoEnvelope,
    /// The kind has no message in the table.
    #[error("{kind} of {api_version} is not known in protobuf form: send it as application/json")]
    UnknownKind {
        /// For example `v1`.
        api_version: String,
        /// For example `Pod`.
        kind: String,
    },
    /// The bytes are no such message.
    #[error("field {number} of {message} is malformed")]
    Malformed {
        /// Message of the table.
        message: String,
        /// Number of the field.
        number: u32,
    },
}

type Result<T> = std::result::Result<T, ProtobufError>;

/// The object in an enveloped body, as its JSON form would be.
///
/// # Errors
/// It is not one, or of a kind that is not in the table.
pub fn decode(bytes: &[u8]) -> Result<Value> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoEnvelope)?;
    let (mut type_meta, mut raw) = (&[][..], &[][..]);
    for field in fields(body, "Unknown") {
        match field? {
            (1, Wire::Bytes(bytes)) => type_meta = bytes,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (mut api_version, mut kind) = (String::new(), String::new());
    for field in fields(type_meta, "TypeMeta") {
        match field? {
            (1, Wire::Bytes(bytes)) => api_version = text(bytes),
            (2, Wire::Bytes(bytes)) => kind = text(bytes),
            _ => {}
        }
    }
    let name = message_name(&api_version, &kind);
    if fields_of(&name).is_none() {
        return Err(ProtobufError::UnknownKind { api_version, kind });
    }
    let mut object = message(&name, raw, 0)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn message_name(api_version: &str, kind: &str) -> String {
    let package = match api_version.split_once('/').map_or("", |(group, _)| group) {
        _ if kind == "DeleteOptions" => "meta",
        "" => "core",
        "admissionregistration.k8s.io" => "admission",
        group => group.split('.').next().unwrap_or_default(),
    };
    format!("{package}.{kind}")
}

/// One field of a message in the table.
struct Field<'a> {
    number: u32,
    flag: Option<char>,
    name: &'a str,
    ty: &'a str,
}

fn fields_of(message: &str) -> Option<impl Iterator<Item = Field<'static>>> {
    let line = MESSAGES.lines().find(|line| line.split(' ').next() == Some(message))?;
    Some(line.split(' ').skip(1).filter_map(|field| {
        let digits = field.find(|c: char| !c.is_ascii_digit())?;
        let (number, rest) = field.split_at(digits);
        let flag = rest.chars().next().filter(|c| "?!^".contains(*c));
        let (name, ty) = rest[flag.map_or(0, char::len_utf8)..].split_once(':')?;
        Some(Field {
            number: number.parse().ok()?,
            flag,
            name,
            ty,
        })
    }))
}

enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// The fields on the wire. Fixed-size ones are skipped: no built-in kind has any.
fn fields<'a>(mut rest: &'a [u8], message: &str) -> impl Iterator<Item = Result<(u32, Wire<'a>)>> {
    let message = message.to_owned();
    std::iter::from_fn(move || {
        while rest.has_remaining() {
            let malformed = |number| ProtobufError::Malformed {
                message: message.clone(),
                number,
            };
            let Ok((number, wire)) = decode_key(&mut rest) else {
                rest = &[];
                return Some(Err(malformed(0)));
            };
            let value = match wire {
                WireType::Varint => decode_varint(&mut rest).ok().map(Wire::Varint),
                WireType::LengthDelimited => decode_varint(&mut rest)
                    .ok()
                    .and_then(|length| rest.split_at_checked(usize::try_from(length).ok()?))
                    .map(|(bytes, after)| {
                        rest = after;
                        Wire::Bytes(bytes)
                    }),
                other => match skip_field(other, number, &mut rest, DecodeContext::default()) {
                    Ok(()) => continue,
                    Err(_) => None,
                },
            };
            if value.is_none() {
                rest = &[];
            }
            return Some(value.map(|value| (number, value)).ok_or_else(|| malformed(number)));
        }
        None
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>> {
    let malformed = |number| ProtobufError::Malformed {
        message: name.to_owned(),
        number,
    };
    let known: Vec<Field<'_>> = fields_of(name).ok_or_else(|| malformed(0))?.collect();
    if depth > MAX_DEPTH {
        return Err(malformed(0));
    }
    let mut object = Map::new();
    for field in fields(bytes, name) {
        let (number, wire) = field?;
        let Some(field) = known.iter().find(|f| f.number == number) else {
            continue;
        };
        if let Some(ty) = field.ty.strip_prefix("[]") {
            let list = object.entry(field.name).or_insert_with(|| json!([]));
            let items = repeated(ty, &wire, depth).ok_or_else(|| malformed(number))??;
            if let Some(list) = list.as_array_mut() {
                list.extend(items);
            }
        } else if let Some(ty) = field.ty.strip_prefix("{}") {
            let Wire::Bytes(entry) = wire else {
                return Err(malformed(number));
            };
            let (key, value) = map_entry(ty, entry, depth)?;
            object.entry(field.name).or_insert_with(|| json!({}))[key] = value;
        } else {
            let value = scalar(field.ty, &wire, depth).ok_or_else(|| malformed(number))??;
            match (field.flag, value) {
                (Some('^'), Value::Object(inner)) => object.extend(inner),
                (flag, value) => {
                    if flag.is_some() || !is_zero(&value) {
                        object.insert(field.name.to_owned(), value);
                    }
                }
            }
        }
    }
    object.retain(|_, value| !value.is_null());
    Ok(object)
}

/// What Go leaves out of JSON.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The elements in one occurrence of a repeated field: several, if numbers are packed.
fn repeated(ty: &str, wire: &Wire<'_>, depth: usize) -> Option<Result<Vec<Value>>> {
    match (ty, wire) {
        ("int", Wire::Bytes(packed)) => {
            let mut rest = *packed;
            let mut all = Vec::new();
            while rest.has_remaining() {
                all.push(integer(decode_varint(&mut rest).ok()?));
            }
            Some(Ok(all))
        }
        _ => scalar(ty, wire, depth).map(|value| value.map(|value| vec![value])),
    }
}

fn map_entry(ty: &str, entry: &[u8], depth: usize) -> Result<(String, Value)> {
    let (mut key, mut value) = (String::new(), None);
    for field in fields(entry, "map entry") {
        match field? {
            (1, Wire::Bytes(bytes)) => key = text(bytes),
            (2, wire) => value = scalar(ty, &wire, depth),
            _ => {}
        }
    }
    let missing = || {
        if ty == "string" || ty == "bytes" {
            "".into()
        } else {
            json!({})
        }
    };
    Ok((key, value.transpose()?.unwrap_or_else(missing)))
}

fn integer(varint: u64) -> Value {
    // Negative numbers are sent in two's complement.
    Value::from(varint.cast_signed())
}

/// `None`: the wire type does not fit.
fn scalar(ty: &str, wire: &Wire<'_>, depth: usize) -> Option<Result<Value>> {
    Some(match (ty, wire) {
        ("int", Wire::Varint(n)) => Ok(integer(*n)),
        ("bool", Wire::Varint(n)) => Ok((*n != 0).into()),
        ("string", Wire::Bytes(bytes)) => Ok(text(bytes).into()),
        ("bytes", Wire::Bytes(bytes)) => Ok(STANDARD.encode(bytes).into()),
        ("quantity", Wire::Bytes(bytes)) => first_text(bytes, ty),
        ("raw", Wire::Bytes(bytes)) => raw(bytes),
        ("intOrString", Wire::Bytes(bytes)) => int_or_string(bytes),
        ("time" | "microTime", Wire::Bytes(bytes)) => time(bytes, ty == "microTime"),
        ("int" | "bool" | "string" | "bytes", _) | (_, Wire::Varint(_)) => return None,
        (wrapped, Wire::Bytes(bytes)) if wrapped.starts_with("@[]") => fields(bytes, ty)
            .map(|item| match item? {
                (1, wire) => scalar(&wrapped[3..], &wire, depth).unwrap_or(Ok(Value::Null)),
                _ => Ok(Value::Null),
            })
            .collect(),
        (name, Wire::Bytes(bytes)) => message(name, bytes, depth + 1).map(Value::Object),
    })
}

fn first_text(bytes: &[u8], message: &str) -> Result<Value> {
    let mut found = Value::Null;
    for field in fields(bytes, message) {
        if let (1, Wire::Bytes(bytes)) = field? {
            found = text(bytes).into();
        }
    }
    Ok(found)
}

fn raw(bytes: &[u8]) -> Result<Value> {
    let mut found = Value::Null;
    for field in fields(bytes, "raw") {
        if let (1, Wire::Bytes(bytes)) = field? {
            let malformed = |_| ProtobufError::Malformed {
                message: "raw".to_owned(),
                number: 1,
            };
            found = serde_json::from_slice(bytes).map_err(malformed)?;
        }
    }
    Ok(found)
}

fn int_or_string(bytes: &[u8]) -> Result<Value> {
    let (mut is_string, mut number, mut string) = (false, json!(0), json!(""));
    for field in fields(bytes, "intOrString") {
        match field? {
            (1, Wire::Varint(kind)) => is_string = kind == 1,
            (2, Wire::Varint(n)) => number = integer(n),
            (3, Wire::Bytes(bytes)) => string = text(bytes).into(),
            _ => {}
        }
    }
    Ok(if is_string { string } else { number })
}

fn time(bytes: &[u8], micro: bool) -> Result<Value> {
    let (mut seconds, mut nanos) = (None, 0);
    for field in fields(bytes, "time") {
        match field? {
            (1, Wire::Varint(n)) => seconds = Some(n.cast_signed()),
            (2, Wire::Varint(n)) => nanos = i32::try_from(n).unwrap_or(0),
            _ => {}
        }
    }
    let Some(time) = seconds.and_then(|s| Timestamp::new(s, nanos).ok()) else {
        return Ok(Value::Null);
    };
    Ok(if micro {
        format!("{time:.6}")
    } else {
        format!("{time:.0}")
    }
    .into())
}

#[cfg(test)]
mod tests;
