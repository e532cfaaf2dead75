//! The screen's way out.

use ferrovirt_core::machine::Machine;

use crate::facts::Facts;
use crate::xml::{Element, el};

/// VNC on a unix socket: who may connect is decided by our API.
pub(crate) fn graphics(machine: &Machine, facts: &Facts) -> Option<Element> {
    let listen = || {
        el("listen")
            .attr("type", "socket")
            .attr("socket", facts.vnc_socket.display())
    };
    machine
        .graphics
        .then(|| el("graphics").attr("type", "vnc").child(listen()))
}
