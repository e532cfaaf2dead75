#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! [`admission`] defaults and judges writes, [`subresources`] answers the group `subresources.kubevirt.io`.
//! Both are plain functions of a request: the embedded home calls them directly, on a cluster they stand
//! behind webhooks and an APIService.

pub mod admission;
mod status;
pub mod subresources;
