#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! [`run`] is the whole node agent. Other processes reach the guests of its node through an [`Agent`].

mod capabilities;
mod containerdisk;
mod devices;
mod events;
mod hostdisk;
pub mod kvm;
mod metrics;
pub mod network;
mod node;
mod registry;
pub mod server;
mod session;
mod sockets;
mod streams;
mod syscall;
mod vsock;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ferrovirt_core::ClusterConfig;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use kvm::{KvmMode, Verdict};
pub use network::Dns;
pub use streams::Agent;

use capabilities::Capabilities;
use devices::Device;
use registry::Registry;
use session::Context;

/// User and group that launchers and QEMU run as.
pub const LAUNCHER_USER: u32 = 107;

/// How long the kubelet may take to accept the device plugins before the node is offered without them.
const PLUGINS_WAIT: Duration = Duration::from_secs(10);

/// How pods come by devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Whoever runs the pods gives them what they need; the node's status says what there is.
    Status,
    /// By device plugins; this is the kubelet's directory of them.
    Plugins(PathBuf),
}

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
    /// What is found out about KVM is told here, and again when it turns out otherwise.
    pub verdict: watch::Sender<Option<Verdict>>,
    /// What the cluster's administrator decides.
    pub config: watch::Receiver<Arc<ClusterConfig>>,
    /// How pods come by devices.
    pub devices: Devices,
    /// Where QEMU's capabilities are prepared for launchers, if that is this agent's business.
    pub capabilities: Option<PathBuf>,
    /// Resolver settings for guests whose pod has none that a guest could use.
    pub dns: Dns,
    /// User and group that launchers run as; others are not talked to.
    pub launcher_user: u32,
    /// Renew the node's heartbeat annotation each minute or two, as a cluster needs it; and when the agent is
    /// stopped, let no more VMs come to the node.
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
            verdict: watch::Sender::new(None),
            // The value outlives its sender.
            config: watch::channel(Arc::new(ClusterConfig::standalone())).1,
            devices: Devices::Status,
            capabilities: None,
            dns: Dns::default(),
            launcher_user: LAUNCHER_USER,
            heartbeat: false,
        }
    }

    fn network_records(&self) -> PathBuf {
        self.state_dir.join("network")
    }

    /// libvirt's description of what guests can have here, once it was asked.
    fn domain_capabilities(&self, kvm: bool) -> Option<PathBuf> {
        Some(capabilities::domain_capabilities(self.capabilities.as_ref()?, kvm))
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
    let verdict = options.verdict.clone();
    let kvm = verdict.subscribe();
    let context = Arc::new(Context {
        client: client.clone(),
        capabilities: options.capabilities.clone().map(Capabilities::new),
        options: options.clone(),
        kvm,
        guests: agent.guests.clone(),
    });
    let node = async {
        tokio::join!(
            kvm::settle(options.kvm, &options.qemu, &options.state_dir, &verdict),
            offer(&context, &agent),
        );
    };
    tokio::select! {
        () = node => {}
        () = Registry::new(context.clone()).run() => {}
        () = shutdown.cancelled() => {}
    }
    if options.heartbeat {
        node::retire(&client, &options.node_name).await;
    }
    Ok(())
}

/// Says what the node has, and keeps saying so, for ever.
async fn offer(context: &Context, agent: &Agent) {
    let Context { client, options, .. } = context;
    let mut kvm = context.kvm.clone();
    let found = kvm.wait_for(Option::is_some).await.map(|found| found.clone());
    let Ok(Some(first)) = found else {
        // Whoever decided on KVM is gone, and the agent with it.
        return std::future::pending().await;
    };
    let (registered, mut accepted) = watch::channel(0);
    let plugins = async {
        if let Devices::Plugins(directory) = &options.devices {
            let run = |list| devices::run(directory, list, options.config.clone(), &registered);
            // What is offered already is not taken back for a better verdict.
            let later = async {
                if !first.usable {
                    kvm::works(&mut kvm).await;
                    run(vec![Device::kvm()]).await;
                }
            };
            tokio::join!(
                run(devices::known(&first)),
                later,
                devices::run_pools(directory, options.config.clone()),
                devices::run_reservations(directory, options.config.clone(), options.launcher_user),
            );
        }
    };
    let say = async {
        if let Devices::Plugins(_) = options.devices {
            let there = devices::known(&first)
                .iter()
                .filter(|device| device.path.exists())
                .count();
            let all = accepted.wait_for(|count| *count >= there);
            if tokio::time::timeout(PLUGINS_WAIT, all).await.is_err() {
                tracing::warn!("the kubelet has not accepted all device plugins yet");
            }
        }
        node::follow(context, || agent.set_ready()).await;
    };
    let beat = async {
        if options.heartbeat {
            node::heartbeat(client, &options.node_name).await;
        }
    };
    let prepare = async {
        if let Some(capabilities) = &context.capabilities {
            capabilities.keep(options.config.clone(), context.kvm.clone()).await;
        }
    };
    tokio::join!(plugins, say, beat, prepare);
    std::future::pending::<()>().await;
}
