//! What outlives a stop: disks in claims, UEFI variables, the state of a TPM.

use std::sync::Arc;

use anyhow::{Result, ensure};
use ferrovirt_e2e::{Home, eventually, run};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::manifest::{add_disk, add_script, spec, vm, vmi};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "claim-disk", claim_disk),
        trial(shared, "kept-state", kept_state),
    ]
}

pub fn claim(name: &str, spec: &Value) -> String {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        claim["spec"][key] = value.clone();
    }
    claim.to_string()
}

/// The tiny guest with `volume` as its second disk: says what it finds there, and writes `mark` there.
pub fn with_data(volume: Value, mark: &str) -> Value {
    let mut spec = spec();
    add_disk(&mut spec, json!({"name": "data", "disk": {"bus": "virtio"}}), volume);
    let script = format!(
        "echo \"found: $(head -c 6 /dev/vdb | tr -d '\\0') of $(cat /sys/block/vdb/size)\"\n\
         printf {mark} | dd of=/dev/vdb conv=fsync 2>/dev/null; echo done writing"
    );
    add_script(&mut spec, &script);
    spec
}

/// Until the VM can be started again: its VMI is gone, and its controller has seen that.
pub async fn stop(home: &Home, ns: &str, vm: &str) -> Result<()> {
    run(&mut home.virtctl(&["stop", "-n", ns, vm]))?;
    home.wait_gone("VirtualMachineInstance", ns, vm, BOOT).await?;
    home.wait_status(ns, vm, "Stopped", SOON).await.map(drop)
}

pub async fn start(home: &Home, ns: &str, vm: &str, until: &str) -> Result<String> {
    run(&mut home.virtctl(&["start", "-n", ns, vm]))?;
    home.wait_serial(ns, vm, until, BOOT).await
}

/// Shows `spec.volumes[].persistentVolumeClaim.claimName`, `spec.volumes[].ephemeral.persistentVolumeClaim.claimName`.
async fn claim_disk(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let volume = json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}});
    home.apply(ns, &vm("a", "Manual", with_data(volume, "first1")))?;
    run(&mut home.virtctl(&["start", "-n", ns, "a"]))?;
    home.wait_status(ns, "a", "ErrorPvcNotFound", SOON).await?;
    home.apply(ns, &claim("data", &json!({})))?;
    let log = home.wait_serial(ns, "a", "done writing", BOOT).await?;
    // 16 MiB in sectors, and nothing in them.
    ensure!(log.contains("found:  of 32768"), "{log}");
    let guest = home.wait_phase(ns, "a", "Running", SOON).await?;
    let status = guest["status"]["volumeStatus"].as_array().cloned().unwrap_or_default();
    let data = status
        .iter()
        .find(|volume| volume["name"] == "data")
        .cloned()
        .unwrap_or_default();
    ensure!(
        data["persistentVolumeClaimInfo"]["capacity"]["storage"] == "16Mi",
        "{status:?}"
    );

    // In use: it stays until the pod is gone.
    stop(home, ns, "a").await?;
    let volume = json!({"name": "data", "ephemeral": {"persistentVolumeClaim": {"claimName": "data"}}});
    home.apply(ns, &vmi("b", with_data(volume, "second")))?;
    let log = home.wait_serial(ns, "b", "done writing", BOOT).await?;
    ensure!(log.contains("found: first1 of 32768"), "{log}");
    run(&mut home.kubectl(&["delete", "vmi", "b", "-n", ns]))?;
    let log = start(home, ns, "a", "done writing").await?;
    ensure!(log.contains("found: first1 of 32768"), "{log}");

    run(&mut home.kubectl(&["delete", "pvc", "data", "-n", ns, "--wait=false"]))?;
    let kept = home.get("PersistentVolumeClaim", ns, "data").await?;
    let kept = kept.unwrap_or_default();
    ensure!(kept["metadata"]["deletionTimestamp"].is_string(), "{kept}");
    let directory = home.volume(ns, "data").await?;
    ensure!(
        directory.join("disk.img").exists(),
        "no disk in {}",
        directory.display()
    );
    stop(home, ns, "a").await?;
    home.wait_gone("PersistentVolumeClaim", ns, "data", SOON).await?;
    eventually("the data is removed with the claim", SOON, || async {
        let left = directory.exists();
        (!left).then_some(()).ok_or_else(|| directory.display().to_string())
    })
    .await
}

/// Reads and writes a UEFI variable, and an index of the TPM's memory by raw commands (TPM 2.0 Part 3: `NV_Read`,
/// `NV_DefineSpace`, `NV_Write`, each with the empty password of the owner).
const STATE: &str = r#"
modprobe efivarfs
mount -t efivarfs none /sys/firmware/efi/efivars
v=/sys/firmware/efi/efivars/Kept-2f1d3c4b-5a69-4b0a-9a0c-6b9c2f3e0b53
[ -e $v ] && echo "EFI: $(tail -c 8 $v)" || echo "EFI: new"
printf '\x07\x00\x00\x00efi-kept' >/tmp/v
[ -e $v ] || cat /tmp/v >$v
t() { exec 3<>/dev/tpm0; printf "$1" >/tmp/c; cat /tmp/c >&3; dd bs=4096 count=1 <&3 >/tmp/r 2>/dev/null; exec 3>&-; }
o='\x40\x00\x00\x01' i='\x01\x50\x00\x01'
p='\x00\x00\x00\x09\x40\x00\x00\x09\x00\x00\x00\x00\x00'
read='\x80\x02\x00\x00\x00\x23\x00\x00\x01\x4e'$o$i$p'\x00\x08\x00\x00'
t "$read"
grep -q tpm-kept /tmp/r && echo "TPM: kept" || echo "TPM: new"
t '\x80\x02\x00\x00\x00\x2d\x00\x00\x01\x2a'$o$p'\x00\x00\x00\x0e'$i'\x00\x0b\x02\x06\x00\x06\x00\x00\x00\x08'
t '\x80\x02\x00\x00\x00\x2b\x00\x00\x01\x37'$o$i$p'\x00\x08tpm-kept\x00\x00'
t "$read"
grep -q efi-kept $v && grep -q tpm-kept /tmp/r && echo state is stored || { od -An -tx1 /tmp/r; echo state is not stored; }
"#;

/// Shows `spec.domain.devices.tpm.persistent`, `spec.domain.firmware.bootloader.efi.persistent`.
async fn kept_state(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["domain"]["firmware"] = json!({"bootloader": {"efi": {"secureBoot": false, "persistent": true}}});
    spec["domain"]["devices"]["tpm"] = json!({"persistent": true});
    spec["domain"]["memory"]["guest"] = json!("256Mi");
    add_script(&mut spec, STATE);
    home.apply(ns, &vm("a", "Manual", spec))?;
    let log = start(home, ns, "a", "state is").await?;
    for part in ["EFI: new", "TPM: new", "state is stored"] {
        ensure!(log.contains(part), "no {part:?}: {log}");
    }
    stop(home, ns, "a").await?;
    let log = start(home, ns, "a", "TPM: kept").await?;
    for part in ["EFI: efi-kept", "TPM: kept"] {
        ensure!(log.contains(part), "no {part:?}: {log}");
    }
    let selector = "persistent-state-for=a";
    let names = run(&mut home.kubectl(&["get", "pvc", "-n", ns, "-l", selector, "-o", "name"]))?;
    ensure!(names.lines().count() == 1, "{names}");
    // The state is the VM's, and goes with it.
    run(&mut home.kubectl(&["delete", "vm", "a", "-n", ns]))?;
    let name = names.trim().rsplit('/').next().unwrap_or_default();
    home.wait_gone("PersistentVolumeClaim", ns, name, SOON).await
}
