//! Get and list.

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::context::{Context, Query};
use super::present::{Form, document, json_response, metadata_only};
use crate::failure::{Failure, Result};
use crate::selector::{FieldSelector, LabelSelector};
use crate::store::{Key, Page, Snapshot, Stored};
use crate::table::IncludeObject;

/// Which objects of a list are wanted.
#[derive(Default)]
pub struct Selection {
    labels: Option<LabelSelector>,
    fields: Option<FieldSelector>,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 if one is malformed or names a field that the resource does not offer.
    pub fn parse(context: &Context, query: &Query) -> Result<Self> {
        let bad = |name: &str, error: &dyn std::fmt::Display| {
            Failure::bad_request(format!("unable to parse {name}: {error}"))
        };
        let labels = query.get("labelSelector").map(LabelSelector::parse).transpose();
        let fields = query.get("fieldSelector").map(FieldSelector::parse).transpose();
        let (labels, fields) = (
            labels.map_err(|e| bad("labelSelector", &e))?,
            fields.map_err(|e| bad("fieldSelector", &e))?,
        );
        if let Some(fields) = &fields {
            let offered: Vec<&str> = context.served.info.selectable.iter().map(String::as_str).collect();
            fields
                .check(&offered)
                .map_err(|error| Failure::bad_request(error.to_string()))?;
        }
        Ok(Self { labels, fields })
    }

    /// Adds `metadata.name=NAME`.
    ///
    /// # Errors
    /// 400 for a name that no object has.
    pub fn with_name(mut self, name: Option<&str>) -> Result<Self> {
        if let Some(name) = name {
            let selector = FieldSelector::parse(&format!("metadata.name={name}"));
            self.fields = Some(selector.map_err(|error| Failure::bad_request(error.to_string()))?);
        }
        Ok(self)
    }

    /// Whether everything is wanted.
    pub fn is_everything(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }

    /// Whether this object is wanted.
    pub fn matches(&self, context: &Context, stored: &Stored) -> bool {
        if self.is_everything() {
            return true;
        }
        if self.fields.is_none() {
            #[derive(Deserialize)]
            struct Object {
                metadata: Metadata,
            }
            #[derive(Deserialize)]
            struct Metadata {
                #[serde(default)]
                labels: Value,
            }
            let labels = serde_json::from_slice::<Object>(&stored.body)
                .map(|object| object.metadata.labels)
                .unwrap_or_default();
            return self
                .labels
                .as_ref()
                .is_none_or(|selector| selector.matches_labels(&labels));
        }
        let object = context.served.value(stored);
        self.labels
            .as_ref()
            .is_none_or(|selector| selector.matches_labels(&object["metadata"]["labels"]))
            && self.fields.as_ref().is_none_or(|selector| selector.matches(&object))
    }
}

/// `includeObject` of tables.
///
/// # Errors
/// 400 for other values.
pub fn include(query: &Query) -> Result<IncludeObject> {
    match query.get("includeObject") {
        None | Some("Metadata") => Ok(IncludeObject::Metadata),
        Some("None") => Ok(IncludeObject::None),
        Some("Object") => Ok(IncludeObject::Object),
        Some(other) => Err(Failure::bad_request(format!(
            "includeObject: Unsupported value: \"{other}\""
        ))),
    }
}

/// The stored object of a name.
///
/// # Errors
/// 404.
pub fn find(context: &Context, name: &str) -> Result<std::sync::Arc<Stored>> {
    let key = Key::new(&context.served.storage, context.namespace(), name);
    context.server.store.get(&key).ok_or_else(|| context.not_found(name))
}

/// GET of one object.
///
/// # Errors
/// 404, 406.
pub fn get(context: &Context, name: &str, query: &Query, headers: &HeaderMap) -> Result<Response<Body>> {
    let form = Form::accepted(headers)?;
    let stored = find(context, name)?;
    Ok(json_response(
        StatusCode::OK,
        context.served.render(&stored, form, include(query)?).into_owned(),
    ))
}

#[derive(Deserialize, serde::Serialize)]
struct Continue {
    rv: u64,
    after: String,
}

/// GET of a list.
///
/// # Errors
/// 400 for malformed options, 410 if a page or revision is too old.
pub fn list(context: &Context, query: &Query, headers: &HeaderMap) -> Result<Response<Body>> {
    let form = Form::accepted(headers)?;
    let selection = Selection::parse(context, query)?;
    let limit = query
        .number("limit")?
        .filter(|limit| *limit > 0)
        .and_then(|limit| usize::try_from(limit).ok());
    let snapshot = snapshot(context, query)?;
    let mut objects: Vec<_> = snapshot
        .objects
        .into_iter()
        .filter(|stored| selection.matches(context, stored))
        .collect();
    let mut meta = json!({"resourceVersion": snapshot.revision.to_string()});
    if let Some(limit) = limit
        && objects.len() > limit
    {
        let after = objects[limit - 1].key.path.to_string();
        let token = serde_json::to_vec(&Continue {
            rv: snapshot.revision,
            after,
        })
        .unwrap_or_default();
        meta["continue"] = Value::String(URL_SAFE_NO_PAD.encode(token));
        if selection.is_everything() {
            meta["remainingItemCount"] = json!(objects.len() - limit);
        }
        objects.truncate(limit);
    }
    match form {
        Form::Table => {
            let values: Vec<Value> = objects.iter().map(|stored| context.served.value(stored)).collect();
            Ok(document(&context.served.table(&values, &meta, include(query)?)))
        }
        Form::Metadata => {
            let items: Vec<Value> = objects.iter().map(|stored| metadata_only(&stored.value())).collect();
            let list = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": meta, "items": items});
            Ok(document(&list))
        }
        Form::Object => Ok(json_response(StatusCode::OK, whole(context, &meta, &objects))),
    }
}

/// A list document.
pub fn whole(context: &Context, meta: &Value, objects: &[std::sync::Arc<Stored>]) -> Vec<u8> {
    let info = &context.served.info;
    let head =
        json!({"kind": info.list_kind, "apiVersion": context.served.api_version(), "metadata": meta}).to_string();
    let mut body =
        Vec::with_capacity(head.len() + 16 + objects.iter().map(|stored| stored.body.len() + 1).sum::<usize>());
    body.extend_from_slice(&head.as_bytes()[..head.len() - 1]);
    body.extend_from_slice(b",\"items\":[");
    for (index, stored) in objects.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&context.served.json(stored));
    }
    body.extend_from_slice(b"]}");
    body
}

/// The objects that a list starts from.
fn snapshot(context: &Context, query: &Query) -> Result<Snapshot> {
    let store = &context.server.store;
    let asked = query.number("resourceVersion")?;
    let (at, after) = match query.get("continue") {
        Some(token) => {
            let token: Option<Continue> = URL_SAFE_NO_PAD
                .decode(token)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let token = token.ok_or_else(|| Failure::bad_request("continue key is not valid"))?;
            (Some(token.rv), Some(token.after))
        }
        None => match (query.get("resourceVersionMatch"), asked) {
            (Some("Exact"), Some(asked)) => (Some(asked), None),
            (None | Some("NotOlderThan"), _) => (None, None),
            (Some(other), _) => {
                let why = "supported values: \"Exact\", \"NotOlderThan\"; it needs a resourceVersion";
                return Err(Failure::bad_request(format!(
                    "resourceVersionMatch: Unsupported value: \"{other}\": {why}"
                )));
            }
        },
    };
    let newest = store.revision();
    if let Some(asked) = asked.or(at).filter(|asked| *asked > newest) {
        let message = format!("Too large resource version: {asked}, current: {newest}");
        return Err(Failure::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message));
    }
    let page = Page {
        after: after.as_deref(),
    };
    store.list(&context.served.storage, context.namespace.as_deref(), at, page).map_err(|expired| {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.";
        if after.is_some() { Failure::new(StatusCode::GONE, "Expired", message) } else { Failure::expired(at.unwrap_or(0), expired.oldest) }
    })
}
