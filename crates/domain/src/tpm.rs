//! The trusted platform module.

use ferrovirt_core::machine::Machine;

use crate::xml::{Element, el};

/// libvirt runs swtpm for it, and forgets its state with the domain.
pub(crate) fn tpm(machine: &Machine) -> Option<Element> {
    let backend = || el("backend").attr("type", "emulator").attr("version", "2.0");
    machine.tpm.then(|| el("tpm").attr("model", "tpm-tis").child(backend()))
}
