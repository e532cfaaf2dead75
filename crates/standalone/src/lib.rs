#![doc = env!("CARGO_PKG_DESCRIPTION")]
#![warn(missing_docs)]

mod events;
pub mod images;
pub mod paths;
pub mod pods;
mod quantity;
pub mod scheduler;
pub mod tail;
