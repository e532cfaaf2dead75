#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! [`admission`] defaults and judges writes, [`subresources`] answers the group `subresources.kubevirt.io`.
//! Both are plain functions of a request: the embedded home calls them directly, on a cluster [`server`] puts them
//! behind webhooks and an APIService. Guests are reached through [`nodes`].

pub mod admission;
mod aggregated;
pub mod nodes;
pub mod server;
mod status;
pub mod subresources;
mod webhooks;
