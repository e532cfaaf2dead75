#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! [`up`] assembles everything in one process: the API server, virt-api, virt-controller, virt-handler, the
//! [scheduler](scheduler) and the [pod runner](pods). [`down`] and [`status`] work with and without it.

#![warn(missing_docs)]

mod adapters;
mod claims;
pub mod down;
mod events;
mod home_network;
pub mod images;
mod kubevirt;
pub mod lock;
mod node;
pub mod paths;
pub mod pods;
mod quantity;
pub mod scheduler;
pub mod status;
pub mod tail;
pub mod up;
