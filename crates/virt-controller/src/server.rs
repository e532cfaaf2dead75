//! The process `virt-controller` of a cluster: of its replicas one leads and runs the controllers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use ferrovirt_core::ClusterConfig;
use ferrovirt_runtime::client::ClientArgs;
use ferrovirt_runtime::http::{self, Readiness};
use ferrovirt_runtime::lease::{self, Settings};
use ferrovirt_runtime::logs::LogArgs;
use ferrovirt_runtime::metrics::Metrics;
use ferrovirt_runtime::signals::Termination;
use ferrovirt_runtime::supervisor::Supervisor;
use ferrovirt_runtime::tls::{self, Clients, Files};
use ferrovirt_runtime::{kubevirt, logs, process};
use tokio::sync::watch;

use crate::cache::Caches;
use crate::{Home, Options, metrics, run_with};

/// Name of the component, and of its lease.
const NAME: &str = "virt-controller";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long parts may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// The cluster's controllers: VirtualMachine, VirtualMachineInstance, Node
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  ferrovirt virt-controller --launcher-image registry.example/virt-launcher:v1 --kubeconfig admin.conf --cert-dir ''")]
pub struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    logs: LogArgs,
    /// Image of virt-launcher
    #[arg(long, value_name = "IMAGE", env = "VIRT_LAUNCHER_IMAGE")]
    launcher_image: String,
    /// Image of hook sidecars that name none
    #[arg(long, value_name = "IMAGE", env = "SIDECAR_SHIM_IMAGE")]
    sidecar_shim_image: Option<String>,
    /// Port of health and metrics
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Directory of tls.crt and tls.key; empty: no health and metrics are served
    #[arg(long, value_name = "DIR", default_value = "/etc/virt-controller/certificates")]
    cert_dir: PathBuf,
    /// Namespace of the lease
    #[arg(long, env = "NAMESPACE", default_value = "kubevirt")]
    namespace: String,
}

/// Runs until SIGTERM or SIGINT, or until the lease is lost.
///
/// # Errors
/// The API server is not reachable, a certificate is missing, the lease was lost, or a part died.
pub fn run(args: Args) -> anyhow::Result<()> {
    logs::init(args.logs);
    process::block_on(serve(args))?
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let mut termination = Termination::install().context("cannot listen for signals")?;
    let registry = Metrics::new(VERSION);
    let client = args.client.connect(NAME, VERSION, &registry).await?;
    let mut parts = Supervisor::default();
    let caches = Caches::default();
    let leading = Arc::new(AtomicBool::new(false));
    metrics::register(&registry, &caches, &leading);

    if !args.cert_dir.as_os_str().is_empty() {
        let mut files = Files::default();
        let identity = files.identity(&args.cert_dir)?;
        let tls = tls::server(&identity, Clients::Anyone, &["h2", "http/1.1"])?;
        parts.critical("certificates", files.follow(parts.token()));
        let address = SocketAddr::from(([0, 0, 0, 0], args.port));
        let listener = http::listen(args.port)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let app = http::operations(&registry, &Readiness::default());
        parts.critical("HTTP", http::serve(listener, tls, app, parts.token()));
    }

    let settings = Settings::new(&args.namespace, NAME, &lease::identity());
    let options = Options {
        launcher_image: args.launcher_image,
        sidecar_shim_image: args.sidecar_shim_image.filter(|image| !image.is_empty()),
        home: Home::Cluster,
    };
    let (api, stop) = (client.clone(), parts.token());
    let work = async move {
        leading.store(true, Ordering::Relaxed);
        let defaults = ClusterConfig::default();
        let config = kubevirt::read(&api, &defaults)
            .await
            .context("cannot read the KubeVirt object")?;
        let (sender, config) = watch::channel(Arc::new(config));
        let (follow, work) = (
            kubevirt::follow(api.clone(), defaults, sender, stop.clone()),
            run_with(api, config, options, caches, stop),
        );
        tokio::try_join!(async { follow.await.context("the configuration") }, async {
            work.await.context("the controllers")
        },)?;
        anyhow::Ok(())
    };
    let stop = parts.token();
    parts.critical("controllers", async move {
        match lease::lead(client, settings, stop, work).await {
            Ok(None) => Ok(()),
            Ok(Some(outcome)) => outcome.map_err(|error| std::io::Error::other(format!("{error:#}"))),
            Err(lost) => Err(std::io::Error::other(logs::chain(&lost))),
        }
    });
    let signal = async {
        let signal = termination.received().await;
        tracing::info!(signal, "stopping");
    };
    Ok(parts.run(signal, GRACE).await?)
}
