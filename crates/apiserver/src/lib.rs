#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! It knows nothing of virtual machines: kinds come in as CRDs, rules come in through [`Admission`],
//! subresource groups through [`Aggregated`], containers through [`Kubelet`].

pub mod builtin;
pub mod hooks;
pub mod jsonpath;
pub mod patch;
pub mod schema;
pub mod selector;
pub mod table;

pub use hooks::{Admission, AdmissionInput, Aggregated, AggregatedResource, Kubelet, LogOptions, Operation, UserInfo};
