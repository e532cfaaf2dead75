//! `spec.domain.features.hyperv` and `hypervPassthrough`.

use ferrovirt_api::v1::{
    FeatureHyperv, FeatureSpinlocks, FeatureState, FeatureVendorID, Features, HyperVPassthrough, SyNICTimer, TLBFlush,
};

use super::{Cx, text};
use crate::cause::FieldPath;
use crate::machine::{Architecture, Enlightenment, Hyperv};

/// Windows gives up a spinlock after no fewer tries.
const LEAST_RETRIES: i64 = 4095;
/// Registers of the processor's identification hold no more.
const VENDOR_ID_CHARS: usize = 12;
/// What the first of each pair needs, by the names in the API: the defaults add it, and nobody may switch it off.
pub(crate) const REQUIREMENTS: [(&str, &str); 5] = [
    ("synictimer", "synic"),
    ("synic", "vpindex"),
    ("tlbflush", "vpindex"),
    ("ipi", "vpindex"),
    ("evmcs", "vapic"),
];

impl Cx<'_> {
    /// `clock`: the guest has Hyper-V's clock.
    pub(super) fn hyperv(&mut self, features: &Features, clock: bool, path: &FieldPath) -> Option<Hyperv> {
        let passthrough = features.hyperv_passthrough.as_ref();
        let passthrough = passthrough.is_some_and(|HyperVPassthrough { enabled }| enabled.unwrap_or(true));
        let field = path.child(if passthrough { "hypervPassthrough" } else { "hyperv" });
        if (passthrough || features.hyperv.is_some()) && self.architecture != Architecture::Amd64 {
            self.causes
                .not_supported(&field, "only amd64 has Hyper-V enlightenments");
        }
        let Some(hyperv) = &features.hyperv else {
            return passthrough.then_some(Hyperv::Passthrough);
        };
        if passthrough {
            self.causes
                .invalid(&field, "hyperv and hypervPassthrough exclude each other");
        }
        let path = path.child("hyperv");
        let all = self.enlightenments(hyperv, &path);
        for (name, needs) in REQUIREMENTS {
            let on = |name| all.iter().any(|(n, e)| *n == name && e.on);
            if on(name) && !on(needs) {
                self.causes.invalid(&path.child(name), format!("{name} needs {needs}"));
            }
        }
        if !clock && all.iter().any(|(name, e)| *name == "synictimer" && e.on) {
            let message = "synictimer needs Hyper-V's clock: set clock.timer.hyperv";
            self.causes.invalid(&path.child("synictimer"), message);
        }
        Some(Hyperv::Custom(all.into_iter().map(|(_, e)| e).collect()))
    }

    /// Those that are mentioned, with the API's name of each.
    fn enlightenments(&mut self, hyperv: &FeatureHyperv, path: &FieldPath) -> Vec<(&'static str, Enlightenment)> {
        let FeatureHyperv {
            evmcs,
            frequencies,
            ipi,
            reenlightenment,
            relaxed,
            reset,
            runtime,
            spinlocks,
            synic,
            synictimer,
            tlbflush,
            vapic,
            vendorid,
            vpindex,
        } = hyperv;
        let mut all = Vec::new();
        let switches = [
            ("relaxed", relaxed),
            ("vapic", vapic),
            ("vpindex", vpindex),
            ("runtime", runtime),
            ("synic", synic),
            ("reset", reset),
            ("frequencies", frequencies),
            ("reenlightenment", reenlightenment),
            ("ipi", ipi),
            ("evmcs", evmcs),
        ];
        for (name, state) in switches {
            if let Some(FeatureState { enabled }) = state {
                all.push((name, switch(name, *enabled)));
            }
        }
        if let Some(FeatureSpinlocks { enabled, spinlocks }) = spinlocks {
            let mut spinlock = switch("spinlocks", *enabled);
            if spinlock.on {
                let retries = self.retries(
                    spinlocks.unwrap_or(LEAST_RETRIES + 1),
                    &path.child("spinlocks.spinlocks"),
                );
                spinlock.setting = Some(("retries", retries.to_string()));
            }
            all.push(("spinlocks", spinlock));
        }
        if let Some(SyNICTimer { direct, enabled }) = synictimer {
            let mut timer = switch("stimer", *enabled);
            timer.parts = parts(&timer, &[("direct", direct)]);
            all.push(("synictimer", timer));
        }
        if let Some(TLBFlush {
            direct,
            enabled,
            extended,
        }) = tlbflush
        {
            let mut flush = switch("tlbflush", *enabled);
            flush.parts = parts(&flush, &[("direct", direct), ("extended", extended)]);
            all.push(("tlbflush", flush));
        }
        if let Some(FeatureVendorID { enabled, vendorid }) = vendorid {
            let mut vendor = switch("vendor_id", *enabled);
            if vendor.on {
                let id = self.vendor_id(
                    vendorid.as_deref().unwrap_or_default(),
                    &path.child("vendorid.vendorid"),
                );
                vendor.setting = Some(("value", id));
            }
            all.push(("vendorid", vendor));
        }
        all
    }

    fn retries(&mut self, retries: i64, field: &FieldPath) -> i64 {
        if !(LEAST_RETRIES..=i64::from(u32::MAX)).contains(&retries) {
            self.causes.invalid(
                field,
                format!("{retries} is not between {LEAST_RETRIES} and {}", u32::MAX),
            );
        }
        retries
    }

    fn vendor_id(&mut self, id: &str, field: &FieldPath) -> String {
        if id.is_empty() {
            self.causes.required(field, "an id of the vendor is needed");
        } else if id.len() > VENDOR_ID_CHARS || !id.is_ascii() || !text::is_printable(id) || id.contains(',') {
            self.causes.invalid(
                field,
                format!("\"{id}\" is not an id of at most {VENDOR_ID_CHARS} ASCII characters without commas"),
            );
        }
        id.to_owned()
    }
}

fn switch(name: &'static str, enabled: Option<bool>) -> Enlightenment {
    Enlightenment {
        name,
        on: enabled.unwrap_or(true),
        setting: None,
        parts: Vec::new(),
    }
}

/// Parts of something that is off are not mentioned.
fn parts(whole: &Enlightenment, parts: &[(&'static str, &Option<FeatureState>)]) -> Vec<(&'static str, bool)> {
    let parts = parts.iter().filter(|_| whole.on);
    parts
        .filter_map(|(name, state)| Some((*name, state.as_ref()?.enabled.unwrap_or(true))))
        .collect()
}
