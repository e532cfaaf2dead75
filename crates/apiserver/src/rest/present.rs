//! How objects leave the server: in which version, and as whole objects, metadata or tables.

use std::borrow::Cow;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::builtin::events;
use crate::failure::{Failure, Result};
use crate::registry::Served;
use crate::store::Stored;
use crate::table::{self, IncludeObject};

/// What the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The objects.
    Object,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// Only metadata.
    Metadata,
}

const SUPPORTED: &str = "application/json, application/yaml";

impl Form {
    /// Reads `Accept`: the first form that the server has.
    ///
    /// # Errors
    /// 406 if there is none.
    pub fn accepted(headers: &HeaderMap) -> Result<Self> {
        let accept: Vec<&str> = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let mut any = false;
        for item in accept
            .iter()
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            any = true;
            let mut parts = item.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            if !matches!(media, "application/json" | "*/*" | "application/*") {
                continue;
            }
            let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
            let parameter = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            match (parameter("as"), parameter("g"), parameter("v")) {
                (None, ..) => return Ok(Self::Object),
                (Some("Table"), Some("meta.k8s.io"), Some("v1")) => return Ok(Self::Table),
                (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1")) => {
                    return Ok(Self::Metadata);
                }
                _ => {}
            }
        }
        if any {
            Err(Failure::not_acceptable(SUPPORTED))
        } else {
            Ok(Self::Object)
        }
    }
}

impl Served {
    /// The stored object in this version.
    pub fn value(&self, stored: &Stored) -> Value {
        let mut value = stored.value();
        self.to_version(&mut value);
        value
    }

    /// From the stored version to this one.
    pub fn to_version(&self, object: &mut Value) {
        if self.info.stored_as == Some(("", "events")) {
            events::from_core(object);
        } else if object["apiVersion"] != self.api_version() {
            object["apiVersion"] = Value::String(self.api_version());
        }
    }

    /// From this version to the stored one.
    pub fn to_storage(&self, object: &mut Value) {
        if self.info.stored_as == Some(("", "events")) {
            events::to_core(object);
        } else if self.storage_version != self.api_version() {
            object["apiVersion"] = Value::String(self.storage_version.clone());
        }
    }

    /// The stored object in this version, as JSON.
    pub fn json<'a>(&self, stored: &'a Stored) -> Cow<'a, [u8]> {
        if self.storage_version == self.api_version() {
            Cow::Borrowed(&stored.body)
        } else {
            Cow::Owned(serde_json::to_vec(&self.value(stored)).unwrap_or_default())
        }
    }

    /// One object in the form that is wanted.
    pub fn render<'a>(&self, stored: &'a Stored, form: Form, include: IncludeObject) -> Cow<'a, [u8]> {
        match form {
            Form::Object => self.json(stored),
            Form::Metadata => Cow::Owned(serde_json::to_vec(&metadata_only(&stored.value())).unwrap_or_default()),
            Form::Table => {
                let object = self.value(stored);
                let meta = json!({"resourceVersion": stored.revision.to_string()});
                Cow::Owned(serde_json::to_vec(&self.table(&[object], &meta, include)).unwrap_or_default())
            }
        }
    }

    /// A table of objects.
    pub fn table(&self, objects: &[Value], meta: &Value, include: IncludeObject) -> Value {
        table::table(
            &self.info.columns,
            objects,
            meta.clone(),
            include,
            jiff::Timestamp::now(),
        )
    }
}

/// A `PartialObjectMetadata` of an object.
pub fn metadata_only(object: &Value) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
}

/// JSON with a status code.
pub fn json_response(code: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A document as a JSON answer.
pub fn document(value: &Value) -> Response<Body> {
    json_response(StatusCode::OK, serde_json::to_vec(value).unwrap_or_default())
}

/// Adds `Warning: 299 - "…"` headers.
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let quoted = format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
