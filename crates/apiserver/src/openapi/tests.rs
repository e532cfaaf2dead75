use std::collections::HashSet;

use prost::bytes::Buf;
use serde_json::{Value, json};

use super::*;
use crate::builtin::builtin_resources;

fn custom() -> ResourceInfo {
    let crd = json!({"spec": {"group": "kubevirt.io", "scope": "Namespaced",
        "names": {"kind": "VirtualMachine", "plural": "virtualmachines"}}});
    let version = json!({"name": "v1", "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {
        "type": "object", "description": "A machine.", "required": ["spec"],
        "properties": {"spec": {"type": "object", "description": "Wanted.", "properties": {
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}},
    }}});
    ResourceInfo::from_crd(&crd, &version).unwrap()
}

/// Every `$ref` of a document.
fn references<'a>(value: &'a Value, found: &mut HashSet<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

fn assert_closed(document: &Value, prefix: &str, definitions: &Value) {
    let mut found = HashSet::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let name = reference.strip_prefix(prefix).unwrap_or_else(|| panic!("{reference}"));
        assert!(definitions.get(name).is_some(), "{name} is missing");
    }
}

#[test]
fn v3_documents_are_closed_and_say_what_kubectl_asks() {
    let all = builtin_resources();
    let core: Vec<&ResourceInfo> = all.iter().filter(|r| r.group.is_empty()).collect();
    let document: Value = serde_json::from_str(&v3_group_version(&core, "v1.36.0")).unwrap();
    assert_closed(&document, "#/components/schemas/", &document["components"]["schemas"]);
    let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(
        pod["x-kubernetes-group-version-kind"],
        json!([{"group": "", "kind": "Pod", "version": "v1"}])
    );
    assert!(pod["properties"]["spec"]["description"].is_string());
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert!(
        patch["requestBody"]["content"]
            .get("application/strategic-merge-patch+json")
            .is_some()
    );
    let containers = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
}

#[test]
fn custom_kinds_are_described() {
    let resource = custom();
    let document: Value = serde_json::from_str(&v3_group_version(&[&resource], "v1.36.0")).unwrap();
    assert_closed(&document, "#/components/schemas/", &document["components"]["schemas"]);
    let kind = &document["components"]["schemas"]["io.kubevirt.v1.VirtualMachine"];
    assert_eq!(kind["description"], "A machine.");
    assert_eq!(kind["properties"]["spec"]["description"], "Wanted.");
    assert!(kind["properties"]["metadata"]["allOf"].is_array());
    let patch = &document["paths"]["/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachines/{name}"]["patch"];
    assert!(
        patch["requestBody"]["content"]
            .get("application/strategic-merge-patch+json")
            .is_none()
    );
    let ids: HashSet<&str> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .filter_map(|operation| operation["operationId"].as_str())
        .collect();
    let operations = document["paths"].as_object().unwrap().values();
    assert_eq!(
        ids.len(),
        operations.map(|i| i.as_object().unwrap().len() - 1).sum::<usize>()
    );
}

#[test]
fn v2_says_the_same_with_less() {
    let mut all = builtin_resources();
    all.push(custom());
    let all: Vec<&ResourceInfo> = all.iter().collect();
    let document: Value = serde_json::from_str(&v2(&all, "v1.36.0")).unwrap();
    assert_closed(&document, "#/definitions/", &document["definitions"]);
    let port = &document["definitions"]["io.kubevirt.v1.VirtualMachine"]["properties"]["spec"]["properties"]["port"];
    assert_eq!(*port, json!({"x-kubernetes-int-or-string": true}));
}

#[test]
fn v2_protobuf_has_the_fields_of_a_document() {
    let resource = custom();
    let bytes = v2_protobuf(&[&resource], "v1.36.0");
    let mut rest = bytes.as_slice();
    let mut tags = Vec::new();
    while rest.has_remaining() {
        let (tag, _) = prost::encoding::decode_key(&mut rest).unwrap();
        let length = prost::encoding::decode_varint(&mut rest).unwrap();
        rest.advance(usize::try_from(length).unwrap());
        tags.push(tag);
    }
    assert_eq!(tags, [1, 2, 8, 9]);
}

#[test]
fn hashes_change_with_what_is_described() {
    let (one, mut two) = (custom(), custom());
    assert_eq!(hash(&[&one]), hash(&[&two]));
    two.source = SchemaSource::Custom("{}".into());
    assert_ne!(hash(&[&one]), hash(&[&two]));
}
