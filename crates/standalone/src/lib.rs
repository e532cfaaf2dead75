#![doc = env!("CARGO_PKG_DESCRIPTION")]

#![warn(missing_docs)]

pub mod images;
pub mod paths;
pub mod pods;
