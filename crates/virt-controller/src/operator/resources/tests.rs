use std::collections::BTreeSet;
use std::fmt::Debug;

use ferrovirt_api::v1::KubeVirt;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::operator::inputs::{Cluster, Release};

fn inputs(spec: &Value, nodes: u64) -> Inputs {
    let kubevirt: KubeVirt = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt",
        "metadata": {"name": "kubevirt", "namespace": "kubevirt"}, "spec": spec,
    }))
    .unwrap();
    let image = |name: &str| format!("registry.example/ferrovirt/{name}:v1.2.3");
    let release = Release {
        version: "v1.2.3".to_owned(),
        api_image: image("ferrovirt"),
        controller_image: image("ferrovirt"),
        handler_image: image("virt-handler"),
        launcher_image: image("virt-launcher"),
        guestfs_image: image("libguestfs-tools"),
        sidecar_shim_image: image("sidecar-shim"),
    };
    let cluster = Cluster {
        nodes,
        monitoring: true,
        operator_webhooks: true,
    };
    Inputs::new(&kubevirt, &release, &cluster, "CA")
}

fn find(objects: &[Object], kind: &str, name: &str) -> Value {
    let found = objects.iter().find(|o| o.id.kind.kind == kind && o.id.name == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}")).body.clone()
}

#[test]
fn all_objects() {
    let objects = render(&inputs(&json!({}), 2)).unwrap();
    let names: Vec<String> = objects.iter().map(|o| o.id.to_string()).collect();
    insta::assert_snapshot!(names.join("\n"));
    let unique: BTreeSet<&String> = names.iter().collect();
    assert_eq!(unique.len(), names.len());
}

#[test]
fn processes() {
    let objects = render(&inputs(&json!({}), 2)).unwrap();
    for (kind, name) in [
        ("Deployment", "virt-api"),
        ("Deployment", "virt-controller"),
        ("DaemonSet", "virt-handler"),
    ] {
        insta::assert_yaml_snapshot!(name, find(&objects, kind, name));
    }
}

/// Nodes have the daemon for reservations only where the KubeVirt object asks for it.
#[test]
fn reservations_have_a_daemon() {
    let daemon = |spec: &Value| {
        let handler = find(&render(&inputs(spec, 2)).unwrap(), "DaemonSet", "virt-handler");
        handler["spec"]["template"]["spec"].clone()
    };
    for spec in [
        json!({}),
        json!({"configuration": {"persistentReservationConfiguration": {"enabled": false}}}),
    ] {
        let pod = daemon(&spec);
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1, "{spec}");
        assert!(!pod.to_string().contains("pr-helper"), "{spec}");
    }
    let pod = daemon(&json!({"configuration": {"persistentReservationConfiguration": {"enabled": true}}}));
    insta::assert_yaml_snapshot!("pr-helper", pod["containers"][1]);
    let directory = "/var/run/kubevirt/daemons/pr";
    let mount = json!({"name": "pr-helper", "mountPath": directory});
    assert!(
        pod["containers"][0]["volumeMounts"]
            .as_array()
            .unwrap()
            .contains(&mount)
    );
    let volume = json!({"name": "pr-helper", "hostPath": {"path": directory, "type": "DirectoryOrCreate"}});
    assert!(pod["volumes"].as_array().unwrap().contains(&volume));
}

#[test]
fn admission() {
    let objects = render(&inputs(&json!({}), 2)).unwrap();
    for (kind, name) in [
        ("MutatingWebhookConfiguration", "virt-api-mutator"),
        ("ValidatingWebhookConfiguration", "virt-api-validator"),
        ("ValidatingAdmissionPolicy", "kubevirt-node-restriction-policy"),
        ("ValidatingAdmissionPolicy", "kubevirt-vmi-restriction-policy"),
    ] {
        insta::assert_yaml_snapshot!(name, find(&objects, kind, name));
    }
}

/// What is written is what Kubernetes' types can say: a misspelled field would be lost on the way.
#[test]
fn every_object_fits_its_type() {
    fn fits<K: Serialize + DeserializeOwned + Debug>(body: &Value) {
        let typed: K = serde_json::from_value(body.clone()).unwrap();
        pretty(&serde_json::to_value(&typed).unwrap(), body);
    }
    /// Empty lists and maps may be left out.
    fn pretty(typed: &Value, body: &Value) {
        match body {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let empty =
                        value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
                    if !empty {
                        assert!(!typed[key].is_null(), "{key} is lost of {body}");
                        pretty(&typed[key], value);
                    }
                }
            }
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    pretty(&typed[index], value);
                }
            }
            other => assert_eq!(typed, other),
        }
    }
    for object in render(&inputs(&json!({}), 2)).unwrap() {
        let body = &object.body;
        match object.id.kind.kind {
            "APIService" => fits::<APIService>(body),
            "ClusterRole" => fits::<ClusterRole>(body),
            "ClusterRoleBinding" => fits::<ClusterRoleBinding>(body),
            "ConfigMap" => fits::<ConfigMap>(body),
            "DaemonSet" => fits::<DaemonSet>(body),
            "Deployment" => fits::<Deployment>(body),
            "MutatingWebhookConfiguration" => fits::<MutatingWebhookConfiguration>(body),
            "PodDisruptionBudget" => fits::<PodDisruptionBudget>(body),
            "Role" => fits::<Role>(body),
            "RoleBinding" => fits::<RoleBinding>(body),
            "Service" => fits::<Service>(body),
            "ServiceAccount" => fits::<ServiceAccount>(body),
            "ValidatingAdmissionPolicy" => fits::<ValidatingAdmissionPolicy>(body),
            "ValidatingAdmissionPolicyBinding" => fits::<ValidatingAdmissionPolicyBinding>(body),
            "ValidatingWebhookConfiguration" => fits::<ValidatingWebhookConfiguration>(body),
            "CustomResourceDefinition" | "PrometheusRule" | "ServiceMonitor" => {}
            other => panic!("no type for {other}"),
        }
    }
}

#[test]
fn what_the_kubevirt_object_says_is_done() {
    let objects = render(&inputs(
        &json!({
            "imageRegistry": "mirror.example/x", "imageTag": "v9", "imagePullPolicy": "Always",
            "imagePullSecrets": [{"name": "pull"}],
            "infra": {"replicas": 3, "nodePlacement": {
                "nodeSelector": {"role": "infra"}, "tolerations": [{"key": "t", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "Exists"}]}]}}}}},
            "workloads": {"nodePlacement": {"nodeSelector": {"role": "vms"}}},
            "productName": "product",
            "configuration": {
                "roleAggregationStrategy": "Manual",
                "developerConfiguration": {"logVerbosity": {"virtAPI": 5}}},
            "customizeComponents": {
                "flags": {"controller": {"port": "9443"}},
                "patches": [{"resourceType": "DaemonSet", "resourceName": "virt-handler", "type": "strategic",
                    "patch": "{\"spec\":{\"template\":{\"spec\":{\"hostNetwork\":true}}}}"}]},
        }),
        1,
    ))
    .unwrap();
    let api = find(&objects, "Deployment", "virt-api");
    let pod = &api["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(api["spec"]["replicas"], 3);
    assert_eq!(container["image"], "mirror.example/x/ferrovirt:v9");
    assert_eq!(container["imagePullPolicy"], "Always");
    assert!(
        container["args"]
            .as_array()
            .unwrap()
            .ends_with(&["-v".into(), "5".into()])
    );
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(
        pod["nodeSelector"],
        json!({"kubernetes.io/os": "linux", "role": "infra"})
    );
    assert_eq!(pod["tolerations"][1]["key"], "t");
    assert!(pod["affinity"]["nodeAffinity"].is_object() && pod["affinity"]["podAntiAffinity"].is_object());
    assert_eq!(api["metadata"]["labels"]["app.kubernetes.io/part-of"], "product");
    assert_eq!(api["metadata"]["annotations"][VERSION_ANNOTATION], "v9");
    let controller = find(&objects, "Deployment", "virt-controller");
    let arguments = controller["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(
        arguments.contains(r#""--port","9443""#) && !arguments.contains("8443"),
        "{arguments}"
    );
    let handler = find(&objects, "DaemonSet", "virt-handler");
    assert_eq!(handler["spec"]["template"]["spec"]["hostNetwork"], true);
    assert_eq!(handler["spec"]["template"]["spec"]["nodeSelector"]["role"], "vms");
    assert_eq!(
        find(&objects, "PodDisruptionBudget", "virt-api-pdb")["spec"]["minAvailable"],
        2
    );
    let admin = find(&objects, "ClusterRole", "kubevirt.io:admin");
    assert!(!admin["metadata"]["labels"].to_string().contains("aggregate"));
}

const PROCESSES: [&str; 3] = ["virt-api", "virt-controller", "virt-handler"];

/// What of the pods of some processes is as a spec of a KubeVirt object says: a place in the pod's spec, and what is there.
fn assert_effects(spec: &Value, processes: &[&str], effects: &[(&str, Value)]) {
    let objects = render(&inputs(spec, 2)).unwrap();
    for name in processes {
        let kind = if *name == "virt-handler" {
            "DaemonSet"
        } else {
            "Deployment"
        };
        let pod = &find(&objects, kind, name)["spec"]["template"]["spec"];
        for (place, expected) in effects {
            let found = pod.pointer(&format!("/{place}"));
            assert_eq!(found, Some(expected), "{spec}: {name} {place}");
        }
    }
}

#[test]
fn placements_have_their_effect() {
    let placement = json!({
        "nodeSelector": {"role": "x"}, "tolerations": [{"key": "t", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "Exists"}]}]}}},
    });
    let terms = "affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = format!("{terms}/0/matchExpressions/0/key");
    let here = [
        ("nodeSelector/role", json!("x")),
        ("tolerations/1/key", json!("t")),
        (terms.as_str(), json!("k")),
    ];
    let elsewhere = [("nodeSelector", json!({"kubernetes.io/os": "linux"}))];
    let (infra, workloads) = PROCESSES.split_at(2);
    for (field, those, others) in [("infra", infra, workloads), ("workloads", workloads, infra)] {
        let spec = json!({field: {"nodePlacement": placement}});
        assert_effects(&spec, those, &here);
        assert_effects(&spec, others, &elsewhere);
    }
}

#[test]
fn images_levels_and_flags_have_their_effect() {
    let secrets = json!([{"name": "s"}]);
    assert_effects(
        &json!({"imagePullSecrets": secrets}),
        &PROCESSES,
        &[("imagePullSecrets", secrets.clone())],
    );
    let never = json!({"imagePullPolicy": "Never"});
    assert_effects(&never, &PROCESSES, &[("containers/0/imagePullPolicy", json!("Never"))]);
    assert_effects(
        &never,
        &PROCESSES[2..],
        &[("initContainers/0/imagePullPolicy", json!("Never"))],
    );
    for (at, level, flag, arguments) in [
        (
            0,
            "virtAPI",
            "api",
            "virt-api --cert-dir /etc/virt-api/certificates --client-cert-dir /etc/virt-api/clientcertificates --ca-bundle /etc/kubevirt-ca/ca-bundle",
        ),
        (
            1,
            "virtController",
            "controller",
            "virt-controller --cert-dir /etc/virt-controller/certificates",
        ),
        (2, "virtHandler", "handler", "virt-handler"),
    ] {
        let spec = json!({
            "configuration": {"developerConfiguration": {"logVerbosity": {level: 6}}},
            "customizeComponents": {"flags": {flag: {"port": "9"}}},
        });
        let expected: Vec<&str> = arguments.split(' ').chain(["-v", "6", "--port", "9"]).collect();
        assert_effects(&spec, &PROCESSES[at..=at], &[("containers/0/args", json!(expected))]);
    }
}

#[test]
fn patches_have_their_effect() {
    let spec = json!({"customizeComponents": {"patches": [
        {"resourceType": "Deployment", "resourceName": "virt-api", "type": "json",
         "patch": r#"[{"op": "add", "path": "/spec/minReadySeconds", "value": 7}]"#},
        {"resourceType": "Service", "resourceName": "virt-api", "type": "merge",
         "patch": r#"{"metadata": {"annotations": {"a": "b"}}}"#},
        {"resourceType": "DaemonSet", "resourceName": "virt-handler", "type": "strategic",
         "patch": r#"{"spec": {"template": {"spec": {"containers": [{"name": "virt-handler", "resources": {"limits": {"memory": "1Gi"}}}]}}}}"#},
    ]}});
    let resources = json!({"limits": {"memory": "1Gi"}, "requests": {"cpu": "10m", "memory": "40Mi"}});
    assert_effects(&spec, &PROCESSES[2..], &[("containers/0/resources", resources)]);
    let objects = render(&inputs(&spec, 2)).unwrap();
    assert_eq!(find(&objects, "Deployment", "virt-api")["spec"]["minReadySeconds"], 7);
    assert_eq!(
        find(&objects, "Service", "virt-api")["metadata"]["annotations"]["a"],
        "b"
    );
    // Nothing else is touched.
    let plain = render(&inputs(&json!({}), 2)).unwrap();
    let changed = objects.iter().zip(&plain).filter(|(a, b)| a.hash != b.hash);
    assert_eq!(changed.count(), 3);
}

/// More replicas than one are for clusters that have a place for them; what a user says counts in any.
#[test]
fn replicas_and_budgets_follow_the_size_of_the_cluster() {
    for (nodes, replicas, budgets) in [(1, 1, 0), (2, 2, 2), (50, 2, 2)] {
        let objects = render(&inputs(&json!({}), nodes)).unwrap();
        assert_eq!(find(&objects, "Deployment", "virt-api")["spec"]["replicas"], replicas);
        let found = objects.iter().filter(|o| o.id.kind.kind == "PodDisruptionBudget");
        assert_eq!(found.count(), budgets, "{nodes} nodes");
    }
}

#[test]
fn equal_inputs_give_equal_objects() {
    let twice = [(); 2].map(|()| render(&inputs(&json!({}), 2)).unwrap());
    assert_eq!(twice[0], twice[1]);
    let other = render(&Inputs {
        ca_bundle: "CB".to_owned(),
        ..inputs(&json!({}), 2)
    })
    .unwrap();
    let changed = twice[0].iter().zip(&other).filter(|(a, b)| a.hash != b.hash);
    let mut kinds: Vec<&str> = changed.map(|(a, _)| a.id.kind.kind).collect();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "ConfigMap",
            "APIService",
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration"
        ]
    );
}

/// Nobody can grant what he does not have.
#[test]
fn the_operator_may_do_all_that_it_grants() {
    fn allowed(rules: &Value, rule: &Value) -> bool {
        let has = |held: &Value, field: &str, wanted: &Value| {
            let held = &held[field];
            held.as_array().is_some_and(|all| all.contains(wanted))
        };
        let each = |field: &str| rule[field].as_array().cloned().unwrap_or_default();
        let names = each("resourceNames");
        each("apiGroups").iter().all(|group| {
            each("resources").iter().all(|resource| {
                each("verbs").iter().all(|verb| {
                    rules.as_array().unwrap().iter().any(|held| {
                        let named = held["resourceNames"].is_null()
                            || (!names.is_empty() && names.iter().all(|name| has(held, "resourceNames", name)));
                        named
                            && has(held, "apiGroups", group)
                            && has(held, "resources", resource)
                            && has(held, "verbs", verb)
                    })
                })
            })
        })
    }
    let (wide, narrow) = operator_rules();
    let everywhere: Vec<Value> = [&wide, &narrow]
        .into_iter()
        .flat_map(|r| r.as_array().unwrap().clone())
        .collect();
    for object in render(&inputs(&json!({}), 2)).unwrap() {
        let held = match object.id.kind.kind {
            "ClusterRole" => wide.clone(),
            "Role" => everywhere.clone().into(),
            _ => continue,
        };
        for rule in object.body["rules"].as_array().unwrap() {
            assert!(allowed(&held, rule), "{}: {rule}", object.id);
        }
    }
}
