//! One pod's life: one task that owns all of it.
//!
//! ```text
//!             volumes, images, network there        main containers started
//!  Preparing ────────────────────────────► Starting ───────────────────────► Running
//!   │  ▲ │                                    │                                 │ main containers ended,
//!   │  └─┘ again after 1 s … 300 s            │ deletion asked, start failed    │ or deletion asked
//!   │                                         ▼                                 ▼
//!   │ deletion asked, refused, lost        Stopping: main containers get SIGTERM, after the grace SIGKILL;
//!   │                                         │       then the sidecars
//!   ▼                                         ▼ nothing runs
//!  Over: final status written, then network, cgroups and volumes removed
//!   │ deletion asked
//!   ▼
//!  gone: DELETE with grace 0; logs and directory removed
//! ```
//!
//! A pod runner that starts finds the pod's record and goes on in the state that the record and the processes show.
//! While anything of the pod runs, that is Running or Stopping, never Preparing: volumes are prepared again beside it,
//! and those that the record names serve if that fails.

mod prepare;
mod supervise;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::cgroup;
use super::clean::remove_volumes;
use super::config::RunnerConfig;
use super::container::{Role, in_start_order, refuse};
use super::kubelet::LogLimits;
use super::network::{Attachment, PortMapping, Sandbox};
use super::probes::{self, ProbeResult};
use super::process::{Exit, Process};
use super::state::{Ended, LogDir, PodRecord, said_exit};
use super::status::{self, View, Waiting, differs, render};
use super::volumes::Volumes;
use crate::events::Events;
use crate::images::ImageStore;

use prepare::Prepared;
use supervise::{Deletion, ExitFuture, Restart, Stopping};

/// The container of a guest.
const COMPUTE: &str = "compute";

/// What all pods share.
pub(super) struct Context {
    pub config: RunnerConfig,
    pub client: Client,
    pub images: ImageStore,
    pub events: Events,
    /// This boot's id.
    pub boot: String,
    pub log_limits: LogLimits,
}

impl Context {
    pub(super) fn directory(&self, uid: &str) -> PathBuf {
        self.config.data.pods().join(uid)
    }

    pub(super) fn logs(&self, namespace: &str, name: &str, uid: &str) -> LogDir {
        LogDir::new(&self.config.data.pod_logs(), namespace, name, uid)
    }
}

/// The task of one pod.
pub(super) struct PodTask {
    context: Arc<Context>,
    /// The newest object.
    pods: watch::Receiver<Arc<Pod>>,
    /// The object is no longer in the API.
    gone: CancellationToken,
    pod: Arc<Pod>,
    uid: String,
    namespace: String,
    name: String,
    ports: Vec<PortMapping>,
    network: Option<Attachment>,
    /// What containers are started with; nothing is before they are there.
    volumes: Option<Volumes>,
    /// Volumes of a pod that was taken over, until they are prepared again.
    kept: Option<Volumes>,
    prepared: (mpsc::Sender<Prepared>, mpsc::Receiver<Prepared>),
    view: View,
    processes: BTreeMap<String, Process>,
    exits: FuturesUnordered<ExitFuture>,
    restarts: BTreeMap<String, Restart>,
    stopping: Option<Stopping>,
    deletion: Option<Deletion>,
    probes: BTreeMap<String, probes::Running>,
    probe_results: (mpsc::Sender<ProbeResult>, mpsc::Receiver<ProbeResult>),
    /// A status could not be written; try again then.
    publish_again: Option<Instant>,
}

impl PodTask {
    pub(super) fn new(context: Arc<Context>, pods: watch::Receiver<Arc<Pod>>, gone: CancellationToken) -> Self {
        let pod = Arc::clone(&pods.borrow());
        Self {
            uid: pod.uid().unwrap_or_default(),
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            ports: host_ports(&pod),
            context,
            pods,
            gone,
            pod,
            network: None,
            volumes: None,
            kept: None,
            prepared: mpsc::channel(1),
            view: View::default(),
            processes: BTreeMap::new(),
            exits: FuturesUnordered::new(),
            restarts: BTreeMap::new(),
            stopping: None,
            deletion: None,
            probes: BTreeMap::new(),
            probe_results: mpsc::channel(16),
            publish_again: None,
        }
    }

    /// Runs the pod until it is gone from the API and from this machine. `record` is what an earlier pod runner
    /// wrote. Dropping the future stops nothing that runs.
    pub(super) async fn run(mut self, record: Option<PodRecord>) {
        if is_over(&self.pod) {
            self.network = record.and_then(|record| record.network);
        } else {
            self.live(record).await;
            self.stop_probes();
            self.view.finished = true;
            self.publish_surely().await;
        }
        self.release().await;
        self.wait_for_deletion().await;
        self.forget().await;
    }

    /// From the start, or from where an earlier pod runner left, to the end of all processes.
    async fn live(&mut self, record: Option<PodRecord>) {
        let began = record.is_some();
        match record {
            Some(record) => {
                if let Err(lost) = self.recover(record) {
                    info!(pod = %self.name, namespace = %self.namespace, reason = %lost.message, "a pod was lost");
                    self.view.failure = Some(lost);
                    return self.kill_all().await;
                }
            }
            None if was_started(&self.pod) => {
                self.view.failure = Some(Waiting::new("Lost", "nothing is left of the pod on this machine"));
                return;
            }
            None => {}
        }
        // What was begun once is not judged anew.
        if !began && let Some(refusal) = refuse(&self.pod, &self.context.config) {
            self.warn("Failed", &refusal.message).await;
            self.wait_with(Role::Main, &Waiting::new(refusal.reason, refusal.message));
            self.publish().await;
            return self.wait_for_deletion().await;
        }
        let adopted = !self.processes.is_empty();
        if adopted || self.prepare().await {
            let mut current = self.keep_volumes(adopted);
            self.supervise().await;
            // Whoever removes the volumes must be the only one who touches them.
            current.shutdown().await;
        }
    }

    /// Takes over what an earlier pod runner started.
    fn recover(&mut self, record: PodRecord) -> Result<(), Waiting> {
        let same_boot = record.boot == self.context.boot;
        self.network = record.network;
        self.view.started_at = Some(record.started_at);
        self.view.images = record.images;
        self.view.ips = self
            .network
            .as_ref()
            .map(|network| network.ips.clone())
            .unwrap_or_default();
        for (name, mut container) in record.containers {
            if container.ended.is_none() {
                match same_boot.then(|| Process::adopt(container.process)) {
                    Some(Ok(process)) => {
                        debug!(pod = %self.name, container = %name, pid = process.id().pid, "adopted");
                        self.exits.push(supervise::exit_of(name.clone(), process.clone()));
                        self.processes.insert(name.clone(), process);
                        let logs = self.context.logs(&self.namespace, &self.name, &self.uid);
                        self.context.log_limits.add(logs.file(&name, container.restarts));
                    }
                    _ => {
                        let exit = if same_boot {
                            self.said_exit(&name, Exit::Unknown)
                        } else {
                            Exit::Unknown
                        };
                        container.ended = Some(Ended {
                            exit,
                            at: Timestamp::now(),
                            out_of_memory: false,
                        });
                    }
                }
            }
            let ready = status::was_ready(&self.pod, &name, &container);
            let view = self.view.containers.entry(name).or_default();
            view.ready = ready;
            view.record = Some(container);
        }
        if !self.processes.is_empty() {
            self.kept = record.volumes;
        }
        let missing = self
            .network
            .as_ref()
            .is_some_and(|_| !self.context.config.network.netns_of(&self.uid).exists());
        if !same_boot {
            return Err(Waiting::new("Lost", "the machine restarted while the pod ran"));
        }
        if missing {
            return Err(Waiting::new("Lost", "the pod's network namespace is gone"));
        }
        Ok(())
    }

    /// How a container ended, by its own word where nobody saw it: a guest that was shut down while this pod runner was
    /// away has not failed.
    fn said_exit(&self, name: &str, seen: Exit) -> Exit {
        match seen {
            Exit::Unknown if name == COMPUTE => said_exit(&self.context.directory(&self.uid)),
            seen => seen,
        }
    }

    /// Kills what is left of a pod that cannot go on.
    async fn kill_all(&mut self) {
        use futures::StreamExt;
        for process in self.processes.values() {
            process.signal(Signal::KILL);
        }
        while let Some((name, exit)) = self.exits.next().await {
            self.note_end(&name, exit);
        }
    }

    /// Shows `waiting` for all containers of a role that have not been started.
    fn wait_with(&mut self, role: Role, waiting: &Waiting) {
        let names: Vec<String> = self
            .pod
            .spec
            .iter()
            .flat_map(in_start_order)
            .filter(|(r, _)| *r == role)
            .map(|(_, container)| container.name.clone())
            .collect();
        for name in names {
            self.view.containers.entry(name).or_default().waiting = Some(waiting.clone());
        }
    }

    /// The object of the API has changed: take it over.
    fn take_newest(&mut self) {
        self.pod = Arc::clone(&self.pods.borrow_and_update());
    }

    fn deletion_is_asked(&self) -> bool {
        self.gone.is_cancelled() || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Waits until somebody wants the pod gone. Cancel safe.
    async fn wait_for_deletion(&mut self) {
        loop {
            self.take_newest();
            if self.deletion_is_asked() {
                return;
            }
            tokio::select! {
                () = self.gone.cancelled() => return,
                changed = self.pods.changed() => if changed.is_err() {
                    // The pod runner itself stops; nothing must be removed any more.
                    std::future::pending::<()>().await;
                },
            }
        }
    }

    /// Writes down what runs.
    fn save(&self) -> io::Result<()> {
        let directory = self.context.directory(&self.uid);
        fs::create_dir_all(&directory)?;
        let record = PodRecord {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            boot: self.context.boot.clone(),
            started_at: self.view.started_at.unwrap_or_else(Timestamp::now),
            grace_seconds: self.grace().as_secs(),
            ports: self.ports.clone(),
            network: self.network.clone(),
            images: self.view.images.clone(),
            volumes: self.volumes.as_ref().or(self.kept.as_ref()).cloned(),
            containers: self
                .view
                .containers
                .iter()
                .filter_map(|(name, view)| Some((name.clone(), view.record.clone()?)))
                .collect(),
        };
        record.save(&directory)
    }

    /// Writes the pod's status if a client would see a difference.
    async fn publish(&mut self) {
        self.publish_again = None;
        if self.gone.is_cancelled() {
            return;
        }
        let status = render(&self.pod, &self.view, self.context.config.host_ip, Timestamp::now());
        if !differs(&self.pod, &status) {
            return;
        }
        let patch = Patch::Strategic(json!({ "metadata": { "uid": self.uid }, "status": status::patch(&status) }));
        match self
            .api()
            .patch_status(&self.name, &PatchParams::default(), &patch)
            .await
        {
            Ok(pod) => self.pod = Arc::new(pod),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                debug!(pod = %self.name, error = %status.message, "the pod is another one now");
            }
            Err(error) => {
                warn!(pod = %self.name, namespace = %self.namespace, %error, "cannot write the pod's status");
                self.publish_again = Some(Instant::now() + supervise::PUBLISH_RETRY);
            }
        }
    }

    async fn publish_surely(&mut self) {
        loop {
            self.publish().await;
            match self.publish_again {
                Some(again) => tokio::time::sleep_until(again).await,
                None => return,
            }
        }
    }

    /// Takes `&mut self` only because the task cannot be shared between threads.
    async fn warn(&mut self, reason: &str, message: &str) {
        self.context.events.warn(&reference(&self.pod), reason, message).await;
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &self.namespace)
    }

    /// Gives back what the pod used, except its logs. May be called again.
    async fn release(&mut self) {
        let sandbox = Sandbox {
            uid: &self.uid,
            namespace: &self.namespace,
            name: &self.name,
            ports: &self.ports,
        };
        if self.network.is_some() || self.context.config.network.netns_of(&self.uid).exists() {
            self.context
                .config
                .network
                .detach(&sandbox, self.network.as_ref())
                .await;
        }
        self.network = None;
        cgroup::remove(&self.uid);
        let directory = self.context.directory(&self.uid);
        if directory.exists() {
            remove_volumes(&directory).await;
            PodRecord::remove(&directory);
        }
    }

    /// Removes the pod from the API and its last traces from the machine.
    async fn forget(&mut self) {
        let logs = self.context.logs(&self.namespace, &self.name, &self.uid);
        let _ = fs::remove_dir_all(logs.path());
        let _ = fs::remove_dir_all(self.context.directory(&self.uid));
        while !self.gone.is_cancelled() {
            let preconditions = Preconditions {
                uid: Some(self.uid.clone()),
                resource_version: None,
            };
            let parameters = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            match self.api().delete(&self.name, &parameters).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => break,
                Err(error) => warn!(pod = %self.name, namespace = %self.namespace, %error, "cannot delete the pod"),
            }
            tokio::time::sleep(supervise::PUBLISH_RETRY).await;
        }
        // With finalizers it may take a while.
        self.gone.cancelled().await;
    }
}

fn host_ports(pod: &Pod) -> Vec<PortMapping> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(PortMapping {
                host_port: port.host_port.filter(|port| *port != 0)?,
                container_port: port.container_port,
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                host_ip: port.host_ip.clone(),
            })
        })
        .collect()
}

fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

fn was_started(pod: &Pod) -> bool {
    phase(pod) == Some("Running")
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

#[cfg(test)]
mod tests;
