//! Rules of the VirtualMachine: run strategies, start requests, crash loops, what users see.

pub mod actions;
pub mod backoff;
pub mod conditions;
pub mod printable;
pub mod requests;
pub mod strategy;
pub mod template;

pub use printable::PrintableStatus;
pub use strategy::RunStrategy;
