use proptest::prelude::*;
use prost::encoding::{encode_key, encode_varint};
use serde_json::json;

use super::*;

fn bytes(number: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut out);
    encode_varint(value.len() as u64, &mut out);
    out.extend(value);
    out
}

fn varint(number: u32, value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(number, WireType::Varint, &mut out);
    encode_varint(value.cast_unsigned(), &mut out);
    out
}

fn entry(number: u32, key: &str, value: &[u8]) -> Vec<u8> {
    bytes(number, &[bytes(1, key.as_bytes()), bytes(2, value)].concat())
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw)].concat()
}

#[test]
fn a_secret_is_read() {
    let time = varint(1, 1_767_225_600);
    let meta = [
        bytes(1, b"s"),
        bytes(2, b""),
        varint(7, 0),
        bytes(8, &time),
        entry(11, "a", b"b"),
    ]
    .concat();
    let raw = [
        bytes(1, &meta),
        entry(2, "k", &[0, 255]),
        bytes(3, b"Opaque"),
        varint(5, 0),
    ]
    .concat();
    assert_eq!(
        decode(&envelope("v1", "Secret", &raw)).unwrap(),
        json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"k": "AP8="}, "immutable": false,
            "metadata": {"name": "s", "labels": {"a": "b"}, "creationTimestamp": "2026-01-01T00:00:00Z"}})
    );
}

#[test]
fn inlined_messages_quantities_and_numbers_or_strings_are_read() {
    let port = [
        bytes(1, b"p"),
        varint(3, 80),
        bytes(4, &[varint(1, 1), bytes(3, b"http")].concat()),
    ]
    .concat();
    let service = bytes(2, &bytes(1, &port));
    let service = decode(&envelope("v1", "Service", &service)).unwrap();
    assert_eq!(
        service["spec"]["ports"],
        json!([{"name": "p", "port": 80, "targetPort": "http"}])
    );
    let volume = [bytes(1, b"v"), bytes(2, &bytes(2, &bytes(2, &bytes(1, b"1Gi"))))].concat();
    let pod = decode(&envelope("v1", "Pod", &bytes(2, &bytes(1, &volume)))).unwrap();
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}])
    );
    let budget = bytes(2, &bytes(1, &[varint(1, 0), varint(2, 1)].concat()));
    let budget = decode(&envelope("policy/v1", "PodDisruptionBudget", &budget)).unwrap();
    assert_eq!(budget["spec"]["minAvailable"], 1);
}

#[test]
fn reviews_and_options_are_read() {
    let attributes = [bytes(1, b"default"), bytes(2, b"create"), bytes(5, b"pods")].concat();
    let review = bytes(2, &bytes(1, &attributes));
    let review = decode(&envelope("authorization.k8s.io/v1", "SelfSubjectAccessReview", &review)).unwrap();
    let attributes = json!({"namespace": "default", "verb": "create", "resource": "pods"});
    assert_eq!(review["spec"], json!({"resourceAttributes": attributes}));
    let extra = entry(5, "k", &[bytes(1, b"a"), bytes(1, b"b")].concat());
    let review = decode(&envelope(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        &bytes(2, &extra),
    ))
    .unwrap();
    assert_eq!(review["spec"]["extra"], json!({"k": ["a", "b"]}));
    let options = decode(&envelope("policy/v1", "DeleteOptions", &varint(1, 0))).unwrap();
    assert_eq!(options["gracePeriodSeconds"], 0);
}

#[test]
fn what_cannot_be_read_is_named() {
    assert_eq!(decode(b"{}"), Err(ProtobufError::NoEnvelope));
    let error = decode(&envelope("apps/v1", "Deployment", &[])).unwrap_err();
    assert!(
        error.to_string().starts_with("Deployment of apps/v1 is not known"),
        "{error}"
    );
    let error = decode(&envelope("v1", "Secret", &varint(1, 3))).unwrap_err();
    assert_eq!(error.to_string(), "field 1 of core.Secret is malformed");
}

#[test]
fn every_message_of_the_table_is_there() {
    let scalars = [
        "string",
        "bool",
        "int",
        "bytes",
        "quantity",
        "raw",
        "intOrString",
        "time",
        "microTime",
    ];
    for line in MESSAGES.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(' ').next().unwrap();
        for field in fields_of(name).unwrap() {
            let ty = field.ty.trim_start_matches(['[', ']', '{', '}', '@']);
            assert!(scalars.contains(&ty) || fields_of(ty).is_some(), "{ty} of {name}");
        }
    }
}

proptest! {
    #[test]
    fn reading_never_panics(raw in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(&envelope("v1", "Pod", &raw));
        let _ = decode(&raw);
    }
}
