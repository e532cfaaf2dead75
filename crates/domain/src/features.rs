//! Hypervisor features.

use ferrovirt_core::machine::{Architecture, Machine};
use ferrovirt_core::overhead::TRANSLATIONS;

use crate::Facts;
use crate::hyperv::hyperv;
use crate::xml::{Element, el};

pub(crate) fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

pub(crate) fn features(machine: &Machine, facts: &Facts) -> Element {
    let mut features = el("features");
    if machine.acpi {
        features = features.child(el("acpi"));
    }
    if machine.apic && machine.architecture == Architecture::Amd64 {
        features = features.child(el("apic").attr_if("eoi", machine.apic_eoi.map(on_off)));
    }
    features = features.children(hyperv(machine, facts));
    if machine.kvm_hidden {
        features = features.child(el("kvm").child(el("hidden").attr("state", "on")));
    }
    if let Some(on) = machine.pv_spinlock {
        features = features.child(el("pvspinlock").attr("state", on_off(on)));
    }
    if machine.smm {
        features = features.child(el("smm").attr("state", "on"));
    }
    if machine.architecture == Architecture::Amd64 {
        // VMware's port, which libvirt's default leaves to the machine type.
        features = features.child(el("vmport").attr("state", "off"));
    }
    if !machine.cpu.realtime.is_empty() {
        // Its interrupts would come at any time.
        features = features.child(el("pmu").attr("state", "off"));
    }
    if !facts.kvm {
        // QEMU would keep up to a gibibyte of translated code, beyond what the pod may have.
        let cache = el("tb-cache")
            .attr("unit", "MiB")
            .text((TRANSLATIONS >> 20).to_string());
        features = features.child(el("tcg").child(cache));
    }
    features
}
