//! What only a cluster has: Services, network policies, quotas, drains, roles, components and nodes that come and go,
//! installation, upgrade and removal.

mod container_disks;
mod guestfs;
mod hooks;
mod install;
mod metrics;
mod node_loss;
mod release;
mod rights;
mod tls;
mod upgrade;

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Console, Home, condition, eventually, fails, run};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::manifest::{spec, vm, vmi};
use super::processes::components;
use super::{BOOT, SOON, Shared, trial};

/// Tests that disturb nobody.
pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "service-and-policy", service_and_policy),
        trial(shared, "roles", roles),
        trial(shared, "own-node-only", rights::own_node_only),
        trial(shared, "eviction-refused", eviction_refused),
        trial(shared, "guestfs", guestfs::guestfs),
        trial(shared, "hook-sidecars", hooks::hook_sidecars),
        trial(shared, "quota", quota),
        trial(shared, "certificates-rotate", tls::certificates_rotate),
        trial(shared, "drain-restarts", drain_restarts),
        trial(shared, "metrics", metrics::metrics),
    ]
}

/// Tests that disturb everybody; the last one removes everything and installs it again.
pub fn alone(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "killed-components", killed_components),
        trial(shared, "without-image-volumes", container_disks::without_image_volumes),
        trial(shared, "heals", install::heals),
        trial(shared, "upgrade", upgrade::upgrade),
        trial(shared, "node-loss", node_loss::node_loss),
        trial(shared, "removal", install::removal),
    ]
}

/// Runs a command in a pod that has a shell.
fn exec(home: &Home, ns: &str, pod: &str, script: &str) -> Command {
    home.kubectl(&["exec", "-n", ns, pod, "--", "sh", "-c", script])
}

/// A pod to ask from.
fn client_pod(home: &Home, ns: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "shell", "image": "registry.local:5000/busybox", "command": ["sleep", "3600"]}]
        }
    });
    home.apply(ns, &pod.to_string())?;
    run(&mut home.kubectl(&["wait", "pod/client", "-n", ns, "--for=condition=Ready", "--timeout=60s"])).map(drop)
}

async fn service_and_policy(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    client_pod(home, ns)?;
    home.apply(ns, &vm("web", "Always", spec()))?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 8080, "targetPort": 80}]}
    });
    home.apply(ns, &service.to_string())?;
    home.wait_serial(ns, "web", "is ready at", BOOT).await?;
    let ask = format!("timeout 5 wget -q -O - http://web.{ns}.svc.cluster.local:8080/index.html");
    let asked = || async { run(&mut exec(home, ns, "client", &ask)).map_err(|e| format!("{e:#}")) };
    let answer = eventually("the guest answers through its Service", SOON, asked).await?;
    ensure!(answer.contains("hello from tiny"), "{answer}");

    // A paused guest leaves its Service: the pod's readiness gate is closed.
    run(&mut home.virtctl(&["pause", "vm", "-n", ns, "web"]))?;
    let ready = |wanted: &'static str| {
        eventually("the pod follows the guest", SOON, move || async move {
            let path = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
            let said = run(&mut home.kubectl(&["get", "pod", "-n", ns, "-l", "app=web", "-o", path]));
            let said = said.map_err(|e| format!("{e:#}"))?;
            if said == wanted { Ok(()) } else { Err(said) }
        })
    };
    ready("False").await?;
    run(&mut home.virtctl(&["unpause", "vm", "-n", ns, "web"]))?;
    ready("True").await?;

    let deny = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}
    });
    home.apply(ns, &deny.to_string())?;
    eventually("the policy cuts the guest off", SOON, || async {
        match run(&mut exec(home, ns, "client", &ask)) {
            Ok(answer) => Err(answer),
            Err(_) => Ok(()),
        }
    })
    .await?;
    run(&mut home.kubectl(&["delete", "networkpolicy", "deny", "-n", ns]))?;
    eventually("the guest answers again", SOON, asked).await.map(drop)
}

async fn roles(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Halted", spec()))?;
    for (name, role) in [("viewer", "view"), ("boss", "admin")] {
        let user = format!("--user={name}-of-{ns}");
        let role = format!("--clusterrole={role}");
        run(&mut home.kubectl(&["create", "rolebinding", name, "-n", ns, &role, &user]))?;
    }
    let start = format!("/apis/subresources.kubevirt.io/v1/namespaces/{ns}/virtualmachines/a/start");
    let put = |namespace: &str, user: &str| {
        let path = start.replace(ns, namespace);
        let mut command = home.kubectl(&["replace", "--raw", &path, "-f", "/dev/stdin", "--as", user]);
        command.stdin(std::process::Stdio::null());
        command
    };
    let viewer = format!("viewer-of-{ns}");
    let boss = format!("boss-of-{ns}");
    ensure!(run(&mut home.kubectl(&["get", "vm", "-n", ns, "--as", &viewer]))?.contains('a'));
    for forbidden in [
        vec!["delete", "vm", "a", "-n", ns],
        vec!["get", "secrets", "-n", ns],
        vec![
            "patch",
            "vm",
            "a",
            "-n",
            ns,
            "--type=merge",
            "-p",
            r#"{"spec":{"runStrategy":"Always"}}"#,
        ],
    ] {
        let mut args = forbidden.clone();
        args.extend(["--as", &viewer]);
        let (_, said) = fails(&mut home.kubectl(&args))?;
        ensure!(said.contains("orbidden"), "{forbidden:?}: {said}");
    }
    let (_, said) = fails(&mut put(ns, &viewer))?;
    ensure!(said.contains("orbidden") && said.contains(&viewer), "{said}");
    let console = format!("/apis/subresources.kubevirt.io/v1/namespaces/{ns}/virtualmachineinstances/a/console");
    let (_, said) = fails(&mut home.kubectl(&["get", "--raw", &console, "--as", &viewer]))?;
    ensure!(said.contains("orbidden"), "{said}");

    // An administrator of one namespace is nobody in another.
    let (_, said) = fails(&mut put("default", &boss))?;
    ensure!(said.contains("orbidden"), "{said}");
    run(&mut put(ns, &boss))?;
    home.wait_status(ns, "a", "Running", BOOT).await.map(drop)
}

/// The node a VMI runs on.
async fn node_of(home: &Home, ns: &str, vmi: &str) -> Result<String> {
    let running = home.wait_phase(ns, vmi, "Running", BOOT).await?;
    Ok(running["status"]["nodeName"]
        .as_str()
        .context("it has a node")?
        .to_owned())
}

async fn eviction_refused(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut stays = spec();
    stays["evictionStrategy"] = json!("LiveMigrate");
    // The bridge binding cannot be migrated.
    stays["domain"]["devices"]["interfaces"][0] = json!({"name": "default", "bridge": {}});
    home.apply(ns, &vmi("a", stays))?;
    node_of(home, ns, "a").await?;
    let pod = run(&mut home.kubectl(&["get", "pod", "-n", ns, "-o", "jsonpath={.items[0].metadata.name}"]))?;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": ns}});
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), eviction.to_string())?;
    let path = format!("/api/v1/namespaces/{ns}/pods/{pod}/eviction");
    let file = file.path().to_string_lossy().into_owned();
    let (_, said) = fails(&mut home.kubectl(&["create", "--raw", &path, "-f", &file]))?;
    ensure!(said.contains("a") && said.to_lowercase().contains("evict"), "{said}");
    let vmi = home
        .get("VirtualMachineInstance", ns, "a")
        .await?
        .context("it is there")?;
    ensure!(vmi["status"]["phase"] == "Running", "{}", vmi["status"]);
    Ok(())
}

/// A VM beyond its namespace's quota says so, and starts when the quota allows it.
async fn quota(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let quota = |memory: &str| {
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"},
            "spec": {"hard": {"requests.memory": memory}}
        })
        .to_string()
    };
    home.apply(ns, &quota("100Mi"))?;
    let counted = "--for=jsonpath={.status.hard.requests\\.memory}=100Mi";
    run(&mut home.kubectl(&["wait", "quota/small", "-n", ns, counted, "--timeout=40s"]))?;
    home.apply(ns, &vm("a", "Always", spec()))?;
    let kind = "VirtualMachineInstance";
    let refused = |o: &Value| condition(o, "Synchronized")["reason"] == "FailedCreate";
    let vmi = home
        .wait(kind, ns, "a", SOON, "it says that it is refused", refused)
        .await?;
    let said = condition(&vmi, "Synchronized");
    ensure!(
        vmi["status"]["phase"] == "Pending" && said["message"].to_string().contains("exceeded quota: small"),
        "{}",
        vmi["status"]
    );
    eventually("an event says so, too", SOON, || async {
        let events = run(&mut home.kubectl(&["get", "events", "-n", ns])).map_err(|e| format!("{e:#}"))?;
        let told = |line: &str| line.contains("FailedCreate") && line.contains("exceeded quota: small");
        if events.lines().any(told) { Ok(()) } else { Err(events) }
    })
    .await?;

    home.apply(ns, &quota("1Gi"))?;
    home.wait_status(ns, "a", "Running", BOOT).await?;
    let fine = |o: &Value| condition(o, "Synchronized").is_null();
    home.wait(kind, ns, "a", SOON, "nothing is wrong any more", fine)
        .await
        .map(drop)
}

/// Undoes a drain, also when the test fails.
struct Uncordon<'a>(&'a Home, String);

impl Drop for Uncordon<'_> {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.0.kubectl(&["uncordon", &self.1])) {
            eprintln!("e2e: {error:#}");
        }
    }
}

async fn drain_restarts(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("drained", "Always", spec()))?;
    let first = node_of(home, ns, "drained").await?;
    let uncordon = Uncordon(home, first.clone());
    // Other tests' guests may stay.
    run(&mut home.kubectl(&[
        "drain",
        &first,
        "--pod-selector=app=drained",
        "--delete-emptydir-data",
        "--force",
        "--timeout=120s",
    ]))?;
    let elsewhere = |o: &Value| o["status"]["phase"] == "Running" && o["status"]["nodeName"] != first.as_str();
    let kind = "VirtualMachineInstance";
    home.wait(kind, ns, "drained", BOOT, "it runs elsewhere", elsewhere)
        .await?;
    drop(uncordon);
    Ok(())
}

async fn killed_components(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Always", spec()))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let uid = home.get("VirtualMachineInstance", ns, "a").await?.context("it runs")?["metadata"]["uid"].clone();
    // Only this very boot of the guest knows it.
    ask_guest(home, ns, "a", "echo remember-$((40+2)) > /tmp/boot")?;
    for component in ["virt-operator", "virt-api", "virt-controller", "virt-handler"] {
        let pids = components(component)?;
        ensure!(!pids.is_empty(), "{component} does not run");
        for pid in pids {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        }
        let selector = format!("kubevirt.io={component}");
        // The kubelet needs a moment to see it, and may back off.
        eventually(&format!("{component} is ready again"), BOOT, || async {
            let path = "jsonpath={.items[*].status.containerStatuses[*].ready}";
            let said = run(&mut home.kubectl(&["get", "pod", "-n", "kubevirt", "-l", &selector, "-o", path]));
            let said = said.map_err(|e| format!("{e:#}"))?;
            let alive = !components(component).map_err(|e| format!("{e:#}"))?.is_empty();
            if alive && !said.is_empty() && !said.contains("false") {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await?;
    }
    let vmi = home.get("VirtualMachineInstance", ns, "a").await?.context("it runs")?;
    ensure!(
        vmi["metadata"]["uid"] == uid && vmi["status"]["phase"] == "Running",
        "{vmi:#}"
    );
    let answer = eventually("the console works again", BOOT, || async {
        ask_guest(home, ns, "a", "cat /tmp/boot").map_err(|e| format!("{e:#}"))
    })
    .await?;
    ensure!(answer.contains("remember-42"), "{answer}");
    // What was killed manages its guests again.
    run(&mut home.virtctl(&["pause", "vm", "-n", ns, "a"]))?;
    home.wait_status(ns, "a", "Paused", SOON).await?;
    run(&mut home.virtctl(&["stop", "-n", ns, "a"]))?;
    home.wait_gone("VirtualMachineInstance", ns, "a", BOOT).await
}

/// What the guest's shell says to a script, through a console that is opened for it.
fn ask_guest(home: &Home, ns: &str, vmi: &str, script: &str) -> Result<String> {
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, vmi]))?;
    console.shell(SOON)?;
    console.send(&format!("{script}; echo end-$((1+1))\n"))?;
    console.expect("end-2", SOON)
}
