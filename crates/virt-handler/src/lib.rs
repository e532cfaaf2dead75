#![doc = env!("CARGO_PKG_DESCRIPTION")]
#![allow(dead_code)]
pub mod network;
mod syscall;
