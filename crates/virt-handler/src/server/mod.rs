//! virt-handler as a process of its own, on each node of a cluster.
//!
//! ```text
//!  kubelet ◄── device plugins ──┐                         ┌── mTLS, port 8186 ◄── virt-api
//!  API server ◄── watches, ─────┤ node agent ◄── Agent ───┤
//!                 statuses      └──► launchers            └── TLS, port 8443 ◄── kubelet, Prometheus
//! ```

mod calls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use ferrovirt_core::ClusterConfig;
use ferrovirt_protocol::node::{API_CLIENT_NAME, PORT};
use ferrovirt_runtime::client::ClientArgs;
use ferrovirt_runtime::http::{self, Readiness};
use ferrovirt_runtime::logs::LogArgs;
use ferrovirt_runtime::metrics::Metrics;
use ferrovirt_runtime::signals::Termination;
use ferrovirt_runtime::supervisor::Supervisor;
use ferrovirt_runtime::tls::{self, Clients, Files, Trust};
use ferrovirt_runtime::{kubevirt, logs, process};
use tokio::sync::watch;

use crate::metrics::GuestMetrics;
use crate::{Agent, Devices, KvmMode, Options, run_with};

/// How long parts may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Name of the component.
const NAME: &str = "virt-handler";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A node's agent: devices, network, sessions with the launchers, streams into guests
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  NODE_NAME=node1 ferrovirt virt-handler --kubeconfig admin.conf --cert-dir ''")]
pub struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    logs: LogArgs,
    /// Name of the node that this process serves
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,
    /// Port for virt-api
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Port of health and metrics
    #[arg(long, default_value_t = 8443)]
    metrics_port: u16,
    /// Directory of tls.crt and tls.key; empty: neither virt-api nor health and metrics are served
    #[arg(long, value_name = "DIR", default_value = "/etc/virt-handler/servercertificates")]
    cert_dir: PathBuf,
    /// Directory of tls.crt and tls.key that programs in guests are shown; empty: none
    #[arg(long, value_name = "DIR", default_value = "/etc/virt-handler/clientcertificates")]
    client_cert_dir: PathBuf,
    /// Authorities that virt-api's certificate is judged by
    #[arg(long, value_name = "FILE", default_value = "/etc/kubevirt-ca/ca-bundle")]
    ca_bundle: PathBuf,
    /// The kubelet's directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// Directory of this node's own state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubevirt")]
    state_dir: PathBuf,
    /// Whether guests use KVM: by the probe guest, never, or without asking
    #[arg(long, value_enum, default_value_t = KvmMode::Probe)]
    kvm: KvmMode,
}

/// Runs until SIGTERM or SIGINT. Guests go on running; the next process of the node finds them.
///
/// # Errors
/// The API server cannot be talked to, a certificate is missing, or a part died.
pub fn run(args: Args) -> anyhow::Result<()> {
    logs::init(args.logs);
    process::block_on(serve(args))?
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let mut termination = Termination::install().context("cannot listen for signals")?;
    let metrics = Metrics::new(VERSION);
    let client = args.client.connect(NAME, VERSION, &metrics).await?;
    let mut parts = Supervisor::default();
    let defaults = ClusterConfig::default();
    // Before any guest is looked at: what is not known yet must not pass for what is forbidden.
    let first = tokio::select! {
        first = kubevirt::first(&client, &defaults) => first,
        _ = termination.received() => return Ok(()),
    };
    let (config, config_seen) = watch::channel(Arc::new(first));
    parts.critical(
        "the configuration",
        kubevirt::follow(client.clone(), defaults, config, parts.token()),
    );
    tokio::spawn(follow_verbosity(args.node_name.clone(), args.logs, config_seen.clone()));
    let options = options(&args, config_seen);
    let agent = Agent::new(options.pods_dir.clone());
    if !args.cert_dir.as_os_str().is_empty() {
        listen(&args, &metrics, &agent, &mut parts).await?;
    }
    parts.critical("the node agent", run_with(client, options, agent, parts.token()));
    tracing::info!(node = args.node_name, "virt-handler runs");
    let signal = async {
        let signal = termination.received().await;
        tracing::info!(signal, "stopping; guests go on running");
    };
    Ok(parts.run(signal, GRACE).await?)
}

/// Logs as much as the cluster says for this node, or else what the command line says.
async fn follow_verbosity(node: String, logs: LogArgs, mut config: watch::Receiver<Arc<ClusterConfig>>) {
    loop {
        let level = config.borrow_and_update().node_verbosity.get(&node).copied();
        logs::set_verbosity(level.unwrap_or(logs.verbosity));
        if config.changed().await.is_err() {
            return;
        }
    }
}

async fn listen(args: &Args, metrics: &Metrics, agent: &Agent, parts: &mut Supervisor) -> anyhow::Result<()> {
    let mut files = Files::default();
    let identity = files.identity(&args.cert_dir)?;
    if !args.client_cert_dir.as_os_str().is_empty() {
        agent.set_credentials(tls::client_of_strangers(&files.identity(&args.client_cert_dir)?)?);
    }
    let trust = Trust::new(files.authorities(&args.ca_bundle)?, [API_CLIENT_NAME]);
    let listening = async |port| {
        let listener = http::listen(port).await;
        listener.with_context(|| format!("cannot listen on port {port}"))
    };
    let tls = tls::server(&identity, Clients::Required(trust), &["http/1.1"])?;
    let (listener, app) = (listening(args.port).await?, calls::router(agent.clone()));
    parts.critical("virt-api's port", http::serve(listener, tls, app, parts.token()));

    let readiness = Readiness::default();
    let gate = readiness.wait_for("the node");
    let ready = agent.clone();
    tokio::spawn(async move {
        ready.ready().await;
        gate.ready();
    });
    let tls = tls::server(&identity, Clients::Anyone, &["h2", "http/1.1"])?;
    let app = operations(metrics, &readiness, agent, &args.node_name);
    let listener = listening(args.metrics_port).await?;
    parts.critical("health and metrics", http::serve(listener, tls, app, parts.token()));
    parts.critical("certificates", files.follow(parts.token()));
    Ok(())
}

fn options(args: &Args, config: watch::Receiver<Arc<ClusterConfig>>) -> Options {
    Options {
        qemu: PathBuf::from(format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH)),
        kvm: args.kvm,
        config,
        devices: Devices::Plugins(args.kubelet_dir.join("device-plugins")),
        capabilities: Some(args.state_dir.join("capabilities")),
        heartbeat: true,
        ..Options::new(
            &args.node_name,
            args.kubelet_dir.join("pods"),
            args.state_dir.join("handler"),
        )
    }
}

/// Health, and metrics for which the launchers are asked first.
fn operations(metrics: &Metrics, readiness: &Readiness, agent: &Agent, node: &str) -> Router {
    let (guests, agent) = (GuestMetrics::register(metrics, node), agent.clone());
    let refresh = move |request: Request, next: Next| {
        let (guests, agent) = (guests.clone(), agent.clone());
        async move {
            if request.uri().path() == "/metrics" {
                guests.refresh(&agent).await;
            }
            next.run(request).await
        }
    };
    http::operations(metrics, readiness).layer(from_fn(refresh))
}
