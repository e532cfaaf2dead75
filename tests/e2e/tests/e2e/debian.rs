//! A full Debian guest: real cloud-init with data from Secrets, ssh, the guest agent and the probes that ask it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Home, condition, eventually, fails, run};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::{Shared, trial};

/// The agent comes after 40 s under emulation on a machine that does nothing else; beside other guests, after minutes.
const LONG: Duration = Duration::from_secs(900);

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
      accessCredentials:
      - sshPublicKey:
          source: {secret: {secretName: keys}}
          propagationMethod: {qemuGuestAgent: {users: [alice, root]}}
      - userPassword:
          source: {secret: {secretName: passwords}}
          propagationMethod: {qemuGuestAgent: {}}
      domain:
";

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![trial(shared, "debian", debian)]
}

async fn debian(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let dir = tempfile::tempdir()?;
    let (key, public) = new_key(dir.path(), "key")?;
    home.apply(ns, &keys(&public))?;
    home.apply(ns, &secret("passwords", "alice", "first"))?;
    let manifest = std::fs::read_to_string("../../examples/vm-debian.yaml")?
        .replace("demo/debian:12", "test/debian:12")
        .replace("ssh-ed25519 AAAA-put-your-key-here alice", &public)
        .replace("    spec:\n      domain:\n", PROBES);
    ensure!(
        manifest.contains(&public) && manifest.contains(PROBES),
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
    // An agent does one thing at a time: while it gives keys and passwords, it answers nobody else.
    let synced = |o: &Value| condition(o, "AccessCredentialsSynchronized")["status"] == "True";
    home.wait(kind, ns, "debian", LONG, "the agent has given the keys", synced)
        .await?;
    probes(home, ns).await?;
    freeze(home, ns).await?;

    // sshd may be up before runcmd, cloud-init's last step, has run.
    eventually("ssh logs in and runcmd has run", LONG, || async {
        let command = "echo $(whoami) $(cat /var/lib/ferrovirt-runcmd) $(ip -4 -o addr show dev eth0)";
        let answer = run(&mut ssh(home, ns, "alice", &key, command)).map_err(|e| format!("{e:#}"))?;
        if answer.contains("alice ran") && answer.contains("10.0.2.2") {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await?;
    let key = other_keys(home, ns, dir.path(), &key).await?;
    other_password(home, ns, &key).await
}

/// Makes a key and gives its file and its public half.
fn new_key(directory: &Path, name: &str) -> Result<(PathBuf, String)> {
    let key = directory.join(name);
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key))?;
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    Ok((key, public.trim().to_owned()))
}

/// The Secret with the users' keys.
fn keys(public: &str) -> String {
    secret("keys", "key", public)
}

fn secret(name: &str, key: &str, value: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value}}).to_string()
}

fn ssh(home: &Home, ns: &str, user: &str, key: &Path, command: &str) -> Command {
    let known = key.with_extension("known");
    home.virtctl(&[
        "ssh",
        "-n",
        ns,
        "--username",
        user,
        "-i",
        &key.to_string_lossy(),
        "--known-hosts",
        &known.to_string_lossy(),
        "-t",
        "-o StrictHostKeyChecking=no",
        "-t",
        "-o BatchMode=yes",
        "-c",
        command,
        "vmi/debian",
    ])
}

/// Shows `spec.accessCredentials[].sshPublicKey.source.secret.secretName`,
/// `spec.accessCredentials[].sshPublicKey.propagationMethod.qemuGuestAgent.users`.
///
/// A change of the Secret while the guest runs changes who may log in. Returns the new key.
async fn other_keys(home: &Home, ns: &str, directory: &Path, old: &Path) -> Result<PathBuf> {
    let (new, public) = new_key(directory, "new")?;
    home.apply(ns, &keys(&public))?;
    for user in ["alice", "root"] {
        eventually("the new key opens", LONG, || async {
            run(&mut ssh(home, ns, user, &new, "whoami")).map_err(|e| format!("{e:#}"))
        })
        .await?;
    }
    let (_, said) = fails(&mut ssh(home, ns, "alice", old, "whoami"))?;
    ensure!(said.contains("Permission denied"), "{said}");
    Ok(new)
}

/// Shows `spec.accessCredentials[].userPassword.source.secret.secretName`,
/// `spec.accessCredentials[].userPassword.propagationMethod.qemuGuestAgent`.
///
/// A change of the Secret while the guest runs changes the user's password.
async fn other_password(home: &Home, ns: &str, key: &Path) -> Result<()> {
    let is = async |password: &str| {
        let check =
            format!(r#"perl -e '$h = (getpwnam("alice"))[1]; exit(crypt("{password}", $h) ne $h)' && echo same"#);
        let what = format!("the password of alice is {password:?}");
        eventually(&what, LONG, || async {
            run(&mut ssh(home, ns, "root", key, &check)).map_err(|e| format!("{e:#}"))
        })
        .await
    };
    is("first").await?;
    home.apply(ns, &secret("passwords", "alice", "second"))?;
    is("second").await.map(drop)
}

/// File systems stand still by request, and thaw by request and after their time; users and file systems are told.
async fn freeze(home: &Home, ns: &str) -> Result<()> {
    let put = |sub: &str, body: &str| -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), body)?;
        let base = format!("/apis/subresources.kubevirt.io/v1/namespaces/{ns}/virtualmachineinstances/debian");
        let path = file.path().to_string_lossy();
        run(&mut home.kubectl(&["replace", "--raw", &format!("{base}/{sub}"), "-f", &path])).map(drop)
    };
    let state = async |frozen: bool, what: &str| {
        let reached = move |o: &Value| (o["status"]["fsFreezeStatus"] == "frozen") == frozen;
        home.wait("VirtualMachineInstance", ns, "debian", super::SOON, what, reached)
            .await
    };
    put("freeze", "{}")?;
    let frozen = state(true, "its file systems stand still").await?;
    ensure!(frozen["status"]["guestOSInfo"]["id"] == "debian", "{frozen}");
    put("unfreeze", "{}")?;
    state(false, "they were thawed").await?;
    put("freeze", r#"{"unfreezeTimeout": "3s"}"#)?;
    state(true, "they stand still for three seconds").await?;
    state(false, "they thawed by themselves").await?;
    // As a program for backups does it: with the commands that the pod's annotations name.
    for (moment, frozen) in [("pre", true), ("post", false)] {
        let said = backup_hook(home, ns, moment)?;
        state(frozen, &format!("the {moment} hook did it: {said}")).await?;
    }
    for (command, wanted) in [("userlist", "metadata"), ("fslist", "mountPoint")] {
        let list = run(&mut home.virtctl(&[command, "-n", ns, "debian"]))?;
        ensure!(list.contains(wanted), "{list}");
    }
    Ok(())
}

fn backup_hook(home: &Home, ns: &str, moment: &str) -> Result<String> {
    let selector = "vm.kubevirt.io/name=debian";
    let pods = run(&mut home.kubectl(&["get", "pod", "-n", ns, "-l", selector, "-o", "json"]))?;
    let pod = &serde_json::from_str::<Value>(&pods)?["items"][0]["metadata"];
    let named = |what: &str| {
        let key = format!("{moment}.hook.backup.velero.io/{what}");
        pod["annotations"][&key].as_str().context(key)
    };
    let command: Vec<String> = serde_json::from_str(named("command")?)?;
    let name = pod["name"].as_str().context("the pod's name")?;
    let mut words = vec!["exec", "-n", ns, name, "-c", named("container")?, "--"];
    words.extend(command.iter().map(String::as_str));
    run(&mut home.kubectl(&words))
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
    eventually("the agent answers a ping", LONG, || async {
        run(&mut ask(&["--guestAgentPing"])).map_err(|e| format!("{e:#}"))
    })
    .await?;
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
