//! A pod's status from what the pod runner knows. Pure; it takes the time from the caller.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, ImageVolumeStatus, Pod, PodCondition, PodIP, PodStatus, VolumeMountStatus, VolumeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::container::{Role, in_start_order};
use super::process::Exit;
use super::state::{ContainerRecord, Ended};

/// Exit code that Kubernetes shows for a container whose end nobody saw.
const UNKNOWN_CODE: i32 = 137;

/// A container that is not running and why, in a kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub reason: String,
    pub message: String,
}

impl Waiting {
    pub(super) fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// What is known of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ContainerView {
    /// Its newest instance, if there was one.
    pub record: Option<ContainerRecord>,
    /// Set while the next instance cannot be started.
    pub waiting: Option<Waiting>,
    /// Its readiness probe, if any, has succeeded.
    pub ready: bool,
}

impl ContainerView {
    /// It runs now.
    pub(super) fn running(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.ended.is_none())
    }

    /// How its newest instance ended.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.record.as_ref()?.ended
    }

    /// It ran to its end without a mistake.
    pub(super) fn succeeded(&self) -> bool {
        self.ended().is_some_and(|ended| ended.exit == Exit::Code(0))
    }
}

/// All that a status is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub started_at: Option<Timestamp>,
    pub ips: Vec<IpAddr>,
    /// By name, for each container of the pod that anything is known of.
    pub containers: BTreeMap<String, ContainerView>,
    /// Digests of image volumes, by volume name.
    pub images: BTreeMap<String, String>,
    /// Nothing runs and nothing will be started again.
    pub finished: bool,
    /// The pod as a whole failed: reason and message.
    pub failure: Option<Waiting>,
}

/// Phase of a pod.
pub(super) fn phase(pod: &Pod, view: &View) -> &'static str {
    let mains = || {
        pod.spec
            .iter()
            .flat_map(|spec| &spec.containers)
            .map(|container| view.containers.get(&container.name))
    };
    if view.finished {
        let succeeded = view.failure.is_none() && mains().all(|main| main.is_some_and(ContainerView::succeeded));
        return if succeeded { "Succeeded" } else { "Failed" };
    }
    let created = mains().all(|main| main.is_some_and(|main| main.record.is_some()));
    if created { "Running" } else { "Pending" }
}

/// The whole status. Conditions keep their transition time while they stay what they were in `pod`;
/// conditions of other writers are not in it.
pub(super) fn render(pod: &Pod, view: &View, host_ip: IpAddr, now: Timestamp) -> PodStatus {
    let phase = phase(pod, view);
    let statuses = |role: fn(Role) -> bool| -> Option<Vec<ContainerStatus>> {
        let spec = pod.spec.as_ref()?;
        let chosen = in_start_order(spec).filter(|(r, _)| role(*r));
        Some(chosen.map(|(_, container)| container_status(container, view)).collect())
    };
    let ips: Vec<String> = view.ips.iter().map(IpAddr::to_string).collect();
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: view
            .failure
            .as_ref()
            .filter(|_| view.finished)
            .map(|failure| failure.reason.clone()),
        message: view
            .failure
            .as_ref()
            .filter(|_| view.finished)
            .map(|failure| failure.message.clone()),
        host_ip: Some(host_ip.to_string()),
        host_ips: Some(vec![HostIP {
            ip: host_ip.to_string(),
        }]),
        pod_ip: ips.first().cloned(),
        pod_ips: Some(ips.into_iter().map(|ip| PodIP { ip }).collect()).filter(|ips: &Vec<PodIP>| !ips.is_empty()),
        start_time: view.started_at.map(Time),
        init_container_statuses: statuses(|role| role != Role::Main).filter(|statuses| !statuses.is_empty()),
        container_statuses: statuses(|role| role == Role::Main),
        conditions: Some(conditions(pod, view, phase, now)),
        ..PodStatus::default()
    }
}

fn container_status(container: &Container, view: &View) -> ContainerStatus {
    let unknown = ContainerView::default();
    let known = view.containers.get(&container.name).unwrap_or(&unknown);
    let image = container.image.clone().unwrap_or_default();
    let running = known.running();
    let restarting = known.waiting.is_some();
    let record = known.record.as_ref();
    let last = match (record, restarting) {
        (Some(record), true) => Some(record),
        (Some(record), false) => record.previous.as_deref(),
        (None, _) => None,
    };
    ContainerStatus {
        name: container.name.clone(),
        image_id: record.map(|_| image.clone()).unwrap_or_default(),
        image,
        container_id: record.map(container_id),
        ready: running && known.ready,
        started: Some(running),
        restart_count: record.map_or(0, |record| record.restarts),
        state: Some(state(known)),
        last_state: last.and_then(|record| Some(terminated(record, record.ended?))),
        volume_mounts: volume_mounts(container, view),
        ..ContainerStatus::default()
    }
}

fn state(known: &ContainerView) -> ContainerState {
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ContainerState::default()
    };
    match (&known.waiting, &known.record) {
        (Some(wait), _) => waiting(
            &wait.reason,
            Some(wait.message.clone()).filter(|message| !message.is_empty()),
        ),
        (None, None) => waiting("ContainerCreating", None),
        (None, Some(record)) => match record.ended {
            Some(ended) => terminated(record, ended),
            None => ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: Some(Time(record.started_at)),
                }),
                ..ContainerState::default()
            },
        },
    }
}

fn terminated(record: &ContainerRecord, ended: Ended) -> ContainerState {
    let (code, signal, reason, message) = match ended.exit {
        Exit::Code(0) => (0, None, "Completed", None),
        Exit::Code(code) => (code, None, "Error", None),
        Exit::Signal(signal) => (128 + signal, Some(signal), "Error", None),
        Exit::Unknown => (
            UNKNOWN_CODE,
            None,
            "ContainerStatusUnknown",
            Some("the container ended while nobody watched it".to_owned()),
        ),
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(container_id(record)),
            exit_code: code,
            signal,
            reason: Some(if ended.out_of_memory { "OOMKilled" } else { reason }.to_owned()),
            message,
            started_at: Some(Time(record.started_at)),
            finished_at: Some(Time(ended.at)),
        }),
        ..ContainerState::default()
    }
}

/// Whether a container that was taken over is ready: what its pod says of this very instance holds until a probe says
/// otherwise; of one that the pod says nothing of yet, what holds after a start.
pub(super) fn was_ready(pod: &Pod, name: &str, record: &ContainerRecord) -> bool {
    let id = container_id(record);
    let mut statuses = pod.status.iter().flat_map(|status| {
        let mains = status.container_statuses.iter().flatten();
        mains.chain(status.init_container_statuses.iter().flatten())
    });
    let said = statuses.find(|status| status.name == name && status.container_id.as_deref() == Some(id.as_str()));
    let probed = || {
        let mut containers = pod.spec.iter().flat_map(in_start_order);
        containers.any(|(_, container)| container.name == name && container.readiness_probe.is_some())
    };
    record.ended.is_none() && said.map_or_else(|| !probed(), |status| status.ready)
}

fn container_id(record: &ContainerRecord) -> String {
    format!("ferrovirt://{}", record.id)
}

/// Only mounts of image volumes have something to say: the digest.
fn volume_mounts(container: &Container, view: &View) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.iter().flatten().filter_map(|mount| {
        let digest = view.images.get(&mount.name)?;
        Some(VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: Some(true),
            volume_status: Some(VolumeStatus {
                image: Some(ImageVolumeStatus {
                    image_ref: digest.clone(),
                }),
            }),
            ..VolumeMountStatus::default()
        })
    });
    let mounts: Vec<_> = mounts.collect();
    (!mounts.is_empty()).then_some(mounts)
}

/// Type, whether it holds, and reason and message where it does not.
type Verdict = (&'static str, bool, Option<(&'static str, String)>);

fn conditions(pod: &Pod, view: &View, phase: &str, now: Timestamp) -> Vec<PodCondition> {
    let spec = pod.spec.as_ref();
    let known = |name: &str| view.containers.get(name);
    let unfinished: Vec<&str> = spec
        .into_iter()
        .flat_map(in_start_order)
        .filter(|(role, container)| match role {
            Role::Init => !known(&container.name).is_some_and(ContainerView::succeeded),
            Role::Sidecar => known(&container.name).is_none_or(|view| view.record.is_none()),
            Role::Main => false,
        })
        .map(|(_, container)| container.name.as_str())
        .collect();
    let unready: Vec<&str> = spec
        .into_iter()
        .flat_map(in_start_order)
        .filter(|(role, container)| {
            *role != Role::Init && !known(&container.name).is_some_and(|view| view.running() && view.ready)
        })
        .map(|(_, container)| container.name.as_str())
        .collect();
    let over = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ => None,
    };
    let list = |what: &str, names: &[&str]| format!("containers with {what} status: [{}]", names.join(" "));
    let initialized = (!unfinished.is_empty()).then(|| ("ContainersNotInitialized", list("incomplete", &unfinished)));
    let containers = over
        .clone()
        .or_else(|| (!unready.is_empty()).then(|| ("ContainersNotReady", list("unready", &unready))));
    let gates = spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let closed: Vec<String> = gates
        .filter(|gate| !holds(pod, &gate.condition_type))
        .map(|gate| gate.condition_type.clone())
        .collect();
    let ready = containers.clone().or_else(|| {
        let message = || {
            format!(
                "corresponding condition of pod readiness gate \"{}\" is not True.",
                closed.join("\", \"")
            )
        };
        (!closed.is_empty()).then(|| ("ReadinessGatesNotReady", message()))
    });
    let network = !view.ips.is_empty() && over.is_none();
    let verdicts: [Verdict; 5] = [
        ("PodReadyToStartContainers", network, None),
        ("Initialized", initialized.is_none(), initialized),
        ("Ready", ready.is_none(), ready),
        ("ContainersReady", containers.is_none(), containers),
        ("PodScheduled", true, None),
    ];
    verdicts
        .into_iter()
        .map(|verdict| condition(pod, verdict, now))
        .collect()
}

fn holds(pod: &Pod, kind: &str) -> bool {
    existing(pod, kind).is_some_and(|condition| condition.status == "True")
}

fn existing<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn condition(pod: &Pod, (kind, holds, why): Verdict, now: Timestamp) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let old = existing(pod, kind).filter(|old| old.status == status);
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: why.as_ref().map(|(reason, _)| (*reason).to_owned()),
        message: why.map(|(_, message)| message).filter(|message| !message.is_empty()),
        last_transition_time: old.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
        ..PodCondition::default()
    }
}

/// Whether writing `rendered` would change anything a client sees in `pod`.
pub(super) fn differs(pod: &Pod, rendered: &PodStatus) -> bool {
    let Some(status) = &pod.status else { return true };
    let same_conditions = rendered.conditions.iter().flatten().all(|new| {
        existing(pod, &new.type_)
            .is_some_and(|old| (&old.status, &old.reason, &old.message) == (&new.status, &new.reason, &new.message))
    });
    let rest = |status: &PodStatus| PodStatus {
        conditions: None,
        qos_class: None,
        observed_generation: None,
        resize: None,
        ..status.clone()
    };
    !same_conditions || normal(rest(status)) != normal(rest(rendered))
}

/// The status as a strategic merge patch: what a condition no longer says is taken back.
pub(super) fn patch(rendered: &PodStatus) -> serde_json::Value {
    let mut value = serde_json::to_value(rendered).unwrap_or_default();
    let conditions = value.get_mut("conditions").and_then(serde_json::Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        for field in ["reason", "message"] {
            if condition.get(field).is_none() {
                condition[field] = serde_json::Value::Null;
            }
        }
    }
    value
}

/// Absent and empty lists mean the same.
fn normal(mut status: PodStatus) -> PodStatus {
    status.init_container_statuses = status.init_container_statuses.filter(|list| !list.is_empty());
    status.container_statuses = status.container_statuses.filter(|list| !list.is_empty());
    status
}

#[cfg(test)]
mod tests;
