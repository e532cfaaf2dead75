//! A node dies as by a power failure, and comes back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferrovirt_e2e::{Home, condition, eventually, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::release::pods;
use super::{Uncordon, node_of};
use crate::manifest::{spec, vm};
use crate::processes::qemus;
use crate::{BOOT, SOON, Shared};

/// The API server reaches Services through the first node, so the other one dies.
const DYING: &str = "node2";
const OTHER: &str = "node1";
/// Kubernetes waits 50 s for a node's heartbeat.
const SILENCE: Duration = Duration::from_secs(120);
/// By this taint an administrator says that the node is off, so that its pods may be forgotten.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub async fn node_loss(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let machine = Machine::new(home)?;
    let outcome = lost_and_found(home, ns, &machine).await;
    if outcome.is_err() {
        taint(home, false)?;
        machine.boot()?;
        ready_again(home).await.context("the cluster is not as it was")?;
    }
    outcome
}

async fn lost_and_found(home: &Home, ns: &str, machine: &Machine) -> Result<()> {
    {
        let _elsewhere = cordon(home, OTHER)?;
        home.apply(ns, &vm("always", "Always", spec()))?;
        home.apply(ns, &vm("manual", "Manual", spec()))?;
        run(&mut home.virtctl(&["start", "-n", ns, "manual"]))?;
        for name in ["always", "manual"] {
            home.wait_status(ns, name, "Running", BOOT).await?;
            ensure!(node_of(home, ns, name).await? == DYING, "{name} is on the other node");
        }
    }
    let kind = "VirtualMachineInstance";
    let first = home.get(kind, ns, "always").await?.context("it runs")?["metadata"]["uid"].clone();

    machine.power_off()?;
    let silent = |o: &Value| condition(o, "Ready")["status"] != "True";
    home.wait("Node", "", DYING, SILENCE, "it is missed", silent).await?;
    // Nobody knows whether the guests still run: they are neither failed nor started twice.
    let vmi = home.get(kind, ns, "always").await?.context("it is there")?;
    ensure!(
        vmi["metadata"]["uid"] == first && vmi["status"]["phase"] == "Running",
        "{vmi:#}"
    );

    taint(home, true)?;
    let failed = |o: &Value| o["status"]["phase"] == "Failed";
    let vmi = home.wait(kind, ns, "manual", BOOT, "it failed", failed).await?;
    ensure!(vmi["status"]["reason"] == "NodeUnresponsive", "{}", vmi["status"]);
    home.wait_status(ns, "manual", "Stopped", SOON).await?;
    let again = |o: &Value| o["metadata"]["uid"] != first && o["status"]["phase"] == "Running";
    let vmi = home.wait(kind, ns, "always", BOOT, "it runs elsewhere", again).await?;
    ensure!(vmi["status"]["nodeName"] == OTHER, "{}", vmi["status"]);
    ensure!(qemus(ns, "always")?.len() == 1, "{:?}", qemus(ns, "always")?);

    machine.boot()?;
    taint(home, false)?;
    ready_again(home).await?;
    // It takes VMs again, and nothing of before is left there.
    let _elsewhere = cordon(home, OTHER)?;
    run(&mut home.virtctl(&["start", "-n", ns, "manual"]))?;
    home.wait_serial(ns, "manual", "is ready at", BOOT).await?;
    ensure!(
        node_of(home, ns, "manual").await? == DYING,
        "manual is on the other node"
    );
    for name in ["always", "manual"] {
        let processes = qemus(ns, name)?;
        ensure!(processes.len() == 1, "QEMUs of {name}: {processes:?}");
    }
    Ok(())
}

fn cordon<'a>(home: &'a Home, node: &str) -> Result<Uncordon<'a>> {
    run(&mut home.kubectl(&["cordon", node]))?;
    Ok(Uncordon(home, node.to_owned()))
}

fn taint(home: &Home, off: bool) -> Result<()> {
    let taint = if off {
        format!("{OUT_OF_SERVICE}=nodeshutdown:NoExecute")
    } else {
        format!("{OUT_OF_SERVICE}-")
    };
    match run(&mut home.kubectl(&["taint", "node", DYING, "--overwrite", &taint])) {
        Err(error) if !off && format!("{error:#}").contains("not found") => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Waits until the node and all components are ready.
async fn ready_again(home: &Home) -> Result<()> {
    let ready = |o: &Value| {
        condition(o, "Ready")["status"] == "True" && o["metadata"]["labels"]["kubevirt.io/schedulable"] == "true"
    };
    home.wait("Node", "", DYING, SILENCE, "it is back", ready).await?;
    let components = "virt-operator, virt-api, virt-controller, virt-handler";
    eventually("all components are ready", SILENCE, || async {
        let pods = pods(home, components).map_err(|error| format!("{error:#}"))?;
        let waiting: Vec<String> = pods
            .iter()
            .filter(|pod| condition(pod, "Ready")["status"] != "True")
            .map(|pod| pod["metadata"]["name"].to_string())
            .collect();
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(waiting.join(" "))
        }
    })
    .await
}

/// The power button of a node.
struct Machine {
    state: PathBuf,
    xtask: PathBuf,
}

impl Machine {
    /// Of the cluster that `cargo xtask cluster` made.
    fn new(home: &Home) -> Result<Self> {
        let kubeconfig = home.kubeconfig();
        let state = kubeconfig.parent().and_then(Path::parent);
        let state = state.context("the kubeconfig is in the cluster's state directory")?;
        let me = std::env::current_exe()?;
        let xtask = me.ancestors().map(|d| d.join("xtask")).find(|file| file.is_file());
        Ok(Self {
            state: state.to_owned(),
            xtask: xtask.context("xtask is built")?,
        })
    }

    /// Ends the node's first process, and thereby everything on it.
    fn power_off(&self) -> Result<()> {
        let file = self.state.join(format!("pid/init-{DYING}"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let pid = text.split_whitespace().next().and_then(|word| word.parse().ok());
        let Some(pid @ 2..) = pid else {
            bail!("{} holds {text:?}", file.display());
        };
        Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
    }

    fn boot(&self) -> Result<()> {
        let mut up = Command::new(&self.xtask);
        up.args(["cluster", "up", "--dir"]).arg(&self.state);
        run(&mut up).map(drop)
    }
}
