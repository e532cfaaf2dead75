//! What our own processes may not do, whatever happens to them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_e2e::{Home, connect, fails, run};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::node_of;
use super::release::pods;
use crate::Shared;
use crate::manifest::{spec, vmi};

/// A virt-handler as the API server knows it.
struct Agent {
    kubeconfig: PathBuf,
}

impl Agent {
    fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(args).env("KUBECONFIG", &self.kubeconfig);
        command
    }

    fn may(&self, args: &[&str]) -> Result<()> {
        run(&mut self.kubectl(args)).map(drop)
    }

    fn may_not(&self, args: &[&str], why: &str) -> Result<()> {
        let (_, said) = fails(&mut self.kubectl(args))?;
        ensure!(said.contains(why), "{args:?}: {said}");
        Ok(())
    }
}

/// What all agents have a right to by their role, and only one by where it runs.
async fn held_to_its_node(agent: &Agent, ns: &str, its_node: &str, node_of_vmi: &str) -> Result<()> {
    // Dry runs pass everything but the storage.
    let patch = ["patch", "--dry-run=server", "--type=merge", "-p"];
    let label = json!({"metadata": {"labels": {"kubevirt.io/test": "1"}}}).to_string();
    for node in ["node1", "node2"] {
        let args = [&patch[..], &[&label, "node", node]].concat();
        if node == its_node {
            agent.may(&args)?;
        } else {
            agent.may_not(&args, "virt-handler may change only its own node")?;
        }
    }
    for (change, why) in [
        (
            json!({"metadata": {"labels": {"example.com/trusted": "1"}}}),
            "virt-handler may change only labels of KubeVirt",
        ),
        (
            json!({"metadata": {"annotations": {"example.com/trusted": "1"}}}),
            "virt-handler may change only annotations of KubeVirt",
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            "virt-handler may not change the spec of a node",
        ),
    ] {
        agent.may_not(&[&patch[..], &[&change.to_string(), "node", its_node]].concat(), why)?;
    }
    // kubectl would read the status first, which virt-handler may not.
    let client = connect(&agent.kubeconfig).await?;
    let vmis: Api<VirtualMachineInstance> = Api::namespaced(client, ns);
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let change = Patch::Merge(json!({"status": {"reason": "Test"}}));
    match vmis.patch_status("a", &dry, &change).await {
        Ok(_) => ensure!(
            its_node == node_of_vmi,
            "virt-handler of {its_node} changed a VMI of {node_of_vmi}"
        ),
        Err(error) => {
            let why = "virt-handler may change only VMIs of its own node";
            ensure!(its_node != node_of_vmi && error.to_string().contains(why), "{error}");
        }
    }
    Ok(())
}

/// A virt-handler has the rights of all its siblings, and is held to its own node by the claims of its token.
pub async fn own_node_only(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vmi("a", spec()))?;
    let node = node_of(home, ns, "a").await?;
    let directory = tempfile::tempdir()?;
    let mut nodes = Vec::new();
    for pod in pods(home, "virt-handler")? {
        let name = pod["metadata"]["name"].as_str().context("a pod has a name")?;
        let its_node = pod["spec"]["nodeName"].as_str().context("a pod has a node")?;
        let agent = Agent {
            kubeconfig: directory.path().join(name),
        };
        kubeconfig_of_pod(home, name, &agent.kubeconfig)?;
        held_to_its_node(&agent, ns, its_node, &node).await?;
        let spec = json!({"spec": {"terminationGracePeriodSeconds": 1}}).to_string();
        for forbidden in [
            &["patch", "vmi", "a", "-n", ns, "--type=merge", "-p", &spec][..],
            &["delete", "vmi", "a", "-n", ns],
            &["delete", "pods", "--all", "-n", ns],
            &["get", "secrets", "-n", ns],
            &["get", "secrets", "-n", "kubevirt"],
        ] {
            agent.may_not(forbidden, "orbidden")?;
        }
        nodes.push(its_node.to_owned());
    }
    nodes.sort();
    ensure!(nodes == ["node1", "node2"], "virt-handlers are on {nodes:?}");
    Ok(())
}

/// A kubeconfig with a token of virt-handler's account that is bound to one of its pods, as the pod's own is.
fn kubeconfig_of_pod(home: &Home, pod: &str, path: &Path) -> Result<()> {
    let token = run(&mut home.kubectl(&[
        "create",
        "token",
        "kubevirt-handler",
        "-n",
        "kubevirt",
        "--bound-object-kind=Pod",
        "--bound-object-name",
        pod,
    ]))?;
    let config = run(&mut home.kubectl(&["config", "view", "--raw", "--flatten", "--minify", "-o", "json"]))?;
    let mut config: Value = serde_json::from_str(&config)?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    Ok(std::fs::write(path, config.to_string())?)
}
