//! Input devices.

use ferrovirt_core::machine::{Architecture, Input, Machine};

use crate::alias;
use crate::xml::{Element, el};

/// Architectures without PS/2 need a keyboard with their screen, and something to point with, unless that is there.
fn implied(machine: &Machine) -> &'static [(&'static str, &'static str)] {
    let points = machine.inputs.iter().any(|input| input.kind == "tablet");
    match machine.architecture {
        Architecture::Arm64 if machine.graphics && points => &[("keyboard", "usb")],
        Architecture::Arm64 if machine.graphics => &[("tablet", "usb"), ("keyboard", "usb")],
        Architecture::S390x if machine.graphics => &[("keyboard", "virtio")],
        Architecture::Amd64 | Architecture::Arm64 | Architecture::S390x => &[],
    }
}

pub(crate) fn has_usb_input(machine: &Machine) -> bool {
    machine.inputs.iter().any(|input| input.bus == "usb") || implied(machine).iter().any(|(_, bus)| *bus == "usb")
}

pub(crate) fn inputs(machine: &Machine) -> Vec<Element> {
    let input = |kind: &str, bus: &str| el("input").attr("type", kind).attr("bus", bus);
    let own = machine
        .inputs
        .iter()
        .map(|Input { bus, kind, name }| input(kind, bus).child(alias(name)));
    let implied = implied(machine).iter().map(|(kind, bus)| input(kind, bus));
    own.chain(implied).collect()
}
