//! Reconcilers of the cluster-level kinds: VirtualMachine and VirtualMachineInstance.
//!
//! One watch per kind feeds a cache that all reconcilers share; a change of an object has its own key reconciled, and
//! that of the object that it belongs to:
//!
//! ```text
//!   VMs ───watch──► cache ──► VM queue  ──► vm::reconcile  ──► VMI, VM status
//!   VMIs ──watch──► cache ──┬──────▲
//!                           └► VMI queue ─► vmi::reconcile ──► pod, VMI status
//!   pods ──watch──► cache ──────────▲       (launchers only)
//!   claims watch──► cache ──────────▲  (and the VM queue)
//!   nodes ─watch──► node ───────────▲       (on a cluster: which agents are silent)
//! ```
//!
//! Killing it at any point loses nothing: names of what it creates follow from the objects, and every decision is made
//! again from what is there.

mod cache;
mod context;
mod events;
pub mod image_volumes;
mod metrics;
mod node;
pub mod operator;
mod patch;
mod queue;
pub mod server;
pub mod vm;
pub mod vmi;
mod watch;

use std::sync::Arc;

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance};
use ferrovirt_core::{ClusterConfig, names};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::Api;
use kube::runtime::watcher;
use kube::{Client, Resource};
use tokio::sync::{Notify, oneshot, watch as latest};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use cache::{Caches, Key, owner_uid};
use context::Context;
use image_volumes::ContainerDisks;
use vmi::claims::{Users, owning_vmi as user_of};

/// How many objects of a kind are reconciled at a time.
const CONCURRENCY: usize = 8;

/// Where VMs run. It decides what a launcher pod asks of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// A Kubernetes cluster: pods have the readiness gate `kubevirt.io/virtual-machine-unpaused` (so that Services
    /// leave paused guests out), device plugin resources, and select nodes by the node agent's labels for machine
    /// types and CPU models.
    Cluster,
    /// One machine: none of these. The pod runner hands out devices by itself, there are no Services, and a paused
    /// guest's VMI is simply not Ready; that spares a write per start.
    Standalone,
}

/// How the controllers are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Image of the launcher, such as `ferrovirt/virt-launcher:0.1.0`.
    pub launcher_image: String,
    /// Image of hook sidecars that name none.
    pub sidecar_shim_image: Option<String>,
    /// Where VMs run.
    pub home: Home,
}

/// Why the controllers ended before they were told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of their tasks ended or panicked.
    #[error("the task \"{0}\" of virt-controller ended unexpectedly; this is a bug")]
    Task(&'static str),
}

/// Runs all controllers until `shutdown`, and then until running reconciles have ended.
///
/// Assumes that it is the only instance (one process of the embedded home, or the leader). Changes of `config` take
/// effect on VMIs that have no pod yet. Cancel safe: dropping the future stops everything at once, and nothing is lost.
///
/// # Errors
/// A task died; the caller should end the process.
pub async fn run(
    client: Client,
    config: latest::Receiver<Arc<ClusterConfig>>,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    run_with(client, config, options, Caches::default(), shutdown).await
}

/// As [`run`]; others may look at the caches.
async fn run_with(
    client: Client,
    config: latest::Receiver<Arc<ClusterConfig>>,
    options: Options,
    caches: Caches,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (vm_queue, vms_due) = queue::queue();
    let (vmi_queue, vmis_due) = queue::queue();
    let (recorder, event_writer) = events::recorder();
    // The pod runner of one machine has image volumes.
    let (decision, container_disks) = latest::channel(match options.home {
        Home::Standalone => Some(ContainerDisks::ImageVolumes),
        Home::Cluster => None,
    });
    let doubt = Arc::new(Notify::new());
    let context = Arc::new(Context {
        client: client.clone(),
        vms: caches.vms,
        vmis: caches.vmis,
        pods: caches.pods,
        claims: caches.claims,
        claim_users: Users::default(),
        nodes: node::Nodes::default(),
        vsock_cids: vmi::vsock::Cids::default(),
        revisions: vm::Revisions::default(),
        vm_queue,
        vmi_queue,
        events: recorder,
        config,
        container_disks,
        doubt: Arc::clone(&doubt),
        options: Arc::new(options),
    });
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let synced = watches(&context, &mut tasks, &shutdown);
    if context.options.home == Home::Cluster {
        let decide = image_volumes::follow(client.clone(), decision, doubt, shutdown.clone());
        tasks.spawn(async move {
            decide.await;
            "image volumes"
        });
    }
    let stop = shutdown.clone();
    tasks.spawn(async move {
        event_writer.run(client, stop).await;
        "events"
    });
    let (stop, shared) = (shutdown.clone(), Arc::clone(&context));
    tasks.spawn(async move {
        config_changes(shared, stop).await;
        "configuration"
    });
    let (stop, shared) = (shutdown.clone(), Arc::clone(&context));
    tasks.spawn(async move {
        // Nothing is decided on half a picture.
        for ready in synced {
            tokio::select! {
                () = stop.cancelled() => return "reconcilers",
                _ = ready => {}
            }
        }
        let mut decided = shared.container_disks.clone();
        tokio::select! {
            () = stop.cancelled() => return "reconcilers",
            // The sender of one machine is gone, and its value is there.
            _ = decided.wait_for(Option::is_some) => {}
        }
        tracing::debug!("virt-controller has seen everything and begins");
        let other = Arc::clone(&shared);
        tokio::join!(
            vms_due.run(CONCURRENCY, stop.clone(), move |key| vm::reconcile(
                Arc::clone(&shared),
                key
            )),
            vmis_due.run(CONCURRENCY, stop, move |key| vmi::reconcile(Arc::clone(&other), key)),
        );
        "reconcilers"
    });
    while let Some(ended) = tasks.join_next().await {
        let name = ended.unwrap_or("panicked");
        if !shutdown.is_cancelled() {
            tasks.shutdown().await;
            return Err(Error::Task(name));
        }
    }
    Ok(())
}

/// Starts the watches. The answers tell when each cache is complete.
fn watches(
    context: &Arc<Context>,
    tasks: &mut JoinSet<&'static str>,
    shutdown: &CancellationToken,
) -> Vec<oneshot::Receiver<()>> {
    let client = &context.client;
    let (ready, vms_ready) = oneshot::channel();
    let (shared, stop, api) = (Arc::clone(context), shutdown.clone(), Api::all(client.clone()));
    tasks.spawn(async move {
        let changed = |change: &cache::Change<VirtualMachine>| {
            if let (Some(old), None) = (&change.old, &change.new) {
                shared.revisions.forget(old.metadata.uid.as_deref().unwrap_or_default());
            }
            for object in change.new.iter().chain(&change.old).take(1) {
                shared.vm_queue.send(Key::of(&**object));
            }
            // A VMI that outlives its VM is let go by the VMI reconciler.
            if let (Some(old), None) = (&change.old, &change.new) {
                shared.vmi_queue.send(Key::of(&**old));
            }
        };
        watch::feed(
            api,
            watcher::Config::default(),
            Arc::clone(&shared.vms),
            ready,
            stop,
            changed,
        )
        .await;
        "watch of VMs"
    });

    let (ready, vmis_ready) = oneshot::channel();
    let (shared, stop, api) = (Arc::clone(context), shutdown.clone(), Api::all(client.clone()));
    tasks.spawn(async move {
        let changed = |change: &cache::Change<VirtualMachineInstance>| {
            for object in change.new.iter().chain(&change.old).take(1) {
                let key = Key::of(&**object);
                shared.claim_users.set(&key, change.new.as_deref());
                shared.vmi_queue.send(key.clone());
                // A VM and its VMI have the same name, also when the VMI is somebody else's and in the way.
                shared.vm_queue.send(key);
            }
        };
        watch::feed(
            api,
            watcher::Config::default(),
            Arc::clone(&shared.vmis),
            ready,
            stop,
            changed,
        )
        .await;
        "watch of VMIs"
    });

    let (ready, pods_ready) = oneshot::channel();
    let (shared, stop, api) = (Arc::clone(context), shutdown.clone(), Api::all(client.clone()));
    tasks.spawn(async move {
        let launchers = format!("{}={}", names::APP_LABEL, names::VIRT_LAUNCHER);
        let selected = watcher::Config::default().labels(&launchers);
        let changed = |change: &cache::Change<Pod>| {
            for object in change.new.iter().chain(&change.old).take(1) {
                if let Some(vmi) = owning_vmi(object) {
                    shared.vmi_queue.send(vmi);
                }
            }
        };
        watch::feed(api, selected, Arc::clone(&shared.pods), ready, stop, changed).await;
        "watch of pods"
    });
    let claims_ready = watch_claims(context, tasks, shutdown);
    let mut synced = vec![vms_ready, vmis_ready, pods_ready, claims_ready];
    // One machine's only agent lives and dies with its controllers.
    if context.options.home == Home::Cluster {
        let (ready, nodes_ready) = oneshot::channel();
        let (shared, stop) = (Arc::clone(context), shutdown.clone());
        tasks.spawn(async move {
            node::run(shared, ready, stop).await;
            "watch of nodes"
        });
        synced.push(nodes_ready);
    }
    synced
}

fn watch_claims(
    context: &Arc<Context>,
    tasks: &mut JoinSet<&'static str>,
    shutdown: &CancellationToken,
) -> oneshot::Receiver<()> {
    let (ready, claims_ready) = oneshot::channel();
    let (shared, stop, api) = (Arc::clone(context), shutdown.clone(), Api::all(context.client.clone()));
    tasks.spawn(async move {
        let changed = |change: &cache::Change<PersistentVolumeClaim>| {
            for claim in change.new.iter().chain(&change.old).take(1) {
                let users = shared.claim_users.of(&Key::of(&**claim));
                for key in users.into_iter().chain(user_of(claim)) {
                    shared.vmi_queue.send(key.clone());
                    shared.vm_queue.send(key);
                }
            }
        };
        let (config, claims) = (watcher::Config::default(), Arc::clone(&shared.claims));
        watch::feed(api, config, claims, ready, stop, changed).await;
        "watch of claims"
    });
    claims_ready
}

/// The key of the VMI that a pod belongs to.
fn owning_vmi(pod: &Pod) -> Option<Key> {
    owner_uid(pod)?;
    let owners = pod.metadata.owner_references.as_ref()?;
    let owner = owners.iter().find(|o| o.controller == Some(true))?;
    (owner.kind == VirtualMachineInstance::kind(&())).then(|| Key {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: owner.name.clone(),
    })
}

async fn config_changes(context: Arc<Context>, shutdown: CancellationToken) {
    let mut config = context.config.clone();
    loop {
        let changed = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = config.changed() => changed,
        };
        if changed.is_err() {
            // Nobody will change it any more.
            shutdown.cancelled().await;
            return;
        }
        for key in context.vmis.keys() {
            context.vmi_queue.send(key);
        }
        for key in context.vms.keys() {
            context.vm_queue.send(key);
        }
    }
}
