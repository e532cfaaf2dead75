//! `metav1.Status` answers, worded as Kubernetes words them.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};
use serde::Serialize;

use crate::subresources::Attributes;

/// Why a request is refused. Boxed, because it is large and rare.
pub(crate) type Refusal = Box<Status>;

/// Group of the objects that errors are about.
const GROUP: &str = "kubevirt.io";

/// A failure with this code and reason.
pub(crate) fn failure(code: StatusCode, reason: &str, message: impl Into<String>) -> Refusal {
    Box::new(Status {
        code: Some(i32::from(code.as_u16())),
        message: Some(message.into()),
        reason: Some(reason.to_owned()),
        status: Some("Failure".to_owned()),
        ..Status::default()
    })
}

/// Says which object a refusal is about.
pub(crate) fn about(mut status: Refusal, kind: &str, name: &str, causes: Option<Vec<StatusCause>>) -> Refusal {
    status.details = Some(StatusDetails {
        causes,
        group: Some(GROUP.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        ..StatusDetails::default()
    });
    status
}

/// 404 for an object of `kubevirt.io`.
pub(crate) fn not_found(resource: &str, name: &str) -> Refusal {
    let status = failure(
        StatusCode::NOT_FOUND,
        "NotFound",
        format!("{resource}.{GROUP} \"{name}\" not found"),
    );
    about(status, resource, name, None)
}

/// A refusal of the rules that processes share.
pub(crate) fn from_rule(resource: &str, name: &str, rule: ferrovirt_core::refusal::Refusal) -> Refusal {
    let code = StatusCode::from_u16(rule.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let status = failure(code, rule.reason, rule.message);
    if code == StatusCode::CONFLICT || code == StatusCode::FORBIDDEN {
        return about(status, resource, name, None);
    }
    status
}

/// 400.
pub(crate) fn bad_request(why: impl Into<String>) -> Refusal {
    failure(StatusCode::BAD_REQUEST, "BadRequest", why)
}

/// 401: nobody whom we trust says who asks.
pub(crate) fn unauthorized() -> Refusal {
    failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
}

/// 403: the API server says that `user` may not do it, and perhaps why.
pub(crate) fn forbidden(what: &Attributes, user: &str, why: Option<&str>) -> Refusal {
    let Attributes {
        verb,
        resource,
        subresource,
        namespace,
        name,
    } = what;
    let group = crate::subresources::GROUP;
    let path = [*resource, *subresource].join("/");
    let path = path.trim_end_matches('/');
    let why = why.filter(|why| !why.is_empty()).map(|why| format!(": {why}"));
    let status = failure(
        StatusCode::FORBIDDEN,
        "Forbidden",
        format!(
            "{resource}.{group} \"{name}\" is forbidden: User \"{user}\" cannot {verb} resource \"{path}\" in API group \"{group}\" in the namespace \"{namespace}\"{}",
            why.unwrap_or_default()
        ),
    );
    let mut status = about(status, resource, name, None);
    if let Some(details) = &mut status.details {
        details.group = Some(group.to_owned());
    }
    status
}

/// 500 whose message says what went wrong.
pub(crate) fn internal(why: impl std::fmt::Display) -> Refusal {
    failure(
        StatusCode::INTERNAL_SERVER_ERROR,
        "InternalError",
        format!("Internal error occurred: {why}"),
    )
}

/// 501 for what KubeVirt has and this version does not.
pub(crate) fn not_supported_yet(what: &str) -> Refusal {
    failure(
        StatusCode::NOT_IMPLEMENTED,
        "NotImplemented",
        format!("not supported yet: {what}"),
    )
}

/// An error with its sources, outermost first, for a message.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = inner.source();
    }
    text
}

/// The API server's own refusal is passed on; anything else is a 500.
pub(crate) fn from_client(error: kube::Error) -> Refusal {
    match error {
        kube::Error::Api(inner) => match serde_json::to_value(&*inner).and_then(serde_json::from_value::<Status>) {
            Ok(status) if status.code.unwrap_or_default() >= 400 => Box::new(status),
            _ => internal(inner.message.clone()),
        },
        other => internal(chain(&other)),
    }
}

/// The HTTP code of a refusal.
pub(crate) fn code_of(status: &Status) -> StatusCode {
    status
        .code
        .and_then(|code| u16::try_from(code).ok())
        .and_then(|code| StatusCode::from_u16(code).ok())
        .filter(|code| code.as_u16() >= 400)
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A JSON answer.
pub(crate) fn json(code: StatusCode, value: &impl Serialize) -> Response<Body> {
    let (code, text) = match serde_json::to_vec(value) {
        Ok(text) => (code, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string().into_bytes()),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A refusal as an answer.
pub(crate) fn refuse(status: &Status) -> Response<Body> {
    json(code_of(status), status)
}
