//! The only reading of a VMI's spec: [`Machine::parse`]. What it accepts is built; the rest is refused, with all causes at once.
//!
//! Wire structs are taken apart without `..`, so that a field that the API gains does not compile until someone
//! decides about it.

mod annotations;
mod binding_plugins;
mod claims;
mod cpu;
mod credentials;
mod devices;
mod dhcp;
mod disks;
mod files;
mod filesystems;
mod firmware;
mod host_devices;
mod hyperv;
mod io_threads;
mod kernel_boot;
mod launch_security;
mod memory;
mod networks;
mod pinning;
mod pod;
mod scheduling;
mod text;
mod volumes;

use crate::cause::{Cause, Causes, FieldPath};
use crate::config::ClusterConfig;
use crate::defaults::default_spec;
use crate::machine::{Architecture, Boot, Chassis, Clock, Cpu, Machine, Memory};
use crate::names::firmware_uuid;
use ferrovirt_api::v1::{DomainSpec, Machine as WireMachine, VirtualMachineInstance, VirtualMachineInstanceSpec};

pub(crate) use annotations::annotations;
pub(crate) use binding_plugins::is_definition;
pub(crate) use hyperv::REQUIREMENTS as HYPERV_REQUIREMENTS;
pub(crate) use pod::EVICTION_STRATEGIES;
pub(crate) use text::{is_dns_label, is_dns_subdomain, pci_address};

/// Grace period of a VMI that names none.
const TERMINATION_GRACE_SECONDS: u64 = 30;

/// The host name of a VMI: its own, or the first label of the object's name, cut to 63 characters.
#[must_use]
pub fn hostname(name: &str, spec: &VirtualMachineInstanceSpec) -> String {
    if let Some(hostname) = spec.hostname.as_deref().filter(|h| !h.is_empty()) {
        return hostname.to_owned();
    }
    let label = name.split('.').next().unwrap_or_default();
    let cut: String = label.chars().take(63).collect();
    cut.trim_end_matches('-').to_owned()
}

impl Machine {
    /// Reads a VMI, with the cluster's defaults for what it leaves unsaid.
    ///
    /// # Errors
    /// Every cause to refuse it, each with the path of its field below `spec`. Never panics.
    pub fn parse(vmi: &VirtualMachineInstance, config: &ClusterConfig) -> Result<Self, Vec<Cause>> {
        let name = vmi.metadata.name.as_deref().unwrap_or_default();
        let mut causes = Causes::default();
        let architecture = architecture_of(&vmi.spec, config);
        let path = FieldPath::root("metadata");
        let asked = annotations(&vmi.metadata, &path, architecture, config, &mut causes);
        match parse_spec(name, &vmi.spec, &FieldPath::root("spec"), config) {
            Ok(mut machine) if causes.is_empty() => {
                claims::describe(&mut machine, vmi);
                machine.ignition = asked.ignition;
                machine.hook_sidecars = asked.sidecars;
                machine.free_page_reporting &= !asked.no_free_page_reporting;
                machine.pci_hole64 = !asked.no_pci_hole64;
                if let Some(pinning) = &mut machine.cpu.pinning {
                    pinning.even = asked.even_cpus;
                }
                machine
                    .hook_sidecars
                    .extend(binding_plugins::sidecars(&machine, config));
                Ok(machine)
            }
            parsed => {
                causes.extend(parsed.err().unwrap_or_default());
                Err(causes.into_vec())
            }
        }
    }
}

/// The architecture of a spec, as far as it can be read.
pub(crate) fn architecture_of(spec: &VirtualMachineInstanceSpec, config: &ClusterConfig) -> Architecture {
    let named = spec.architecture.as_deref().and_then(Architecture::from_name);
    named.unwrap_or(config.architecture)
}

/// What every part of the parser needs.
pub(crate) struct Cx<'a> {
    pub config: &'a ClusterConfig,
    pub architecture: Architecture,
    /// Presets may still bring what is missing.
    pub template: bool,
    pub causes: Causes,
}

/// Causes to refuse the spec of a template, whose VMIs the presets of their time may complete.
pub(crate) fn template_causes(
    name: &str,
    spec: &VirtualMachineInstanceSpec,
    path: &FieldPath,
    config: &ClusterConfig,
) -> Vec<Cause> {
    let mut cx = Cx::new(config);
    cx.template = true;
    cx.spec(name, &completed(spec, config), path);
    cx.causes.into_vec()
}

/// Causes to refuse what presets say of disks and firmware, whatever the VMIs that they select look like.
pub(crate) fn preset_causes(domain: &DomainSpec, path: &FieldPath) -> Vec<Cause> {
    let mut config = ClusterConfig::permissive();
    config.architecture = Architecture::Amd64;
    let spec = VirtualMachineInstanceSpec {
        domain: domain.clone(),
        ..VirtualMachineInstanceSpec::default()
    };
    let spec = completed(&spec, &config);
    let mut cx = Cx::new(&config);
    cx.disks_of_preset(&spec.domain.devices.disks, path);
    cx.firmware_of_preset(domain.firmware.as_ref(), &path.child("domain"));
    cx.causes.into_vec()
}

fn completed(spec: &VirtualMachineInstanceSpec, config: &ClusterConfig) -> VirtualMachineInstanceSpec {
    let mut spec = spec.clone();
    default_spec(&mut spec, config);
    spec
}

/// [`Machine::parse`] with field paths below `path`.
fn parse_spec(
    name: &str,
    spec: &VirtualMachineInstanceSpec,
    path: &FieldPath,
    config: &ClusterConfig,
) -> Result<Machine, Vec<Cause>> {
    let mut cx = Cx::new(config);
    let machine = cx.spec(name, &completed(spec, config), path);
    if cx.causes.is_empty() {
        Ok(machine)
    } else {
        Err(cx.causes.into_vec())
    }
}

impl<'a> Cx<'a> {
    fn new(config: &'a ClusterConfig) -> Self {
        Self {
            config,
            architecture: config.architecture,
            template: false,
            causes: Causes::default(),
        }
    }
}

impl Cx<'_> {
    fn spec(&mut self, name: &str, spec: &VirtualMachineInstanceSpec, path: &FieldPath) -> Machine {
        let VirtualMachineInstanceSpec {
            access_credentials,
            affinity,
            architecture,
            dns_config,
            dns_policy,
            domain,
            eviction_strategy,
            hostname: own_hostname,
            liveness_probe,
            networks,
            node_selector,
            priority_class_name,
            readiness_probe,
            resource_claims,
            scheduler_name,
            service_account_name,
            start_strategy,
            subdomain,
            termination_grace_period_seconds,
            tolerations,
            topology_spread_constraints,
            utility_volumes,
            volumes,
        } = spec;
        self.causes
            .none_of(path, &[("utilityVolumes", !utility_volumes.is_empty())]);
        self.architecture(architecture.as_deref(), path);
        let mut machine = self.domain(name, domain, path);
        machine.resource_claims = self.resource_claims(resource_claims, path);
        machine.host_devices = self.host_devices(&domain.devices, resource_claims, path);
        self.one_ram_fb(&domain.devices.gpus, machine.video.as_deref(), path);
        let sources = self.volumes(volumes, path);
        machine.access_credentials = self.access_credentials(access_credentials, &sources, path);
        machine.service_account = self.service_account(service_account_name.as_deref(), volumes, path);
        machine.acpi_tables = self.acpi_tables(domain.firmware.as_ref(), volumes, machine.acpi, path);
        machine.disks = self.disks(&domain.devices.disks, volumes, &sources, path);
        machine.filesystems = self.filesystems(&domain.devices, volumes, &sources, path);
        self.io_threads(
            domain.io_threads_policy.as_deref(),
            domain.io_threads.as_ref(),
            domain.resources.as_ref(),
            &mut machine,
            &path.child("domain"),
        );
        machine.interfaces = self.interfaces(&domain.devices.interfaces, networks, resource_claims, path);
        self.claimed_once(&machine.host_devices, networks, path);
        self.boot_orders(&domain.devices, path);
        if machine.launch_security.is_some() {
            self.protected_interfaces(&machine.interfaces, path);
            self.protected_filesystems(&machine.filesystems, path);
            self.attested_probe(&machine, liveness_probe.as_ref(), path);
        }
        if let Some(address) = disks::taken_twice(&machine.disks, &machine.interfaces) {
            let field = path.child("domain.devices");
            self.causes
                .duplicate(&field, format!("two devices ask for PCI address {address}"));
        }
        self.hostname(own_hostname.as_deref(), subdomain.as_deref(), path);
        self.topology_spread(topology_spread_constraints, path);
        self.affinity(affinity.as_ref(), path);
        self.node_selector(node_selector, path);
        self.class_names(priority_class_name.as_deref(), scheduler_name.as_deref(), path);
        self.tolerations(tolerations, path);
        self.dns(dns_policy.as_deref(), dns_config.as_ref(), path);
        self.eviction_strategy(eviction_strategy.as_deref(), path);
        self.probe(readiness_probe.as_ref(), networks, &path.child("readinessProbe"));
        self.probe(liveness_probe.as_ref(), networks, &path.child("livenessProbe"));
        self.liveness(liveness_probe.as_ref(), &path.child("livenessProbe"));
        machine.hostname = hostname(name, spec);
        machine.subdomain.clone_from(subdomain);
        machine.start_paused = self.start_strategy(start_strategy.as_deref(), liveness_probe.is_some(), path);
        machine.termination_grace_seconds = self.grace(*termination_grace_period_seconds, path);
        machine
    }

    fn grace(&mut self, seconds: Option<i64>, path: &FieldPath) -> u64 {
        let Some(seconds) = seconds else {
            return TERMINATION_GRACE_SECONDS;
        };
        u64::try_from(seconds).unwrap_or_else(|_| {
            let field = path.child("terminationGracePeriodSeconds");
            self.causes.invalid(&field, format!("{seconds} is negative"));
            TERMINATION_GRACE_SECONDS
        })
    }

    fn architecture(&mut self, name: Option<&str>, path: &FieldPath) {
        let Some(name) = name else { return };
        match Architecture::from_name(name) {
            Some(architecture) => self.architecture = architecture,
            None => {
                _ = self
                    .causes
                    .one_of(&path.child("architecture"), name, &["amd64", "arm64", "s390x"]);
            }
        }
    }

    fn domain(&mut self, name: &str, domain: &DomainSpec, path: &FieldPath) -> Machine {
        let path = &path.child("domain");
        let DomainSpec {
            chassis,
            clock,
            cpu,
            devices,
            features,
            firmware,
            // They are counted when the disks are known.
            io_threads: _,
            io_threads_policy: _,
            launch_security,
            machine,
            memory,
            reboot_policy,
            resources,
        } = domain;
        let machine_type = self.machine_type(machine.as_ref(), path);
        let chassis = self.chassis(chassis.as_ref(), path);
        let cpus = self.cpu(cpu.as_ref(), path);
        let sizes = self.memory(memory.as_ref(), resources.as_ref(), path);
        let mut parsed = Machine {
            machine_type,
            chassis,
            terminate_on_reboot: self.reboot_policy(reboot_policy.as_deref(), path),
            ..self.plain(name, cpus, sizes)
        };
        self.own(cpu.as_ref(), resources.as_ref(), &mut parsed, path);
        self.features(features.as_ref(), clock.as_ref(), &mut parsed, path);
        self.firmware(firmware.as_ref(), &mut parsed, path);
        parsed.launch_security = self.launch_security(launch_security.as_ref(), &parsed, path);
        self.clock(clock.as_ref(), &mut parsed, path);
        self.devices(devices, &mut parsed, path);
        parsed
    }

    /// A machine of which nothing else is said.
    fn plain(&self, name: &str, cpu: Cpu, memory: Memory) -> Machine {
        Machine {
            architecture: self.architecture,
            machine_type: String::new(),
            uuid: firmware_uuid(name),
            serial: None,
            smbios: self.config.smbios.clone(),
            chassis: Chassis::default(),
            cpu,
            memory,
            guaranteed: false,
            boot: Boot::Bios { use_serial: false },
            acpi: true,
            acpi_tables: Vec::new(),
            apic: true,
            apic_eoi: None,
            kvm_hidden: false,
            pv_spinlock: None,
            smm: false,
            hyperv: None,
            clock: Clock::Utc(0),
            timers: Vec::new(),
            disks: Vec::new(),
            filesystems: Vec::new(),
            io_threads: 0,
            scsi_io_thread: None,
            interfaces: Vec::new(),
            host_devices: Vec::new(),
            resource_claims: Vec::new(),
            rng: false,
            serial_console: true,
            log_serial_console: true,
            graphics: true,
            video: None,
            mem_balloon: true,
            mem_balloon_stats_period: self.config.mem_balloon_stats_period,
            free_page_reporting: self.config.free_page_reporting,
            pci_hole64: true,
            watchdog: None,
            panic_devices: Vec::new(),
            block_multi_queue: false,
            network_multi_queue: false,
            inputs: Vec::new(),
            sound: None,
            tpm: None,
            usb_redirection: false,
            virtio_transitional: false,
            hostname: String::new(),
            subdomain: None,
            termination_grace_seconds: TERMINATION_GRACE_SECONDS,
            start_paused: false,
            terminate_on_reboot: false,
            launch_security: None,
            kernel_boot: None,
            ignition: None,
            hook_sidecars: Vec::new(),
            downward_metrics: false,
            vsock: false,
            access_credentials: Vec::new(),
            service_account: None,
        }
    }

    fn machine_type(&mut self, machine: Option<&WireMachine>, path: &FieldPath) -> String {
        let types = self.config.machine_types(self.architecture);
        let Some(WireMachine { r#type: Some(name) }) = machine else {
            return types.default.clone();
        };
        let field = path.child("machine.type");
        if !types.allows(name) {
            let allowed = types.allowed.join(", ");
            self.causes.not_supported(
                &field,
                format!("machine type \"{name}\" is not allowed here (allowed: {allowed})"),
            );
        } else if !text::is_token(name) {
            self.causes.invalid(&field, format!("\"{name}\" is not a machine type"));
        }
        name.clone()
    }

    /// Refuses `field` unless the feature gate `name` is on.
    fn gate(&mut self, name: &str, field: &FieldPath) {
        if !self.config.gate(name) {
            self.causes
                .not_supported(field, format!("feature gate {name} is not enabled"));
        }
    }

    fn reboot_policy(&mut self, policy: Option<&str>, path: &FieldPath) -> bool {
        let Some(policy) = policy else { return false };
        self.causes
            .one_of(&path.child("rebootPolicy"), policy, &["Reboot", "Terminate"])
            && policy == "Terminate"
    }
}

/// A switch that only counts when it is on: `false` asks for nothing.
fn on(switch: Option<bool>) -> bool {
    switch == Some(true)
}
