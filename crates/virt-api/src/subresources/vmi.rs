//! `pause`, `unpause`, `softreboot`, `reset` and what the guest agent knows.

use axum::body::Body;
use ferrovirt_api::v1::{PauseOptions, UnpauseOptions, VirtualMachine, VirtualMachineInstance};
use ferrovirt_protocol::launcher::Action;
use http::{Response, StatusCode};
use kube::Api;
use serde_json::{Value, json};

use super::route::{Kind, Verb};
use super::stream::node_error;
use super::{Subresources, Target, dry_run};
use crate::status::{self, Refusal};

impl Subresources {
    /// The VMI of a target; a VM's VMI has the VM's name.
    pub(super) async fn vmi(&self, target: &Target) -> Result<VirtualMachineInstance, Refusal> {
        self.vmi_if_any(target)
            .await?
            .ok_or_else(|| status::not_found(Kind::VirtualMachineInstance.singular(), &target.name))
    }

    pub(super) async fn vmi_if_any(&self, target: &Target) -> Result<Option<VirtualMachineInstance>, Refusal> {
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), &target.namespace);
        api.get_opt(&target.name).await.map_err(status::from_client)
    }

    pub(super) async fn pause(&self, target: &Target, options: PauseOptions) -> Result<Response<Body>, Refusal> {
        let dry_run = dry_run(&options.dry_run)?;
        pause_allowed(target, &self.vmi(target).await?)?;
        self.perform(target, Action::Pause, dry_run).await
    }

    pub(super) async fn unpause(&self, target: &Target, options: UnpauseOptions) -> Result<Response<Body>, Refusal> {
        let dry_run = dry_run(&options.dry_run)?;
        let found = self.vmi(target).await?;
        let api: Api<VirtualMachine> = Api::namespaced(self.client.clone(), &target.namespace);
        let owner = api.get_opt(&target.name).await.map_err(status::from_client)?;
        unpause_allowed(target, &found, owner.as_ref())?;
        self.perform(target, Action::Unpause, dry_run).await
    }

    pub(super) async fn soft_reboot(&self, target: &Target) -> Result<Response<Body>, Refusal> {
        soft_reboot_allowed(target, &self.vmi(target).await?)?;
        self.perform(target, Action::SoftReboot, false).await
    }

    pub(super) async fn reset(&self, target: &Target) -> Result<Response<Body>, Refusal> {
        reset_allowed(&self.vmi(target).await?)?;
        self.perform(target, Action::Reset, false).await
    }

    async fn perform(&self, target: &Target, action: Action, dry_run: bool) -> Result<Response<Body>, Refusal> {
        if !dry_run {
            self.node
                .act(&target.namespace, &target.name, action)
                .await
                .map_err(|error| node_error(target, &error))?;
        }
        Ok(Response::new(Body::empty()))
    }

    pub(super) async fn guest_info(&self, target: &Target, verb: Verb) -> Result<Response<Body>, Refusal> {
        agent_answers(target, &self.vmi(target).await?)?;
        let info = self
            .node
            .guest_info(&target.namespace, &target.name)
            .await
            .map_err(|error| status::internal(status::chain(&error)))?;
        Ok(status::json(StatusCode::OK, &view(verb, info)))
    }
}

/// The part of what the agent said that a subresource shows.
fn view(verb: Verb, mut info: Value) -> Value {
    let items = match verb {
        Verb::UserList => info.pointer_mut("/userList"),
        Verb::FilesystemList => info.pointer_mut("/fsInfo/disks"),
        _ => return info,
    };
    let items = match items.map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    json!({"metadata": {}, "items": items})
}

/// The phase; empty when nobody has seen the VMI yet.
pub(super) fn phase(vmi: &VirtualMachineInstance) -> &str {
    vmi.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// A phase for a message.
pub(super) fn shown(phase: &str) -> &str {
    if phase.is_empty() { "Unknown" } else { phase }
}

/// Whether a condition is True.
pub(super) fn condition(vmi: &VirtualMachineInstance, kind: &str) -> bool {
    vmi.status
        .iter()
        .flat_map(|status| &status.conditions)
        .any(|condition| condition.r#type == kind && condition.status == "True")
}

fn running(target: &Target, vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    if phase(vmi) == "Running" {
        return Ok(());
    }
    Err(target.conflict("VMI is not running"))
}

fn pause_allowed(target: &Target, vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    running(target, vmi)?;
    // A paused guest fails any probe but the agent's, which is not asked while paused.
    if vmi
        .spec
        .liveness_probe
        .as_ref()
        .is_some_and(|probe| probe.guest_agent_ping.is_none())
    {
        return Err(status::forbidden(
            target.kind.singular(),
            &target.name,
            "Pausing VMIs with LivenessProbe is currently not supported",
        ));
    }
    if condition(vmi, "Paused") {
        return Err(target.conflict("VMI is already paused"));
    }
    Ok(())
}

fn unpause_allowed(
    target: &Target,
    vmi: &VirtualMachineInstance,
    owner: Option<&VirtualMachine>,
) -> Result<(), Refusal> {
    running(target, vmi)?;
    if !condition(vmi, "Paused") {
        return Err(target.conflict("VMI is not paused"));
    }
    let snapshot = owner
        .and_then(|vm| vm.status.as_ref())
        .and_then(|status| status.snapshot_in_progress.as_deref());
    if let Some(snapshot) = snapshot.filter(|name| !name.is_empty()) {
        return Err(target.conflict(&format!("VM snapshot {snapshot} is in progress")));
    }
    Ok(())
}

fn soft_reboot_allowed(target: &Target, vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    running(target, vmi)?;
    if condition(vmi, "Paused") {
        return Err(target.conflict("VMI is paused"));
    }
    let features = vmi.spec.domain.features.as_ref();
    let acpi = features
        .and_then(|features| features.acpi.as_ref())
        .and_then(|acpi| acpi.enabled)
        .unwrap_or(true);
    if !acpi && !condition(vmi, "AgentConnected") {
        return Err(target.conflict("VMI neither have the agent connected nor the ACPI feature enabled"));
    }
    Ok(())
}

fn reset_allowed(vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    match phase(vmi) {
        "Running" | "Scheduled" => Ok(()),
        other => Err(status::bad_request(format!(
            "Unable to connect to VirtualMachineInstance because phase is {} instead of Running or Scheduled",
            shown(other)
        ))),
    }
}

/// KubeVirt answers these conflicts with code 500.
fn agent_answers(target: &Target, vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    let why = if phase(vmi) != "Running" {
        "VMI is not running"
    } else if !condition(vmi, "AgentConnected") {
        "VMI does not have guest agent connected"
    } else {
        return Ok(());
    };
    let text = target.conflict(why).message.unwrap_or_default();
    Err(status::internal(text))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::subresources) fn target() -> Target {
        Target {
            kind: Kind::VirtualMachineInstance,
            namespace: "ns".into(),
            name: "x".into(),
        }
    }

    pub(in crate::subresources) fn vmi(spec: &Value, status: &Value) -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "x", "namespace": "ns"},
            "spec": spec,
            "status": status,
        }))
        .unwrap()
    }

    type Row = (
        &'static str,
        Value,
        &'static str,
        &'static [&'static str],
        Option<(i32, &'static str)>,
    );

    #[test]
    fn what_is_allowed_when() {
        let spec = || json!({"domain": {"devices": {}}});
        let probe = |probe: Value| json!({"domain": {"devices": {}}, "livenessProbe": probe});
        let deaf = || json!({"domain": {"devices": {}, "features": {"acpi": {"enabled": false}}}});
        let rows: Vec<Row> = vec![
            ("pause", spec(), "Running", &[], None),
            ("pause", spec(), "Scheduled", &[], Some((409, "VMI is not running"))),
            ("pause", spec(), "", &[], Some((409, "VMI is not running"))),
            (
                "pause",
                spec(),
                "Running",
                &["Paused"],
                Some((409, "VMI is already paused")),
            ),
            (
                "pause",
                probe(json!({"httpGet": {"port": 80}})),
                "Running",
                &[],
                Some((403, "LivenessProbe")),
            ),
            ("pause", probe(json!({"guestAgentPing": {}})), "Running", &[], None),
            ("unpause", spec(), "Running", &["Paused"], None),
            ("unpause", spec(), "Running", &[], Some((409, "VMI is not paused"))),
            (
                "unpause",
                spec(),
                "Failed",
                &["Paused"],
                Some((409, "VMI is not running")),
            ),
            ("softreboot", spec(), "Running", &[], None),
            (
                "softreboot",
                spec(),
                "Running",
                &["Paused"],
                Some((409, "VMI is paused")),
            ),
            (
                "softreboot",
                spec(),
                "Succeeded",
                &[],
                Some((409, "VMI is not running")),
            ),
            (
                "softreboot",
                deaf(),
                "Running",
                &[],
                Some((409, "neither have the agent")),
            ),
            ("softreboot", deaf(), "Running", &["AgentConnected"], None),
            ("reset", spec(), "Running", &["Paused"], None),
            ("reset", spec(), "Scheduled", &[], None),
            ("reset", spec(), "Pending", &[], Some((400, "phase is Pending"))),
            ("guestosinfo", spec(), "Running", &["AgentConnected"], None),
            (
                "guestosinfo",
                spec(),
                "Running",
                &[],
                Some((500, "VMI does not have guest agent connected")),
            ),
            (
                "guestosinfo",
                spec(),
                "Scheduled",
                &[],
                Some((500, "VMI is not running")),
            ),
        ];
        for (verb, spec, phase, conditions, expected) in rows {
            let conditions: Vec<_> = conditions
                .iter()
                .map(|kind| json!({"type": kind, "status": "True"}))
                .collect();
            let found = vmi(&spec, &json!({"phase": phase, "conditions": conditions}));
            let result = match verb {
                "pause" => pause_allowed(&target(), &found),
                "unpause" => unpause_allowed(&target(), &found, None),
                "softreboot" => soft_reboot_allowed(&target(), &found),
                "reset" => reset_allowed(&found),
                _ => agent_answers(&target(), &found),
            };
            match (result, expected) {
                (Ok(()), None) => {}
                (Err(refusal), Some((code, text))) => {
                    assert_eq!(refusal.code, Some(code), "{verb} {phase} {conditions:?}");
                    let message = refusal.message.unwrap();
                    assert!(message.contains(text), "{verb} {phase}: {message}");
                }
                (got, expected) => panic!("{verb} {phase} {conditions:?}: {got:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_snapshot_forbids_unpause() {
        let found = vmi(
            &json!({"domain": {"devices": {}}}),
            &json!({"phase": "Running", "conditions": [{"type": "Paused", "status": "True"}]}),
        );
        let mut vm = VirtualMachine::default();
        assert!(unpause_allowed(&target(), &found, Some(&vm)).is_ok());
        vm.status.get_or_insert_default().snapshot_in_progress = Some("s1".into());
        assert_eq!(
            unpause_allowed(&target(), &found, Some(&vm)).unwrap_err().code,
            Some(409)
        );
    }

    #[test]
    fn views_of_guest_information() {
        let info =
            json!({"hostname": "h", "userList": [{"userName": "u"}], "fsInfo": {"disks": [{"diskName": "vda1"}]}});
        assert_eq!(view(Verb::GuestOsInfo, info.clone()), info);
        assert_eq!(view(Verb::UserList, info.clone())["items"][0]["userName"], "u");
        assert_eq!(view(Verb::FilesystemList, info)["items"][0]["diskName"], "vda1");
        assert_eq!(view(Verb::UserList, json!({})), json!({"metadata": {}, "items": []}));
    }
}
