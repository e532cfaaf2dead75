//! Conditions of a VMI that follow from its pod. Set by virt-controller.

use ferrovirt_api::v1::VirtualMachineInstance;
use k8s_openapi::api::core::v1::{ContainerStateWaiting, Pod, PodCondition};

use super::Phase;
use crate::conditions::{self, Desired, FALSE, TRUE};
use crate::names::UNPAUSED_GATE;

/// Condition type.
pub const READY: &str = "Ready";
/// Condition type.
pub const POD_SCHEDULED: &str = "PodScheduled";
/// Condition type: only ever False.
pub const SYNCHRONIZED: &str = "Synchronized";
/// Condition type.
pub const PAUSED: &str = "Paused";
/// Condition type.
pub const AGENT_CONNECTED: &str = "AgentConnected";
/// Condition type: the agent lacks what the VMI uses.
pub const AGENT_VERSION_NOT_SUPPORTED: &str = "AgentVersionNotSupported";
/// Condition type.
pub const LIVE_MIGRATABLE: &str = "LiveMigratable";

/// Reason of `Synchronized`: the pod could not be created.
pub const FAILED_CREATE: &str = "FailedCreate";
/// Reason of `Synchronized`: the pod could not be deleted.
pub const FAILED_DELETE: &str = "FailedDelete";
/// Reason of `Synchronized`: an image could not be pulled.
pub const ERR_IMAGE_PULL: &str = "ErrImagePull";
/// Reason of `Synchronized`: an image could not be pulled, and the next try waits.
pub const IMAGE_PULL_BACK_OFF: &str = "ImagePullBackOff";

/// Reason of `Synchronized`: a claim does not exist.
pub const FAILED_PVC_NOT_FOUND: &str = "FailedPvcNotFound";
/// Reason of `Synchronized`: the claim for the state of firmware and TPM could not be created.
pub const FAILED_BACKEND_STORAGE_CREATE: &str = "FailedBackendStorageCreate";

/// Reason of `Synchronized`: which devices the resource claims were given is not known.
pub const DEVICES_NOT_ALLOCATED: &str = "DevicesNotAllocated";

/// The reasons of `Synchronized` that virt-controller sets and removes; all others are virt-handler's.
pub const CONTROLLER_REASONS: [&str; 7] = [
    FAILED_CREATE,
    FAILED_DELETE,
    FAILED_PVC_NOT_FOUND,
    FAILED_BACKEND_STORAGE_CREATE,
    DEVICES_NOT_ALLOCATED,
    ERR_IMAGE_PULL,
    IMAGE_PULL_BACK_OFF,
];

/// Waiting reasons of a container that mean that its image, or an image volume, is not there.
const PULL_REASONS: [&str; 6] = [
    ERR_IMAGE_PULL,
    IMAGE_PULL_BACK_OFF,
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
];

/// The kubelet's reason of a pod's `Ready` while all but its readiness gates are ready.
const GATES_NOT_READY: &str = "ReadinessGatesNotReady";

fn pod_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

/// What `Ready` should say; nothing while what it says now may stay, because what it would say is about to change. A
/// paused guest is not ready, whether or not its pod has the readiness gate for that.
#[must_use]
pub fn ready(vmi: &VirtualMachineInstance, phase: Phase, pod: Option<&Pod>) -> Option<Desired> {
    let no = |reason: &str, message: &str| Some(Desired::new(READY, false, reason, message));
    // It is destroyed, not shut down: gone before anybody could read of it.
    if vmi.metadata.deletion_timestamp.is_some() && vmi.spec.termination_grace_period_seconds == Some(0) {
        return None;
    }
    let Some(pod) = pod else {
        return no("PodNotExists", "virt-launcher pod has not yet been scheduled");
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return no("PodTerminating", "virt-launcher pod is terminating");
    }
    if phase != Phase::Running {
        return no("GuestNotRunning", "Guest VM is not reported as running");
    }
    if vmi
        .status
        .as_ref()
        .is_some_and(|s| conditions::is_true(&s.conditions, PAUSED))
    {
        return no("GuestPaused", "Guest VM is paused");
    }
    match pod_condition(pod, "Ready") {
        None => no(
            "PodConditionMissing",
            "virt-launcher pod is missing the Ready condition",
        ),
        // Our own gate is opened next, or the kubelet has not seen yet that it is open; then the pod says more. Gates
        // of others, such as a load balancer's, are worth telling of.
        Some(c) if c.reason.as_deref() == Some(GATES_NOT_READY) && (!gate_open(pod) || names_gate(c)) => None,
        Some(c) => Some(Desired::new(
            READY,
            c.status == TRUE,
            c.reason.as_deref().unwrap_or_default(),
            c.message.as_deref().unwrap_or_default(),
        )),
    }
}

/// The kubelet's message quotes the gates that are missing or closed.
fn names_gate(ready: &PodCondition) -> bool {
    ready
        .message
        .as_deref()
        .is_some_and(|message| message.contains(UNPAUSED_GATE))
}

fn gate_open(pod: &Pod) -> bool {
    pod_condition(pod, UNPAUSED_GATE).is_some_and(|c| c.status == TRUE)
}

/// `PodScheduled`, while the pod's own is False.
#[must_use]
pub fn pod_scheduled(pod: Option<&Pod>) -> Option<Desired> {
    let condition = pod_condition(pod?, "PodScheduled").filter(|c| c.status == FALSE)?;
    Some(Desired::new(
        POD_SCHEDULED,
        false,
        condition.reason.as_deref().unwrap_or_default(),
        condition.message.as_deref().unwrap_or_default(),
    ))
}

/// `Synchronized`, while an image of the pod cannot be had. Reasons that KubeVirt has no name for become
/// [`ERR_IMAGE_PULL`], with themselves in the message.
#[must_use]
pub fn image_trouble(pod: Option<&Pod>) -> Option<Desired> {
    let waiting = waiting(pod?).find(|w| PULL_REASONS.contains(&w.reason.as_deref().unwrap_or_default()))?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let message = waiting.message.as_deref().unwrap_or_default();
    Some(match reason {
        ERR_IMAGE_PULL | IMAGE_PULL_BACK_OFF => Desired::new(SYNCHRONIZED, false, reason, message),
        other => Desired::new(SYNCHRONIZED, false, ERR_IMAGE_PULL, format!("{other}: {message}")),
    })
}

/// Why containers of a pod wait.
pub fn waiting(pod: &Pod) -> impl Iterator<Item = &ContainerStateWaiting> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref());
    let main = status.and_then(|s| s.container_statuses.as_ref());
    let all = init.into_iter().flatten().chain(main.into_iter().flatten());
    all.filter_map(|c| c.state.as_ref()?.waiting.as_ref())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap()
    }

    fn vmi(paused: bool) -> VirtualMachineInstance {
        let mut vmi = VirtualMachineInstance::default();
        let status = vmi.status.get_or_insert_default();
        if paused {
            let desired = Desired::new(PAUSED, true, "PausedByUser", "");
            conditions::set(&mut status.conditions, &desired, jiff::Timestamp::UNIX_EPOCH);
        }
        vmi
    }

    #[test]
    fn ready_follows_pod_phase_and_pause() {
        let up = pod(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        let probe = pod(json!({"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]}));
        let bare = pod(json!({}));
        let gated = |gate: &str| {
            pod(json!({"conditions": [
                {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"},
                {"type": UNPAUSED_GATE, "status": gate}]}))
        };
        let (closed, open) = (gated("False"), gated("True"));
        let says = |message: &str| {
            let mut pod = open.clone();
            let list = pod.status.as_mut().and_then(|s| s.conditions.as_mut()).unwrap();
            list[0].message = Some(message.to_owned());
            pod
        };
        let late = says(&format!(
            "corresponding condition of pod readiness gate \"{UNPAUSED_GATE}\" does not exist."
        ));
        let balancer = says("the status of pod readiness gate \"example.com/target\" is not \"True\", but False");
        let mut dying = up.clone();
        dying.metadata.deletion_timestamp = Some(conditions::wire_time(jiff::Timestamp::UNIX_EPOCH));
        for (phase, paused, pod, expected) in [
            (Phase::Pending, false, None, Some((false, "PodNotExists"))),
            (Phase::Running, false, Some(&dying), Some((false, "PodTerminating"))),
            (Phase::Scheduled, false, Some(&up), Some((false, "GuestNotRunning"))),
            (Phase::Succeeded, false, Some(&up), Some((false, "GuestNotRunning"))),
            (Phase::Running, false, Some(&bare), Some((false, "PodConditionMissing"))),
            (Phase::Running, false, Some(&up), Some((true, ""))),
            (Phase::Running, true, Some(&up), Some((false, "GuestPaused"))),
            (Phase::Running, false, Some(&probe), Some((false, "ContainersNotReady"))),
            (Phase::Running, false, Some(&closed), None),
            (Phase::Running, true, Some(&closed), Some((false, "GuestPaused"))),
            (Phase::Running, false, Some(&late), None),
            (
                Phase::Running,
                false,
                Some(&balancer),
                Some((false, "ReadinessGatesNotReady")),
            ),
        ] {
            let got = ready(&vmi(paused), phase, pod);
            let got = got.as_ref().map(|got| (got.status, got.reason.as_str()));
            assert_eq!(got, expected, "{phase} {paused} {pod:?}");
        }
    }

    #[test]
    fn a_guest_that_is_destroyed_says_no_more_of_its_readiness() {
        let up = pod(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        for (deleted, grace, says) in [
            (true, Some(0), false),
            (true, Some(30), true),
            (true, None, true),
            (false, Some(0), true),
        ] {
            let mut vmi = vmi(false);
            vmi.metadata.deletion_timestamp = deleted.then(|| conditions::wire_time(jiff::Timestamp::UNIX_EPOCH));
            vmi.spec.termination_grace_period_seconds = grace;
            assert_eq!(
                ready(&vmi, Phase::Running, Some(&up)).is_some(),
                says,
                "{deleted} {grace:?}"
            );
        }
    }

    #[test]
    fn trouble_of_pods_becomes_conditions() {
        let unschedulable = pod(json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]}));
        assert_eq!(
            pod_scheduled(Some(&unschedulable)),
            Some(Desired::new(POD_SCHEDULED, false, "Unschedulable", "0/1 nodes"))
        );
        assert_eq!(
            pod_scheduled(Some(&pod(
                json!({"conditions": [{"type": "PodScheduled", "status": "True"}]})
            ))),
            None
        );
        for (reason, expected) in [
            ("ErrImagePull", Some("ErrImagePull")),
            ("ImagePullBackOff", Some("ImagePullBackOff")),
            ("ErrImageNeverPull", Some("ErrImagePull")),
            ("ContainerCreating", None),
        ] {
            let status = json!({"containerStatuses": [{
                "name": "compute", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": "m"}}}]});
            assert_eq!(
                image_trouble(Some(&pod(status))).map(|d| d.reason),
                expected.map(str::to_owned)
            );
        }
    }
}
