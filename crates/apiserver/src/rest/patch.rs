//! PATCH: four content types, one path.

use axum::body::Body;
use http::{Request, Response, header};
use serde_json::Value;

use super::context::{Context, Query};
use super::present::Form;
use super::write::{Change, modify};
use super::{body, meta, written_response};
use crate::failure::{Failure, Result, cause};
use crate::patch::managed_fields::{ApplyError, Conflict, server_side_apply};
use crate::patch::{PatchError, PatchKind, apply_patch};

const SUPPORTED: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// A patch as it came.
pub struct Patch {
    kind: PatchKind,
    document: Value,
    force: bool,
    manager: String,
    subresource: Option<String>,
    unknown: Vec<String>,
}

impl Patch {
    /// Reads the patch of a request.
    ///
    /// # Errors
    /// 415 for other content types, 400 for malformed documents or missing options.
    pub async fn read(context: &mut Context, query: &Query, headers: &http::HeaderMap, body: Body) -> Result<Self> {
        let content = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let kind = match content.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => PatchKind::Json,
            "application/merge-patch+json" => PatchKind::Merge,
            "application/strategic-merge-patch+json" if context.served.crd.is_some() => {
                let supported =
                    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
                return Err(Failure::unsupported_media_type(
                    "application/strategic-merge-patch+json",
                    supported,
                ));
            }
            "application/strategic-merge-patch+json" => PatchKind::Strategic,
            "application/apply-patch+yaml" | "application/apply-patch+json" => PatchKind::Apply,
            other => return Err(Failure::unsupported_media_type(other, SUPPORTED)),
        };
        let bytes = body::read(body).await?;
        let parsed = match kind {
            PatchKind::Apply => body::parse("application/yaml", &bytes)?,
            _ => body::parse("application/json", &bytes)?,
        };
        if matches!(kind, PatchKind::Apply) && query.get("fieldManager").is_none() {
            let why =
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
            return Err(Failure::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                vec![cause(
                    "fieldManager",
                    "FieldValueRequired",
                    "Required value: is required for apply patch",
                )],
            )
            .with_message(why));
        }
        let force = query.flag("force");
        if force && !matches!(kind, PatchKind::Apply) {
            let why = "Forbidden: may not be specified for non-apply patch";
            return Err(Failure::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                vec![cause("force", "FieldValueForbidden", why)],
            ));
        }
        let unknown = parsed
            .duplicates
            .into_iter()
            .map(|path| format!("duplicate {path}"))
            .collect();
        Ok(Self {
            kind,
            document: parsed.value,
            force,
            manager: context.manager.clone(),
            subresource: context.subresource.clone(),
            unknown,
        })
    }

    /// Whether the patch may make a new object.
    pub fn creates(&self) -> bool {
        matches!(self.kind, PatchKind::Apply) && self.subresource.is_none()
    }

    /// The next version of an object.
    ///
    /// # Errors
    /// 400, 409, 422 for patches that do not fit.
    pub fn apply(&self, context: &Facts, current: Option<&Value>) -> Result<Change> {
        if !matches!(self.kind, PatchKind::Apply) {
            let current = current.unwrap_or(&Value::Null);
            let object = apply_patch(self.kind, current, &self.document, &context.schema)
                .map_err(|error| refuse(context, &error))?;
            return Ok(Change {
                object,
                applied: false,
                unknown: self.unknown.clone(),
            });
        }
        let mut document = self.document.clone();
        let mut unknown = self.unknown.clone();
        unknown.extend(meta::decode(&mut document)?);
        unknown.extend(context.schema.prune(&mut document));
        if !document["metadata"]["managedFields"].is_null() {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        let version = meta::text(&document, "resourceVersion").to_owned();
        let subresource = self.subresource.as_deref();
        let mut object = server_side_apply(
            current,
            &document,
            &self.manager,
            self.force,
            subresource,
            &context.schema,
            &meta::now(),
        )
        .map_err(|error| apply_failure(&error))?;
        if !version.is_empty() {
            object["metadata"]["resourceVersion"] = Value::String(version);
        }
        Ok(Change {
            object,
            applied: true,
            unknown,
        })
    }
}

/// What a patch needs to know of the resource.
pub struct Facts {
    schema: crate::schema::Schema,
    group: String,
    kind: String,
    name: String,
}

impl Facts {
    /// Of one object of the context's resource.
    pub fn new(context: &Context, name: &str) -> Self {
        let info = &context.served.info;
        Self {
            schema: info.schema.clone(),
            group: info.group.clone(),
            kind: info.kind.clone(),
            name: name.to_owned(),
        }
    }
}

fn refuse(facts: &Facts, error: &PatchError) -> Failure {
    let message = error.to_string();
    match error.code() {
        422 => Failure::invalid(&facts.group, &facts.kind, &facts.name, Vec::new()).with_message(message),
        code => Failure::new(
            http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::BAD_REQUEST),
            error.reason(),
            message,
        ),
    }
}

fn apply_failure(error: &ApplyError) -> Failure {
    let message = error.to_string();
    match error {
        ApplyError::Malformed(_) => Failure::bad_request(message),
        ApplyError::Conflicts(conflicts) => {
            let cause = |c: &Conflict| cause(&c.field, "FieldManagerConflict", format!("conflict with {}", c.manager));
            Failure::apply_conflict(message, conflicts.iter().map(cause).collect())
        }
    }
}

/// PATCH of an object or of its status.
///
/// # Errors
/// As for [`modify`].
pub async fn handle(
    context: &mut Context,
    name: &str,
    query: &Query,
    request: Request<Body>,
) -> Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let form = Form::accepted(&head.headers)?;
    let patch = Patch::read(context, query, &head.headers, body).await?;
    let facts = Facts::new(context, name);
    let creates = patch.creates();
    let compute = move |current: Option<&Value>| patch.apply(&facts, current);
    let written = modify(context, name, creates, &compute).await?;
    Ok(written_response(context, &written, form))
}
