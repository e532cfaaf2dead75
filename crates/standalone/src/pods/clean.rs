//! Stopping and removing pods without the API server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use nix::mount::{MntFlags, umount2};
use rustix::process::Signal;
use tracing::{error, info, warn};

use super::cgroup;
use super::network::{NetworkConfig, Sandbox};
use super::pod::Context;
use super::process::Process;
use super::state::{ContainerRecord, Ended, LogDir, PodRecord, boot_id};
use crate::paths::DataDir;

/// What the sidecars get to end after the main containers.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);

/// A pod of which something runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it was started.
    pub since: Timestamp,
}

fn records(data: &DataDir) -> Vec<PodRecord> {
    let directories = fs::read_dir(data.pods()).into_iter().flatten().flatten();
    directories
        .filter_map(|directory| PodRecord::load(&directory.path()).ok()?)
        .collect()
}

/// The containers of a record that still run.
fn alive(record: &PodRecord) -> Vec<(String, Process)> {
    if record.boot != boot_id() {
        return Vec::new();
    }
    let unended = record
        .containers
        .iter()
        .filter(|(_, container)| container.ended.is_none());
    unended
        .filter_map(|(name, container)| Some((name.clone(), Process::adopt(container.process).ok()?)))
        .collect()
}

/// The pods of a data directory of which something runs, whether or not a control plane does. Needs a tokio runtime.
#[must_use]
pub fn running_pods(data: &DataDir) -> Vec<RunningPod> {
    let running = records(data).into_iter().filter(|record| !alive(record).is_empty());
    running
        .map(
            |PodRecord {
                 namespace,
                 name,
                 started_at,
                 ..
             }| RunningPod {
                namespace,
                name,
                since: started_at,
            },
        )
        .collect()
}

/// Stops all pods of a data directory on which no control plane runs: SIGTERM, the pod's grace, SIGKILL. Their ends are
/// written down for the next control plane. Returns how many there were.
pub async fn stop_pods(data: &DataDir, told: impl Fn(&RunningPod)) -> usize {
    let stopping = records(data)
        .into_iter()
        .filter(|record| !alive(record).is_empty())
        .map(|record| {
            let PodRecord {
                namespace,
                name,
                started_at,
                ..
            } = record.clone();
            told(&RunningPod {
                namespace,
                name,
                since: started_at,
            });
            stop_pod(data, record)
        });
    join_all(stopping).await.len()
}

async fn stop_pod(data: &DataDir, mut record: PodRecord) {
    let mut processes = alive(&record);
    // The main containers were started last, and end first.
    let since = |container: Option<&ContainerRecord>| container.map(|container| container.started_at);
    processes.sort_by_key(|(name, _)| std::cmp::Reverse(since(record.containers.get(name))));
    let mut grace = Duration::from_secs(record.grace_seconds);
    for (name, process) in processes {
        process.signal(Signal::TERM);
        let exit = match tokio::time::timeout(grace, process.exited()).await {
            Ok(exit) => exit,
            Err(_) => {
                process.signal(Signal::KILL);
                process.exited().await
            }
        };
        if let Some(container) = record.containers.get_mut(&name) {
            container.ended = Some(Ended {
                exit,
                at: Timestamp::now(),
                out_of_memory: false,
            });
        }
        grace = SIDECAR_GRACE;
    }
    if let Err(error) = record.save(&data.pods().join(&record.uid)) {
        warn!(pod = record.name, %error, "cannot write down the end of a pod");
    }
}

/// Removes what the stopped pods of a data directory have on the machine outside of it.
pub async fn remove_pods(data: &DataDir, network: &NetworkConfig) {
    for record in records(data) {
        remove_pod(data, network, &record).await;
    }
    network.collect_garbage(&std::collections::HashSet::new());
}

/// Whether the API says that the pod of a record is gone. While it does not say so, nothing may be ended.
pub(super) async fn is_gone(context: &Context, record: &PodRecord) -> bool {
    let PodRecord {
        uid, namespace, name, ..
    } = record;
    let found = match Api::<Pod>::namespaced(context.client.clone(), namespace)
        .get_opt(name)
        .await
    {
        Ok(found) => found,
        Err(error) => {
            warn!(
                pod = name, namespace, uid, %error,
                "cannot ask for a pod that is not in this node's list; it is left as it is until the next start"
            );
            return false;
        }
    };
    if is_another(found.as_ref(), uid) {
        return true;
    }
    let bound = found.and_then(|pod| pod.spec?.node_name).unwrap_or_default();
    let (node, file) = (&context.config.node, context.config.data.node());
    error!(
        pod = name, namespace, uid, node, bound, file = %file.display(),
        "a pod has run here that is bound to a node of another name; it is left as it is. If this node had that name, \
         stop with `ferrovirt down`, remove the file, and start with `ferrovirt up --node-name` and that name"
    );
    false
}

/// Whether what the API has by a pod's name, if anything, is not the pod with this UID.
fn is_another(found: Option<&Pod>, uid: &str) -> bool {
    found.is_none_or(|pod| pod.metadata.uid.as_deref() != Some(uid))
}

/// Ends everything of a pod that the API no longer knows.
pub(super) async fn remove_orphan(context: &Context, record: PodRecord) {
    let PodRecord {
        uid, namespace, name, ..
    } = &record;
    info!(
        pod = name,
        namespace, uid, "removing a pod that the API no longer knows"
    );
    for (_, process) in alive(&record) {
        process.signal(Signal::KILL);
        process.exited().await;
    }
    remove_pod(&context.config.data, &context.config.network, &record).await;
}

async fn remove_pod(data: &DataDir, network: &NetworkConfig, record: &PodRecord) {
    let PodRecord {
        uid,
        namespace,
        name,
        ports,
        network: attachment,
        ..
    } = record;
    network
        .detach(
            &Sandbox {
                uid,
                namespace,
                name,
                ports,
            },
            attachment.as_ref(),
        )
        .await;
    cgroup::remove(uid);
    let directory = data.pods().join(uid);
    remove_volumes(&directory).await;
    let _ = fs::remove_dir_all(directory);
    let _ = fs::remove_dir_all(LogDir::new(&data.pod_logs(), namespace, name, uid).path());
}

/// Removes `volumes/` of a pod's directory, unmounting what is mounted there first. Never follows a mount into other data.
pub(super) async fn remove_volumes(directory: &Path) {
    let volumes = directory.join("volumes");
    // Guests may leave gigabytes behind; removing them must not hold up other pods.
    let removal = tokio::task::spawn_blocking(move || {
        if let Err(error) = unmount_below(&volumes) {
            warn!(path = %volumes.display(), %error, "cannot unmount; the pod's volumes stay");
            return;
        }
        if let Err(error) = fs::remove_dir_all(&volumes)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %volumes.display(), %error, "cannot remove a pod's volumes");
        }
    });
    let _ = removal.await;
}

/// Unmounts everything at or below a directory.
pub(crate) fn unmount_below(directory: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    let mut inside: Vec<PathBuf> = points.filter(|path| path.starts_with(directory)).collect();
    inside.sort();
    for path in inside.iter().rev() {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pod_with_the_same_uid_is_still_there() {
        let pod = |uid: Option<&str>| {
            let mut pod = Pod::default();
            pod.metadata.uid = uid.map(str::to_owned);
            pod
        };
        for (found, expected) in [
            (None, true),
            (Some(pod(Some("other"))), true),
            (Some(pod(None)), true),
            (Some(pod(Some("u"))), false),
        ] {
            assert_eq!(is_another(found.as_ref(), "u"), expected, "{found:?}");
        }
    }
}
