//! What QEMU can do on this node, asked over QMP without starting a guest.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// QEMU answers in well under a second.
const QEMU_LIMIT: Duration = Duration::from_secs(20);
/// Switches of the CPU object that no guest sees, by their beginnings.
const NO_FEATURES: [&str; 14] = [
    "x-",
    "hv-",
    "kvm",
    "xen-",
    "enforce",
    "check",
    "fill-mtrr-mask",
    "host-",
    "migratable",
    "cpuid-0xb",
    "legacy-",
    "full-cpuid",
    "l3-cache",
    "vmware-",
];

/// What QEMU can do here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capabilities {
    /// Machine types.
    pub(crate) machines: BTreeSet<String>,
    /// CPU models of which nothing is missing.
    pub(crate) cpu_models: BTreeSet<String>,
    /// CPU features that guests can have.
    #[serde(default)]
    pub(crate) cpu_features: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    version: String,
    qemu_modified: SystemTime,
    kvm: bool,
    capabilities: Capabilities,
}

/// Asks QEMU, at most once per build of it. `None`: it does not answer, and may do so later.
pub(crate) async fn capabilities(qemu: &Path, state_dir: &Path, kvm: bool) -> Option<Capabilities> {
    let cache = state_dir.join("qemu.json");
    let modified = std::fs::metadata(qemu).and_then(|metadata| metadata.modified()).ok();
    let kept = std::fs::read(&cache)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Cached>(&bytes).ok());
    if let (Some(kept), Some(modified)) = (kept, modified)
        && (kept.version.as_str(), kept.qemu_modified, kept.kvm) == (env!("CARGO_PKG_VERSION"), modified, kvm)
    {
        return Some(kept.capabilities);
    }
    match tokio::time::timeout(QEMU_LIMIT, ask(qemu, kvm)).await {
        Ok(Ok(capabilities)) => {
            if let Some(qemu_modified) = modified {
                let cached = Cached {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    qemu_modified,
                    kvm,
                    capabilities: capabilities.clone(),
                };
                // Without the file QEMU is asked again next time.
                let _ = serde_json::to_vec(&cached).map(|bytes| std::fs::write(&cache, bytes));
            }
            Some(capabilities)
        }
        Ok(Err(error)) => {
            tracing::error!(qemu = %qemu.display(), %error, "QEMU does not say what it can do; install qemu-system-x86");
            None
        }
        Err(_) => {
            tracing::error!(qemu = %qemu.display(), "QEMU did not say in {QEMU_LIMIT:?} what it can do");
            None
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
    let best = json!({"type": "full", "model": {"name": if kvm { "host" } else { "max" }}});
    let commands = [
        ("qmp_capabilities", json!({})),
        ("query-machines", json!({})),
        ("query-cpu-definitions", json!({})),
        ("query-cpu-model-expansion", best),
        ("quit", json!({})),
    ];
    for (command, arguments) in &commands {
        let request = json!({"execute": command, "arguments": arguments, "id": command});
        stdin.write_all(format!("{request}\n").as_bytes()).await?;
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
            Some("query-cpu-model-expansion") => found.cpu_features = cpu_features(&answer["return"]["model"]["props"]),
            Some("query-cpu-definitions") => found.cpu_models = cpu_models(&answer["return"]),
            Some(_) => {}
            None => continue,
        }
        answers += 1;
    }
    let status = child.wait().await?;
    // It may end before it has answered that it will.
    if answers + 1 < commands.len() {
        let why = format!("it ended with {status} before it had answered");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
    }
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

/// Features that the best CPU has; QEMU knows some under several spellings, and so may VMIs.
fn cpu_features(properties: &Value) -> BTreeSet<String> {
    let all = properties.as_object().into_iter().flatten();
    let on = all.filter(|(_, value)| value.as_bool() == Some(true));
    let feature = |name: &&String| !NO_FEATURES.iter().any(|prefix| name.starts_with(prefix));
    on.map(|(name, _)| name).filter(feature).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn qemu_says_what_it_can_do() {
        let state = tempfile::tempdir().unwrap();
        let qemu = Path::new("/usr/bin/qemu-system-x86_64");
        let found = capabilities(qemu, state.path(), false).await.unwrap();
        for machine in ["q35", "pc", "pc-q35-10.0"] {
            assert!(found.machines.contains(machine), "{machine} in {found:?}");
        }
        assert!(found.cpu_models.contains("qemu64"), "{found:?}");
        assert!(!found.machines.contains("none") && !found.cpu_models.iter().any(|model| model.ends_with("-v1")));
        assert!(
            found.cpu_features.contains("sse4.1") && found.cpu_features.contains("rdrand"),
            "{found:?}"
        );
        assert!(
            !found
                .cpu_features
                .iter()
                .any(|feature| feature.starts_with("hv-") || feature == "check")
        );
        assert_eq!(capabilities(qemu, state.path(), false).await, Some(found));
    }

    #[tokio::test]
    async fn a_qemu_that_does_not_answer_says_nothing() {
        let state = tempfile::tempdir().unwrap();
        // The other ends at once, and well.
        for qemu in ["/nonexistent", "/bin/true"] {
            assert_eq!(capabilities(Path::new(qemu), state.path(), false).await, None, "{qemu}");
        }
        assert!(!state.path().join("qemu.json").exists());
    }
}
