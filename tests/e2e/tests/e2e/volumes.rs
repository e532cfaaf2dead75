//! Volumes without claims: what the guest finds on them.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

use super::manifest::{add_disk, add_script, spec};
use super::{BOOT, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![trial(shared, "files-of-objects", files_of_objects)]
}

/// Mounts the volumes in the order of the manifest, and prints what is on them.
const SCRIPT: &str = r#"
label() { dd if=/dev/$1 bs=1 skip=32808 count=32 2>/dev/null | sed 's/ *$//'; }
for d in vdb vdc vdd vde sr0; do mkdir -p /m/$d; mount -t iso9660 -o ro /dev/$d /m/$d; done
echo "motd: $(cat /m/vdb/motd) on $(label vdb)"
echo "key: $(cat /m/vdc/key) on $(label vdc)"
echo "account: $(cat /m/vdd/namespace) $(head -c 2 /m/vdd/token) $(head -n 1 /m/vdd/ca.crt)"
echo "facts: $(cat /m/vde/pod/name) $(grep '^app=' /m/vde/labels)"
echo "answers: $(cat /m/sr0/Autounattend.xml) on $(label sr0)"
echo volumes-$((1+1))
"#;

async fn files_of_objects(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    for object in [
        json!({"kind": "ConfigMap", "metadata": {"name": "web"}, "data": {"motd": "hello"}}),
        json!({"kind": "Secret", "metadata": {"name": "web"}, "stringData": {"key": "s3cret"}}),
        json!({"kind": "Secret", "metadata": {"name": "windows"}, "stringData": {"Autounattend.xml": "<unattend/>"}}),
        json!({"kind": "ServiceAccount", "metadata": {"name": "robot"}}),
    ] {
        let mut object = object;
        object["apiVersion"] = json!("v1");
        home.apply(ns, &object.to_string())?;
    }
    let mut spec = spec();
    let facts = json!([
        {"path": "pod/name", "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
    ]);
    for (name, source) in [
        ("conf", json!({"configMap": {"name": "web", "volumeLabel": "web conf"}})),
        ("keys", json!({"secret": {"secretName": "web"}})),
        ("account", json!({"serviceAccount": {"serviceAccountName": "robot"}})),
        ("facts", json!({"downwardAPI": {"fields": facts}})),
        ("answers", json!({"sysprep": {"secret": {"name": "windows"}}})),
    ] {
        let mut volume = source;
        volume["name"] = json!(name);
        let disk = if name == "answers" {
            json!({"name": name, "cdrom": {"bus": "sata"}})
        } else {
            json!({"name": name, "disk": {"bus": "virtio"}})
        };
        add_disk(&mut spec, disk, volume);
    }
    add_script(&mut spec, SCRIPT);
    let vmi = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "a", "labels": {"app": "web"}}, "spec": spec,
    });
    home.apply(ns, &vmi.to_string())?;
    let log = home.wait_serial(ns, "a", "volumes-2", BOOT).await?;
    for line in [
        "motd: hello on web conf".to_owned(),
        "key: s3cret on cfgdata".to_owned(),
        // A token is a JWT, and those begin like this.
        format!("account: {ns} ey -----BEGIN CERTIFICATE-----"),
        "facts: virt-launcher-a-".to_owned(),
        "app=\"web\"".to_owned(),
        "answers: <unattend/> on unattendCfg".to_owned(),
    ] {
        ensure!(log.contains(&line), "{line:?} is not in {log}");
    }
    Ok(())
}
