//! The serial console.

use ferrovirt_core::machine::Machine;

use crate::facts::Facts;
use crate::xml::{Element, el};

/// serial0 on a unix socket that QEMU listens on; libvirt itself appends to the log.
pub(crate) fn serial(machine: &Machine, facts: &Facts) -> Option<Element> {
    if !machine.serial_console {
        return None;
    }
    let log = machine
        .log_serial_console
        .then(|| el("log").attr("file", facts.serial_log.display()).attr("append", "on"));
    Some(
        el("serial")
            .attr("type", "unix")
            .child(
                el("source")
                    .attr("mode", "bind")
                    .attr("path", facts.serial_socket.display()),
            )
            .children(log)
            .child(el("target").attr("port", 0)),
    )
}
