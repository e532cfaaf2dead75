//! What the node says about itself: labels for scheduling, device counts, KVM.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use ferrovirt_core::names::SCHEDULABLE_LABEL;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::Options;
use crate::kvm::Verdict;

/// Label of a node: a guest was seen to run under KVM.
const KVM_LABEL: &str = "node.ferrovirt.io/kvm";
/// Annotation of a node: why there is KVM, or none.
const KVM_ANNOTATION: &str = "node.ferrovirt.io/kvm-reason";
const HEARTBEAT_ANNOTATION: &str = "kubevirt.io/heartbeat";
const MACHINE_PREFIX: &str = "machine-type.node.kubevirt.io/";
const CPU_PREFIX: &str = "cpu-model.node.kubevirt.io/";
/// QEMU answers in well under a second.
const QEMU_LIMIT: Duration = Duration::from_secs(20);
/// As many guests may share a device; it is not used up.
const DEVICE_COUNT: &str = "1000";

/// What QEMU can do here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Capabilities {
    machines: BTreeSet<String>,
    cpu_models: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    qemu_modified: SystemTime,
    kvm: bool,
    capabilities: Capabilities,
}

/// Publishes labels and devices; waits for the node object, writes only what differs.
pub(crate) async fn publish(client: &Client, options: &Options, kvm: &Verdict) {
    let capabilities = capabilities(&options.qemu, &options.state_dir, kvm.usable).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let mut pause = Duration::from_millis(100);
    loop {
        match publish_once(&nodes, options, kvm, &capabilities).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(node = options.node_name, %error, "cannot publish the node's facts yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

async fn publish_once(
    nodes: &Api<Node>,
    options: &Options,
    kvm: &Verdict,
    capabilities: &Capabilities,
) -> Result<(), kube::Error> {
    let name = &options.node_name;
    let node = nodes.get(name).await?;
    if let Some(metadata) = metadata_patch(&node, kvm, capabilities) {
        nodes
            .patch(
                name,
                &PatchParams::default(),
                &Patch::Merge(json!({"metadata": metadata})),
            )
            .await?;
    }
    let devices = devices(kvm);
    let has = node
        .status
        .as_ref()
        .and_then(|status| status.allocatable.as_ref())
        .is_some_and(|allocatable| {
            devices
                .iter()
                .all(|(device, count)| allocatable.get(*device).is_some_and(|has| has.0 == *count))
        });
    if !has {
        let patch = json!({"status": {"capacity": devices, "allocatable": devices}});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
    }
    Ok(())
}

fn devices(kvm: &Verdict) -> BTreeMap<&'static str, &'static str> {
    let count = |there: bool| if there { DEVICE_COUNT } else { "0" };
    BTreeMap::from([
        ("devices.kubevirt.io/kvm", count(kvm.usable)),
        ("devices.kubevirt.io/tun", count(Path::new("/dev/net/tun").exists())),
        (
            "devices.kubevirt.io/vhost-net",
            count(Path::new("/dev/vhost-net").exists()),
        ),
    ])
}

/// The labels and annotations to change; labels of ours that no longer hold are removed.
fn metadata_patch(node: &Node, kvm: &Verdict, capabilities: &Capabilities) -> Option<Value> {
    let on = || "true".to_owned();
    let mut wanted: BTreeMap<String, String> = BTreeMap::from([
        (SCHEDULABLE_LABEL.to_owned(), on()),
        (KVM_LABEL.to_owned(), kvm.usable.to_string()),
    ]);
    wanted.extend(
        capabilities
            .machines
            .iter()
            .map(|machine| (format!("{MACHINE_PREFIX}{machine}"), on())),
    );
    wanted.extend(
        capabilities
            .cpu_models
            .iter()
            .map(|model| (format!("{CPU_PREFIX}{model}"), on())),
    );
    let has = node.labels();
    let mut labels: BTreeMap<String, Option<String>> = wanted
        .iter()
        .filter(|(key, value)| has.get(*key) != Some(value))
        .map(|(k, v)| (k.clone(), Some(v.clone())))
        .collect();
    let ours = |key: &str| key.starts_with(MACHINE_PREFIX) || key.starts_with(CPU_PREFIX);
    labels.extend(
        has.keys()
            .filter(|key| ours(key) && !wanted.contains_key(*key))
            .map(|key| (key.clone(), None)),
    );
    let told = node.annotations().get(KVM_ANNOTATION) == Some(&kvm.why);
    if labels.is_empty() && told {
        return None;
    }
    Some(json!({"labels": labels, "annotations": {KVM_ANNOTATION: kvm.why}}))
}

/// Renews the heartbeat for ever.
pub(crate) async fn heartbeat(client: &Client, node: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut beat = 0u64;
    loop {
        let now = jiff::Timestamp::now();
        let patch = json!({"metadata": {"annotations": {HEARTBEAT_ANNOTATION: now.to_string()}}});
        if let Err(error) = nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await {
            tracing::warn!(node, %error, "cannot renew the heartbeat");
        }
        // 60 to 132 s apart, so that many nodes do not write at once.
        beat = beat.wrapping_add(u64::from(now.subsec_nanosecond().unsigned_abs()));
        tokio::time::sleep(Duration::from_secs(60 + beat % 73)).await;
    }
}

/// Asks QEMU, at most once per build of it.
async fn capabilities(qemu: &Path, state_dir: &Path, kvm: bool) -> Capabilities {
    let cache = state_dir.join("qemu.json");
    let modified = std::fs::metadata(qemu).and_then(|metadata| metadata.modified()).ok();
    let kept = std::fs::read(&cache)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Cached>(&bytes).ok());
    if let (Some(kept), Some(modified)) = (kept, modified)
        && (kept.qemu_modified, kept.kvm) == (modified, kvm)
    {
        return kept.capabilities;
    }
    match tokio::time::timeout(QEMU_LIMIT, ask(qemu, kvm)).await {
        Ok(Ok(capabilities)) => {
            if let Some(qemu_modified) = modified {
                let cached = Cached {
                    qemu_modified,
                    kvm,
                    capabilities: capabilities.clone(),
                };
                // Without the file QEMU is asked again next time.
                let _ = serde_json::to_vec(&cached).map(|bytes| std::fs::write(&cache, bytes));
            }
            capabilities
        }
        Ok(Err(error)) => {
            tracing::error!(qemu = %qemu.display(), %error, "QEMU does not say what it can do; install qemu-system-x86");
            Capabilities::default()
        }
        Err(_) => {
            tracing::error!(qemu = %qemu.display(), "QEMU did not say in {QEMU_LIMIT:?} what it can do");
            Capabilities::default()
        }
    }
}

async fn ask(qemu: &Path, kvm: bool) -> io::Result<Capabilities> {
    let mut child = Command::new(qemu)
        .args([
            "-machine",
            "none",
            "-accel",
            if kvm { "kvm" } else { "tcg" },
            "-nodefaults",
            "-no-user-config",
        ])
        .args(["-display", "none", "-S", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let commands = ["qmp_capabilities", "query-machines", "query-cpu-definitions", "quit"];
    for command in commands {
        stdin
            .write_all(format!("{}\n", json!({"execute": command, "id": command})).as_bytes())
            .await?;
    }
    let mut lines = BufReader::new(stdout).lines();
    let mut found = Capabilities::default();
    let mut answers = 0;
    while answers < commands.len()
        && let Some(line) = lines.next_line().await?
    {
        let answer: Value = serde_json::from_str(&line)?;
        match answer["id"].as_str() {
            Some("query-machines") => found.machines = machines(&answer["return"]),
            Some("query-cpu-definitions") => found.cpu_models = cpu_models(&answer["return"]),
            Some(_) => {}
            None => continue,
        }
        answers += 1;
    }
    child.wait().await?;
    Ok(found)
}

/// Machine types a VMI can name; not the ones without a PC around the processor.
fn machines(answer: &Value) -> BTreeSet<String> {
    let list = answer.as_array().into_iter().flatten();
    let names = list
        .flat_map(|machine| [machine["name"].as_str(), machine["alias"].as_str()])
        .flatten();
    let ours = |name: &&str| {
        ["pc-q35-", "pc-i440fx-", "virt-", "s390-ccw-virtio"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || ["q35", "pc", "virt"].contains(name)
    };
    names.filter(ours).map(str::to_owned).collect()
}

/// Models of which nothing is missing here, by their plain names.
fn cpu_models(answer: &Value) -> BTreeSet<String> {
    let list = answer.as_array().into_iter().flatten();
    let usable = list.filter(|model| model["unavailable-features"].as_array().is_some_and(Vec::is_empty));
    let names = usable.filter_map(|model| model["name"].as_str());
    let plain = |name: &&str| {
        let versioned = name
            .rsplit_once("-v")
            .is_some_and(|(_, n)| n.bytes().all(|b| b.is_ascii_digit()));
        !versioned && !["max", "host", "base"].contains(name)
    };
    names.filter(plain).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn qemu_says_what_it_can_do() {
        let state = tempfile::tempdir().unwrap();
        let qemu = Path::new("/usr/bin/qemu-system-x86_64");
        let found = capabilities(qemu, state.path(), false).await;
        for machine in ["q35", "pc", "pc-q35-10.0"] {
            assert!(found.machines.contains(machine), "{machine} in {found:?}");
        }
        assert!(found.cpu_models.contains("qemu64"), "{found:?}");
        assert!(!found.machines.contains("none") && !found.cpu_models.iter().any(|model| model.ends_with("-v1")));
        assert_eq!(
            capabilities(Path::new("/nonexistent"), state.path(), false).await,
            Capabilities::default()
        );
        assert_eq!(capabilities(qemu, state.path(), false).await, found);
    }

    #[test]
    fn only_what_differs_is_written() {
        let kvm = Verdict {
            usable: false,
            why: "w".into(),
        };
        let capabilities = Capabilities {
            machines: BTreeSet::from(["q35".to_owned()]),
            cpu_models: BTreeSet::new(),
        };
        let mut node = Node::default();
        node.labels_mut().insert(format!("{CPU_PREFIX}old"), "true".into());
        node.labels_mut().insert("mine".into(), "x".into());
        let patch = metadata_patch(&node, &kvm, &capabilities).unwrap();
        assert_eq!(
            patch["labels"],
            json!({"kubevirt.io/schedulable": "true", "node.ferrovirt.io/kvm": "false",
                "machine-type.node.kubevirt.io/q35": "true", "cpu-model.node.kubevirt.io/old": null})
        );
        for (key, value) in patch["labels"].as_object().unwrap() {
            match value.as_str() {
                Some(value) => node.labels_mut().insert(key.clone(), value.into()),
                None => node.labels_mut().remove(key),
            };
        }
        node.annotations_mut().insert(KVM_ANNOTATION.into(), "w".into());
        assert_eq!(metadata_patch(&node, &kvm, &capabilities), None);
    }
}
