//! Each printableStatus by a real cause.

use std::sync::Arc;

use anyhow::{Result, ensure};
use ferrovirt_e2e::run;
use libtest_mimic::Trial;
use serde_json::json;

use super::manifest::{add_disk, add_script, spec, vm};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "missing-image", missing_image),
        trial(shared, "unschedulable", unschedulable),
        trial(shared, "crash-loop", crash_loop),
        trial(shared, "terminating", terminating),
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
