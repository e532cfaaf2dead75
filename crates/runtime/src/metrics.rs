//! Metrics of a process, as Prometheus reads them.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// The registry of a process. Clones are the same.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// With `kubevirt_info` and the usual `process_*` metrics.
    #[must_use]
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::default();
        let labels = vec![("kubeversion".to_owned(), format!("v{version}"))];
        registry.register("kubevirt", "Version information", Info::new(labels));
        registry.register_collector(Box::new(Process));
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Adds metrics. `registry.register("kubevirt_vmi_x", "What it says", metric.clone())`; the name of a counter is
    /// given without `_total`.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All of them in the OpenMetrics text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails only if a metric cannot be written, which is a mistake in it; the others before it are there.
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            tracing::error!("a metric cannot be encoded");
        }
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// What the kernel says about this process, read when asked.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(usage) = Usage::read() else {
            return Ok(());
        };
        gauge(
            &mut encoder,
            "process_resident_memory_bytes",
            "Resident memory.",
            usage.resident,
        )?;
        gauge(
            &mut encoder,
            "process_virtual_memory_bytes",
            "Virtual memory.",
            usage.size,
        )?;
        gauge(&mut encoder, "process_threads", "Threads.", usage.threads)?;
        gauge(
            &mut encoder,
            "process_open_fds",
            "Open file descriptors.",
            usage.descriptors,
        )?;
        gauge(
            &mut encoder,
            "process_start_time_seconds",
            "When it started, since 1970.",
            usage.started,
        )?;
        let cpu = ConstCounter::new(usage.cpu);
        let described = encoder.encode_descriptor("process_cpu_seconds", "CPU time.", None, cpu.metric_type())?;
        cpu.encode(described)
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
    let gauge = ConstGauge::new(value);
    let described: MetricEncoder<'_> = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(described)
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Usage {
    resident: f64,
    size: f64,
    threads: f64,
    descriptors: f64,
    started: f64,
    cpu: f64,
}

/// Clock ticks per second of `/proc`; the kernel's ABI on every architecture that we run on.
const TICKS: f64 = 100.0;

impl Usage {
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let memory = std::fs::read_to_string("/proc/self/status").ok()?;
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let descriptors = std::fs::read_dir("/proc/self/fd").ok()?.count();
        Self::parse(&stat, &memory, &boot, descriptors as f64)
    }

    /// From the text of `/proc/self/stat`, `/proc/self/status` and `/proc/stat`.
    fn parse(stat: &str, status: &str, boot: &str, descriptors: f64) -> Option<Self> {
        // The name in parentheses may contain anything; what follows it starts with field 3.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let kilobytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let booted: f64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        Some(Self {
            resident: kilobytes("VmRSS:")? * 1024.0,
            size: kilobytes("VmSize:")? * 1024.0,
            threads: field(20)?,
            descriptors,
            started: booted + field(22)? / TICKS,
            cpu: (field(14)? + field(15)?) / TICKS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_describes_itself() {
        let metrics = Metrics::new("1.2.3");
        let text = metrics.text();
        assert!(text.contains("kubevirt_info{kubeversion=\"v1.2.3\"} 1"), "{text}");
        for name in [
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_open_fds ",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(name)),
                "{name} is not in {text}"
            );
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn names_of_processes_may_be_odd() {
        let stat = "7 (a) b (c)) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 4 0 1000 4096 10 0";
        let status = "Name:\tx\nVmSize:\t    8 kB\nVmRSS:\t    4 kB\n";
        let usage = Usage::parse(stat, status, "cpu 1\nbtime 1000\n", 5.0).unwrap();
        let expected = Usage {
            resident: 4096.0,
            size: 8192.0,
            threads: 4.0,
            descriptors: 5.0,
            started: 1010.0,
            cpu: 2.0,
        };
        assert_eq!(usage, expected);
        assert_eq!(Usage::parse("", status, "btime 1\n", 0.0), None);
    }
}
