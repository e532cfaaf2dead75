//! VirtualMachines: only what must stay the same over all runs is written into them.

use ferrovirt_api::v1::VirtualMachine;
use uuid::Uuid;

use super::{default_architecture, observed};
use crate::config::ClusterConfig;

/// Annotation on VM templates and VMIs.
pub const PCI_TOPOLOGY_ANNOTATION: &str = "kubevirt.io/pci-topology-version";

/// Completes a VM that is being created: only what must stay the same over all its runs, so that everything
/// else follows the cluster's configuration at each start.
///
/// `uuid` and `serial` become the firmware's if there are none. Doing it again changes nothing.
pub fn default_vm(vm: &mut VirtualMachine, config: &ClusterConfig, uuid: Uuid, serial: Uuid) {
    observed(&mut vm.metadata);
    let template = &mut vm.spec.template;
    let Some(spec) = &mut template.spec else { return };
    default_architecture(spec, config);
    let firmware = spec.domain.firmware.get_or_insert_default();
    if is_empty(&firmware.uuid) {
        firmware.uuid = Some(uuid.to_string());
    }
    if is_empty(&firmware.serial) {
        firmware.serial = Some(serial.to_string());
    }
    let machine = spec.domain.machine.as_ref().and_then(|m| m.r#type.as_deref());
    if machine.is_some_and(|m| m.contains("q35") || m.starts_with("virt")) {
        template
            .metadata
            .get_or_insert_default()
            .annotations
            .get_or_insert_default()
            .entry(PCI_TOPOLOGY_ANNOTATION.to_owned())
            .or_insert_with(|| "v3".to_owned());
    }
}

/// Completes a VM that is being changed: who replaces it with the manifest it was made from does not mean to give the
/// guest other hardware. What [`default_vm`] had written into `old` and the new one does not say, it gets again.
///
/// A VM that never had a UUID or a serial number gets none: it has been started without. A template that stays stays as
/// it is, or labelling a VM would require its restart. Doing it again changes nothing.
pub fn default_vm_update(vm: &mut VirtualMachine, old: &VirtualMachine, config: &ClusterConfig) {
    observed(&mut vm.metadata);
    let (template, before) = (&mut vm.spec.template, &old.spec.template);
    if template == before {
        return;
    }
    let Some(spec) = &mut template.spec else { return };
    if let Some(old) = &before.spec {
        if is_empty(&spec.architecture) {
            spec.architecture.clone_from(&old.architecture);
        }
        let types = old.domain.machine.as_ref().and_then(|machine| machine.r#type.as_ref());
        let unsaid = spec
            .domain
            .machine
            .as_ref()
            .is_none_or(|machine| is_empty(&machine.r#type));
        // Another architecture has other machines.
        if let Some(kind) = types.filter(|_| unsaid && spec.architecture == old.architecture) {
            spec.domain.machine.get_or_insert_default().r#type = Some(kind.clone());
        }
        if let Some(old) = &old.domain.firmware {
            let (uuid, serial) = (old.uuid.as_ref(), old.serial.as_ref());
            if uuid.or(serial).is_some() {
                let firmware = spec.domain.firmware.get_or_insert_default();
                for (value, old) in [(&mut firmware.uuid, uuid), (&mut firmware.serial, serial)] {
                    if is_empty(value) && old.is_some() {
                        *value = old.cloned();
                    }
                }
            }
        }
    }
    default_architecture(spec, config);
    let topology = before
        .metadata
        .as_ref()
        .and_then(|m| m.annotations.as_ref()?.get(PCI_TOPOLOGY_ANNOTATION));
    if let Some(topology) = topology {
        let annotations = template
            .metadata
            .get_or_insert_default()
            .annotations
            .get_or_insert_default();
        annotations
            .entry(PCI_TOPOLOGY_ANNOTATION.to_owned())
            .or_insert_with(|| topology.clone());
    }
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_deref().is_none_or(str::is_empty)
}
