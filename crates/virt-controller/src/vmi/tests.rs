//! Tables of [`plan`](super::plan::plan).

use std::sync::Arc;

use ferrovirt_api::v1::{DeviceStatus, DeviceStatusInfo, VirtualMachineInstance};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::conditions::Condition;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::claims::Claims;
use super::devices::Devices;
use super::plan::{Effect, Observed, Plan, awaits_devices, plan};
use super::pod;
use crate::cache::Entry;
use crate::image_volumes::ContainerDisks;
use crate::{Home, Options};

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().unwrap()
}

fn ago(millis: i64) -> Timestamp {
    now() - SignedDuration::from_millis(millis)
}

fn vmi(phase: &str) -> VirtualMachineInstance {
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {
            "name": "x", "namespace": "n", "uid": "u", "finalizers": ["kubevirt.io/foregroundDeleteVirtualMachine"],
            "creationTimestamp": "2026-01-01T00:00:58Z",
        },
        "spec": {"domain": {"memory": {"guest": "128Mi"}, "devices": {}}},
        "status": {"phase": phase},
    }))
    .unwrap()
}

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "virt-launcher-x-abcde", "namespace": "n", "uid": "p"},
        "spec": {"containers": [{"name": "compute"}], "nodeName": "node1"},
        "status": status,
    }))
    .unwrap()
}

fn compute(phase: &str, state: Value) -> Value {
    json!({"phase": phase, "qosClass": "Burstable", "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "compute", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": state}]})
}

fn up() -> Value {
    compute("Running", json!({"running": {}}))
}

fn ended(code: i32, millis: i64) -> Value {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    compute(
        phase,
        json!({"terminated": {"exitCode": code, "finishedAt": ago(millis)}}),
    )
}

fn waiting(reason: &str) -> Value {
    compute("Pending", json!({"waiting": {"reason": reason, "message": "m"}}))
}

fn observed(vmi: VirtualMachineInstance, pod: Option<Pod>, seen: Timestamp, home: Home) -> Observed {
    Observed {
        vmi: Arc::new(vmi),
        pods: pod
            .into_iter()
            .map(|pod| Entry {
                object: Arc::new(pod),
                seen,
            })
            .collect(),
        claims: Claims::default(),
        devices: Devices::default(),
        owner_exists: false,
        vsock_cid: None,
        config: Arc::new(ClusterConfig::standalone()),
        container_disks: ContainerDisks::ImageVolumes,
        node_unresponsive: false,
        options: Arc::new(Options {
            launcher_image: "launcher:1".to_owned(),
            sidecar_shim_image: None,
            home,
        }),
    }
}

fn effects(plan: &Plan) -> String {
    let names = plan.effects.iter().map(|effect| match effect {
        Effect::CreatePod(_) => "create".to_owned(),
        Effect::CreateStateClaim => "claim".to_owned(),
        Effect::DeletePod { grace_seconds, .. } => format!("delete({grace_seconds})"),
        Effect::LabelNode(node) => format!("label({node})"),
        Effect::OpenGate { open, .. } => format!("gate({open})"),
        Effect::TellNetworks { info, .. } => format!("tell({info})"),
        Effect::SetFinalizers { new, .. } => format!("finalizers({})", new.join(",")),
    });
    names.collect::<Vec<_>>().join(" ")
}

fn conditions(plan: &Plan) -> String {
    let list = plan
        .status
        .conditions
        .iter()
        .map(|c| format!("{}={}/{}", c.kind(), c.status(), c.reason()));
    list.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_way_to_scheduled() {
    let unschedulable = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"}]});
    let not_running = "Ready=False/GuestNotRunning";
    for (phase, status, age, want_effects, want_phase, want_conditions) in [
        ("", None, 0, "create", "", ""),
        ("Pending", None, 0, "create", "Pending", ""),
        ("Pending", Some(json!({})), 100, "label(node1)", "Pending", ""),
        (
            "Pending",
            Some(json!({})),
            300,
            "label(node1)",
            "Scheduling",
            not_running,
        ),
        ("Pending", Some(up()), 100, "label(node1)", "Scheduled", not_running),
        ("Scheduling", Some(up()), 900, "label(node1)", "Scheduled", not_running),
        (
            "Pending",
            Some(unschedulable),
            10,
            "label(node1)",
            "Scheduling",
            "Ready=False/GuestNotRunning PodScheduled=False/Unschedulable",
        ),
        (
            "Scheduling",
            Some(waiting("ErrImagePull")),
            900,
            "label(node1)",
            "Scheduling",
            "Ready=False/GuestNotRunning Synchronized=False/ErrImagePull",
        ),
        (
            "Pending",
            Some(waiting("ImagePullBackOff")),
            0,
            "label(node1)",
            "Scheduling",
            "Ready=False/GuestNotRunning Synchronized=False/ImagePullBackOff",
        ),
        (
            "Scheduling",
            Some(ended(1, 0)),
            900,
            "label(node1)",
            "Failed",
            not_running,
        ),
        ("Pending", Some(ended(0, 0)), 0, "label(node1)", "Failed", not_running),
        ("Scheduling", None, 0, "", "Failed", "Ready=False/PodNotExists"),
    ] {
        let observed = observed(vmi(phase), status.clone().map(pod), ago(age), Home::Standalone);
        let plan = plan(&observed, now());
        let got = (
            effects(&plan),
            plan.status.phase.clone().unwrap_or_default(),
            conditions(&plan),
        );
        let want = (
            want_effects.to_owned(),
            want_phase.to_owned(),
            want_conditions.to_owned(),
        );
        assert_eq!(got, want, "{phase} {status:?}");
    }
}

#[test]
fn a_pod_that_is_starting_is_looked_at_again() {
    let plan = plan(
        &observed(vmi("Pending"), Some(pod(json!({}))), ago(100), Home::Standalone),
        now(),
    );
    assert_eq!(plan.requeue, Some(std::time::Duration::from_millis(200)));
}

#[test]
fn a_cluster_has_more_time_before_a_start_is_told_of() {
    for (home, age, phase) in [
        (Home::Standalone, 299, "Pending"),
        (Home::Standalone, 300, "Scheduling"),
        (Home::Cluster, 1499, "Pending"),
        (Home::Cluster, 1500, "Scheduling"),
    ] {
        let plan = plan(&observed(vmi("Pending"), Some(pod(json!({}))), ago(age), home), now());
        assert_eq!(plan.status.phase.as_deref(), Some(phase), "{home:?} {age}");
    }
}

#[test]
fn scheduled_hands_over_all_that_the_node_needs() {
    let mut vmi = vmi("Pending");
    vmi.metadata.annotations = Some([("kubevirt.io/vm-generation".to_owned(), "3".to_owned())].into());
    vmi.metadata.owner_references = serde_json::from_value(json!([
        {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "x", "uid": "vm", "controller": true}
    ]))
    .unwrap();
    let mut status = plan(&observed(vmi, Some(pod(up())), now(), Home::Standalone), now()).status;
    status.memory = None;
    assert_eq!(
        serde_json::to_value(status).unwrap(),
        json!({
            "phase": "Scheduled", "nodeName": "node1", "activePods": {"p": "node1"}, "qosClass": "Burstable",
            "migrationTransport": "Unix", "runtimeUser": 107, "launcherContainerImageVersion": "launcher:1",
            "virtualMachineRevisionName": "revision-start-vm-vm-3",
            "currentCPUTopology": {"cores": 1, "sockets": 1, "threads": 1},
            "phaseTransitionTimestamps": [
                {"phase": "Pending", "phaseTransitionTimestamp": "2026-01-01T00:00:58Z"},
                {"phase": "Scheduled", "phaseTransitionTimestamp": "2026-01-01T00:01:00Z"}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "GuestNotRunning",
                "message": "Guest VM is not reported as running", "lastTransitionTime": "2026-01-01T00:01:00Z"}],
        })
    );
}

#[test]
fn a_running_guest_and_its_end() {
    for (phase, status, want_phase, want_conditions, waits) in [
        ("Running", Some(up()), "Running", "Ready=True/", false),
        ("Running", Some(ended(1, 100)), "Running", "Ready=True/", true),
        (
            "Running",
            Some(ended(1, 4000)),
            "Failed",
            "Ready=False/GuestNotRunning",
            false,
        ),
        (
            "Running",
            Some(ended(0, 4000)),
            "Succeeded",
            "Ready=False/GuestNotRunning",
            false,
        ),
        (
            "Scheduled",
            Some(ended(0, 4000)),
            "Failed",
            "Ready=False/GuestNotRunning",
            false,
        ),
        ("Running", None, "Failed", "Ready=False/PodNotExists", false),
        ("Succeeded", None, "Succeeded", "Ready=False/PodNotExists", false),
        (
            "Succeeded",
            Some(ended(0, 4000)),
            "Succeeded",
            "Ready=False/GuestNotRunning",
            false,
        ),
    ] {
        let mut vmi = vmi(phase);
        vmi.metadata.labels = Some([("kubevirt.io/nodeName".to_owned(), "node1".to_owned())].into());
        let plan = plan(
            &observed(vmi, status.clone().map(pod), ago(9000), Home::Standalone),
            now(),
        );
        assert_eq!(effects(&plan), "", "{phase} {status:?}");
        assert_eq!(plan.status.phase.as_deref(), Some(want_phase), "{phase} {status:?}");
        assert_eq!(conditions(&plan), want_conditions, "{phase} {status:?}");
        assert_eq!(plan.requeue.is_some(), waits);
        assert_eq!(plan.status.reason.is_some(), want_phase == "Failed");
    }
}

#[test]
fn a_lost_pod_is_the_fault_of_a_lost_node() {
    let ending = json!({"phase": "Failed"});
    for (phase, status, node_unresponsive, asks, reason) in [
        ("Running", Some(up()), false, false, None),
        ("Running", Some(ended(1, 5000)), false, true, Some("PodTerminated")),
        ("Running", Some(ending.clone()), false, true, Some("PodTerminated")),
        ("Running", Some(ending), true, false, Some("NodeUnresponsive")),
        ("Running", None, false, true, Some("PodDisappeared")),
        ("Scheduled", None, true, false, Some("NodeUnresponsive")),
        ("Failed", None, false, false, None),
    ] {
        let mut observed = observed(vmi(phase), status.map(pod), ago(5000), Home::Cluster);
        observed.node_unresponsive = node_unresponsive;
        let plan = plan(&observed, now());
        assert_eq!(plan.loses_pod(&observed), asks, "{phase} {reason:?}");
        assert_eq!(plan.status.reason.as_deref(), reason, "{phase}");
    }
}

#[test]
fn deletion_takes_the_pod_first_then_the_last_phase_then_the_finalizers() {
    let finalizers = "finalizers(kubevirt.io/virtualMachineControllerFinalize)";
    for (phase, status, grace, owner_exists, want_effects, want_phase) in [
        ("Running", Some(up()), None, true, "delete(45)", "Running"),
        ("Running", Some(up()), Some(0), true, "delete(15)", "Running"),
        ("Pending", Some(json!({})), None, true, "delete(45)", "Pending"),
        ("Pending", None, None, true, "", "Failed"),
        ("Running", None, None, true, "", "Failed"),
        ("Succeeded", Some(ended(0, 0)), None, true, "delete(45)", "Succeeded"),
        ("Succeeded", None, None, true, finalizers, "Succeeded"),
        ("Failed", None, None, false, "finalizers()", "Failed"),
    ] {
        let mut vmi = vmi(phase);
        vmi.metadata.deletion_timestamp = serde_json::from_value(json!(now())).unwrap();
        vmi.metadata
            .finalizers
            .as_mut()
            .unwrap()
            .push("kubevirt.io/virtualMachineControllerFinalize".to_owned());
        vmi.spec.termination_grace_period_seconds = grace;
        let observed = Observed {
            owner_exists,
            ..observed(vmi, status.clone().map(pod), now(), Home::Standalone)
        };
        let plan = plan(&observed, now());
        assert_eq!(effects(&plan), want_effects, "{phase} {status:?}");
        assert_eq!(plan.status.phase.as_deref(), Some(want_phase), "{phase} {status:?}");
    }
}

#[test]
fn a_pod_that_goes_is_only_hurried() {
    let mut vmi = vmi("Running");
    vmi.metadata.deletion_timestamp = serde_json::from_value(json!(now())).unwrap();
    let mut pod = pod(up());
    pod.metadata.deletion_timestamp = vmi.metadata.deletion_timestamp.clone();
    for (current, grace, want) in [(45, None, ""), (45, Some(5), "delete(20)"), (10, Some(5), "")] {
        vmi.spec.termination_grace_period_seconds = grace;
        pod.metadata.deletion_grace_period_seconds = Some(current);
        let observed = observed(vmi.clone(), Some(pod.clone()), now(), Home::Standalone);
        assert_eq!(effects(&plan(&observed, now())), want, "{current} {grace:?}");
    }
}

#[test]
fn a_vmi_goes_when_its_launcher_has_ended_not_when_its_pod_is_tidied_up() {
    for (phase, status, want) in [
        ("Running", ended(0, 100), ""),
        ("Failed", up(), ""),
        ("Failed", ended(1, 100), "finalizers()"),
        ("Succeeded", ended(0, 100), "finalizers()"),
    ] {
        let mut vmi = vmi(phase);
        vmi.metadata.deletion_timestamp = serde_json::from_value(json!(now())).unwrap();
        let mut pod = pod(status.clone());
        pod.metadata.deletion_timestamp = vmi.metadata.deletion_timestamp.clone();
        pod.metadata.deletion_grace_period_seconds = Some(15);
        let observed = observed(vmi, Some(pod), now(), Home::Standalone);
        assert_eq!(effects(&plan(&observed, now())), want, "{phase} {status}");
    }
}

#[test]
fn a_spec_that_no_pod_can_give_is_a_condition_and_no_retry() {
    let mut vmi = vmi("Pending");
    vmi.spec.domain.memory = None;
    let plan = plan(&observed(vmi, None, now(), Home::Standalone), now());
    assert_eq!((effects(&plan).as_str(), plan.requeue), ("", None));
    assert_eq!(conditions(&plan), "Synchronized=False/FailedCreate");
    assert!(plan.status.conditions[0].message().contains("memory"));
}

#[test]
fn a_vmi_was_pending_before_anything_else_and_is_not_written_for_that_alone() {
    let phases = |plan: &Plan| -> Vec<String> {
        let list = plan.status.phase_transition_timestamps.iter();
        list.filter_map(|t| t.phase.clone()).collect()
    };
    let mut fresh = vmi("");
    fresh.status = None;
    let mut wrong = fresh.clone();
    wrong.spec.domain.memory = None;
    for (vmi, pod, want_phase, want) in [
        (&fresh, None, None, &[][..]),
        (&fresh, Some(pod(up())), Some("Scheduled"), &["Pending", "Scheduled"]),
        (&wrong, None, Some("Pending"), &["Pending"]),
    ] {
        let plan = plan(&observed(vmi.clone(), pod, now(), Home::Cluster), now());
        assert_eq!(plan.status.phase.as_deref(), want_phase);
        assert_eq!(phases(&plan), want);
    }
    // What comes later is the second.
    let mut vmi = wrong.clone();
    vmi.status = Some(plan(&observed(wrong, None, now(), Home::Cluster), now()).status);
    let later = plan(&observed(vmi, Some(pod(up())), now(), Home::Cluster), now());
    assert_eq!(phases(&later), ["Pending", "Scheduled"]);
}

#[test]
fn a_claim_that_is_missing_is_told_of_once_and_only_until_it_is_there() {
    let claim: k8s_openapi::api::core::v1::PersistentVolumeClaim =
        serde_json::from_value(json!({"metadata": {"name": "data", "namespace": "n"}, "spec": {}})).unwrap();
    let mut vmi = vmi("Pending");
    vmi.spec.volumes =
        serde_json::from_value(json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}])).unwrap();
    vmi.spec.domain.devices.disks =
        serde_json::from_value(json!([{"name": "data", "disk": {"bus": "virtio"}}])).unwrap();
    let first = plan(&observed(vmi.clone(), None, now(), Home::Cluster), now());
    assert_eq!(
        conditions(&first),
        "Ready=False/PodNotExists PodScheduled=False/Unschedulable Synchronized=False/FailedPvcNotFound"
    );
    let notice = first.notice.as_ref().unwrap();
    assert_eq!((notice.warning, notice.reason), (false, "FailedPvcNotFound"));
    vmi.status = Some(first.status.clone());
    let again = plan(&observed(vmi.clone(), None, now(), Home::Cluster), now());
    assert_eq!((again.notice, &again.status), (None, &first.status));
    let mut there = observed(vmi, None, now(), Home::Cluster);
    there.claims = Claims::new(vec![claim], None);
    let there = plan(&there, now());
    assert_eq!(
        (effects(&there).as_str(), conditions(&there).as_str()),
        ("create", "Ready=False/PodNotExists")
    );
}

#[test]
fn a_pod_that_cannot_be_deleted_is_told_of_until_it_can() {
    let mut dying = vmi("Running");
    dying.metadata.deletion_timestamp = serde_json::from_value(json!(now())).unwrap();
    let failed = json!([{"type": "Synchronized", "status": "False", "reason": "FailedDelete", "message": "no",
        "lastTransitionTime": "2026-01-01T00:00:30Z"}]);
    dying.status.as_mut().unwrap().conditions = serde_json::from_value(failed).unwrap();
    let mut gone = pod(up());
    for deleting in [false, true] {
        gone.metadata.deletion_timestamp = dying.metadata.deletion_timestamp.clone().filter(|_| deleting);
        let mut plan = plan(
            &observed(dying.clone(), Some(gone.clone()), now(), Home::Cluster),
            now(),
        );
        let kept = !deleting;
        assert_eq!(conditions(&plan).contains("FailedDelete"), kept);
        if kept {
            let before = plan.status.clone();
            assert!(!super::plan::failed(&mut plan.status, "FailedDelete", "no", now()));
            assert_eq!(plan.status, before);
        }
    }
}

#[test]
fn every_volume_is_told_of() {
    let mut vmi = vmi("Pending");
    let volumes =
        json!([{"name": "root", "containerDisk": {"image": "x"}}, {"name": "keys", "secret": {"secretName": "s"}}]);
    vmi.spec.volumes = serde_json::from_value(volumes).unwrap();
    vmi.status.as_mut().unwrap().volume_status =
        serde_json::from_value(json!([{"name": "root", "target": "vda"}])).unwrap();
    let plan = plan(&observed(vmi, Some(pod(up())), now(), Home::Cluster), now());
    let told = plan.status.volume_status.iter();
    let told: Vec<(&str, &str)> = told.map(|v| (v.name.as_str(), v.target.as_str())).collect();
    assert_eq!(told, [("root", "vda"), ("keys", "")]);
}

#[test]
fn the_gate_follows_the_pause() {
    let paused = json!([{"type": "Paused", "status": "True"}]);
    let gate = |open: &str| {
        let mut status = up();
        let entry = json!({"type": "kubevirt.io/virtual-machine-unpaused", "status": open});
        status["conditions"].as_array_mut().unwrap().push(entry);
        status
    };
    for (home, status, conditions, want) in [
        (Home::Standalone, up(), json!([]), ""),
        (Home::Cluster, up(), json!([]), "gate(true)"),
        (Home::Cluster, gate("True"), json!([]), ""),
        (Home::Cluster, gate("True"), paused.clone(), "gate(false)"),
        (Home::Cluster, gate("False"), paused, ""),
    ] {
        let mut vmi = vmi("Running");
        vmi.metadata.labels = Some([("kubevirt.io/nodeName".to_owned(), "node1".to_owned())].into());
        vmi.status.as_mut().unwrap().conditions = serde_json::from_value(conditions).unwrap();
        assert_eq!(
            effects(&plan(&observed(vmi, Some(pod(status)), now(), home), now())),
            want
        );
    }
}

#[test]
fn a_plan_that_was_applied_is_followed_by_an_empty_one() {
    for phase in ["Pending", "Scheduling", "Scheduled", "Running", "Succeeded"] {
        for status in [json!({}), up(), waiting("ErrImagePull"), ended(1, 9000)] {
            let mut current = vmi(phase);
            current.metadata.labels = Some([("kubevirt.io/nodeName".to_owned(), "node1".to_owned())].into());
            let first = plan(
                &observed(current.clone(), Some(pod(status.clone())), ago(9000), Home::Standalone),
                now(),
            );
            current.status = Some(first.status.clone());
            let again = plan(
                &observed(current, Some(pod(status)), ago(9000), Home::Standalone),
                now(),
            );
            assert_eq!((again.effects.len(), &again.status), (0, &first.status), "{phase}");
        }
    }
}

#[test]
fn pods_of_vmis_have_the_name_that_the_plan_creates() {
    let observed = observed(vmi("Pending"), None, now(), Home::Standalone);
    let plan = plan(&observed, now());
    let Some(Effect::CreatePod(created)) = plan.effects.first() else {
        panic!("{:?}", plan.effects)
    };
    assert_eq!(
        created.metadata.name.as_deref(),
        Some(pod::name(&observed.vmi).as_str())
    );
}

#[test]
fn what_is_let_go_gets_no_status() {
    let mut vmi = vmi("Succeeded");
    vmi.metadata.deletion_timestamp = Some(ferrovirt_core::conditions::wire_time(now()));
    let before = vmi.status.clone();
    let plan = plan(&observed(vmi, None, now(), Home::Cluster), now());
    assert_eq!((effects(&plan).as_str(), Some(plan.status)), ("finalizers()", before));
}

/// A VMI in `phase` that has a device by a resource claim.
fn claiming(phase: &str) -> VirtualMachineInstance {
    let mut vmi = vmi(phase);
    vmi.spec.resource_claims = serde_json::from_value(json!([{"name": "c", "resourceClaimName": "big"}])).unwrap();
    let gpus = json!([{"name": "g", "claimName": "c", "requestName": "r"}]);
    vmi.spec.domain.devices.gpus = serde_json::from_value(gpus).unwrap();
    vmi
}

#[test]
fn devices_of_claims_are_asked_for_when_the_pod_is_up_and_not_again() {
    let mut known = claiming("Scheduling");
    known.status.as_mut().unwrap().device_status = Some(DeviceStatus::default());
    let mut deleted = claiming("Scheduling");
    deleted.metadata.deletion_timestamp = serde_json::from_value(json!(now())).unwrap();
    for (vmi, status, asks) in [
        (claiming("Pending"), Some(up()), true),
        (claiming("Scheduling"), Some(up()), true),
        (claiming("Scheduling"), Some(json!({})), false),
        (claiming("Scheduling"), Some(ended(1, 0)), false),
        (claiming("Pending"), None, false),
        (claiming("Scheduled"), Some(up()), false),
        (claiming("Running"), Some(up()), false),
        (claiming("Failed"), Some(up()), false),
        (known, Some(up()), false),
        (deleted, Some(up()), false),
        (vmi("Pending"), Some(up()), false),
    ] {
        let observed = observed(vmi, status.clone().map(pod), now(), Home::Cluster);
        assert_eq!(
            awaits_devices(&observed).is_some(),
            asks,
            "{:?} {status:?}",
            observed.vmi.status
        );
    }
}

#[test]
fn a_vmi_is_handed_over_with_its_devices_only() {
    let given = DeviceStatus {
        gpu_statuses: vec![DeviceStatusInfo {
            name: "g".to_owned(),
            ..DeviceStatusInfo::default()
        }],
        ..DeviceStatus::default()
    };
    for phase in ["Pending", "Scheduling"] {
        let mut seen = observed(claiming(phase), Some(pod(up())), now(), Home::Cluster);
        seen.devices = Devices::Awaited("no slice".to_owned());
        let waiting = plan(&seen, now());
        assert_eq!(waiting.status.phase.as_deref(), Some("Scheduling"));
        assert_eq!(waiting.requeue, Some(super::devices::RETRY));
        assert_eq!(
            conditions(&waiting),
            "Ready=False/GuestNotRunning Synchronized=False/DevicesNotAllocated"
        );
        assert_eq!(waiting.status.conditions[1].message(), "no slice");
        assert_eq!(waiting.status.device_status, None);

        let mut vmi = claiming("Scheduling");
        vmi.status = Some(waiting.status);
        let mut seen = observed(vmi, Some(pod(up())), now(), Home::Cluster);
        seen.devices = Devices::Given(given.clone());
        let ready = plan(&seen, now());
        assert_eq!(ready.status.phase.as_deref(), Some("Scheduled"));
        assert_eq!(
            (conditions(&ready).as_str(), ready.requeue),
            ("Ready=False/GuestNotRunning", None)
        );
        assert_eq!(ready.status.device_status, Some(given.clone()));
    }
}
