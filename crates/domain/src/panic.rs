//! Devices by which a guest says that it panicked.

use ferrovirt_core::machine::Machine;

use crate::xml::{Element, el};

pub(crate) fn panics(machine: &Machine) -> impl Iterator<Item = Element> {
    machine
        .panic_devices
        .iter()
        .map(|model| el("panic").attr("model", model))
}
