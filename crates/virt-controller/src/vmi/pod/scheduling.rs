//! Which nodes a pod may go to, by the labels that virt-handler gives them.

use std::collections::BTreeMap;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::config::GATE_HYPERV_STRICT_CHECK;
use ferrovirt_core::machine::{CpuModel, Hyperv, Machine, hyperv_name};
use ferrovirt_core::names;
use k8s_openapi::api::core::v1::{Affinity, NodeSelectorRequirement, NodeSelectorTerm};

use crate::{Home, Options};

/// Enlightenments that not every processor and kernel have, by libvirt's names.
const HYPERV: [&str; 9] = [
    "frequencies",
    "ipi",
    "reenlightenment",
    "reset",
    "runtime",
    "stimer",
    "synic",
    "tlbflush",
    "vpindex",
];

pub(super) fn node_selector(
    vmi: &VirtualMachineInstance,
    machine: &Machine,
    config: &ClusterConfig,
    options: &Options,
) -> BTreeMap<String, String> {
    let mut labels = vec![names::SCHEDULABLE_LABEL.to_owned()];
    if options.home == Home::Cluster {
        labels.push(format!("machine-type.node.kubevirt.io/{}", machine.machine_type));
        if machine.cpu.pinning.is_some() {
            labels.push(names::CPU_MANAGER_LABEL.to_owned());
        }
        if !machine.cpu.realtime.is_empty() {
            labels.push(names::REALTIME_LABEL.to_owned());
        }
        if let Some(security) = &machine.launch_security {
            labels.push(format!("kubevirt.io/{}", security.node_label()));
        }
        if let CpuModel::Named(model) = &machine.cpu.model {
            labels.push(format!("cpu-model.node.kubevirt.io/{model}"));
        }
        labels.extend(features(machine, "require"));
        if config.gate(GATE_HYPERV_STRICT_CHECK) {
            labels.extend(hyperv(machine));
        }
    }
    let mut all: BTreeMap<String, String> = labels.into_iter().map(|label| (label, "true".to_owned())).collect();
    all.insert("kubernetes.io/arch".to_owned(), machine.architecture.name().to_owned());
    all.extend(config.node_selectors.clone());
    all.extend(vmi.spec.node_selector.clone());
    all
}

/// Labels of CPU features that a machine has by `policy`.
fn features(machine: &Machine, policy: &str) -> impl Iterator<Item = String> {
    let features = machine.cpu.features.iter().filter(move |(_, own)| own == policy);
    features.map(|(feature, _)| format!("{}{feature}", names::CPU_FEATURE_PREFIX))
}

/// Labels of what Windows is to find in its hypervisor.
fn hyperv(machine: &Machine) -> Vec<String> {
    let Some(Hyperv::Custom(all)) = &machine.hyperv else {
        return Vec::new();
    };
    let on = all.iter().filter(|enlightenment| enlightenment.on);
    on.filter_map(|enlightenment| match enlightenment.name {
        "evmcs" => Some(format!("{}Intel", names::CPU_VENDOR_PREFIX)),
        name => HYPERV
            .contains(&name)
            .then(|| format!("{}{}", names::HYPERV_PREFIX, hyperv_name(name))),
    })
    .collect()
}

/// Labels of nodes that a machine must not come to.
fn shunned(machine: &Machine) -> Vec<String> {
    let mut labels: Vec<String> = features(machine, "forbid").collect();
    if machine.cpu.model == CpuModel::HostModel {
        labels.push(names::OBSOLETE_HOST_MODEL_LABEL.to_owned());
    }
    labels
}

/// What the VMI asks for, less nodes where its guest could not be what it is to be.
pub(super) fn affinity(vmi: &VirtualMachineInstance, machine: &Machine, options: &Options) -> Option<Affinity> {
    let labels = shunned(machine);
    if options.home != Home::Cluster || labels.is_empty() {
        return vmi.spec.affinity.clone();
    }
    let without = labels.into_iter().map(|key| NodeSelectorRequirement {
        key,
        operator: "DoesNotExist".to_owned(),
        values: None,
    });
    let without: Vec<_> = without.collect();
    let mut affinity = vmi.spec.affinity.clone().unwrap_or_default();
    let nodes = affinity.node_affinity.get_or_insert_default();
    match &mut nodes.required_during_scheduling_ignored_during_execution {
        None => {
            let term = NodeSelectorTerm {
                match_expressions: Some(without),
                match_fields: None,
            };
            let required = nodes
                .required_during_scheduling_ignored_during_execution
                .get_or_insert_default();
            required.node_selector_terms.push(term);
        }
        Some(required) => {
            // A term that asks for nothing means no node, and stays so.
            let terms = required.node_selector_terms.iter_mut();
            for term in terms.filter(|term| **term != NodeSelectorTerm::default()) {
                term.match_expressions.get_or_insert_default().extend(without.clone());
            }
        }
    }
    Some(affinity)
}
