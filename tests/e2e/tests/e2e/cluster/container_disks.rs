//! containerDisks where pods have no image volumes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Home, eventually, run};
use serde_json::{Value, json};

use super::super::manifest::{spec, vmi};
use super::super::{BOOT, SOON, Shared};

/// A guest boots from a disk that a container of its image holds; image volumes are used again when they are allowed.
pub async fn without_image_volumes(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let outcome = async {
        gates(home, &json!(["ImageVolume"]))?;
        let name = made_with(home, ns, "held", "container-disk-binary").await?;
        home.wait_phase(ns, &name, "Running", BOOT).await?;
        home.wait_serial(ns, &name, "is ready at", BOOT).await?;
        let pod = pod(home, ns, &name)?;
        let volumes = pod["spec"]["volumes"].as_array().context("a pod has volumes")?;
        ensure!(volumes.iter().all(|v| v.get("image").is_none()), "{volumes:?}");
        // What holds the disk ends with the guest.
        run(&mut home.kubectl(&["delete", "vmi", "-n", ns, &name, "--timeout=60s"])).map(drop)
    };
    let outcome = outcome.await;
    // Also after a failure: the next tests want what is usual.
    gates(home, &Value::Null).and(outcome)?;
    made_with(home, ns, "mounted", "").await.map(drop)
}

fn gates(home: &Home, disabled: &Value) -> Result<()> {
    let change = json!({"spec": {"configuration": {"developerConfiguration": {"disabledFeatureGates": disabled}}}});
    let patch = ["patch", "kv/kubevirt", "-n", "kubevirt", "--type=merge", "-p"];
    run(home.kubectl(&patch).arg(change.to_string())).map(drop)
}

fn pod(home: &Home, ns: &str, vmi: &str) -> Result<Value> {
    let label = format!("vm.kubevirt.io/name={vmi}");
    let list = run(&mut home.kubectl(&["get", "pods", "-n", ns, "-l", &label, "-o", "json"]))?;
    let list: Value = serde_json::from_str(&list)?;
    list["items"]
        .get(0)
        .cloned()
        .with_context(|| format!("{vmi} has no pod"))
}

/// Makes VMIs until one has a pod with this init container, or with none of containerDisks if it is "": the controller
/// hears of a changed configuration when it hears of it. Returns the name of that VMI; the others are deleted.
async fn made_with(home: &Home, ns: &'static str, prefix: &str, init: &str) -> Result<String> {
    let mut made = 0;
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let name = format!("{prefix}-{made}");
        made += 1;
        home.apply(ns, &vmi(&name, spec()))?;
        let has_pod = || async { pod(home, ns, &name).map_err(|e| format!("{e:#}")) };
        let pod = eventually("the VMI has a pod", Duration::from_secs(20), has_pod).await?;
        let inits = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        let names: Vec<&str> = inits.iter().filter_map(|c| c["name"].as_str()).collect();
        let as_wanted = if init.is_empty() {
            !names.contains(&"container-disk-binary")
        } else {
            names.contains(&init)
        };
        if as_wanted {
            return Ok(name);
        }
        run(&mut home.kubectl(&["delete", "vmi", "-n", ns, &name, "--timeout=60s"]))?;
        ensure!(std::time::Instant::now() < deadline, "pods still have {names:?}");
    }
}
