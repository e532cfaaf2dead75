//! Each printableStatus by a real cause, and refusals that change nothing.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{fails, run};
use libtest_mimic::Trial;
use serde::Deserialize;
use serde_json::{Value, json};

use super::manifest::{add_disk, add_script, spec, vm};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "missing-image", missing_image),
        trial(shared, "unschedulable", unschedulable),
        trial(shared, "crash-loop", crash_loop),
        trial(shared, "terminating", terminating),
        trial(shared, "invalid-manifests", invalid_manifests),
    ]
}

async fn missing_image(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["volumes"][0]["containerDisk"]["image"] = json!("127.0.0.1:9/nothing:1");
    home.apply(ns, &vm("a", "Always", spec))?;
    home.wait("VirtualMachine", ns, "a", BOOT, "image trouble", |o| {
        matches!(
            o["status"]["printableStatus"].as_str(),
            Some("ErrImagePull" | "ImagePullBackOff")
        )
    })
    .await?;
    home.wait_status(ns, "a", "ImagePullBackOff", BOOT).await?;
    let described = run(&mut home.kubectl(&["describe", "pods", "-n", ns]))?;
    ensure!(described.contains("127.0.0.1:9/nothing:1"), "{described}");
    Ok(())
}

async fn unschedulable(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["domain"]["memory"]["guest"] = json!("8Ti");
    home.apply(ns, &vm("a", "Always", spec))?;
    let seen = home.wait_status(ns, "a", "ErrorUnschedulable", SOON).await?;
    ensure!(
        seen["status"]["conditions"].to_string().contains("Insufficient memory"),
        "{}",
        seen["status"]
    );
    Ok(())
}

async fn crash_loop(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    // A disk of the node that does not exist: the guest never gets to run.
    add_disk(
        &mut spec,
        json!({"name": "gone", "disk": {"bus": "virtio"}}),
        json!({"name": "gone", "hostDisk": {"path": "/tmp/no-such-disk-of-ferrovirt.img", "type": "Disk"}}),
    );
    home.apply(ns, &vm("a", "Always", spec))?;
    let seen = home.wait_status(ns, "a", "CrashLoopBackOff", BOOT).await?;
    ensure!(
        seen["status"]["startFailure"]["consecutiveFailCount"].as_i64() >= Some(1),
        "{}",
        seen["status"]
    );
    Ok(())
}

async fn terminating(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["terminationGracePeriodSeconds"] = json!(5);
    add_script(&mut spec, "killall dd; echo deaf now");
    home.apply(ns, &vm("a", "Always", spec))?;
    home.wait_status(ns, "a", "Starting", SOON).await?;
    home.wait_serial(ns, "a", "deaf now", BOOT).await?;
    run(&mut home.kubectl(&["delete", "vm", "a", "-n", ns, "--wait=false"]))?;
    home.wait_status(ns, "a", "Terminating", SOON).await?;
    home.wait_gone("VirtualMachine", ns, "a", SOON).await?;
    home.wait_gone("VirtualMachineInstance", ns, "a", SOON).await
}

/// One row of the table in `crates/core/tests/invalid`.
#[derive(Deserialize)]
struct Invalid {
    name: String,
    field: String,
    manifest: Value,
}

/// The whole table against the real API with the real kubectl: each is refused, names its field, and changes nothing.
async fn invalid_manifests(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let dir = Path::new("../../crates/core/tests/invalid");
    let (mut count, mut wrong) = (0, Vec::new());
    let before = run(&mut home.kubectl(&["get", "vm,vmi", "-n", ns, "-o", "name"]))?;
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let Some(row) = Option::<Invalid>::deserialize(document).with_context(|| path.display().to_string())?
            else {
                continue;
            };
            count += 1;
            let manifest = tempfile::Builder::new().suffix(".json").tempfile()?;
            std::fs::write(manifest.path(), row.manifest.to_string())?;
            let file = manifest.path().to_string_lossy().into_owned();
            match fails(&mut home.kubectl(&["create", "-n", ns, "-f", &file])) {
                Ok((_, said)) if said.contains(&row.field) => {}
                Ok((_, said)) => wrong.push(format!("{}: {} is not named in: {}", row.name, row.field, said.trim())),
                Err(_) => wrong.push(format!("{}: was accepted", row.name)),
            }
        }
    }
    let after = run(&mut home.kubectl(&["get", "vm,vmi", "-n", ns, "-o", "name"]))?;
    ensure!(count >= 100, "the table has only {count} rows");
    ensure!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    ensure!(before == after, "something was created: {after}");
    Ok(())
}
