//! What the controllers know of VMs and VMIs, as metrics with KubeVirt's names. Read from the caches when asked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance};
use ferrovirt_core::vmi::Phase;
use ferrovirt_runtime::metrics::Metrics;
use kube::ResourceExt;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use crate::cache::Caches;

/// Adds all of them to a process's metrics.
pub fn register(metrics: &Metrics, caches: &Caches, leading: &Arc<AtomicBool>) {
    let collector = Known {
        caches: caches.clone(),
        leading: Arc::clone(leading),
    };
    metrics.register(|registry| registry.register_collector(Box::new(collector)));
}

struct Known {
    caches: Caches,
    leading: Arc<AtomicBool>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Known")
    }
}

/// Labels of one value.
type Labels = Vec<(&'static str, String)>;

impl Collector for Known {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let leading = u32::from(self.leading.load(Ordering::Relaxed));
        let one = |value: u32| vec![(Labels::new(), f64::from(value))];
        let vms = self.caches.vms.all();
        let vmis = self.caches.vmis.all();
        let families = [
            (
                "kubevirt_virt_controller_leading_status",
                "Whether this virt-controller leads.",
                one(leading),
            ),
            (
                "kubevirt_virt_controller_ready_status",
                "Whether this virt-controller is ready.",
                one(1),
            ),
            ("kubevirt_vmi_phase_count", "VMIs by phase and node.", phases(&vmis)),
            (
                "kubevirt_vmi_info",
                "VMIs.",
                vmis.iter().map(|vmi| vmi_info(vmi)).collect(),
            ),
            ("kubevirt_vm_info", "VMs.", vms.iter().map(|vm| vm_info(vm)).collect()),
            (
                "kubevirt_number_of_vms",
                "VMs by namespace.",
                count(
                    vms.iter()
                        .map(|vm| vec![("namespace", vm.namespace().unwrap_or_default())]),
                ),
            ),
        ];
        for (name, help, values) in families {
            let kind = ConstGauge::new(0.0).metric_type();
            let mut described = encoder.encode_descriptor(name, help, None, kind)?;
            if let [(labels, value)] = values.as_slice()
                && labels.is_empty()
            {
                ConstGauge::new(*value).encode(described)?;
                continue;
            }
            for (labels, value) in values {
                ConstGauge::new(value).encode(described.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn count(all: impl Iterator<Item = Labels>) -> Vec<(Labels, f64)> {
    let mut counts: BTreeMap<Labels, f64> = BTreeMap::new();
    for labels in all {
        *counts.entry(labels).or_default() += 1.0;
    }
    counts.into_iter().collect()
}

fn node(vmi: &VirtualMachineInstance) -> String {
    let status = vmi.status.as_ref();
    status.and_then(|s| s.node_name.clone()).unwrap_or_default()
}

fn phase(vmi: &VirtualMachineInstance) -> String {
    Phase::of(vmi).as_str().to_lowercase()
}

fn phases(vmis: &[Arc<VirtualMachineInstance>]) -> Vec<(Labels, f64)> {
    count(vmis.iter().map(|vmi| vec![("node", node(vmi)), ("phase", phase(vmi))]))
}

fn vmi_info(vmi: &VirtualMachineInstance) -> (Labels, f64) {
    let os = vmi.status.as_ref().and_then(|s| s.guest_os_info.as_ref());
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let labels = vec![
        ("namespace", vmi.namespace().unwrap_or_default()),
        ("name", vmi.name_any()),
        ("node", node(vmi)),
        ("phase", phase(vmi)),
        ("guest_os_name", text(os.and_then(|os| os.name.as_ref()))),
        ("guest_os_version_id", text(os.and_then(|os| os.version_id.as_ref()))),
        (
            "guest_os_kernel_release",
            text(os.and_then(|os| os.kernel_release.as_ref())),
        ),
        ("guest_os_machine", text(os.and_then(|os| os.machine.as_ref()))),
    ];
    (labels, 1.0)
}

fn vm_info(vm: &VirtualMachine) -> (Labels, f64) {
    let status = vm.status.as_ref().and_then(|s| s.printable_status.clone());
    let labels = vec![
        ("namespace", vm.namespace().unwrap_or_default()),
        ("name", vm.name_any()),
        ("status", status.unwrap_or_default().to_lowercase()),
    ];
    (labels, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmis_are_counted_by_phase_and_node() {
        let caches = Caches::default();
        for (version, (name, phase)) in (1..).zip([("a", "Running"), ("b", "Running"), ("c", "Failed")]) {
            let vmi = serde_json::json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                "metadata": {"name": name, "namespace": "n\"s", "resourceVersion": format!("{version}"), "uid": name},
                "spec": {"domain": {"devices": {}}},
                "status": {"phase": phase, "nodeName": "n1"}
            });
            let vmi = serde_json::from_value(vmi).unwrap();
            caches.vmis.observe(vmi, jiff::Timestamp::UNIX_EPOCH);
        }
        let metrics = Metrics::new("1");
        register(&metrics, &caches, &Arc::new(AtomicBool::new(true)));
        let text = metrics.text();
        for line in [
            "kubevirt_virt_controller_leading_status 1.0",
            "kubevirt_vmi_phase_count{node=\"n1\",phase=\"failed\"} 1.0",
            "kubevirt_vmi_phase_count{node=\"n1\",phase=\"running\"} 2.0",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in {text}");
        }
        // Names of users are escaped.
        assert!(text.contains("namespace=\"n\\\"s\""), "{text}");
    }
}
