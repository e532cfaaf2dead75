//! What an object's author left unsaid. Pure and idempotent: what is random or depends on the clock is passed in.

mod vm;

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::{
    CPU, CPUFeature, Disk, DiskTarget, DomainSpec, FeatureHyperv, FeatureState, Features, Firmware, Input, Interface,
    InterfaceBridge, InterfaceMasquerade, Network, PodNetwork, Probe, VirtualMachineInstance,
    VirtualMachineInstanceSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use uuid::Uuid;

use crate::config::ClusterConfig;
use crate::machine::{Architecture, TapBinding};
use crate::names::{LATEST_API_VERSION_ANNOTATION, STORAGE_API_VERSION_ANNOTATION, VMI_FINALIZER};
use crate::parse::HYPERV_REQUIREMENTS;

pub use vm::{PCI_TOPOLOGY_ANNOTATION, default_vm, default_vm_update};

/// Most vCPUs that a default of `maxSockets` allows.
const MAX_VCPUS: i64 = 512;
const GI: i64 = 1 << 30;
/// Memory is hotplugged in blocks of this size.
const HOTPLUG_BLOCK: i64 = 2 << 20;

/// Completes a VMI that is being created: spec, finalizer and annotations. Its status is its controller's from the beginning.
///
/// `uuid` becomes the firmware UUID if there is none. Doing it again changes nothing.
pub fn default_vmi(vmi: &mut VirtualMachineInstance, config: &ClusterConfig, uuid: Uuid) {
    default_spec(&mut vmi.spec, config);
    let firmware = vmi.spec.domain.firmware.get_or_insert_default();
    if firmware.uuid.as_deref().is_none_or(str::is_empty) {
        firmware.uuid = Some(uuid.to_string());
    }
    let finalizers = vmi.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == VMI_FINALIZER) {
        finalizers.push(VMI_FINALIZER.to_owned());
    }
    observed(&mut vmi.metadata);
}

/// Says which version of the API an object was written in, and is stored in.
fn observed(metadata: &mut ObjectMeta) {
    let annotations = metadata.annotations.get_or_insert_default();
    for key in [LATEST_API_VERSION_ANNOTATION, STORAGE_API_VERSION_ANNOTATION] {
        annotations.insert(key.to_owned(), "v1".to_owned());
    }
}

/// Completes a VMI's spec; the part of [`default_vmi`] that validation applies to templates, too.
pub fn default_spec(spec: &mut VirtualMachineInstanceSpec, config: &ClusterConfig) {
    default_architecture(spec, config);
    let arch = architecture(spec, config);
    default_resources(&mut spec.domain, config);
    default_topology(&mut spec.domain);
    default_cpu(&mut spec.domain, arch, config);
    default_max_guest(&mut spec.domain, arch, config);
    if spec.eviction_strategy.as_deref().is_none_or(str::is_empty) {
        spec.eviction_strategy = Some(config.eviction_strategy.clone());
    }
    default_network(spec, config);
    default_disks(spec, arch);
    spec.volumes.iter_mut().for_each(default_volume);
    default_inputs(&mut spec.domain);
    default_watchdog(&mut spec.domain, arch);
    default_features(&mut spec.domain, arch);
    default_timers(&mut spec.domain);
    if arch == Architecture::Arm64 {
        default_efi(spec.domain.firmware.get_or_insert_default());
    }
    spec.readiness_probe.iter_mut().for_each(default_probe);
    spec.liveness_probe.iter_mut().for_each(default_probe);
}

fn architecture(spec: &VirtualMachineInstanceSpec, config: &ClusterConfig) -> Architecture {
    let named = spec.architecture.as_deref().and_then(Architecture::from_name);
    named.unwrap_or(config.architecture)
}

fn default_architecture(spec: &mut VirtualMachineInstanceSpec, config: &ClusterConfig) {
    if spec.architecture.as_deref().is_none_or(str::is_empty) {
        spec.architecture = Some(config.architecture.name().to_owned());
    }
    let default = &config.machine_types(architecture(spec, config)).default;
    let machine = spec.domain.machine.get_or_insert_default();
    if machine.r#type.as_deref().is_none_or(str::is_empty) {
        machine.r#type = Some(default.clone());
    }
}

fn default_resources(domain: &mut DomainSpec, config: &ClusterConfig) {
    let resources = domain.resources.get_or_insert_default();
    // An amount of 0 asks for nothing and limits nothing.
    for amounts in [&mut resources.requests, &mut resources.limits] {
        amounts.retain(|name, amount| !matches!(name.as_str(), "cpu" | "memory") || amount.millis() != Ok(0));
    }
    let dedicated = domain
        .cpu
        .as_ref()
        .is_some_and(|c| c.dedicated_cpu_placement == Some(true));
    if !resources.requests.contains_key("cpu") {
        let cpu = resources
            .limits
            .get("cpu")
            .or(config.cpu_request.as_ref().filter(|_| !dedicated))
            .cloned();
        if let Some(cpu) = cpu {
            resources.requests.insert("cpu".to_owned(), cpu);
        }
    }
    let known = [&resources.requests, &resources.limits]
        .into_iter()
        .find_map(|r| r.get("memory"));
    let page = domain
        .memory
        .as_ref()
        .and_then(|m| m.hugepages.as_ref()?.page_size.clone());
    let guest = known.cloned().or(page.map(Quantity));
    if let Some(guest) = guest {
        domain.memory.get_or_insert_default().guest.get_or_insert(guest);
    }
}

fn default_topology(domain: &mut DomainSpec) {
    let set = |n: Option<i64>| n.is_some_and(|n| n != 0);
    let cpu = domain.cpu.get_or_insert_default();
    if set(cpu.sockets) || set(cpu.cores) || set(cpu.threads) {
        return;
    }
    let resources = domain.resources.as_ref();
    let amount = resources.and_then(|r| r.limits.get("cpu").or(r.requests.get("cpu")));
    let sockets = amount.and_then(|a| a.bytes().ok()).filter(|n| *n > 0).unwrap_or(1);
    (cpu.sockets, cpu.cores, cpu.threads) = (Some(sockets), Some(1), Some(1));
}

/// Sockets, cores and threads with unset ones counted as 1.
pub(crate) fn topology(cpu: Option<&CPU>) -> (i64, i64, i64) {
    let one = |n: Option<i64>| n.filter(|n| *n != 0).unwrap_or(1);
    cpu.map_or((1, 1, 1), |c| (one(c.sockets), one(c.cores), one(c.threads)))
}

fn default_cpu(domain: &mut DomainSpec, arch: Architecture, config: &ClusterConfig) {
    let cpu = domain.cpu.get_or_insert_default();
    let (sockets, cores, threads) = topology(Some(cpu));
    let unset = cpu.max_sockets.is_none_or(|n| n == 0);
    // There may be no CPU left to dedicate when the guest wants one more.
    let dedicated = cpu.dedicated_cpu_placement == Some(true);
    if unset && !dedicated && config.live_update && arch != Architecture::Arm64 {
        let per_socket = cores.saturating_mul(threads).max(1);
        let ratio = i64::try_from(config.max_hotplug_ratio).unwrap_or(i64::MAX);
        let wanted = config.max_cpu_sockets.unwrap_or(sockets.saturating_mul(ratio));
        let max = wanted.min(MAX_VCPUS / per_socket).max(sockets);
        cpu.max_sockets = Some(max);
        cpu.sockets = Some(sockets);
    }
    if cpu.model.as_deref().is_none_or(str::is_empty) {
        let default = match arch {
            Architecture::Arm64 => "host-passthrough",
            Architecture::Amd64 | Architecture::S390x => "host-model",
        };
        cpu.model = Some(config.cpu_model.clone().unwrap_or_else(|| default.to_owned()));
    }
}

fn default_max_guest(domain: &mut DomainSpec, arch: Architecture, config: &ClusterConfig) {
    let special = domain.launch_security.is_some()
        || domain
            .cpu
            .as_ref()
            .is_some_and(|c| c.realtime.is_some() || c.numa.is_some());
    if arch != Architecture::Amd64 || special || !config.live_update {
        return;
    }
    let Some(memory) = &mut domain.memory else { return };
    let Some(guest) = memory.guest.as_ref().and_then(|g| g.bytes().ok()) else {
        return;
    };
    if memory.max_guest.is_some() || guest < GI || guest % HOTPLUG_BLOCK != 0 {
        return;
    }
    let ratio = i64::try_from(config.max_hotplug_ratio).unwrap_or(i64::MAX);
    let max = config
        .max_guest
        .clone()
        .unwrap_or_else(|| binary(guest.saturating_mul(ratio)));
    let page = memory.hugepages.as_ref().and_then(|pages| pages.page_size.clone());
    let page = page.and_then(|size| Quantity(size).bytes().ok());
    let fits =
        |max: i64| max > guest && max % HOTPLUG_BLOCK == 0 && page.is_none_or(|page| page < 1 || max % page == 0);
    // What the cluster offers to everybody, nobody has asked for: it must not stand in the way.
    if max.bytes().is_ok_and(fits) {
        memory.max_guest = Some(max);
    }
}

/// `bytes` in the largest binary unit that holds it exactly.
pub(crate) fn binary(bytes: i64) -> Quantity {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let exact = units.into_iter().find(|(_, shift)| bytes % (1i64 << shift) == 0);
    Quantity(exact.map_or(bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift)))
}

fn default_network(spec: &mut VirtualMachineInstanceSpec, config: &ClusterConfig) {
    let devices = &mut spec.domain.devices;
    let wanted = devices.autoattach_pod_interface != Some(false);
    if !wanted || !devices.interfaces.is_empty() || !spec.networks.is_empty() {
        return;
    }
    let mut interface = Interface {
        name: "default".to_owned(),
        ..Interface::default()
    };
    match config.default_network_interface {
        TapBinding::Bridge => interface.bridge = Some(InterfaceBridge {}),
        TapBinding::Masquerade => interface.masquerade = Some(InterfaceMasquerade {}),
    }
    devices.interfaces.push(interface);
    spec.networks.push(Network {
        name: "default".to_owned(),
        pod: Some(PodNetwork::default()),
        ..Network::default()
    });
}

fn default_disks(spec: &mut VirtualMachineInstanceSpec, arch: Architecture) {
    let devices = &mut spec.domain.devices;
    for volume in &spec.volumes {
        let used = devices.disks.iter().any(|d| d.name == volume.name)
            || devices.filesystems.iter().any(|f| f.name == volume.name);
        if !used && volume.memory_dump.is_none() {
            devices.disks.push(Disk {
                name: volume.name.clone(),
                ..Disk::default()
            });
        }
    }
    let bus = match arch {
        Architecture::Amd64 => "sata",
        Architecture::Arm64 | Architecture::S390x => "virtio",
    };
    // The only bus that it may be on.
    let metrics = |disk: &Disk| {
        let mut volumes = spec.volumes.iter();
        volumes.any(|v| v.name == disk.name && v.downward_metrics.is_some())
    };
    let fill = |bus: &str, target: &mut Option<String>| {
        if target.as_deref().is_none_or(str::is_empty) {
            *target = Some(bus.to_owned());
        }
    };
    for disk in &mut devices.disks {
        if disk.disk.is_none() && disk.lun.is_none() && disk.cdrom.is_none() {
            disk.disk = Some(DiskTarget::default());
        }
        let own = if metrics(disk) { "virtio" } else { bus };
        disk.disk.iter_mut().for_each(|t| fill(own, &mut t.bus));
        // It takes SCSI commands, whatever the architecture.
        disk.lun.iter_mut().for_each(|t| fill("scsi", &mut t.bus));
        if let Some(cdrom) = &mut disk.cdrom {
            fill(bus, &mut cdrom.bus);
            cdrom.readonly.get_or_insert(true);
            if cdrom.tray.as_deref().is_none_or(str::is_empty) {
                cdrom.tray = Some("closed".to_owned());
            }
        }
    }
}

fn default_volume(volume: &mut Volume) {
    if let Some(disk) = &mut volume.container_disk
        && disk.image_pull_policy.as_deref().is_none_or(str::is_empty)
    {
        disk.image_pull_policy = Some(pull_policy(&disk.image).to_owned());
    }
}

/// The kubelet's rule: a moving reference is always pulled.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    let moving = match last.split_once(':') {
        _ if image.contains('@') => false,
        Some((_, tag)) => tag == "latest",
        None => true,
    };
    if moving { "Always" } else { "IfNotPresent" }
}

fn default_inputs(domain: &mut DomainSpec) {
    let devices = &mut domain.devices;
    if devices.autoattach_input_device == Some(true) && devices.inputs.is_empty() {
        devices.inputs.push(Input {
            name: "default-0".to_owned(),
            ..Input::default()
        });
    }
    for input in &mut devices.inputs {
        if input.bus.as_deref().is_none_or(str::is_empty) {
            input.bus = Some("usb".to_owned());
        }
        if input.r#type.is_empty() {
            "tablet".clone_into(&mut input.r#type);
        }
    }
}

fn default_watchdog(domain: &mut DomainSpec, arch: Architecture) {
    let Some(watchdog) = &mut domain.devices.watchdog else {
        return;
    };
    if watchdog.i6300esb.is_none() && watchdog.diag288.is_none() {
        match arch {
            Architecture::S390x => watchdog.diag288 = Some(Default::default()),
            Architecture::Amd64 | Architecture::Arm64 => {
                watchdog.i6300esb = Some(Default::default());
            }
        }
    }
    let reset = |action: &mut Option<String>| {
        if action.as_deref().is_none_or(str::is_empty) {
            *action = Some("reset".to_owned());
        }
    };
    watchdog.i6300esb.iter_mut().for_each(|w| reset(&mut w.action));
    watchdog.diag288.iter_mut().for_each(|w| reset(&mut w.action));
}

fn default_features(domain: &mut DomainSpec, arch: Architecture) {
    let Features {
        acpi,
        apic,
        hyperv,
        hyperv_passthrough,
        kvm: _,
        pvspinlock,
        smm,
    } = domain.features.get_or_insert_default();
    if acpi.is_none() {
        *acpi = Some(FeatureState {
            enabled: Some(arch != Architecture::S390x),
        });
    }
    for state in [acpi, pvspinlock, smm].into_iter().flatten() {
        state.enabled.get_or_insert(true);
    }
    apic.iter_mut().for_each(|apic| _ = apic.enabled.get_or_insert(true));
    hyperv_passthrough
        .iter_mut()
        .for_each(|p| _ = p.enabled.get_or_insert(true));
    let Some(h) = hyperv else { return };
    let states = [
        &mut h.evmcs,
        &mut h.frequencies,
        &mut h.ipi,
        &mut h.reenlightenment,
        &mut h.relaxed,
        &mut h.reset,
        &mut h.runtime,
        &mut h.synic,
        &mut h.vapic,
        &mut h.vpindex,
    ];
    for state in states.into_iter().flatten() {
        state.enabled.get_or_insert(true);
    }
    if let Some(spinlocks) = &mut h.spinlocks
        && *spinlocks.enabled.get_or_insert(true)
    {
        spinlocks.spinlocks.get_or_insert(4096);
    }
    h.vendorid.iter_mut().for_each(|v| _ = v.enabled.get_or_insert(true));
    h.synictimer.iter_mut().for_each(|t| _ = t.enabled.get_or_insert(true));
    h.tlbflush.iter_mut().for_each(|t| _ = t.enabled.get_or_insert(true));
    default_hyperv_requirements(h);
    let nested = h.evmcs.as_ref().is_some_and(|e| e.enabled == Some(true));
    let cpu = domain.cpu.get_or_insert_default();
    if nested && !cpu.features.iter().any(|f| f.name == "vmx") {
        cpu.features.push(CPUFeature {
            name: "vmx".to_owned(),
            policy: Some("require".to_owned()),
        });
    }
}

/// Adds what enlightenments that are on need, where it is not mentioned.
fn default_hyperv_requirements(h: &mut FeatureHyperv) {
    for (name, needs) in HYPERV_REQUIREMENTS {
        let enabled = match name {
            "synictimer" => h.synictimer.as_ref().and_then(|t| t.enabled),
            "tlbflush" => h.tlbflush.as_ref().and_then(|t| t.enabled),
            "synic" => h.synic.as_ref().and_then(|s| s.enabled),
            "ipi" => h.ipi.as_ref().and_then(|s| s.enabled),
            _ => h.evmcs.as_ref().and_then(|s| s.enabled),
        };
        let need = match needs {
            "synic" => &mut h.synic,
            "vpindex" => &mut h.vpindex,
            _ => &mut h.vapic,
        };
        if enabled == Some(true) {
            need.get_or_insert(FeatureState { enabled: Some(true) });
        }
    }
}

fn default_timers(domain: &mut DomainSpec) {
    let Some(timer) = domain.clock.as_mut().and_then(|c| c.timer.as_mut()) else {
        return;
    };
    timer.hpet.iter_mut().for_each(|t| _ = t.present.get_or_insert(true));
    timer.hyperv.iter_mut().for_each(|t| _ = t.present.get_or_insert(true));
    timer.kvm.iter_mut().for_each(|t| _ = t.present.get_or_insert(true));
    timer.pit.iter_mut().for_each(|t| _ = t.present.get_or_insert(true));
    timer.rtc.iter_mut().for_each(|t| _ = t.present.get_or_insert(true));
}

fn default_efi(firmware: &mut Firmware) {
    let bootloader = firmware.bootloader.get_or_insert_default();
    if bootloader.bios.is_none() {
        bootloader.efi.get_or_insert_default().secure_boot.get_or_insert(false);
    }
}

fn default_probe(probe: &mut Probe) {
    let fill = |value: &mut Option<i32>, default| {
        if value.is_none_or(|v| v == 0) {
            *value = Some(default);
        }
    };
    fill(&mut probe.timeout_seconds, 1);
    fill(&mut probe.period_seconds, 10);
    fill(&mut probe.success_threshold, 1);
    fill(&mut probe.failure_threshold, 3);
}

#[cfg(test)]
mod tests;
