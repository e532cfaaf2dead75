//! Hypervisor features.

use ferrovirt_core::machine::{Architecture, Machine};

use crate::xml::{Element, el};

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

pub(crate) fn features(machine: &Machine) -> Element {
    let mut features = el("features");
    if machine.acpi {
        features = features.child(el("acpi"));
    }
    if machine.apic && machine.architecture == Architecture::Amd64 {
        features = features.child(el("apic").attr_if("eoi", machine.apic_eoi.map(on_off)));
    }
    if machine.kvm_hidden {
        features = features.child(el("kvm").child(el("hidden").attr("state", "on")));
    }
    if let Some(on) = machine.pv_spinlock {
        features = features.child(el("pvspinlock").attr("state", on_off(on)));
    }
    if machine.smm {
        features = features.child(el("smm").attr("state", "on"));
    }
    features
}
