//! Discovery and OpenAPI of the group, as the API server's aggregation layer reads them.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::status;
use crate::subresources::{self, GROUP, Resource, VERSIONS};

/// The `APIGroupList`.
pub(super) fn groups() -> Value {
    let mut group = group();
    if let Some(group) = group.as_object_mut() {
        group.remove("kind");
        group.remove("apiVersion");
    }
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]})
}

/// The `APIGroup`.
pub(super) fn group() -> Value {
    let version = |version: &str| json!({"groupVersion": format!("{GROUP}/{version}"), "version": version});
    json!({
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": GROUP,
        "versions": VERSIONS.map(version),
        "preferredVersion": version(VERSIONS[0]),
    })
}

/// Changes whenever the documents can.
const ETAG: &str = concat!("\"", env!("CARGO_PKG_VERSION"), "\"");

fn cached(headers: &HeaderMap, document: impl FnOnce() -> Value) -> Response<Body> {
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|etag| etag == ETAG);
    let mut response = if known {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        status::json(StatusCode::OK, &document())
    };
    response
        .headers_mut()
        .insert(header::ETAG, HeaderValue::from_static(ETAG));
    response
}

fn info() -> Value {
    json!({"title": GROUP, "version": env!("CARGO_PKG_VERSION")})
}

/// OpenAPI 2, all versions.
pub(super) fn openapi_v2(headers: &HeaderMap) -> Response<Body> {
    cached(headers, || {
        let mut paths = Map::new();
        for version in VERSIONS {
            paths.extend(path_items(version, |parameter| {
                parameter["type"] = "string".into();
            }));
        }
        json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": {}})
    })
}

/// Where the documents of OpenAPI 3 are.
pub(super) fn openapi_v3_root() -> Value {
    let mut paths = Map::new();
    for version in VERSIONS {
        let path = format!("apis/{GROUP}/{version}");
        let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// OpenAPI 3 of one version.
pub(super) fn openapi_v3(version: &str, headers: &HeaderMap) -> Response<Body> {
    if !VERSIONS.contains(&version) {
        let text = "the server could not find the requested resource";
        return status::refuse(&status::failure(StatusCode::NOT_FOUND, "NotFound", text));
    }
    cached(headers, || {
        let paths = path_items(version, |parameter| {
            parameter["schema"] = json!({"type": "string"});
        });
        json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {}})
    })
}

fn path_items(version: &str, typed: impl Fn(&mut Value)) -> Map<String, Value> {
    let parameter = |name: &str| {
        let mut parameter = json!({"name": name, "in": "path", "required": true});
        typed(&mut parameter);
        parameter
    };
    let mut paths = Map::new();
    for Resource {
        resource,
        subresource,
        verb,
    } in subresources::resources()
    {
        let streams = matches!(subresource, "console" | "vnc" | "portforward" | "usbredir");
        let mut parameters = vec![parameter("namespace")];
        let mut path = format!("/apis/{GROUP}/{version}/namespaces/{{namespace}}/{resource}");
        if !subresource.is_empty() {
            path.push_str(&format!("/{{name}}/{subresource}"));
            parameters.push(parameter("name"));
        }
        if subresource == "portforward" {
            path.push_str("/{port}");
            parameters.push(parameter("port"));
        }
        let (method, code) = match verb {
            "get" if streams => ("get", "101"),
            "get" => ("get", "200"),
            _ if resource == "virtualmachines" && subresource != "evacuate/cancel" => ("put", "202"),
            _ if subresource == "sev/setupsession" => ("put", "202"),
            _ => ("put", "200"),
        };
        let operation = json!({
            "operationId": format!("{version}{resource}{subresource}"),
            "responses": {code: {"description": if streams { "A websocket" } else { "Done" }}},
        });
        paths.insert(path, json!({method: operation, "parameters": parameters}));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_are_sent_once() {
        let response = openapi_v2(&HeaderMap::new());
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, response.headers()[header::ETAG].clone());
        assert_eq!(openapi_v2(&headers).status(), StatusCode::NOT_MODIFIED);
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let document: Value = serde_json::from_slice(&body).unwrap();
        let start = "/apis/subresources.kubevirt.io/v1/namespaces/{namespace}/virtualmachines/{name}/start";
        assert_eq!(
            document["paths"][start]["put"]["responses"]["202"]["description"],
            "Done"
        );
        assert_eq!(document["paths"][start]["parameters"][1]["type"], "string");
        assert_eq!(openapi_v3("v1", &HeaderMap::new()).status(), StatusCode::OK);
        assert_eq!(openapi_v3("v2", &HeaderMap::new()).status(), StatusCode::NOT_FOUND);
        assert_eq!(groups()["groups"][0]["preferredVersion"]["version"], "v1");
    }
}
