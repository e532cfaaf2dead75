//! Directories that a guest shares by virtiofs: files of the cluster's objects, claims and paths of the launcher.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{eventually, run};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::claims::stop;
use super::manifest::{add_script, spec, vm};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "shared-files", shared_files),
        trial(shared, "shared-claim", shared_claim),
    ]
}

/// Makes `volume` a directory of the guest.
fn share(spec: &mut Value, name: &str, mut volume: Value) -> Result<()> {
    volume["name"] = json!(name);
    let volumes = spec["volumes"].as_array_mut().context("volumes")?;
    volumes.push(volume);
    let devices = spec["domain"]["devices"].as_object_mut().context("devices")?;
    let filesystems = devices.entry("filesystems").or_insert_with(|| json!([]));
    let filesystem = json!({"name": name, "virtiofs": {}});
    filesystems.as_array_mut().context("filesystems")?.push(filesystem);
    Ok(())
}

/// A shell function by which the guest mounts directories.
const MOUNT: &str = r#"
modprobe virtiofs
share() { mkdir -p /m/$1; mount -t virtiofs $1 /m/$1 || echo "cannot mount $1"; }
"#;

/// The last line waits for what the test does next.
const FILES: &str = r#"
for name in conf keys account facts; do share $name; done
echo "motd: $(cat /m/conf/motd)"
echo "key: $(cat /m/keys/key)"
echo "account: $(cat /m/account/namespace) $(head -c 2 /m/account/token) $(head -n 1 /m/account/ca.crt)"
echo "facts: $(cat /m/facts/pod/name) $(grep '^app=' /m/facts/labels)"
echo "writing: $(touch /m/conf/mine 2>&1)"
echo files-$((1+1))
until grep -q changed /m/conf/motd; do usleep 200000; done
echo "motd: $(cat /m/conf/motd) while it ran"
"#;

/// Shows `spec.domain.devices.filesystems[].name`, `spec.domain.devices.filesystems[].virtiofs`.
async fn shared_files(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let motd = |text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": {"motd": text}})
            .to_string()
    };
    home.apply(ns, &motd("hello"))?;
    for object in [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "web"}, "stringData": {"key": "s3cret"}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}),
    ] {
        home.apply(ns, &object.to_string())?;
    }
    let mut spec = spec();
    share(&mut spec, "conf", json!({"configMap": {"name": "web"}}))?;
    share(&mut spec, "keys", json!({"secret": {"secretName": "web"}}))?;
    share(
        &mut spec,
        "account",
        json!({"serviceAccount": {"serviceAccountName": "robot"}}),
    )?;
    let facts = json!([
        {"path": "pod/name", "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
    ]);
    share(&mut spec, "facts", json!({"downwardAPI": {"fields": facts}}))?;
    add_script(&mut spec, &format!("{MOUNT}{FILES}"));
    home.apply(ns, &vm("a", "Always", spec))?;
    let log = home.wait_serial(ns, "a", "files-2", BOOT).await?;
    for line in [
        "motd: hello".to_owned(),
        "key: s3cret".to_owned(),
        // A token is a JWT, and those begin like this.
        format!("account: {ns} ey -----BEGIN CERTIFICATE-----"),
        "facts: virt-launcher-a-".to_owned(),
        "app=\"a\"".to_owned(),
        "Read-only file system".to_owned(),
    ] {
        ensure!(log.contains(&line), "{line:?} is not in {log}");
    }
    home.apply(ns, &motd("changed"))?;
    // A kubelet looks once a minute.
    home.wait_serial(ns, "a", "motd: changed while it ran", BOOT)
        .await
        .map(drop)
}

const CLAIM: &str = r#"
share data; share path
echo "found: $(cat /m/data/here 2>/dev/null)"
mkdir -p /m/data/from && echo "the guest" >/m/data/from/note && chown 1000:1000 /m/data/from/note && sync
echo "path: $(cat /m/path/namespace)"
echo claim-$((1+1))
"#;

/// Shows `spec.volumes[].containerPath.path`, `spec.volumes[].containerPath.readOnly`.
async fn shared_claim(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}
    });
    home.apply(ns, &claim.to_string())?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    home.apply(ns, &account.to_string())?;
    let mut spec = spec();
    share(
        &mut spec,
        "data",
        json!({"persistentVolumeClaim": {"claimName": "data"}}),
    )?;
    share(
        &mut spec,
        "account",
        json!({"serviceAccount": {"serviceAccountName": "robot"}}),
    )?;
    let path = json!({"path": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true});
    share(&mut spec, "path", json!({"containerPath": path}))?;
    add_script(&mut spec, &format!("{MOUNT}{CLAIM}"));
    home.apply(ns, &vm("a", "Manual", spec))?;
    run(&mut home.virtctl(&["start", "-n", ns, "a"]))?;
    let log = home.wait_serial(ns, "a", "claim-2", BOOT).await?;
    ensure!(log.contains(&format!("path: {ns}")), "{log}");

    let directory = home.volume(ns, "data").await?;
    let note = directory.join("from/note");
    let said = std::fs::read_to_string(&note).with_context(|| format!("{} in {log}", note.display()))?;
    ensure!(said == "the guest\n", "{said:?}");

    stop(home, ns, "a").await?;
    std::fs::write(directory.join("here"), "the host\n")?;
    run(&mut home.virtctl(&["start", "-n", ns, "a"]))?;
    home.wait_serial(ns, "a", "found: the host", BOOT).await?;
    // The containers that serve are gone with the guest.
    run(&mut home.kubectl(&["delete", "vm", "a", "-n", ns]))?;
    eventually("the pod is gone", SOON, || async {
        let pods = run(&mut home.kubectl(&["get", "pods", "-n", ns, "-o", "name"])).map_err(|e| format!("{e:#}"))?;
        pods.is_empty().then_some(()).ok_or(pods)
    })
    .await
}
