//! The fields and conditions of a VMI's status that virt-controller owns. Pure.

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::{
    CPUTopology, MemoryStatus, VirtualMachineInstance, VirtualMachineInstanceStatus, VolumeStatus,
};
use ferrovirt_core::conditions::{self, Desired};
use ferrovirt_core::names;
use ferrovirt_core::vmi::{Phase, conditions as rules};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::devices::Devices;
use super::plan::Observed;
use super::pod;
use crate::cache::owner_uid;

/// Brings the controller's part of a status up to date for a VMI in `phase` with `pod`. `unsettled`: the reason of
/// `Synchronized` that stays, if it is there.
pub fn describe(
    status: &mut VirtualMachineInstanceStatus,
    observed: &Observed,
    phase: Phase,
    pod: Option<&Pod>,
    (unsettled, now): (Option<&str>, Timestamp),
) {
    set_conditions(status, observed, phase, pod, (unsettled, now));
    if phase.is_final() {
        return;
    }
    if let Some(pod) = pod {
        place(status, pod, phase);
        // The launcher reads it; it is there when the VMI is its node's.
        if status.vsockcid.is_none() {
            status.vsockcid = observed.vsock_cid.map(i64::from);
        }
        if let Devices::Given(devices) = &observed.devices {
            status.device_status = Some(devices.clone());
        }
        if status.launcher_container_image_version.is_none() {
            status.launcher_container_image_version = Some(observed.options.launcher_image.clone());
        }
    }
    if status.virtual_machine_revision_name.is_none() {
        status.virtual_machine_revision_name = revision(&observed.vmi);
    }
    status.runtime_user.get_or_insert(names::RUNTIME_USER);
    size(status, observed);
    volumes(status, observed);
}

/// Every volume; and of claims what the launcher needs to know, and users like to.
fn volumes(status: &mut VirtualMachineInstanceStatus, observed: &Observed) {
    for volume in &observed.vmi.spec.volumes {
        if !status.volume_status.iter().any(|known| known.name == volume.name) {
            status.volume_status.push(VolumeStatus {
                name: volume.name.clone(),
                ..VolumeStatus::default()
            });
        }
    }
    for (name, info) in observed.claims.describe(&observed.vmi.spec) {
        match status.volume_status.iter_mut().find(|volume| volume.name == name) {
            Some(volume) => volume.persistent_volume_claim_info = Some(info),
            None => status.volume_status.push(VolumeStatus {
                name,
                persistent_volume_claim_info: Some(info),
                ..VolumeStatus::default()
            }),
        }
    }
}

fn set_conditions(
    status: &mut VirtualMachineInstanceStatus,
    observed: &Observed,
    phase: Phase,
    pod: Option<&Pod>,
    (unsettled, now): (Option<&str>, Timestamp),
) {
    let list = &mut status.conditions;
    if let Some(desired) = rules::ready(&observed.vmi, phase, pod) {
        conditions::set(list, &desired, now);
    }
    match rules::pod_scheduled(pod).filter(|_| !phase.is_final()) {
        Some(desired) => conditions::set(list, &desired, now),
        None => conditions::remove(list, rules::POD_SCHEDULED),
    };
    let trouble = rules::image_trouble(pod).or_else(|| match &observed.devices {
        Devices::Awaited(why) => Some(Desired::new(
            rules::SYNCHRONIZED,
            false,
            rules::DEVICES_NOT_ALLOCATED,
            why,
        )),
        Devices::Settled | Devices::Given(_) => None,
    });
    let trouble = trouble.filter(|_| !phase.is_final());
    let reason = conditions::find(list, rules::SYNCHRONIZED).and_then(|c| c.reason.as_deref());
    let ours = reason.is_some_and(|reason| rules::CONTROLLER_REASONS.contains(&reason) && unsettled != Some(reason));
    match trouble {
        Some(desired) => {
            conditions::set(list, &desired, now);
        }
        None if ours => {
            conditions::remove(list, rules::SYNCHRONIZED);
        }
        None => {}
    }
}

fn place(status: &mut VirtualMachineInstanceStatus, pod: &Pod, phase: Phase) {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    if let Some(uid) = &pod.metadata.uid {
        let node = node.clone().unwrap_or_default();
        if status.active_pods.get(uid) != Some(&node) {
            status.active_pods.retain(|other, _| other == uid);
            status.active_pods.insert(uid.clone(), node);
        }
    }
    if let Some(class) = pod.status.as_ref().and_then(|s| s.qos_class.clone()) {
        status.qos_class = Some(class);
    }
    if phase == Phase::Scheduled {
        status.node_name = node;
        status.migration_transport = Some("Unix".to_owned());
    }
}

/// Name of the revision of the VM that a VMI was created from, if a VM created it.
fn revision(vmi: &VirtualMachineInstance) -> Option<String> {
    let annotations = vmi.metadata.annotations.as_ref()?;
    let generation = annotations.get(names::VM_GENERATION_ANNOTATION)?.parse().ok()?;
    Some(names::start_revision(owner_uid(vmi)?, generation))
}

/// How large the guest was made.
fn size(status: &mut VirtualMachineInstanceStatus, observed: &Observed) {
    let domain = &observed.vmi.spec.domain;
    if status.current_cpu_topology.is_none() {
        let cpu = domain.cpu.as_ref();
        let count = |n: Option<i64>| Some(n.filter(|n| *n > 0).unwrap_or(1));
        status.current_cpu_topology = Some(CPUTopology {
            cores: count(cpu.and_then(|c| c.cores)),
            sockets: count(cpu.and_then(|c| c.sockets)),
            threads: count(cpu.and_then(|c| c.threads)),
        });
    }
    let guest = domain.memory.as_ref().and_then(|m| m.guest.clone());
    let memory = status.memory.get_or_insert_with(|| MemoryStatus {
        guest_at_boot: guest.clone(),
        guest_current: guest.clone(),
        guest_requested: guest,
        memory_overhead: None,
    });
    if memory.memory_overhead.is_none() {
        let bytes = pod::overhead(&observed.vmi, &observed.config);
        memory.memory_overhead = bytes.map(|bytes| Quantity(bytes.to_string()));
    }
}
