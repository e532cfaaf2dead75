use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::table::{IncludeObject, human_duration, table};

fn resource(kind: &str) -> ResourceInfo {
    builtin_resources()
        .into_iter()
        .find(|r| r.kind == kind && r.group != "events.k8s.io")
        .unwrap()
}

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn row(kind: &str, object: &Value) -> Value {
    let table = table(&resource(kind).columns, [object], json!({}), IncludeObject::None, now());
    table["rows"][0]["cells"].clone()
}

#[test]
fn every_kind_has_a_schema_of_its_own() {
    for resource in builtin_resources() {
        let root = resource.schema.root();
        assert!(root.declares("metadata") && root.declares("kind"), "{}", resource.kind);
        assert!(!resource.schema.is_custom(), "{} has no definition", resource.kind);
    }
}

#[test]
fn pods_get_their_defaults_once() {
    let pods = resource("Pod");
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "a/b", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "readinessProbe": {"httpGet": {"port": 80}}}],
        "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
    }});
    pods.default(&mut pod);
    pods.prepare_create(&mut pod);
    let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
    assert_eq!(spec["restartPolicy"], "Always");
    assert_eq!(spec["terminationGracePeriodSeconds"], 30);
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(container["ports"][0]["protocol"], "TCP");
    assert_eq!(container["resources"]["requests"], json!({"cpu": "1", "memory": "1Gi"}));
    assert_eq!(container["readinessProbe"]["periodSeconds"], 10);
    assert_eq!(
        spec["volumes"],
        json!([
            {"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
        ])
    );
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"}));
    assert_eq!(pods.validate(&pod, None), []);
    let once = pod.clone();
    pods.default(&mut pod);
    assert_eq!(pod, once);
}

#[test]
fn invalid_objects_by_table() {
    let cases = [
        (
            "Pod",
            json!({"spec": {"containers": []}}),
            "spec.containers: Required value",
        ),
        ("Pod", json!({"spec": {}}), "spec.containers: Required value"),
        (
            "Pod",
            json!({"spec": {"containers": [{"name": "a"}]}}),
            "spec.containers[0].image: Required value",
        ),
        (
            "Pod",
            json!({"spec": {"containers": [{"image": "a"}]}}),
            "spec.containers[0].name: Required value",
        ),
        (
            "Pod",
            json!({"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            "Pod",
            json!({"spec": {"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/"}]}]}}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            "Pod",
            json!({"spec": {"restartPolicy": "Maybe", "containers": [{"name": "a", "image": "i"}]}}),
            "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            "Pod",
            json!({"spec": {"containers": [{"name": "a", "image": "i", "resources": {"limits": {"cpu": "much"}}}]}}),
            "spec.containers[0].resources.limits.cpu: Invalid value: \"much\"",
        ),
        ("Secret", json!({"data": {"a": "!"}}), "data.a: Invalid value: \"!\""),
        (
            "Secret",
            json!({"data": {"a/b": ""}}),
            "data[a/b]: Invalid value: \"a/b\"",
        ),
        ("Service", json!({"spec": {}}), "spec.ports: Required value"),
        (
            "PersistentVolumeClaim",
            json!({"spec": {}}),
            "spec.accessModes: Required value",
        ),
    ];
    for (kind, mut object, expected) in cases {
        let resource = resource(kind);
        resource.default(&mut object);
        let texts: Vec<String> = resource
            .validate(&object, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            texts.iter().any(|t| t.starts_with(expected)),
            "{expected} not in {texts:?}"
        );
    }
}

#[test]
fn what_must_not_change_does_not() {
    let secret = json!({"metadata": {}, "type": "Opaque", "immutable": true, "data": {"a": "YQ=="}});
    let mut changed = secret.clone();
    changed["data"]["a"] = "Yg==".into();
    assert_eq!(resource("Secret").validate(&changed, Some(&secret))[0].field, "data");
    let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a", "image": "i"}], "hostname": "h"}});
    let mut image = pod.clone();
    image["spec"]["containers"][0]["image"] = "j".into();
    assert_eq!(resource("Pod").validate(&image, Some(&pod)), []);
    image["spec"]["hostname"] = "g".into();
    assert_eq!(
        resource("Pod").validate(&image, Some(&pod))[0].reason,
        "FieldValueForbidden"
    );
}

#[test]
fn secrets_take_plain_strings() {
    let mut secret = json!({"stringData": {"a": "x"}, "data": {"a": "eQ==", "b": "eQ=="}});
    resource("Secret").default(&mut secret);
    assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "eA==", "b": "eQ=="}}));
}

#[test]
fn events_have_two_forms() {
    let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "x"}, "message": "m", "count": 2,
        "reportingComponent": "c", "reason": "R"});
    let mut event = core.clone();
    events::from_core(&mut event);
    assert_eq!(event["regarding"]["name"], "x");
    assert_eq!(event["reportingController"], "c");
    assert_eq!(event["apiVersion"], "events.k8s.io/v1");
    events::to_core(&mut event);
    assert_eq!(event, core);
}

#[test]
fn pod_rows_by_table() {
    let meta = json!({"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"});
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
    let run = |name: &str, restarts: i64| json!({"name": name, "ready": true, "started": true, "restartCount": restarts, "state": {"running": {}}});
    let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let cases = [
        (json!({"phase": "Pending"}), ["0/3", "Pending", "0"]),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
            ["0/3", "Init:0/2", "0"],
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
            ["0/3", "Init:ExitCode:3", "0"],
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": [done, run("s", 1)], "containerStatuses": [run("a", 2), run("b", 0)]}),
            ["3/3", "Running", "3"],
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": [done, run("s", 0)], "containerStatuses": [
                {"name": "a", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:58:00Z"}}}, run("b", 0)]}),
            ["2/3", "CrashLoopBackOff", "4 (2m ago)"],
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), ["0/3", "Evicted", "0"]),
    ];
    for (status, expected) in cases {
        let pod = json!({"kind": "Pod", "metadata": meta, "spec": spec, "status": status});
        let cells = row("Pod", &pod);
        assert_eq!(
            [&cells[1], &cells[2], &cells[3]].map(|c| c.as_str().unwrap()),
            expected,
            "{status}"
        );
        assert_eq!(cells[4], "60m");
        let mut dying = pod.clone();
        dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:59:00Z".into();
        let terminal = pod["status"]["phase"] == "Failed";
        assert_eq!(row("Pod", &dying)[2] == "Terminating", !terminal);
    }
}

#[test]
fn rows_of_other_kinds() {
    let meta = json!({"name": "x", "creationTimestamp": "2026-01-01T00:59:30Z"});
    let cases = [
        (
            "Namespace",
            json!({"status": {"phase": "Active"}}),
            json!(["x", "Active", "30s"]),
        ),
        (
            "Secret",
            json!({"type": "Opaque", "data": {"a": "", "b": ""}}),
            json!(["x", "Opaque", 2, "30s"]),
        ),
        ("ConfigMap", json!({"data": {"a": ""}}), json!(["x", 1, "30s"])),
        (
            "Node",
            json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"},
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
            json!([
                "x",
                "Ready,SchedulingDisabled",
                "control-plane",
                "30s",
                "v1",
                "10.0.0.1",
                "<none>",
                null,
                null,
                null
            ]),
        ),
        (
            "Event",
            json!({"lastTimestamp": "2026-01-01T00:59:00Z", "type": "Normal", "reason": "R", "message": "m\n", "count": 3,
                "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "c"}}),
            json!(["60s", "Normal", "R", "pod/p", "", "c", "m", "<unknown>", 3, "x"]),
        ),
        (
            "Service",
            json!({"spec": {"type": "NodePort", "clusterIP": "1.2.3.4", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}}),
            json!(["x", "NodePort", "1.2.3.4", "<none>", "80:30080/TCP", "30s", "<none>"]),
        ),
    ];
    for (kind, mut object, expected) in cases {
        for (name, value) in meta.as_object().unwrap() {
            object["metadata"][name] = value.clone();
        }
        assert_eq!(row(kind, &object), expected, "{kind}");
    }
}

#[test]
fn durations_as_kubectl_shows_them() {
    const DAY: i64 = 86_400;
    for (seconds, text) in [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600 + 60, "8h"),
        (47 * 3600, "47h"),
        (2 * DAY, "2d"),
        (2 * DAY + 3600, "2d1h"),
        (9 * DAY, "9d"),
        (729 * DAY, "729d"),
        (731 * DAY, "2y1d"),
        (3000 * DAY, "8y"),
    ] {
        assert_eq!(human_duration(seconds), text);
    }
}

#[test]
fn custom_resources_become_resources() {
    let crd = json!({"spec": {
        "group": "kubevirt.io", "scope": "Namespaced",
        "names": {"kind": "VirtualMachine", "plural": "virtualmachines", "shortNames": ["vm"], "categories": ["all"]},
    }});
    let version = json!({
        "name": "v1", "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"running": {"type": "boolean"}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
        "additionalPrinterColumns": [
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
        ],
    });
    let resource = ResourceInfo::from_crd(&crd, &version).unwrap();
    assert_eq!(resource.list_kind, "VirtualMachineList");
    assert_eq!(resource.qualified_plural(), "virtualmachines.kubevirt.io");
    assert_eq!(
        resource
            .subresources
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>(),
        ["status", "scale"]
    );
    let object = json!({"metadata": {"name": "v", "creationTimestamp": "2026-01-01T00:55:00Z"},
        "status": {"conditions": [{"type": "Other", "status": "X"}, {"type": "Ready", "status": "True"}]}});
    let shown = table(&resource.columns, [&object], json!({}), IncludeObject::Metadata, now());
    assert_eq!(shown["rows"][0]["cells"], json!(["v", "5m", "True"]));
    assert_eq!(shown["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}
