#![doc = env!("CARGO_PKG_DESCRIPTION")]

pub mod conditions;
pub mod machine;
pub mod names;
pub mod refusal;
pub mod vm;
pub mod vmi;
