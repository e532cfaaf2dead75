//! What a client finds out about the server: groups, versions, resources, OpenAPI.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Request, Response, header};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::hooks::AggregatedResource;
use crate::registry::{Registry, Served, api_version};
use crate::rest::present::document;
use crate::server::{Inner, VersionInfo};

/// `/version`.
pub fn version(version: &VersionInfo) -> Response<Body> {
    document(&json!({
        "major": version.major, "minor": version.minor, "gitVersion": version.git_version,
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH.replace("x86_64", "amd64")),
    }))
}

/// One group version, whoever answers it.
struct GroupVersion {
    group: String,
    version: String,
    served: Vec<Arc<Served>>,
    aggregated: Vec<AggregatedResource>,
}

fn group_versions(server: &Inner) -> Vec<GroupVersion> {
    let registry = server.registry();
    let mut all = Vec::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            let served = of_version(&registry, &group, &version);
            all.push(GroupVersion {
                group: group.clone(),
                version,
                served,
                aggregated: Vec::new(),
            });
        }
    }
    for group in server.aggregated() {
        for version in group.versions() {
            all.push(GroupVersion {
                group: group.group().to_owned(),
                version,
                served: Vec::new(),
                aggregated: group.resources(),
            });
        }
    }
    all
}

fn of_version(registry: &Registry, group: &str, version: &str) -> Vec<Arc<Served>> {
    registry
        .all()
        .filter(|served| served.info.group == group && served.info.version == version)
        .cloned()
        .collect()
}

/// Answers every path that names no resource.
///
/// # Errors
/// 404 for unknown paths, 405 for other methods than GET.
pub fn handle(server: &Arc<Inner>, path: &str, request: &Request<Body>) -> Result<Response<Body>> {
    if !matches!(*request.method(), http::Method::GET | http::Method::HEAD) {
        return Err(Failure::method_not_allowed());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let all = group_versions(server);
    match parts.as_slice() {
        [] => Ok(document(&json!({"paths": paths(&all)}))),
        ["api"] if aggregated(request.headers()).is_some() => Ok(aggregated_list(&all, true, request.headers())),
        ["api"] => Ok(document(&json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]}))),
        ["apis"] if aggregated(request.headers()).is_some() => Ok(aggregated_list(&all, false, request.headers())),
        ["apis"] => Ok(document(&group_list(&all))),
        ["apis", group] => groups(&all)
            .into_iter()
            .find(|found| found["name"] == *group)
            .map(|mut found| {
                found["kind"] = json!("APIGroup");
                found["apiVersion"] = json!("v1");
                document(&found)
            })
            .ok_or_else(Failure::no_such_path),
        ["api", version] => resource_list(&all, "", version),
        ["apis", group, version] => resource_list(&all, group, version),
        _ => Err(Failure::no_such_path()),
    }
}

fn paths(all: &[GroupVersion]) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for gv in all.iter().filter(|gv| !gv.group.is_empty()) {
        paths.push(format!("/apis/{}", gv.group));
        paths.push(format!("/apis/{}/{}", gv.group, gv.version));
    }
    paths.sort();
    paths.dedup();
    paths
}

fn groups(all: &[GroupVersion]) -> Vec<Value> {
    let mut groups: Vec<Value> = Vec::new();
    for gv in all.iter().filter(|gv| !gv.group.is_empty()) {
        let version = json!({"groupVersion": api_version(&gv.group, &gv.version), "version": gv.version});
        match groups.iter_mut().find(|group| group["name"] == gv.group) {
            Some(group) => {
                if let Some(versions) = group["versions"].as_array_mut() {
                    versions.push(version);
                }
            }
            None => groups.push(json!({"name": gv.group, "versions": [version.clone()], "preferredVersion": version})),
        }
    }
    groups
}

fn group_list(all: &[GroupVersion]) -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(all)})
}

fn resource_list(all: &[GroupVersion], group: &str, version: &str) -> Result<Response<Body>> {
    let gv = all
        .iter()
        .find(|gv| gv.group == group && gv.version == version)
        .ok_or_else(Failure::no_such_path)?;
    let mut resources = Vec::new();
    for served in &gv.served {
        let info = &served.info;
        let mut resource = json!({"name": info.plural, "singularName": info.singular, "namespaced": info.namespaced,
            "kind": info.kind, "verbs": info.verbs, "storageVersionHash": ""});
        if !info.short_names.is_empty() {
            resource["shortNames"] = json!(info.short_names);
        }
        if !info.categories.is_empty() {
            resource["categories"] = json!(info.categories);
        }
        resources.push(resource);
        for sub in &info.subresources {
            let mut resource = json!({"name": format!("{}/{}", info.plural, sub.name), "singularName": "",
                "namespaced": info.namespaced, "kind": sub.kind, "verbs": sub.verbs});
            if let Some((group, version)) = sub_gv(sub, info) {
                resource["group"] = json!(group);
                resource["version"] = json!(version);
            }
            resources.push(resource);
        }
    }
    for resource in &gv.aggregated {
        resources.push(
            json!({"name": resource.name, "singularName": "", "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs}),
        );
    }
    Ok(document(
        &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": resources}),
    ))
}

/// The group and version of a subresource's kind, if they are not those of the resource.
fn sub_gv<'a>(sub: &'a crate::builtin::Subresource, info: &crate::builtin::ResourceInfo) -> Option<(&'a str, &'a str)> {
    let (group, version) = (sub.group.as_str(), sub.version.as_str());
    ((group, version) != (info.group.as_str(), info.version.as_str())).then_some((group, version))
}

/// The version of aggregated discovery that the client prefers over the plain lists.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    accept.split(',').find_map(|item| {
        let parts: Vec<&str> = item.split(';').map(str::trim).collect();
        if parts.first() != Some(&"application/json") || !parts.contains(&"as=APIGroupDiscoveryList") {
            return None;
        }
        ["v2", "v2beta1"]
            .into_iter()
            .find(|version| parts.contains(&format!("v={version}").as_str()))
    })
}

fn aggregated_list(all: &[GroupVersion], core: bool, headers: &HeaderMap) -> Response<Body> {
    let discovery = aggregated(headers).unwrap_or("v2");
    let mut items: Vec<(String, Vec<Value>)> = Vec::new();
    for gv in all.iter().filter(|gv| gv.group.is_empty() == core) {
        let mut resources: Vec<Value> = gv.served.iter().map(|served| aggregated_resource(served)).collect();
        resources.extend(aggregated_from_names(gv));
        let version = json!({"version": gv.version, "freshness": "Current", "resources": resources});
        match items.iter_mut().find(|(group, _)| *group == gv.group) {
            Some((_, versions)) => versions.push(version),
            None => items.push((gv.group.clone(), vec![version])),
        }
    }
    let items: Vec<Value> = items
        .into_iter()
        .map(|(group, versions)| {
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{discovery}"), "metadata": {}, "items": items});
    let mut response = document(&list);
    let content = format!("application/json;g=apidiscovery.k8s.io;v={discovery};as=APIGroupDiscoveryList");
    if let Ok(value) = content.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

fn scope(namespaced: bool) -> &'static str {
    if namespaced { "Namespaced" } else { "Cluster" }
}

fn aggregated_resource(served: &Served) -> Value {
    let info = &served.info;
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = info
        .subresources
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": kind(&sub.group, &sub.version, &sub.kind), "verbs": sub.verbs}))
        .collect();
    let mut resource = json!({"resource": info.plural, "responseKind": kind(&info.group, &info.version, &info.kind),
        "scope": scope(info.namespaced), "singularResource": info.singular, "verbs": info.verbs});
    for (field, list) in [("shortNames", &info.short_names), ("categories", &info.categories)] {
        if !list.is_empty() {
            resource[field] = json!(list);
        }
    }
    if !subresources.is_empty() {
        resource["subresources"] = json!(subresources);
    }
    resource
}

/// `RESOURCE/SUBRESOURCE` names become one resource with its subresources.
fn aggregated_from_names(gv: &GroupVersion) -> Vec<Value> {
    let mut resources: Vec<Value> = Vec::new();
    for entry in &gv.aggregated {
        let kind = json!({"group": gv.group, "version": gv.version, "kind": entry.kind});
        let (name, sub) = entry
            .name
            .split_once('/')
            .map_or((entry.name.as_str(), None), |(name, sub)| (name, Some(sub)));
        let at = resources.iter().position(|resource| resource["resource"] == name).unwrap_or_else(|| {
            resources.push(json!({"resource": name, "responseKind": kind, "scope": scope(entry.namespaced), "singularResource": "", "verbs": []}));
            resources.len() - 1
        });
        match sub {
            None => resources[at]["verbs"] = json!(entry.verbs),
            Some(sub) => {
                let sub = json!({"subresource": sub, "responseKind": kind, "verbs": entry.verbs});
                match resources[at]["subresources"].as_array_mut() {
                    Some(list) => list.push(sub),
                    None => resources[at]["subresources"] = json!([sub]),
                }
            }
        }
    }
    resources
}
