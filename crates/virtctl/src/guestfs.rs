//! `virtctl guestfs`: a shell with libguestfs' tools in a pod that has a claim's disk.
//!
//! The pod is made, watched until it runs, attached to, and deleted again however that ends; when all went well, the
//! claim is free for others at the end.

mod attach;
mod pod;
mod progress;

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Guestfs;
use crate::connection::Connection;
use crate::target::{Kind, is_name};
use crate::{note, say};
use pod::Identity;
use progress::Progress;

/// Seconds that the tools have to finish when the pod is deleted.
const GRACE: u32 = 5;
/// How long a pod may take to be gone once it is deleted: the kubelet's share, and time for a busy node.
const LEAVES: std::time::Duration = std::time::Duration::from_secs(60);
/// Between two watches.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(500);

/// Opens the shell.
pub(crate) async fn run(connection: &Connection, arguments: &Guestfs) -> anyhow::Result<()> {
    let claim = &arguments.claim;
    if claim.is_empty() || !is_name(claim) {
        bail!("{claim:?} is no name of a claim");
    }
    let identity = Identity::of(arguments).map_err(anyhow::Error::msg)?;
    let image = image(connection, arguments).await?;
    say(format_args!("Use image: {image}"))?;
    let block = block(connection, claim).await?;
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    unused(&pods, claim).await?;
    let vm = match &arguments.vm {
        None => None,
        Some(name) => {
            let found = connection.objects(Kind::Vm).get(name).await;
            Some(found.with_context(|| format!("cannot get VirtualMachine {name}"))?)
        }
    };
    let rendered = pod::render(arguments, &image, identity, block, vm.as_ref().map(|vm| &vm.data));
    let rendered: Pod = serde_json::from_value(rendered).context("cannot use what --vm names")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch signals")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch signals")?;
    let name = pod::name(claim);
    let created = pods.create(&PostParams::default(), &rendered).await;
    let created = created.with_context(|| format!("cannot create pod {name}"))?;
    let uid = created.uid();
    let used = tokio::select! {
        used = use_pod(&pods, created) => used,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        _ = hangup.recv() => Err(anyhow::anyhow!("the terminal is gone")),
    };
    let deleted = pods.delete(&name, &DeleteParams::default().grace_period(GRACE)).await;
    match (used, deleted) {
        (Err(error), deleted) => {
            if let Err(left) = deleted.map_err(anyhow::Error::new) {
                left_behind(&name, &left);
            }
            Err(error)
        }
        (Ok(()), Ok(_)) => tokio::select! {
            gone = gone(&pods, &name, uid) => gone,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = hangup.recv() => Ok(()),
        },
        (Ok(()), Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        (Ok(()), Err(error)) => {
            Err(error).with_context(|| format!("cannot delete pod {name}: delete it, it keeps the claim"))
        }
    }
}

/// Returns when the deleted pod is gone, and with it its hold on the claim; a node that does not answer is not waited for.
async fn gone(pods: &Api<Pod>, name: &str, uid: Option<String>) -> anyhow::Result<()> {
    let watched = async {
        // Another pod of the name is somebody else's, who found the claim free.
        while let Some(pod) = pods.get_opt(name).await?.filter(|pod| pod.uid() == uid) {
            let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
            let version = pod.resource_version().unwrap_or_default();
            let mut events = pods.watch(&parameters, &version).await?.boxed();
            // What breaks a watch is seen by the next look.
            while let Ok(Some(event)) = events.try_next().await {
                match event {
                    WatchEvent::Deleted(_) => return Ok(()),
                    WatchEvent::Error(_) => break,
                    _ => {}
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    };
    match tokio::time::timeout(LEAVES, watched).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let error: kube::Error = error;
            Err(error).with_context(|| format!("cannot see whether pod {name}, which was deleted, is gone"))
        }
        Err(_) => {
            note(format_args!(
                "Warning: pod {name} was deleted and is not gone yet; until then it keeps the claim"
            ));
            Ok(())
        }
    }
}

fn left_behind(name: &str, error: &anyhow::Error) {
    if crate::connection::code(error) != Some(404) {
        let why = crate::connection::explain(error);
        note(format_args!("Warning: pod {name} is left and keeps the claim: {why}"));
    }
}

async fn image(connection: &Connection, arguments: &Guestfs) -> anyhow::Result<String> {
    if let Some(image) = arguments.image.as_ref().filter(|image| !image.is_empty()) {
        return Ok(image.clone());
    }
    let answer = connection.group("guestfs").await;
    let answer = answer.context("cannot find out the image of libguestfs' tools")?;
    pod::image(&answer).context("the server does not know the image of libguestfs' tools: name one with --image")
}

/// Whether the claim is a device.
async fn block(connection: &Connection, claim: &str) -> anyhow::Result<bool> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let found = claims.get_opt(claim).await;
    let found = found.with_context(|| format!("cannot get PersistentVolumeClaim {claim}"))?;
    let Some(found) = found else {
        bail!(
            "there is no PersistentVolumeClaim {claim} in namespace {}",
            connection.namespace
        );
    };
    let mode = found.spec.and_then(|spec| spec.volume_mode);
    Ok(mode.as_deref() == Some("Block"))
}

/// A disk that two write to is destroyed.
async fn unused(pods: &Api<Pod>, claim: &str) -> anyhow::Result<()> {
    let found = pods.list(&ListParams::default()).await;
    let found = found.context("cannot list pods, to see who uses the claim")?;
    match found.items.iter().find(|pod| uses(pod, claim)) {
        None => Ok(()),
        Some(pod) => bail!(
            "PersistentVolumeClaim {claim} is used by pod {}: two writers would destroy the disk",
            pod.name_any()
        ),
    }
}

/// Whether a pod that has not ended uses the claim.
fn uses(pod: &Pod, claim: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut claims = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
    !matches!(phase, Some("Succeeded" | "Failed")) && claims.any(|used| used.claim_name == claim)
}

async fn use_pod(pods: &Api<Pod>, created: Pod) -> anyhow::Result<()> {
    let name = created.name_any();
    wait(pods, created).await?;
    attach::run(pods, &name).await
}

/// Returns when the shell runs; meanwhile the user is told what the pod waits for.
async fn wait(pods: &Api<Pod>, mut seen: Pod) -> anyhow::Result<()> {
    let name = seen.name_any();
    let mut told = String::new();
    let mut look = |pod: &Pod| match progress::of(pod) {
        Progress::Runs => Ok(true),
        Progress::Ended(why) => bail!("pod {name} does not run: {why}"),
        Progress::Waits(why) => {
            if why != told {
                note(format_args!("Waiting for pod {name}: {why}"));
                told = why;
            }
            Ok(false)
        }
    };
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    loop {
        if look(&seen)? {
            return Ok(());
        }
        let version = seen.metadata.resource_version.clone().unwrap_or_default();
        let events = pods.watch(&parameters, &version).await;
        let mut events = events.with_context(|| format!("cannot watch pod {name}"))?.boxed();
        // What breaks a watch is seen by the next one.
        while let Ok(Some(event)) = events.try_next().await {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    if look(&pod)? {
                        return Ok(());
                    }
                }
                WatchEvent::Deleted(_) => bail!("pod {name} was deleted before it ran"),
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(_) => break,
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        let found = pods.get(&name).await;
        seen = found.with_context(|| format!("cannot get pod {name}"))?;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_in_use() {
        for (phase, claim, expected) in [
            ("Running", "disk", true),
            ("Pending", "disk", true),
            ("Succeeded", "disk", false),
            ("Failed", "disk", false),
            ("Running", "other", false),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "spec": {"containers": [], "volumes": [
                    {"name": "e", "emptyDir": {}},
                    {"name": "c", "persistentVolumeClaim": {"claimName": "disk"}},
                ]},
                "status": {"phase": phase},
            }))
            .unwrap();
            assert_eq!(uses(&pod, claim), expected, "{phase} {claim}");
        }
    }
}
