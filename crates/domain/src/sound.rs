//! The sound card.

use ferrovirt_core::machine::Machine;

use crate::alias;
use crate::xml::{Element, el};

/// The card, and where its sound goes: nowhere, as no client listens.
pub(crate) fn sound(machine: &Machine) -> Vec<Element> {
    let Some(sound) = &machine.sound else {
        return Vec::new();
    };
    let card = el("sound")
        .attr("model", &sound.model)
        .child(alias(&sound.name))
        .child(el("audio").attr("id", 1));
    vec![card, el("audio").attr("id", 1).attr("type", "none")]
}
