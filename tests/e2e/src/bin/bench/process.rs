//! What /proc says about processes.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};

/// Memory in MiB.
pub struct Memory {
    pub pss: f64,
    pub rss: f64,
}

/// CPU time used so far.
pub fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields
        .iter()
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / 100.0)
}

/// Resident set.
pub fn rss_mib(pid: i32) -> Result<f64> {
    memory(pid).map(|m| m.rss)
}

fn memory(pid: i32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    let field = |name: &str| -> f64 {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace()
            .nth(1)
            .and_then(|v| v.parse::<f64>().ok())
            .unwrap_or_default()
            / 1024.0
    };
    Ok(Memory {
        pss: field("Pss:"),
        rss: field("Rss:"),
    })
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
}

fn command_line(pid: i32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

/// The QEMU of a domain.
pub fn qemu_of(domain: &str) -> Option<i32> {
    let guest = format!("guest={domain},");
    pids().find(|pid| {
        let line = command_line(*pid);
        line.contains("qemu-system") && line.contains(&guest)
    })
}

/// The processes of a component of a cluster, wherever its nodes' namespaces are on this machine.
pub fn of_component(component: &str) -> Vec<i32> {
    pids()
        .filter(|pid| {
            let line = command_line(*pid);
            let mut words = line.split_whitespace();
            words.next().is_some_and(|program| program.ends_with("/ferrovirt")) && words.next() == Some(component)
        })
        .collect()
}

/// All processes that share QEMU's network namespace, which is the pod's.
fn pod_of(domain: &str) -> Result<Vec<i32>> {
    let qemu = qemu_of(domain).with_context(|| format!("domain {domain} has no QEMU"))?;
    let namespace = |pid: i32| fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|m| m.ino());
    let pod = namespace(qemu);
    Ok(pids().filter(|pid| *pid != qemu && namespace(*pid) == pod).collect())
}

/// Memory of everything in a domain's pod but QEMU.
pub fn beside_qemu(domain: &str) -> Result<Memory> {
    let mut sum = Memory { pss: 0.0, rss: 0.0 };
    for pid in pod_of(domain)? {
        // A process may end while it is looked at.
        if let Ok(one) = memory(pid) {
            sum.pss += one.pss;
            sum.rss += one.rss;
        }
    }
    Ok(sum)
}

/// Memory (PSS, MiB) of a domain's QEMU but for its guest's memory, which is the mapping of exactly that size.
pub fn qemu_itself(domain: &str, guest_mib: u64) -> Result<f64> {
    let pid = qemu_of(domain).with_context(|| format!("domain {domain} has no QEMU"))?;
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).with_context(|| format!("process {pid}"))?;
    let (mut guest, mut sum, mut guests) = (false, 0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next().and_then(|v| v.parse::<u64>().ok()));
        match (name, value) {
            (Some("Size:"), Some(kib)) => {
                guest = kib == guest_mib * 1024;
                guests += u32::from(guest);
            }
            (Some("Pss:"), Some(kib)) if !guest => sum += kib,
            _ => {}
        }
    }
    anyhow::ensure!(
        guests == 1,
        "QEMU {pid} has {guests} mappings of {guest_mib} MiB, not one"
    );
    Ok(sum as f64 / 1024.0)
}

/// One line for each process beside QEMU.
pub fn list_beside(domain: &str) -> Result<Vec<String>> {
    Ok(pod_of(domain)?
        .into_iter()
        .filter_map(|pid| {
            let one = memory(pid).ok()?;
            let line: String = command_line(pid).chars().take(60).collect();
            Some(format!("PSS {:5.1}  RSS {:5.1}  {line}", one.pss, one.rss))
        })
        .collect())
}
