//! What all reconcilers share.

use std::sync::Arc;

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance};
use ferrovirt_core::ClusterConfig;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::Client;
use tokio::sync::{Notify, watch};

use crate::Options;
use crate::cache::Cache;
use crate::events::Recorder;
use crate::image_volumes::ContainerDisks;
use crate::node::Nodes;
use crate::queue::Sender;
use crate::vm::Revisions;
use crate::vmi::claims::Users;
use crate::vmi::vsock::Cids;

/// Clients, caches and queues.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// All VMs.
    pub vms: Arc<Cache<VirtualMachine>>,
    /// All VMIs.
    pub vmis: Arc<Cache<VirtualMachineInstance>>,
    /// All launcher pods.
    pub pods: Arc<Cache<Pod>>,
    /// All claims.
    pub claims: Arc<Cache<PersistentVolumeClaim>>,
    /// Which VMIs name them.
    pub claim_users: Users,
    /// The nodes with an agent; empty where there is only one machine.
    pub nodes: Nodes,
    /// Context IDs of guests' sockets.
    pub vsock_cids: Cids,
    /// Specs that VMs were started with.
    pub revisions: Revisions,
    /// VMs to reconcile.
    pub vm_queue: Sender,
    /// VMIs to reconcile.
    pub vmi_queue: Sender,
    /// Events for users.
    pub events: Recorder,
    /// The cluster's configuration.
    pub config: watch::Receiver<Arc<ClusterConfig>>,
    /// How containerDisks come into pods; nothing is reconciled before it is known.
    pub container_disks: watch::Receiver<Option<ContainerDisks>>,
    /// Notified when the API server refuses what that says.
    pub doubt: Arc<Notify>,
    /// How this controller was started.
    pub options: Arc<Options>,
}

/// Why an effect did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Something that users should read in the object's conditions.
    #[error("{reason}: {message}")]
    Failed {
        /// CamelCase reason.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// The API server did not do it; it is tried again.
    #[error("{doing} failed: {source}")]
    Call {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else changed the object; it is decided on again.
    #[error("the object has changed meanwhile")]
    Outdated,
    /// A patch could not be made.
    #[error("no patch could be made of the status: {0}")]
    Patch(#[source] serde_json::Error),
}

impl Trouble {
    /// A failure that users should see.
    pub fn failed(reason: &'static str, doing: &str, error: &kube::Error) -> Self {
        let message = match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        Self::Failed {
            reason,
            message: format!("{doing}: {message}"),
        }
    }

    /// A failure that is nobody's fault.
    pub fn call(doing: &'static str, source: kube::Error) -> Self {
        Self::Call {
            doing,
            source: Box::new(source),
        }
    }

    /// A status that cannot be serialized.
    pub fn patch(error: serde_json::Error) -> Self {
        Self::Patch(error)
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The object is not there.
pub fn gone(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// The object is not as it was thought to be.
pub fn conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

/// A patch was based on something that is no longer true: 409, or 422 for a failed test.
pub fn outdated(error: &kube::Error) -> bool {
    matches!(code(error), Some(409 | 422))
}
