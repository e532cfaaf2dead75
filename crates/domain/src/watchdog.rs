//! The watchdog.

use ferrovirt_core::machine::Machine;

use crate::alias;
use crate::xml::{Element, el};

pub(crate) fn watchdog(machine: &Machine) -> Option<Element> {
    let watchdog = machine.watchdog.as_ref()?;
    Some(
        el("watchdog")
            .attr("model", watchdog.model)
            .attr("action", &watchdog.action)
            .child(alias(&watchdog.name)),
    )
}
