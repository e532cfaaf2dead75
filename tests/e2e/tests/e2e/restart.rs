//! Killing things: guests go on, or fail with a reason and are started anew.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferrovirt_e2e::{Console, Home, Options, eventually, run};
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::manifest::{spec, vm};
use super::processes::{self, qemu};
use super::{BOOT, SOON};

/// Each gets a home of its own.
pub fn trials(tiny: &str) -> Vec<Trial> {
    let trial = |name: &'static str, test: fn(&mut Home, &tokio::runtime::Runtime) -> Result<()>| {
        let tiny = tiny.to_owned();
        Trial::test(name, move || {
            let work = || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()?;
                let mut home = runtime.block_on(Home::start(Options::new(16445)?))?;
                home.import(&tiny, "test/tiny:1")?;
                home.apply("default", &vm("a", "Always", spec()))?;
                runtime.block_on(home.wait_serial("default", "a", "is ready at", BOOT))?;
                test(&mut home, &runtime).with_context(|| home.log())
            };
            work().map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    vec![
        trial("sigkill-of-up", sigkill_of_up),
        trial("sigkill-of-libvirtd", sigkill_of_libvirtd),
        trial("sigkill-of-launcher", sigkill_of_launcher),
        trial("power-loss", power_loss),
        trial("off-while-away", off_while_away),
    ]
}

/// Processes of the home's VM whose command line contains `what`: all share QEMU's network namespace.
fn pids(what: &str) -> Result<Vec<i32>> {
    let net = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let qemu = qemu("default", "a")?;
    let all = processes::all()?.into_iter();
    let ours = all.filter(|(pid, words)| net(*pid) == net(qemu) && words.join(" ").contains(what));
    Ok(ours.map(|(pid, _)| pid).collect())
}

fn one(what: &str) -> Result<i32> {
    match pids(what)?.as_slice() {
        [pid] => Ok(*pid),
        other => bail!("{} processes of the VM look like {what}: {other:?}", other.len()),
    }
}

fn sigkill(pid: i32) -> Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// The guest's own word that it has not been started anew: it still knows what was typed before.
fn mark(home: &Home) -> Result<()> {
    let mut console = Console::open(&mut home.virtctl(&["console", "a"]))?;
    console.shell(SOON)?;
    console.send("echo still > /run/mark; echo marked-$((1+1))\n")?;
    console.expect("marked-2", SOON).map(drop)
}

fn marked(home: &Home) -> Result<()> {
    let mut console = Console::open(&mut home.virtctl(&["console", "a"]))?;
    console.shell(SOON)?;
    console.send("echo the-$(cat /run/mark)-one\n")?;
    console.expect("the-still-one", SOON).map(drop)
}

fn uid(home: &Home, runtime: &tokio::runtime::Runtime) -> Result<Value> {
    let vmi = runtime
        .block_on(home.get("VirtualMachineInstance", "default", "a"))?
        .context("the VMI exists")?;
    Ok(vmi["metadata"]["uid"].clone())
}

fn sigkill_of_up(home: &mut Home, runtime: &tokio::runtime::Runtime) -> Result<()> {
    mark(home)?;
    let (before, qemu) = (uid(home, runtime)?, one("qemu-system")?);
    home.kill()?;
    ensure!(one("qemu-system")? == qemu, "QEMU did not survive");
    runtime.block_on(home.restart())?;
    runtime.block_on(home.wait_status("default", "a", "Running", SOON))?;
    ensure!(uid(home, runtime)? == before, "the VMI was replaced");
    ensure!(one("qemu-system")? == qemu, "QEMU was replaced");
    marked(home)?;
    // It is managed again: it can be paused and stopped.
    run(&mut home.virtctl(&["pause", "vm", "a"]))?;
    runtime.block_on(home.wait_status("default", "a", "Paused", SOON))?;
    run(&mut home.virtctl(&["unpause", "vm", "a"]))?;
    run(&mut home.virtctl(&["stop", "a"]))?;
    runtime.block_on(home.wait_gone("VirtualMachineInstance", "default", "a", SOON))
}

fn sigkill_of_libvirtd(home: &mut Home, runtime: &tokio::runtime::Runtime) -> Result<()> {
    mark(home)?;
    let (libvirtd, qemu) = (one("libvirtd")?, one("qemu-system")?);
    sigkill(libvirtd)?;
    runtime.block_on(eventually("another libvirtd runs", SOON, || async {
        match one("libvirtd") {
            Ok(pid) if pid != libvirtd => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }))?;
    runtime.block_on(eventually("the guest is managed again", SOON, || async {
        run(&mut home.virtctl(&["pause", "vm", "a"])).map_err(|e| format!("{e:#}"))
    }))?;
    runtime.block_on(home.wait_status("default", "a", "Paused", SOON))?;
    run(&mut home.virtctl(&["unpause", "vm", "a"]))?;
    runtime.block_on(home.wait_status("default", "a", "Running", SOON))?;
    ensure!(one("qemu-system")? == qemu, "QEMU was replaced");
    marked(home)
}

fn sigkill_of_launcher(home: &mut Home, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let before = uid(home, runtime)?;
    sigkill(one("virt-launcher")?)?;
    // Always: a new instance replaces the failed one.
    runtime.block_on(home.wait(
        "VirtualMachineInstance",
        "default",
        "a",
        BOOT,
        "another one runs",
        |o| o["metadata"]["uid"] != before && o["status"]["phase"] == "Running",
    ))?;
    runtime.block_on(eventually("an event tells of the end", SOON, || async {
        let events = run(&mut home.kubectl(&["get", "events"])).map_err(|e| e.to_string())?;
        if events.contains("Stopped") || events.contains("Failed") {
            Ok(())
        } else {
            Err(events)
        }
    }))
}

/// A guest that its user shuts down while nobody watches has not failed, and a VM that is run again on failure stays off.
fn off_while_away(home: &mut Home, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let strategy = r#"{"spec": {"runStrategy": "RerunOnFailure"}}"#;
    run(&mut home.kubectl(&["patch", "vm", "a", "--type=merge", "-p", strategy]))?;
    let mut console = Console::open(&mut home.virtctl(&["console", "a"]))?;
    console.shell(SOON)?;
    console.send("(sleep 3; poweroff -f) & echo going-$((1+1))\n")?;
    console.expect("going-2", SOON)?;
    drop(console);
    home.kill()?;
    runtime.block_on(eventually("the guest is off", BOOT, || async {
        match qemu("default", "a") {
            Err(_) => Ok(()),
            Ok(pid) => Err(format!("QEMU is still {pid}")),
        }
    }))?;
    runtime.block_on(home.restart())?;
    runtime.block_on(home.wait_status("default", "a", "Stopped", SOON))?;
    runtime.block_on(eventually("it is told", SOON, || async {
        let events = run(&mut home.kubectl(&["get", "events"])).map_err(|e| e.to_string())?;
        if events.contains("The VirtualMachineInstance was shut down.") {
            Ok(())
        } else {
            Err(events)
        }
    }))?;
    ensure!(qemu("default", "a").is_err(), "it runs again");
    Ok(())
}

fn power_loss(home: &mut Home, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let before = uid(home, runtime)?;
    let all: Vec<i32> = pids("")?;
    home.kill()?;
    for pid in all {
        // PID 1 of a namespace takes others along.
        let _ = sigkill(pid);
    }
    runtime.block_on(home.restart())?;
    runtime.block_on(home.wait(
        "VirtualMachineInstance",
        "default",
        "a",
        BOOT,
        "another one runs",
        |o| o["metadata"]["uid"] != before && o["status"]["phase"] == "Running",
    ))?;
    let limit = Duration::from_secs(40);
    runtime.block_on(eventually("one pod is left", limit, || async {
        let pods = run(&mut home.kubectl(&["get", "pods", "-o", "name"])).map_err(|e| e.to_string())?;
        if pods.lines().count() == 1 { Ok(()) } else { Err(pods) }
    }))
}
