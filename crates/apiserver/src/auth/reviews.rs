//! Reviews: questions about access, answered and not stored.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};

use super::rbac::Attributes;
use crate::failure::{Failure, Result};
use crate::hooks::UserInfo;
use crate::rest::body;
use crate::rest::context::Target;
use crate::rest::present::json_response;
use crate::server::Inner;

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whether this is a question and not a stored resource.
pub fn is_review(target: &Target) -> bool {
    target.version == "v1" && matches!(target.group.as_str(), AUTHORIZATION | AUTHENTICATION)
}

/// Answers a review.
///
/// # Errors
/// 404 for other resources, 405 for other methods, 400 for malformed questions.
pub async fn handle(
    server: &Arc<Inner>,
    user: &UserInfo,
    target: &Target,
    request: Request<Body>,
) -> Result<Response<Body>> {
    if request.method() != Method::POST {
        return Err(Failure::method_not_allowed());
    }
    let (head, payload) = request.into_parts();
    let content = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let mut review = body::parse(&content, &body::read(payload).await?)?.value;
    if !review.is_object() {
        return Err(Failure::bad_request("a review must be a JSON object"));
    }
    let spec = &review["spec"];
    let (kind, status) = match (target.group.as_str(), target.resource.as_str()) {
        (AUTHORIZATION, "selfsubjectaccessreviews") => ("SelfSubjectAccessReview", access(server, user, spec)),
        (AUTHORIZATION, "subjectaccessreviews") => ("SubjectAccessReview", access(server, &subject(spec), spec)),
        (AUTHORIZATION, "localsubjectaccessreviews") => {
            ("LocalSubjectAccessReview", access(server, &subject(spec), spec))
        }
        (AUTHORIZATION, "selfsubjectrulesreviews") => ("SelfSubjectRulesReview", rules(server, user, spec)),
        (AUTHENTICATION, "selfsubjectreviews") => ("SelfSubjectReview", json!({"userInfo": info(user)})),
        (AUTHENTICATION, "tokenreviews") => {
            let found = server
                .tokens
                .user(&server.store, spec["token"].as_str().unwrap_or_default());
            let status = found.map_or_else(
                || json!({"authenticated": false, "error": "invalid bearer token"}),
                |user| json!({"authenticated": true, "user": info(&user)}),
            );
            ("TokenReview", status)
        }
        _ => return Err(Failure::no_such_path()),
    };
    review["kind"] = json!(kind);
    review["apiVersion"] = json!(format!("{}/{}", target.group, target.version));
    if review["metadata"].is_null() {
        review["metadata"] = json!({});
    }
    review["status"] = status;
    Ok(json_response(StatusCode::CREATED, review.to_string()))
}

fn subject(spec: &Value) -> UserInfo {
    let groups = spec["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|group| group.as_str().map(str::to_owned))
        .collect();
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    UserInfo {
        username: text("user"),
        uid: text("uid"),
        groups,
        ..UserInfo::default()
    }
}

fn info(user: &UserInfo) -> Value {
    json!({"username": user.username, "uid": user.uid, "groups": user.groups, "extra": user.extra})
}

fn access(server: &Inner, user: &UserInfo, spec: &Value) -> Value {
    let some = |value: &'_ Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let allowed = if spec["nonResourceAttributes"].is_object() {
        let wanted = &spec["nonResourceAttributes"];
        let (verb, path) = (some(&wanted["verb"]), some(&wanted["path"]));
        let attributes = Attributes {
            verb: verb.as_deref().unwrap_or_default(),
            path: path.as_deref().or(Some("")),
            ..Attributes::default()
        };
        server.authorizer.allows(&server.store, user, &attributes)
    } else {
        let wanted = &spec["resourceAttributes"];
        let text = |field: &str| wanted[field].as_str().unwrap_or_default();
        let resource = if text("subresource").is_empty() {
            text("resource").to_owned()
        } else {
            format!("{}/{}", text("resource"), text("subresource"))
        };
        let (namespace, name) = (some(&wanted["namespace"]), some(&wanted["name"]));
        let attributes = Attributes::resource(
            text("verb"),
            text("group"),
            &resource,
            namespace.as_deref(),
            name.as_deref(),
        );
        server.authorizer.allows(&server.store, user, &attributes)
    };
    if allowed {
        json!({"allowed": true})
    } else {
        json!({"allowed": false, "reason": "no role allows it"})
    }
}

fn rules(server: &Inner, user: &UserInfo, spec: &Value) -> Value {
    let rules = server
        .authorizer
        .rules(&server.store, user, spec["namespace"].as_str().unwrap_or_default());
    let (paths, resources): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| !rule.paths.is_empty());
    let resources: Vec<Value> = resources
        .into_iter()
        .map(|rule| json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources, "resourceNames": rule.names}))
        .collect();
    let paths: Vec<Value> = paths
        .into_iter()
        .map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths}))
        .collect();
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}
