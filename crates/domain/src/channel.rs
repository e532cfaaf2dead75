//! The guest agent's channel.

use crate::facts::Facts;
use crate::xml::{Element, el};

/// Name by which the agent in the guest finds its port.
const AGENT: &str = "org.qemu.guest_agent.0";

pub(crate) fn guest_agent(facts: &Facts) -> Element {
    el("channel")
        .attr("type", "unix")
        .child(
            el("source")
                .attr("mode", "bind")
                .attr("path", facts.agent_socket.display()),
        )
        .child(el("target").attr("type", "virtio").attr("name", AGENT))
}
