//! `virtctl guestfs`: libguestfs' tools beside the claim of a VM that does not run.

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{fails, run};
use serde_json::json;

use crate::claims::{claim, start, stop, with_data};
use crate::{BOOT, Shared};

/// Makes a file system on the disk, and a file there.
const WORK: &str = "guestfish --add disk.img run : part-disk /dev/sda mbr : mkfs ext2 /dev/sda1 : mount /dev/sda1 / \
                    : write /note written-by-guestfish : cat /note\nexit\n";

pub async fn guestfs(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let tools = ["guestfs", "-n", ns, "data", "--kvm=false"];
    let (_, said) = fails(&mut home.virtctl(&tools))?;
    ensure!(said.contains("data"), "a claim that is not there: {said}");

    home.apply(ns, &claim("data", &json!({})))?;
    let volume = json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}});
    home.apply(ns, &crate::manifest::vm("a", "Manual", with_data(volume, "first1")))?;
    start(home, ns, "a", "done writing").await?;
    let (_, said) = fails(&mut home.virtctl(&tools))?;
    ensure!(said.contains("virt-launcher-a-"), "a claim in use: {said}");
    stop(home, ns, "a").await?;

    let mut shell = home.virtctl(&tools);
    let shell = shell
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let said = {
        let mut shell = shell.spawn().context("virtctl guestfs")?;
        let mut input = shell.stdin.take().context("its input")?;
        input.write_all(WORK.as_bytes())?;
        // Its end ends nothing: the shell is told to.
        let output = tokio::task::spawn_blocking(move || {
            let output = shell.wait_with_output();
            drop(input);
            output
        })
        .await??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", output.status);
        said
    };
    ensure!(said.matches("written-by-guestfish").count() >= 2, "{said}");
    let pods = run(&mut home.kubectl(&["get", "pods", "-n", ns, "-o", "name"]))?;
    ensure!(!pods.contains("libguestfs"), "the pod stays behind: {pods}; {said}");

    // The guest has the very disk.
    let volume = json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}});
    let mut spec = crate::manifest::spec();
    crate::manifest::add_disk(&mut spec, json!({"name": "data", "disk": {"bus": "virtio"}}), volume);
    crate::manifest::add_script(
        &mut spec,
        "if grep -q written-by-guestfish /dev/vdb; then echo note found; else echo note missing; fi",
    );
    home.apply(ns, &crate::manifest::vmi("b", spec))?;
    let log = home.wait_serial(ns, "b", "note ", BOOT).await?;
    ensure!(log.contains("note found"), "{log}");
    Ok(())
}
