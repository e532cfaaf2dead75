//! Channels: the guest agent's, and one for metrics.

use std::path::Path;

use ferrovirt_core::machine::Machine;

use crate::facts::Facts;
use crate::xml::{Element, el};

/// Name by which the agent in the guest finds its port.
const AGENT: &str = "org.qemu.guest_agent.0";

/// Name by which vhostmd's clients in the guest find theirs.
const METRICS: &str = "org.github.vhostmd.1";

pub(crate) fn guest_agent(facts: &Facts) -> Element {
    channel(AGENT, &facts.agent_socket)
}

pub(crate) fn downward_metrics(machine: &Machine, facts: &Facts) -> Option<Element> {
    let wanted = machine.downward_metrics;
    wanted.then(|| channel(METRICS, &facts.downward_metrics_socket))
}

fn channel(name: &str, socket: &Path) -> Element {
    el("channel")
        .attr("type", "unix")
        .child(el("source").attr("mode", "bind").attr("path", socket.display()))
        .child(el("target").attr("type", "virtio").attr("name", name))
}
