use proptest::prelude::*;
use serde_json::{Value, json};

use super::field_set::FieldSet;
use super::*;
use crate::builtin::builtin_resources;

const T0: &str = "2026-01-01T00:00:00Z";
const T1: &str = "2026-01-02T00:00:00Z";

fn schema() -> Schema {
    Schema::from_json(&json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "replicas": {"type": "integer"},
                    "name": {"type": "string"},
                    "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                    "atomic": {"type": "array", "items": {"type": "string"}},
                    "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
                    "map": {"type": "object", "additionalProperties": {"type": "string"}},
                    "items": {
                        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "protocol"],
                        "items": {"type": "object", "properties": {
                            "name": {"type": "string"}, "protocol": {"type": "string", "default": "TCP"},
                            "image": {"type": "string"}, "size": {"type": "integer"},
                        }},
                    },
                },
            },
        },
    }))
    .unwrap()
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "a.b/v1", "kind": "Kind", "metadata": {"name": "x"}, "spec": spec})
}

fn apply(live: Option<&Value>, spec: Value, manager: &str) -> Result<Value, ApplyError> {
    server_side_apply(live, &object(spec), manager, false, None, &schema(), T0)
}

fn force(live: &Value, spec: Value, manager: &str) -> Value {
    server_side_apply(Some(live), &object(spec), manager, true, None, &schema(), T1).unwrap()
}

fn fields(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    entries
        .into_iter()
        .find(|e| e["manager"] == manager)
        .map_or(Value::Null, |e| e["fieldsV1"].clone())
}

#[test]
fn create_by_apply_owns_what_it_says() {
    let made = apply(
        None,
        json!({"replicas": 1, "set": ["a"], "items": [{"name": "x", "image": "i"}]}),
        "one",
    )
    .unwrap();
    assert_eq!(
        fields(&made, "one"),
        json!({"f:spec": {
            "f:replicas": {},
            "f:set": {"v:\"a\"": {}},
            "f:items": {"k:{\"name\":\"x\",\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:image": {}}},
        }})
    );
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(entry["apiVersion"], "a.b/v1");
    assert_eq!(entry["time"], T0);
}

#[test]
fn applying_again_changes_nothing() {
    let made = apply(None, json!({"replicas": 1, "map": {"k": "v"}}), "one").unwrap();
    let again = server_side_apply(
        Some(&made),
        &object(json!({"replicas": 1, "map": {"k": "v"}})),
        "one",
        false,
        None,
        &schema(),
        T1,
    );
    assert_eq!(again.unwrap(), made);
}

#[test]
fn what_is_no_longer_applied_goes_unless_shared() {
    let one = apply(
        None,
        json!({"replicas": 1, "name": "n", "set": ["a", "b"], "map": {"k": "v", "l": "w"}}),
        "one",
    )
    .unwrap();
    let two = apply(Some(&one), json!({"name": "n", "set": ["b"]}), "two").unwrap();
    let three = apply(Some(&two), json!({"map": {"k": "v"}}), "one").unwrap();
    assert_eq!(three["spec"], json!({"name": "n", "set": ["b"], "map": {"k": "v"}}));
    assert_eq!(fields(&three, "one"), json!({"f:spec": {"f:map": {"f:k": {}}}}));
    assert_eq!(
        fields(&three, "two"),
        json!({"f:spec": {"f:name": {}, "f:set": {"v:\"b\"": {}}}})
    );
}

#[test]
fn list_items_belong_to_who_applies_them() {
    let one = apply(
        None,
        json!({"items": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
        "one",
    )
    .unwrap();
    let two = apply(
        Some(&one),
        json!({"items": [{"name": "b", "size": 2}, {"name": "c", "size": 3}]}),
        "two",
    )
    .unwrap();
    assert_eq!(
        two["spec"]["items"],
        json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1", "size": 2}, {"name": "c", "size": 3}])
    );
    let gone = apply(Some(&two), json!({"items": []}), "one").unwrap();
    assert_eq!(
        gone["spec"]["items"],
        json!([{"name": "b", "size": 2}, {"name": "c", "size": 3}])
    );
}

#[test]
fn conflicts_name_manager_and_field() {
    let one = apply(None, json!({"replicas": 1, "name": "n"}), "one").unwrap();
    let error = apply(Some(&one), json!({"replicas": 2}), "two").unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"Apply failed with 1 conflict: conflict with "one": .spec.replicas"#
    );
    let error = apply(Some(&one), json!({"replicas": 2, "name": "m"}), "two").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.name\n- .spec.replicas"
    );
    let forced = force(&one, json!({"replicas": 2}), "two");
    assert_eq!(forced["spec"], json!({"replicas": 2, "name": "n"}));
    assert_eq!(fields(&forced, "one"), json!({"f:spec": {"f:name": {}}}));
}

#[test]
fn equal_values_are_shared_without_conflict() {
    let one = apply(None, json!({"replicas": 1}), "one").unwrap();
    let two = apply(Some(&one), json!({"replicas": 1}), "two").unwrap();
    assert_eq!(fields(&two, "one"), fields(&two, "two"));
    let three = apply(Some(&two), json!({}), "one").unwrap();
    assert_eq!(three["spec"], json!({"replicas": 1}));
}

#[test]
fn conflicts_with_updates_name_version_and_time() {
    let mut made = object(json!({"replicas": 1, "atomic": ["a"], "whole": {"k": "v"}}));
    track_update(None, &mut made, "kubectl-edit", None, &schema(), T0);
    let error = apply(Some(&made), json!({"atomic": ["b"], "whole": {"k": "w"}}), "one").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-edit\" using a.b/v1 at 2026-01-01T00:00:00Z:\n\
         - .spec.atomic\n- .spec.whole"
    );
}

#[test]
fn untracked_objects_belong_to_before_first_apply() {
    let live = object(json!({"replicas": 1}));
    let error = apply(Some(&live), json!({"replicas": 2}), "one").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("\"before-first-apply\" using a.b/v1: .spec.replicas"),
        "{error}"
    );
}

#[test]
fn bookkeeping_is_never_owned_or_changed() {
    let mut live = object(json!({"replicas": 1}));
    for (name, value) in [("uid", "u"), ("resourceVersion", "7"), ("creationTimestamp", T0)] {
        live["metadata"][name] = value.into();
    }
    let mut applied = object(json!({"replicas": 1}));
    applied["metadata"]["creationTimestamp"] = Value::Null;
    applied["metadata"]["uid"] = "other".into();
    let done = server_side_apply(Some(&live), &applied, "one", true, None, &schema(), T1).unwrap();
    assert_eq!(done["metadata"]["uid"], "u");
    assert_eq!(done["metadata"]["creationTimestamp"], T0);
    assert_eq!(fields(&done, "one"), json!({"f:spec": {"f:replicas": {}}}));
    let entries = json!({"metadata": {"managedFields": [{"manager": "x"}]}});
    assert!(server_side_apply(None, &entries, "one", false, None, &schema(), T1).is_err());
}

#[test]
fn updates_own_what_they_change() {
    let mut made = object(json!({"replicas": 1, "map": {"k": "v"}}));
    made["metadata"]["labels"] = json!({"app": "x"});
    track_update(None, &mut made, "one", None, &schema(), T0);
    assert_eq!(
        fields(&made, "one"),
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {".": {}, "f:replicas": {}, "f:map": {".": {}, "f:k": {}}},
        })
    );
    let mut changed = made.clone();
    changed["spec"]["replicas"] = 2.into();
    changed["spec"]["map"] = json!({"l": "w"});
    track_update(Some(&made), &mut changed, "two", None, &schema(), T1);
    assert_eq!(
        fields(&changed, "two"),
        json!({"f:spec": {"f:replicas": {}, "f:map": {"f:l": {}}}})
    );
    assert_eq!(
        fields(&changed, "one"),
        json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {".": {}, "f:map": {}}})
    );
    let mut same = changed.clone();
    same["metadata"].as_object_mut().unwrap().remove("managedFields");
    track_update(Some(&changed), &mut same, "three", None, &schema(), T1);
    assert_eq!(same, changed);
    let mut reset = changed.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(Some(&changed), &mut reset, "three", None, &schema(), T1);
    assert_eq!(reset["metadata"].get("managedFields"), None);
}

#[test]
fn subresources_are_managers_of_their_own() {
    let mut made = object(json!({"replicas": 1}));
    track_update(None, &mut made, "one", None, &schema(), T0);
    let mut status = made.clone();
    status["status"] = json!({"phase": "Running"});
    track_update(Some(&made), &mut status, "one", Some("status"), &Schema::any(), T1);
    let entries = status["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["subresource"], "status");
}

#[test]
fn many_updaters_are_folded() {
    let mut live = object(json!({"map": {}}));
    track_update(None, &mut live, "m0", None, &schema(), T0);
    for index in 1..20 {
        let mut next = live.clone();
        next["spec"]["map"][format!("k{index}")] = "v".into();
        let now = format!("2026-01-01T00:00:{index:02}Z");
        track_update(Some(&live), &mut next, &format!("m{index}"), None, &schema(), &now);
        live = next;
    }
    let entries = live["metadata"]["managedFields"].as_array().unwrap();
    assert!(entries.len() <= 11, "{} entries", entries.len());
    assert!(entries.iter().any(|e| e["manager"] == "ancient-changes"));
}

fn pod_schema() -> Schema {
    builtin_resources()
        .into_iter()
        .find(|r| r.kind == "Pod")
        .unwrap()
        .schema
}

#[test]
fn strategic_merge_by_table() {
    let volumes = json!([{"name": "a", "emptyDir": {}}, {"name": "b", "secret": {"secretName": "s"}}]);
    let cases = [
        // (spec before, patch of spec, spec after)
        (
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}),
        ),
        (
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b"}]}),
        ),
        (
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
            json!({"containers": [{"name": "c"}]}),
        ),
        (
            json!({"volumes": volumes}),
            json!({"volumes": [{"name": "b", "$retainKeys": ["name", "configMap"], "configMap": {"name": "m"}}]}),
            json!({"volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "m"}}]}),
        ),
        (
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "c"}]}),
            json!({"containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}),
        ),
        (
            json!({"tolerations": [{"key": "a"}]}),
            json!({"tolerations": [{"key": "b"}]}),
            json!({"tolerations": [{"key": "b"}]}),
        ),
        (
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
            json!({"nodeSelector": {"$patch": "replace", "c": "3"}}),
            json!({"nodeSelector": {"c": "3"}}),
        ),
        (
            json!({"nodeName": "n", "hostPID": true}),
            json!({"hostPID": null}),
            json!({"nodeName": "n"}),
        ),
    ];
    let schema = pod_schema();
    for (before, patch, after) in cases {
        let patched = apply_patch(
            PatchKind::Strategic,
            &json!({"spec": before}),
            &json!({"spec": patch}),
            &schema,
        );
        assert_eq!(patched.unwrap()["spec"], after, "{patch}");
    }
}

#[test]
fn strategic_merge_of_scalars_is_a_union() {
    let live = json!({"metadata": {"finalizers": ["a", "b"]}});
    let patch = json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}});
    let patched = apply_patch(PatchKind::Strategic, &live, &patch, &pod_schema()).unwrap();
    assert_eq!(patched["metadata"]["finalizers"], json!(["b", "c"]));
    let refused = apply_patch(PatchKind::Strategic, &live, &patch, &schema()).unwrap_err();
    assert_eq!(refused.code(), 415);
    let unkeyed = json!({"spec": {"containers": [{"image": "x"}]}});
    assert_eq!(
        apply_patch(PatchKind::Strategic, &live, &unkeyed, &pod_schema())
            .unwrap_err()
            .code(),
        400
    );
}

#[test]
fn json_patches_fail_with_their_codes() {
    let live = json!({"spec": {"running": true}, "list": [1]});
    let cases = [
        (json!([{"op": "test", "path": "/spec/running", "value": false}]), 422),
        (json!([{"op": "remove", "path": "/spec/none"}]), 422),
        (json!([{"op": "replace", "path": "/spec/none", "value": 1}]), 422),
        (json!([{"op": "add", "path": "/none/deep", "value": 1}]), 422),
        (json!([{"op": "jump", "path": "/spec"}]), 400),
        (json!({"op": "add"}), 400),
        (
            Value::Array(vec![json!({"op": "test", "path": "/list/0", "value": 1}); 10_001]),
            413,
        ),
    ];
    for (patch, code) in cases {
        assert_eq!(
            apply_patch(PatchKind::Json, &live, &patch, &schema())
                .unwrap_err()
                .code(),
            code
        );
    }
    let patch = json!([{"op": "test", "path": "/list/0", "value": 1}, {"op": "add", "path": "/list/-", "value": 2}]);
    assert_eq!(
        apply_patch(PatchKind::Json, &live, &patch, &schema()).unwrap()["list"],
        json!([1, 2])
    );
}

#[test]
fn field_sets_survive_their_json() {
    let json = json!({
        "f:spec": {".": {}, "f:a.b": {}, "k:{\"name\":\"x\"}": {".": {}, "f:c": {}}, "v:3": {}, "i:2": {}},
        "f:metadata": {"f:labels": {"f:x/y:z": {}}},
    });
    let set = FieldSet::from_json(&json).unwrap();
    assert_eq!(set.to_json(), json);
    assert!(set.paths().contains(&".spec[name=\"x\"].c".to_owned()));
    assert_eq!(FieldSet::from_json(&json!({"q:x": {}})), None);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0..5i64).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn any_map() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", any_json(), 0..4).prop_map(|m| Value::Object(m.into_iter().collect()))
}

prop_compose! {
    fn any_spec()(
        replicas in prop::option::of(0..3i64),
        set in prop::option::of(prop::collection::btree_set("[a-c]", 0..3)),
        map in prop::option::of(prop::collection::btree_map("[a-c]", "[x-z]", 0..3)),
        items in prop::option::of(prop::collection::btree_map("[a-c]", 0..3i64, 0..3)),
        atomic in prop::option::of(prop::collection::vec("[a-c]", 0..3)),
    ) -> Value {
        let mut spec = json!({});
        if let Some(replicas) = replicas { spec["replicas"] = json!(replicas); }
        if let Some(set) = set { spec["set"] = json!(set); }
        if let Some(map) = map { spec["map"] = json!(map); }
        if let Some(atomic) = atomic { spec["atomic"] = json!(atomic); }
        if let Some(items) = items {
            spec["items"] = items.iter().map(|(name, size)| json!({"name": name, "size": size})).collect();
        }
        spec
    }
}

/// Whether everything that `part` says holds in `whole`.
fn holds(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(p), Value::Object(w)) => p.iter().all(|(k, v)| w.get(k).is_some_and(|w| holds(v, w))),
        (Value::Array(p), Value::Array(w)) => p.iter().all(|p| w.iter().any(|w| holds(p, w))),
        (p, w) => p == w,
    }
}

proptest! {
    #[test]
    fn merge_patch_is_idempotent(live in any_map(), patch in any_map()) {
        let once = apply_patch(PatchKind::Merge, &live, &patch, &schema()).unwrap();
        let twice = apply_patch(PatchKind::Merge, &once, &patch, &schema()).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn apply_is_idempotent_and_complete(a in any_spec(), b in any_spec(), c in any_spec()) {
        let one = apply(None, a, "one").unwrap();
        let two = force(&one, b, "two");
        let three = force(&two, c.clone(), "one");
        prop_assert!(holds(&c, &three["spec"]), "{} in {}", c, three["spec"]);
        prop_assert_eq!(force(&three, c, "one"), three);
    }

    #[test]
    fn applying_nothing_undoes_an_apply(a in any_spec(), b in any_spec()) {
        let one = apply(None, a, "one").unwrap();
        let two = force(&one, b, "two");
        let alone = force(&two, json!({}), "two");
        // Nothing that is left belongs to the second manager, but the empty spec that it says.
        prop_assert_eq!(fields(&alone, "two"), json!({"f:spec": {}}));
    }

    #[test]
    fn updates_leave_every_field_one_updater(a in any_spec(), b in any_spec()) {
        let mut one = object(a);
        track_update(None, &mut one, "one", None, &schema(), T0);
        let mut two = object(b);
        track_update(Some(&one), &mut two, "two", None, &schema(), T1);
        let read = |m: &str| FieldSet::from_json(&fields(&two, m)).unwrap_or_default();
        prop_assert!(read("one").intersection(&read("two")).is_empty());
    }

    #[test]
    fn field_sets_round_trip(spec in any_spec()) {
        let made = apply(None, spec, "one").unwrap();
        let json = fields(&made, "one");
        prop_assert_eq!(FieldSet::from_json(&json).unwrap().to_json(), json);
    }
}
