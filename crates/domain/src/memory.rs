//! Guest memory and its hotplug ceiling.

use ferrovirt_core::machine::Machine;

use crate::xml::{Element, el};

/// virtio-mem plugs and unplugs blocks of this size, or of a page if that is more.
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

/// What the guest's memory is made of. Huge pages come from a memory file: no mount, and the pod is charged for them; so
/// does memory that those who serve shared directories read and write, or passt.
pub(crate) fn backing(machine: &Machine) -> Option<Element> {
    let page = machine.memory.huge_page;
    let served = !machine.filesystems.is_empty();
    let shared = served || machine.has_passt();
    if page.is_none() && !shared {
        return None;
    }
    let page = page.map(|page| el("page").attr("size", page >> 10).attr("unit", "KiB"));
    // A page is charged to the container that first touches it. Where none has more than it asked for, that must be the
    // guest's own.
    let touched = served && machine.guaranteed;
    Some(
        el("memoryBacking")
            .children(page.map(|page| el("hugepages").child(page)))
            // Merging pages stops the guest at times of the node's choice.
            .children((!machine.cpu.realtime.is_empty()).then(|| el("nosharepages")))
            .child(el("source").attr("type", "memfd"))
            .children(shared.then(|| el("access").attr("mode", "shared")))
            .children(touched.then(|| el("allocation").attr("mode", "immediate"))),
    )
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
    let block = BLOCK_MIB.max(machine.memory.huge_page.unwrap_or_default() >> 20);
    let target = el("target")
        .child(bytes("size", room))
        .child(el("node").text(0))
        .child(el("block").attr("unit", "MiB").text(block))
        .child(bytes("requested", 0));
    Some(el("memory").attr("model", "virtio-mem").child(target))
}
