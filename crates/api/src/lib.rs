//! Wire types of the groups that Ferrovirt speaks, and the CRDs made from them.
//!
//! No client, no runtime: only what goes over the wire.

#![warn(missing_docs)]

pub mod cdi;
pub mod coverage;
mod crds;
mod quantity;
pub mod v1;

pub use crds::{cdi_crd, crds};
pub use quantity::{ParseQuantityError, Quantity};

/// A `metav1.Duration`: Go's notation, such as `1h30m0s`.
pub type Duration = String;

/// Reads `null` as the empty value, as Go's decoder does.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}
