//! The verbs on resources.

pub mod body;
pub mod context;
pub mod delete;
pub mod kinds;
pub mod meta;
pub mod patch;
pub mod present;
pub mod read;
pub mod subresources;
pub mod write;

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, Response, StatusCode, header};
use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::hooks::UserInfo;
use crate::server::Inner;
use crate::watch;
use context::{Context, FieldValidation, Query, Target};
use present::{Form, add_warnings, json_response};
use write::{Change, Written};

/// Answers a request to a resource that was authorized already.
///
/// # Errors
/// The `Status` that the client gets.
pub async fn handle(
    server: &Arc<Inner>,
    user: UserInfo,
    target: Target,
    query: Query,
    request: Request<Body>,
) -> Result<Response<Body>> {
    let served = server
        .registry()
        .find(&target.group, &target.version, &target.resource)
        .ok_or_else(Failure::no_such_path)?;
    let of_all = target.name.is_none() && matches!(*request.method(), Method::GET | Method::HEAD);
    if served.info.namespaced == target.namespace.is_none() && !(served.info.namespaced && of_all) {
        return Err(Failure::no_such_path());
    }
    let mut context = Context::new(server, user, served, &target, &query, request.headers())?;
    if let Some(subresource) = &target.subresource {
        let name = target.name.clone().unwrap_or_default();
        let first = subresource.split('/').next().unwrap_or_default();
        if !context.served.has_subresource(first) {
            return Err(Failure::no_such_path());
        }
        return subresources::handle(context, &name, &query, request).await;
    }
    match (request.method().clone(), target.name) {
        (Method::GET | Method::HEAD, name)
            if target.watch || (name.is_none() && query.flag("watch")) || query.get("watch") == Some("true") =>
        {
            watch::watch(context, &query, request.headers(), name.as_deref())
        }
        (Method::GET | Method::HEAD, Some(name)) => read::get(&context, &name, &query, request.headers()),
        (Method::GET | Method::HEAD, None) => read::list(&context, &query, request.headers()),
        (Method::POST, None) => {
            let (form, object, _) = accept(&mut context, request).await?;
            let written = write::create(&mut context, object).await?;
            Ok(written_response(&context, &written, form))
        }
        (Method::PUT, Some(name)) => put(&mut context, &name, request).await,
        (Method::PATCH, Some(name)) => patch::handle(&mut context, &name, &query, request).await,
        (Method::DELETE, name) => {
            let (head, body) = request.into_parts();
            let options = delete::Options::parse(&query, &head.headers, &body::read(body).await?)?;
            match name {
                Some(name) => {
                    let deleted = delete::delete(&mut context, &name, &options).await?;
                    let mut response = delete::answer(&context, &name, &deleted);
                    add_warnings(&mut response, &context.warnings);
                    Ok(response)
                }
                None => delete::delete_collection(&mut context, &query, &options).await,
            }
        }
        _ => Err(Failure::method_not_allowed()),
    }
}

/// Reads the document of a write. Duplicate fields are refused or become warnings.
pub(crate) async fn accept(context: &mut Context, request: Request<Body>) -> Result<(Form, Value, http::HeaderMap)> {
    let (head, body) = request.into_parts();
    let form = Form::accepted(&head.headers)?;
    let content = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let parsed = body::parse(content, &body::read(body).await?)?;
    let texts = parsed
        .duplicates
        .iter()
        .map(|path| format!("duplicate field \"{path}\""));
    match context.validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => context.warnings.extend(texts),
        FieldValidation::Strict if parsed.duplicates.is_empty() => {}
        FieldValidation::Strict => {
            let info = &context.served.info;
            let list = texts.collect::<Vec<_>>().join(", ");
            let message = format!(
                "{0} in version \"{1}\" cannot be handled as a {0}: strict decoding error: {list}",
                info.kind, info.version
            );
            return Err(Failure::bad_request(message));
        }
    }
    Ok((form, parsed.value, head.headers))
}

async fn put(context: &mut Context, name: &str, request: Request<Body>) -> Result<Response<Body>> {
    let (form, object, _) = accept(context, request).await?;
    let written = replace(context, name, object).await?;
    Ok(written_response(context, &written, form))
}

/// PUT of an object or of its status.
///
/// # Errors
/// As for [`write::modify`].
pub(crate) async fn replace(context: &mut Context, name: &str, object: Value) -> Result<Written> {
    let compute = move |_: Option<&Value>| Ok(Change::new(object.clone()));
    write::modify(context, name, false, &compute).await
}

/// The answer to a write.
pub(crate) fn written_response(context: &Context, written: &Written, form: Form) -> Response<Body> {
    let code = if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let body = context
        .served
        .render(&written.object, form, crate::table::IncludeObject::Metadata)
        .into_owned();
    let mut response = json_response(code, body);
    add_warnings(&mut response, &context.warnings);
    response
}
