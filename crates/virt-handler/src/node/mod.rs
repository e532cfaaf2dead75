//! What the node says about itself: labels for scheduling, devices, a heartbeat.

mod host;
mod labels;
mod qemu;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use ferrovirt_core::ClusterConfig;
use ferrovirt_core::names::SCHEDULABLE_LABEL;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::capabilities::Capabilities;
use crate::devices::{self, Device};
use crate::kvm::Verdict;
use crate::session::Context;
use crate::{Devices, Options};
use host::{CpuVendor, HostModel};
use labels::{Facts, HEARTBEAT_ANNOTATION};

/// What the kubelet keeps about CPUs, in its own directory.
const CPU_MANAGER_STATE: &str = "cpu_manager_state";
/// How long real-time threads may run, as a part of all time.
const REALTIME_LIMIT: &str = "/proc/sys/kernel/sched_rt_runtime_us";
/// Least time between heartbeats; the other half of the interval is chance, so that many nodes do not write at once.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// And so soon again when one could not be written: a few missed ones close the node.
const HEARTBEAT_AGAIN: Duration = Duration::from_secs(5);
/// How long the last write may take.
const RETIRE: Duration = Duration::from_secs(3);
/// First and longest pause before QEMU is asked again what it can do, when it did not say.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const ASK_SELDOM: Duration = Duration::from_secs(600);

/// Finds out what the node can do.
async fn gather(options: &Options, kvm: &Verdict) -> Facts {
    Facts {
        capabilities: qemu::capabilities(&options.qemu, &options.state_dir, kvm.usable).await,
        kvm: kvm.clone(),
        vendor: CpuVendor::of_this_host(),
        host_model: options
            .domain_capabilities(kvm.usable)
            .and_then(|path| HostModel::read(&path)),
        cpu_manager: match &options.devices {
            Devices::Status => false,
            Devices::Plugins(directory) => host::cpu_manager(&directory.with_file_name(CPU_MANAGER_STATE)),
        },
        realtime: host::realtime(Path::new(REALTIME_LIMIT)),
        hyperv: match options.domain_capabilities(true) {
            Some(capabilities) if kvm.usable => host::hyperv(&capabilities),
            _ => BTreeSet::new(),
        },
        obsolete: options.config.borrow().obsolete_cpu_models.clone(),
        protections: if kvm.usable {
            let capabilities = options.domain_capabilities(kvm.usable);
            host::protections(Path::new("/sys"), capabilities.as_deref())
        } else {
            Vec::new()
        },
    }
}

/// Publishes what the node has, and again whenever that may be something else: by the configuration, the verdict on KVM
/// or libvirt's description of guests; and until QEMU says what it can do. For ever; calls `published` each time.
pub(crate) async fn follow(context: &Context, published: impl Fn()) {
    let Context { client, options, .. } = context;
    let (mut config, mut kvm) = (options.config.clone(), context.kvm.clone());
    let prepared = context.capabilities.as_ref().map(Capabilities::current);
    // Where nothing is prepared, nothing comes of it.
    let mut prepared = prepared.unwrap_or_else(|| watch::channel(None).1);
    let told = |config: &ClusterConfig| (config.obsolete_cpu_models.clone(), config.guests_per_node);
    let mut pause = ASK_AGAIN;
    loop {
        // Before anything is looked at: what changes meanwhile is not missed.
        let now = told(&config.borrow_and_update());
        let verdict = kvm.borrow_and_update().clone();
        let described = prepared.borrow_and_update().clone();
        let facts = gather(options, &verdict.clone().unwrap_or_default()).await;
        publish(client, options, &facts).await;
        published();
        let unanswered = facts.capabilities.is_none();
        if !unanswered {
            pause = ASK_AGAIN;
        }
        tokio::select! {
            () = when(&mut config, |config| told(config) != now) => {}
            () = when(&mut kvm, |kvm| *kvm != verdict) => {}
            () = when(&mut prepared, |prepared| *prepared != described) => {}
            () = tokio::time::sleep(pause), if unanswered => pause = (pause * 2).min(ASK_SELDOM),
        }
    }
}

/// Returns when a value is as wanted.
async fn when<T>(receiver: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    // A sender that is gone has nothing more to say.
    if receiver.wait_for(wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Publishes labels and devices; waits for the node object, writes only what differs.
async fn publish(client: &Client, options: &Options, facts: &Facts) {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut pause = Duration::from_millis(100);
    loop {
        match publish_once(&nodes, options, facts).await {
            Ok(()) => return,
            // The node may come later than its agent.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                tracing::debug!(node = options.node_name, "the node is not there yet");
            }
            Err(error) => {
                let error = ferrovirt_runtime::logs::chain(&error);
                tracing::warn!(node = options.node_name, error, "cannot publish what the node has");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

async fn publish_once(nodes: &Api<Node>, options: &Options, facts: &Facts) -> Result<(), kube::Error> {
    let name = &options.node_name;
    let node = nodes.get(name).await?;
    let guests = options.config.borrow().guests_per_node;
    let mut metadata = labels::patch(&node, facts);
    if options.heartbeat {
        let change = metadata.get_or_insert_with(|| json!({}));
        change["annotations"][HEARTBEAT_ANNOTATION] = json!(now());
    }
    if let Some(metadata) = metadata {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        nodes.patch(name, &PatchParams::default(), &patch).await?;
    }
    if let Devices::Status = options.devices
        && let Some(patch) = device_status(&node, &facts.kvm, guests)
    {
        let patch = Patch::Merge(patch);
        nodes.patch_status(name, &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// The status of a node that has no kubelet to count devices, if it is not so already.
fn device_status(node: &Node, kvm: &Verdict, guests: u32) -> Option<Value> {
    let count = |device: &Device| if device.path.exists() { guests } else { 0 }.to_string();
    let mut counts: BTreeMap<String, String> = devices::known(kvm)
        .iter()
        .map(|device| (device.resource(), count(device)))
        .collect();
    counts
        .entry(devices::KVM_RESOURCE.to_owned())
        .or_insert_with(|| "0".to_owned());
    let has = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let same = has.is_some_and(|has| {
        let equal = |(device, count): (&String, &String)| has.get(device).is_some_and(|has| has.0 == *count);
        counts.iter().all(equal)
    });
    (!same).then(|| json!({"status": {"capacity": counts, "allocatable": counts}}))
}

/// The pause before a heartbeat; `chance` may be any number.
fn until_next(failed: bool, chance: u32) -> Duration {
    let (least, more) = if failed {
        (HEARTBEAT_AGAIN, 6_000)
    } else {
        (HEARTBEAT, 72_000)
    };
    least + Duration::from_millis(u64::from(chance % more))
}

/// Renews the heartbeat for ever, one write each.
pub(crate) async fn heartbeat(client: &Client, node: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut failed = false;
    loop {
        let chance = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs();
        tokio::time::sleep(until_next(failed, chance)).await;
        let metadata = json!({
            "labels": {SCHEDULABLE_LABEL: "true"},
            "annotations": {HEARTBEAT_ANNOTATION: now()},
        });
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let renewed = nodes.patch(node, &PatchParams::default(), &patch).await;
        failed = renewed.is_err();
        if let Err(error) = renewed {
            tracing::warn!(node, %error, "cannot renew the heartbeat");
        }
    }
}

/// Lets no further VMs come here while there is no agent.
pub(crate) async fn retire(client: &Client, node: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"metadata": {"labels": {SCHEDULABLE_LABEL: "false"}}}));
    match tokio::time::timeout(RETIRE, nodes.patch(node, &PatchParams::default(), &patch)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(node, %error, "cannot mark the node as not schedulable"),
        Err(_) => tracing::warn!(node, "the API server did not answer in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_that_failed_is_sent_again_soon() {
        // Five minutes of silence close a node.
        let most = Duration::from_secs(300) / 2;
        for chance in [0, 1, 71_999, 999_999_999] {
            let (usual, again) = (until_next(false, chance), until_next(true, chance));
            assert!(usual >= HEARTBEAT && usual < most, "{usual:?}");
            assert!(again >= HEARTBEAT_AGAIN && again < HEARTBEAT / 4, "{again:?}");
        }
        assert_ne!(
            until_next(false, 0),
            until_next(false, 1),
            "nodes do not write all at once"
        );
    }
}
