#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! It knows nothing of virtual machines: kinds come in as CRDs, rules come in through [`Admission`],
//! subresource groups through [`Aggregated`], containers through [`Kubelet`].
//!
//! ```no_run
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
//! let server = ApiServer::open(Config::memory()).await?;
//! let client: kube::Client = server.client(UserInfo::admin("kubernetes-admin"));
//! # Ok(()) }
//! ```

mod auth;
pub mod builtin;
mod controllers;
mod crd;
mod discovery;
pub mod failure;
pub mod hooks;
pub mod jsonpath;
mod listen;
pub mod openapi;
mod openapi_documents;
pub mod patch;
pub mod pki;
pub mod protobuf;
mod registry;
mod rest;
pub mod schema;
pub mod selector;
mod server;
pub mod store;
pub mod table;
mod watch;

pub use failure::Failure;
pub use hooks::{Admission, AdmissionInput, Aggregated, AggregatedResource, Kubelet, LogOptions, Operation, UserInfo};
pub use server::{ApiServer, Config, OpenError, VersionInfo};
pub use store::{Retention, Storage};
