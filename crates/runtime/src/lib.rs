#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! What is here is only what every process does the same way:
//!
//! | | |
//! |---|---|
//! | [`logs`] | lines that people and `kubectl logs` read |
//! | [`signals`] | SIGTERM and SIGINT as a future |
//! | [`supervisor`] | owns the tasks that a process cannot live without |
//! | [`process`] | a tokio runtime that takes little memory |
//! | [`memory`] | gives back what only the start needed |
//! | [`client`] | the client of the Kubernetes API: `--kubeconfig` or the pod's service account |
//! | [`kubevirt`] | follows the `KubeVirt` object's configuration |
//! | [`lease`] | lets one of several lead |
//! | [`tls`] | certificates that are reloaded, and peers known by their common name |
//! | [`http`] | an axum router over TLS; `/healthz`, `/readyz`, `/metrics` |
//! | [`metrics`] | the registry behind `/metrics` |

#![warn(missing_docs)]

pub mod client;
pub mod http;
pub mod kubevirt;
pub mod lease;
pub mod logs;
pub mod memory;
pub mod metrics;
pub mod process;
pub mod signals;
pub mod supervisor;
pub mod tls;
