//! What guests get without disks of their own: files of the cluster's objects, and a kernel.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

use super::manifest::{add_disk, add_script, spec, vmi};
use super::{BOOT, Shared, archive, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "files-of-objects", files_of_objects),
        trial(shared, "kernel-boot", kernel_boot),
    ]
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

/// Shows `spec.volumes[].configMap.name`, `spec.volumes[].configMap.volumeLabel`, `spec.volumes[].secret.secretName`,
/// `spec.volumes[].serviceAccount.serviceAccountName`, `spec.volumes[].downwardAPI.fields`,
/// `spec.volumes[].sysprep.secret.name`.
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
    let labelled = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "a", "labels": {"app": "web"}}, "spec": spec,
    });
    home.apply(ns, &labelled.to_string())?;
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

/// No disk has anything to boot from.
///
/// Shows `spec.domain.firmware.kernelBoot.container.image`, `spec.domain.firmware.kernelBoot.container.kernelPath`,
/// `spec.domain.firmware.kernelBoot.container.initrdPath`, `spec.domain.firmware.kernelBoot.kernelArgs`.
async fn kernel_boot(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.import(&archive("FERROVIRT_TINY", "tiny")?, "test/kernel:1")?;
    let mut spec = spec();
    spec["domain"]["devices"]["disks"] = json!([]);
    spec["volumes"] = json!([]);
    spec["domain"]["firmware"] = json!({"kernelBoot": {
        "container": {"image": "test/kernel:1", "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"},
        "kernelArgs": "console=ttyS0,115200 loglevel=3 panic=1 random.trust_cpu=on said=here",
    }});
    add_script(&mut spec, "echo kernel arguments: $(cat /proc/cmdline)");
    home.apply(ns, &vmi("a", spec))?;
    let log = home.wait_serial(ns, "a", "kernel arguments:", BOOT).await?;
    ensure!(log.contains("said=here"), "{log}");
    home.wait_serial(ns, "a", "is ready at", BOOT).await.map(drop)
}
