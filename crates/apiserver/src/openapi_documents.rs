//! `/openapi/v2` and `/openapi/v3`: which document is asked for, and in which form.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};

use crate::builtin::ResourceInfo;
use crate::failure::{Failure, Result};
use crate::openapi::{V2_PROTOBUF, hash, v2, v2_protobuf, v3_group_version, v3_root};
use crate::registry::Served;
use crate::rest::present::document;
use crate::server::Inner;

/// Clients may keep a document that they asked for by its hash as long as they like.
const FOREVER: &str = "public, immutable";

/// Answers a path below `/openapi`.
///
/// # Errors
/// 404 for unknown documents.
pub fn handle(server: &Arc<Inner>, path: &[&str], request: &Request<Body>) -> Result<Response<Body>> {
    let registry = server.registry();
    let all: Vec<&Served> = registry.all().map(AsRef::as_ref).collect();
    match path {
        ["v2"] => {
            let all = infos(&all);
            let protobuf = accepts(request.headers(), "spec.v2@v1.0+protobuf");
            let kind = if protobuf { V2_PROTOBUF } else { "application/json" };
            let build = || match protobuf {
                true => v2_protobuf(&all, &server.version.git_version),
                false => v2(&all, &server.version.git_version).into_bytes(),
            };
            Ok(cacheable(request, &hash(&all), kind, false, build))
        }
        ["v3"] => {
            let paths: Vec<(String, String)> = group_versions(&all)
                .into_iter()
                .map(|(path, served)| (path, hash(&infos(&served))))
                .collect();
            let pairs = paths.iter().map(|(path, hash)| (path.as_str(), hash.as_str()));
            Ok(document(&v3_root(pairs)))
        }
        ["v3", rest @ ..] => {
            let path = rest.join("/");
            let found = group_versions(&all).into_iter().find(|(found, _)| *found == path);
            let (_, served) = found.ok_or_else(Failure::no_such_path)?;
            let infos = infos(&served);
            let hash = hash(&infos);
            let asked = request.uri().query().and_then(|query| query.strip_prefix("hash="));
            if let Some(asked) = asked.filter(|asked| *asked != hash) {
                tracing::debug!(asked, hash, "an OpenAPI document changed since its hash was read");
                return redirect(&format!("/openapi/v3/{path}?hash={hash}"));
            }
            let build = || v3_group_version(&infos, &server.version.git_version).into_bytes();
            Ok(cacheable(request, &hash, "application/json", asked.is_some(), build))
        }
        _ => Err(Failure::no_such_path()),
    }
}

fn infos<'a>(served: &[&'a Served]) -> Vec<&'a ResourceInfo> {
    served.iter().map(|served| &served.info).collect()
}

/// The resources of each group version, by `api/v1` or `apis/GROUP/VERSION`.
fn group_versions<'a>(all: &[&'a Served]) -> Vec<(String, Vec<&'a Served>)> {
    let mut groups: Vec<(String, Vec<&Served>)> = Vec::new();
    for served in all {
        let root = if served.info.group.is_empty() { "api" } else { "apis" };
        let path = format!("{root}/{}", served.api_version());
        match groups.iter_mut().find(|(found, _)| *found == path) {
            Some((_, list)) => list.push(served),
            None => groups.push((path, vec![served])),
        }
    }
    groups
}

fn accepts(headers: &HeaderMap, what: &str) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    accepted
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains(what))
}

fn redirect(location: &str) -> Result<Response<Body>> {
    let location = HeaderValue::from_str(location).map_err(Failure::internal)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// The document, or 304 if the client has it already. It is only built when it is sent.
fn cacheable(
    request: &Request<Body>,
    hash: &str,
    kind: &'static str,
    forever: bool,
    build: impl FnOnce() -> Vec<u8>,
) -> Response<Body> {
    let tag = format!("\"{hash}\"");
    let known = request.headers().get(header::IF_NONE_MATCH);
    let fresh = known
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains(&tag));
    let mut response = Response::new(if fresh { Body::empty() } else { Body::from(build()) });
    if fresh {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if forever {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(FOREVER));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}
