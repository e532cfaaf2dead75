//! CPUs and memory of the node that are a machine's alone.

use std::collections::BTreeMap;

use ferrovirt_core::machine::{Machine, Pinning};

use crate::facts::{Facts, HostCpu, MissingFact};
use crate::xml::{Element, el};

/// The CPUs of the vCPUs, in their order, and those that are left for the emulator and its I/O threads.
fn split<'f>(machine: &Machine, facts: &'f Facts) -> Result<(&'f [HostCpu], &'f [HostCpu]), MissingFact> {
    let wanted = machine.cpu.vcpus() as usize;
    let given = facts.cpus.len();
    let split = facts.cpus.split_at_checked(wanted);
    split.ok_or(MissingFact::Cpus { wanted, given })
}

fn set(cpus: &[HostCpu]) -> String {
    let ids: Vec<String> = cpus.iter().map(|cpu| cpu.id.to_string()).collect();
    ids.join(",")
}

/// Each vCPU on a CPU; the emulator on its own, if it is isolated, or else where the vCPUs are.
pub(crate) fn tune(machine: &Machine, facts: &Facts) -> Result<Option<Element>, MissingFact> {
    let Some(Pinning { isolate_emulator, .. }) = machine.cpu.pinning else {
        return Ok(None);
    };
    let (vcpus, rest) = split(machine, facts)?;
    if isolate_emulator && rest.is_empty() {
        let given = facts.cpus.len();
        return Err(MissingFact::Cpus {
            wanted: given + 1,
            given,
        });
    }
    let pins = vcpus.iter().enumerate();
    let pins = pins.map(|(i, cpu)| el("vcpupin").attr("vcpu", i).attr("cpuset", cpu.id));
    let others = set(if rest.is_empty() { vcpus } else { rest });
    let threads = (1..=machine.io_threads).map(|id| el("iothreadpin").attr("iothread", id).attr("cpuset", &others));
    Ok(Some(
        el("cputune")
            .children(pins)
            .child(el("emulatorpin").attr("cpuset", &others))
            .children(threads)
            .children(realtime(machine)),
    ))
}

/// The lowest priority above all that is not real-time. That QEMU may take it, virt-handler sees to.
fn realtime(machine: &Machine) -> Option<Element> {
    let vcpus: Vec<String> = machine.cpu.realtime.iter().map(ToString::to_string).collect();
    let scheduled = el("vcpusched")
        .attr("vcpus", vcpus.join(","))
        .attr("scheduler", "fifo")
        .attr("priority", 1);
    (!vcpus.is_empty()).then_some(scheduled)
}

/// The guest's NUMA nodes: numbers of the host's, with the vCPUs on each.
fn nodes(machine: &Machine, facts: &Facts) -> Result<BTreeMap<u32, Vec<u32>>, MissingFact> {
    let mut nodes: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (vcpu, cpu) in (0..).zip(split(machine, facts)?.0) {
        nodes.entry(cpu.node).or_default().push(vcpu);
    }
    // What can be plugged in later has to be somewhere.
    if let Some(mut first) = nodes.first_entry() {
        first.get_mut().extend(machine.cpu.vcpus()..machine.cpu.max_vcpus());
    }
    Ok(nodes)
}

fn host_numa(machine: &Machine) -> bool {
    machine.cpu.pinning.is_some_and(|pinning| pinning.host_numa)
}

/// Memory of each of the guest's nodes comes from the host's node that it stands for.
pub(crate) fn numa_tune(machine: &Machine, facts: &Facts) -> Result<Option<Element>, MissingFact> {
    if !host_numa(machine) {
        return Ok(None);
    }
    let nodes = nodes(machine, facts)?;
    let all: Vec<String> = nodes.keys().map(ToString::to_string).collect();
    let memory = |element: Element, nodes: &str| element.attr("mode", "strict").attr("nodeset", nodes);
    let cells = nodes.keys().enumerate();
    let cells = cells.map(|(cell, node)| memory(el("memnode").attr("cellid", cell), &node.to_string()));
    Ok(Some(
        el("numatune")
            .child(memory(el("memory"), &all.join(",")))
            .children(cells),
    ))
}

/// The nodes as the guest sees them. Memory is divided evenly, in whole huge pages; what is left over is the first's.
pub(crate) fn numa(machine: &Machine, facts: &Facts) -> Result<Option<Element>, MissingFact> {
    if !host_numa(machine) {
        return Ok(None);
    }
    let nodes = nodes(machine, facts)?;
    let page = machine.memory.huge_page.unwrap_or(1).max(1);
    let (pages, count) = (machine.memory.guest / page, nodes.len().max(1) as u64);
    let cells = nodes.values().enumerate().map(|(cell, vcpus)| {
        let more = if cell == 0 { pages % count } else { 0 };
        let vcpus: Vec<String> = vcpus.iter().map(ToString::to_string).collect();
        el("cell")
            .attr("id", cell)
            .attr("cpus", vcpus.join(","))
            .attr("memory", (pages / count + more) * page)
            .attr("unit", "b")
    });
    Ok(Some(el("numa").children(cells)))
}
