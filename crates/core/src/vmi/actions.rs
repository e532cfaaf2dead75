//! What may be asked of a VMI in which state: the subresources' answers come from here.

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance};

use super::Phase;
use super::conditions::{AGENT_CONNECTED, PAUSED};
use crate::conditions;
use crate::refusal::Refusal;

/// A subresource of a VMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmiAction {
    /// `console`.
    Console,
    /// `vnc`.
    Vnc,
    /// `portforward`.
    PortForward,
    /// `pause`.
    Pause,
    /// `unpause`.
    Unpause,
    /// `freeze`, `unfreeze`.
    Freeze,
    /// `softreboot`.
    SoftReboot,
    /// `reset`.
    Reset,
    /// `guestosinfo`, `userlist`, `filesystemlist`.
    GuestInfo,
}

const NOT_RUNNING: &str = "VMI is not running";

/// Whether the state of `vmi` allows `action`. `vm` is the VM that owns it, if there is one.
///
/// # Errors
/// The answer that the client gets.
pub fn admit(vmi: &VirtualMachineInstance, vm: Option<&VirtualMachine>, action: VmiAction) -> Result<(), Refusal> {
    let name = vmi.metadata.name.as_deref().unwrap_or_default();
    let phase = Phase::of(vmi);
    let status = vmi.status.as_ref();
    let is = |kind: &str| status.is_some_and(|s| conditions::is_true(&s.conditions, kind));
    let conflict = |why: &str| Err(Refusal::conflict("virtualmachineinstance", name, why));
    let running = phase == Phase::Running;
    let devices = &vmi.spec.domain.devices;
    match action {
        VmiAction::Console if devices.autoattach_serial_console == Some(false) => {
            Err(Refusal::bad_request("No serial consoles are present."))
        }
        VmiAction::Vnc if devices.autoattach_graphics_device == Some(false) => {
            Err(Refusal::bad_request("No graphics devices are present."))
        }
        VmiAction::Console if phase == Phase::Failed => conflict("VMI is in failed status"),
        VmiAction::Console | VmiAction::Vnc if !running => Err(Refusal::bad_request(NOT_RUNNING)),
        VmiAction::Console | VmiAction::Vnc => Ok(()),
        VmiAction::PortForward if !running => conflict(NOT_RUNNING),
        VmiAction::PortForward if is(PAUSED) => conflict("VMI is paused"),
        VmiAction::PortForward if first_address(vmi).is_none() => Err(Refusal::bad_request(format!(
            "VMI {name} has no network interface with an address yet"
        ))),
        VmiAction::PortForward => Ok(()),
        VmiAction::Pause => pause(vmi, name, running, is(PAUSED)),
        VmiAction::Unpause if !running => conflict(NOT_RUNNING),
        VmiAction::Unpause if !is(PAUSED) => conflict("VMI is not paused"),
        VmiAction::Unpause if snapshotting(vm) => conflict("VM snapshot is in progress"),
        VmiAction::Unpause => Ok(()),
        VmiAction::Freeze if !running => conflict(NOT_RUNNING),
        VmiAction::Freeze => Ok(()),
        VmiAction::SoftReboot if !running => conflict(NOT_RUNNING),
        VmiAction::SoftReboot if is(PAUSED) => conflict("VMI is paused"),
        VmiAction::SoftReboot if !is(AGENT_CONNECTED) && !acpi(vmi) => {
            conflict("VMI neither have the agent connected nor the ACPI feature enabled")
        }
        VmiAction::SoftReboot => Ok(()),
        VmiAction::Reset if running || phase == Phase::Scheduled => Ok(()),
        VmiAction::Reset => Err(Refusal::bad_request(NOT_RUNNING)),
        VmiAction::GuestInfo => {
            let why = if running {
                "VMI does not have guest agent connected"
            } else {
                NOT_RUNNING
            };
            let fine = running && is(AGENT_CONNECTED);
            if fine {
                Ok(())
            } else {
                conflict(why).map_err(Refusal::internal)
            }
        }
    }
}

fn pause(vmi: &VirtualMachineInstance, name: &str, running: bool, paused: bool) -> Result<(), Refusal> {
    let resource = "virtualmachineinstance";
    if !running {
        return Err(Refusal::conflict(resource, name, NOT_RUNNING));
    }
    // A guest that stands still fails every probe that asks it; pinging the agent knows about pauses.
    if vmi
        .spec
        .liveness_probe
        .as_ref()
        .is_some_and(|p| p.guest_agent_ping.is_none())
    {
        let why = "Pausing VMIs with LivenessProbe is currently not supported";
        return Err(Refusal::forbidden(resource, name, why));
    }
    if paused {
        return Err(Refusal::conflict(resource, name, "VMI is already paused"));
    }
    Ok(())
}

fn acpi(vmi: &VirtualMachineInstance) -> bool {
    let feature = vmi.spec.domain.features.as_ref().and_then(|f| f.acpi.as_ref());
    feature.and_then(|a| a.enabled).unwrap_or(true)
}

fn snapshotting(vm: Option<&VirtualMachine>) -> bool {
    vm.and_then(|vm| vm.status.as_ref())
        .is_some_and(|s| s.snapshot_in_progress.is_some())
}

/// The address that port-forward connects to: that of the first interface that has one.
#[must_use]
pub fn first_address(vmi: &VirtualMachineInstance) -> Option<&str> {
    let interfaces = &vmi.status.as_ref()?.interfaces;
    interfaces
        .iter()
        .find_map(|i| i.ip_address.as_deref())
        .filter(|a| !a.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::Desired;
    use serde_json::json;

    fn vmi(phase: Phase, conditions: &[&str]) -> VirtualMachineInstance {
        let mut vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "x"}, "spec": {"domain": {"devices": {}}},
            "status": {"phase": phase.as_str(), "interfaces": [{"ipAddress": "10.0.0.2"}]}
        }))
        .unwrap();
        let list = &mut vmi.status.as_mut().unwrap().conditions;
        for kind in conditions {
            crate::conditions::set(list, &Desired::new(kind, true, "", ""), jiff::Timestamp::UNIX_EPOCH);
        }
        vmi
    }

    #[test]
    fn answers() {
        use VmiAction::{Console, Freeze, GuestInfo, Pause, PortForward, Reset, SoftReboot, Unpause, Vnc};
        for (action, phase, conditions, code) in [
            (Console, Phase::Running, &[][..], 0),
            (Console, Phase::Scheduled, &[], 400),
            (Console, Phase::Failed, &[], 409),
            (Vnc, Phase::Running, &[], 0),
            (Vnc, Phase::Scheduling, &[], 400),
            (PortForward, Phase::Running, &[], 0),
            (PortForward, Phase::Running, &[PAUSED], 409),
            (Pause, Phase::Running, &[], 0),
            (Pause, Phase::Running, &[PAUSED], 409),
            (Pause, Phase::Scheduled, &[], 409),
            (Unpause, Phase::Running, &[PAUSED], 0),
            (Unpause, Phase::Running, &[], 409),
            (Unpause, Phase::Succeeded, &[], 409),
            (Freeze, Phase::Pending, &[], 409),
            (SoftReboot, Phase::Running, &[], 0),
            (SoftReboot, Phase::Running, &[PAUSED], 409),
            (SoftReboot, Phase::Failed, &[], 409),
            (Reset, Phase::Scheduled, &[], 0),
            (Reset, Phase::Pending, &[], 400),
            (GuestInfo, Phase::Running, &[AGENT_CONNECTED], 0),
            (GuestInfo, Phase::Running, &[], 500),
            (GuestInfo, Phase::Pending, &[], 500),
        ] {
            let got = admit(&vmi(phase, conditions), None, action).err().map_or(0, |r| r.code);
            assert_eq!(got, code, "{action:?} {phase} {conditions:?}");
        }
    }

    #[test]
    fn the_spec_refuses_too() {
        let mut no_devices = vmi(Phase::Running, &[]);
        no_devices.spec.domain.devices.autoattach_serial_console = Some(false);
        no_devices.spec.domain.devices.autoattach_graphics_device = Some(false);
        no_devices.spec.domain.features = serde_json::from_value(json!({"acpi": {"enabled": false}})).unwrap();
        no_devices.spec.liveness_probe = serde_json::from_value(json!({"tcpSocket": {"port": 22}})).unwrap();
        no_devices.status.as_mut().unwrap().interfaces.clear();
        for (action, code) in [
            (VmiAction::Console, 400),
            (VmiAction::Vnc, 400),
            (VmiAction::PortForward, 400),
            (VmiAction::SoftReboot, 409),
            (VmiAction::Pause, 403),
        ] {
            assert_eq!(admit(&no_devices, None, action).unwrap_err().code, code, "{action:?}");
        }
    }
}
