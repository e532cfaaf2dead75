//! Tables of [`plan`](super::plan::plan).

use std::sync::Arc;

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance};
use ferrovirt_core::conditions::Condition;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{Effect, Observed, Plan, fail, plan};

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().unwrap()
}

fn vm(strategy: &str, status: Value) -> VirtualMachine {
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "x", "namespace": "n", "uid": "vm", "generation": 2,
            "finalizers": ["kubevirt.io/virtualMachineControllerFinalize"]},
        "spec": {"runStrategy": strategy, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"domain": {"devices": {}}, "volumes": [{"name": "root", "emptyDisk": {"capacity": "1Gi"}}]}}},
        "status": status,
    }))
    .unwrap()
}

fn vmi(phase: &str, extra: Value) -> VirtualMachineInstance {
    let mut status = json!({"phase": phase,
        "phaseTransitionTimestamps": [{"phase": phase, "phaseTransitionTimestamp": "2026-01-01T00:00:59Z"}]});
    if let (Value::Object(status), Value::Object(extra)) = (&mut status, extra) {
        status.extend(extra);
    }
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "x", "namespace": "n", "uid": "u",
            "annotations": {"kubevirt.io/vm-generation": "2"},
            "finalizers": ["kubevirt.io/virtualMachineControllerFinalize", "kubevirt.io/foregroundDeleteVirtualMachine"]},
        "spec": {"domain": {"devices": {}}}, "status": status,
    }))
    .unwrap()
}

fn observed(vm: VirtualMachine, vmi: Option<VirtualMachineInstance>) -> Observed {
    Observed {
        vm: Arc::new(vm),
        vmi: vmi.map(Arc::new),
        orphan: None,
        started: None,
        unbound_claims: false,
        live_update: true,
        jitter: 0.0,
    }
}

fn effects(plan: &Plan) -> String {
    let names = plan.effects.iter().map(|effect| match effect {
        Effect::SetFinalizers { new, .. } => format!("finalizers({})", new.len()),
        Effect::CreateVmi { vmi, .. } => format!("create{}", vmi.spec.start_strategy.as_deref().unwrap_or_default()),
        Effect::AdoptVmi(vmi) => format!("adopt({})", vmi.metadata.uid.as_deref().unwrap_or_default()),
        Effect::UpdateVmi(operations) => format!("update({})", operations.len()),
        Effect::DeleteVmi { uid } => format!("delete({uid})"),
        Effect::ReleaseVmi { new, .. } => format!("release({})", new.len()),
        Effect::TurnOn => "on".to_owned(),
    });
    names.collect::<Vec<_>>().join(" ")
}

fn printable(plan: &Plan) -> &str {
    plan.status.printable_status.as_deref().unwrap_or_default()
}

fn dying(mut vmi: VirtualMachineInstance) -> VirtualMachineInstance {
    vmi.metadata.deletion_timestamp = serde_json::from_value(json!(now())).unwrap();
    vmi
}

#[test]
#[expect(clippy::too_many_lines, reason = "one row per case")]
fn strategies() {
    let start = json!({"stateChangeRequests": [{"action": "Start"}]});
    let paused = json!({"stateChangeRequests": [{"action": "Start", "data": {"paused": "true"}}]});
    let stop = json!({"stateChangeRequests": [{"action": "Stop", "uid": "u"}, {"action": "Start"}]});
    let looping = json!({"startFailure": {"consecutiveFailCount": 1, "lastFailedVMIUID": "old",
        "retryAfterTimestamp": "2026-01-01T00:01:10Z"}});
    let none = Value::Null;
    let live = || Some(vmi("Running", json!({})));
    for (strategy, status, vmi, want_effects, want_printable) in [
        ("Always", &none, None, "create", "Stopped"),
        ("Always", &looping, None, "", "CrashLoopBackOff"),
        ("Always", &none, live(), "", "Running"),
        ("Always", &stop, live(), "delete(u)", "Running"),
        ("Always", &stop, live().map(dying), "", "Stopping"),
        (
            "Always",
            &none,
            Some(vmi(
                "Succeeded",
                json!({"phaseTransitionTimestamps": [{"phase": "Running"}]}),
            )),
            "delete(u)",
            "Stopped",
        ),
        (
            "Always",
            &none,
            Some(dying(vmi("Failed", json!({})))),
            "release(1)",
            "Stopped",
        ),
        ("Manual", &none, None, "", "Stopped"),
        ("Manual", &paused, None, "createPaused", "Stopped"),
        ("Manual", &start, live(), "", "Running"),
        ("Halted", &none, live(), "delete(u)", "Running"),
        ("Halted", &paused, None, "on", "Stopped"),
        ("RerunOnFailure", &none, None, "create", "Stopped"),
        (
            "Once",
            &none,
            Some(vmi(
                "Succeeded",
                json!({"phaseTransitionTimestamps": [{"phase": "Running"}]}),
            )),
            "",
            "Stopped",
        ),
        (
            "Always",
            &none,
            Some(vmi(
                "Scheduling",
                json!({"conditions": [
            {"type": "Synchronized", "status": "False", "reason": "ErrImagePull"}]}),
            )),
            "",
            "ErrImagePull",
        ),
        (
            "Always",
            &none,
            Some(vmi(
                "Scheduling",
                json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}),
            )),
            "",
            "ErrorUnschedulable",
        ),
        (
            "Always",
            &none,
            Some(vmi(
                "Running",
                json!({"conditions": [{"type": "Paused", "status": "True"}]}),
            )),
            "",
            "Paused",
        ),
    ] {
        let plan = plan(&observed(vm(strategy, status.clone()), vmi), now());
        assert_eq!(
            (effects(&plan).as_str(), printable(&plan)),
            (want_effects, want_printable),
            "{strategy} {status}"
        );
    }
}

#[test]
fn a_failed_start_is_counted_before_its_vmi_goes() {
    let failed = vmi("Failed", json!({}));
    let first = plan(&observed(vm("Always", Value::Null), Some(failed.clone())), now());
    assert_eq!(effects(&first), "");
    let failure = first.status.start_failure.clone().unwrap();
    assert_eq!(failure.consecutive_fail_count, Some(1));
    assert_eq!(printable(&first), "CrashLoopBackOff");
    let status = serde_json::to_value(&first.status).unwrap();
    let second = plan(&observed(vm("Always", status.clone()), Some(failed)), now());
    assert_eq!(
        (effects(&second).as_str(), second.status.start_failure.as_ref()),
        ("delete(u)", Some(&failure))
    );
    let third = plan(&observed(vm("Always", status), None), now());
    assert_eq!(effects(&third), "");
    assert_eq!(third.requeue.unwrap().as_secs(), 10);
}

#[test]
fn a_failed_rerun_queues_its_own_start_first() {
    let failed = vmi("Failed", json!({"phaseTransitionTimestamps": [{"phase": "Running"}]}));
    let old = json!({"runStrategy": "RerunOnFailure"});
    let first = plan(&observed(vm("RerunOnFailure", old), Some(failed.clone())), now());
    assert_eq!(
        (effects(&first).as_str(), first.status.state_change_requests.len()),
        ("", 1)
    );
    let status = serde_json::to_value(&first.status).unwrap();
    assert_eq!(
        effects(&plan(
            &observed(vm("RerunOnFailure", status.clone()), Some(failed)),
            now()
        )),
        "delete(u)"
    );
    assert_eq!(
        effects(&plan(&observed(vm("RerunOnFailure", status), None), now())),
        "create"
    );
}

#[test]
fn requests_that_came_true_leave() {
    let restart = json!({"stateChangeRequests": [{"action": "Stop", "uid": "old"}, {"action": "Start"}]});
    let done = plan(
        &observed(vm("Manual", restart.clone()), Some(vmi("Pending", json!({})))),
        now(),
    );
    assert!(done.status.state_change_requests.is_empty());
    let half = plan(&observed(vm("Manual", restart), None), now());
    assert_eq!(
        (effects(&half).as_str(), half.status.state_change_requests.len()),
        ("create", 1)
    );
}

#[test]
fn deletion_waits_for_the_vmi() {
    let mut leaving = vm("Always", Value::Null);
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!(now())).unwrap();
    let live = vmi("Running", json!({}));
    for (vmi, want) in [
        (Some(live.clone()), "delete(u)"),
        (Some(dying(live)), ""),
        (Some(dying(vmi("Succeeded", json!({})))), "release(1)"),
        (None, "finalizers(0)"),
    ] {
        let plan = plan(&observed(leaving.clone(), vmi), now());
        assert_eq!((effects(&plan).as_str(), printable(&plan)), (want, "Terminating"));
    }
    leaving.metadata.finalizers.as_mut().unwrap().push("orphan".to_owned());
    let plan = plan(&observed(leaving, Some(vmi("Running", json!({})))), now());
    assert_eq!(effects(&plan), "finalizers(1)");
}

#[test]
fn the_vmi_is_the_template_with_what_ties_it_to_the_vm() {
    let mut fresh = vm("Always", Value::Null);
    fresh.metadata.finalizers = None;
    let plan = plan(&observed(fresh, None), now());
    assert_eq!(effects(&plan), "finalizers(1) create");
    let Some(Effect::CreateVmi { revision, vmi }) = plan.effects.last() else {
        panic!()
    };
    assert_eq!(revision.metadata.name.as_deref(), Some("revision-start-vm-vm-2"));
    insta::assert_yaml_snapshot!(vmi);
}

#[test]
fn a_changed_template_asks_for_a_restart() {
    let old = vm("Always", Value::Null);
    let mut changed = old.clone();
    changed.metadata.generation = Some(3);
    changed.spec.template.spec.as_mut().unwrap().hostname = Some("new".to_owned());
    let kinds = |plan: &Plan| -> Vec<String> { plan.status.conditions.iter().map(|c| c.kind().to_owned()).collect() };
    let with = |vm, vmi| Observed {
        started: Some(Arc::new(old.spec.clone())),
        ..observed(vm, vmi)
    };
    let required = plan(&with(changed.clone(), Some(vmi("Running", json!({})))), now());
    assert_eq!(kinds(&required), ["Ready", "RestartRequired"]);
    assert_eq!(
        (required.status.observed_generation, required.status.desired_generation),
        (Some(2), Some(3))
    );
    let stopped = plan(&with(changed, None), now());
    assert_eq!(kinds(&stopped), ["Ready"]);
    let mut same = old.clone();
    same.metadata.generation = Some(3);
    let same = plan(&with(same, Some(vmi("Running", json!({})))), now());
    assert_eq!(kinds(&same), ["Ready"]);
    assert_eq!(same.status.observed_generation, Some(3));
}

#[test]
fn the_rollout_strategy_says_what_reaches_a_running_vmi() {
    let old = vm("Always", Value::Null);
    let selected = |vm: &mut VirtualMachine| {
        let spec = vm.spec.template.spec.as_mut().unwrap();
        spec.node_selector = [("disk".to_owned(), "ssd".to_owned())].into();
    };
    let labelled = |vm: &mut VirtualMachine| {
        let meta = vm.spec.template.metadata.as_mut().unwrap();
        meta.labels = Some([("app".to_owned(), "mail".to_owned())].into());
    };
    let mut moved = vmi("Running", json!({}));
    moved.spec.node_selector = [("disk".to_owned(), "ssd".to_owned())].into();
    let live = vmi("Running", json!({}));
    let changes: [&dyn Fn(&mut VirtualMachine); 2] = [&selected, &labelled];
    for (change, vmi, live_update, want_effects, restart, seen) in [
        (0, &live, true, "update(1)", false, 3),
        (0, &moved, true, "", false, 3),
        (0, &live, false, "", true, 2),
        (0, &dying(live.clone()), true, "", false, 3),
        (1, &live, true, "", false, 2),
        (1, &live, false, "", false, 2),
    ] {
        let mut changed = old.clone();
        changed.metadata.generation = Some(3);
        changes[change](&mut changed);
        let plan = plan(
            &Observed {
                started: Some(Arc::new(old.spec.clone())),
                live_update,
                ..observed(changed, Some(vmi.clone()))
            },
            now(),
        );
        let kinds = plan.status.conditions.iter().map(Condition::kind);
        let required = kinds.into_iter().any(|kind| kind == "RestartRequired");
        assert_eq!(
            (effects(&plan).as_str(), required, plan.status.observed_generation),
            (want_effects, restart, Some(seen)),
            "{change} {live_update}"
        );
    }
}

#[test]
fn a_vmi_of_the_same_name_that_is_nobodys_becomes_the_vms() {
    for strategy in ["Always", "Manual", "Halted"] {
        let with = |vm, orphan| Observed {
            orphan: Some(Arc::new(orphan)),
            ..observed(vm, None)
        };
        let orphan = vmi("Running", json!({}));
        let adopted = plan(&with(vm(strategy, Value::Null), orphan.clone()), now());
        assert_eq!(effects(&adopted), "adopt(u)", "{strategy}");
        // It goes, and is not in the way then.
        let dead = plan(&with(vm(strategy, Value::Null), dying(orphan.clone())), now());
        assert_eq!(effects(&dead), "", "{strategy}");
        let mut leaving = vm(strategy, Value::Null);
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!(now())).unwrap();
        assert_eq!(effects(&plan(&with(leaving, orphan), now())), "finalizers(0)");
    }
}

#[test]
fn a_failure_that_lasts_changes_nothing_and_goes_with_its_cause() {
    let told = json!({"conditions": [{"type": "Failure", "status": "True", "reason": "FailedCreate", "message": "no",
        "lastTransitionTime": "2026-01-01T00:00:30Z"}]});
    let failed = vm("Always", told);
    let mut retried = plan(&observed(failed.clone(), None), now());
    assert_eq!(effects(&retried), "create");
    let before = retried.status.clone();
    fail(&mut retried.status, &failed, ("FailedCreate", "no"), now());
    assert_eq!(retried.status, before);
    let failure = |plan: &Plan| {
        let list = plan.status.conditions.iter();
        let found = list.clone().find(|c| c.kind() == "Failure");
        found.map(|c| (c.reason().to_owned(), c.transition().unwrap().0.to_string()))
    };
    let since = "2026-01-01T00:00:30Z".to_owned();
    assert_eq!(failure(&retried), Some(("FailedCreate".to_owned(), since.clone())));
    let mut created = plan(&observed(failed.clone(), Some(vmi("Pending", json!({})))), now());
    assert_eq!(failure(&created), None);
    fail(&mut created.status, &failed, ("FailedDelete", "never"), now());
    assert_eq!(failure(&created), Some(("FailedDelete".to_owned(), since)));
}

#[test]
fn why_the_last_start_failed_is_told_until_one_succeeds() {
    let said = json!({"reason": "GuestStartFailed", "conditions": [{"type": "Synchronized", "status": "False",
        "reason": "Synchronizing with the Domain failed.", "message": "no such disk"}]});
    let told = |plan: &Plan| {
        let found = plan.status.conditions.iter().find(|c| c.kind() == "Failure");
        found.map(|c| format!("{}: {}", c.reason(), c.message()))
    };
    let why = "GuestStartFailed: virtual machine instance x ended before its guest ran: no such disk";
    let first = plan(&observed(vm("Always", Value::Null), Some(vmi("Failed", said))), now());
    assert_eq!(told(&first).as_deref(), Some(why));
    let mut status = serde_json::to_value(&first.status).unwrap();
    let waiting = plan(&observed(vm("Always", status.clone()), None), now());
    assert_eq!(
        (printable(&waiting), told(&waiting).as_deref()),
        ("CrashLoopBackOff", Some(why))
    );
    status["startFailure"]["retryAfterTimestamp"] = json!("2026-01-01T00:00:00Z");
    let again = plan(&observed(vm("Always", status.clone()), None), now());
    assert_eq!(
        (effects(&again).as_str(), told(&again).as_deref()),
        ("create", Some(why))
    );
    let starting = observed(vm("Always", status.clone()), Some(vmi("Scheduling", json!({}))));
    assert_eq!(told(&plan(&starting, now())).as_deref(), Some(why));
    let running = observed(vm("Always", status.clone()), Some(vmi("Running", json!({}))));
    assert_eq!(told(&plan(&running, now())), None);
    assert_eq!(told(&plan(&observed(vm("Halted", status), None), now())), None);
}

#[test]
fn why_a_starting_vm_is_not_ready_can_wait() {
    let first = plan(
        &observed(vm("Always", Value::Null), Some(vmi("Pending", json!({})))),
        now(),
    );
    assert_eq!(printable(&first), "Starting");
    let current = vm("Always", serde_json::to_value(&first.status).unwrap());
    let ready = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "GuestNotRunning"}]});
    let soft = plan(&observed(current.clone(), Some(vmi("Scheduled", ready.clone()))), now());
    assert_eq!(soft.status, first.status);
    assert_eq!(soft.requeue.unwrap().as_secs(), 1);
    let later = now() + jiff::SignedDuration::from_secs(2);
    assert_ne!(
        plan(&observed(current.clone(), Some(vmi("Scheduled", ready))), later).status,
        first.status
    );
    let running = plan(&observed(current, Some(vmi("Running", json!({})))), now());
    assert_eq!(printable(&running), "Running");
}
