//! What Windows looks for in its hypervisor.

/// Hyper-V enlightenments, in libvirt's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hyperv {
    /// Each that the host has.
    Passthrough,
    /// These.
    Custom(Vec<Enlightenment>),
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enlightenment {
    /// libvirt's name, e.g. `spinlocks`.
    pub name: &'static str,
    /// Whether the guest sees it.
    pub on: bool,
    /// What it needs to know: `retries` of spinlocks, `value` of the vendor's id.
    pub setting: Option<(&'static str, String)>,
    /// Parts of it that are switched on their own: `direct`, `extended`.
    pub parts: Vec<(&'static str, bool)>,
}

/// What the API calls an enlightenment that libvirt calls `name`.
#[must_use]
pub fn api_name(name: &str) -> &str {
    match name {
        "stimer" => "synictimer",
        "vendor_id" => "vendorid",
        same => same,
    }
}
