//! Hyper-V enlightenments.

use ferrovirt_core::machine::{Enlightenment, Hyperv, Machine};

use crate::facts::Facts;
use crate::features::on_off;
use crate::xml::{Element, el};

/// Nothing where QEMU emulates: KVM alone can play Hyper-V, and a guest finds out at its start who is there.
pub(crate) fn hyperv(machine: &Machine, facts: &Facts) -> Option<Element> {
    let hyperv = machine.hyperv.as_ref().filter(|_| facts.kvm)?;
    Some(match hyperv {
        Hyperv::Passthrough => el("hyperv").attr("mode", "passthrough"),
        Hyperv::Custom(all) => el("hyperv").attr("mode", "custom").children(all.iter().map(element)),
    })
}

fn element(enlightenment: &Enlightenment) -> Element {
    let Enlightenment {
        name,
        on,
        setting,
        parts,
    } = enlightenment;
    let mut element = el(name).attr("state", on_off(*on));
    if let Some((name, value)) = setting {
        element = element.attr(name, value);
    }
    element.children(parts.iter().map(|(name, on)| el(name).attr("state", on_off(*on))))
}
