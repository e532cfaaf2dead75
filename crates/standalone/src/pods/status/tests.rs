use super::*;
use crate::pods::process::ProcessId;
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns"},
        "spec": {
            "initContainers": [{"name": "tail", "image": "i", "restartPolicy": "Always"}],
            "containers": [{"name": "compute", "image": "i"}],
        },
    }))
    .unwrap()
}

fn record(ended: Option<Exit>) -> ContainerRecord {
    ContainerRecord {
        id: "id".into(),
        process: ProcessId { pid: 1, start_time: 1 },
        started_at: NOW,
        restarts: 0,
        ended: ended.map(|exit| Ended {
            exit,
            at: NOW,
            out_of_memory: false,
        }),
        previous: None,
    }
}

fn known(ended: Option<Exit>) -> ContainerView {
    ContainerView {
        record: Some(record(ended)),
        waiting: None,
        ready: true,
    }
}

fn view(containers: &[(&str, ContainerView)], finished: bool) -> View {
    View {
        started_at: Some(NOW),
        ips: vec!["10.88.0.2".parse().unwrap()],
        containers: containers
            .iter()
            .map(|(name, view)| ((*name).to_owned(), view.clone()))
            .collect(),
        finished,
        ..View::default()
    }
}

fn rendered(pod: &Pod, view: &View) -> PodStatus {
    render(pod, view, "10.0.0.1".parse().unwrap(), NOW)
}

fn condition_of(status: &PodStatus, kind: &str) -> (String, Option<String>) {
    let conditions = status.conditions.as_ref().unwrap();
    let condition = conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

#[test]
fn phases() {
    type Case<'a> = (&'a [(&'a str, ContainerView)], bool, &'a str);
    let cases: [Case<'_>; 8] = [
        (&[], false, "Pending"),
        (&[("tail", known(None))], false, "Pending"),
        (&[("tail", known(None)), ("compute", known(None))], false, "Running"),
        (
            &[("tail", known(None)), ("compute", known(Some(Exit::Code(0))))],
            false,
            "Running",
        ),
        (
            &[
                ("tail", known(Some(Exit::Signal(15)))),
                ("compute", known(Some(Exit::Code(0)))),
            ],
            true,
            "Succeeded",
        ),
        (
            &[
                ("tail", known(Some(Exit::Code(0)))),
                ("compute", known(Some(Exit::Code(1)))),
            ],
            true,
            "Failed",
        ),
        (&[("compute", known(Some(Exit::Unknown)))], true, "Failed"),
        (&[], true, "Failed"),
    ];
    for (containers, finished, expected) in cases {
        assert_eq!(
            phase(&pod(), &view(containers, finished)),
            expected,
            "{containers:?} {finished}"
        );
    }
}

#[test]
fn a_running_pod_is_ready_when_its_gates_are() {
    let view = view(&[("tail", known(None)), ("compute", known(None))], false);
    let status = rendered(&pod(), &view);
    for kind in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
        assert_eq!(condition_of(&status, kind).0, "True", "{kind}");
    }
    let mut gated = pod();
    let gates = json!([{"conditionType": "kubevirt.io/virtual-machine-unpaused"}]);
    gated.spec.as_mut().unwrap().readiness_gates = serde_json::from_value(gates).unwrap();
    let status = rendered(&gated, &view);
    assert_eq!(
        condition_of(&status, "Ready"),
        ("False".into(), Some("ReadinessGatesNotReady".into()))
    );
    let conditions = json!({"conditions": [{"type": "kubevirt.io/virtual-machine-unpaused", "status": "True"}]});
    gated.status = serde_json::from_value(conditions).unwrap();
    assert_eq!(condition_of(&rendered(&gated, &view), "Ready").0, "True");
}

#[test]
fn a_container_that_cannot_start_says_why() {
    let waiting = ContainerView {
        waiting: Some(Waiting::new("ImagePullBackOff", "no such image")),
        ..ContainerView::default()
    };
    let status = rendered(&pod(), &view(&[("compute", waiting)], false));
    let state = status.container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .waiting
        .unwrap();
    assert_eq!(state.reason.as_deref(), Some("ImagePullBackOff"));
    assert_eq!(state.message.as_deref(), Some("no such image"));
}

#[test]
fn exits_are_shown_as_kubernetes_shows_them() {
    for (exit, code, reason) in [
        (Exit::Code(0), 0, "Completed"),
        (Exit::Code(3), 3, "Error"),
        (Exit::Signal(9), 137, "Error"),
        (Exit::Unknown, 137, "ContainerStatusUnknown"),
    ] {
        let status = rendered(&pod(), &view(&[("compute", known(Some(exit)))], true));
        let state = status.container_statuses.unwrap()[0]
            .state
            .clone()
            .unwrap()
            .terminated
            .unwrap();
        assert_eq!((state.exit_code, state.reason.as_deref()), (code, Some(reason)));
    }
}

#[test]
fn a_failed_pod_is_not_ready_and_says_why() {
    let mut view = view(&[], true);
    view.failure = Some(Waiting::new("Lost", "the machine restarted"));
    let status = rendered(&pod(), &view);
    assert_eq!(status.reason.as_deref(), Some("Lost"));
    assert_eq!(
        condition_of(&status, "Ready"),
        ("False".into(), Some("PodFailed".into()))
    );
}

#[test]
fn nothing_is_written_twice() {
    let view = view(&[("tail", known(None)), ("compute", known(None))], false);
    let mut pod = pod();
    let first = rendered(&pod, &view);
    assert!(differs(&pod, &first));
    pod.status = Some(first.clone());
    let foreign = json!({"type": "kubevirt.io/virtual-machine-unpaused", "status": "True"});
    pod.status
        .as_mut()
        .unwrap()
        .conditions
        .as_mut()
        .unwrap()
        .push(serde_json::from_value(foreign).unwrap());
    pod.status.as_mut().unwrap().qos_class = Some("Burstable".into());
    let later = render(
        &pod,
        &view,
        "10.0.0.1".parse().unwrap(),
        "2026-01-01T00:00:00Z".parse().unwrap(),
    );
    assert!(!differs(&pod, &later));
    assert_eq!(later.conditions, first.conditions);
}

#[test]
fn what_is_taken_over_is_as_ready_as_its_pod_says() {
    let mut pod = pod();
    let said = |id: &str, ready: bool| json!({"name": "compute", "containerID": id, "ready": ready});
    for (probed, said, ended, expected) in [
        (true, Some(said("ferrovirt://id", true)), None, true),
        (true, Some(said("ferrovirt://id", false)), None, false),
        (true, Some(said("ferrovirt://id", true)), Some(Exit::Unknown), false),
        // The instance before.
        (true, Some(said("ferrovirt://old", true)), None, false),
        (true, None, None, false),
        (false, None, None, true),
        (false, Some(said("ferrovirt://old", false)), None, true),
    ] {
        let statuses: Vec<Value> = said.into_iter().collect();
        let probe = probed.then(|| json!({"exec": {"command": ["true"]}}));
        let containers = json!([{"name": "compute", "readinessProbe": probe}]);
        pod.spec = serde_json::from_value(json!({"containers": containers})).unwrap();
        pod.status = serde_json::from_value(json!({"containerStatuses": statuses})).unwrap();
        let case = format!("{probed} {statuses:?} {ended:?}");
        assert_eq!(was_ready(&pod, "compute", &record(ended)), expected, "{case}");
    }
}
