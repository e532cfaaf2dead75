#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! [`domain_xml`] is pure: the same machine and facts give the same text. One file per element of the domain.

mod balloon;
mod boot;
mod channel;
mod clock;
mod console;
mod controller;
mod cpu;
mod disk;
mod facts;
mod features;
mod filesystem;
mod graphics;
mod host_device;
mod hyperv;
mod input;
mod interface;
mod io_threads;
mod launch_security;
mod lifecycle;
mod memory;
mod metadata;
mod panic;
mod pinning;
mod redirection;
mod rng;
mod sound;
mod sysinfo;
mod tpm;
mod video;
mod vsock;
mod watchdog;
mod xml;

use ferrovirt_core::machine::{Architecture, Machine};

pub use disk::targets as disk_targets;
pub use facts::{
    Backing, BlockSizes, DiskFile, DiskFormat, Facts, FirmwareFiles, HostCpu, HostDeviceFact, MissingFact, NicFact,
};
pub use lifecycle::domain_name;
use xml::{Element, el};

/// The libvirt domain of `machine` on this node.
///
/// # Errors
/// A disk, NIC or firmware of the machine has no counterpart in `facts`.
pub fn domain_xml(machine: &Machine, facts: &Facts) -> Result<String, MissingFact> {
    let domain = el("domain")
        .attr("type", if facts.kvm { "kvm" } else { "qemu" })
        .child(el("name").text(domain_name(&facts.namespace, &facts.name)))
        .child(el("uuid").text(machine.uuid))
        .child(metadata::metadata(machine, facts))
        .children(memory::memory(machine))
        .children(memory::backing(machine))
        .children(cpu::vcpus(machine))
        .children(io_threads::count(machine))
        .children(pinning::tune(machine, facts)?)
        .children(pinning::numa_tune(machine, facts)?)
        .children(sysinfo::sysinfo(machine, facts)?)
        .child(boot::os(machine, facts)?)
        .child(features::features(machine, facts))
        .child(cpu::cpu(machine, facts)?)
        .child(clock::clock(machine))
        .children(lifecycle::actions(machine))
        .child(devices(machine, facts)?)
        .children(launch_security::launch_security(machine));
    Ok(domain.to_xml())
}

fn devices(machine: &Machine, facts: &Facts) -> Result<Element, MissingFact> {
    Ok(el("devices")
        .child(el("emulator").text(facts.emulator.display()))
        .children(disk::disks(machine, facts)?)
        .children(controller::controllers(machine, facts))
        .children(filesystem::filesystems(machine, facts)?)
        .children(interface::interfaces(machine, facts)?)
        .children(host_device::host_devices(machine, facts)?)
        .children(console::serial(machine, facts))
        .child(channel::guest_agent(facts))
        .children(channel::downward_metrics(machine, facts))
        .children(input::inputs(machine))
        .children(graphics::graphics(machine, facts))
        .children(video::video(machine))
        .children(sound::sound(machine))
        .children(tpm::tpm(machine, facts)?)
        .children(redirection::ports(machine, facts))
        .child(balloon::balloon(machine))
        .children(rng::rng(machine))
        .children(watchdog::watchdog(machine))
        .children(panic::panics(machine))
        .children(vsock::vsock(machine, facts)?)
        .children(memory::device(machine)))
}

/// libvirt's model of a virtio device.
fn virtio(machine: &Machine) -> &'static str {
    match (machine.architecture, machine.virtio_transitional) {
        (Architecture::S390x, _) => "virtio",
        (Architecture::Amd64 | Architecture::Arm64, true) => "virtio-transitional",
        (Architecture::Amd64 | Architecture::Arm64, false) => "virtio-non-transitional",
    }
}

/// `ua-<name>`: how a device of the spec is found again in libvirt's events and in QEMU.
fn alias(name: &str) -> Element {
    el("alias").attr("name", format!("ua-{name}"))
}

/// A device's place on the PCI bus, where the spec chooses it.
fn pci_address(address: Option<ferrovirt_core::machine::PciAddress>) -> Option<Element> {
    Some(numbers(el("address").attr("type", "pci"), address?))
}

/// A device's place on the node's PCI bus.
fn pci_source(address: ferrovirt_core::machine::PciAddress) -> Element {
    numbers(el("address"), address)
}

fn numbers(element: Element, address: ferrovirt_core::machine::PciAddress) -> Element {
    element
        .attr("domain", format!("0x{:04x}", address.domain))
        .attr("bus", format!("0x{:02x}", address.bus))
        .attr("slot", format!("0x{:02x}", address.slot))
        .attr("function", format!("0x{:x}", address.function))
}
