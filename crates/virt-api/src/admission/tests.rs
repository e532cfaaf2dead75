use super::*;
use serde_json::json;

const CONTROLLER: &str = "system:serviceaccount:kubevirt:kubevirt-controller";

fn request<'a>(operation: Operation, resource: &'a str, old: Option<&'a Value>, username: &'a str) -> Request<'a> {
    Request {
        operation,
        group: GROUP,
        version: "v1",
        resource,
        subresource: None,
        namespace: Some("default"),
        name: "x",
        old,
        user: User { username, groups: &[] },
        dry_run: false,
    }
}

fn object(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": kind,
        "metadata": {"name": "x", "namespace": "default"},
        "spec": spec,
    })
}

fn vmi_spec() -> Value {
    json!({"domain": {"devices": {}, "memory": {"guest": "64Mi"}}})
}

fn vm(run: Value) -> Value {
    let mut spec = json!({"template": {"spec": vmi_spec()}});
    spec.as_object_mut().unwrap().extend(run.as_object().unwrap().clone());
    object("VirtualMachine", spec)
}

/// What the rules say about a write, as `fields of causes`.
fn verdict(request: &Request<'_>, object: &Value) -> Result<Vec<String>, Refusal> {
    let kind = Kind::of(request).unwrap();
    let denial = Denial::new(kind, request, object);
    let causes = judge(
        kind,
        request,
        object,
        &denial,
        &ClusterConfig::standalone(),
        request.user.is_ours(NAMESPACE),
    )?;
    Ok(causes.into_iter().map(|cause| cause.field).collect())
}

#[test]
fn creates() {
    let preset = |operator: &str| {
        let expression = json!({"key": "a", "operator": operator});
        object(
            "VirtualMachineInstancePreset",
            json!({"selector": {"matchExpressions": [expression]}, "domain": {"devices": {}}}),
        )
    };
    let set = |label: &str| {
        let template = json!({"metadata": {"labels": {"app": label}}, "spec": vmi_spec()});
        object(
            "VirtualMachineInstanceReplicaSet",
            json!({"selector": {"matchLabels": {"app": "a"}}, "template": template}),
        )
    };
    let mut reserved = object("VirtualMachineInstance", vmi_spec());
    reserved["metadata"]["labels"] = json!({"kubevirt.io/nodeName": "n"});
    let rows: [(&str, Value, &str, &[&str]); 9] = [
        ("virtualmachines", vm(json!({"runStrategy": "Always"})), "jane", &[]),
        ("virtualmachines", vm(json!({})), "jane", &["spec.runStrategy"]),
        (
            "virtualmachineinstances",
            object("VirtualMachineInstance", vmi_spec()),
            "jane",
            &[],
        ),
        ("virtualmachineinstances", reserved.clone(), CONTROLLER, &[]),
        ("virtualmachineinstancepresets", preset("Exists"), "jane", &[]),
        ("virtualmachineinstancereplicasets", set("a"), "jane", &["kind"]),
        (
            "virtualmachineinstancereplicasets",
            set("b"),
            "jane",
            &["spec.selector", "kind"],
        ),
        (
            "virtualmachineinstancemigrations",
            object("VirtualMachineInstanceMigration", json!({"vmiName": "x"})),
            "jane",
            &["kind"],
        ),
        (
            "virtualmachineinstancepresets",
            preset("Near"),
            "jane",
            &["spec.selector.matchExpressions[0].operator"],
        ),
    ];
    for (resource, object, user, expected) in rows {
        let request = request(Operation::Create, resource, None, user);
        assert_eq!(verdict(&request, &object).unwrap(), expected, "{object}");
    }
    let by_user = request(Operation::Create, "virtualmachineinstances", None, "jane");
    assert_eq!(verdict(&by_user, &reserved).unwrap().len(), 1);
}

#[test]
fn updates_of_instances_are_restricted() {
    let old = object("VirtualMachineInstance", vmi_spec());
    let mut new = old.clone();
    new["spec"]["domain"]["memory"]["guest"] = json!("128Mi");
    for (user, expected) in [("jane", 1), (CONTROLLER, 0)] {
        let request = request(Operation::Update, "virtualmachineinstances", Some(&old), user);
        assert_eq!(verdict(&request, &new).unwrap().len(), expected, "{user}");
        assert_eq!(verdict(&request, &old).unwrap().len(), 0, "{user}");
    }
}

#[test]
fn answers_read_like_a_webhooks() {
    let bad = vm(json!({"running": true, "runStrategy": "Always"}));
    let request = request(Operation::Create, "virtualmachines", None, "jane");
    let denial = Denial::new(Kind::Machine, &request, &bad);
    let causes = judge(
        Kind::Machine,
        &request,
        &bad,
        &denial,
        &ClusterConfig::standalone(),
        false,
    )
    .unwrap();
    let refusal = denial.unless_empty(causes).unwrap_err();
    assert!(
        refusal
            .message
            .as_deref()
            .unwrap_or_default()
            .starts_with("spec.running: ")
    );
    let refusal = as_passed_on(&request, refusal);
    assert_eq!((refusal.code, refusal.reason.as_deref()), (Some(422), Some("Invalid")));
    let message = refusal.message.unwrap();
    let start = "admission webhook \"virtualmachine-validator.kubevirt.io\" denied the request: spec.running: ";
    assert!(message.starts_with(start), "{message}");
    let details = refusal.details.unwrap();
    assert_eq!(
        (details.kind.as_deref(), details.name.as_deref()),
        (Some("VirtualMachine"), Some("x"))
    );
    assert_eq!(details.causes.unwrap()[0].field.as_deref(), Some("spec.running"));
}

#[test]
fn many_causes_are_counted() {
    let request = request(Operation::Create, "virtualmachines", None, "jane");
    let denial = Denial::new(Kind::Machine, &request, &Value::Null);
    let causes = (0..12).map(|index| later(&format!("f{index}"), "x")).collect();
    let refusal = denial.unless_empty(causes).unwrap_err();
    assert!(
        refusal
            .message
            .unwrap()
            .ends_with("f9: not supported yet: x (and 2 more)")
    );
    assert_eq!(refusal.details.unwrap().causes.unwrap().len(), 12);
}

/// Webhooks that complete are asked before the schema, which then names all that is wrong; those that judge, after it.
#[test]
fn objects_of_another_shape_are_the_schemas_to_refuse() {
    let request = request(Operation::Create, "virtualmachines", None, "jane");
    let disk = |disk| json!({"template": {"spec": {"domain": {"devices": {"disks": [disk]}}}}});
    let (required, invalid) = ("FieldValueRequired", "FieldValueInvalid");
    for (spec, field, reason) in [
        (json!({"template": 5}), "spec.template", invalid),
        (json!({"running": true}), "spec.template", required),
        (
            disk(json!({"name": 5})),
            "spec.template.spec.domain.devices.disks[0].name",
            invalid,
        ),
        (
            disk(json!({})),
            "spec.template.spec.domain.devices.disks[0].name",
            required,
        ),
    ] {
        let mut object = object("VirtualMachine", spec);
        let refusal = verdict(&request, &object).unwrap_err();
        assert_eq!((refusal.code, refusal.reason.as_deref()), (Some(422), Some("Invalid")));
        let causes = refusal.details.unwrap().causes.unwrap();
        let cause = &causes[0];
        assert_eq!(
            (causes.len(), cause.field.as_deref(), cause.reason.as_deref()),
            (1, Some(field), Some(reason))
        );
        let before = object.clone();
        let denial = Denial::new(Kind::Machine, &request, &object);
        let edited = object::edit(&mut object, &denial, |vm: &mut VirtualMachine| {
            default_vm(vm, &ClusterConfig::standalone(), Uuid::nil(), Uuid::nil());
            Ok(Vec::new())
        });
        assert_eq!((edited.unwrap().len(), &object), (0, &before));
        let carried = carry_over(&mut object, &vm(json!({})), &denial, &ClusterConfig::standalone());
        assert_eq!((carried.unwrap().len(), &object), (0, &before));
    }
}

#[tokio::test]
async fn replaced_machines_keep_their_hardware() {
    let (_config, config) = watch::channel(Arc::new(ClusterConfig::standalone()));
    // Nobody is asked.
    let client = kube::Client::new(axum::Router::<()>::new(), "default");
    let admission = Admission::new(client, config);
    let manifest = vm(json!({"runStrategy": "Halted"}));
    let mut stored = manifest.clone();
    let create = request(Operation::Create, "virtualmachines", None, "jane");
    admission.mutate(create, &mut stored).await.unwrap();
    assert_ne!(stored, manifest);
    let update = request(Operation::Update, "virtualmachines", Some(&stored), "jane");
    let mut replaced = manifest.clone();
    admission.mutate(update, &mut replaced).await.unwrap();
    assert_eq!(replaced["spec"], stored["spec"]);
    // What is complete, stays as it was written.
    let mut odd = stored.clone();
    odd["spec"]["template"]["spec"]["volumes"] = json!([]);
    let written = odd.clone();
    admission.mutate(update, &mut odd).await.unwrap();
    assert_eq!(odd, written);
    // Nobody else's updates are completed.
    let old = object("VirtualMachineInstance", vmi_spec());
    let mut vmi = old.clone();
    let update = request(Operation::Update, "virtualmachineinstances", Some(&old), "jane");
    admission.mutate(update, &mut vmi).await.unwrap();
    assert_eq!(vmi, old);
}

#[test]
fn presets_are_judged_by_what_they_change() {
    let preset = |spec: Value| object("VirtualMachineInstancePreset", spec);
    let (bad, good) = (
        preset(json!({"selector": {}})),
        preset(json!({"selector": {}, "domain": {"devices": {}}})),
    );
    for (old, new, fields) in [
        (None, &bad, &["spec.domain"] as &[&str]),
        (None, &good, &[]),
        (Some(&good), &bad, &["spec.domain"]),
        (Some(&bad), &bad, &[]),
        (Some(&bad), &good, &[]),
    ] {
        let operation = old.map_or(Operation::Create, |_| Operation::Update);
        let request = request(operation, "virtualmachineinstancepresets", old, "jane");
        assert_eq!(verdict(&request, new).unwrap(), fields, "{old:?} {new}");
    }
}

#[test]
fn what_has_no_rules_passes() {
    let base = request(Operation::Create, "virtualmachines", None, "jane");
    for request in [
        Request { group: "apps", ..base },
        Request {
            subresource: Some("status"),
            ..base
        },
        Request {
            operation: Operation::Delete,
            ..base
        },
        Request {
            resource: "others",
            ..base
        },
    ] {
        assert_eq!(Kind::of(&request), None, "{request:?}");
    }
}

#[test]
fn the_old_way_to_say_always_is_warned_about() {
    assert_eq!(warnings(Kind::Machine, &vm(json!({"running": false}))).len(), 1);
    assert_eq!(warnings(Kind::Machine, &vm(json!({"runStrategy": "Always"}))).len(), 0);
}

#[test]
fn completing_keeps_what_belongs_to_the_server() {
    let mut object = object("VirtualMachineInstance", vmi_spec());
    object["metadata"]["managedFields"] = json!([{"manager": "kubectl", "operation": "Apply"}]);
    let request = request(Operation::Create, "virtualmachineinstances", None, "jane");
    let denial = Denial::new(Kind::Instance, &request, &object);
    let managed = object["metadata"]["managedFields"].clone();
    let edited = object::edit(&mut object, &denial, |vmi: &mut VirtualMachineInstance| {
        default_vmi(vmi, &ClusterConfig::standalone(), Uuid::nil());
        Ok(vec!["careful".to_owned()])
    });
    assert_eq!(edited.unwrap(), ["careful"]);
    assert_eq!(object["metadata"]["managedFields"], managed);
    assert_eq!(object["metadata"]["name"], "x");
    assert_eq!(object["spec"]["domain"]["firmware"]["uuid"], Uuid::nil().to_string());
    assert!(object["status"].is_null(), "it is the controller's: {object}");
    assert!(object["metadata"]["finalizers"].is_array());
}

#[test]
fn only_our_own_accounts_are_ours() {
    let user = |username| User { username, groups: &[] };
    for (username, namespace, ours) in [
        (CONTROLLER, "kubevirt", true),
        (CONTROLLER, "other", false),
        ("system:serviceaccount:other:kubevirt-controller", "other", true),
        ("system:serviceaccount:kubevirt:default", "kubevirt", false),
        ("kubevirt-controller", "kubevirt", false),
    ] {
        assert_eq!(user(username).is_ours(namespace), ours, "{username} in {namespace}");
    }
}

#[test]
fn migrations_are_found_by_their_vmi() {
    let mut object = object("VirtualMachineInstanceMigration", json!({"vmiName": "a"}));
    let request = request(Operation::Create, "virtualmachineinstancemigrations", None, "jane");
    let denial = Denial::new(Kind::Migration, &request, &object);
    for _ in 0..2 {
        object::edit(
            &mut object,
            &denial,
            |migration: &mut VirtualMachineInstanceMigration| {
                prepare(migration);
                Ok(Vec::new())
            },
        )
        .unwrap();
    }
    assert_eq!(object["metadata"]["labels"]["kubevirt.io/vmi-name"], "a");
    assert_eq!(
        object["metadata"]["finalizers"],
        json!(["kubevirt.io/migrationJobFinalize"])
    );
}

#[test]
fn a_configuration_is_judged_by_what_it_brings() {
    let kubevirt = |configuration: Value| object("KubeVirt", json!({"configuration": configuration}));
    let bad = kubevirt(json!({"evictionStrategy": "Sometimes"}));
    let fields = ["spec.configuration.evictionStrategy"];
    let create = request(Operation::Create, "kubevirts", None, "jane");
    assert_eq!(verdict(&create, &bad).unwrap(), fields);
    let good = kubevirt(json!({"evictionStrategy": "None"}));
    assert_eq!(verdict(&create, &good).unwrap(), [""; 0]);
    let update = request(Operation::Update, "kubevirts", Some(&good), "jane");
    assert_eq!(verdict(&update, &bad).unwrap(), fields);
    let update = request(Operation::Update, "kubevirts", Some(&bad), "jane");
    assert_eq!(verdict(&update, &bad).unwrap(), [""; 0]);
    let ignored = kubevirt(json!({"tlsConfiguration": {"minTLSVersion": "VersionTLS13"}}));
    assert_eq!(verdict(&create, &ignored).unwrap(), [""; 0]);
    assert_eq!(
        warnings(Kind::KubeVirt, &ignored),
        ["spec.configuration.tlsConfiguration changes nothing yet"]
    );
}
