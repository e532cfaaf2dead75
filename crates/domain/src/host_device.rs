//! Devices of the node.

use ferrovirt_core::machine::{HostDevice, Machine};

use crate::facts::{Facts, HostDeviceFact, MissingFact};
use crate::features::on_off;
use crate::xml::{Element, el};
use crate::{alias, pci_source};

pub(crate) fn host_devices(machine: &Machine, facts: &Facts) -> Result<Vec<Element>, MissingFact> {
    // One part of a GPU is the screen, unless some option says which.
    let mut default_screen = machine.graphics && machine.host_devices.iter().all(|device| device.display.is_none());
    machine
        .host_devices
        .iter()
        .map(|device| {
            let missing = || MissingFact::HostDevice {
                name: device.name.clone(),
                wanted: device.source.clone(),
            };
            let fact = facts.host_devices.get(&device.alias()).ok_or_else(missing)?;
            let own = machine.video.as_deref() == Some("ramfb");
            Ok(element(device, fact, &mut default_screen, own))
        })
        .collect()
}

fn element(device: &HostDevice, fact: &HostDeviceFact, default_screen: &mut bool, has_ram_fb: bool) -> Element {
    let element = el("hostdev").attr("mode", "subsystem");
    let element = match fact {
        HostDeviceFact::Pci(address) => element
            .attr("type", "pci")
            .attr("managed", "no")
            .child(el("source").child(pci_source(*address))),
        HostDeviceFact::Usb { bus, device } => element
            .attr("type", "usb")
            .attr("managed", "no")
            .child(el("source").child(el("address").attr("bus", bus).attr("device", device))),
        HostDeviceFact::Mediated(uuid) => {
            let (screen, ram_fb) = match device.display {
                Some(display) => (display.enabled, display.ram_fb),
                None => {
                    let first = std::mem::take(default_screen);
                    (first, first && !has_ram_fb)
                }
            };
            element
                .attr("type", "mdev")
                .attr("model", "vfio-pci")
                .attr_if("display", screen.then(|| on_off(true)))
                .attr_if("ramfb", ram_fb.then(|| on_off(true)))
                .child(el("source").child(el("address").attr("uuid", uuid)))
        }
    };
    element.child(alias(&device.alias()))
}

pub(crate) fn has_usb(facts: &Facts) -> bool {
    let usb = |fact: &HostDeviceFact| matches!(fact, HostDeviceFact::Usb { .. });
    facts.host_devices.values().any(usb)
}
