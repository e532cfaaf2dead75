#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! [`run`] is the whole node agent. Other processes reach the guests of its node through an [`Agent`].

mod events;
mod hostdisk;
pub mod kvm;
pub mod network;
mod node;
mod registry;
mod session;
mod sockets;
mod streams;
mod syscall;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use kvm::{KvmMode, Verdict};
pub use network::Dns;
pub use streams::Agent;

use registry::Registry;
use session::Context;

/// User and group that launchers and QEMU run as.
pub const LAUNCHER_USER: u32 = 107;

/// How a node agent runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node whose guests are served.
    pub node_name: String,
    /// The kubelet's pods directory.
    pub pods_dir: PathBuf,
    /// Directory of the agent's own; made if missing. Losing it costs the addresses of running guests
    /// with bridge binding.
    pub state_dir: PathBuf,
    /// QEMU, for the KVM probe and the node's labels.
    pub qemu: PathBuf,
    /// Whether guests use KVM.
    pub kvm: KvmMode,
    /// Guests may run without KVM.
    pub allow_emulation: bool,
    /// Resolver settings for guests whose pod has none that a guest could use.
    pub dns: Dns,
    /// User and group that launchers run as; others are not talked to.
    pub launcher_user: u32,
    /// Renew the node's heartbeat annotation each minute or two, as a cluster needs it.
    pub heartbeat: bool,
}

impl Options {
    /// The embedded home's choices.
    #[must_use]
    pub fn new(node_name: impl Into<String>, pods_dir: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.into(),
            pods_dir: pods_dir.into(),
            state_dir: state_dir.into(),
            qemu: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            kvm: KvmMode::Probe,
            allow_emulation: true,
            dns: Dns::default(),
            launcher_user: LAUNCHER_USER,
            heartbeat: false,
        }
    }

    fn network_records(&self) -> PathBuf {
        self.state_dir.join("network")
    }

    fn network_record(&self, pod_uid: &str) -> PathBuf {
        self.network_records().join(format!("{pod_uid}.json"))
    }
}

/// How a pod says that it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reported {
    Succeeded,
    Failed,
}

/// Why the node agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory cannot be used.
    #[error("cannot use the state directory {path}")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs the node agent until `shutdown`. See [`run_with`].
///
/// # Errors
/// See [`Error`].
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let agent = Agent::new(options.pods_dir.clone());
    run_with(client, options, agent, shutdown).await
}

/// Runs the node agent until `shutdown`, and lets `agent` reach its guests.
///
/// Guarantees: stopping or killing it touches no guest; the next one finds them by their VMIs and pods. The
/// API server, the node and pods may come later than the agent.
///
/// # Errors
/// See [`Error`].
pub async fn run_with(
    client: Client,
    options: Options,
    agent: Agent,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    for path in [options.state_dir.clone(), options.network_records()] {
        std::fs::create_dir_all(&path).map_err(|source| Error::State { path, source })?;
    }
    let (verdict, kvm) = watch::channel(None);
    let probe = async {
        let found = kvm::decide(options.kvm, &options.qemu, &options.state_dir).await;
        tracing::info!(usable = found.usable, why = found.why, "KVM");
        verdict.send_replace(Some(found.clone()));
        node::publish(&client, &options, &found).await;
        if options.heartbeat {
            node::heartbeat(&client, &options.node_name).await;
        }
        std::future::pending::<()>().await;
    };
    let context = Arc::new(Context {
        client: client.clone(),
        options: options.clone(),
        kvm,
        guests: agent.guests.clone(),
    });
    tokio::select! {
        () = probe => {}
        () = Registry::new(context).run() => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}
