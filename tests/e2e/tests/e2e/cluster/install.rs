//! What users break heals, and what they remove is gone.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Home, eventually, fails, run};
use serde_json::{Value, json};

use super::release::{Release, patch_kubevirt};
use crate::manifest::{spec, vm};
use crate::processes::qemus;
use crate::{BOOT, SOON, Shared};

/// One path of an object as kubectl prints it; empty if there is no such object.
fn read(home: &Home, kind: &str, name: &str, path: &str) -> Result<String> {
    let path = format!("jsonpath={path}");
    run(&mut home.kubectl(&["get", kind, name, "-n", "kubevirt", "--ignore-not-found", "-o", &path]))
}

/// What users delete or change comes back as it was.
pub async fn heals(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Always", spec()))?;
    home.wait_status(ns, "a", "Running", BOOT).await?;
    let vmi = home.get("VirtualMachineInstance", ns, "a").await?.context("it runs")?;

    let uid = "{.metadata.uid}";
    for (kind, name) in [
        ("service", "virt-api"),
        ("configmap", "kubevirt-ca"),
        ("clusterrole", "kubevirt.io:view"),
        ("clusterrolebinding", "kubevirt-controller"),
        ("validatingwebhookconfiguration", "virt-api-validator"),
        ("validatingadmissionpolicy", "kubevirt-node-restriction-policy"),
        ("deployment", "virt-controller"),
        ("daemonset", "virt-handler"),
    ] {
        let before = read(home, kind, name, uid)?;
        ensure!(!before.is_empty(), "there is no {kind} {name}");
        run(&mut home.kubectl(&["delete", kind, name, "-n", "kubevirt"]))?;
        eventually(&format!("{kind} {name} comes back"), SOON, || async {
            match read(home, kind, name, uid).map_err(|error| format!("{error:#}"))? {
                after if !after.is_empty() && after != before => Ok(()),
                after => Err(after),
            }
        })
        .await?;
    }

    for (kind, name, path, change) in [
        ("clusterrole", "kubevirt.io:view", "{.rules}", json!({"rules": []})),
        (
            "deployment",
            "virt-api",
            "{.spec.replicas}",
            json!({"spec": {"replicas": 0}}),
        ),
        (
            "service",
            "kubevirt-prometheus-metrics",
            "{.spec.selector}",
            json!({"spec": {"selector": {"prometheus.kubevirt.io": "false"}}}),
        ),
        (
            "mutatingwebhookconfiguration",
            "virt-api-mutator",
            "{.webhooks[*].name}",
            json!({"webhooks": []}),
        ),
    ] {
        let before = read(home, kind, name, path)?;
        let change = change.to_string();
        run(&mut home.kubectl(&["patch", kind, name, "-n", "kubevirt", "--type=merge", "-p", &change]))?;
        eventually(&format!("{kind} {name} is put right"), SOON, || async {
            match read(home, kind, name, path).map_err(|error| format!("{error:#}"))? {
                after if after == before => Ok(()),
                after => Err(after),
            }
        })
        .await?;
    }

    Release::of_operator(home)?.deployed(home).await?;
    run(&mut home.virtctl(&["pause", "vm", "-n", ns, "a"]))?;
    home.wait_status(ns, "a", "Paused", BOOT).await?;
    let after = home.get("VirtualMachineInstance", ns, "a").await?.context("it runs")?;
    ensure!(
        after["metadata"]["uid"] == vmi["metadata"]["uid"],
        "the guest was replaced"
    );
    Ok(())
}

/// Removal is refused where the KubeVirt object says so; else nothing remains, and all can be installed again.
pub async fn removal(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let release = Release::of_operator(home)?;
    let kubevirt = home.get("KubeVirt", "kubevirt", "kubevirt").await?;
    let kubevirt = kubevirt.context("there is a KubeVirt object")?;
    let outcome = removed(home, ns, &release).await;
    let again = install(home, &release, &kubevirt["spec"]).await;
    outcome.and(again.context("it cannot be installed again"))
}

async fn removed(home: &Home, ns: &str, release: &Release) -> Result<()> {
    home.apply(ns, &vm("a", "Always", spec()))?;
    home.wait_status(ns, "a", "Running", BOOT).await?;
    patch_kubevirt(home, &json!({"uninstallStrategy": "BlockUninstallIfWorkloadsExist"}))?;
    let (_, said) = fails(&mut home.kubectl(&["delete", "kv", "kubevirt", "-n", "kubevirt"]))?;
    ensure!(
        said.contains(&format!("{ns}/a")) && said.contains("uninstallStrategy"),
        "{said}"
    );
    let kubevirt = home.get("KubeVirt", "kubevirt", "kubevirt").await?;
    let kubevirt = kubevirt.context("the KubeVirt object is still there")?;
    ensure!(kubevirt["metadata"]["deletionTimestamp"].is_null(), "{kubevirt:#}");
    home.wait_status(ns, "a", "Running", SOON).await?;

    patch_kubevirt(home, &json!({"uninstallStrategy": "RemoveWorkloads"}))?;
    run(&mut home.kubectl(&["delete", "kv", "kubevirt", "-n", "kubevirt", "--timeout=120s"]))?;
    ensure!(qemus(ns, "a")?.is_empty(), "QEMU outlived the removal");
    let pods = run(&mut home.kubectl(&["get", "pods", "-n", ns, "-o", "name"]))?;
    ensure!(pods.is_empty(), "{pods}");
    let left = left(home)?;
    let expected: Vec<&String> = left.iter().filter(|name| !is_of_operator(name)).collect();
    ensure!(expected.is_empty(), "left without the KubeVirt object: {expected:?}");
    ensure!(left.len() > expected.len(), "the operator is gone as well");

    release.remove_operator(home)?;
    let left = self::left(home)?;
    ensure!(left.is_empty(), "left without the operator: {left:?}");
    Ok(())
}

/// Everything that has our name, but what belongs to tests.
fn left(home: &Home) -> Result<Vec<String>> {
    const KINDS: &str = "crd,clusterrole,clusterrolebinding,role,rolebinding,apiservice,mutatingwebhookconfiguration,\
                         validatingwebhookconfiguration,validatingadmissionpolicy,validatingadmissionpolicybinding,\
                         priorityclass,namespace,deployment,daemonset,service,serviceaccount,secret,configmap,lease,\
                         poddisruptionbudget";
    let columns = "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name";
    let all = run(&mut home.kubectl(&["get", KINDS, "-A", "--no-headers", "-o", columns]))?;
    let nodes = run(&mut home.kubectl(&["get", "nodes", "-o", "json"]))?;
    let nodes: Value = serde_json::from_str(&nodes)?;
    let mut left: Vec<String> = all
        .lines()
        .filter(|line| line.contains("virt") && !line.contains("kube-root-ca.crt") && !line.ends_with(" default"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for node in nodes["items"].as_array().into_iter().flatten() {
        for keys in [&node["metadata"]["labels"], &node["metadata"]["annotations"]] {
            let ours = keys.as_object().into_iter().flat_map(|keys| keys.keys());
            left.extend(
                ours.filter(|key| key.contains("kubevirt.io"))
                    .map(|key| format!("Node {key}")),
            );
        }
    }
    Ok(left)
}

/// What `deploy/ferrovirt-operator.yaml` brings, and what the operator needs for itself.
fn is_of_operator(line: &str) -> bool {
    line.contains("operator")
        || line == "Namespace <none> kubevirt"
        || line == "CustomResourceDefinition <none> kubevirts.kubevirt.io"
        || line == "CustomResourceDefinition <none> cdis.cdi.kubevirt.io"
        || line == "PriorityClass <none> kubevirt-cluster-critical"
        || line.starts_with("APIService ") && line.ends_with(".kubevirt.io") && !line.contains("subresources")
}

async fn install(home: &Home, release: &Release, spec: &Value) -> Result<()> {
    release.install_operator(home)?;
    let object = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": "kubevirt"}, "spec": spec,
    });
    home.apply("kubevirt", &object.to_string())?;
    release.deployed(home).await.map(drop)
}
