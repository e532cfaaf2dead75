//! What we find again when we adopt a running domain.

use ferrovirt_core::machine::Machine;

use crate::facts::Facts;
use crate::xml::{Element, el};

/// Namespace of our element in the domain's metadata.
const NAMESPACE: &str = "http://kubevirt.io";

pub(crate) fn metadata(machine: &Machine, facts: &Facts) -> Element {
    let grace = el("deletionGracePeriodSeconds").text(machine.termination_grace_seconds);
    el("metadata").child(
        el("kubevirt")
            .attr("xmlns", NAMESPACE)
            .child(el("uid").text(&facts.uid))
            .child(el("graceperiod").child(grace)),
    )
}
