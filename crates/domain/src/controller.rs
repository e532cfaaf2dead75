//! Controllers that the machine's devices need; PCIe ports are left to libvirt.

use ferrovirt_core::machine::{Architecture, Bus, Machine};

use crate::facts::Facts;
use crate::host_device::has_usb;
use crate::input::has_usb_input;
use crate::virtio;
use crate::xml::{Element, el};

pub(crate) fn controllers(machine: &Machine, facts: &Facts) -> Vec<Element> {
    let has = |bus| machine.disks.iter().any(|disk| disk.bus == bus);
    let controller = |kind: &str| el("controller").attr("type", kind).attr("index", 0);
    // Without a word, libvirt adds a USB controller that costs a guest's kernel its polling.
    let usb = has(Bus::Usb) || has_usb_input(machine) || machine.usb_redirection || has_usb(facts);
    let mut controllers = vec![controller("usb").attr("model", if usb { "qemu-xhci" } else { "none" })];
    if has(Bus::Scsi) {
        let model = match virtio(machine) {
            "virtio" => "virtio-scsi",
            model => model,
        };
        let thread = machine.scsi_io_thread;
        let thread = thread.map(|thread| el("driver").attr("iothread", thread));
        controllers.push(controller("scsi").attr("model", model).children(thread));
    }
    // For the guest agent's channel, which is always there.
    controllers.push(controller("virtio-serial").attr("model", virtio(machine)));
    controllers.extend(pci_root(machine));
    controllers
}

/// The root of the PCI bus, only where it is not as libvirt makes it.
fn pci_root(machine: &Machine) -> Option<Element> {
    if machine.pci_hole64 || machine.architecture != Architecture::Amd64 {
        return None;
    }
    let model = if machine.machine_type.contains("q35") {
        "pcie-root"
    } else {
        "pci-root"
    };
    let hole = el("pcihole64").attr("unit", "KiB").text(0);
    Some(
        el("controller")
            .attr("type", "pci")
            .attr("index", 0)
            .attr("model", model)
            .child(hole),
    )
}
