//! The trusted platform module.

use ferrovirt_core::machine::Machine;

use crate::facts::{Facts, MissingFact};
use crate::xml::{Element, el};

/// libvirt runs swtpm for it. State that is not persistent is forgotten with the domain.
pub(crate) fn tpm(machine: &Machine, facts: &Facts) -> Result<Option<Element>, MissingFact> {
    let Some(tpm) = machine.tpm else {
        return Ok(None);
    };
    let backend = el("backend").attr("type", "emulator").attr("version", "2.0");
    if !tpm.persistent {
        return Ok(Some(el("tpm").attr("model", "tpm-tis").child(backend)));
    }
    let directory = facts.tpm_state.as_ref().ok_or(MissingFact::TpmState)?;
    let backend = backend
        .attr("persistent_state", "yes")
        .child(el("source").attr("type", "dir").attr("path", directory.display()));
    Ok(Some(el("tpm").attr("model", "tpm-crb").child(backend)))
}
