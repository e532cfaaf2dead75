//! All parts of the control plane, put together.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ferrovirt_apiserver::pki::Pki;
use ferrovirt_apiserver::{ApiServer, Config, Storage, UserInfo};
use ferrovirt_core::ClusterConfig;
use ferrovirt_runtime::signals::Termination;
use ferrovirt_runtime::supervisor::{Supervisor, TaskError};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use virt_api::admission::Admission;
use virt_api::subresources::Subresources;
use virt_handler::{Agent, KvmMode};

use super::{IMAGE, Kvm, UpArgs, checks};
use crate::adapters::{VirtAdmission, VirtSubresources};
use crate::images::ImageStore;
use crate::kubevirt;
use crate::node::{self, Facts};
use crate::paths::DataDir;
use crate::pods::PodRunner;
use crate::pods::config::RunnerConfig;
use crate::{claims, home_network, scheduler};

/// How long parts may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A control plane that is ready to run.
pub(super) struct Home {
    server: ApiServer,
    tls: Arc<ServerConfig>,
    runner: Arc<PodRunner>,
    config: watch::Sender<Arc<ClusterConfig>>,
    node: String,
    volumes: PathBuf,
    kvm: watch::Sender<Option<bool>>,
    handler: virt_handler::Options,
    agent: Agent,
}

impl Home {
    /// Opens the store and brings in what always exists. Nothing runs yet, but requests could be answered.
    pub(super) async fn open(args: &UpArgs, data: &DataDir, url: &str) -> anyhow::Result<Self> {
        raise_file_limit();
        let directory = data.apiserver();
        let pki = Pki::load_or_create(&directory.join("pki"), &names(args.listen.ip()))?;
        let mut config = Config::new(Storage::File(directory.join("store.db")));
        config.crds = ferrovirt_api::crds()
            .iter()
            .map(serde_json::to_value)
            .collect::<Result<_, _>>()?;
        config.namespaces = vec![kubevirt::NAMESPACE.to_owned()];
        config.token_key = Some(pki.token_key());
        config.root_ca = Some(pki.ca_pem().to_owned());
        let server = ApiServer::open(config).await?;
        let client = |name: &str| server.client(component(name));

        let cluster = kubevirt::ensure(&client("kubevirt-operator"))
            .await
            .context("cannot write the KubeVirt object")?;
        claims::ensure_class(&client("kubevirt-operator"))
            .await
            .context("cannot write the storage class")?;
        let (config, config_seen) = watch::channel(Arc::new(cluster));
        let admission = Admission::new(client("kubevirt-apiserver"), config_seen);
        server.set_admission(Arc::new(VirtAdmission(admission)));
        let agent = Agent::new(data.pods());
        let subresources = Subresources::new(client("kubevirt-apiserver"), Arc::new(agent.clone()));
        server.add_aggregated(Arc::new(VirtSubresources(subresources)));

        let facts = Facts::gather(&node::name(data, args.node_name.as_deref())?, data.path());
        let (kvm, kvm_seen) = watch::channel(None);
        let runner_config = RunnerConfig {
            node: facts.name.clone(),
            host_ip: facts.address,
            image: IMAGE.to_owned(),
            executable: std::env::current_exe().context("cannot tell where this executable is")?,
            launcher: checks::launcher().map_err(anyhow::Error::msg)?,
            data: data.clone(),
            network: home_network::choose(data, args.pod_subnet.as_deref())?,
            kvm: kvm_seen,
        };
        let images = ImageStore::open(&data.images()).context("cannot open the image store")?;
        let runner = PodRunner::new(
            runner_config,
            server.client(UserInfo::admin(&format!("system:node:{}", facts.name))),
            images,
        );
        let runner = Arc::new(runner.await?);
        server.set_kubelet(runner.kubelet());
        facts
            .publish(&client("kubevirt-operator"))
            .await
            .context("cannot write the Node object")?;
        node::keep_name(data, &facts.name)?;

        pki.write_kubeconfig(&data.kubeconfig(), url, "ferrovirt")?;
        let mut handler = virt_handler::Options::new(&facts.name, data.pods(), data.path().join("handler"));
        handler.config = config.subscribe();
        handler.qemu = PathBuf::from(format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH));
        handler.kvm = match args.kvm {
            Kvm::Probe => KvmMode::Probe,
            Kvm::Off => KvmMode::Off,
            Kvm::Force => KvmMode::Force,
        };
        Ok(Self {
            tls: pki.server_config()?,
            server,
            runner,
            config,
            node: facts.name,
            volumes: data.volumes(),
            kvm,
            handler,
            agent,
        })
    }

    /// Runs everything until a signal, or until a part fails.
    pub(super) async fn run(self, listener: TcpListener, mut termination: Termination) -> Result<(), TaskError> {
        let Self {
            server,
            tls,
            runner,
            config,
            node,
            volumes,
            kvm,
            handler,
            agent,
        } = self;
        let mut parts = Supervisor::default();
        let client = |name: &str| server.client(component(name));

        let (api, stop) = (server.clone(), parts.token());
        parts.critical("the API server", async move {
            api.serve(listener, tls, stop).await;
            Ok::<_, std::io::Error>(())
        });
        let config_seen = config.subscribe();
        parts.critical(
            "the configuration",
            ferrovirt_runtime::kubevirt::follow(
                client("kubevirt-operator"),
                ClusterConfig::standalone(),
                config,
                parts.token(),
            ),
        );
        parts.critical("the scheduler", scheduler::run(client("kube-scheduler"), parts.token()));
        parts.critical(
            "the provisioner of volumes",
            claims::run(client("persistent-volume-binder"), node, volumes, parts.token()),
        );
        let options = virt_controller::Options {
            launcher_image: format!("{IMAGE}:{}", env!("CARGO_PKG_VERSION")),
            sidecar_shim_image: None,
            home: virt_controller::Home::Standalone,
        };
        parts.critical(
            "virt-controller",
            virt_controller::run(client("kubevirt-controller"), config_seen, options, parts.token()),
        );
        let (pods, stop) = (Arc::clone(&runner), parts.token());
        parts.critical("the pod runner", async move { pods.run(stop).await });
        let (mut verdicts, stop) = (handler.verdict.subscribe(), parts.token());
        parts.critical("what is known of KVM", async move {
            // The pod runner asks for as long as it runs.
            while let Some(Ok(())) = stop.run_until_cancelled(verdicts.changed()).await {
                kvm.send_replace(verdicts.borrow_and_update().as_ref().map(|verdict| verdict.usable));
            }
            stop.cancelled().await;
            Ok::<_, std::io::Error>(())
        });
        let node = client("kubevirt-handler");
        parts.critical(
            "virt-handler",
            virt_handler::run_with(node, handler, agent, parts.token()),
        );
        let stop = parts.token();
        parts.critical("preparation of QEMU's capabilities", async move {
            tokio::select! {
                () = runner.prepare_capabilities() => stop.cancelled().await,
                () = stop.cancelled() => {}
            }
            Ok::<_, std::io::Error>(())
        });
        let outcome = parts
            .run(
                async {
                    let signal = termination.received().await;
                    tracing::info!(signal, "stopping the control plane; guests go on running");
                },
                GRACE,
            )
            .await;
        server.shutdown();
        outcome
    }
}

/// How a component of ours is known to the API server, and to admission.
fn component(name: &str) -> UserInfo {
    UserInfo::admin(&format!("system:serviceaccount:{}:{name}", kubevirt::NAMESPACE))
}

/// What the serving certificate must cover besides the loopback names.
fn names(listen: IpAddr) -> Vec<String> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let address = (!listen.is_unspecified()).then(|| listen.to_string());
    host.into_iter()
        .chain(address)
        .filter(|name| !name.is_empty())
        .collect()
}

/// Each watch, log and guest takes a few descriptors.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where this is not allowed, the usual limit is enough for a few dozen guests.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
