//! What admission refuses: [`Machine::parse`] plus the rules about an object's metadata and about changes.

mod data_volumes;
mod vm;

use std::collections::BTreeMap;

use ferrovirt_api::v1::{VirtualMachineInstance, VirtualMachineInstancePreset};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::cause::{Cause, Causes, FieldPath};
use crate::config::ClusterConfig;
use crate::machine::Machine;
use crate::names;
use crate::parse::preset_causes;

pub use vm::{RUN_STRATEGIES, validate_vm};

/// Labels that our components put on VMIs, and nobody else may.
pub const RESERVED_LABELS: [&str; 6] = [
    "kubevirt.io/created-by",
    "kubevirt.io/install-strategy",
    "kubevirt.io/migrationJobUID",
    "kubevirt.io/migrationTargetNodeName",
    "kubevirt.io/nodeName",
    "kubevirt.io/schedulable",
];

/// Annotations that ask for what is not built yet, unless they say `false`.
const LATER_ANNOTATIONS: [&str; 2] = [
    "kubevirt.io/keep-launcher-alive-after-failure",
    "kubevirt.io/placePCIDevicesOnRootComplex",
];

/// Causes to refuse a new VMI. `user_is_ours`: one of our components asks.
#[must_use]
pub fn validate_vmi_create(vmi: &VirtualMachineInstance, config: &ClusterConfig, user_is_ours: bool) -> Vec<Cause> {
    let mut causes = Causes::default();
    metadata(&mut causes, &vmi.metadata, &FieldPath::root("metadata"), user_is_ours);
    if let Err(found) = Machine::parse(vmi, config) {
        causes.extend(found);
    }
    causes.into_vec()
}

/// Causes to refuse a change of a VMI: its spec belongs to its creator's request and to our components only.
#[must_use]
pub fn validate_vmi_update(
    old: &VirtualMachineInstance,
    new: &VirtualMachineInstance,
    user_is_ours: bool,
) -> Vec<Cause> {
    let mut causes = Causes::default();
    if user_is_ours {
        return causes.into_vec();
    }
    if old.spec != new.spec {
        causes.not_supported(&FieldPath::root("spec"), "update of VMI object is restricted");
    }
    let empty = BTreeMap::new();
    let before = old.metadata.labels.as_ref().unwrap_or(&empty);
    let after = new.metadata.labels.as_ref().unwrap_or(&empty);
    for label in RESERVED_LABELS {
        if before.get(label) != after.get(label) {
            let field = FieldPath::root("metadata").child("labels").key(label);
            causes.not_supported(&field, format!("label {label} is reserved for KubeVirt"));
        }
    }
    causes.into_vec()
}

/// Causes to refuse a preset. What needs more of a VMI than a preset brings is asked of the VMI.
#[must_use]
pub fn validate_preset(preset: &VirtualMachineInstancePreset) -> Vec<Cause> {
    let mut causes = Causes::default();
    let path = FieldPath::root("spec");
    match &preset.spec.domain {
        None => causes.required(&path.child("domain"), "a preset needs a domain to give to VMIs"),
        Some(domain) => causes.extend(preset_causes(domain, &path)),
    }
    let path = path.child("selector.matchExpressions");
    for (i, e) in preset.spec.selector.match_expressions.iter().flatten().enumerate() {
        let path = path.index(i);
        let values = e.values.as_deref().unwrap_or_default();
        let known = ["In", "NotIn", "Exists", "DoesNotExist"];
        causes.one_of(&path.child("operator"), &e.operator, &known);
        let listing = matches!(e.operator.as_str(), "In" | "NotIn");
        if listing && values.is_empty() {
            causes.required(&path.child("values"), format!("{} needs values", e.operator));
        }
        if !listing && !values.is_empty() {
            causes.invalid(&path.child("values"), format!("{} has no values", e.operator));
        }
    }
    causes.into_vec()
}

fn metadata(causes: &mut Causes, metadata: &ObjectMeta, path: &FieldPath, user_is_ours: bool) {
    let labels = metadata.labels.iter().flatten();
    for (label, _) in labels.filter(|(l, _)| !user_is_ours && RESERVED_LABELS.contains(&l.as_str())) {
        causes.not_supported(
            &path.child("labels").key(label),
            format!("label {label} is reserved for KubeVirt"),
        );
    }
    for (annotation, value) in metadata.annotations.iter().flatten() {
        if LATER_ANNOTATIONS.contains(&annotation.as_str()) && names::boolean(value) != Some(false) {
            causes.not_yet(&path.child("annotations").key(annotation));
        }
    }
}

#[cfg(test)]
mod tests;
