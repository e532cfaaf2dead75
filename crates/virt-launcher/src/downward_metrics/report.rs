//! What is told, as vhostmd's XML.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use quick_xml::escape::escape;

use crate::hypervisor::{Stats, Value};

/// Kernels count CPU time in these.
const TICKS_PER_SECOND: u64 = 100;
/// Of a page, on all but few arm64 kernels.
const PAGE_KIB: u64 = 4;

/// What the kernel says about the node; `None`: it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    sockets: Option<u64>,
    /// Spent on user and kernel code.
    cpu_ticks: Option<u64>,
    /// KiB, by the names in /proc/meminfo.
    memory: Option<Memory>,
    /// Swapped in and out.
    paged: Option<(u64, u64)>,
    time: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory {
    total: u64,
    free: u64,
    buffers: u64,
    cached: u64,
    swap_total: u64,
    swap_free: u64,
    swap_cached: u64,
}

/// The number after a name in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .map(|line| line.split([' ', ':', '\t']).filter(|part| !part.is_empty()));
    lines.find_map(|mut parts| (parts.next()? == name).then(|| parts.next()?.parse().ok()).flatten())
}

impl Host {
    /// From the kernel's own files: containers see those of their node.
    pub fn read(proc: &Path, sys: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(proc.join(name)).ok();
        let cpu = |text: String| {
            let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?.to_owned();
            let ticks = line.split_whitespace().take(3).map(|n| n.parse::<u64>().ok());
            ticks.sum::<Option<u64>>()
        };
        let memory = |text: String| {
            Some(Memory {
                total: field(&text, "MemTotal")?,
                free: field(&text, "MemFree")?,
                buffers: field(&text, "Buffers").unwrap_or_default(),
                cached: field(&text, "Cached").unwrap_or_default(),
                swap_total: field(&text, "SwapTotal").unwrap_or_default(),
                swap_free: field(&text, "SwapFree").unwrap_or_default(),
                swap_cached: field(&text, "SwapCached").unwrap_or_default(),
            })
        };
        Self {
            sockets: sockets(sys),
            cpu_ticks: read("stat").and_then(cpu),
            memory: read("meminfo").and_then(memory),
            paged: read("vmstat").and_then(|text| Some((field(&text, "pswpin")?, field(&text, "pswpout")?))),
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map(|since| since.as_secs())
                .unwrap_or_default(),
        }
    }
}

/// Packages of CPUs.
fn sockets(sys: &Path) -> Option<u64> {
    let mut packages = BTreeSet::new();
    for entry in fs::read_dir(sys.join("devices/system/cpu")).ok()?.flatten() {
        packages.extend(fs::read_to_string(entry.path().join("topology/physical_package_id")).ok());
    }
    (!packages.is_empty()).then_some(packages.len() as u64)
}

struct Report(String);

impl Report {
    fn metric(&mut self, context: &str, kind: &str, unit: &str, name: &str, value: &str) {
        let unit = if unit.is_empty() {
            String::new()
        } else {
            format!(" unit=\"{unit}\"")
        };
        let value = escape(value);
        _ = write!(
            self.0,
            "  <metric type=\"{kind}\" context=\"{context}\"{unit}>\n    <name>{name}</name>\n    <value>{value}</value>\n  </metric>\n"
        );
    }

    fn number(&mut self, context: &str, unit: &str, name: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.metric(context, "uint64", unit, name, &value.to_string());
        }
    }

    /// `value` of `per` in a second, as seconds.
    fn seconds(&mut self, context: &str, name: &str, value: Option<u64>, per: u64) {
        if let Some(value) = value {
            let micros = u128::from(value % per) * 1_000_000 / u128::from(per);
            let text = format!("{}.{micros:06}", value / per);
            self.metric(context, "real64", "s", name, &text);
        }
    }
}

/// The document. What is not known is left out.
pub fn report(node: &str, host: &Host, guest: &Stats) -> String {
    let mut report = Report("<metrics>\n".to_owned());
    for (name, value) in [
        ("HostName", node),
        ("HostSystemInfo", "linux"),
        ("VirtualizationVendor", "kubevirt.io"),
        ("VirtProductInfo", concat!("Ferrovirt ", env!("CARGO_PKG_VERSION"))),
    ] {
        report.metric("host", "string", "", name, value);
    }
    let number = |wanted: &str| {
        guest.iter().find_map(|(key, value)| match value {
            Value::Number(number) if key == wanted => Some(*number),
            Value::Number(_) | Value::Text(_) => None,
        })
    };
    let of_vcpu = |key: &str| {
        let index = key.strip_prefix("vcpu.").and_then(|key| key.strip_suffix(".time"));
        index.is_some_and(|index| index.parse::<u32>().is_ok())
    };
    let times: Vec<u64> = guest
        .iter()
        .filter_map(|(key, value)| match value {
            Value::Number(number) if of_vcpu(key) => Some(*number),
            Value::Number(_) | Value::Text(_) => None,
        })
        .collect();
    let time = (!times.is_empty()).then(|| times.iter().fold(0, |sum: u64, time| sum.saturating_add(*time)));
    report.seconds("vm", "TotalCPUTime", time, 1_000_000_000);
    report.number("vm", "", "ResourceProcessorLimit", number("vcpu.current"));
    let memory = number("balloon.current");
    report.number("vm", "KiB", "PhysicalMemoryAllocatedToVirtualSystem", memory);
    report.number("vm", "KiB", "ResourceMemoryLimit", memory);

    report.number("host", "", "NumberOfPhysicalCPUs", host.sockets);
    report.seconds("host", "TotalCPUTime", host.cpu_ticks, TICKS_PER_SECOND);
    if let Some(memory) = &host.memory {
        let idle = memory.free.saturating_add(memory.buffers).saturating_add(memory.cached);
        let used = memory.total.saturating_sub(idle);
        let virtual_idle = idle.saturating_add(memory.swap_free).saturating_add(memory.swap_cached);
        let all = memory.total.saturating_add(memory.swap_total);
        for (name, value) in [
            ("FreePhysicalMemory", memory.free),
            ("FreeVirtualMemory", memory.free.saturating_add(memory.swap_free)),
            ("MemoryAllocatedToVirtualServers", used),
            ("UsedVirtualMemory", all.saturating_sub(virtual_idle)),
        ] {
            report.number("host", "KiB", name, Some(value));
        }
    }
    let kib = |pages: u64| Some(pages.saturating_mul(PAGE_KIB));
    if let Some((into, out)) = host.paged {
        report.number("host", "KiB", "PagedInMemory", kib(into));
        report.number("host", "KiB", "PagedOutMemory", kib(out));
    }
    report.number("host", "s", "Time", Some(host.time));
    report.0.push_str("</metrics>\n");
    report.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(report: &'a str, context: &str, name: &str) -> Option<&'a str> {
        let mut metrics = report.split("<metric ").skip(1);
        let metric =
            metrics.find(|m| m.contains(&format!("context=\"{context}\"")) && m.contains(&format!("<name>{name}<")))?;
        metric.split("<value>").nth(1)?.split("</value>").next()
    }

    #[test]
    fn the_node_and_the_guest_are_told_about() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("stat", "cpu  100 20 30 999 1\ncpu0 1 1 1 1\n"),
            (
                "meminfo",
                "MemTotal: 1000 kB\nMemFree:  300 kB\nBuffers: 10 kB\nCached: 90 kB\nSwapCached: 5 kB\nSwapTotal: 200 kB\nSwapFree: 150 kB\n",
            ),
            ("vmstat", "pswpin 2\npswpout 3\n"),
        ] {
            fs::write(root.path().join(name), text).unwrap();
        }
        for (cpu, package) in [("cpu0", "0"), ("cpu1", "0"), ("cpu2", "1")] {
            let directory = root.path().join("devices/system/cpu").join(cpu).join("topology");
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("physical_package_id"), package).unwrap();
        }
        let host = Host::read(root.path(), root.path());
        let guest = vec![
            ("vcpu.current".to_owned(), Value::Number(2)),
            ("vcpu.0.time".to_owned(), Value::Number(1_500_000_000)),
            ("vcpu.1.time".to_owned(), Value::Number(1_000_001_000)),
            ("vcpu.1.wait.time".to_owned(), Value::Number(7)),
            ("balloon.current".to_owned(), Value::Number(65536)),
        ];
        let report = report("node<1>", &host, &guest);
        for (context, name, expected) in [
            ("host", "HostName", "node&lt;1&gt;"),
            ("host", "VirtualizationVendor", "kubevirt.io"),
            ("vm", "TotalCPUTime", "2.500001"),
            ("vm", "ResourceProcessorLimit", "2"),
            ("vm", "PhysicalMemoryAllocatedToVirtualSystem", "65536"),
            ("vm", "ResourceMemoryLimit", "65536"),
            ("host", "NumberOfPhysicalCPUs", "2"),
            ("host", "TotalCPUTime", "1.500000"),
            ("host", "FreePhysicalMemory", "300"),
            ("host", "FreeVirtualMemory", "450"),
            ("host", "MemoryAllocatedToVirtualServers", "600"),
            ("host", "UsedVirtualMemory", "645"),
            ("host", "PagedInMemory", "8"),
            ("host", "PagedOutMemory", "12"),
        ] {
            assert_eq!(value(&report, context, name), Some(expected), "{name} in {report}");
        }
        assert!(value(&report, "host", "Time").unwrap().parse::<u64>().unwrap() > 1_700_000_000);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let report = report(
            "n",
            &Host::read(Path::new("/nonexistent"), Path::new("/nonexistent")),
            &Vec::new(),
        );
        assert_eq!(value(&report, "host", "HostName"), Some("n"));
        assert_eq!(value(&report, "host", "TotalCPUTime"), None);
        assert_eq!(value(&report, "vm", "TotalCPUTime"), None);
        assert!(
            report.starts_with("<metrics>\n") && report.ends_with("</metrics>\n"),
            "{report}"
        );
    }
}
