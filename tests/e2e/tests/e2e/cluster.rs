//! What only a cluster has: Services, network policies, drains, roles, components that come and go.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use ferrovirt_e2e::{Console, Home, eventually, fails, run};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::manifest::{spec, vm, vmi};
use super::{BOOT, SOON, Shared, trial};

/// Tests that disturb nobody.
pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "service-and-policy", service_and_policy),
        trial(shared, "roles", roles),
        trial(shared, "eviction-refused", eviction_refused),
    ]
}

/// Tests that disturb everybody.
pub fn alone(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "drain-restarts", drain_restarts),
        trial(shared, "killed-components", killed_components),
        trial(shared, "certificates-rotate", certificates_rotate),
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
    home.apply(ns, &vm("a", "Always", spec()))?;
    let first = node_of(home, ns, "a").await?;
    let uncordon = Uncordon(home, first.clone());
    let selector = "--pod-selector=kubevirt.io=virt-launcher";
    run(&mut home.kubectl(&[
        "drain",
        &first,
        selector,
        "--delete-emptydir-data",
        "--force",
        "--timeout=120s",
    ]))?;
    let elsewhere = |o: &Value| o["status"]["phase"] == "Running" && o["status"]["nodeName"] != first.as_str();
    home.wait("VirtualMachineInstance", ns, "a", BOOT, "it runs elsewhere", elsewhere)
        .await?;
    drop(uncordon);
    Ok(())
}

/// The processes of this machine that run `component` of a cluster.
fn processes(component: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else {
            continue;
        };
        // Processes come and go while we look.
        let Ok(line) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let mut words = line.split(|b| *b == 0).map(String::from_utf8_lossy);
        let program = words.next().unwrap_or_default().into_owned();
        if Path::new(&program).file_name().is_some_and(|n| n == "ferrovirt")
            && words.next().as_deref() == Some(component)
        {
            found.push(pid);
        }
    }
    Ok(found)
}

async fn killed_components(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Always", spec()))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let uid = home.get("VirtualMachineInstance", ns, "a").await?.context("it runs")?["metadata"]["uid"].clone();
    // Only this very boot of the guest knows it.
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    console.expect("exit console", SOON)?;
    console.send("\necho remember-$((40+2)) > /tmp/boot; echo done-$((1+1))\n")?;
    console.expect("done-2", SOON)?;
    drop(console);
    for component in ["virt-operator", "virt-api", "virt-controller", "virt-handler"] {
        let pids = processes(component)?;
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
            let alive = !processes(component).map_err(|e| format!("{e:#}"))?.is_empty();
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
        remembered(home, ns).map_err(|e| format!("{e:#}"))
    })
    .await?;
    ensure!(answer.contains("remember-42"), "{answer}");
    // What was killed manages its guests again.
    run(&mut home.virtctl(&["pause", "vm", "-n", ns, "a"]))?;
    home.wait_status(ns, "a", "Paused", SOON).await?;
    run(&mut home.virtctl(&["stop", "-n", ns, "a"]))?;
    home.wait_gone("VirtualMachineInstance", ns, "a", BOOT).await
}

fn remembered(home: &Home, ns: &str) -> Result<String> {
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    console.expect("exit console", SOON)?;
    console.send("\ncat /tmp/boot; echo end-$((1+1))\n")?;
    console.expect("end-2", SOON)
}

async fn certificates_rotate(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Always", spec()))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    console.expect("exit console", SOON)?;
    let names = [
        "kubevirt-virt-api-certs",
        "kubevirt-virt-handler-server-certs",
        "kubevirt-virt-api-client-certs",
    ];
    let before = restarts(home)?;
    let mut old = Vec::new();
    for name in names {
        old.push(
            home.get("Secret", "kubevirt", name)
                .await?
                .context("the certificate is there")?,
        );
        run(&mut home.kubectl(&["delete", "secret", "-n", "kubevirt", name]))?;
    }
    for (name, old) in names.iter().zip(&old) {
        home.wait("Secret", "kubevirt", name, SOON, "there is a new certificate", |new| {
            new["data"]["tls.crt"].is_string() && new["data"]["tls.crt"] != old["data"]["tls.crt"]
        })
        .await?;
    }
    // The open console goes on, and a new one comes about with whichever certificates are in use by then.
    console.send("\necho still-$((6*7))\n")?;
    console.expect("still-42", SOON)?;
    ensure!(remembered(home, ns).is_ok(), "no new console after the rotation");
    let after = restarts(home)?;
    if before != after {
        bail!("a component was restarted: {before} became {after}");
    }
    Ok(())
}

fn restarts(home: &Home) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[*].restartCount} {end}";
    run(&mut home.kubectl(&["get", "pod", "-n", "kubevirt", "-o", path]))
}
