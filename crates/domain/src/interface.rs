//! NICs: on tap devices that virt-handler or a plugin made, on passt, or virtual functions of the node's network cards.

use ferrovirt_core::machine::{Architecture, Binding, Interface, Machine, PciAddress};

use crate::facts::{Facts, MissingFact, NicFact};
use crate::xml::{Element, el};
use crate::{alias, pci_address, pci_source, virtio};

pub(crate) fn interfaces(machine: &Machine, facts: &Facts) -> Result<Vec<Element>, MissingFact> {
    let all = machine
        .interfaces
        .iter()
        .map(|interface| attached(machine, interface, facts));
    all.filter_map(Result::transpose).collect()
}

/// `None`: the sidecar of a plugin adds it.
fn attached(machine: &Machine, interface: &Interface, facts: &Facts) -> Result<Option<Element>, MissingFact> {
    let nic = facts.nics.get(&interface.name);
    Ok(match (&interface.binding, nic) {
        (Binding::Sriov, _) => {
            let missing = || MissingFact::VirtualFunction(interface.name.clone());
            let address = facts.virtual_functions.get(&interface.name).ok_or_else(missing)?;
            Some(virtual_function(interface, *address))
        }
        (Binding::Tap(_) | Binding::Plugin(_), Some(nic)) => Some(tap(machine, interface, nic)),
        (Binding::Passt, Some(nic)) => Some(passt(machine, interface, nic)),
        (Binding::Tap(_) | Binding::Passt, None) => return Err(MissingFact::Nic(interface.name.clone())),
        (Binding::Plugin(_), None) => None,
    })
}

/// Its MAC address and VLAN were set by the CNI plugin that gave it to the pod.
fn virtual_function(interface: &Interface, address: PciAddress) -> Element {
    el("hostdev")
        .attr("mode", "subsystem")
        .attr("type", "pci")
        .attr("managed", "no")
        .child(el("source").child(pci_source(address)))
        .children(interface.boot_order.map(|order| el("boot").attr("order", order)))
        .children(acpi_index(interface))
        .child(alias(&format!("sriov-{}", interface.name)))
        .children(pci_address(interface.pci_address))
}

fn acpi_index(interface: &Interface) -> Option<Element> {
    interface.acpi_index.map(|index| el("acpi").attr("index", index))
}

/// Queues of a NIC that has more than one; its tap must have been made for that.
fn queues(machine: &Machine, interface: &Interface) -> Option<u32> {
    let queues = machine.network_queues(interface);
    (queues > 1).then_some(queues)
}

fn mac(interface: &Interface, nic: &NicFact) -> Element {
    el("mac").attr("address", interface.mac.as_ref().unwrap_or(&nic.mac))
}

fn tap(machine: &Machine, interface: &Interface, nic: &NicFact) -> Element {
    let outside = el("interface")
        .attr("type", "ethernet")
        .child(mac(interface, nic))
        .child(el("target").attr("dev", &nic.tap).attr("managed", "no"));
    element(machine, interface, nic, outside)
}

/// libvirt starts passt, as the launcher's user; it reaches the guest's memory, see [`crate::memory::backing`].
fn passt(machine: &Machine, interface: &Interface, nic: &NicFact) -> Element {
    let outside = el("interface")
        .attr("type", "vhostuser")
        .child(el("backend").attr("type", "passt"))
        .child(mac(interface, nic))
        .child(el("source").attr("dev", &nic.pod_interface))
        .children([false, true].into_iter().filter_map(|udp| forwarded(interface, udp)));
    element(machine, interface, nic, outside)
}

/// Ports of one protocol; all, if no port of any is listed.
fn forwarded(interface: &Interface, udp: bool) -> Option<Element> {
    let ports: Vec<_> = interface.ports.iter().filter(|port| port.udp == udp).collect();
    let wanted = interface.ports.is_empty() || !ports.is_empty();
    wanted.then(|| {
        el("portForward")
            .attr("proto", if udp { "udp" } else { "tcp" })
            .children(ports.into_iter().map(|port| el("range").attr("start", port.port)))
    })
}

/// A NIC of which `outside` says how it is attached.
fn element(machine: &Machine, interface: &Interface, nic: &NicFact, outside: Element) -> Element {
    let model = match interface.model.as_str() {
        "virtio" => virtio(machine),
        other => other,
    };
    let boot = match interface.boot_order {
        Some(order) => Some(el("boot").attr("order", order)),
        // Its firmware needs none, and its bus has no place for it.
        None if machine.architecture == Architecture::S390x => None,
        // An option ROM costs memory and boot time, and only network boot needs it.
        None => Some(el("rom").attr("enabled", "no")),
    };
    // Of a NIC without a tap libvirt could not set it; passt tells the guest by DHCP.
    let mtu = (interface.binding != Binding::Passt).then(|| el("mtu").attr("size", nic.mtu));
    let queues = queues(machine, interface).map(|queues| el("driver").attr("queues", queues));
    let down = interface.link_down.then(|| el("link").attr("state", "down"));
    outside
        .child(el("model").attr("type", model))
        .children(queues)
        .children(mtu)
        .children(down)
        .children(boot)
        .children(acpi_index(interface))
        .child(alias(&interface.name))
        .children(pci_address(interface.pci_address))
}
