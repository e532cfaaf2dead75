//! `/openapi/v2` and `/openapi/v3`: which document, in which form, and when it need not be sent again.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use crate::failure::{Failure, Result};
use crate::openapi;
use crate::registry::{Registry, Served};
use crate::rest::context::Query;
use crate::rest::present::{document, json_response};
use crate::server::Inner;

/// Answers a path below `/openapi`.
///
/// # Errors
/// 404 for unknown documents.
pub async fn handle(
    server: &Arc<Inner>,
    path: &str,
    query: &Query,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Failure::method_not_allowed());
    }
    let registry = server.registry();
    let version = server.version.git_version.clone();
    match path.trim_matches('/') {
        "openapi/v2" => v2(registry, version, headers).await,
        "openapi/v3" => {
            let all: Vec<(String, String)> = group_versions(&registry)
                .into_iter()
                .map(|(path, all)| (path, hash(&all)))
                .collect();
            Ok(document(&openapi::v3_root(
                all.iter().map(|(path, hash)| (path.as_str(), hash.as_str())),
            )))
        }
        path => {
            let path = path
                .strip_prefix("openapi/v3/")
                .ok_or_else(Failure::no_such_path)?
                .to_owned();
            let found = group_versions(&registry)
                .into_iter()
                .find(|(other, _)| *other == path)
                .ok_or_else(Failure::no_such_path)?;
            let current = hash(&found.1);
            if query.get("hash").is_some_and(|asked| asked != current) {
                return redirect(&format!("/openapi/v3/{path}?hash={current}"));
            }
            v3(found.1, version, query, headers).await
        }
    }
}

/// `api/v1`, `apis/GROUP/VERSION`, with what they serve.
fn group_versions(registry: &Registry) -> Vec<(String, Vec<Arc<Served>>)> {
    let mut all: Vec<(String, Vec<Arc<Served>>)> = Vec::new();
    for served in registry.all() {
        let prefix = if served.info.group.is_empty() { "api" } else { "apis" };
        let path = format!("{prefix}/{}", served.api_version());
        match all.iter_mut().find(|(other, _)| *other == path) {
            Some((_, list)) => list.push(served.clone()),
            None => all.push((path, vec![served.clone()])),
        }
    }
    all
}

fn hash(served: &[Arc<Served>]) -> String {
    openapi::hash(&served.iter().map(|served| &served.info).collect::<Vec<_>>())
}

/// The document changed since the client read its hash.
fn redirect(location: &str) -> Result<Response<Body>> {
    let location = HeaderValue::from_str(location).map_err(Failure::internal)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

fn unchanged(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_matches('"') == etag)
}

fn tagged(mut response: Response<Body>, etag: &str, forever: bool) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    if forever {
        response.headers_mut().insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, immutable, max-age=31536000"),
        );
    }
    response
}

/// Building a document takes some milliseconds of work, so it is done off the threads that serve.
async fn build<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(make).await.map_err(Failure::internal)
}

async fn v3(served: Vec<Arc<Served>>, version: String, query: &Query, headers: &HeaderMap) -> Result<Response<Body>> {
    let etag = hash(&served);
    if unchanged(headers, &etag) {
        return Ok(tagged(
            json_response(StatusCode::NOT_MODIFIED, Body::empty()),
            &etag,
            false,
        ));
    }
    let infos =
        move || openapi::v3_group_version(&served.iter().map(|served| &served.info).collect::<Vec<_>>(), &version);
    let body = build(infos).await?;
    Ok(tagged(
        json_response(StatusCode::OK, body),
        &etag,
        query.get("hash") == Some(&etag),
    ))
}

async fn v2(registry: Arc<Registry>, version: String, headers: &HeaderMap) -> Result<Response<Body>> {
    let all: Vec<Arc<Served>> = registry.all().cloned().collect();
    let etag = hash(&all);
    if unchanged(headers, &etag) {
        return Ok(tagged(
            json_response(StatusCode::NOT_MODIFIED, Body::empty()),
            &etag,
            false,
        ));
    }
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if accept.contains("proto-openapi.spec.v2") {
        let bytes =
            build(move || openapi::v2_protobuf(&all.iter().map(|served| &served.info).collect::<Vec<_>>(), &version))
                .await?;
        let mut response = Response::new(Body::from(bytes));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(openapi::V2_PROTOBUF));
        return Ok(tagged(response, &etag, false));
    }
    let body = build(move || openapi::v2(&all.iter().map(|served| &served.info).collect::<Vec<_>>(), &version)).await?;
    Ok(tagged(json_response(StatusCode::OK, body), &etag, false))
}
