//! The OpenAPI documents that clients read: `/openapi/v3/…` for each group version, and `/openapi/v2` for everything,
//! as JSON and as the protobuf encoding that Kubernetes clients ask for.
//!
//! Documents are large and rarely asked for, so they are text that is built when it is asked for: one definition is in
//! memory as a tree at a time.

mod components;
mod gnostic;
mod operations;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::builtin::{ResourceInfo, SchemaSource};

use components::{Components, Dialect};

/// Media type of the protobuf form of [`v2_protobuf`], as answers name it. Clients ask for `…spec.v2@v1.0+protobuf`, but
/// an `@` is not allowed in a media type (RFC 2045) and Go's parser refuses it in an answer.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The index at `/openapi/v3`: group versions as `api/v1` or `apis/GROUP/VERSION`, with the hashes of their documents.
#[must_use]
pub fn v3_root<'a>(group_versions: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let paths = group_versions.into_iter().map(|(path, hash)| {
        (
            path.to_owned(),
            json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
        )
    });
    json!({"paths": paths.collect::<serde_json::Map<_, _>>()})
}

/// Identifies a document by what it is made of, without building it: changes when one of the resources does.
#[must_use]
pub fn hash(resources: &[&ResourceInfo]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    for resource in resources {
        for part in [&resource.group, &resource.version, &resource.plural, &resource.kind] {
            hasher.update(part);
            hasher.update([0]);
        }
        for subresource in &resource.subresources {
            hasher.update(&subresource.name);
        }
        if let SchemaSource::Custom(schema) = &resource.source {
            hasher.update(&**schema);
        }
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The document of one group version. `resources` are all those of that group version; `server` is the server's version.
#[must_use]
pub fn v3_group_version(resources: &[&ResourceInfo], server: &str) -> String {
    let components = Components::of(resources, Dialect::V3);
    let paths = operations::paths(resources, Dialect::V3);
    let info = json!({"title": "Kubernetes", "version": server});
    format!(
        r#"{{"openapi":"3.0.0","info":{info},"paths":{paths},"components":{{"schemas":{{{}}}}}}}"#,
        components.join()
    )
}

/// The document of all group versions, as JSON.
#[must_use]
pub fn v2(resources: &[&ResourceInfo], server: &str) -> String {
    let components = Components::of(resources, Dialect::V2);
    let paths = operations::paths(resources, Dialect::V2);
    let info = json!({"title": "Kubernetes", "version": server});
    format!(
        r#"{{"swagger":"2.0","info":{info},"paths":{paths},"definitions":{{{}}}}}"#,
        components.join()
    )
}

/// The same document in gnostic's protobuf encoding (`openapi.v2.Document`).
#[must_use]
pub fn v2_protobuf(resources: &[&ResourceInfo], server: &str) -> Vec<u8> {
    let paths = operations::paths(resources, Dialect::V2);
    gnostic::encode(&paths, &mut Components::of(resources, Dialect::V2), server)
}
