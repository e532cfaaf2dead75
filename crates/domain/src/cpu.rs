//! vCPUs, their topology and model.

use ferrovirt_core::machine::{Architecture, CpuModel, Machine};

use crate::facts::{Facts, MissingFact};
use crate::memory::numa;
use crate::pinning;
use crate::xml::{Element, el};

/// All vCPUs that can be plugged; those above the boot count are off.
pub(crate) fn vcpus(machine: &Machine) -> Vec<Element> {
    let cpu = &machine.cpu;
    let (current, max) = (cpu.vcpus(), cpu.max_vcpus());
    let count = el("vcpu").attr("placement", "static");
    if current == max {
        return vec![count.text(max)];
    }
    // QEMU cannot unplug the first socket.
    let fixed = cpu.cores.saturating_mul(cpu.threads);
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let list = (0..max).map(|id| {
        el("vcpu")
            .attr("id", id)
            .attr("enabled", yes_no(id < current))
            .attr("hotpluggable", yes_no(id >= fixed))
    });
    vec![count.attr("current", current).text(max), el("vcpus").children(list)]
}

pub(crate) fn cpu(machine: &Machine, facts: &Facts) -> Result<Element, MissingFact> {
    let cpu = &machine.cpu;
    let host = |mode| el("cpu").attr("mode", mode).attr("check", "none");
    let mode = match &cpu.model {
        // Without KVM the host's model means nothing; with all that TCG emulates, guests find what they need.
        CpuModel::HostModel | CpuModel::HostPassthrough if !facts.kvm => host("maximum"),
        CpuModel::HostPassthrough => host("host-passthrough"),
        CpuModel::HostModel if machine.architecture == Architecture::Arm64 => host("host-passthrough"),
        CpuModel::HostModel => el("cpu").attr("mode", "host-model"),
        CpuModel::Named(name) => el("cpu")
            .attr("mode", "custom")
            .attr("match", "exact")
            .attr("check", if facts.kvm { "partial" } else { "none" })
            .child(el("model").attr("fallback", "forbid").text(name)),
    };
    let topology = el("topology")
        .attr("sockets", cpu.max_sockets)
        .attr("cores", cpu.cores)
        .attr("threads", cpu.threads);
    let features = cpu.features.iter();
    Ok(mode
        .child(topology)
        .children(features.map(|(name, policy)| el("feature").attr("policy", policy).attr("name", name)))
        .children(numa(machine))
        .children(pinning::numa(machine, facts)?))
}
