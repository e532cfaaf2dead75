#![doc = env!("CARGO_PKG_DESCRIPTION")]

pub mod cause;
pub mod conditions;
pub mod config;
pub mod defaults;
pub mod duration;
pub mod machine;
pub mod names;
pub mod overhead;
mod parse;
pub mod preset;
pub mod refusal;
mod validate;
pub mod vm;
pub mod vmi;

pub use cause::{Cause, CauseReason};
pub use config::ClusterConfig;
pub use defaults::{default_spec, default_vm, default_vm_update, default_vmi};
pub use overhead::{memory_overhead, pod_resources};
pub use parse::hostname;
pub use preset::apply_presets;
pub use validate::{
    RESERVED_LABELS, RUN_STRATEGIES, validate_preset, validate_vm, validate_vmi_create, validate_vmi_update,
};
