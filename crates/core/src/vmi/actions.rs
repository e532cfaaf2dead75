//! What may be asked of a VMI in which state: the subresources' answers come from here.

use ferrovirt_api::v1::{Network, VirtualMachine, VirtualMachineInstance};
use serde_json::{Value, json};

use super::conditions::{AGENT_CONNECTED, PAUSED};
use super::{Phase, attestation};
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
    /// `vnc/screenshot`.
    Screenshot,
    /// `usbredir`.
    UsbRedir,
    /// `vsock`.
    Vsock,
    /// `evacuate/cancel`.
    EvacuateCancel,
    /// `sev/fetchcertchain`.
    SevCertificates,
    /// `sev/setupsession`.
    SevSession,
    /// `sev/querylaunchmeasurement`.
    SevMeasurement,
    /// `sev/injectlaunchsecret`.
    SevSecret,
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
        VmiAction::Screenshot if devices.autoattach_graphics_device == Some(false) => {
            Err(Refusal::bad_request("No graphics devices are present.").internal())
        }
        VmiAction::Screenshot if !running => conflict(NOT_RUNNING).map_err(Refusal::internal),
        VmiAction::Screenshot => Ok(()),
        VmiAction::UsbRedir if devices.client_passthrough.is_none() => conflict("Not configured with USB Redirection"),
        VmiAction::UsbRedir if vmi.spec.architecture.as_deref() == Some("s390x") => {
            conflict("USB Redirection is not available on s390x")
        }
        VmiAction::UsbRedir if !running => conflict(NOT_RUNNING),
        VmiAction::UsbRedir => Ok(()),
        VmiAction::Vsock if devices.autoattach_vsock != Some(true) => {
            Err(Refusal::bad_request("VSOCK is not attached."))
        }
        VmiAction::Vsock if !running => Err(Refusal::bad_request(NOT_RUNNING)),
        VmiAction::Vsock => Ok(()),
        VmiAction::EvacuateCancel if !running => conflict(NOT_RUNNING),
        VmiAction::EvacuateCancel => Ok(()),
        VmiAction::SevCertificates | VmiAction::SevSession | VmiAction::SevMeasurement | VmiAction::SevSecret => {
            sev(vmi, phase, is(PAUSED), action).or_else(conflict)
        }
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

/// The owner of a guest in encrypted memory looks at it before it starts: the session is set up while it is scheduled,
/// it is measured and given its secret while it is paused at its start.
fn sev(vmi: &VirtualMachineInstance, phase: Phase, paused: bool, action: VmiAction) -> Result<(), &'static str> {
    let Some(sev) = attestation::requested(vmi) else {
        return Err("Attestation not requested for VMI");
    };
    match action {
        VmiAction::SevSession if phase != Phase::Scheduled => Err("VMI is not in Scheduled phase"),
        VmiAction::SevSession if attestation::has_session(sev) => Err("Session already defined"),
        VmiAction::SevCertificates if phase != Phase::Scheduled && phase != Phase::Running => {
            Err("VMI is neither scheduled nor running")
        }
        VmiAction::SevMeasurement | VmiAction::SevSecret if phase != Phase::Running => Err(NOT_RUNNING),
        VmiAction::SevMeasurement | VmiAction::SevSecret if !paused => Err("VMI is not paused"),
        _ => Ok(()),
    }
}

/// `evacuate/cancel`: the JSON patch of the VMI's `/status` that ends it, or none when there is nothing to end. `node`:
/// the node that the client believes is being emptied, if it says so.
///
/// # Errors
/// The answer that the client gets.
pub fn cancel_evacuation(vmi: &VirtualMachineInstance, node: &str) -> Result<Option<Value>, Refusal> {
    admit(vmi, None, VmiAction::EvacuateCancel)?;
    let status = vmi.status.as_ref();
    let marked = status.and_then(|status| status.evacuation_node_name.as_deref());
    let marked = marked.unwrap_or_default();
    if !node.is_empty() && node != marked {
        let name = vmi.metadata.name.as_deref().unwrap_or_default();
        return Err(Refusal::bad_request(format!(
            "VMI {name} is not being evacuated from node {node:?} but from {marked:?}"
        )));
    }
    let path = "/status/evacuationNodeName";
    let patch = || {
        json!([
            {"op": "test", "path": path, "value": marked},
            {"op": "remove", "path": path},
        ])
    };
    Ok((!marked.is_empty()).then(patch))
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

/// The address that port-forward connects to: the one on the network that all pods have.
///
/// What addresses there are on other networks, or of virtual functions, may be the guest's own word, by which it would
/// choose what in the cluster is connected to.
#[must_use]
pub fn first_address(vmi: &VirtualMachineInstance) -> Option<&str> {
    let default = |network: &&Network| {
        let multus = network.multus.as_ref();
        network.pod.is_some() || multus.is_some_and(|multus| multus.default == Some(true))
    };
    let network = vmi.spec.networks.iter().find(default)?;
    let mut specs = vmi.spec.domain.devices.interfaces.iter();
    if specs.any(|spec| spec.name == network.name && spec.sriov.is_some()) {
        return None;
    }
    let mut interfaces = vmi.status.as_ref()?.interfaces.iter();
    let interface = interfaces.find(|interface| interface.name.as_ref() == Some(&network.name))?;
    interface.ip_address.as_deref().filter(|address| !address.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::Desired;

    fn vmi(phase: Phase, conditions: &[&str]) -> VirtualMachineInstance {
        let mut vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "x"},
            "spec": {"domain": {"devices": {}}, "networks": [{"name": "n", "pod": {}}]},
            "status": {"phase": phase.as_str(), "interfaces": [{"name": "n", "ipAddress": "10.0.0.2"}]}
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
        use VmiAction::{
            Console, EvacuateCancel, Freeze, GuestInfo, Pause, PortForward, Reset, Screenshot, SevCertificates,
            SevMeasurement, SevSecret, SevSession, SoftReboot, Unpause, UsbRedir, Vnc, Vsock,
        };
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
            (Freeze, Phase::Running, &[], 0),
            (Freeze, Phase::Failed, &[], 409),
            (Screenshot, Phase::Running, &[], 0),
            (Screenshot, Phase::Running, &[PAUSED], 0),
            (Screenshot, Phase::Scheduled, &[], 500),
            (UsbRedir, Phase::Running, &[], 409),
            (Vsock, Phase::Running, &[], 400),
            (EvacuateCancel, Phase::Running, &[], 0),
            (EvacuateCancel, Phase::Scheduling, &[], 409),
            (SevCertificates, Phase::Scheduled, &[], 409),
            (SevSession, Phase::Scheduled, &[], 409),
            (SevMeasurement, Phase::Running, &[PAUSED], 409),
            (SevSecret, Phase::Running, &[PAUSED], 409),
        ] {
            let got = admit(&vmi(phase, conditions), None, action).err().map_or(0, |r| r.code);
            assert_eq!(got, code, "{action:?} {phase} {conditions:?}");
        }
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn what_the_spec_asks_for_is_there_in_its_phase() {
        let with = |phase, conditions, devices: Value, sev: Value| {
            let mut asked = vmi(phase, conditions);
            asked.spec.domain.devices = serde_json::from_value(devices).unwrap();
            asked.spec.domain.launch_security = serde_json::from_value(json!({"sev": sev})).unwrap();
            asked
        };
        let attested = json!({"attestation": {}});
        let (session, none) = (json!({"attestation": {}, "session": "x"}), Value::Null);
        for (action, phase, conditions, devices, sev, code) in [
            (
                VmiAction::UsbRedir,
                Phase::Running,
                &[][..],
                json!({"clientPassthrough": {}}),
                &none,
                0,
            ),
            (
                VmiAction::UsbRedir,
                Phase::Scheduled,
                &[],
                json!({"clientPassthrough": {}}),
                &none,
                409,
            ),
            (
                VmiAction::Vsock,
                Phase::Running,
                &[],
                json!({"autoattachVSOCK": true}),
                &none,
                0,
            ),
            (
                VmiAction::Vsock,
                Phase::Scheduled,
                &[],
                json!({"autoattachVSOCK": true}),
                &none,
                400,
            ),
            (
                VmiAction::Vsock,
                Phase::Running,
                &[],
                json!({"autoattachVSOCK": false}),
                &none,
                400,
            ),
            (
                VmiAction::SevCertificates,
                Phase::Scheduled,
                &[],
                json!({}),
                &attested,
                0,
            ),
            (VmiAction::SevCertificates, Phase::Running, &[], json!({}), &attested, 0),
            (
                VmiAction::SevCertificates,
                Phase::Scheduling,
                &[],
                json!({}),
                &attested,
                409,
            ),
            (VmiAction::SevSession, Phase::Scheduled, &[], json!({}), &attested, 0),
            (VmiAction::SevSession, Phase::Scheduled, &[], json!({}), &session, 409),
            (VmiAction::SevSession, Phase::Running, &[], json!({}), &attested, 409),
            (
                VmiAction::SevMeasurement,
                Phase::Running,
                &[PAUSED],
                json!({}),
                &attested,
                0,
            ),
            (
                VmiAction::SevMeasurement,
                Phase::Running,
                &[],
                json!({}),
                &attested,
                409,
            ),
            (VmiAction::SevSecret, Phase::Running, &[PAUSED], json!({}), &session, 0),
            (
                VmiAction::SevSecret,
                Phase::Scheduled,
                &[PAUSED],
                json!({}),
                &session,
                409,
            ),
        ] {
            let asked = with(phase, conditions, devices.clone(), sev.clone());
            let got = admit(&asked, None, action).err().map_or(0, |r| r.code);
            assert_eq!(got, code, "{action:?} {phase} {conditions:?} {devices} {sev}");
        }
    }

    #[test]
    fn evacuations_are_cancelled() {
        let path = "/status/evacuationNodeName";
        let patch = json!([{"op": "test", "path": path, "value": "n"}, {"op": "remove", "path": path}]);
        for (phase, marked, node, expected) in [
            (Phase::Running, Some("n"), "", Ok(Some(&patch))),
            (Phase::Running, Some("n"), "n", Ok(Some(&patch))),
            (Phase::Running, Some("n"), "m", Err(400)),
            (Phase::Running, None, "", Ok(None)),
            (Phase::Running, None, "n", Err(400)),
            (Phase::Scheduled, Some("n"), "", Err(409)),
            (Phase::Succeeded, Some("n"), "", Err(409)),
        ] {
            let mut vmi = vmi(phase, &[]);
            vmi.status.as_mut().unwrap().evacuation_node_name = marked.map(str::to_owned);
            let got = cancel_evacuation(&vmi, node).map_err(|refusal| refusal.code);
            assert_eq!(
                got.as_ref().map(Option::as_ref),
                expected.as_ref().copied(),
                "{phase} {marked:?} {node}"
            );
        }
    }

    #[test]
    fn the_guest_does_not_choose_where_ports_are_forwarded_to() {
        let own = json!({"interfaceName": "lo0", "ipAddress": "169.254.169.254", "infoSource": "guest-agent"});
        let on = |name: &str, address: &str| json!({"name": name, "ipAddress": address, "infoSource": "domain, guest-agent"});
        for (networks, interfaces, expected) in [
            (
                json!([{"name": "n", "pod": {}}]),
                json!([on("n", "10.0.0.2"), own]),
                Some("10.0.0.2"),
            ),
            (
                json!([{"name": "n", "pod": {}}]),
                json!([own, on("n", "10.0.0.2")]),
                Some("10.0.0.2"),
            ),
            (json!([{"name": "n", "pod": {}}]), json!([own, on("n", "")]), None),
            (json!([]), json!([own]), None),
            (
                json!([{"name": "m", "multus": {"networkName": "x"}}]),
                json!([on("m", "10.9.0.1")]),
                None,
            ),
            (
                json!([{"name": "m", "multus": {"networkName": "x", "default": true}}]),
                json!([on("m", "10.9.0.1")]),
                Some("10.9.0.1"),
            ),
        ] {
            let mut vmi = vmi(Phase::Running, &[]);
            vmi.spec.networks = serde_json::from_value(networks).unwrap();
            vmi.status.as_mut().unwrap().interfaces = serde_json::from_value(interfaces).unwrap();
            assert_eq!(first_address(&vmi), expected, "{:?}", vmi.spec.networks);
        }
        let mut function = vmi(Phase::Running, &[]);
        assert!(first_address(&function).is_some());
        function.spec.domain.devices.interfaces = serde_json::from_value(json!([{"name": "n", "sriov": {}}])).unwrap();
        assert_eq!(first_address(&function), None);
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
            (VmiAction::Screenshot, 500),
            (VmiAction::PortForward, 400),
            (VmiAction::SoftReboot, 409),
            (VmiAction::Pause, 403),
        ] {
            assert_eq!(admit(&no_devices, None, action).unwrap_err().code, code, "{action:?}");
        }
    }
}
