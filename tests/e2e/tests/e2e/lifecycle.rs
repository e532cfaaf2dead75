//! The life of a VM as a user drives it.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{Console, eventually, fails, run};
use libtest_mimic::Trial;
use serde_json::json;

use super::manifest::{add_script, spec, vm, vmi};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "demo-vm-answers", demo_vm_answers),
        trial(shared, "start-stop-restart", start_stop_restart),
        trial(shared, "pause", pause),
        trial(shared, "graceful-shutdown", graceful_shutdown),
        trial(shared, "grace-period-ends", grace_period_ends),
        trial(shared, "guest-powers-off", guest_powers_off),
        trial(shared, "kubectl-verbs", kubectl_verbs),
        trial(shared, "reset-and-screen", reset_and_screen),
    ]
}

async fn demo_vm_answers(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let manifest = std::fs::read_to_string("../../examples/vm-demo.yaml")?.replace("demo/tiny:1", "test/tiny:1");
    home.apply(ns, &manifest)?;
    home.wait_status(ns, "demo", "Running", BOOT).await?;
    home.wait_serial(ns, "demo", "demo: user-data ran", BOOT).await?;
    let table = run(&mut home.kubectl(&["get", "vm,vmi", "-n", ns]))?;
    ensure!(table.contains("Running") && table.contains("10."), "{table}");

    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "demo"]))?;
    console.shell(SOON)?;
    console.send("echo $((6*7))-from-console\n")?;
    console.expect("42-from-console", SOON)?;
    ensure!(console.leave()? == 0, "virtctl console ended with an error");

    let answer = super::network::http(home, ns, "vm/demo", "hello.txt").await?;
    ensure!(answer.contains("cloud-init says hello from demo"), "{answer}");
    Ok(())
}

async fn start_stop_restart(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Halted", spec()))?;
    home.wait_status(ns, "a", "Stopped", SOON).await?;
    let said = run(&mut home.virtctl(&["start", "-n", ns, "a"]))?;
    ensure!(said.trim() == "VM a was scheduled to start", "{said}");
    home.wait_status(ns, "a", "Running", BOOT).await?;
    let (code, said) = fails(&mut home.virtctl(&["start", "-n", ns, "a"]))?;
    ensure!(code == 1 && said.contains("already"), "{code}: {said}");

    let first = home
        .get("VirtualMachineInstance", ns, "a")
        .await?
        .context("the VMI exists")?["metadata"]["uid"]
        .clone();
    run(&mut home.virtctl(&["restart", "-n", ns, "a"]))?;
    home.wait("VirtualMachineInstance", ns, "a", BOOT, "another one runs", |o| {
        o["metadata"]["uid"] != first && o["status"]["phase"] == "Running"
    })
    .await?;

    let said = run(&mut home.virtctl(&["stop", "-n", ns, "a"]))?;
    ensure!(said.trim() == "VM a was scheduled to stop", "{said}");
    home.wait_gone("VirtualMachineInstance", ns, "a", BOOT).await?;
    home.wait_status(ns, "a", "Stopped", SOON).await?;
    let (code, said) = fails(&mut home.virtctl(&["restart", "-n", ns, "a"]))?;
    ensure!(code == 1 && !said.is_empty(), "{code}: {said}");
    Ok(())
}

async fn pause(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Always", spec()))?;
    home.wait_status(ns, "a", "Running", BOOT).await?;
    run(&mut home.virtctl(&["pause", "vm", "-n", ns, "a"]))?;
    home.wait_status(ns, "a", "Paused", SOON).await?;
    let (_, said) = fails(&mut home.virtctl(&["pause", "vm", "-n", ns, "a"]))?;
    ensure!(said.contains("paused"), "{said}");
    run(&mut home.virtctl(&["unpause", "vm", "-n", ns, "a"]))?;
    home.wait_status(ns, "a", "Running", SOON).await?;
    Ok(())
}

async fn graceful_shutdown(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["terminationGracePeriodSeconds"] = json!(60);
    home.apply(ns, &vm("a", "Always", spec))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    console.expect("exit console", SOON)?;
    run(&mut home.virtctl(&["stop", "-n", ns, "a"]))?;
    home.wait_status(ns, "a", "Stopping", SOON).await?;
    // The guest itself says that the power button was pressed: it was asked, not killed.
    console.expect("powering off", SOON)?;
    home.wait_gone("VirtualMachineInstance", ns, "a", SOON).await
}

async fn grace_period_ends(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["terminationGracePeriodSeconds"] = json!(2);
    // A guest that does not listen to its power button.
    add_script(&mut spec, "killall dd; echo deaf now");
    home.apply(ns, &vmi("a", spec))?;
    home.wait_serial(ns, "a", "deaf now", BOOT).await?;
    run(&mut home.kubectl(&["delete", "vmi", "a", "-n", ns, "--wait=false"]))?;
    home.wait_gone("VirtualMachineInstance", ns, "a", SOON).await
}

async fn guest_powers_off(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    add_script(&mut spec, "poweroff -f");
    home.apply(ns, &vm("once", "Once", spec.clone()))?;
    home.apply(ns, &vm("rerun", "RerunOnFailure", spec))?;
    home.wait_phase(ns, "once", "Succeeded", BOOT).await?;
    home.wait_status(ns, "once", "Stopped", SOON).await?;
    // RerunOnFailure deletes an instance that succeeded and stays off.
    home.wait("VirtualMachine", ns, "rerun", BOOT, "stopped for good", |o| {
        o["status"]["printableStatus"] == "Stopped" && o["status"]["runStrategy"] == "RerunOnFailure"
    })
    .await?;
    home.wait_gone("VirtualMachineInstance", ns, "rerun", SOON).await
}

/// A guest whose clock begins again, and what its screen shows.
async fn reset_and_screen(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Always", spec()))?;
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("screen.png");
    let path = file.to_string_lossy();
    run(&mut home.virtctl(&["vnc", "screenshot", "-n", ns, "a", "--move-cursor", "--file", &path]))?;
    let picture = std::fs::read(&file)?;
    let side = |at: usize| -> Result<u32> {
        let bytes = picture.get(at..at + 4).context("a PNG has a header")?;
        Ok(u32::from_be_bytes(bytes.try_into()?))
    };
    let (width, height) = (side(16)?, side(20)?);
    ensure!(
        picture.starts_with(b"\x89PNG\r\n\x1a\n") && width >= 640 && height >= 350,
        "{width}x{height}"
    );

    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    console.expect("exit console", SOON)?;
    let said = run(&mut home.virtctl(&["reset", "-n", ns, "a"]))?;
    ensure!(said.trim() == "VMI a was scheduled to reset", "{said}");
    console.expect("is ready at", BOOT)?;
    // Nobody listens to the agent in this guest, so the power button it is; libvirt starts it again.
    let said = run(&mut home.virtctl(&["soft-reboot", "-n", ns, "a"]))?;
    ensure!(said.trim() == "VMI a was scheduled to soft-reboot", "{said}");
    console.expect("powering off", SOON)?;
    console.expect("is ready at", BOOT)?;
    let vmi = home.get("VirtualMachineInstance", ns, "a").await?;
    ensure!(
        vmi.context("the VMI exists")?["status"]["phase"] == "Running",
        "it ran all the time"
    );

    let (code, said) = fails(&mut home.virtctl(&["guestosinfo", "-n", ns, "a"]))?;
    ensure!(
        code == 1 && said.contains("does not have guest agent connected"),
        "{code}: {said}"
    );
    let expanded = run(&mut home.virtctl(&["expand", "-n", ns, "--vm", "a", "-o", "json"]))?;
    let expanded: serde_json::Value = serde_json::from_str(&expanded)?;
    ensure!(
        expanded["spec"]["template"]["spec"]["volumes"][0]["name"] == "root",
        "{expanded}"
    );
    Ok(())
}

async fn kubectl_verbs(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vm("a", "Always", spec()))?;
    run(&mut home.kubectl(&["wait", "vm/a", "-n", ns, "--for=condition=Ready", "--timeout=120s"]))?;
    // Events are written a moment later.
    for (kind, words) in [
        ("vm", &["SuccessfulCreate", "Printable Status"][..]),
        ("vmi", &["Started"]),
    ] {
        eventually("describe tells what happened", SOON, || async {
            let told = run(&mut home.kubectl(&["describe", kind, "a", "-n", ns])).map_err(|e| e.to_string())?;
            if words.iter().all(|word| told.contains(word)) {
                Ok(())
            } else {
                Err(told)
            }
        })
        .await?;
    }
    let explained = run(&mut home.kubectl(&["explain", "vm.spec.template.spec.domain.cpu.cores"]))?;
    ensure!(explained.contains("integer"), "{explained}");
    let events = run(&mut home.kubectl(&["events", "-n", ns]))?;
    ensure!(events.contains("VirtualMachineInstance/a"), "{events}");
    let edited = run(home
        .kubectl(&["edit", "vm", "a", "-n", ns])
        .env("EDITOR", "sed -i s/runStrategy:.Always/runStrategy:\\ Halted/"))?;
    ensure!(edited.contains("edited"), "{edited}");
    home.wait_status(ns, "a", "Stopped", BOOT).await?;
    let all = run(&mut home.kubectl(&["get", "all", "-n", ns]))?;
    ensure!(all.contains("virtualmachine.kubevirt.io/a"), "{all}");
    run(&mut home.kubectl(&["delete", "vm", "a", "-n", ns]))?;
    eventually("the pod is gone", SOON, || async {
        let pods = run(&mut home.kubectl(&["get", "pods", "-n", ns])).map_err(|e| e.to_string())?;
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    })
    .await?;
    let (_, said) = fails(&mut home.kubectl(&["get", "vm", "a", "-n", ns]))?;
    ensure!(said.contains("virtualmachines.kubevirt.io \"a\" not found"), "{said}");
    Ok(())
}
