//! VirtualMachine.

use std::borrow::Cow;

use ferrovirt_api::v1::{
    VirtualMachine, VirtualMachineInstanceSpec, VirtualMachineInstanceTemplateSpec, VirtualMachineSpec,
};

use super::{data_volumes, metadata};
use crate::cause::{Cause, Causes, FieldPath};
use crate::config::ClusterConfig;
use crate::parse::{annotations, architecture_of, template_causes};

/// Run strategies, in the API's spelling.
pub const RUN_STRATEGIES: [&str; 6] = ["Always", "Halted", "Manual", "Once", "RerunOnFailure", "WaitAsReceiver"];

/// Causes to refuse a VM, or the change of `old` to it. What a change leaves alone is not judged again, so that a
/// stricter release cannot freeze stored objects.
#[must_use]
pub fn validate_vm(vm: &VirtualMachine, old: Option<&VirtualMachine>, config: &ClusterConfig) -> Vec<Cause> {
    let mut causes = Causes::default();
    if old.is_some_and(|old| old.spec == vm.spec) {
        return causes.into_vec();
    }
    let path = FieldPath::root("spec");
    let VirtualMachineSpec {
        data_volume_templates,
        instancetype,
        preference,
        run_strategy,
        running,
        template,
        update_volumes_strategy,
    } = &vm.spec;
    let before = old.map(|old| &old.spec);
    if before.is_none_or(|old| (old.running, &old.run_strategy) != (*running, run_strategy)) {
        run(&mut causes, *running, run_strategy.as_deref(), &path);
    }
    let templates = before.is_none_or(|old| old.data_volume_templates != *data_volume_templates);
    causes.none_of(
        &path,
        &[
            ("dataVolumeTemplates", templates && !data_volume_templates.is_empty()),
            (
                "instancetype",
                is_new(instancetype, before.map(|old| &old.instancetype)),
            ),
            ("preference", is_new(preference, before.map(|old| &old.preference))),
        ],
    );
    let volumes = |spec: &VirtualMachineSpec| spec.template.spec.as_ref().map(|spec| spec.volumes.clone());
    if templates || before.is_some_and(|old| volumes(old) != volumes(&vm.spec)) {
        data_volumes::templates(
            &mut causes,
            data_volume_templates,
            template.spec.as_ref(),
            vm.metadata.namespace.as_deref(),
            &path.child("dataVolumeTemplates"),
        );
    }
    if is_new(update_volumes_strategy, before.map(|old| &old.update_volumes_strategy)) {
        update_volumes(&mut causes, update_volumes_strategy.as_deref(), &path);
    }
    if before.is_none_or(|old| old.template != *template) {
        let name = vm.metadata.name.as_deref().unwrap_or_default();
        machine(&mut causes, name, template, &path.child("template"), config);
    }
    if let Some(old) = old {
        in_progress(&mut causes, vm, old, &path);
    }
    causes.into_vec()
}

/// Whether a field is set, and not as it was.
fn is_new<T: PartialEq>(value: &Option<T>, before: Option<&Option<T>>) -> bool {
    value.is_some() && before != Some(value)
}

fn update_volumes(causes: &mut Causes, strategy: Option<&str>, path: &FieldPath) {
    let Some(strategy) = strategy.filter(|strategy| !strategy.is_empty()) else {
        return;
    };
    let field = path.child("updateVolumesStrategy");
    causes.one_of(&field, strategy, &["Replacement", "Migration"]);
    if strategy == "Migration" {
        causes.not_yet(&field);
    }
}

fn run(causes: &mut Causes, running: Option<bool>, strategy: Option<&str>, path: &FieldPath) {
    let field = path.child("runStrategy");
    match (running, strategy) {
        (Some(_), Some(_)) => {
            causes.invalid(&path.child("running"), "running and runStrategy exclude each other");
        }
        (None, None) => causes.required(&field, "RunStrategy must be specified"),
        _ => {}
    }
    let Some(strategy) = strategy else { return };
    causes.one_of(&field, strategy, &RUN_STRATEGIES);
    if strategy == "WaitAsReceiver" {
        causes.not_yet(&field);
    }
}

fn machine(
    causes: &mut Causes,
    name: &str,
    template: &VirtualMachineInstanceTemplateSpec,
    path: &FieldPath,
    config: &ClusterConfig,
) {
    let VirtualMachineInstanceTemplateSpec { metadata: own, spec } = template;
    if let Some(own) = own {
        let path = path.child("metadata");
        metadata(causes, own, &path, false);
        let architecture = spec
            .as_ref()
            .map_or(config.architecture, |spec| architecture_of(spec, config));
        annotations(own, &path, architecture, config, causes);
    }
    let path = path.child("spec");
    match spec {
        None => causes.required(&path, "a template needs a spec"),
        Some(spec) => causes.extend(template_causes(name, spec, &path, &permitting(spec, config))),
    }
}

/// Which devices are permitted is asked when the VM is started: the administrator may say so later than its author, and
/// what was permitted once must not freeze the VM.
fn permitting<'a>(spec: &VirtualMachineInstanceSpec, config: &'a ClusterConfig) -> Cow<'a, ClusterConfig> {
    let devices = &spec.domain.devices;
    if devices.gpus.is_empty() && devices.host_devices.is_empty() {
        return Cow::Borrowed(config);
    }
    Cow::Owned(ClusterConfig {
        permitted_devices: None,
        ..config.clone()
    })
}

/// What must not change while a snapshot or a restore works on it.
fn in_progress(causes: &mut Causes, vm: &VirtualMachine, old: &VirtualMachine, path: &FieldPath) {
    let Some(status) = &old.status else { return };
    let run = |vm: &VirtualMachine| (vm.spec.running, vm.spec.run_strategy.clone());
    let volumes = |vm: &VirtualMachine| {
        let spec = vm.spec.template.spec.as_ref();
        spec.map(|s| (s.domain.devices.disks.clone(), s.volumes.clone()))
    };
    if let Some(snapshot) = &status.snapshot_in_progress {
        let message = format!("cannot change while snapshot \"{snapshot}\" is in progress");
        if volumes(vm) != volumes(old) {
            causes.invalid(&path.child("template.spec.volumes"), message.clone());
        }
        if run(vm) != run(old) {
            causes.invalid(&path.child("runStrategy"), message);
        }
    }
    if let Some(restore) = &status.restore_in_progress
        && run(vm) != run(old)
    {
        causes.invalid(
            &path.child("runStrategy"),
            format!("cannot change while restore \"{restore}\" is in progress"),
        );
    }
}
