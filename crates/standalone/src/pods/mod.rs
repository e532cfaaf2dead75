//! The pod runner: the part of a kubelet that our own pods need.
//!
//! It watches the pods that are bound to its node and runs one task per pod (see the diagram in [`pod`]). What it must not
//! forget is in the pods' directories; stopping it, however suddenly, stops no container.

pub mod capabilities;
mod cgroup;
pub mod clean;
pub mod config;
mod container;
mod exec;
pub mod init;
mod kubelet;
pub mod network;
mod pod;
mod privileges;
mod probes;
pub mod process;
pub mod spec;
mod state;
mod status;
mod sys;
mod volumes;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::sync::Arc;

use ferrovirt_apiserver::Kubelet;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::events::Events;
use crate::images::ImageStore;
use clean::{is_gone, remove_orphan, remove_volumes};
use config::RunnerConfig;
use kubelet::{LogLimits, NodeKubelet};
use network::NetworkError;
use pod::{Context, PodTask};
use state::{Found, PodRecord, boot_id};

/// Why the pod runner cannot work.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The data directory is not usable.
    #[error("cannot prepare the pod runner's directories in {path}")]
    Directories {
        /// The data directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There can be no pod network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The watch of pods ended, which it never does by itself.
    #[error("the watch of pods ended")]
    WatchEnded,
}

/// A pod that has a task.
struct Handle {
    uid: String,
    pod: watch::Sender<Arc<Pod>>,
    gone: CancellationToken,
}

/// Namespace and name.
type Key = (String, String);

/// Runs the pods of one node.
pub struct PodRunner {
    context: Arc<Context>,
}

impl PodRunner {
    /// Prepares this machine for pods: directories and the pod network.
    ///
    /// # Errors
    /// See [`RunnerError`].
    pub async fn new(config: RunnerConfig, client: Client, images: ImageStore) -> Result<Self, RunnerError> {
        let path = config.data.path().to_owned();
        config
            .prepare()
            .map_err(|source| RunnerError::Directories { path, source })?;
        config.network.prepare().await?;
        let events = Events::new(client.clone(), "kubelet", Some(&config.node));
        let context = Context {
            config,
            client,
            images,
            events,
            boot: boot_id(),
            log_limits: LogLimits::start(CancellationToken::new()),
        };
        Ok(Self {
            context: Arc::new(context),
        })
    }

    /// Answers the connecting subresources of this node's pods.
    #[must_use]
    pub fn kubelet(&self) -> Arc<dyn Kubelet> {
        Arc::new(NodeKubelet {
            context: Arc::clone(&self.context),
        })
    }

    /// Probes QEMU for libvirt, if that was not done yet for this QEMU, libvirt, kernel and state of KVM. See [`capabilities`].
    pub async fn prepare_capabilities(&self) {
        capabilities::prepare(&self.context.config).await;
    }

    /// Runs until `stop`. Containers go on running afterwards; the next pod runner on the same data directory
    /// takes them over.
    ///
    /// # Errors
    /// The watch of pods ended.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), RunnerError> {
        let api = Api::<Pod>::all(self.context.client.clone());
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.context.config.node));
        let mut events = std::pin::pin!(watcher(api, mine));
        let mut pods = Tasks::new(&self.context);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(ended) = pods.tasks.join_next() => pods.ended(ended),
                event = events.next() => match event {
                    Some(Ok(event)) => pods.event(event).await,
                    Some(Err(error)) => {
                        warn!(%error, "the watch of pods was interrupted");
                        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                    }
                    None => return Err(RunnerError::WatchEnded),
                },
            }
        }
    }
}

/// The tasks of all pods.
struct Tasks<'a> {
    context: &'a Arc<Context>,
    handles: HashMap<Key, Handle>,
    tasks: JoinSet<(Key, String)>,
    /// Records that were on the disk at the start, by pod UID, until a task takes them.
    found: Option<BTreeMap<String, PodRecord>>,
    /// UIDs of pods whose records cannot be read, so that nobody knows what runs of them: they are left as they are.
    unreadable: BTreeSet<String>,
    /// Objects of a list that is being received.
    listed: Option<HashSet<String>>,
}

impl<'a> Tasks<'a> {
    fn new(context: &'a Arc<Context>) -> Self {
        let network = &context.config.network;
        // What runs of a pod runs in its network namespace, and no namespace outlives a reboot.
        let may_run = |uid: &str| network.netns_of(uid).exists();
        let Found { records, unreadable } = Found::look(&context.config.data.pods(), may_run);
        Self {
            context,
            handles: HashMap::new(),
            tasks: JoinSet::new(),
            found: Some(records),
            unreadable,
            listed: None,
        }
    }

    async fn event(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(pod) => {
                self.listed.get_or_insert_default().extend(pod.uid());
                self.apply(pod);
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                for handle in self.handles.values().filter(|handle| !listed.contains(&handle.uid)) {
                    handle.gone.cancel();
                }
                self.remove_what_nobody_knows(&listed).await;
            }
            Event::Apply(pod) => self.apply(pod),
            Event::Delete(pod) => {
                if let Some(handle) = self.handles.get(&key(&pod))
                    && Some(&handle.uid) == pod.metadata.uid.as_ref()
                {
                    handle.pod.send_replace(Arc::new(pod));
                    handle.gone.cancel();
                }
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let (key, uid) = (key(&pod), pod.uid().unwrap_or_default());
        let pod = Arc::new(pod);
        if let Some(handle) = self.handles.get(&key) {
            if handle.uid == uid {
                handle.pod.send_replace(pod);
                return;
            }
            // Another pod has the name now; the deletion of the first one was missed.
            handle.gone.cancel();
        }
        if self.unreadable.contains(&uid) {
            return;
        }
        let record = self.found.as_mut().and_then(|found| found.remove(&uid));
        let (sender, receiver) = watch::channel(pod);
        let gone = CancellationToken::new();
        let task = PodTask::new(Arc::clone(self.context), receiver, gone.clone());
        self.handles.insert(
            key.clone(),
            Handle {
                uid: uid.clone(),
                pod: sender,
                gone,
            },
        );
        self.tasks.spawn(async move {
            task.run(record).await;
            (key, uid)
        });
    }

    fn ended(&mut self, ended: Result<(Key, String), tokio::task::JoinError>) {
        match ended {
            Ok((key, uid)) => {
                if self.handles.get(&key).is_some_and(|handle| handle.uid == uid) {
                    self.handles.remove(&key);
                }
            }
            Err(error) => {
                tracing::error!(%error, "the task of a pod panicked; the pod is left as it is until the next start");
            }
        }
    }

    /// After the first list: what earlier runs left of pods that are gone from the API.
    async fn remove_what_nobody_knows(&mut self, listed: &HashSet<String>) {
        let Some(found) = self.found.take() else { return };
        let mut known = listed.clone();
        known.extend(self.unreadable.iter().cloned());
        for record in found.into_values() {
            // The list is only of pods of this node's name.
            if is_gone(self.context, &record).await {
                remove_orphan(self.context, record).await;
            } else {
                known.insert(record.uid);
            }
        }
        self.context.config.network.collect_garbage(&known);
        for entry in fs::read_dir(self.context.config.data.pods())
            .into_iter()
            .flatten()
            .flatten()
        {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if !known.contains(&uid) {
                info!(uid, "removing the directory of a pod that is gone");
                remove_volumes(&entry.path()).await;
                let _ = fs::remove_dir_all(entry.path());
                cgroup::remove(&uid);
            }
        }
        for entry in fs::read_dir(self.context.config.data.pod_logs())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.rsplit('_').next().is_some_and(|uid| !known.contains(uid)) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn key(pod: &Pod) -> Key {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}
