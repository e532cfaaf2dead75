//! `start`, `stop` and `restart`: what they do to a VM in which state, or why not.

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance, VirtualMachineStateChangeRequest};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::conditions::MANUAL_RECOVERY_REQUIRED;
use super::requests;
use super::strategy::RunStrategy;
use crate::conditions;
use crate::refusal::Refusal;
use crate::vmi::{Phase, VmiFacts};

/// A JSON patch to send. It tests what the decision was based on, so a 409 or 422 answer means: read and decide again.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Of the VirtualMachine.
    PatchVm(Value),
    /// Of the VirtualMachine's `/status`.
    PatchVmStatus(Value),
    /// Of the VirtualMachineInstance.
    PatchVmi(Value),
}

const UNDERWAY: &str = "unable to complete request: stop/start already underway";
const NOT_RUNNING: &str = "VM is not running";

/// A VM with its VMI, read for a decision.
struct Subject<'a> {
    vm: &'a VirtualMachine,
    vmi: Option<&'a VirtualMachineInstance>,
    facts: Option<VmiFacts>,
    strategy: RunStrategy,
}

impl<'a> Subject<'a> {
    fn read(vm: &'a VirtualMachine, vmi: Option<&'a VirtualMachineInstance>) -> Result<Self, Refusal> {
        let strategy = RunStrategy::of(&vm.spec).map_err(|e| Refusal::bad_request(e.to_string()))?;
        Ok(Self {
            vm,
            vmi,
            facts: vmi.map(VmiFacts::of),
            strategy,
        })
    }

    fn conflict<T>(&self, why: &str) -> Result<T, Refusal> {
        Err(Refusal::conflict(
            "virtualmachine",
            self.vm.metadata.name.as_deref().unwrap_or_default(),
            why,
        ))
    }

    fn phase(&self) -> Option<Phase> {
        self.facts.as_ref().map(|f| f.phase)
    }

    /// The VMI, unless it is final.
    fn unfinished(&self) -> Option<&VmiFacts> {
        self.facts.as_ref().filter(|f| !f.phase.is_final())
    }
}

/// `start`. With `paused` the guest starts paused.
///
/// # Errors
/// The answer that the client gets.
pub fn start(vm: &VirtualMachine, vmi: Option<&VirtualMachineInstance>, paused: bool) -> Result<Vec<Effect>, Refusal> {
    let subject = Subject::read(vm, vmi)?;
    if subject.unfinished().is_some_and(|f| f.phase != Phase::Unknown) {
        return subject.conflict("VM is already running");
    }
    if vm
        .status
        .as_ref()
        .is_some_and(|s| conditions::is_true(&s.conditions, MANUAL_RECOVERY_REQUIRED))
    {
        return subject.conflict("VM recovery required: a volume migration failed and left volumes unpopulated");
    }
    let strategy = subject.strategy;
    match strategy {
        RunStrategy::Always | RunStrategy::Once | RunStrategy::WaitAsReceiver => {
            subject.conflict(&format!("{strategy} does not support manual start requests"))
        }
        RunStrategy::Halted if paused => Ok(vec![queue(&subject, vec![requests::start(true)])?]),
        RunStrategy::Halted => Ok(vec![turn(vm, true)]),
        RunStrategy::RerunOnFailure if subject.phase() == Some(Phase::Failed) => {
            subject.conflict(&format!("{strategy} does not support starting VM from failed state"))
        }
        RunStrategy::RerunOnFailure | RunStrategy::Manual => {
            let stop = subject.facts.iter().map(|old| requests::stop(&old.uid));
            let all = stop.chain([requests::start(paused)]).collect();
            Ok(vec![queue(&subject, all)?])
        }
    }
}

/// `stop`. A `grace_period` in seconds replaces that of the VMI first.
///
/// # Errors
/// The answer that the client gets.
pub fn stop(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    grace_period: Option<i64>,
) -> Result<Vec<Effect>, Refusal> {
    let subject = Subject::read(vm, vmi)?;
    if grace_period.is_some_and(|g| g < 0) {
        return Err(Refusal::bad_request("gracePeriod has to be greater or equal to 0"));
    }
    let live = subject.unfinished();
    let shorten: Vec<Effect> = match (subject.vmi, grace_period) {
        (Some(vmi), Some(seconds)) if live.is_some() => vec![grace(vmi, seconds)],
        _ => vec![],
    };
    let strategy = subject.strategy;
    match (strategy, live) {
        (RunStrategy::RerunOnFailure | RunStrategy::Manual | RunStrategy::Halted, None) => {
            subject.conflict(NOT_RUNNING)
        }
        (RunStrategy::Halted, Some(_)) => {
            let current = subject
                .vmi
                .and_then(|v| v.spec.termination_grace_period_seconds)
                .unwrap_or(30);
            if grace_period.is_none_or(|g| g >= current) {
                let why = format!("{strategy} only supports manual stop requests with a shorter graceperiod");
                return subject.conflict(&why);
            }
            Ok(shorten)
        }
        (RunStrategy::RerunOnFailure | RunStrategy::Manual, Some(live)) => {
            let mut effects = shorten;
            effects.push(queue(&subject, vec![requests::stop(&live.uid)])?);
            Ok(effects)
        }
        (RunStrategy::Always | RunStrategy::Once | RunStrategy::WaitAsReceiver, _) => {
            let mut effects = shorten;
            effects.push(turn(vm, false));
            Ok(effects)
        }
    }
}

/// `restart`. A grace period of 0 forces it.
///
/// # Errors
/// The answer that the client gets.
pub fn restart(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    grace_period: Option<i64>,
) -> Result<Vec<Effect>, Refusal> {
    let subject = Subject::read(vm, vmi)?;
    match grace_period {
        Some(seconds) if seconds > 0 => {
            return Err(Refusal::bad_request(
                "For force restart, only gracePeriod=0 is supported for now",
            ));
        }
        Some(seconds) if seconds < 0 => {
            return Err(Refusal::bad_request("gracePeriod has to be greater or equal to 0"));
        }
        _ => {}
    }
    let strategy = subject.strategy;
    if matches!(
        strategy,
        RunStrategy::Halted | RunStrategy::Once | RunStrategy::WaitAsReceiver
    ) {
        return subject.conflict(&format!("{strategy} does not support manual restart requests"));
    }
    // One that has ended makes room for the next, too.
    let Some(current) = &subject.facts else {
        return subject.conflict(NOT_RUNNING);
    };
    let mut effects = vec![queue(
        &subject,
        vec![requests::stop(&current.uid), requests::start(false)],
    )?];
    if let (Some(vmi), Some(_), Some(_)) = (subject.vmi, subject.unfinished(), grace_period) {
        // Not 0: the guest's disks are flushed even when it is not asked.
        effects.insert(0, grace(vmi, 1));
    }
    Ok(effects)
}

/// Puts requests into the queue. Only a lone Stop replaces requests that wait there, and anything replaces Stops once their
/// VMI has ended: the VM is `Stopped` by then, and whoever saw that may start it before its controller has cleared them.
fn queue(subject: &Subject<'_>, all: Vec<VirtualMachineStateChangeRequest>) -> Result<Effect, Refusal> {
    let lone_stop = all.len() == 1 && all[0].action == "Stop";
    let status = subject.vm.status.as_ref();
    let waiting = status.map(|s| s.state_change_requests.as_slice()).unwrap_or_default();
    let stopped = subject.unfinished().is_none() && waiting.iter().all(|request| request.action == "Stop");
    if !waiting.is_empty() && !lone_stop && !stopped {
        return subject.conflict(UNDERWAY);
    }
    let mut ops = same(&subject.vm.metadata);
    let Some(status) = status else {
        ops.push(json!({"op": "add", "path": "/status", "value": {"stateChangeRequests": all}}));
        return Ok(Effect::PatchVmStatus(Value::Array(ops)));
    };
    let path = "/status/stateChangeRequests";
    if waiting.is_empty() {
        ops.push(json!({"op": "add", "path": path, "value": all}));
    } else {
        ops.push(json!({"op": "test", "path": path, "value": waiting}));
        ops.push(json!({"op": "replace", "path": path, "value": all}));
    }
    // A person who starts a VM does not wait for its crash loop's pause.
    if let (false, Some(failure)) = (lone_stop, &status.start_failure) {
        ops.push(json!({"op": "test", "path": "/status/startFailure", "value": failure}));
        ops.push(json!({"op": "remove", "path": "/status/startFailure"}));
    }
    Ok(Effect::PatchVmStatus(Value::Array(ops)))
}

/// The patch of a VM's spec that turns it on (Always) or off (Halted), in the field that the VM uses.
#[must_use]
pub fn turn(vm: &VirtualMachine, on: bool) -> Effect {
    let (path, old, new) = match vm.spec.running {
        Some(running) => ("/spec/running", json!(running), json!(on)),
        None => {
            let new = if on { RunStrategy::Always } else { RunStrategy::Halted };
            ("/spec/runStrategy", json!(vm.spec.run_strategy), json!(new.as_str()))
        }
    };
    Effect::PatchVm(replace(&vm.metadata, path, &old, &new))
}

/// The operation that fails on another object of the same name.
fn same(meta: &ObjectMeta) -> Vec<Value> {
    let uid = meta.uid.iter();
    uid.map(|uid| json!({"op": "test", "path": "/metadata/uid", "value": uid}))
        .collect()
}

/// The patch that changes the value at `path` from `old`, which is null if there is none.
fn replace(meta: &ObjectMeta, path: &str, old: &Value, new: &Value) -> Value {
    let mut ops = same(meta);
    if old.is_null() {
        ops.push(json!({"op": "add", "path": path, "value": new}));
    } else {
        ops.push(json!({"op": "test", "path": path, "value": old}));
        ops.push(json!({"op": "replace", "path": path, "value": new}));
    }
    Value::Array(ops)
}

fn grace(vmi: &VirtualMachineInstance, seconds: i64) -> Effect {
    let path = "/spec/terminationGracePeriodSeconds";
    let old = json!(vmi.spec.termination_grace_period_seconds);
    Effect::PatchVmi(replace(&vmi.metadata, path, &old, &json!(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(strategy: &str, status: Value) -> VirtualMachine {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "x", "uid": "v"},
            "spec": {"runStrategy": strategy, "template": {}}, "status": status
        }))
        .unwrap()
    }

    fn vmi(phase: &str) -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x", "uid": "u"},
            "spec": {"domain": {"devices": {}}}, "status": {"phase": phase}
        }))
        .unwrap()
    }

    /// What a patch changes, which is only ever done to the object that was decided on.
    fn change(patch: &Value) -> &Value {
        let list = patch.as_array().unwrap();
        assert_eq!(
            (&list[0]["op"], &list[0]["path"]),
            (&json!("test"), &json!("/metadata/uid"))
        );
        list.iter().find(|o| o["op"] != "test").unwrap()
    }

    fn outcome(result: &Result<Vec<Effect>, Refusal>) -> String {
        match result {
            Err(refusal) => refusal.code.to_string(),
            Ok(effects) => {
                let kinds = effects.iter().map(|e| match e {
                    Effect::PatchVm(p) => format!("spec={}", change(p)["value"].as_str().unwrap_or_default()),
                    Effect::PatchVmStatus(p) => {
                        let value = change(p);
                        let list = if value["path"] == "/status" {
                            &value["value"]["stateChangeRequests"]
                        } else {
                            &value["value"]
                        };
                        let names: Vec<&str> = list
                            .as_array()
                            .unwrap()
                            .iter()
                            .map(|r| r["action"].as_str().unwrap())
                            .collect();
                        names.join(",")
                    }
                    Effect::PatchVmi(p) => format!("grace={}", change(p)["value"]),
                });
                kinds.collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn a_stop_that_has_come_true_does_not_hold_back_a_start() {
        let stop = json!([{"action": "Stop", "uid": "u"}]);
        let restart = json!([{"action": "Stop", "uid": "u"}, {"action": "Start"}]);
        for (waiting, phase, expected) in [
            (&stop, None, "Start"),
            (&stop, Some("Succeeded"), "Stop,Start"),
            (&stop, Some("Unknown"), "409"),
            (&restart, Some("Succeeded"), "409"),
        ] {
            let vm = vm("Manual", json!({"stateChangeRequests": waiting}));
            let got = start(&vm, phase.map(vmi).as_ref(), false);
            assert_eq!(outcome(&got), expected, "{waiting} {phase:?}");
        }
    }

    #[test]
    fn start_table() {
        for (strategy, phase, paused, expected) in [
            ("Halted", None, false, "spec=Always"),
            ("Halted", None, true, "Start"),
            ("Halted", Some("Running"), false, "409"),
            ("Halted", Some("Succeeded"), false, "spec=Always"),
            ("Always", None, false, "409"),
            ("Once", Some("Failed"), false, "409"),
            ("Manual", None, false, "Start"),
            ("Manual", Some("Running"), false, "409"),
            ("Manual", Some("Failed"), false, "Stop,Start"),
            ("RerunOnFailure", None, true, "Start"),
            ("RerunOnFailure", Some("Failed"), false, "409"),
            ("RerunOnFailure", Some("Succeeded"), false, "Stop,Start"),
        ] {
            let vmi = phase.map(vmi);
            let got = start(&vm(strategy, json!({"created": true})), vmi.as_ref(), paused);
            assert_eq!(outcome(&got), expected, "{strategy} {phase:?}");
        }
    }

    #[test]
    fn stop_table() {
        for (strategy, phase, grace, expected) in [
            ("Halted", None, None, "409"),
            ("Halted", Some("Running"), None, "409"),
            ("Halted", Some("Running"), Some(5), "grace=5"),
            ("Halted", Some("Running"), Some(40), "409"),
            ("Always", None, None, "spec=Halted"),
            ("Always", Some("Running"), None, "spec=Halted"),
            ("Always", Some("Running"), Some(0), "grace=0 spec=Halted"),
            ("Always", Some("Running"), Some(-1), "400"),
            ("Once", Some("Succeeded"), None, "spec=Halted"),
            ("Manual", None, None, "409"),
            ("Manual", Some("Failed"), None, "409"),
            ("Manual", Some("Scheduling"), None, "Stop"),
            ("RerunOnFailure", Some("Running"), Some(3), "grace=3 Stop"),
        ] {
            let vmi = phase.map(vmi);
            let got = stop(&vm(strategy, json!({"created": true})), vmi.as_ref(), grace);
            assert_eq!(outcome(&got), expected, "{strategy} {phase:?} {grace:?}");
        }
    }

    #[test]
    fn restart_table() {
        for (strategy, phase, grace, expected) in [
            ("Halted", Some("Running"), None, "409"),
            ("Once", Some("Running"), None, "409"),
            ("Always", None, None, "409"),
            ("Always", Some("Failed"), None, "Stop,Start"),
            ("Manual", Some("Succeeded"), Some(0), "Stop,Start"),
            ("Always", Some("Running"), None, "Stop,Start"),
            ("Always", Some("Running"), Some(0), "grace=1 Stop,Start"),
            ("Manual", Some("Running"), Some(7), "400"),
            ("RerunOnFailure", Some("Running"), Some(-1), "400"),
        ] {
            let vmi = phase.map(vmi);
            let got = restart(&vm(strategy, json!({"created": true})), vmi.as_ref(), grace);
            assert_eq!(outcome(&got), expected, "{strategy} {phase:?} {grace:?}");
        }
    }

    #[test]
    fn requests_do_not_pile_up() {
        let waiting = json!({"stateChangeRequests": [{"action": "Start"}]});
        let running = vmi("Running");
        assert_eq!(outcome(&start(&vm("Manual", waiting.clone()), None, false)), "409");
        assert_eq!(
            outcome(&restart(&vm("Manual", waiting.clone()), Some(&running), None)),
            "409"
        );
        assert_eq!(outcome(&stop(&vm("Manual", waiting), Some(&running), None)), "Stop");
        assert_eq!(outcome(&start(&vm("Manual", Value::Null), None, false)), "Start");
    }

    #[test]
    fn messages_are_kubevirts() {
        let refusal = start(&vm("Always", Value::Null), None, false).unwrap_err();
        assert_eq!(
            refusal.message,
            "Operation cannot be fulfilled on virtualmachine.kubevirt.io \"x\": Always does not support manual start requests"
        );
    }
}
