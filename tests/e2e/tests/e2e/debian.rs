//! A full Debian guest: real cloud-init with data from Secrets, ssh, the guest agent and the probes that ask it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Home, condition, eventually, fails, run};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::{Shared, trial};

/// cloud-init alone takes about a minute under emulation on a machine that does nothing else.
const LONG: Duration = Duration::from_secs(600);

/// Ready is what the guest says; alive is what its agent says, who has time to come.
const PROBES: &str = "    spec:
      readinessProbe:
        exec:
          command: [grep, '^12', /etc/debian_version]
        periodSeconds: 2
        timeoutSeconds: 20
        failureThreshold: 1
      livenessProbe:
        guestAgentPing: {}
        periodSeconds: 5
        timeoutSeconds: 20
        failureThreshold: 200
      domain:
";

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![trial(shared, "debian", debian)]
}

async fn debian(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let dir = tempfile::tempdir()?;
    let key = dir.path().join("key");
    run(std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key))?;
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    let manifest = std::fs::read_to_string("../../examples/vm-debian.yaml")?
        .replace("demo/debian:12", "test/debian:12")
        .replace("ssh-ed25519 AAAA-put-your-key-here alice", public.trim())
        .replace("    spec:\n      domain:\n", PROBES);
    ensure!(
        manifest.contains(public.trim()) && manifest.contains(PROBES),
        "examples/vm-debian.yaml has no place for a key or probes"
    );
    home.apply(ns, &manifest)?;

    let kind = "VirtualMachineInstance";
    let agent = |o: &Value| condition(o, "AgentConnected")["status"] == "True";
    home.wait(kind, ns, "debian", LONG, "the guest agent is connected", agent)
        .await?;
    let vmi = home
        .wait(kind, ns, "debian", LONG, "the agent's facts are there", |o| {
            o["status"]["guestOSInfo"]["id"] == "debian" && o["status"]["interfaces"][0]["interfaceName"].is_string()
        })
        .await?;
    let source = vmi["status"]["interfaces"][0]["infoSource"]
        .as_str()
        .context("an info source")?;
    ensure!(source.contains("guest-agent"), "{source}");
    let info: Value = serde_json::from_str(&run(&mut home.virtctl(&["guestosinfo", "-n", ns, "debian"]))?)?;
    ensure!(info["os"]["id"] == json!("debian"), "{info}");
    probes(home, ns).await?;

    let key = key.to_string_lossy().into_owned();
    let known = dir.path().join("known").to_string_lossy().into_owned();
    // sshd may be up before runcmd, cloud-init's last step, has run.
    eventually("ssh logs in and runcmd has run", LONG, || async {
        let answer = run(&mut home.virtctl(&[
            "ssh",
            "-n",
            ns,
            "--username=alice",
            "-i",
            &key,
            "--known-hosts",
            &known,
            "-t",
            "-o StrictHostKeyChecking=no",
            "-t",
            "-o BatchMode=yes",
            "-c",
            "echo $(whoami) $(cat /var/lib/ferrovirt-runcmd) $(ip -4 -o addr show dev eth0)",
            "vmi/debian",
        ]))
        .map_err(|e| format!("{e:#}"))?;
        if answer.contains("alice ran") && answer.contains("10.0.2.2") {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await
}

/// The guest's own command makes it ready; before its agent came, the pod's events say what was missing.
async fn probes(home: &Home, ns: &str) -> Result<()> {
    let ready = |o: &Value| condition(o, "Ready")["status"] == "True";
    home.wait(
        "VirtualMachineInstance",
        ns,
        "debian",
        LONG,
        "the guest is ready",
        ready,
    )
    .await?;
    let events = run(&mut home.kubectl(&["get", "events", "-n", ns]))?;
    let expected = "Readiness probe failed: virt-probe: ";
    ensure!(events.contains(expected), "{events}");

    let pod = run(&mut home.kubectl(&["get", "pod", "-n", ns, "-l", "vm.kubevirt.io/name=debian", "-o", "name"]))?;
    let domain = format!("{ns}_debian");
    let ask = |words: &[&str]| {
        let probe = [
            "exec",
            "-n",
            ns,
            pod.trim(),
            "-c",
            "compute",
            "--",
            "/usr/bin/virt-probe",
        ];
        let common = ["--domainName", &domain, "--timeoutSeconds", "20"];
        home.kubectl(&[&probe[..], &common[..], words].concat())
    };
    run(&mut ask(&["--guestAgentPing"]))?;
    let said = run(&mut ask(&["--command", "uname", "--", "-s"]))?;
    ensure!(said == "Linux\n", "{said}");
    let (code, said) = fails(&mut ask(&["--command", "sh", "--", "-c", "echo no >&2; exit 7"]))?;
    ensure!(
        code == 7 && said.contains("no\nvirt-probe:") && said.contains("sh ended with 7 in the guest"),
        "{code}: {said}"
    );
    let (_, said) = fails(&mut ask(&["--command", "/no/such"]))?;
    ensure!(said.contains("/no/such"), "{said}");
    Ok(())
}
