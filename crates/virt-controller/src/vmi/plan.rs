//! What should happen to a VMI and its pod. Pure.

use std::sync::Arc;
use std::time::Duration;

use ferrovirt_api::v1::{
    VirtualMachineInstance, VirtualMachineInstancePhaseTransitionTimestamp, VirtualMachineInstanceStatus,
};
use ferrovirt_core::conditions::{self, Desired};
use ferrovirt_core::vmi::phase::{PodView, REASON_POD_ENDED, REASON_POD_GONE, Seen, next_phase};
use ferrovirt_core::vmi::{Phase, conditions as rules, keeps_state};
use ferrovirt_core::{ClusterConfig, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, Pod};

use super::claims::Claims;
use super::devices::{self, Devices};
use super::{network_info, pod, status};
use crate::cache::Entry;
use crate::events::Notice;
use crate::image_volumes::ContainerDisks;
use crate::node::NODE_UNRESPONSIVE;
use crate::{Home, Options};

/// How long a pod may take before users see that the VMI is `Scheduling`: starts that are quicker cost one write less.
/// A pod that has trouble is told of at once.
#[must_use]
pub const fn quick_start(home: Home) -> Duration {
    match home {
        Home::Standalone => Duration::from_millis(300),
        // A scheduler and a kubelet have their say there.
        Home::Cluster => Duration::from_millis(1500),
    }
}
/// How long the node agent has to say how a guest ended whose pod has ended.
pub const HANDLER_TIME: Duration = Duration::from_secs(3);

/// All that a decision about a VMI depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The VMI.
    pub vmi: Arc<VirtualMachineInstance>,
    /// Its claims.
    pub claims: Claims,
    /// What is known of the devices that it has by resource claims.
    pub devices: Devices,
    /// Its pods.
    pub pods: Vec<Entry<Pod>>,
    /// The VM that owns it exists.
    pub owner_exists: bool,
    /// Context ID of its sockets, if it has such.
    pub vsock_cid: Option<u32>,
    /// The cluster's configuration.
    pub config: Arc<ClusterConfig>,
    /// How containerDisks come into pods.
    pub container_disks: ContainerDisks,
    /// Nobody answers for the VMI's node.
    pub node_unresponsive: bool,
    /// How this controller was started.
    pub options: Arc<Options>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Create the pod.
    CreatePod(Box<Pod>),
    /// Create the claim for what of firmware and TPM outlives a stop.
    CreateStateClaim,
    /// Delete a pod.
    DeletePod {
        /// Its name.
        name: String,
        /// Its UID: a pod of the same name that came later is not meant.
        uid: String,
        /// Its grace period.
        grace_seconds: i64,
    },
    /// Set the label that names the VMI's node.
    LabelNode(String),
    /// Set the readiness gate of a pod.
    OpenGate {
        /// Name of the pod.
        name: String,
        /// The guest is not paused.
        open: bool,
    },
    /// Tell the sidecars of a pod which devices are behind the VMI's networks.
    TellNetworks {
        /// Name of the pod.
        name: String,
        /// Value of the annotation.
        info: String,
    },
    /// Let go of a VMI that is done.
    SetFinalizers {
        /// What was there.
        old: Vec<String>,
        /// What remains.
        new: Vec<String>,
    },
}

/// What to do: effects in order, then the status.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order; the first that fails ends the plan.
    pub effects: Vec<Effect>,
    /// The whole status as it should be.
    pub status: VirtualMachineInstanceStatus,
    /// What users should hear of when the status is written.
    pub notice: Option<Notice>,
    /// Look again then, even if nothing changes.
    pub requeue: Option<Duration>,
}

impl Plan {
    /// The VMI fails because its pod is lost, and why that is, is not known.
    #[must_use]
    pub fn loses_pod(&self, observed: &Observed) -> bool {
        let reason = self.status.reason.as_deref();
        !Phase::of(&observed.vmi).is_final()
            && self.status.phase.as_deref() == Some(Phase::Failed.as_str())
            && [Some(REASON_POD_GONE), Some(REASON_POD_ENDED)].contains(&reason)
            && observed.vmi.metadata.deletion_timestamp.is_none()
    }
}

/// Decides. Two plans of the same observation at the same time are equal, and a plan that was applied leads to one
/// without effects and with the same status.
#[must_use]
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let old = observed.vmi.status.clone().unwrap_or_default();
    let phase = Phase::of(&observed.vmi);
    let deleting = observed.vmi.metadata.deletion_timestamp.is_some();
    let pod = active_pod(&observed.pods);
    let (view, requeue) = match (view(pod, quick_start(observed.options.home), now), &observed.devices) {
        // The node could not start the guest without them.
        ((PodView::Up, _), Devices::Awaited(_)) => (PodView::Starting { telling: true }, Some(devices::RETRY)),
        (seen, _) => seen,
    };
    let next = next_phase(phase, Seen::Pod { pod: view, deleting });
    let mut plan = Plan {
        effects: Vec::new(),
        status: old,
        notice: None,
        requeue,
    };
    if let Some((next, reason)) = next {
        let reason = reason.map(|reason| blame(observed, reason));
        enter(&mut plan.status, next, reason, now);
    }
    let phase = next.map_or(phase, |(next, _)| next);

    if deleting {
        remove(observed, next.is_some(), &mut plan);
    } else if pod.is_none() && phase == Phase::Pending {
        let mut plan = create(observed, plan, now);
        begin(&observed.vmi, &mut plan.status);
        return plan;
    }
    let pod = pod.map(|entry| &*entry.object);
    if let Some(pod) = pod {
        label(observed, pod, &mut plan);
        gate(observed, pod, phase, &mut plan);
        if let Some(info) = network_info::news(&observed.vmi, &observed.config, pod) {
            let name = pod.metadata.name.clone().unwrap_or_default();
            plan.effects.push(Effect::TellNetworks { name, info });
        }
    }
    // Nobody reads the status of what is let go.
    let released = plan.effects.iter().any(|e| matches!(e, Effect::SetFinalizers { .. }));
    // A pod that comes up quickly is not worth a write before the VMI is Scheduled.
    if phase != Phase::Pending && !released {
        let deletes = plan.effects.iter().any(|e| matches!(e, Effect::DeletePod { .. }));
        // What failed before is tried again next; what becomes of that is not known yet.
        let unsettled = deletes.then_some(rules::FAILED_DELETE);
        status::describe(&mut plan.status, observed, phase, pod, (unsettled, now));
    }
    begin(&observed.vmi, &mut plan.status);
    plan
}

/// Makes the first status that is written say that the VMI was Pending: the API server takes none of those who create
/// objects. That alone is not worth a write, since a VMI moves on.
pub fn begin(vmi: &VirtualMachineInstance, status: &mut VirtualMachineInstanceStatus) {
    let old = vmi.status.clone().unwrap_or_default();
    if *status == old || !old.phase_transition_timestamps.is_empty() || Phase::of(vmi) != Phase::Pending {
        return;
    }
    let pending = Phase::Pending.as_str();
    status.phase.get_or_insert_with(|| pending.to_owned());
    let first = status.phase_transition_timestamps.first();
    if first.is_some_and(|first| first.phase.as_deref() == Some(pending)) {
        return;
    }
    let first = VirtualMachineInstancePhaseTransitionTimestamp {
        phase: Some(pending.to_owned()),
        phase_transition_timestamp: vmi.metadata.creation_timestamp.clone(),
    };
    status.phase_transition_timestamps.insert(0, first);
}

/// The pod of a VMI that is to be handed over to its node, and whose devices by resource claims are not known yet.
#[must_use]
pub fn awaits_devices(observed: &Observed) -> Option<&Pod> {
    let vmi = &*observed.vmi;
    let known = vmi.status.as_ref().is_some_and(|status| status.device_status.is_some());
    let due = matches!(Phase::of(vmi), Phase::Pending | Phase::Scheduling);
    if known || !due || vmi.metadata.deletion_timestamp.is_some() || !devices::any(&vmi.spec) {
        return None;
    }
    let pod = &*active_pod(&observed.pods)?.object;
    (pod.metadata.deletion_timestamp.is_none() && ended(pod).is_none() && up(pod)).then_some(pod)
}

/// Why a VMI lost its pod: because of its node, if that is gone or silent.
fn blame(observed: &Observed, reason: &'static str) -> &'static str {
    match reason {
        REASON_POD_GONE | REASON_POD_ENDED if observed.node_unresponsive => NODE_UNRESPONSIVE,
        other => other,
    }
}

/// The pod that counts: the youngest that has not ended, else the youngest.
fn active_pod(pods: &[Entry<Pod>]) -> Option<&Entry<Pod>> {
    pods.iter().max_by_key(|entry| {
        let pod = &entry.object;
        (
            ended(pod).is_none(),
            pod.metadata.creation_timestamp.clone().map(|t| t.0),
            entry.seen,
        )
    })
}

fn compute_state(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|c| c.name == "compute")?.state.as_ref()
}

/// How and when a pod's guest container ended: `failed`, and the time if it is known.
fn ended(pod: &Pod) -> Option<(bool, Option<Timestamp>)> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let terminated = compute_state(pod).and_then(|s| s.terminated.as_ref());
    let at = terminated.and_then(|t| t.finished_at.as_ref()).map(|t| t.0);
    match (phase, terminated) {
        (Some("Failed"), _) => Some((true, at)),
        (Some("Succeeded"), _) => Some((false, at)),
        (_, Some(terminated)) => Some((terminated.exit_code != 0, at)),
        _ => None,
    }
}

/// Whether what must run before the guest can start runs.
fn up(pod: &Pod) -> bool {
    let running = pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    running && compute_state(pod).is_some_and(|s| s.running.is_some())
}

/// What the pod looks like, and when it will look different by the mere passing of time.
fn view(pod: Option<&Entry<Pod>>, quick: Duration, now: Timestamp) -> (PodView, Option<Duration>) {
    let Some(entry) = pod else {
        return (PodView::Absent, None);
    };
    let pod = &*entry.object;
    let left = |since: Timestamp, limit: Duration| {
        let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        limit.checked_sub(age).filter(|left| !left.is_zero())
    };
    if let Some((failed, at)) = ended(pod) {
        let wait = at.and_then(|at| left(at, HANDLER_TIME));
        return (
            PodView::Ended {
                failed,
                settled: wait.is_none(),
            },
            wait,
        );
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return (PodView::Terminating, None);
    }
    if up(pod) {
        return (PodView::Up, None);
    }
    let trouble = rules::pod_scheduled(Some(pod)).is_some() || rules::image_trouble(Some(pod)).is_some();
    let wait = if trouble { None } else { left(entry.seen, quick) };
    (
        PodView::Starting {
            telling: wait.is_none(),
        },
        wait,
    )
}

fn enter(status: &mut VirtualMachineInstanceStatus, phase: Phase, reason: Option<&str>, now: Timestamp) {
    status.phase = Some(phase.as_str().to_owned());
    if let Some(reason) = reason {
        status.reason = Some(reason.to_owned());
    }
    status
        .phase_transition_timestamps
        .push(VirtualMachineInstancePhaseTransitionTimestamp {
            phase: Some(phase.as_str().to_owned()),
            phase_transition_timestamp: Some(conditions::wire_time(now)),
        });
}

fn create(observed: &Observed, mut plan: Plan, now: Timestamp) -> Plan {
    let vmi = &*observed.vmi;
    if let Some(name) = observed.claims.missing(&vmi.spec) {
        let namespace = vmi.metadata.namespace.as_deref().unwrap_or_default();
        let message = format!("PVC {namespace}/{name} does not exist, waiting for it to appear");
        let list = &mut plan.status.conditions;
        if let Some(desired) = rules::ready(vmi, Phase::Pending, None) {
            conditions::set(list, &desired, now);
        }
        let desired = Desired::new(rules::POD_SCHEDULED, false, "Unschedulable", message.clone());
        conditions::set(list, &desired, now);
        if failed(&mut plan.status, rules::FAILED_PVC_NOT_FOUND, &message, now) {
            plan.notice = Some(Notice::normal(rules::FAILED_PVC_NOT_FOUND, message));
        }
        return plan;
    }
    // The claims are there, and there is no pod that something could be wrong with.
    conditions::remove(&mut plan.status.conditions, rules::POD_SCHEDULED);
    let synchronized = conditions::find(&plan.status.conditions, rules::SYNCHRONIZED);
    if synchronized.is_some_and(|c| c.reason.as_deref() == Some(rules::FAILED_PVC_NOT_FOUND)) {
        conditions::remove(&mut plan.status.conditions, rules::SYNCHRONIZED);
    }
    if keeps_state(&vmi.spec) && observed.claims.state().is_none() {
        plan.effects.push(Effect::CreateStateClaim);
        return plan;
    }
    let (config, options) = (&observed.config, &observed.options);
    match pod::render(vmi, config, options, observed.container_disks, &observed.claims) {
        Ok(pod) => plan.effects.push(Effect::CreatePod(Box::new(pod))),
        // Not retried: only another spec or another configuration helps, and both come as events.
        Err(error) => {
            failed(&mut plan.status, rules::FAILED_CREATE, &error.to_string(), now);
        }
    }
    plan
}

/// Makes a status say that something failed. Returns whether that is new.
pub fn failed(status: &mut VirtualMachineInstanceStatus, reason: &str, message: &str, now: Timestamp) -> bool {
    let desired = Desired::new(rules::SYNCHRONIZED, false, reason, message);
    conditions::set(&mut status.conditions, &desired, now)
}

/// Deletes what is left of a VMI that is being deleted; then lets it go.
fn remove(observed: &Observed, phase_changes: bool, plan: &mut Plan) {
    let grace_seconds = pod::grace_seconds(&observed.vmi.spec);
    for entry in &observed.pods {
        let meta = &entry.object.metadata;
        let pending = meta.deletion_timestamp.is_some();
        if pending
            && meta
                .deletion_grace_period_seconds
                .is_none_or(|current| current <= grace_seconds)
        {
            continue;
        }
        plan.effects.push(Effect::DeletePod {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            grace_seconds,
        });
    }
    // Of a pod that is being deleted and whose guest and launcher have ended, nothing is left but the kubelet's tidying.
    let over =
        |entry: &Entry<Pod>| entry.object.metadata.deletion_timestamp.is_some() && ended(&entry.object).is_some();
    // The last phase is written before the VMI goes, so that its VM and whoever watches see it.
    if observed.pods.iter().all(over) && Phase::of(&observed.vmi).is_final() && !phase_changes {
        let old = observed.vmi.metadata.finalizers.clone().unwrap_or_default();
        let ours = |f: &&String| {
            *f == names::VMI_FINALIZER
                || *f == names::VMI_FINALIZER_OLD
                || (*f == names::VM_FINALIZER && !observed.owner_exists)
        };
        let new: Vec<String> = old.iter().filter(|f| !ours(f)).cloned().collect();
        if new != old {
            plan.effects.push(Effect::SetFinalizers { old, new });
        }
    }
}

fn label(observed: &Observed, pod: &Pod, plan: &mut Plan) {
    let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) else {
        return;
    };
    let labels = observed.vmi.metadata.labels.as_ref();
    let current = labels.and_then(|l| l.get(names::NODE_NAME_LABEL));
    if current != Some(node) && observed.vmi.metadata.deletion_timestamp.is_none() {
        plan.effects.push(Effect::LabelNode(node.clone()));
    }
}

/// Keeps the pod's readiness gate as the guest is. Where there is no gate, only the VMI's Ready says that it is paused.
fn gate(observed: &Observed, pod: &Pod, phase: Phase, plan: &mut Plan) {
    if observed.options.home != Home::Cluster || phase != Phase::Running {
        return;
    }
    let open = !conditions::is_true(&plan.status.conditions, rules::PAUSED);
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let current = conditions.and_then(|list| list.iter().find(|c| c.type_ == names::UNPAUSED_GATE));
    let wanted = if open { conditions::TRUE } else { conditions::FALSE };
    if current.is_none_or(|c| c.status != wanted) {
        plan.effects.push(Effect::OpenGate {
            name: pod.metadata.name.clone().unwrap_or_default(),
            open,
        });
    }
}
