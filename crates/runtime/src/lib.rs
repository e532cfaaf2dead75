#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! What is here is only what every process does the same way: [`lease`] lets one of several lead, [`logs`] writes lines that people and `kubectl logs`
//! read, [`signals`] turns SIGTERM and SIGINT into a future, [`supervisor`] owns the tasks a process cannot live without.

#![warn(missing_docs)]

pub mod kubevirt;
pub mod lease;
pub mod logs;
pub mod signals;
pub mod supervisor;
