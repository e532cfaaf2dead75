//! The process virt-operator.

use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use ferrovirt_runtime::client::ClientArgs;
use ferrovirt_runtime::http::{self, Readiness};
use ferrovirt_runtime::lease;
use ferrovirt_runtime::logs::{self, LogArgs};
use ferrovirt_runtime::metrics::Metrics;
use ferrovirt_runtime::process;
use ferrovirt_runtime::signals::Termination;
use ferrovirt_runtime::supervisor::Supervisor;
use ferrovirt_runtime::tls::{self, Clients, Identity};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

use super::certificates::{self, Leaf, Rotation};
use super::inputs::Release;
use super::mirror::WATCH_SECONDS;
use super::reconcile::{Settings, reconcile_until};
use super::resources::OPERATOR;
use super::webhook::{self, Webhooks};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long parts may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A cluster's operator: installs, updates and removes everything else, as the KubeVirt object says
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    logs: LogArgs,
    #[command(flatten)]
    release: Release,
    /// Port of health, metrics and webhooks
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Namespace of the KubeVirt object and of all that is installed
    #[arg(long, env = "NAMESPACE", default_value = "kubevirt")]
    namespace: String,
}

/// Runs until SIGTERM or SIGINT, or until the lease is lost.
///
/// # Errors
/// The API server cannot be used, nothing can be served, the lease was lost, or a part died.
pub fn run(args: Args) -> anyhow::Result<()> {
    logs::init(args.logs);
    process::block_on(serve(args))?
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let Args {
        client,
        logs: LogArgs { verbosity },
        release,
        port,
        namespace,
    } = args;
    let mut termination = Termination::install().context("cannot listen for signals")?;
    let metrics = Metrics::new(VERSION);
    // From outside, the API server's requests to the Service would not come here.
    let webhooks = client.kubeconfig.is_none();
    let client = client.connect(OPERATOR, VERSION, &metrics).await?;
    let leading = register(&metrics);

    let mut parts = Supervisor::default();
    let identity = first_identity(&namespace).context("cannot make a first certificate")?;
    let tls = tls::server(&identity, Clients::Anyone, &["h2", "http/1.1"])?;
    let app = http::operations(&metrics, &Readiness::default()).merge(webhook::router(Webhooks {
        client: client.clone(),
        release: release.clone(),
    }));
    let listener = http::listen(port).await;
    let listener = listener.with_context(|| format!("cannot listen on port {port}"))?;
    parts.critical("HTTP", http::serve(listener, tls, app, parts.token()));
    let certificate = follow_certificate(client.clone(), namespace.clone(), identity, parts.token());
    parts.critical("certificate", certificate);

    let election = lease::Settings::new(&namespace, OPERATOR, &lease::identity());
    let settings = Settings {
        namespace,
        release,
        webhooks,
        verbosity,
    };
    let stop = parts.token();
    let work = reconcile_until(client.clone(), settings, stop.clone()).boxed();
    let work = async move {
        leading.set(1);
        work.await;
    };
    parts.critical("operator", async move {
        let led = lease::lead(client, election, stop, work).await;
        led.map(drop)
    });
    let signal = async {
        let signal = termination.received().await;
        tracing::info!(signal, "stopping");
    };
    Ok(parts.run(signal, GRACE).await?)
}

/// KubeVirt's metrics of an operator. Answers with the one that says whether it leads.
fn register(metrics: &Metrics) -> Gauge {
    let (ready, leading): (Gauge, Gauge) = Default::default();
    ready.set(1);
    metrics.register(|registry| {
        let help = "Indication for a virt-operator that is ready to take the lead.";
        registry.register("kubevirt_virt_operator_ready_status", help, ready);
        let help = "Indication for an operating virt-operator.";
        registry.register("kubevirt_virt_operator_leading_status", help, leading.clone());
    });
    leading
}

/// What is shown until there is a certificate that others trust.
fn first_identity(namespace: &str) -> anyhow::Result<Identity> {
    let (rotation, now) = (Rotation::default(), Timestamp::now());
    let authority = certificates::make_authority(&rotation, now)?;
    let pair = certificates::sign(&authority, &Leaf::OPERATOR, namespace, &rotation, now)?;
    Ok(Identity::from_pem(pair.certificate.as_bytes(), pair.key.as_bytes())?)
}

/// Shows what is in the Secret, also while another process leads.
async fn follow_certificate(
    client: Client,
    namespace: String,
    identity: Identity,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let one = watcher::Config::default()
        .fields(&format!("metadata.name={}", Leaf::OPERATOR.secret))
        .timeout(WATCH_SECONDS);
    let secrets = watcher(Api::<Secret>::namespaced(client, &namespace), one);
    let mut secrets = pin!(secrets.default_backoff().applied_objects());
    loop {
        let secret = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            secret = secrets.next() => secret,
        };
        let secret = match secret {
            Some(Ok(secret)) => secret,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot follow the own certificate");
                continue;
            }
            None => return Ok(()),
        };
        let data = secret.data.unwrap_or_default();
        let text = |key: &str| data.get(key).map_or(&[][..], |bytes| &bytes.0);
        match identity.replace(text("tls.crt"), text("tls.key")) {
            Ok(true) => tracing::info!("a new certificate is shown"),
            Ok(false) => {}
            Err(error) => tracing::warn!(error = logs::chain(&error), "the own certificate cannot be used"),
        }
    }
}
