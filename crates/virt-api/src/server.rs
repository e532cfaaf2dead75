//! virt-api as a process of a cluster: webhooks and the aggregated API on one port, over TLS.
//!
//! ```text
//!             :8443 ─┬─ webhooks ──► Admission ◄── KubeVirt object, presets (one watch each)
//!  API server ───────┤
//!                    └─ aggregated ──► SubjectAccessReview ──► Subresources ──mTLS──► virt-handler of the VMI's node
//! ```
//!
//! Idle, it holds three watches (configuration, presets, the front proxy's authority) and asks for nothing. `/healthz`
//! and `/readyz` are for the kubelet; the group's own `…/healthz` asks the API server, and so is not.

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use ferrovirt_api::v1::VirtualMachineInstancePreset;
use ferrovirt_core::ClusterConfig;
use ferrovirt_protocol::node;
use ferrovirt_runtime::client::{ClientArgs, ClientError};
use ferrovirt_runtime::http::{self, Gate, Readiness};
use ferrovirt_runtime::logs::{self, LogArgs};
use ferrovirt_runtime::metrics::Metrics;
use ferrovirt_runtime::signals::Termination;
use ferrovirt_runtime::supervisor::{Supervisor, TaskError};
use ferrovirt_runtime::tls::{self, Clients, Files, TlsError, Trust};
use ferrovirt_runtime::{kubevirt, process};
use futures::StreamExt;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, watcher};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::aggregated::{self, FrontProxy};
use crate::nodes::Handlers;
use crate::status;
use crate::subresources::Subresources;
use crate::webhooks;

const NAME: &str = "virt-api";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// After SIGTERM the API server still sends requests for a moment, until it and the Service's rules on its node know
/// that this pod is going; on a busy machine that takes some seconds. Meanwhile its connections are handed over.
const LAME_DUCK: Duration = Duration::from_secs(8);
const GRACE: Duration = Duration::from_secs(5);

/// A cluster's webhooks and subresources
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    logs: LogArgs,
    /// Port of webhooks, aggregated API, health and metrics
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    port: u16,
    /// Directory with tls.crt and tls.key of the server
    #[arg(long, value_name = "DIR", default_value = "/etc/virt-api/certificates")]
    cert_dir: PathBuf,
    /// Directory with tls.crt and tls.key of the client of virt-handler
    #[arg(long, value_name = "DIR", default_value = "/etc/virt-api/clientcertificates")]
    client_cert_dir: PathBuf,
    /// Authorities of virt-handler's certificates
    #[arg(long, value_name = "FILE", default_value = "/etc/kubevirt-ca/ca-bundle")]
    ca_bundle: PathBuf,
    /// Namespace of our components
    #[arg(long, value_name = "NAMESPACE", env = "NAMESPACE", default_value = "kubevirt")]
    namespace: String,
    /// Port of virt-handler
    #[arg(long, value_name = "PORT", default_value_t = node::PORT)]
    handler_port: u16,
    /// Image that `virtctl guestfs` starts
    #[arg(long, value_name = "IMAGE", env = "GS_IMAGE")]
    guestfs_image: Option<String>,
}

/// Why virt-api ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificates.
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    /// The client of the API server.
    #[error("cannot talk to the API server")]
    Client(#[from] ClientError),
    /// The tokio runtime.
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
    /// Signals.
    #[error("cannot take over SIGTERM and SIGINT")]
    Signals(#[source] std::io::Error),
    /// The port.
    #[error("cannot listen on port {port}")]
    Listen {
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A part of it failed.
    #[error("a part of virt-api failed")]
    Task(#[from] TaskError),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// See [`Error`].
pub fn run(args: &Args) -> Result<(), Error> {
    logs::init(args.logs);
    let main = async {
        let mut termination = Termination::install().map_err(Error::Signals)?;
        let metrics = Metrics::new(VERSION);
        let client = args.client.connect(NAME, VERSION, &metrics).await?;
        let listener = http::listen(args.port).await.map_err(|source| Error::Listen {
            port: args.port,
            source,
        })?;
        let signal = async {
            let signal = termination.received().await;
            tracing::info!(signal, "stopping");
        };
        serve(args, client, &metrics, listener, signal).await
    };
    process::block_on(main).map_err(Error::Runtime)?
}

/// Serves on `listener` until `shutdown`.
///
/// # Errors
/// Certificates cannot be read, or a part failed.
pub async fn serve(
    args: &Args,
    client: kube::Client,
    metrics: &Metrics,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let readiness = Readiness::default();
    let mut parts = Supervisor::default();
    let mut shutdown = pin!(shutdown);
    let app = tokio::select! {
        app = assemble(args, client, metrics, &readiness, &mut parts) => app?,
        () = &mut shutdown => return Ok(()),
    };
    tracing::info!(port = args.port, version = VERSION, "virt-api starts to serve");
    parts.critical("the server", listen(listener, app, parts.token()));
    let goodbye = async {
        shutdown.await;
        let _closed: Gate = readiness.wait_for("the end");
        tokio::time::sleep(LAME_DUCK).await;
    };
    parts.run(goodbye, GRACE).await?;
    Ok(())
}

/// Serves when it is known who the front proxy is; until then connections wait in the kernel's queue.
async fn listen(listener: TcpListener, app: App, stop: CancellationToken) -> std::io::Result<()> {
    tokio::select! {
        () = app.proxy.known() => {}
        () = stop.cancelled() => return Ok(()),
    }
    http::serve(listener, app.tls, app.router, stop).await
}

/// What is served.
struct App {
    proxy: FrontProxy,
    tls: tls::ServerTls,
    router: Router,
}

async fn assemble(
    args: &Args,
    client: kube::Client,
    metrics: &Metrics,
    readiness: &Readiness,
    parts: &mut Supervisor,
) -> Result<App, Error> {
    let proxy = FrontProxy::default();
    let mut files = Files::default();
    let server = files.identity(&args.cert_dir)?;
    let identity = files.identity(&args.client_cert_dir)?;
    let handlers = Trust::new(files.authorities(&args.ca_bundle)?, [node::SERVER_NAME]);
    let tls = tls::server(&server, Clients::Optional(proxy.trust()), &["h2", "http/1.1"])?;
    let to_handlers = tls::client(Some(&identity), handlers, &["http/1.1"])?;
    parts.critical("certificates", files.follow(parts.token()));

    let defaults = ClusterConfig::default();
    let (sender, config) = watch::channel(Arc::new(kubevirt::first(&client, &defaults).await));
    parts.critical(
        "the configuration",
        kubevirt::follow(client.clone(), defaults, sender, parts.token()),
    );
    let (presets, writer) = reflector::store();
    parts.critical(
        "presets",
        follow_presets(
            client.clone(),
            writer,
            presets.clone(),
            readiness.wait_for("presets"),
            parts.token(),
        ),
    );
    parts.critical(
        "the front proxy's authority",
        aggregated::follow(
            client.clone(),
            proxy.clone(),
            readiness.wait_for("the front proxy's authority"),
            parts.token(),
        ),
    );

    let admission = Admission::new(client.clone(), config.clone())
        .with_presets(presets)
        .in_namespace(&args.namespace);
    let nodes = Handlers::new(client.clone(), &args.namespace, to_handlers, args.handler_port);
    let subresources =
        Subresources::on_cluster(client.clone(), Arc::new(nodes)).with_guestfs(args.guestfs_image.clone());
    metrics.register(|registry| subresources.register_metrics(registry));
    let router = http::operations(metrics, readiness)
        .merge(webhooks::router(admission, client.clone(), config))
        .merge(aggregated::router(client, proxy.clone(), subresources));
    let router = http::hand_over(router, readiness);
    Ok(App { proxy, tls, router })
}

async fn follow_presets(
    client: kube::Client,
    writer: reflector::store::Writer<VirtualMachineInstancePreset>,
    store: Store<VirtualMachineInstancePreset>,
    known: Gate,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let api = Api::<VirtualMachineInstancePreset>::all(client);
    let follow = async {
        let events = watcher(api, watcher::Config::default())
            .default_backoff()
            .reflect(writer)
            .filter_map(async |event| event.err());
        let mut errors = pin!(events);
        while let Some(error) = errors.next().await {
            tracing::warn!(error = %status::chain(&error), "the watch of presets was interrupted");
        }
        Err::<Infallible, _>(std::io::Error::other("the watch of presets ended"))
    };
    let ready = async {
        if store.wait_until_ready().await.is_ok() {
            known.ready();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = follow => ended.map(|never| match never {}),
        () = ready => Ok(()),
        () = stop.cancelled() => Ok(()),
    }
}
