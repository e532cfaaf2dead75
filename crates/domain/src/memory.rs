//! Guest memory and its hotplug ceiling.

use ferrovirt_core::machine::Machine;

use crate::xml::{Element, el};

/// virtio-mem plugs and unplugs blocks of this size.
const BLOCK_MIB: u64 = 2;

fn bytes(name: &'static str, bytes: u64) -> Element {
    el(name).attr("unit", "b").text(bytes)
}

pub(crate) fn memory(machine: &Machine) -> Vec<Element> {
    let guest = machine.memory.guest;
    match machine.memory.max_guest {
        None => vec![bytes("memory", guest)],
        Some(max) => vec![
            bytes("maxMemory", max),
            bytes("memory", max),
            bytes("currentMemory", guest),
        ],
    }
}

/// The guest's one NUMA node, which memory hotplug needs.
pub(crate) fn numa(machine: &Machine) -> Option<Element> {
    machine.memory.max_guest?;
    let last = machine.cpu.max_vcpus().saturating_sub(1);
    let cell = el("cell")
        .attr("id", 0)
        .attr("cpus", format!("0-{last}"))
        .attr("memory", machine.memory.guest)
        .attr("unit", "b");
    Some(el("numa").child(cell))
}

/// The device that memory is plugged through; empty at boot.
pub(crate) fn device(machine: &Machine) -> Option<Element> {
    let room = machine.memory.max_guest? - machine.memory.guest;
    let target = el("target")
        .child(bytes("size", room))
        .child(el("node").text(0))
        .child(el("block").attr("unit", "MiB").text(BLOCK_MIB))
        .child(bytes("requested", 0));
    Some(el("memory").attr("model", "virtio-mem").child(target))
}
