//! What labels and annotations a node should have. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ferrovirt_core::names::{
    CPU_FEATURE_PREFIX, CPU_MANAGER_LABEL, CPU_VENDOR_PREFIX, HYPERV_PREFIX, OBSOLETE_HOST_MODEL_LABEL, REALTIME_LABEL,
    SCHEDULABLE_LABEL,
};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::host::{CpuVendor, HostModel};
use super::qemu::Capabilities;
use crate::kvm::Verdict;

/// Label of a node: a guest was seen to run under KVM.
const KVM_LABEL: &str = "ferrovirt.node.kubevirt.io/kvm";
/// Annotation of a node: why there is KVM, or none.
pub(super) const KVM_ANNOTATION: &str = "ferrovirt.node.kubevirt.io/kvm-reason";
/// Annotation of a node: when its agent was last seen.
pub(super) const HEARTBEAT_ANNOTATION: &str = "kubevirt.io/heartbeat";
/// Annotation of a node by which an administrator keeps the labels of [`OWNED`] to himself.
const SKIP_ANNOTATION: &str = "node-labeller.kubevirt.io/skip-node";
const MACHINE_PREFIX: &str = "machine-type.node.kubevirt.io/";
const CPU_PREFIX: &str = "cpu-model.node.kubevirt.io/";
const CPU_MIGRATION_PREFIX: &str = "cpu-model-migration.node.kubevirt.io/";
const HOST_MODEL_PREFIX: &str = "host-model-cpu.node.kubevirt.io/";
const HOST_FEATURE_PREFIX: &str = "host-model-required-features.node.kubevirt.io/";
/// Prefixes under which every label is ours: what no longer holds is removed.
const OWNED: [&str; 13] = [
    REALTIME_LABEL,
    "kubevirt.io/sev",
    "kubevirt.io/s390-pv",
    "kubevirt.io/tdx",
    MACHINE_PREFIX,
    CPU_PREFIX,
    CPU_MIGRATION_PREFIX,
    CPU_FEATURE_PREFIX,
    CPU_VENDOR_PREFIX,
    HYPERV_PREFIX,
    OBSOLETE_HOST_MODEL_LABEL,
    HOST_MODEL_PREFIX,
    HOST_FEATURE_PREFIX,
];

/// Prefixes of what QEMU tells: while it does not, what is there stays.
const OF_QEMU: [&str; 4] = [MACHINE_PREFIX, CPU_PREFIX, CPU_MIGRATION_PREFIX, CPU_FEATURE_PREFIX];

/// All that a node is known to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) kvm: Verdict,
    /// Unless QEMU did not say.
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) vendor: Option<CpuVendor>,
    pub(crate) host_model: Option<HostModel>,
    /// The kubelet gives CPUs to one container alone.
    pub(crate) cpu_manager: bool,
    /// The kernel lets real-time threads run for as long as they like.
    pub(crate) realtime: bool,
    /// How guests' memory can be protected, as labels below `kubevirt.io`.
    pub(crate) protections: Vec<&'static str>,
    /// What Windows finds in its hypervisor here, in the API's words.
    pub(crate) hyperv: BTreeSet<String>,
    /// CPU models that nobody shall be offered.
    pub(crate) obsolete: BTreeSet<String>,
}

/// A label's name has at most 63 characters of a small alphabet.
fn fits(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let outer = |c: char| c.is_ascii_alphanumeric();
    (1..=63).contains(&name.len()) && name.chars().all(inner) && name.starts_with(outer) && name.ends_with(outer)
}

fn wanted(facts: &Facts) -> BTreeMap<String, String> {
    let Facts {
        kvm,
        capabilities,
        vendor,
        host_model,
        cpu_manager,
        realtime,
        protections,
        hyperv,
        obsolete,
    } = facts;
    let mut named: Vec<(&str, &str)> = Vec::new();
    if let Some(Capabilities {
        machines,
        cpu_models,
        cpu_features,
    }) = capabilities
    {
        named.extend(machines.iter().map(|name| (MACHINE_PREFIX, name.as_str())));
        for model in cpu_models.difference(obsolete) {
            named.extend([(CPU_PREFIX, model.as_str()), (CPU_MIGRATION_PREFIX, model)]);
        }
        named.extend(cpu_features.iter().map(|name| (CPU_FEATURE_PREFIX, name.as_str())));
    }
    named.extend(vendor.iter().map(|vendor| (CPU_VENDOR_PREFIX, vendor.0)));
    named.extend(hyperv.iter().map(|name| (HYPERV_PREFIX, name.as_str())));
    // Without KVM nobody gets it.
    let old = host_model
        .as_ref()
        .filter(|model| kvm.usable && obsolete.contains(&model.name));
    if let Some(HostModel { name, features }) = host_model {
        named.push((HOST_MODEL_PREFIX, name));
        named.extend(old.is_none().then_some((CPU_MIGRATION_PREFIX, name.as_str())));
        named.extend(features.iter().map(|feature| (HOST_FEATURE_PREFIX, feature.as_str())));
    }
    let labels = named.into_iter().filter(|(_, name)| fits(name));
    let mut wanted: BTreeMap<String, String> = labels
        .map(|(prefix, name)| (format!("{prefix}{name}"), "true".to_owned()))
        .collect();
    wanted.insert(CPU_MANAGER_LABEL.to_owned(), cpu_manager.to_string());
    wanted.extend(
        protections
            .iter()
            .map(|name| (format!("kubevirt.io/{name}"), "true".to_owned())),
    );
    if old.is_some() {
        wanted.insert(OBSOLETE_HOST_MODEL_LABEL.to_owned(), "true".to_owned());
    }
    if *realtime {
        wanted.insert(REALTIME_LABEL.to_owned(), "true".to_owned());
    }
    wanted.insert(KVM_LABEL.to_owned(), kvm.usable.to_string());
    wanted
}

/// The labels and annotations to change, as a merge patch of `metadata`; `None` when there is nothing to change.
pub(super) fn patch(node: &Node, facts: &Facts) -> Option<Value> {
    let has = node.labels();
    let mut wanted = wanted(facts);
    let skip = node
        .annotations()
        .get(SKIP_ANNOTATION)
        .is_some_and(|skip| skip == "true");
    let owned = |key: &str| OWNED.iter().any(|prefix| key.starts_with(prefix));
    wanted.retain(|key, _| !skip || !owned(key));
    wanted.insert(SCHEDULABLE_LABEL.to_owned(), "true".to_owned());
    let unknown = |key: &str| facts.capabilities.is_none() && OF_QEMU.iter().any(|prefix| key.starts_with(prefix));
    let stale = has
        .keys()
        .filter(|key| !skip && owned(key) && !unknown(key) && !wanted.contains_key(*key))
        .map(|key| (key.clone(), None));
    let mut labels: BTreeMap<String, Option<String>> = stale.collect();
    labels.extend(
        wanted
            .into_iter()
            .filter(|(key, value)| has.get(key) != Some(value))
            .map(|(key, value)| (key, Some(value))),
    );
    let told = node.annotations().get(KVM_ANNOTATION) == Some(&facts.kvm.why);
    if labels.is_empty() && told {
        return None;
    }
    Some(json!({"labels": labels, "annotations": {KVM_ANNOTATION: facts.kvm.why}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn facts() -> Facts {
        Facts {
            kvm: Verdict {
                usable: false,
                why: "w".into(),
            },
            capabilities: Some(Capabilities {
                machines: set(&["q35"]),
                cpu_models: set(&["EPYC", "qemu64"]),
                cpu_features: set(&["sse4.1", "-bad", "x".repeat(64).as_str()]),
            }),
            vendor: Some(CpuVendor("AMD")),
            host_model: Some(HostModel {
                name: "EPYC-Rome".into(),
                features: set(&["ibpb"]),
            }),
            cpu_manager: true,
            realtime: false,
            protections: vec!["sev"],
            hyperv: set(&["synictimer"]),
            obsolete: set(&["EPYC-Rome", "qemu64"]),
        }
    }

    fn apply(node: &mut Node, patch: &Value) {
        for (key, value) in patch["labels"].as_object().unwrap() {
            match value.as_str() {
                Some(value) => node.labels_mut().insert(key.clone(), value.into()),
                None => node.labels_mut().remove(key),
            };
        }
        node.annotations_mut().insert(KVM_ANNOTATION.into(), "w".into());
    }

    #[test]
    fn only_what_differs_is_written() {
        let mut node = Node::default();
        node.labels_mut()
            .insert("cpu-model.node.kubevirt.io/old".into(), "true".into());
        node.labels_mut()
            .insert("cpu-vendor.node.kubevirt.io/AMD".into(), "true".into());
        node.labels_mut().insert("mine".into(), "x".into());
        let change = patch(&node, &facts()).unwrap();
        assert_eq!(
            change["labels"],
            json!({
                "kubevirt.io/schedulable": "true",
                "kubevirt.io/cpumanager": "true",
                "kubevirt.io/sev": "true",
                "ferrovirt.node.kubevirt.io/kvm": "false",
                "machine-type.node.kubevirt.io/q35": "true",
                "cpu-model.node.kubevirt.io/EPYC": "true",
                "cpu-model.node.kubevirt.io/old": null,
                "cpu-model-migration.node.kubevirt.io/EPYC": "true",
                "cpu-model-migration.node.kubevirt.io/EPYC-Rome": "true",
                "cpu-feature.node.kubevirt.io/sse4.1": "true",
                "host-model-cpu.node.kubevirt.io/EPYC-Rome": "true",
                "host-model-required-features.node.kubevirt.io/ibpb": "true",
                "hyperv.node.kubevirt.io/synictimer": "true",
            })
        );
        apply(&mut node, &change);
        assert_eq!(patch(&node, &facts()), None);
    }

    #[test]
    fn what_qemu_told_of_stays_while_it_says_nothing() {
        let mut node = Node::default();
        let change = patch(&node, &facts()).unwrap();
        apply(&mut node, &change);
        let mut unknown = facts();
        (unknown.capabilities, unknown.vendor) = (None, None);
        let change = patch(&node, &unknown).unwrap();
        assert_eq!(change["labels"], json!({"cpu-vendor.node.kubevirt.io/AMD": null}));
        let nothing = Facts {
            capabilities: Some(Capabilities::default()),
            ..unknown
        };
        let change = patch(&node, &nothing).unwrap();
        for gone in [
            "machine-type.node.kubevirt.io/q35",
            "cpu-model.node.kubevirt.io/EPYC",
            "cpu-model-migration.node.kubevirt.io/EPYC",
            "cpu-feature.node.kubevirt.io/sse4.1",
        ] {
            assert_eq!(change["labels"].get(gone), Some(&Value::Null), "{gone}");
        }
    }

    #[test]
    fn an_obsolete_host_model_is_told() {
        let mut facts = facts();
        facts.kvm.usable = true;
        let node = Node::default();
        let labels = |facts: &Facts| patch(&node, facts).unwrap()["labels"].clone();
        let old = labels(&facts);
        assert_eq!(old[OBSOLETE_HOST_MODEL_LABEL], "true");
        assert_eq!(old["host-model-cpu.node.kubevirt.io/EPYC-Rome"], "true");
        assert_eq!(old.get("cpu-model-migration.node.kubevirt.io/EPYC-Rome"), None);
        facts.obsolete.remove("EPYC-Rome");
        let new = labels(&facts);
        assert_eq!(new.get(OBSOLETE_HOST_MODEL_LABEL), None);
        assert_eq!(new["cpu-model-migration.node.kubevirt.io/EPYC-Rome"], "true");
    }

    #[test]
    fn an_administrator_may_keep_the_labels_to_himself() {
        let mut node = Node::default();
        node.annotations_mut().insert(SKIP_ANNOTATION.into(), "true".into());
        node.labels_mut()
            .insert("cpu-model.node.kubevirt.io/his".into(), "true".into());
        let change = patch(&node, &facts()).unwrap();
        assert_eq!(
            change["labels"],
            json!({
                "kubevirt.io/cpumanager": "true",
                "kubevirt.io/schedulable": "true",
                "ferrovirt.node.kubevirt.io/kvm": "false",
            })
        );
        apply(&mut node, &change);
        assert_eq!(patch(&node, &facts()), None);
    }
}
