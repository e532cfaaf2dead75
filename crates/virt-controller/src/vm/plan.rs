//! What should happen to a VM and its VMI. Pure.

use std::sync::Arc;
use std::time::Duration;

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance, VirtualMachineSpec, VirtualMachineStatus};
use ferrovirt_core::conditions::{self, Desired};
use ferrovirt_core::names;
use ferrovirt_core::vm::printable::{Facts, printable_status};
use ferrovirt_core::vm::strategy::{Situation, Step, decide, mirror};
use ferrovirt_core::vm::{RunStrategy, backoff, conditions as rules, requests, template};
use ferrovirt_core::vmi::{VmiFacts, conditions as vmi_rules};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::Value;

use super::render;

/// How long a change that only concerns the reason why a starting VM is not ready may wait to be written: it is
/// overtaken by Running.
pub const SOFT_DELAY: Duration = Duration::from_secs(2);

/// Reason of `Failure`: the VMI could not be created.
pub const FAILED_CREATE: &str = "FailedCreate";
/// Reason of `Failure`: the VMI could not be deleted.
pub const FAILED_DELETE: &str = "FailedDelete";
const INVALID_RUN_STRATEGY: &str = "InvalidRunStrategy";
/// The reasons of `Failure` that go when there is nothing more to do.
const UNDONE: [&str; 3] = [FAILED_CREATE, FAILED_DELETE, INVALID_RUN_STRATEGY];

/// All that a decision about a VM depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The VM.
    pub vm: Arc<VirtualMachine>,
    /// Its VMI.
    pub vmi: Option<Arc<VirtualMachineInstance>>,
    /// A VMI of its name that is nobody's.
    pub orphan: Option<Arc<VirtualMachineInstance>>,
    /// The spec that the VMI was started with, if the VM's has changed since.
    pub started: Option<Arc<VirtualMachineSpec>>,
    /// A claim that the VM's volumes name exists and is not bound.
    pub unbound_claims: bool,
    /// Running VMIs are changed where that is possible.
    pub live_update: bool,
    /// A random number below 1.
    pub jitter: f64,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Replace the VM's finalizers.
    SetFinalizers {
        /// What was there.
        old: Vec<String>,
        /// What should be.
        new: Vec<String>,
    },
    /// Keep the spec for comparison, then create the VMI.
    CreateVmi {
        /// The spec.
        revision: Box<ControllerRevision>,
        /// The VMI.
        vmi: Box<VirtualMachineInstance>,
    },
    /// Make a VMI that is nobody's this VM's.
    AdoptVmi(Arc<VirtualMachineInstance>),
    /// Change the spec of the running VMI.
    UpdateVmi(Vec<Value>),
    /// Delete the VMI.
    DeleteVmi {
        /// Its UID: a VMI of the same name that came later is not meant.
        uid: String,
    },
    /// Let the VMI go.
    ReleaseVmi {
        /// Its finalizers.
        old: Vec<String>,
        /// What remains.
        new: Vec<String>,
    },
    /// Change the VM's run strategy to Always.
    TurnOn,
}

/// What to do: effects in order, then the status.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order; the first that fails ends the plan.
    pub effects: Vec<Effect>,
    /// The whole status as it is before the effects.
    pub status: VirtualMachineStatus,
    /// Look again then, even if nothing changes.
    pub requeue: Option<Duration>,
}

/// Decides.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let vm = &*observed.vm;
    let old = vm.status.clone().unwrap_or_default();
    let facts = observed.vmi.as_deref().map(VmiFacts::of);
    let strategy = RunStrategy::of(&vm.spec);
    let mut status = old.clone();
    status.state_change_requests = requests::settle(&old.state_change_requests, facts.as_ref());
    let mut requeue = None;
    let mut effects = Vec::new();
    let deleting = vm.metadata.deletion_timestamp.is_some();
    let orphan = observed.orphan.as_ref().filter(|_| observed.vmi.is_none());
    match &strategy {
        _ if deleting => remove(observed, &mut effects),
        Err(error) => {
            let desired = Desired::new(rules::FAILURE, true, INVALID_RUN_STRATEGY, error.to_string());
            conditions::set(&mut status.conditions, &desired, now);
        }
        // What becomes of it is decided when it is the VM's.
        Ok(_) if orphan.is_some() => {
            let alive = orphan.filter(|vmi| vmi.metadata.deletion_timestamp.is_none());
            effects.extend(alive.map(|vmi| Effect::AdoptVmi(Arc::clone(vmi))));
        }
        Ok(strategy) => {
            let jitter = observed.jitter;
            status.start_failure =
                backoff::start_failure(old.start_failure.as_ref(), *strategy, facts.as_ref(), now, jitter);
            let mirrored = old.run_strategy.as_deref().and_then(RunStrategy::parse);
            let retry_after = status
                .start_failure
                .as_ref()
                .and_then(|f| f.retry_after_timestamp.as_ref());
            let step = decide(&Situation {
                strategy: *strategy,
                vmi: facts.as_ref(),
                requests: &status.state_change_requests,
                mirrored,
                retry_after: retry_after.map(|t| t.0),
                now,
            });
            let strategy = mirror(*strategy, mirrored, facts.is_some(), &step);
            status.run_strategy = strategy.map(|s| s.as_str().to_owned());
            requeue = step_effects(observed, step, &old, &mut status, &mut effects, now);
        }
    }
    release(observed, facts.as_ref(), &mut effects);
    update(observed, facts.as_ref(), &mut effects);
    if strategy.is_ok() || deleting {
        settle_failure(observed, facts.as_ref(), &effects, &mut status, now);
    }
    describe(observed, facts.as_ref(), strategy.ok(), &mut status, now);
    if let Some(wait) = postpone(observed, facts.as_ref(), &old, &status, now) {
        status = old;
        requeue = Some(requeue.map_or(wait, |r| r.min(wait)));
    }
    Plan {
        effects,
        status,
        requeue,
    }
}

fn step_effects(
    observed: &Observed,
    step: Step,
    old: &VirtualMachineStatus,
    status: &mut VirtualMachineStatus,
    effects: &mut Vec<Effect>,
    now: Timestamp,
) -> Option<Duration> {
    match step {
        Step::Nothing => {}
        Step::Create { paused } => {
            let finalizers = observed.vm.metadata.finalizers.clone().unwrap_or_default();
            if !finalizers.iter().any(|f| f == names::VM_FINALIZER) {
                let mut new = finalizers.clone();
                new.push(names::VM_FINALIZER.to_owned());
                effects.push(Effect::SetFinalizers { old: finalizers, new });
            }
            effects.push(Effect::CreateVmi {
                revision: Box::new(render::revision(&observed.vm)),
                vmi: Box::new(render::vmi(&observed.vm, paused)),
            });
        }
        // Rounded up: the wait must be over then.
        Step::Wait { until } => {
            let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
            return Some(left + Duration::from_millis(1));
        }
        // A failed start is counted in the status before the VMI that tells of it goes.
        Step::Delete if status.start_failure != old.start_failure => {}
        Step::Delete => {
            let uid = observed
                .vmi
                .as_ref()
                .and_then(|v| v.metadata.uid.clone())
                .unwrap_or_default();
            effects.push(Effect::DeleteVmi { uid });
        }
        Step::QueueStart => status.state_change_requests.push(requests::start(false)),
        Step::TurnOn => effects.push(Effect::TurnOn),
    }
    None
}

/// Deletes the VMI of a VM that is being deleted; then lets the VM go.
fn remove(observed: &Observed, effects: &mut Vec<Effect>) {
    let old = observed.vm.metadata.finalizers.clone().unwrap_or_default();
    let orphan = old.iter().any(|f| f == "orphan");
    match &observed.vmi {
        Some(vmi) if !orphan => {
            if vmi.metadata.deletion_timestamp.is_none() {
                effects.push(Effect::DeleteVmi {
                    uid: vmi.metadata.uid.clone().unwrap_or_default(),
                });
            }
        }
        _ => {
            let new: Vec<String> = old.iter().filter(|f| *f != names::VM_FINALIZER).cloned().collect();
            if new != old {
                effects.push(Effect::SetFinalizers { old, new });
            }
        }
    }
}

/// Lets go of a VMI that is being deleted and done.
fn release(observed: &Observed, facts: Option<&VmiFacts>, effects: &mut Vec<Effect>) {
    let (Some(vmi), Some(facts)) = (&observed.vmi, facts) else {
        return;
    };
    let old = vmi.metadata.finalizers.clone().unwrap_or_default();
    let held = |name: &str| old.iter().any(|f| f == name);
    let done = facts.phase.is_final() || !held(names::VMI_FINALIZER);
    if facts.deleting && done && held(names::VM_FINALIZER) {
        let new = old.iter().filter(|f| *f != names::VM_FINALIZER).cloned().collect();
        effects.push(Effect::ReleaseVmi { old, new });
    }
}

/// Changes the running VMI where its VM's template has changed since, as far as that is possible.
fn update(observed: &Observed, facts: Option<&VmiFacts>, effects: &mut Vec<Effect>) {
    let live = observed.live_update && facts.is_some_and(VmiFacts::is_live) && effects.is_empty();
    let (true, Some(_), Some(vmi)) = (live, &observed.started, &observed.vmi) else {
        return;
    };
    let template = observed.vm.spec.template.spec.as_ref();
    let operations = template.map(|template| template::live_changes(&vmi.spec, template));
    if let Some(operations) = operations.filter(|list| !list.is_empty()) {
        effects.push(Effect::UpdateVmi(operations));
    }
}

/// `Failure`: why the last start failed, until one succeeds. That something could not be done stays while it is still
/// to be done.
fn settle_failure(
    observed: &Observed,
    facts: Option<&VmiFacts>,
    effects: &[Effect],
    status: &mut VirtualMachineStatus,
    now: Timestamp,
) {
    let counted = status.start_failure.as_ref();
    let last = counted.and_then(|failure| failure.last_failed_vmiuid.as_deref());
    let ended = facts.filter(|f| f.phase.is_final() && last == Some(f.uid.as_str()));
    if let (Some(_), Some(vmi)) = (ended, &observed.vmi) {
        conditions::set(&mut status.conditions, &rules::failed_start(vmi), now);
        return;
    }
    let reason = conditions::find(&status.conditions, rules::FAILURE).and_then(|c| c.reason.as_deref());
    let undone = reason.is_some_and(|reason| UNDONE.contains(&reason));
    if (undone && effects.is_empty()) || (!undone && counted.is_none()) {
        conditions::remove(&mut status.conditions, rules::FAILURE);
    }
}

/// Makes a status say what could not be done. A failure that lasts changes nothing.
pub fn fail(status: &mut VirtualMachineStatus, vm: &VirtualMachine, (reason, message): (&str, &str), now: Timestamp) {
    let before = vm
        .status
        .as_ref()
        .and_then(|s| conditions::find(&s.conditions, rules::FAILURE));
    if let (None, Some(before)) = (conditions::find(&status.conditions, rules::FAILURE), before) {
        status.conditions.push(before.clone());
    }
    let desired = Desired::new(rules::FAILURE, true, reason, message);
    conditions::set(&mut status.conditions, &desired, now);
}

/// The fields that follow from what is there.
fn describe(
    observed: &Observed,
    facts: Option<&VmiFacts>,
    strategy: Option<RunStrategy>,
    status: &mut VirtualMachineStatus,
    now: Timestamp,
) {
    let vm = &*observed.vm;
    let vmi = observed.vmi.as_deref();
    let theirs = vmi
        .and_then(|v| v.status.as_ref())
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let failed = |kind: &str| conditions::find(theirs, kind).filter(|c| c.status == conditions::FALSE);
    let reason = |kind: &str| failed(kind).and_then(|c| c.reason.as_deref());
    let printable = printable_status(&Facts {
        vm_deleting: vm.metadata.deletion_timestamp.is_some(),
        strategy,
        vmi: facts,
        paused: conditions::is_true(theirs, vmi_rules::PAUSED),
        sync_failure: reason(vmi_rules::SYNCHRONIZED),
        unschedulable: reason(vmi_rules::POD_SCHEDULED) == Some("Unschedulable"),
        waiting_for_binding: observed.unbound_claims && facts.is_some_and(VmiFacts::is_live),
        start_failures: status
            .start_failure
            .as_ref()
            .and_then(|f| f.consecutive_fail_count)
            .unwrap_or(0),
        ..Facts::default()
    });
    status.printable_status = Some(printable.as_str().to_owned());
    status.created = Some(vmi.is_some());
    status.ready = Some(conditions::is_true(theirs, vmi_rules::READY));
    rules::mirror(&mut status.conditions, vmi, now);

    let changed = observed.started.as_deref().filter(|_| vmi.is_some());
    let live = observed.live_update;
    if changed.is_some_and(|started| template::needs_restart(started, &vm.spec, live)) {
        conditions::set(&mut status.conditions, &rules::restart_required(), now);
    } else {
        conditions::remove(&mut status.conditions, rules::RESTART_REQUIRED);
    }
    let met = changed.is_none_or(|started| template::is_met(started, &vm.spec, live));
    status.observed_generation = if met {
        vm.metadata.generation
    } else {
        vmi.and_then(started_generation)
    };
    status.desired_generation = vm.metadata.generation;
    status.volume_snapshot_statuses = rules::volume_snapshot_statuses(&vm.spec);
}

/// Generation of the VM that a VMI was created from.
#[must_use]
pub fn started_generation(vmi: &VirtualMachineInstance) -> Option<i64> {
    vmi.metadata
        .annotations
        .as_ref()?
        .get(names::VM_GENERATION_ANNOTATION)?
        .parse()
        .ok()
}

/// How long a status that says nothing new may wait, if it may.
fn postpone(
    observed: &Observed,
    facts: Option<&VmiFacts>,
    old: &VirtualMachineStatus,
    new: &VirtualMachineStatus,
    now: Timestamp,
) -> Option<Duration> {
    let facts = facts.filter(|f| f.is_live() && !f.was_running)?;
    if old == new || old.created != Some(true) {
        return None;
    }
    let hard = |status: &VirtualMachineStatus| {
        let mut status = status.clone();
        for c in status.conditions.iter_mut().filter(|c| c.r#type == rules::READY) {
            (c.reason, c.message, c.last_transition_time) = (None, None, None);
        }
        status
    };
    if hard(old) != hard(new) {
        return None;
    }
    let status = observed.vmi.as_ref()?.status.as_ref()?;
    let entered = status.phase_transition_timestamps.iter().rev();
    let entered = entered
        .filter(|t| t.phase.as_deref() == Some(facts.phase.as_str()))
        .find_map(|t| {
            let time = t.phase_transition_timestamp.as_ref()?;
            Some(time.0)
        })?;
    let age = Duration::try_from(now.duration_since(entered)).unwrap_or_default();
    SOFT_DELAY.checked_sub(age).filter(|left| !left.is_zero())
}
