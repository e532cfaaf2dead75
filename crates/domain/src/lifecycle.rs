//! What follows when the guest powers off, reboots or crashes.

use ferrovirt_core::machine::Machine;

use crate::xml::{Element, el};

/// Name of a VMI's domain.
#[must_use]
pub fn domain_name(namespace: &str, name: &str) -> String {
    format!("{namespace}_{name}")
}

/// A domain that ends stays ended: its VMI becomes final, and the run strategy decides what comes next. A panic
/// and a power-off end in the same state; libvirt's reason tells them apart.
pub(crate) fn actions(machine: &Machine) -> [Element; 3] {
    let on_reboot = if machine.terminate_on_reboot {
        "destroy"
    } else {
        "restart"
    };
    [
        el("on_poweroff").text("destroy"),
        el("on_reboot").text(on_reboot),
        el("on_crash").text("destroy"),
    ]
}
