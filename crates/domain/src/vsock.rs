//! Sockets between the guest and its node (vsock(7)).

use ferrovirt_core::machine::Machine;

use crate::facts::{Facts, MissingFact};
use crate::virtio;
use crate::xml::{Element, el};

pub(crate) fn vsock(machine: &Machine, facts: &Facts) -> Result<Option<Element>, MissingFact> {
    if !machine.vsock {
        return Ok(None);
    }
    let cid = facts.vsock_cid.ok_or(MissingFact::VsockCid)?;
    let cid = el("cid").attr("auto", "no").attr("address", cid);
    Ok(Some(el("vsock").attr("model", virtio(machine)).child(cid)))
}
