//! Columns of pods: one word for what a pod is doing.

use jiff::Timestamp;
use serde_json::Value;

use super::columns::text;
use crate::table::{Column, age_column, age_of, name_column};

const NONE: &str = "<none>";

pub(super) fn pods() -> Vec<Column> {
    vec![
        name_column(),
        Column::computed("Ready", 0, |pod, _| Summary::of(pod).ready().into()),
        Column::computed("Status", 0, |pod, _| Summary::of(pod).reason.into()),
        Column::computed("Restarts", 0, |pod, now| Summary::of(pod).restarted(now).into()),
        age_column(),
        Column::computed("IP", 1, |pod, _| or_none(&pod["status"]["podIP"])),
        Column::computed("Node", 1, |pod, _| or_none(&pod["spec"]["nodeName"])),
        Column::computed("Nominated Node", 1, |pod, _| {
            or_none(&pod["status"]["nominatedNodeName"])
        }),
        Column::computed("Readiness Gates", 1, |pod, _| readiness_gates(pod).into()),
    ]
}

fn or_none(value: &Value) -> Value {
    if text(value).is_empty() {
        NONE.into()
    } else {
        value.clone()
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates
        .iter()
        .filter(|gate| has_condition(pod, text(&gate["conditionType"])));
    format!("{}/{}", open.count(), gates.len())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    list(&pod["status"]["conditions"])
        .iter()
        .any(|c| c["type"] == kind && c["status"] == "True")
}

struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

impl Summary {
    fn ready(&self) -> String {
        format!("{}/{}", self.ready, self.total)
    }

    fn restarted(&self, now: Timestamp) -> String {
        match &self.last_restart {
            Some(time) if self.restarts > 0 => {
                format!("{} ({} ago)", self.restarts, age_of(&time.as_str().into(), now))
            }
            _ => self.restarts.to_string(),
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        let finished = status["lastState"]["terminated"]["finishedAt"]
            .as_str()
            .map(ToOwned::to_owned);
        self.last_restart = self.last_restart.take().max(finished);
    }

    fn of(pod: &Value) -> Self {
        let status = &pod["status"];
        let reason = match text(&status["reason"]) {
            "" => text(&status["phase"]),
            reason => reason,
        };
        let gated = list(&status["conditions"])
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
        let inits = list(&pod["spec"]["initContainers"]);
        let sidecars = inits.iter().filter(|c| is_sidecar(c)).count();
        let mut summary = Self {
            reason: if gated {
                "SchedulingGated".to_owned()
            } else {
                reason.to_owned()
            },
            ready: 0,
            total: list(&pod["spec"]["containers"]).len() + sidecars,
            restarts: 0,
            last_restart: None,
        };
        let initializing = summary.init_containers(inits, list(&status["initContainerStatuses"]));
        if !initializing || has_condition(pod, "Initialized") {
            summary.containers(pod, inits);
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if status["reason"] == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !matches!(text(&status["phase"]), "Succeeded" | "Failed") {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Whether initialization still goes on.
    fn init_containers(&mut self, inits: &[Value], statuses: &[Value]) -> bool {
        for (index, status) in statuses.iter().enumerate() {
            let sidecar = inits.iter().any(|c| c["name"] == status["name"] && is_sidecar(c));
            self.count_restarts(status);
            let (terminated, waiting) = (&status["state"]["terminated"], &status["state"]["waiting"]);
            if terminated["exitCode"] == 0 {
                continue;
            }
            if sidecar && status["started"] == true {
                self.ready += usize::from(status["ready"] == true);
                continue;
            }
            self.reason = if terminated.is_object() {
                match (text(&terminated["reason"]), terminated["signal"].as_i64().unwrap_or(0)) {
                    ("", 0) => format!("Init:ExitCode:{}", terminated["exitCode"]),
                    ("", signal) => format!("Init:Signal:{signal}"),
                    (reason, _) => format!("Init:{reason}"),
                }
            } else {
                match text(&waiting["reason"]) {
                    "" | "PodInitializing" => format!("Init:{index}/{}", inits.len()),
                    reason => format!("Init:{reason}"),
                }
            };
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Value, inits: &[Value]) {
        // Restarts of plain init containers do not count once the pod runs.
        self.restarts = 0;
        self.last_restart = None;
        for status in list(&pod["status"]["initContainerStatuses"]) {
            if inits.iter().any(|c| c["name"] == status["name"] && is_sidecar(c)) {
                self.count_restarts(status);
            }
        }
        let mut running = false;
        for status in list(&pod["status"]["containerStatuses"]).iter().rev() {
            self.count_restarts(status);
            let (waiting, terminated) = (&status["state"]["waiting"], &status["state"]["terminated"]);
            if !text(&waiting["reason"]).is_empty() {
                text(&waiting["reason"]).clone_into(&mut self.reason);
            } else if terminated.is_object() {
                self.reason = match (text(&terminated["reason"]), terminated["signal"].as_i64().unwrap_or(0)) {
                    ("", 0) => format!("ExitCode:{}", terminated["exitCode"]),
                    ("", signal) => format!("Signal:{signal}"),
                    (reason, _) => reason.to_owned(),
                };
            } else if status["ready"] == true && status["state"]["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = has_condition(pod, "Ready");
            (if ready { "Running" } else { "NotReady" }).clone_into(&mut self.reason);
        }
    }
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}
