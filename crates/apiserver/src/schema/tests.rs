use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn schema() -> Schema {
    Schema::from_json(&json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "minLength": 2, "maxLength": 5, "pattern": "^[a-z]+$"},
                    "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                    "count": {"type": "integer", "minimum": 1, "maximum": 9, "format": "int32"},
                    "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "time": {"type": "string", "format": "date-time"},
                    "flag": {"type": "boolean", "nullable": true},
                    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 2},
                    "list": {
                        "type": "array", "maxItems": 3, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                        "items": {"type": "object", "required": ["id"], "properties": {
                            "id": {"type": "string"}, "size": {"type": "integer", "default": 1},
                        }},
                    },
                    "either": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "string"}},
                        "oneOf": [{"required": ["x"]}, {"required": ["y"]}]},
                },
            },
        },
    }))
    .unwrap()
}

fn texts(spec: Value) -> Vec<String> {
    let object = json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "x"}, "spec": spec});
    schema()
        .validate(&object, None)
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn causes_are_in_kubernetes_words() {
    let long = r#"spec.name: Too long: may not be more than 5 bytes"#;
    let cases: &[(Value, &[&str])] = &[
        (json!({"name": "ok"}), &[]),
        (json!({}), &["spec.name: Required value"]),
        (
            json!({"name": 3}),
            &[r#"spec.name: Invalid value: "integer": spec.name in body must be of type string: "integer""#],
        ),
        (
            json!({"name": null}),
            &[r#"spec.name: Invalid value: "null": spec.name in body must be of type string: "null""#],
        ),
        (
            json!({"name": "a"}),
            &[r#"spec.name: Invalid value: "a": spec.name in body should be at least 2 chars long"#],
        ),
        (json!({"name": "abcdef"}), &[long]),
        (
            json!({"name": "AB"}),
            &[r#"spec.name: Invalid value: "AB": spec.name in body should match '^[a-z]+$'"#],
        ),
        (
            json!({"name": "ok", "mode": "c"}),
            &[r#"spec.mode: Unsupported value: "c": supported values: "a", "b""#],
        ),
        (
            json!({"name": "ok", "count": 0}),
            &["spec.count: Invalid value: 0: spec.count in body should be greater than or equal to 1"],
        ),
        (
            json!({"name": "ok", "port": true}),
            &[r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#],
        ),
        (json!({"name": "ok", "port": 3, "flag": null}), &[]),
        (
            json!({"name": "ok", "time": "soon"}),
            &[r#"spec.time: Invalid value: "soon": spec.time in body must be of type date-time: "soon""#],
        ),
        (
            json!({"name": "ok", "labels": {"a": 1}}),
            &[r#"spec.labels.a: Invalid value: "integer": spec.labels.a in body must be of type string: "integer""#],
        ),
        (
            json!({"name": "ok", "labels": {"a": "", "b": "", "c": ""}}),
            &["spec.labels: Too many: 3: must have at most 2 items"],
        ),
        (
            json!({"name": "ok", "list": [{"id": "a"}, {"id": "a"}, {}]}),
            &[
                r#"spec.list[1]: Duplicate value: {"id":"a"}"#,
                "spec.list[2].id: Required value",
            ],
        ),
        (
            json!({"name": "ok", "either": {"x": "", "y": ""}}),
            &[
                r#"spec.either: Invalid value: "": "spec.either" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
            ],
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(texts(spec.clone()), *expected, "{spec}");
    }
}

#[test]
fn stored_mistakes_do_not_block_other_changes() {
    let old = json!({"spec": {"name": "ok", "mode": "gone", "count": 3}});
    let new = json!({"spec": {"name": "ok", "mode": "gone", "count": 0}});
    let fields: Vec<String> = schema()
        .validate(&new, Some(&old))
        .into_iter()
        .map(|c| c.field)
        .collect();
    assert_eq!(fields, ["spec.count"]);
}

#[test]
fn pruning_names_what_it_removes() {
    let mut object = json!({
        "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "x", "foo": 1, "labels": {"a": "b"}}, "extra": 1,
        "spec": {"name": "n", "bogus": {}, "any": {"kept": {"deep": 1}}, "labels": {"k": "v"},
            "list": [{"id": "a", "foo": 1}]},
    });
    assert_eq!(
        schema().prune(&mut object),
        ["extra", "metadata.foo", "spec.bogus", "spec.list[0].foo"]
    );
    assert_eq!(object["spec"]["any"], json!({"kept": {"deep": 1}}));
    assert_eq!(object["metadata"], json!({"name": "x", "labels": {"a": "b"}}));
}

#[test]
fn defaults_fill_what_is_missing() {
    let mut object = json!({"spec": {"name": "n", "mode": null, "list": [{"id": "a"}, {"id": "b", "size": 4}]}});
    schema().default(&mut object);
    assert_eq!(object["spec"]["mode"], "a");
    assert_eq!(
        object["spec"]["list"],
        json!([{"id": "a", "size": 1}, {"id": "b", "size": 4}])
    );
}

#[test]
fn schemas_that_are_not_structural_are_refused() {
    let cases = [
        (json!({"type": "string"}), "openAPIV3Schema.type"),
        (
            json!({"type": "object", "properties": {"spec": {}}}),
            "openAPIV3Schema.properties[spec].type",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array"}}}),
            "openAPIV3Schema.properties[a].items",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "text"}}}),
            "openAPIV3Schema.properties[a].type",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
            "openAPIV3Schema.properties[a].pattern",
        ),
    ];
    for (schema, field) in cases {
        let error = Schema::from_json(&schema).unwrap_err();
        assert_eq!(error.causes[0].field, field);
    }
}

#[test]
fn equal_subtrees_are_stored_once() {
    let part = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}});
    let properties: serde_json::Map<String, Value> = (0..50).map(|i| (format!("p{i}"), part.clone())).collect();
    let schema = Schema::from_json(&json!({"type": "object", "properties": properties})).unwrap();
    assert!(schema.arena.nodes.len() < 40, "{}", schema.arena.nodes.len());
}

#[test]
fn lookup_finds_list_types() {
    let schema = schema();
    let keys = ListType::Map(["id".into()].into());
    assert_eq!(schema.lookup(&["spec", "list"]).list_type(), Some(&keys));
    assert!(schema.lookup(&["spec", "list", "0", "size"]).is_known());
    assert!(!schema.lookup(&["spec", "none"]).is_known());
}

fn any_object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..12i64).prop_map(Value::from),
        "[a-z]{0,6}".prop_map(Value::from)
    ];
    let names = prop::sample::select(vec![
        "name", "mode", "count", "labels", "list", "id", "size", "any", "spec", "metadata", "x", "foo",
    ]);
    let node = leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(ToOwned::to_owned), inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    });
    node.prop_map(|spec| json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "x"}, "spec": spec}))
}

proptest! {
    #[test]
    fn pruning_twice_is_pruning_once(mut object in any_object()) {
        let schema = schema();
        schema.prune(&mut object);
        let once = object.clone();
        prop_assert!(schema.prune(&mut object).is_empty());
        prop_assert_eq!(object, once);
    }

    #[test]
    fn defaulting_twice_is_defaulting_once(mut object in any_object()) {
        let schema = schema();
        schema.default(&mut object);
        let once = object.clone();
        schema.default(&mut object);
        prop_assert_eq!(object, once);
    }

    #[test]
    fn validating_never_panics_and_unchanged_objects_pass(object in any_object()) {
        let _ = schema().validate(&object, None);
        prop_assert!(schema().validate(&object, Some(&object)).is_empty());
    }
}
