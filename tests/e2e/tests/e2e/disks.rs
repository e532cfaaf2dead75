//! Firmware, cloud-init and files of the node as a guest sees them.

use std::sync::Arc;

use anyhow::{Result, ensure};
use ferrovirt_e2e::Console;
use libtest_mimic::Trial;
use serde_json::json;

use super::manifest::{add_disk, add_script, spec, vmi};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "uefi", uefi),
        trial(shared, "config-drive", config_drive),
        trial(shared, "host-disk", host_disk),
    ]
}

/// Shows `spec.domain.firmware.bootloader.efi.secureBoot`.
async fn uefi(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["domain"]["firmware"] = json!({"bootloader": {"efi": {"secureBoot": false}}});
    spec["domain"]["memory"]["guest"] = json!("256Mi");
    add_script(
        &mut spec,
        "[ -d /sys/firmware/efi ] && echo booted by UEFI || echo booted by BIOS",
    );
    home.apply(ns, &vmi("a", spec))?;
    let log = home.wait_serial(ns, "a", "booted by", BOOT).await?;
    ensure!(log.contains("booted by UEFI"), "{log}");
    Ok(())
}

/// Shows `spec.hostname`, `spec.volumes[].cloudInitConfigDrive.secretRef.name`.
async fn config_drive(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(
        ns,
        &json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "data"},
            "stringData": {"userdata": "#!/bin/sh\necho config drive of $(hostname)\n"}
        })
        .to_string(),
    )?;
    let mut spec = spec();
    spec["hostname"] = json!("named");
    add_disk(
        &mut spec,
        json!({"name": "seed", "disk": {"bus": "virtio"}}),
        json!({"name": "seed", "cloudInitConfigDrive": {"secretRef": {"name": "data"}}}),
    );
    home.apply(ns, &vmi("a", spec))?;
    // The label that the log is found by is the host name.
    home.wait_serial(ns, "named", "config drive of named", BOOT).await?;
    Ok(())
}

/// Shows `spec.volumes[].hostDisk.path`, `spec.volumes[].hostDisk.type`, `spec.volumes[].hostDisk.capacity`.
async fn host_disk(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let dir = tempfile::Builder::new().prefix("ferrovirt-hostdisk-").tempdir()?;
    // QEMU runs as another user than the one who owns the directory.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = dir.path().join("data.img");
    let mut with_disk = spec();
    add_disk(
        &mut with_disk,
        json!({"name": "data", "disk": {"bus": "virtio"}}),
        json!({"name": "data", "hostDisk": {"path": path, "type": "DiskOrCreate", "capacity": "16Mi"}}),
    );
    home.apply(ns, &vmi("a", with_disk.clone()))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    console.shell(SOON)?;
    console.send("echo kept-$((40+2)) | dd of=/dev/vdb conv=fsync 2>/dev/null; sync; echo written-$((1+1))\n")?;
    console.expect("written-2", SOON)?;
    drop(console);
    ferrovirt_e2e::run(&mut home.kubectl(&["delete", "vmi", "a", "-n", ns]))?;
    let bytes = std::fs::read(&path)?;
    ensure!(bytes.len() == 16 << 20, "the image has {} bytes", bytes.len());
    ensure!(bytes.starts_with(b"kept-42"), "the image starts with {:?}", &bytes[..8]);
    Ok(())
}
