//! Conditions of a VMI that follow from its pod. Set by virt-controller.

use ferrovirt_api::v1::VirtualMachineInstance;
use k8s_openapi::api::core::v1::{ContainerStateWaiting, Pod, PodCondition};

use super::Phase;
use crate::conditions::{self, Desired, FALSE, TRUE};

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

/// The reasons of `Synchronized` that virt-controller sets and removes; all others are virt-handler's.
pub const CONTROLLER_REASONS: [&str; 4] = [FAILED_CREATE, FAILED_DELETE, ERR_IMAGE_PULL, IMAGE_PULL_BACK_OFF];

/// Waiting reasons of a container that mean that its image, or an image volume, is not there.
const PULL_REASONS: [&str; 6] = [
    ERR_IMAGE_PULL,
    IMAGE_PULL_BACK_OFF,
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
];

fn pod_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

/// What `Ready` should say. A paused guest is not ready, whether or not its pod has the readiness gate for that.
#[must_use]
pub fn ready(vmi: &VirtualMachineInstance, phase: Phase, pod: Option<&Pod>) -> Desired {
    let no = |reason: &str, message: &str| Desired::new(READY, false, reason, message);
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
        Some(c) => Desired::new(
            READY,
            c.status == TRUE,
            c.reason.as_deref().unwrap_or_default(),
            c.message.as_deref().unwrap_or_default(),
        ),
    }
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
        let mut dying = up.clone();
        dying.metadata.deletion_timestamp = Some(conditions::wire_time(jiff::Timestamp::UNIX_EPOCH));
        for (phase, paused, pod, status, reason) in [
            (Phase::Pending, false, None, false, "PodNotExists"),
            (Phase::Running, false, Some(&dying), false, "PodTerminating"),
            (Phase::Scheduled, false, Some(&up), false, "GuestNotRunning"),
            (Phase::Succeeded, false, Some(&up), false, "GuestNotRunning"),
            (Phase::Running, false, Some(&bare), false, "PodConditionMissing"),
            (Phase::Running, false, Some(&up), true, ""),
            (Phase::Running, true, Some(&up), false, "GuestPaused"),
            (Phase::Running, false, Some(&probe), false, "ContainersNotReady"),
        ] {
            let got = ready(&vmi(paused), phase, pod);
            assert_eq!((got.status, got.reason.as_str()), (status, reason));
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
