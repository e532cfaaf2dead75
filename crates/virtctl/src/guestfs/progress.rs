//! What a pod waits for. Pure.

use k8s_openapi::api::core::v1::Pod;

use super::pod::{CONTAINER, KVM};

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It waits, and for this.
    Waits(String),
    /// Its shell runs.
    Runs,
    /// It will never run, or runs no more.
    Ended(String),
}

/// How far it is.
pub(super) fn of(pod: &Pod) -> Progress {
    let Some(status) = &pod.status else {
        return Progress::Waits("it was created".to_owned());
    };
    let container = status
        .container_statuses
        .iter()
        .flatten()
        .find(|one| one.name == CONTAINER);
    let state = container.and_then(|container| container.state.as_ref());
    match status.phase.as_deref() {
        Some("Failed" | "Succeeded") => {
            let terminated = state.and_then(|state| state.terminated.as_ref());
            let of_container = terminated.map(|ended| {
                let why = ended.message.as_ref().or(ended.reason.as_ref());
                why.map_or_else(|| format!("exit code {}", ended.exit_code), Clone::clone)
            });
            let of_pod = status.message.clone().or_else(|| status.reason.clone());
            return Progress::Ended(of_pod.or(of_container).unwrap_or_else(|| "its shell ended".to_owned()));
        }
        _ if pod.metadata.deletion_timestamp.is_some() => return Progress::Ended("somebody deleted it".to_owned()),
        _ if state.is_some_and(|state| state.running.is_some()) => return Progress::Runs,
        _ => {}
    }
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        return Progress::Waits(match &waiting.message {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        });
    }
    let conditions = status.conditions.iter().flatten();
    let refused = conditions
        .clone()
        .find(|one| one.type_ == "PodScheduled" && one.status == "False");
    if let Some(refused) = refused {
        let why = refused
            .message
            .as_deref()
            .or(refused.reason.as_deref())
            .unwrap_or_default();
        let hint = if why.contains(KVM) {
            " (no node has virtualization to give: --kvm=false does without, slowly)"
        } else {
            ""
        };
        return Progress::Waits(format!("no node takes it: {why}{hint}"));
    }
    Progress::Waits(match pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) {
        Some(node) => format!("node {node} prepares it"),
        None => "a node is looked for".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_and_what_they_wait_for() {
        let waits = |why: &str| Progress::Waits(why.to_owned());
        let ended = |why: &str| Progress::Ended(why.to_owned());
        let container = |state: serde_json::Value| {
            json!({"phase": "Pending", "containerStatuses": [{
                "name": "libguestfs", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }]})
        };
        let refused = |why: &str| {
            json!({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why},
            ]})
        };
        let mut failed = container(json!({"terminated": {"exitCode": 3}}));
        failed["phase"] = "Failed".into();
        for (status, expected) in [
            (json!({"phase": "Pending"}), waits("a node is looked for")),
            (refused("0/1 nodes: taint"), waits("no node takes it: 0/1 nodes: taint")),
            (
                refused("0/1 nodes are available: 1 Insufficient devices.kubevirt.io/kvm."),
                waits(
                    "no node takes it: 0/1 nodes are available: 1 Insufficient devices.kubevirt.io/kvm. (no node has \
                     virtualization to give: --kvm=false does without, slowly)",
                ),
            ),
            (
                container(json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})),
                waits("ImagePullBackOff: no such image"),
            ),
            (
                container(json!({"waiting": {"reason": "ContainerCreating"}})),
                waits("ContainerCreating"),
            ),
            (container(json!({"running": {}})), Progress::Runs),
            (failed, ended("exit code 3")),
            (
                json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"}),
                ended("no device"),
            ),
            (json!({"phase": "Succeeded"}), ended("its shell ended")),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
            assert_eq!(of(&pod), expected, "{status}");
        }
        let placed: Pod = serde_json::from_value(
            json!({"spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Pending"}}),
        )
        .unwrap();
        assert_eq!(of(&placed), waits("node n prepares it"));
        let deleted: Pod = serde_json::from_value(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Pending"}}),
        )
        .unwrap();
        assert_eq!(of(&deleted), ended("somebody deleted it"));
        assert_eq!(of(&Pod::default()), waits("it was created"));
    }
}
