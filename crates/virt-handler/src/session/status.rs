//! The VMI's status as the node sees it, and the patch that makes it so. Pure.

use std::collections::BTreeSet;

use ferrovirt_api::v1::{
    Interface as WireInterface, Machine, VirtualMachineInstance, VirtualMachineInstanceCondition,
    VirtualMachineInstanceNetworkInterface, VirtualMachineInstancePhaseTransitionTimestamp,
    VirtualMachineInstanceStatus, VolumeStatus,
};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::conditions::{self, Desired, wire_time};
use ferrovirt_core::machine::Machine as Parsed;
use ferrovirt_core::names;
use ferrovirt_core::vmi::conditions::{
    AGENT_CONNECTED, AGENT_VERSION_NOT_SUPPORTED, CONTROLLER_REASONS, PAUSED, SYNCHRONIZED,
};
use ferrovirt_core::vmi::migratable::{
    STORAGE_LIVE_MIGRATABLE, live_migratable, migration_method, storage_live_migratable,
};
use ferrovirt_core::vmi::phase::{GuestView, REASON_DESTROYED, Seen, next_phase};
use ferrovirt_core::vmi::{Phase, addresses, agent, phase::Owner};
use ferrovirt_protocol::launcher::{AccessCredentials, GuestState, Lifecycle, Nic};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::report::{self, GuestInfo, Interface};
use crate::events::{self, Note};

/// Condition type: the guest runs without KVM.
pub(crate) const SOFTWARE_EMULATION: &str = "SoftwareEmulation";
/// Condition type: the guest's users have the credentials of the VMI.
const ACCESS_CREDENTIALS: &str = "AccessCredentialsSynchronized";
/// Reason of [`SOFTWARE_EMULATION`].
const NO_KVM: &str = "NoUsableKVM";
/// Reason of `Synchronized=False`, as users know it.
const SYNC_FAILED_REASON: &str = "Synchronizing with the Domain failed.";
/// More addresses of a NIC than this are not told.
const MAX_ADDRESSES: usize = 16;

/// What the node knows of one VMI's guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View<'a> {
    /// The newest report.
    pub(crate) guest: Option<&'a GuestState>,
    /// The launcher is gone.
    pub(crate) gone: Option<Gone>,
    /// NICs as prepared; unknown until the network was looked at.
    pub(crate) nics: Option<&'a [Nic]>,
    /// The interfaces that the pod's network status names.
    pub(crate) multus: Option<&'a BTreeSet<String>>,
    /// What went wrong and is tried again.
    pub(crate) trouble: Option<&'a str>,
    /// What went wrong for good.
    pub(crate) hopeless: Option<&'a str>,
    /// The cluster's configuration, if it is not the default one.
    pub(crate) config: Option<&'a ClusterConfig>,
}

/// How a launcher ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// Its pod says that it ended well.
    Clean,
    /// In any other way.
    Dead,
}

/// A status that differs from the stored one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) status: VirtualMachineInstanceStatus,
    pub(crate) urgent: bool,
    /// What to tell when it is written.
    pub(crate) notes: Vec<Note>,
}

/// What the status should be, or `None` when it is so already.
pub(crate) fn change(vmi: &VirtualMachineInstance, view: &View<'_>, now: Timestamp) -> Option<Change> {
    let old = vmi.status.clone().unwrap_or_default();
    let phase = Phase::of(vmi);
    if phase.owner() != Owner::Handler {
        return None;
    }
    let next = next_phase(phase, Seen::Guest(guest_view(vmi, view)));
    let current = next.map_or(phase, |(phase, _)| phase);
    let mut status = old.clone();
    set_conditions(&mut status.conditions, vmi, view, current, now);
    if let Some(guest) = view.guest.filter(|_| current == Phase::Running) {
        describe_guest(&mut status, vmi, guest, view);
    }
    let mut notes = Vec::new();
    let credentials = view.guest.and_then(|guest| guest.access_credentials.as_ref());
    if let Some(credentials) = credentials.filter(|_| current == Phase::Running) {
        notes.extend(set_credentials(&mut status.conditions, credentials, now));
    }
    // A guest that is on its way to its end is not paused any more, either.
    let runs = current == Phase::Running && view.guest.is_some_and(|guest| guest.lifecycle() == Lifecycle::Running);
    if runs && conditions::is_true(&old.conditions, PAUSED) {
        notes.push(Note::normal(events::RESUMED, "VirtualMachineInstance resumed."));
    }
    if let Some((phase, reason)) = next {
        status.phase = Some(phase.as_str().to_owned());
        status.reason = reason.map(str::to_owned).or(status.reason);
        status
            .phase_transition_timestamps
            .push(VirtualMachineInstancePhaseTransitionTimestamp {
                phase: status.phase.clone(),
                phase_transition_timestamp: Some(wire_time(now)),
            });
        notes.extend(note(phase, reason, view));
    }
    let urgent = next.is_some()
        || [PAUSED, SYNCHRONIZED].iter().any(|kind| {
            conditions::find(&old.conditions, kind).map(said) != conditions::find(&status.conditions, kind).map(said)
        });
    (status != old).then_some(Change { status, urgent, notes })
}

fn said(condition: &VirtualMachineInstanceCondition) -> (&str, Option<&str>, Option<&str>) {
    (
        &condition.status,
        condition.reason.as_deref(),
        condition.message.as_deref(),
    )
}

fn guest_view(vmi: &VirtualMachineInstance, view: &View<'_>) -> GuestView {
    if view.hopeless.is_some() {
        return GuestView::StartFailed;
    }
    let acpi = vmi
        .spec
        .domain
        .features
        .as_ref()
        .and_then(|f| f.acpi.as_ref())
        .and_then(|a| a.enabled)
        .unwrap_or(true);
    let reason = view
        .guest
        .map(|guest| guest.reason.to_ascii_lowercase())
        .unwrap_or_default();
    let ended = match view.guest.map(GuestState::lifecycle) {
        Some(Lifecycle::ShutOff) => match reason.as_str() {
            "crashed" | "panicked" => Some(GuestView::Crashed),
            "failed" => Some(GuestView::StartFailed),
            "destroyed" => Some(GuestView::Destroyed { acpi }),
            "migrated" => Some(GuestView::Migrated),
            _ => Some(GuestView::ShutDown),
        },
        Some(Lifecycle::Crashed) => Some(GuestView::Crashed),
        Some(Lifecycle::Failed) => Some(GuestView::StartFailed),
        _ => None,
    };
    match (ended, view.gone, view.guest.map(GuestState::lifecycle)) {
        (Some(ended), _, _) => ended,
        (None, Some(Gone::Clean), _) => GuestView::ShutDown,
        (None, Some(Gone::Dead), _) => GuestView::LauncherGone,
        (None, None, Some(Lifecycle::Running | Lifecycle::Paused | Lifecycle::ShuttingDown)) => GuestView::Running,
        (None, None, _) => GuestView::Starting,
    }
}

fn note(phase: Phase, reason: Option<&str>, view: &View<'_>) -> Option<Note> {
    let said = view.guest.map(|guest| guest.message.as_str()).unwrap_or_default();
    match phase {
        Phase::Running => {
            let how = if emulated(view.guest) {
                " under software emulation (TCG): this node cannot run guests with KVM, so it is slow"
            } else {
                ""
            };
            Some(Note::normal(
                events::STARTED,
                format!("VirtualMachineInstance started{how}."),
            ))
        }
        Phase::Succeeded => Some(Note::normal(
            events::STOPPED,
            "The VirtualMachineInstance was shut down.",
        )),
        Phase::Failed if view.hopeless.is_some() => view
            .hopeless
            .map(|why| Note::warning(events::SYNC_FAILED, why.to_owned())),
        Phase::Failed if view.guest.is_some_and(|guest| guest.lifecycle() == Lifecycle::Failed) => Some(Note::warning(
            events::SYNC_FAILED,
            format!("The guest could not be started: {said}"),
        )),
        Phase::Failed if reason == Some(REASON_DESTROYED) => Some(Note::warning(
            events::STOPPED,
            "The VirtualMachineInstance was stopped without a shutdown of its guest.",
        )),
        Phase::Failed => {
            let why = match view.gone {
                Some(Gone::Dead) => ": its virt-launcher ended unexpectedly and took the guest with it".to_owned(),
                _ if said.is_empty() => String::new(),
                _ => format!(": {said}"),
            };
            let reason = reason.unwrap_or_default();
            Some(Note::warning(
                events::STOPPED,
                format!("The VirtualMachineInstance failed ({reason}){why}"),
            ))
        }
        _ => None,
    }
}

fn emulated(guest: Option<&GuestState>) -> bool {
    guest.is_some_and(|guest| guest.domain_type == "qemu")
}

fn set_conditions(
    list: &mut Vec<VirtualMachineInstanceCondition>,
    vmi: &VirtualMachineInstance,
    view: &View<'_>,
    phase: Phase,
    now: Timestamp,
) {
    let running = phase == Phase::Running;
    let lifecycle = view.guest.map(GuestState::lifecycle);
    let failed_to_start = view.guest.filter(|guest| guest.lifecycle() == Lifecycle::Failed);
    let mut put = |kind: &str, desired: Option<Desired>| match desired {
        Some(desired) => conditions::set(list, &desired, now),
        None => conditions::remove(list, kind),
    };
    if phase.is_final() || view.guest.is_some() {
        let paused = (running && lifecycle == Some(Lifecycle::Paused)).then(|| pause(view.guest));
        put(PAUSED, paused);
        let agent = running && view.guest.is_some_and(|guest| guest.agent_connected);
        put(
            AGENT_CONNECTED,
            agent.then(|| Desired::new(AGENT_CONNECTED, true, "", "")),
        );
        // An agent that has not said yet what it can do may be the one of whom that was known.
        let said = view.guest.filter(|_| agent).map(GuestInfo::of);
        if said.as_ref().is_none_or(|info| !info.supported_commands.is_empty()) {
            let lacking = said.and_then(|info| {
                let commands: Vec<String> = info.supported_commands.into_iter().map(|c| c.name).collect();
                agent::not_supported(&vmi.spec, &commands)
            });
            put(AGENT_VERSION_NOT_SUPPORTED, lacking);
        }
    }
    if running {
        if view.guest.is_some_and(|guest| !guest.domain_type.is_empty()) {
            let message = "The guest runs under TCG: its node cannot run guests with KVM";
            let desired = Desired::new(SOFTWARE_EMULATION, true, NO_KVM, message);
            put(SOFTWARE_EMULATION, emulated(view.guest).then_some(desired));
        }
        let defaults = ClusterConfig::default();
        let config = view.config.unwrap_or(&defaults);
        put("LiveMigratable", Some(live_migratable(vmi, config)));
        put(STORAGE_LIVE_MIGRATABLE, Some(storage_live_migratable(vmi, config)));
    }
    let wrong = view
        .hopeless
        .or(view.trouble)
        .or(failed_to_start.map(|guest| guest.message.as_str()));
    match wrong {
        Some(message) => {
            put(
                SYNCHRONIZED,
                Some(Desired::new(SYNCHRONIZED, false, SYNC_FAILED_REASON, message)),
            );
        }
        None => {
            let reason = conditions::find(list, SYNCHRONIZED)
                .and_then(|c| c.reason.as_deref())
                .unwrap_or_default();
            if !CONTROLLER_REASONS.contains(&reason) {
                conditions::remove(list, SYNCHRONIZED);
            }
        }
    }
}

/// Returns what to tell, if the condition changes.
fn set_credentials(
    list: &mut Vec<VirtualMachineInstanceCondition>,
    credentials: &AccessCredentials,
    now: Timestamp,
) -> Option<Note> {
    let AccessCredentials { synchronized, message } = credentials;
    let desired = Desired::new(ACCESS_CREDENTIALS, *synchronized, "", message);
    conditions::set(list, &desired, now).then(|| {
        if *synchronized {
            Note::normal(events::CREDENTIALS_SYNCED, "Access credentials sync successful.")
        } else {
            Note::warning(
                events::CREDENTIALS_NOT_SYNCED,
                format!("Access credentials sync failed: {message}"),
            )
        }
    })
}

fn pause(guest: Option<&GuestState>) -> Desired {
    let reason = guest.map(|guest| guest.reason.to_ascii_lowercase()).unwrap_or_default();
    let (reason, message) = match reason.as_str() {
        "ioerror" | "i/o error" => (
            "PausedIOError",
            "VMI was paused because a disk reported an error; is the node's storage full?",
        ),
        "migration" => ("PausedByMigrationMonitor", "VMI was paused by the migration monitor"),
        _ => ("PausedByUser", "VMI was paused by user"),
    };
    Desired::new(PAUSED, true, reason, message)
}

fn describe_guest(
    status: &mut VirtualMachineInstanceStatus,
    vmi: &VirtualMachineInstance,
    guest: &GuestState,
    view: &View<'_>,
) {
    let info = GuestInfo::of(guest);
    if let Some(nics) = view.nics {
        status.interfaces = interfaces(vmi, nics, &info.interfaces, view);
    }
    let os = info.os.filter(|os| *os != Default::default());
    status.guest_os_info = os.or(status.guest_os_info.take().filter(|_| guest.agent_connected));
    status.fs_freeze_status = info.fs_freeze_status.filter(|freeze| freeze == "frozen");
    if !guest.machine_type.is_empty() {
        status.machine = Some(Machine {
            r#type: Some(guest.machine_type.clone()),
        });
    }
    status.migration_method = Some(migration_method(&vmi.spec).as_str().to_owned());
    for volume in report::volumes(guest)
        .into_iter()
        .filter(|volume| vmi.spec.volumes.iter().any(|v| v.name == volume.name))
    {
        match status.volume_status.iter_mut().find(|old| old.name == volume.name) {
            Some(old) => {
                old.target = volume.target;
                old.size = volume.size.or(old.size);
            }
            None => status.volume_status.push(VolumeStatus {
                name: volume.name,
                target: volume.target,
                size: volume.size,
                ..VolumeStatus::default()
            }),
        }
    }
}

/// The VMI's NICs, with what the agent says of them, then the guest's own interfaces. Which address a NIC is reached by
/// is never taken from the guest: port-forward connects to it.
fn interfaces(
    vmi: &VirtualMachineInstance,
    nics: &[Nic],
    reported: &[Interface],
    view: &View<'_>,
) -> Vec<VirtualMachineInstanceNetworkInterface> {
    let named = |interface: &str| view.multus.is_some_and(|names| names.contains(interface));
    let default = ClusterConfig::default();
    let machine = Parsed::parse(vmi, view.config.unwrap_or(&default)).ok();
    let same = |nic: &Nic, mac: Option<&str>| mac.is_some_and(|mac| mac.eq_ignore_ascii_case(&nic.mac));
    let mut list = Vec::new();
    for nic in nics {
        let agent = reported.iter().find(|interface| same(nic, interface.mac.as_deref()));
        let inner = nic
            .dhcp
            .as_ref()
            .map(|dhcp| dhcp.client_ip.as_str())
            .unwrap_or_default();
        let spec = vmi
            .spec
            .domain
            .devices
            .interfaces
            .iter()
            .find(|i| i.name == nic.network);
        // Behind masquerade, nobody reaches an address that the guest has.
        let hidden = spec.is_some_and(|spec| spec.masquerade.is_some());
        let parsed = machine.as_ref().and_then(|machine| {
            let interface = machine.interfaces.iter().find(|i| i.name == nic.network)?;
            Some((interface.link_down, machine.network_queues(interface)))
        });
        let (down, queues) = parsed.unwrap_or((false, 1));
        let mut seen: BTreeSet<&str> = nic.pod_ips.iter().map(String::as_str).collect();
        let mut reachable = nic.pod_ips.clone();
        for ip in agent.iter().filter(|_| !hidden).flat_map(|agent| &agent.ip_addresses) {
            if ip != inner && !addresses::is_link_local(ip) && seen.insert(ip) && reachable.len() < MAX_ADDRESSES {
                reachable.push(ip.clone());
            }
        }
        list.push(VirtualMachineInstanceNetworkInterface {
            name: Some(nic.network.clone()),
            mac: Some(nic.mac.clone()),
            ip_address: reachable.first().cloned(),
            ip_addresses: reachable,
            interface_name: agent.and_then(|agent| agent.interface_name.clone()),
            pod_interface_name: Some(nic.pod_interface.clone()),
            info_source: source(agent.is_some(), named(&nic.pod_interface)),
            link_state: Some(if down { "down" } else { "up" }.to_owned()),
            queue_count: i32::try_from(queues).ok(),
        });
    }
    let own = reported.iter().filter(|interface| {
        interface.interface_name.as_deref() != Some("lo") && !nics.iter().any(|nic| same(nic, interface.mac.as_deref()))
    });
    let mut own: Vec<_> = own.map(Interface::to_status).collect();
    let interfaces = vmi.spec.domain.devices.interfaces.iter();
    // Of what the sidecar of a plugin attaches, the node knows as little as of virtual functions.
    let foreign = |interface: &&WireInterface| {
        let attached = interface.sriov.is_some() || interface.binding.is_some();
        attached && !nics.iter().any(|nic| nic.network == interface.name)
    };
    list.extend(
        interfaces
            .filter(foreign)
            .map(|interface| seen_by_guest(interface, &mut own, named(&names::pod_interface(&interface.name)))),
    );
    list.extend(own);
    list
}

/// Who tells of an interface of the domain.
fn source(agent: bool, named: bool) -> Option<String> {
    let agent = agent.then_some("guest-agent");
    let named = named.then_some("multus-status");
    let all: Vec<&str> = ["domain"].into_iter().chain(agent).chain(named).collect();
    Some(all.join(", "))
}

/// A NIC that only the guest sees: it is found there by the MAC address that the spec chooses.
fn seen_by_guest(
    interface: &WireInterface,
    own: &mut Vec<VirtualMachineInstanceNetworkInterface>,
    named: bool,
) -> VirtualMachineInstanceNetworkInterface {
    let wanted = interface.mac_address.as_deref().filter(|mac| !mac.is_empty());
    let same = |seen: &VirtualMachineInstanceNetworkInterface| {
        let pair = seen.mac.as_deref().zip(wanted);
        pair.is_some_and(|(seen, wanted)| seen.eq_ignore_ascii_case(&wanted.replace('-', ":")))
    };
    let seen = own.iter().position(same).map(|place| own.remove(place));
    VirtualMachineInstanceNetworkInterface {
        name: Some(interface.name.clone()),
        mac: wanted.map(str::to_owned),
        info_source: source(seen.is_some(), named),
        ..seen.unwrap_or_default()
    }
}

/// How a patch makes sure that it changes what it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The fields with two writers are as they were read.
    Fields,
    /// The object is as it was read.
    Version,
}

/// A JSON patch from the stored status to the wanted one; it fails when somebody else was faster.
pub(crate) fn patch(
    vmi: &VirtualMachineInstance,
    wanted: &VirtualMachineInstanceStatus,
    guard: Guard,
) -> serde_json::Result<Value> {
    let old = vmi.status.as_ref().map(serde_json::to_value).transpose()?;
    let new = serde_json::to_value(wanted)?;
    let empty = serde_json::Map::new();
    let before = old.as_ref().and_then(Value::as_object).unwrap_or(&empty);
    let after = new.as_object().unwrap_or(&empty);
    let mut tests = Vec::new();
    let mut operations = Vec::new();
    let mut by_version = guard == Guard::Version || old.is_none();
    if old.is_none() {
        operations.push(json!({"op": "add", "path": "/status", "value": {}}));
    }
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let path = format!("/status/{key}");
        match (before.get(key), after.get(key)) {
            (was, is) if was == is => {}
            (was, is) => {
                match (key.as_str(), was) {
                    ("conditions" | "phase", Some(was)) => {
                        tests.push(json!({"op": "test", "path": path, "value": was}));
                    }
                    // An absent field cannot be tested for.
                    ("conditions" | "phase", None) => by_version = true,
                    _ => {}
                }
                operations.push(match (was, is) {
                    (_, None) => json!({"op": "remove", "path": path}),
                    (None, Some(is)) => json!({"op": "add", "path": path, "value": is}),
                    (Some(_), Some(is)) => json!({"op": "replace", "path": path, "value": is}),
                });
            }
        }
    }
    if by_version {
        tests = vec![json!({
            "op": "test", "path": "/metadata/resourceVersion", "value": vmi.metadata.resource_version,
        })];
    }
    // A VMI of the same name that came later is not meant.
    let uid = vmi.metadata.uid.iter();
    let uid = uid.map(|uid| json!({"op": "test", "path": "/metadata/uid", "value": uid}));
    Ok(uid.chain(tests).chain(operations).collect())
}

#[cfg(test)]
mod tests;
