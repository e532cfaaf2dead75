//! What the cluster's administrator decides for all machines: the `KubeVirt` object's configuration with every default resolved.

mod binding_plugins;
mod devices;
mod validate;

use std::collections::{BTreeMap, BTreeSet};

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::{
    ArchConfiguration, ArchSpecificConfiguration, DeveloperConfiguration, KubeVirtConfiguration,
    ResourceRequirementsWithoutClaims, VirtualMachineOptions,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::machine::{Architecture, Smbios, TapBinding};

pub use binding_plugins::BindingPlugin;
pub use devices::{DeviceKind, DeviceSelector};
pub use validate::{SUPPORT_CONTAINERS, validate_configuration, without_effect};

/// Gate that admits `hostDisk` volumes.
pub const GATE_HOST_DISK: &str = "HostDisk";

/// Gate that admits `memory.reservedOverhead.memLock`.
pub const GATE_MEMLOCK: &str = "ReservedOverheadMemlock";

/// Gate that admits `interfaces[].portRanges`.
pub const GATE_PORT_RANGES: &str = "PortRangesSpec";

/// Gate that admits `devices.hostDevices`.
pub const GATE_HOST_DEVICES: &str = "HostDevices";

/// Gate of `devices.gpus` by resource claims; on unless it is disabled.
pub const GATE_GPUS_WITH_DRA: &str = "GPUsWithDRA";

/// Gate of `devices.hostDevices` by resource claims; on unless it is disabled.
pub const GATE_HOST_DEVICES_WITH_DRA: &str = "HostDevicesWithDRA";

/// Gate of networks by resource claims.
pub const GATE_NETWORK_DEVICES_WITH_DRA: &str = "NetworkDevicesWithDRA";

/// Gate of guests whose memory AMD's processors encrypt; on unless it is disabled.
pub const GATE_SEV: &str = "WorkloadEncryptionSEV";

/// Gate of guests whose memory Intel's processors encrypt.
pub const GATE_TDX: &str = "WorkloadEncryptionTDX";

/// Gate of claims as shared directories.
pub const GATE_VIRTIOFS_STORAGE: &str = "EnableVirtioFsStorageVolumes";

/// Gate of `containerPath` volumes.
pub const GATE_CONTAINER_PATH: &str = "ContainerPathVolumes";

/// Gate of the annotation with Ignition's configuration.
pub const GATE_IGNITION: &str = "ExperimentalIgnitionSupport";

/// Gate of metrics of node and guest for the guest.
pub const GATE_DOWNWARD_METRICS: &str = "DownwardMetrics";

/// Gate of the annotation with hook sidecars.
pub const GATE_SIDECAR: &str = "Sidecar";

/// Gate of user-space networking by passt; on unless it is disabled.
pub const GATE_PASST: &str = "PasstBinding";

/// Gate of sockets between guests and their nodes.
pub const GATE_VSOCK: &str = "VSOCK";

/// Gate of CD-ROM drives without a volume; on unless it is disabled.
pub const GATE_EMPTY_DRIVES: &str = "DeclarativeHotplugVolumes";

/// Gate of nodes that are chosen by what Windows looks for in its hypervisor.
pub const GATE_HYPERV_STRICT_CHECK: &str = "HypervStrictCheck";

/// Models of CPUs of which nodes do not tell that guests can have them.
const OBSOLETE_CPU_MODELS: [&str; 17] = [
    "486",
    "Conroe",
    "Opteron_G1",
    "Opteron_G2",
    "athlon",
    "core2duo",
    "coreduo",
    "kvm32",
    "kvm64",
    "n270",
    "pentium",
    "pentium2",
    "pentium3",
    "pentiumpro",
    "phenom",
    "qemu32",
    "qemu64",
];

/// What readers of admitted objects do not ask for again.
const ALL_GATES: [&str; 17] = [
    GATE_CONTAINER_PATH,
    GATE_DOWNWARD_METRICS,
    GATE_EMPTY_DRIVES,
    GATE_GPUS_WITH_DRA,
    GATE_HOST_DISK,
    GATE_HOST_DEVICES,
    GATE_HOST_DEVICES_WITH_DRA,
    GATE_IGNITION,
    GATE_MEMLOCK,
    GATE_NETWORK_DEVICES_WITH_DRA,
    GATE_PASST,
    GATE_PORT_RANGES,
    GATE_SEV,
    GATE_SIDECAR,
    GATE_TDX,
    GATE_VIRTIOFS_STORAGE,
    GATE_VSOCK,
];

/// Gate of containerDisks as image volumes; on unless it is disabled.
pub const GATE_IMAGE_VOLUME: &str = "ImageVolume";

/// Cluster-wide settings that defaults and validation depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Architecture of a VMI that names none.
    pub architecture: Architecture,
    /// Machine types of amd64.
    pub amd64: MachineTypes,
    /// Machine types of arm64.
    pub arm64: MachineTypes,
    /// Machine types of s390x.
    pub s390x: MachineTypes,
    /// CPU model of a VMI that names none; `None`: host-model (arm64: host-passthrough).
    pub cpu_model: Option<String>,
    /// CPU request of a VMI that names none, if it is not KubeVirt's `100m`.
    pub cpu_request: Option<Quantity>,
    /// Guest memory as percentage of the memory that is requested for it.
    pub memory_overcommit: u64,
    /// vCPUs per requested CPU.
    pub cpu_allocation_ratio: u64,
    /// TapBinding of the interface that is added when a VMI lists none.
    pub default_network_interface: TapBinding,
    /// The bridge binding may be used on the pod network.
    pub permit_bridge_on_pod_network: bool,
    /// Plugins that bind NICs by their names; of those that cannot be used, why.
    pub binding_plugins: BTreeMap<String, Result<BindingPlugin, String>>,
    /// A NIC may also be bound by a plugin that is not listed.
    pub any_binding_plugin: bool,
    /// Ceiling of hotplug over what a machine boots with.
    pub max_hotplug_ratio: u64,
    /// `liveUpdateConfiguration.maxCpuSockets`.
    pub max_cpu_sockets: Option<i64>,
    /// `liveUpdateConfiguration.maxGuest`.
    pub max_guest: Option<Quantity>,
    /// `vmRolloutStrategy` is LiveUpdate.
    pub live_update: bool,
    /// Eviction strategy of a VMI that names none.
    pub eviction_strategy: String,
    /// Gates that are on.
    pub feature_gates: BTreeSet<String>,
    /// Guests may run without KVM.
    pub use_emulation: bool,
    /// Kubelets can give CPUs to one guest alone.
    pub dedicated_cpus: bool,
    /// Pods can have networks beside the one that all have.
    pub secondary_networks: bool,
    /// Pods can have devices by resource claims.
    pub resource_claims: bool,
    /// Pods can have containers of other images beside the guest's.
    pub hook_sidecars: bool,
    /// No serial console is logged unless the VMI asks for it.
    pub disable_serial_console_log: bool,
    /// Seconds between balloon statistics; 0: none.
    pub mem_balloon_stats_period: u32,
    /// Guests give pages back that they have freed.
    pub free_page_reporting: bool,
    /// Pods have no hooks for programs that make backups, unless the VMI says otherwise.
    pub skip_backup_hooks: bool,
    /// Resources by which machines may ask for devices of nodes; `None`: any.
    pub permitted_devices: Option<BTreeSet<String>>,
    /// Devices that virt-handler offers as resources.
    pub device_selectors: Vec<DeviceSelector>,
    /// Nodes have a daemon by which guests reserve LUNs for themselves.
    pub persistent_reservation: bool,
    /// Nodes can have it.
    pub reservation_daemons: bool,
    /// What guests read in SMBIOS.
    pub smbios: Smbios,
    /// Namespaces whose pods are limited to as many CPUs as their guests have.
    pub auto_cpu_limit: Option<LabelSelector>,
    /// As many guests may share a device of a node.
    pub guests_per_node: u32,
    /// Models of CPUs of which nodes do not tell that guests can have them.
    pub obsolete_cpu_models: BTreeSet<String>,
    /// Factor on the launcher's own memory.
    pub overhead_ratio: Option<f64>,
    /// Labels that every VM's node must have.
    pub node_selectors: BTreeMap<String, String>,
    /// `configuration.imagePullPolicy`, of our own images.
    pub image_pull_policy: String,
    /// Storage class of the claims with what of firmware and TPM outlives a guest's stop; `None`: the default one.
    pub vm_state_storage_class: Option<String>,
    /// File on the nodes with the seccomp profile of launcher pods; `None`: the container runtime's.
    pub seccomp_profile: Option<String>,
    /// containerDisks are image volumes where the cluster has them: the gate `ImageVolume`, which is on by default.
    pub image_volumes: bool,
    /// Requests and limits of helper containers by their type; what is not named stays as it is.
    pub support_containers: BTreeMap<String, ResourceRequirementsWithoutClaims>,
    /// Pods can name a runtime class.
    pub runtime_classes: bool,
    /// Runtime class of launcher pods.
    pub default_runtime_class: Option<String>,
    /// Log verbosity of the launchers of VMIs that name none.
    pub launcher_verbosity: Option<u8>,
    /// Log verbosity of virt-handler on single nodes, by the node's name.
    pub node_verbosity: BTreeMap<String, u8>,
}

/// Machine types of one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineTypes {
    /// Type of a VMI that names none.
    pub default: String,
    /// Patterns of what a VMI may name; `*` stands for anything.
    pub allowed: Vec<String>,
}

impl MachineTypes {
    fn new(default: &str, allowed: &[&str]) -> Self {
        Self {
            default: default.to_owned(),
            allowed: allowed.iter().map(|&p| p.to_owned()).collect(),
        }
    }

    /// Whether a pattern matches `name`.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        self.allowed.iter().any(|pattern| glob(pattern, name))
    }

    fn apply(&mut self, from: Option<&ArchSpecificConfiguration>) {
        let Some(ArchSpecificConfiguration {
            emulated_machines,
            machine_type,
            ovmf_path: _,
        }) = from
        else {
            return;
        };
        if let Some(machine_type) = machine_type.as_deref().filter(|t| !t.is_empty()) {
            machine_type.clone_into(&mut self.default);
        }
        if !emulated_machines.is_empty() {
            self.allowed.clone_from(emulated_machines);
        }
    }
}

/// `*` in `pattern` matches any run of characters, everything else itself.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

impl Default for ClusterConfig {
    /// KubeVirt's defaults, on this executable's architecture.
    fn default() -> Self {
        Self {
            architecture: Architecture::host(),
            amd64: MachineTypes::new("q35", &["q35*", "pc-q35*"]),
            arm64: MachineTypes::new("virt", &["virt*"]),
            s390x: MachineTypes::new("s390-ccw-virtio", &["s390-ccw-virtio*"]),
            cpu_model: None,
            cpu_request: None,
            memory_overcommit: 100,
            cpu_allocation_ratio: 10,
            default_network_interface: TapBinding::Bridge,
            permit_bridge_on_pod_network: true,
            binding_plugins: BTreeMap::new(),
            any_binding_plugin: false,
            max_hotplug_ratio: 4,
            max_cpu_sockets: None,
            max_guest: None,
            live_update: true,
            eviction_strategy: "None".to_owned(),
            feature_gates: [
                GATE_EMPTY_DRIVES,
                GATE_GPUS_WITH_DRA,
                GATE_HOST_DEVICES_WITH_DRA,
                GATE_PASST,
                GATE_SEV,
            ]
            .map(str::to_owned)
            .into(),
            use_emulation: false,
            dedicated_cpus: true,
            secondary_networks: true,
            resource_claims: true,
            hook_sidecars: true,
            disable_serial_console_log: false,
            mem_balloon_stats_period: 10,
            free_page_reporting: true,
            skip_backup_hooks: false,
            permitted_devices: Some(BTreeSet::new()),
            device_selectors: Vec::new(),
            persistent_reservation: false,
            reservation_daemons: true,
            smbios: Smbios {
                manufacturer: "KubeVirt".to_owned(),
                product: "None".to_owned(),
                family: "KubeVirt".to_owned(),
                sku: None,
                version: None,
            },
            auto_cpu_limit: None,
            guests_per_node: 1000,
            obsolete_cpu_models: OBSOLETE_CPU_MODELS.map(str::to_owned).into(),
            overhead_ratio: None,
            node_selectors: BTreeMap::new(),
            image_pull_policy: "IfNotPresent".to_owned(),
            vm_state_storage_class: None,
            seccomp_profile: None,
            image_volumes: true,
            support_containers: BTreeMap::new(),
            runtime_classes: true,
            default_runtime_class: None,
            launcher_verbosity: None,
            node_verbosity: BTreeMap::new(),
        }
    }
}

impl ClusterConfig {
    /// The defaults of the embedded home: its one user owns the machine, so host disks and shared directories are allowed, and a
    /// guest without KVM is better than none.
    #[must_use]
    pub fn standalone() -> Self {
        Self {
            feature_gates: [
                GATE_CONTAINER_PATH,
                GATE_EMPTY_DRIVES,
                GATE_GPUS_WITH_DRA,
                GATE_HOST_DEVICES_WITH_DRA,
                GATE_HOST_DISK,
                GATE_PASST,
                GATE_SEV,
                GATE_VIRTIOFS_STORAGE,
            ]
            .map(str::to_owned)
            .into(),
            use_emulation: true,
            dedicated_cpus: false,
            secondary_networks: false,
            resource_claims: false,
            hook_sidecars: false,
            runtime_classes: false,
            reservation_daemons: false,
            ..Self::default()
        }
    }

    /// For readers of objects that admission has let in already, such as the launcher: nothing that an
    /// administrator may forbid is forbidden.
    #[must_use]
    pub fn permissive() -> Self {
        Self {
            feature_gates: ALL_GATES.map(str::to_owned).into(),
            permitted_devices: None,
            any_binding_plugin: true,
            persistent_reservation: true,
            amd64: MachineTypes::new("q35", &["*"]),
            arm64: MachineTypes::new("virt", &["*"]),
            s390x: MachineTypes::new("s390-ccw-virtio", &["*"]),
            use_emulation: true,
            // Room to grow was given at admission, or there is none.
            max_hotplug_ratio: 1,
            ..Self::default()
        }
    }

    /// The defaults, changed by what a `KubeVirt` object sets. Values that cannot be read, which
    /// [`validate_configuration`] tells, leave the default.
    #[must_use]
    pub fn from_kubevirt(configuration: &KubeVirtConfiguration) -> Self {
        Self::default().with(configuration)
    }

    /// These settings, changed by what a `KubeVirt` object sets. Values that cannot be read, which
    /// [`validate_configuration`] tells, change nothing.
    #[must_use]
    pub fn with(mut self, configuration: &KubeVirtConfiguration) -> Self {
        let c = configuration;
        if let Some(developer) = &c.developer_configuration {
            self.apply_developer(developer);
        }
        if let Some(arch) = &c.architecture_configuration {
            self.apply_architecture(arch);
        }
        let own = MachineTypes {
            default: String::new(),
            allowed: c.emulated_machines.clone(),
        };
        let types = match self.architecture {
            Architecture::Amd64 => &mut self.amd64,
            Architecture::Arm64 => &mut self.arm64,
            Architecture::S390x => &mut self.s390x,
        };
        if !own.allowed.is_empty() {
            types.allowed = own.allowed;
        }
        if let Some(name) = text(&c.machine_type) {
            types.default = name;
        }
        self.cpu_model = text(&c.cpu_model).or(self.cpu_model);
        self.cpu_request = match &c.cpu_request {
            Some(request) if request.millis().is_ok_and(|m| m == 100) => None,
            Some(request) if request.millis().is_ok() => Some(request.clone()),
            _ => self.cpu_request,
        };
        self.apply_network(c);
        if let Some(live) = &c.live_update_configuration {
            if let Some(ratio) = live.max_hotplug_ratio.and_then(|r| u64::try_from(r).ok()) {
                self.max_hotplug_ratio = ratio.max(1);
            }
            self.max_cpu_sockets = live.max_cpu_sockets.or(self.max_cpu_sockets);
            self.max_guest = live.max_guest.clone().or(self.max_guest);
        }
        if let Some(strategy) = &c.vm_rollout_strategy {
            self.live_update = strategy != "Stage";
        }
        if let Some(strategy) = text(&c.eviction_strategy) {
            self.eviction_strategy = strategy;
        }
        if let Some(policy) = text(&c.image_pull_policy) {
            self.image_pull_policy = policy;
        }
        self.apply_pods(c);
        if let Some(options) = &c.virtual_machine_options {
            let VirtualMachineOptions {
                disable_free_page_reporting,
                disable_serial_console_log,
            } = options;
            self.disable_serial_console_log = disable_serial_console_log.is_some();
            self.free_page_reporting = disable_free_page_reporting.is_none();
        }
        self.apply_devices(c);
        self.apply_nodes(c);
        if let Some(period) = c.mem_balloon_stats_period.and_then(|p| u32::try_from(p).ok()) {
            self.mem_balloon_stats_period = period;
        }
        if let Some(smbios) = &c.smbios {
            let old = self.smbios;
            self.smbios = Smbios {
                manufacturer: text(&smbios.manufacturer).unwrap_or(old.manufacturer),
                product: text(&smbios.product).unwrap_or(old.product),
                family: text(&smbios.family).unwrap_or(old.family),
                sku: text(&smbios.sku).or(old.sku),
                version: text(&smbios.version).or(old.version),
            };
        }
        let ratio = c.additional_guest_memory_overhead_ratio.as_deref();
        if let Some(ratio) = ratio.and_then(|r| r.parse::<f64>().ok()).filter(|r| *r >= 1.0) {
            self.overhead_ratio = Some(ratio);
        }
        self
    }

    fn apply_pods(&mut self, c: &KubeVirtConfiguration) {
        let selector = c.auto_cpu_limit_namespace_label_selector.clone();
        self.auto_cpu_limit = selector.or_else(|| self.auto_cpu_limit.take());
        let resources = c.support_container_resources.iter();
        self.support_containers
            .extend(resources.map(|s| (s.r#type.clone(), s.resources.clone())));
        if self.runtime_classes {
            self.default_runtime_class = text(&c.default_runtime_class).or_else(|| self.default_runtime_class.take());
        }
        self.vm_state_storage_class = text(&c.vm_state_storage_class).or_else(|| self.vm_state_storage_class.take());
        let seccomp = c.seccomp_configuration.as_ref();
        let own = seccomp.and_then(|s| s.virtual_machine_instance_profile.as_ref()?.custom_profile.as_ref());
        if let Some(own) = own {
            self.seccomp_profile = text(&own.localhost_profile);
        }
    }

    fn apply_devices(&mut self, c: &KubeVirtConfiguration) {
        if let Some(permitted) = &c.permitted_host_devices {
            self.device_selectors = devices::selectors(permitted);
        }
        if let (Some(all), Some(more)) = (&mut self.permitted_devices, &c.permitted_host_devices) {
            all.extend(more.pci_host_devices.iter().map(|d| d.resource_name.clone()));
            all.extend(more.mediated_devices.iter().map(|d| d.resource_name.clone()));
            all.extend(more.usb.iter().map(|d| d.resource_name.clone()));
        }
        if let Some(reservation) = &c.persistent_reservation_configuration {
            self.persistent_reservation = reservation.enabled == Some(true);
        }
    }

    fn apply_nodes(&mut self, c: &KubeVirtConfiguration) {
        let count = c.virtual_machine_instances_per_node;
        if let Some(count) = count.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0) {
            self.guests_per_node = count;
        }
        if !c.obsolete_cpu_models.is_empty() {
            let obsolete = c.obsolete_cpu_models.iter().filter(|(_, obsolete)| **obsolete);
            self.obsolete_cpu_models = obsolete.map(|(model, _)| model.clone()).collect();
        }
    }

    fn apply_network(&mut self, c: &KubeVirtConfiguration) {
        if let Some(network) = &c.network {
            match network.default_network_interface.as_deref() {
                Some("masquerade") => self.default_network_interface = TapBinding::Masquerade,
                Some("bridge") => self.default_network_interface = TapBinding::Bridge,
                _ => {}
            }
            if let Some(permit) = network.permit_bridge_interface_on_pod_network {
                self.permit_bridge_on_pod_network = permit;
            }
            self.binding_plugins.extend(binding_plugins::read(&network.binding));
        }
    }

    fn apply_developer(&mut self, developer: &DeveloperConfiguration) {
        self.feature_gates.extend(developer.feature_gates.iter().cloned());
        for gate in &developer.disabled_feature_gates {
            self.feature_gates.remove(gate);
            if gate == GATE_IMAGE_VOLUME {
                self.image_volumes = false;
            }
        }
        if let Some(use_emulation) = developer.use_emulation {
            self.use_emulation = use_emulation;
        }
        let positive = |n: Option<i32>| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        if let Some(percent) = positive(developer.memory_overcommit) {
            self.memory_overcommit = percent;
        }
        if let Some(ratio) = positive(developer.cpu_allocation_ratio) {
            self.cpu_allocation_ratio = ratio;
        }
        self.node_selectors.extend(developer.node_selectors.clone());
        if let Some(verbosity) = &developer.log_verbosity {
            let level = |level: i32| u8::try_from(level).ok().filter(|level| *level > 0);
            self.launcher_verbosity = verbosity.virt_launcher.and_then(level).or(self.launcher_verbosity);
            let nodes = verbosity.node_verbosity.iter();
            self.node_verbosity
                .extend(nodes.filter_map(|(node, l)| Some((node.clone(), level(*l)?))));
        }
    }

    fn apply_architecture(&mut self, configuration: &ArchConfiguration) {
        let ArchConfiguration {
            amd64,
            arm64,
            default_architecture,
            ppc64le: _,
            s390x,
        } = configuration;
        self.amd64.apply(amd64.as_ref());
        self.arm64.apply(arm64.as_ref());
        self.s390x.apply(s390x.as_ref());
        if let Some(arch) = default_architecture.as_deref().and_then(Architecture::from_name) {
            self.architecture = arch;
        }
    }

    /// The machine types of `architecture`.
    #[must_use]
    pub fn machine_types(&self, architecture: Architecture) -> &MachineTypes {
        match architecture {
            Architecture::Amd64 => &self.amd64,
            Architecture::Arm64 => &self.arm64,
            Architecture::S390x => &self.s390x,
        }
    }

    /// Whether machines may ask for devices of nodes by this resource.
    #[must_use]
    pub fn permits_device(&self, resource: &str) -> bool {
        self.permitted_devices.as_ref().is_none_or(|all| all.contains(resource))
    }

    /// Whether feature gate `name` is on.
    #[must_use]
    pub fn gate(&self, name: &str) -> bool {
        self.feature_gates.contains(name)
    }
}

fn text(value: &Option<String>) -> Option<String> {
    value.clone().filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, matches) in [
            ("q35*", "q35", true),
            ("q35*", "pc-q35-8.0", false),
            ("pc-q35*", "pc-q35-8.0", true),
            ("q35", "q35", true),
            ("q35", "q35x", false),
            ("*-8*0", "pc-q35-8.0", true),
            ("*", "", true),
            ("", "x", false),
        ] {
            assert_eq!(glob(pattern, name), matches, "{pattern} on {name}");
        }
    }

    #[test]
    fn log_verbosity_of_launchers_and_nodes() {
        let developer = serde_json::json!({"developerConfiguration": {"logVerbosity": {
            "virtLauncher": 5, "virtHandler": 3, "nodeVerbosity": {"a": 7, "b": 0, "c": 1000},
        }}});
        let config = ClusterConfig::from_kubevirt(&serde_json::from_value(developer).unwrap());
        assert_eq!(config.launcher_verbosity, Some(5));
        assert_eq!(config.node_verbosity, BTreeMap::from([("a".to_owned(), 7)]));
    }

    #[test]
    fn kubevirt_configuration_wins_over_defaults() {
        let configuration: KubeVirtConfiguration = serde_json::from_value(serde_json::json!({
            "machineType": "pc-q35-9.0",
            "cpuModel": "EPYC",
            "cpuRequest": "250m",
            "developerConfiguration": {
                "featureGates": ["HostDisk", "Sidecar"],
                "disabledFeatureGates": ["Sidecar", "ImageVolume"],
                "useEmulation": true,
                "cpuAllocationRatio": 4,
                "memoryOvercommit": -3
            },
            "network": {"defaultNetworkInterface": "masquerade", "permitBridgeInterfaceOnPodNetwork": false},
            "seccompConfiguration": {"virtualMachineInstanceProfile": {"customProfile": {"localhostProfile": "vm.json"}}},
            "vmRolloutStrategy": "Stage",
            "virtualMachineInstancesPerNode": 7,
            "obsoleteCPUModels": {"Penryn": true, "Conroe": false},
            "autoCPULimitNamespaceLabelSelector": {"matchLabels": {"limit": "yes"}},
            "virtualMachineOptions": {"disableSerialConsoleLog": {}, "disableFreePageReporting": {}}
        }))
        .unwrap();
        let config = ClusterConfig::from_kubevirt(&configuration);
        assert_eq!(config.machine_types(config.architecture).default, "pc-q35-9.0");
        assert_eq!(config.cpu_model.as_deref(), Some("EPYC"));
        assert_eq!(config.cpu_request, Some("250m".into()));
        assert!(config.gate(GATE_HOST_DISK) && !config.gate("Sidecar"));
        assert!(config.use_emulation && !config.live_update && config.disable_serial_console_log);
        assert!(!config.free_page_reporting);
        assert_eq!(config.guests_per_node, 7);
        assert_eq!(config.obsolete_cpu_models, BTreeSet::from(["Penryn".to_owned()]));
        assert!(
            config
                .auto_cpu_limit
                .is_some_and(|selector| selector.match_labels.is_some())
        );
        assert_eq!((config.cpu_allocation_ratio, config.memory_overcommit), (4, 100));
        assert_eq!(config.default_network_interface, TapBinding::Masquerade);
        assert!(!config.permit_bridge_on_pod_network && !config.image_volumes);
        assert_eq!(config.seccomp_profile.as_deref(), Some("vm.json"));
    }
}
