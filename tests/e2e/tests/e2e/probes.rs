//! Probes that the network answers: what the guest serves makes it ready, and what it does not serve ends it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use ferrovirt_e2e::{Console, Home, condition};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::manifest::{spec, vm};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![trial(shared, "probes", probes)]
}

/// The guest has so long to boot before its liveness counts.
const PATIENCE: u32 = 90;

async fn probes(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["readinessProbe"] = json!({
        "httpGet": {"path": "/ready.txt", "port": 80},
        "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 2,
    });
    spec["livenessProbe"] = json!({
        "tcpSocket": {"port": 7},
        "initialDelaySeconds": PATIENCE, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 3,
    });
    home.apply(ns, &vm("a", "Always", spec))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let first = ready(home, ns, "False").await?["metadata"]["uid"].clone();
    // Ready is what the guest's own server has the file for. No event of a probe is asked for: a kubelet that has told
    // much of a pod tells no more.
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    console.shell(SOON)?;
    console.send("echo yes > /www/ready.txt; echo served-$((1+1))\n")?;
    console.expect("served-2", SOON)?;
    ready(home, ns, "True").await?;
    console.send("rm /www/ready.txt; echo removed-$((1+1))\n")?;
    console.expect("removed-2", SOON)?;
    let still = ready(home, ns, "False").await?;
    ensure!(still["metadata"]["uid"] == first, "it started anew while it was alive");

    console.send("killall nc; echo killed-$((1+1))\n")?;
    console.expect("killed-2", SOON)?;
    let limit = BOOT + Duration::from_secs(PATIENCE.into());
    let anew = |o: &Value| o["metadata"]["uid"] != first && o["status"]["phase"] == "Running";
    home.wait("VirtualMachineInstance", ns, "a", limit, "it starts anew", anew)
        .await
        .map(drop)
}

async fn ready(home: &Home, ns: &str, wanted: &str) -> Result<Value> {
    let kind = "VirtualMachineInstance";
    let is = |o: &Value| o["status"]["phase"] == "Running" && condition(o, "Ready")["status"] == wanted;
    home.wait(kind, ns, "a", SOON, &format!("Ready is {wanted}"), is).await
}
