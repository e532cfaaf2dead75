//! virtio-rng.

use ferrovirt_core::machine::Machine;

use crate::virtio;
use crate::xml::{Element, el};

pub(crate) fn rng(machine: &Machine) -> Option<Element> {
    let backend = || el("backend").attr("model", "random").text("/dev/urandom");
    machine
        .rng
        .then(|| el("rng").attr("model", virtio(machine)).child(backend()))
}
