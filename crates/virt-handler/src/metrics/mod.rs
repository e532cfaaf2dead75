//! What the guests of this node use, under KubeVirt's names. Launchers are asked when somebody scrapes, never
//! otherwise; their answers are not trusted further than their length and their numbers.

mod names;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferrovirt_protocol::launcher::launcher_client::LauncherClient;
use ferrovirt_protocol::launcher::{Stat, StatsRequest, stat};
use ferrovirt_runtime::metrics::Metrics;
use futures::StreamExt;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tonic::transport::Channel;

use crate::Agent;
use names::{GUEST, Kind, Metric, NETWORK, STORAGE, VCPU};

/// A launcher that does not answer by then is left out of this scrape.
const ANSWER: Duration = Duration::from_secs(4);
/// So many launchers are asked at once.
const AT_ONCE: usize = 16;
/// More devices of a kind than this are not believed.
const MAX_DEVICES: usize = 256;
/// Longest name that becomes a label.
const MAX_LABEL: usize = 128;

/// A guest's statistics.
#[derive(Clone, Debug, Default, PartialEq)]
struct Guest {
    namespace: String,
    name: String,
    numbers: BTreeMap<String, u64>,
    texts: BTreeMap<String, String>,
}

/// Metrics of the node's guests.
#[derive(Clone, Debug)]
pub(crate) struct GuestMetrics {
    node: String,
    newest: Arc<Mutex<Vec<Guest>>>,
}

impl GuestMetrics {
    /// Adds them to what a process tells.
    pub(crate) fn register(metrics: &Metrics, node: &str) -> Self {
        let ours = Self {
            node: node.to_owned(),
            newest: Arc::default(),
        };
        metrics.register(|registry| registry.register_collector(Box::new(ours.clone())));
        ours
    }

    /// Asks all launchers of the agent; to be called before each scrape.
    pub(crate) async fn refresh(&self, agent: &Agent) {
        let ask = |(namespace, name, mut launcher): (String, String, LauncherClient<Channel>)| async move {
            let answer = tokio::time::timeout(ANSWER, launcher.stats(StatsRequest {})).await;
            let stats = answer.ok()?.ok()?.into_inner().stats;
            Some(Guest::new(namespace, name, stats))
        };
        let questions = agent.guests.launchers().into_iter().map(ask);
        let mut guests: Vec<Guest> = futures::stream::iter(questions)
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        guests.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = guests;
    }
}

/// What a metric's values are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Guest,
    Vcpu,
    Network,
    Storage,
}

const TABLES: [(Scope, &[Metric]); 4] = [
    (Scope::Guest, &GUEST),
    (Scope::Vcpu, &VCPU),
    (Scope::Network, &NETWORK),
    (Scope::Storage, &STORAGE),
];

impl Scope {
    /// How libvirt begins the names of its statistics.
    fn prefix(self) -> &'static str {
        match self {
            Self::Guest => "",
            Self::Vcpu => "vcpu.",
            Self::Network => "net.",
            Self::Storage => "block.",
        }
    }
}

type Labels = Vec<(&'static str, String)>;

impl Guest {
    fn new(namespace: String, name: String, stats: Vec<Stat>) -> Self {
        let mut guest = Self {
            namespace,
            name,
            ..Self::default()
        };
        for Stat { name, value } in stats {
            match value {
                Some(stat::Value::Number(number)) => drop(guest.numbers.insert(name, number)),
                Some(stat::Value::Text(text)) => drop(guest.texts.insert(name, text)),
                None => {}
            }
        }
        guest
    }

    /// Numbers of the devices of a kind.
    fn devices(&self, prefix: &str) -> Vec<u32> {
        let keys = self.numbers.range(prefix.to_owned()..).map(|(key, _)| key);
        let rest = keys.map_while(|key| key.strip_prefix(prefix));
        let mut all: Vec<u32> = rest.filter_map(|rest| rest.split_once('.')?.0.parse().ok()).collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(MAX_DEVICES);
        all
    }

    /// What a device is called in the VMI, or else by libvirt.
    fn device_name(&self, prefix: &str, index: u32, ours: &str) -> String {
        let text = |what: &str| self.texts.get(&format!("{prefix}{index}.{what}")).cloned();
        let mut name = text(ours)
            .filter(|name| !name.is_empty())
            .or_else(|| text("name"))
            .unwrap_or_default();
        name.truncate(name.floor_char_boundary(MAX_LABEL));
        name
    }

    fn device_labels(&self, scope: Scope, index: u32) -> Labels {
        let prefix = scope.prefix();
        match scope {
            Scope::Guest => Labels::new(),
            Scope::Vcpu => {
                let state = match self.numbers.get(&format!("{prefix}{index}.state")) {
                    Some(1) => "running",
                    Some(2) => "blocked",
                    _ => "offline",
                };
                vec![("id", index.to_string()), ("state", state.to_owned())]
            }
            Scope::Network => vec![("interface", self.device_name(prefix, index, "network"))],
            Scope::Storage => vec![("drive", self.device_name(prefix, index, "volume"))],
        }
    }

    /// The values of one metric.
    fn samples(&self, node: &str, scope: Scope, metric: &Metric) -> Vec<(Labels, f64)> {
        let labels = [
            ("node", node.to_owned()),
            ("namespace", self.namespace.clone()),
            ("name", self.name.clone()),
        ];
        let sample = |key: &str, more: Labels| {
            let number = self.numbers.get(key)?;
            #[expect(clippy::cast_precision_loss, reason = "the format has only floating point numbers")]
            let value = *number as f64 * metric.factor;
            Some((labels.iter().cloned().chain(more).collect(), value))
        };
        if scope == Scope::Guest {
            return sample(metric.stat, Labels::new()).into_iter().collect();
        }
        let prefix = scope.prefix();
        let devices = self.devices(prefix).into_iter();
        devices
            .filter_map(|index| {
                sample(
                    &format!("{prefix}{index}.{}", metric.stat),
                    self.device_labels(scope, index),
                )
            })
            .collect()
    }
}

impl Collector for GuestMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let guests = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        for (scope, metric) in TABLES
            .iter()
            .flat_map(|(scope, table)| table.iter().map(move |metric| (*scope, metric)))
        {
            let samples: Vec<_> = guests
                .iter()
                .flat_map(|guest| guest.samples(&self.node, scope, metric))
                .collect();
            if samples.is_empty() {
                continue;
            }
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for (labels, value) in samples {
                let one = family.encode_family(&labels)?;
                match metric.kind {
                    Kind::Counter => ConstCounter::new(value).encode(one)?,
                    Kind::Gauge => ConstGauge::new(value).encode(one)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest {
        let number = |name: &str, number| Stat {
            name: name.to_owned(),
            value: Some(stat::Value::Number(number)),
        };
        let text = |name: &str, text: &str| Stat {
            name: name.to_owned(),
            value: Some(stat::Value::Text(text.to_owned())),
        };
        let stats = vec![
            number("cpu.time", 1_500_000_000),
            number("balloon.rss", 2048),
            number("vcpu.current", 2),
            number("vcpu.0.state", 1),
            number("vcpu.0.time", 2_000_000_000),
            number("vcpu.10.time", 1),
            number("net.count", 1),
            number("net.0.rx.bytes", 7),
            text("net.0.name", "tap0"),
            text("net.0.network", "default"),
            number("block.0.rd.reqs", 9),
            text("block.0.name", "vda"),
            number("block.1.rd.reqs", 1),
            text("block.1.name", "vdb"),
            text("block.1.volume", "data"),
        ];
        Guest::new("ns".into(), "vm".into(), stats)
    }

    #[test]
    fn statistics_become_kubevirts_metrics() {
        let metrics = Metrics::new("1.2.3");
        let ours = GuestMetrics::register(&metrics, "n1");
        assert!(!metrics.text().contains("kubevirt_vmi_"));
        *ours.newest.lock().unwrap() = vec![guest()];
        let text = metrics.text();
        let common = "node=\"n1\",namespace=\"ns\",name=\"vm\"";
        for line in [
            format!("kubevirt_vmi_cpu_usage_seconds_total{{{common}}} 1.5"),
            format!("kubevirt_vmi_memory_resident_bytes{{{common}}} 2097152.0"),
            format!("kubevirt_vmi_vcpu_seconds_total{{{common},id=\"0\",state=\"running\"}} 2.0"),
            format!("kubevirt_vmi_vcpu_seconds_total{{{common},id=\"10\",state=\"offline\"}} 1e-9"),
            format!("kubevirt_vmi_network_receive_bytes_total{{{common},interface=\"default\"}} 7.0"),
            format!("kubevirt_vmi_storage_iops_read_total{{{common},drive=\"vda\"}} 9.0"),
            format!("kubevirt_vmi_storage_iops_read_total{{{common},drive=\"data\"}} 1.0"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE kubevirt_vmi_storage_iops_read counter").count(), 1);
    }

    #[test]
    fn no_metric_has_two_meanings() {
        let mut names: Vec<&str> = TABLES
            .iter()
            .flat_map(|(_, table)| table.iter().map(|metric| metric.name))
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(!names.iter().any(|name| name.ends_with("_total")));
    }
}
