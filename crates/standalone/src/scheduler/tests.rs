use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use serde_json::{Value, json};

fn node(name: &str, change: impl FnOnce(&mut Value)) -> Node {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "cores": "4"}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110", "devices.kubevirt.io/tun": "1k"}},
    });
    change(&mut node);
    serde_json::from_value(node).unwrap()
}

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "ns"},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]},
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn placed(pod: &Pod, nodes: &[Node], used: &Amounts, pods: u64) -> Placement {
    let candidates: Vec<_> = nodes.iter().map(|node| Candidate { node, used, pods }).collect();
    place(pod, &Emulation::Unneeded, &candidates)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn one_node_fits_or_says_why() {
    type Change = fn(&mut Value);
    let nothing: Change = |_| {};
    let cases: [(Change, Change, Option<&str>); 16] = [
        (nothing, nothing, None),
        (
            |p| p["spec"]["containers"][0]["resources"]["requests"]["memory"] = "9Gi".into(),
            nothing,
            Some("1 Insufficient memory"),
        ),
        (
            |p| p["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "5", "memory": "9Gi"}}),
            nothing,
            Some("1 Insufficient cpu, 1 Insufficient memory"),
        ),
        (
            |p| p["spec"]["containers"][0]["resources"]["limits"] = json!({"devices.kubevirt.io/kvm": "1"}),
            nothing,
            Some("1 Insufficient devices.kubevirt.io/kvm"),
        ),
        (
            |p| p["spec"]["containers"][0]["resources"]["limits"] = json!({"devices.kubevirt.io/tun": "1"}),
            nothing,
            None,
        ),
        (
            |p| p["spec"]["nodeSelector"] = json!({"kubevirt.io/schedulable": "true"}),
            nothing,
            Some("1 node(s) didn't match Pod's node affinity/selector"),
        ),
        (
            |p| p["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"}),
            nothing,
            None,
        ),
        (
            nothing,
            |n| n["spec"]["unschedulable"] = true.into(),
            Some("1 node(s) were unschedulable"),
        ),
        (
            nothing,
            |n| n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]),
            Some("1 node(s) had untolerated taint(s) {k: v}"),
        ),
        (
            nothing,
            |n| n["spec"]["taints"] = json!([{"key": "k", "effect": "PreferNoSchedule"}]),
            None,
        ),
        (
            |p| p["spec"]["tolerations"] = json!([{"key": "k", "value": "v"}]),
            |n| n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoExecute"}]),
            None,
        ),
        (
            |p| p["spec"]["tolerations"] = json!([{"operator": "Exists"}]),
            |n| n["spec"]["unschedulable"] = true.into(),
            None,
        ),
        (
            |p| p["spec"]["affinity"] = affinity(json!([{"key": "cores", "operator": "Gt", "values": ["3"]}])),
            nothing,
            None,
        ),
        (
            |p| p["spec"]["affinity"] = affinity(json!([{"key": "cores", "operator": "NotIn", "values": ["4"]}])),
            nothing,
            Some("1 node(s) didn't match Pod's node affinity/selector"),
        ),
        (
            |p| p["spec"]["affinity"] = affinity(json!([])),
            nothing,
            Some("1 node(s) didn't match Pod's node affinity/selector"),
        ),
        (
            nothing,
            |n| n["status"]["allocatable"]["pods"] = "0".into(),
            Some("1 Too many pods"),
        ),
    ];
    for (index, (change_pod, change_node, expected)) in cases.into_iter().enumerate() {
        let nodes = [node("n1", change_node)];
        let expected = match expected {
            None => Placement::Node("n1".into()),
            Some(reason) => Placement::Nowhere(format!("0/1 nodes are available: {reason}.")),
        };
        assert_eq!(
            placed(&pod(change_pod), &nodes, &Amounts::new(), 0),
            expected,
            "case {index}"
        );
    }
}

fn affinity(expressions: Value) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": expressions}]}}})
}

#[test]
fn a_guest_of_another_architecture_is_emulated_or_says_why_not() {
    let pod = pod(|p| p["spec"]["nodeSelector"] = json!({"kubernetes.io/arch": "arm64", "cores": "4"}));
    let node = node("n1", |n| n["metadata"]["labels"]["kubernetes.io/arch"] = "amd64".into());
    let nowhere = |why: &str| Placement::Nowhere(format!("0/1 nodes are available: 1 {why}."));
    for (emulation, expected) in [
        (
            Emulation::Unneeded,
            nowhere("node(s) didn't match Pod's node affinity/selector"),
        ),
        (Emulation::Works, Placement::Node("n1".into())),
        (Emulation::Lacks("node(s) cannot".into()), nowhere("node(s) cannot")),
    ] {
        let candidate = Candidate {
            node: &node,
            used: &Amounts::new(),
            pods: 0,
        };
        assert_eq!(place(&pod, &emulation, &[candidate]), expected);
    }
}

#[test]
fn without_nodes_there_is_no_place() {
    assert_eq!(
        placed(&pod(|_| {}), &[], &Amounts::new(), 0),
        Placement::Nowhere("no nodes available to schedule pods".into())
    );
}

#[test]
fn what_others_use_is_not_free() {
    let used = Amounts::from([("memory".to_owned(), 7 * (1 << 30) + 1)]);
    let nodes = [
        node("n1", |_| {}),
        node("n2", |n| n["spec"]["unschedulable"] = true.into()),
    ];
    assert_eq!(
        placed(&pod(|_| {}), &nodes, &used, 1),
        Placement::Nowhere("0/2 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable.".into())
    );
}

#[test]
fn the_emptier_node_is_taken() {
    let nodes = [
        node("n1", |_| {}),
        node("n2", |n| n["status"]["allocatable"]["memory"] = "16Gi".into()),
    ];
    assert_eq!(
        placed(&pod(|_| {}), &nodes, &Amounts::new(), 0),
        Placement::Node("n2".into())
    );
}

#[test]
fn requests_count_sidecars_and_the_largest_init_container() {
    let spec = pod(|p| {
        p["spec"]["overhead"] = json!({"memory": "1M"});
        p["spec"]["initContainers"] = json!([
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"memory": "100M"}}},
            {"name": "init", "resources": {"requests": {"memory": "3G"}}},
        ]);
    });
    let amounts = requests(spec.spec.as_ref().unwrap());
    assert_eq!(amounts["memory"], 3_101_000_000);
    assert_eq!(amounts["cpu"], 1000);
}

#[test]
fn only_pods_that_want_us_wait() {
    type Change = fn(&mut Value);
    let cases: [(Change, bool); 6] = [
        (|_| {}, true),
        (|p| p["spec"]["nodeName"] = "n1".into(), false),
        (|p| p["spec"]["schedulerName"] = "mine".into(), false),
        (|p| p["spec"]["schedulingGates"] = json!([{"name": "g"}]), false),
        (
            |p| p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into(),
            false,
        ),
        (|p| p["status"] = json!({"phase": "Failed"}), false),
    ];
    for (index, (change, expected)) in cases.into_iter().enumerate() {
        assert_eq!(is_waiting(&pod(change)), expected, "case {index}");
    }
}

#[test]
fn pods_wait_for_their_claims() {
    let claimant = pod(|p| {
        p["spec"]["volumes"] =
            json!([{"name": "tmp", "emptyDir": {}}, {"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]);
    });
    let claim = |phase: &str, deleted: bool| -> PersistentVolumeClaim {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let claim = json!({"metadata": {"name": "c", "deletionTimestamp": deleted}, "status": {"phase": phase}});
        serde_json::from_value(claim).unwrap()
    };
    for (claim, expected) in [
        (None, Some("persistentvolumeclaim \"c\" not found")),
        (
            Some(claim("Pending", false)),
            Some("pod has unbound immediate PersistentVolumeClaims"),
        ),
        (
            Some(claim("Bound", true)),
            Some("persistentvolumeclaim \"c\" is being deleted"),
        ),
        (Some(claim("Bound", false)), None),
    ] {
        let found = |name: &str| claim.as_ref().filter(|_| name == "c");
        assert_eq!(unbound(&claimant, found).as_deref(), expected);
    }
    assert_eq!(unbound(&pod(|_| {}), |_| None), None);
}

/// A client whose first binding fails as if the connection broke.
fn failing_once(real: Client) -> Client {
    let failed = AtomicBool::new(false);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let fails = request.uri().path().ends_with("/binding") && !failed.swap(true, Ordering::Relaxed);
        let real = real.clone();
        async move {
            if fails {
                return Err(tower::BoxError::from("the connection broke"));
            }
            real.send(request).await.map_err(tower::BoxError::from)
        }
    });
    Client::new(service, "default")
}

#[tokio::test]
async fn a_binding_that_failed_is_tried_again() {
    let server = ApiServer::open(Config::memory()).await.unwrap();
    let client = server.client(UserInfo::admin("kubernetes-admin"));
    let create = PostParams::default();
    let nodes = Api::<Node>::all(client.clone());
    nodes.create(&create, &node("n1", |_| {})).await.unwrap();
    let waits = pod(|p| {
        p["metadata"]["namespace"] = "default".into();
        p["spec"]["containers"][0]["image"] = "i".into();
    });
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    pods.create(&create, &waits).await.unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(failing_once(client), stop.clone()));
    // Nothing else happens meanwhile.
    let bound = async {
        while pods.get("p").await.unwrap().spec.unwrap().node_name.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), bound).await.unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
}
