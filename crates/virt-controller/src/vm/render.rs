//! The objects that a VM is started with. Pure.

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceSpec};
use ferrovirt_core::names;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;
use serde_json::json;

/// The reference by which a VM controls something.
#[must_use]
pub fn owner(vm: &VirtualMachine) -> OwnerReference {
    OwnerReference {
        api_version: VirtualMachine::api_version(&()).into_owned(),
        block_owner_deletion: Some(true),
        controller: Some(true),
        kind: VirtualMachine::kind(&()).into_owned(),
        name: vm.metadata.name.clone().unwrap_or_default(),
        uid: vm.metadata.uid.clone().unwrap_or_default(),
    }
}

/// The VMI of a VM. With `paused` its guest starts paused.
#[must_use]
pub fn vmi(vm: &VirtualMachine, paused: bool) -> VirtualMachineInstance {
    let name = vm.metadata.name.clone().unwrap_or_default();
    let template = vm.spec.template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let key = names::SKIP_BACKUP_HOOKS_ANNOTATION;
    if let Some(skip) = vm.metadata.annotations.as_ref().and_then(|own| own.get(key)) {
        annotations.entry(key.to_owned()).or_insert_with(|| skip.clone());
    }
    let generation = vm.metadata.generation.unwrap_or_default();
    annotations.extend([
        (names::VM_GENERATION_ANNOTATION.to_owned(), generation.to_string()),
        (names::LATEST_API_VERSION_ANNOTATION.to_owned(), "v1".to_owned()),
        (names::STORAGE_API_VERSION_ANNOTATION.to_owned(), "v1".to_owned()),
    ]);
    let mut spec = vm.spec.template.spec.clone().unwrap_or_default();
    set_firmware_uuid(&mut spec, &name);
    if paused {
        spec.start_strategy = Some("Paused".to_owned());
    }
    VirtualMachineInstance {
        metadata: ObjectMeta {
            annotations: Some(annotations),
            finalizers: Some(vec![names::VM_FINALIZER.to_owned(), names::VMI_FINALIZER.to_owned()]),
            labels: template.labels,
            name: Some(name),
            namespace: vm.metadata.namespace.clone(),
            owner_references: Some(vec![owner(vm)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

fn set_firmware_uuid(spec: &mut VirtualMachineInstanceSpec, vm_name: &str) {
    let firmware = spec.domain.firmware.get_or_insert_default();
    if firmware.uuid.as_deref().is_none_or(str::is_empty) {
        firmware.uuid = Some(names::firmware_uuid(vm_name).to_string());
    }
}

/// What a VM is started with, kept to compare with.
#[must_use]
pub fn revision(vm: &VirtualMachine) -> ControllerRevision {
    let generation = vm.metadata.generation.unwrap_or_default();
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    ControllerRevision {
        metadata: ObjectMeta {
            labels: Some([(names::CREATED_BY_LABEL.to_owned(), uid.clone())].into()),
            name: Some(names::start_revision(&uid, generation)),
            namespace: vm.metadata.namespace.clone(),
            owner_references: Some(vec![owner(vm)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(json!({"spec": vm.spec}))),
        revision: generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_may_have_no_backup_hooks_unless_its_template_says_otherwise() {
        let key = names::SKIP_BACKUP_HOOKS_ANNOTATION;
        for (own, template, expected) in [
            (json!({}), json!({}), None),
            (json!({key: "true"}), json!({}), Some("true")),
            (json!({key: "true"}), json!({key: "false"}), Some("false")),
            (json!({"other": "true"}), json!({key: "true"}), Some("true")),
        ] {
            let vm = json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
                "metadata": {"name": "x", "namespace": "n", "annotations": own},
                "spec": {"template": {"metadata": {"annotations": template}, "spec": {"domain": {"devices": {}}}}},
            });
            let found = vmi(&serde_json::from_value(vm).unwrap(), false)
                .metadata
                .annotations
                .unwrap();
            assert_eq!(found.get(key).map(String::as_str), expected, "{own} {template}");
            assert!(!found.contains_key("other"));
        }
    }
}
