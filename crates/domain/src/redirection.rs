//! USB devices of a client.

use ferrovirt_core::machine::Machine;

use crate::facts::Facts;
use crate::xml::{Element, el};

/// Ports that QEMU listens for clients' devices on.
pub(crate) fn ports(machine: &Machine, facts: &Facts) -> Vec<Element> {
    let sockets = facts.usb_redirection_sockets.iter();
    let port = |socket: &std::path::PathBuf| {
        el("redirdev")
            .attr("bus", "usb")
            .attr("type", "unix")
            .child(el("source").attr("mode", "bind").attr("path", socket.display()))
    };
    sockets.filter(|_| machine.usb_redirection).map(port).collect()
}
