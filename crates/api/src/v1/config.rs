//! `KubeVirt.spec.configuration`: how the cluster is configured.

use crate::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `v1.ArchConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchConfiguration {
    /// `amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amd64: Option<ArchSpecificConfiguration>,
    /// `arm64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm64: Option<ArchSpecificConfiguration>,
    /// `defaultArchitecture`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_architecture: Option<String>,
    /// `ppc64le`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppc64le: Option<ArchSpecificConfiguration>,
    /// `s390x`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s390x: Option<ArchSpecificConfiguration>,
}

/// `v1.ArchSpecificConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchSpecificConfiguration {
    /// `emulatedMachines`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub emulated_machines: Vec<String>,
    /// `machineType`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<String>,
    /// `ovmfPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ovmf_path: Option<String>,
}

/// `v1.ChangedBlockTrackingSelectors` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangedBlockTrackingSelectors {
    /// `namespaceLabelSelector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_label_selector: Option<LabelSelector>,
    /// `virtualMachineLabelSelector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_label_selector: Option<LabelSelector>,
}

/// `v1.CommonInstancetypesDeployment` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommonInstancetypesDeployment {
    /// `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// `v1.ConfidentialComputeConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfidentialComputeConfiguration {
    /// `tdx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tdx: Option<TDXConfiguration>,
}

/// `v1.CustomProfile` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomProfile {
    /// `localhostProfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub localhost_profile: Option<String>,
    /// `runtimeDefaultProfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_default_profile: Option<bool>,
}

/// `v1.DeveloperConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeveloperConfiguration {
    /// `clusterProfiler`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_profiler: Option<bool>,
    /// `cpuAllocationRatio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_allocation_ratio: Option<i32>,
    /// `disabledFeatureGates`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub disabled_feature_gates: Vec<String>,
    /// `diskVerification`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_verification: Option<DiskVerification>,
    /// `featureGates`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub feature_gates: Vec<String>,
    /// `logVerbosity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_verbosity: Option<LogVerbosity>,
    /// `memoryOvercommit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_overcommit: Option<i32>,
    /// `minimumClusterTSCFrequency`.
    #[serde(
        default,
        rename = "minimumClusterTSCFrequency",
        skip_serializing_if = "Option::is_none"
    )]
    pub minimum_cluster_tsc_frequency: Option<i64>,
    /// `minimumReservePVCBytes`.
    #[serde(default, rename = "minimumReservePVCBytes", skip_serializing_if = "Option::is_none")]
    pub minimum_reserve_pvc_bytes: Option<i64>,
    /// `nodeSelectors`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub node_selectors: BTreeMap<String, String>,
    /// `pvcTolerateLessSpaceUpToPercent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pvc_tolerate_less_space_up_to_percent: Option<i32>,
    /// `useEmulation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_emulation: Option<bool>,
}

/// `v1.DisableFreePageReporting` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DisableFreePageReporting {}

/// `v1.DisableSerialConsoleLog` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DisableSerialConsoleLog {}

/// `v1.DiskVerification` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskVerification {
    /// `memoryLimit`.
    pub memory_limit: Quantity,
}

/// `v1.HypervisorConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HypervisorConfiguration {
    /// `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `v1.InstancetypeConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstancetypeConfiguration {
    /// `referencePolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_policy: Option<String>,
}

/// `v1.InterfaceBindingMigration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceBindingMigration {
    /// `method`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// `v1.InterfaceBindingPlugin` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceBindingPlugin {
    /// `computeResourceOverhead`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_resource_overhead: Option<ResourceRequirementsWithoutClaims>,
    /// `domainAttachmentType`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_attachment_type: Option<String>,
    /// `downwardAPI`.
    #[serde(default, rename = "downwardAPI", skip_serializing_if = "Option::is_none")]
    pub downward_api: Option<String>,
    /// `migration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<InterfaceBindingMigration>,
    /// `networkAttachmentDefinition`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_attachment_definition: Option<String>,
    /// `sidecarImage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar_image: Option<String>,
}

/// `v1.KSMConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KSMConfiguration {
    /// `nodeLabelSelector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_label_selector: Option<LabelSelector>,
}

/// `v1.KubeVirtConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtConfiguration {
    /// `additionalGuestMemoryOverheadRatio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additional_guest_memory_overhead_ratio: Option<String>,
    /// `apiConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_configuration: Option<ReloadableComponentConfiguration>,
    /// `architectureConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture_configuration: Option<ArchConfiguration>,
    /// `autoCPULimitNamespaceLabelSelector`.
    #[serde(
        default,
        rename = "autoCPULimitNamespaceLabelSelector",
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_cpu_limit_namespace_label_selector: Option<LabelSelector>,
    /// `changedBlockTrackingLabelSelectors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_block_tracking_label_selectors: Option<ChangedBlockTrackingSelectors>,
    /// `commonInstancetypesDeployment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_instancetypes_deployment: Option<CommonInstancetypesDeployment>,
    /// `confidentialCompute`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidential_compute: Option<ConfidentialComputeConfiguration>,
    /// `controllerConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller_configuration: Option<ReloadableComponentConfiguration>,
    /// `cpuModel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// `cpuRequest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request: Option<Quantity>,
    /// `defaultRuntimeClass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_runtime_class: Option<String>,
    /// `developerConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub developer_configuration: Option<DeveloperConfiguration>,
    /// `emulatedMachines`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub emulated_machines: Vec<String>,
    /// `evictionStrategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction_strategy: Option<String>,
    /// `handlerConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler_configuration: Option<ReloadableComponentConfiguration>,
    /// `hypervisors`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub hypervisors: Vec<HypervisorConfiguration>,
    /// `imagePullPolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub image_pull_policy: Option<String>,
    /// `instancetype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instancetype: Option<InstancetypeConfiguration>,
    /// `ksmConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ksm_configuration: Option<KSMConfiguration>,
    /// `liveUpdateConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_update_configuration: Option<LiveUpdateConfiguration>,
    /// `machineType`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<String>,
    /// `mediatedDevicesConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mediated_devices_configuration: Option<MediatedDevicesConfiguration>,
    /// `memBalloonStatsPeriod`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_balloon_stats_period: Option<i64>,
    /// `migrations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrations: Option<MigrationConfiguration>,
    /// `minCPUModel`.
    #[serde(default, rename = "minCPUModel", skip_serializing_if = "Option::is_none")]
    pub min_cpu_model: Option<String>,
    /// `network`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfiguration>,
    /// `obsoleteCPUModels`.
    #[serde(
        rename = "obsoleteCPUModels",
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub obsolete_cpu_models: BTreeMap<String, bool>,
    /// `ovmfPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ovmf_path: Option<String>,
    /// `permittedHostDevices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permitted_host_devices: Option<PermittedHostDevices>,
    /// `persistentReservationConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_reservation_configuration: Option<PersistentReservationConfiguration>,
    /// `roleAggregationStrategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_aggregation_strategy: Option<String>,
    /// `seccompConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp_configuration: Option<SeccompConfiguration>,
    /// `selinuxLauncherType`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux_launcher_type: Option<String>,
    /// `smbios`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smbios: Option<SMBiosConfiguration>,
    /// `supportContainerResources`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub support_container_resources: Vec<SupportContainerResources>,
    /// `supportedGuestAgentVersions`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub supported_guest_agent_versions: Vec<String>,
    /// `tlsConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_configuration: Option<TLSConfiguration>,
    /// `virtTemplateDeployment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virt_template_deployment: Option<VirtTemplateDeployment>,
    /// `virtualMachineInstancesPerNode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_instances_per_node: Option<i32>,
    /// `virtualMachineOptions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_options: Option<VirtualMachineOptions>,
    /// `vmRolloutStrategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_rollout_strategy: Option<String>,
    /// `vmStateStorageClass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_state_storage_class: Option<String>,
    /// `webhookConfiguration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_configuration: Option<ReloadableComponentConfiguration>,
}

/// `v1.LiveUpdateConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveUpdateConfiguration {
    /// `maxCpuSockets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cpu_sockets: Option<i64>,
    /// `maxGuest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_guest: Option<Quantity>,
    /// `maxHotplugRatio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hotplug_ratio: Option<i64>,
}

/// `v1.LogVerbosity` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogVerbosity {
    /// `nodeVerbosity`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub node_verbosity: BTreeMap<String, i32>,
    /// `virtAPI`.
    #[serde(default, rename = "virtAPI", skip_serializing_if = "Option::is_none")]
    pub virt_api: Option<i32>,
    /// `virtController`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virt_controller: Option<i32>,
    /// `virtHandler`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virt_handler: Option<i32>,
    /// `virtLauncher`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virt_launcher: Option<i32>,
    /// `virtOperator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virt_operator: Option<i32>,
    /// `virtSynchronizationController`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virt_synchronization_controller: Option<i32>,
}

/// `v1.MediatedDevicesConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MediatedDevicesConfiguration {
    /// `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// `mediatedDeviceTypes`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mediated_device_types: Vec<String>,
    /// `mediatedDevicesTypes`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mediated_devices_types: Vec<String>,
    /// `nodeMediatedDeviceTypes`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub node_mediated_device_types: Vec<NodeMediatedDeviceTypesConfig>,
}

/// `v1.MediatedHostDevice` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MediatedHostDevice {
    /// `externalResourceProvider`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_resource_provider: Option<bool>,
    /// `mdevNameSelector`.
    pub mdev_name_selector: String,
    /// `resourceName`.
    pub resource_name: String,
}

/// `v1.MigrationConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationConfiguration {
    /// `allowAutoConverge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_auto_converge: Option<bool>,
    /// `allowPostCopy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_post_copy: Option<bool>,
    /// `allowWorkloadDisruption`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_workload_disruption: Option<bool>,
    /// `bandwidthPerMigration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_per_migration: Option<Quantity>,
    /// `completionTimeoutPerGiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_timeout_per_gi_b: Option<i64>,
    /// `disableTLS`.
    #[serde(default, rename = "disableTLS", skip_serializing_if = "Option::is_none")]
    pub disable_tls: Option<bool>,
    /// `matchSELinuxLevelOnMigration`.
    #[serde(
        default,
        rename = "matchSELinuxLevelOnMigration",
        skip_serializing_if = "Option::is_none"
    )]
    pub match_se_linux_level_on_migration: Option<bool>,
    /// `maxDowntimeMs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_downtime_ms: Option<i64>,
    /// `network`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// `nodeDrainTaintKey`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_drain_taint_key: Option<String>,
    /// `parallelMigrationsPerCluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_migrations_per_cluster: Option<i64>,
    /// `parallelOutboundMigrationsPerNode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_outbound_migrations_per_node: Option<i64>,
    /// `progressTimeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_timeout: Option<i64>,
    /// `unsafeMigrationOverride`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsafe_migration_override: Option<bool>,
    /// `utilityVolumesTimeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utility_volumes_timeout: Option<i64>,
}

/// `v1.NetworkConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfiguration {
    /// `binding`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub binding: BTreeMap<String, InterfaceBindingPlugin>,
    /// `defaultNetworkInterface`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_network_interface: Option<String>,
    /// `permitBridgeInterfaceOnPodNetwork`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit_bridge_interface_on_pod_network: Option<bool>,
    /// `permitSlirpInterface`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit_slirp_interface: Option<bool>,
}

/// `v1.NodeMediatedDeviceTypesConfig` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMediatedDeviceTypesConfig {
    /// `mediatedDeviceTypes`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mediated_device_types: Vec<String>,
    /// `mediatedDevicesTypes`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mediated_devices_types: Vec<String>,
    /// `nodeSelector`.
    #[serde(deserialize_with = "crate::null_default")]
    pub node_selector: BTreeMap<String, String>,
}

/// `v1.PciHostDevice` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PciHostDevice {
    /// `externalResourceProvider`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_resource_provider: Option<bool>,
    /// `pciVendorSelector`.
    pub pci_vendor_selector: String,
    /// `resourceName`.
    pub resource_name: String,
}

/// `v1.PermittedHostDevices` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermittedHostDevices {
    /// `mediatedDevices`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mediated_devices: Vec<MediatedHostDevice>,
    /// `pciHostDevices`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub pci_host_devices: Vec<PciHostDevice>,
    /// `usb`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub usb: Vec<USBHostDevice>,
}

/// `v1.PersistentReservationConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersistentReservationConfiguration {
    /// `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// `v1.RESTClientConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RESTClientConfiguration {
    /// `rateLimiter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `v1.RateLimiter` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimiter {
    /// `tokenBucketRateLimiter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_bucket_rate_limiter: Option<TokenBucketRateLimiter>,
}

/// `v1.ReloadableComponentConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReloadableComponentConfiguration {
    /// `restClient`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest_client: Option<RESTClientConfiguration>,
}

/// `v1.ResourceRequirementsWithoutClaims` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceRequirementsWithoutClaims {
    /// `limits`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub limits: BTreeMap<String, Quantity>,
    /// `requests`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub requests: BTreeMap<String, Quantity>,
}

/// `v1.SMBiosConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SMBiosConfiguration {
    /// `family`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// `manufacturer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// `product`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// `sku`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// `v1.SeccompConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeccompConfiguration {
    /// `virtualMachineInstanceProfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_instance_profile: Option<VirtualMachineInstanceProfile>,
}

/// `v1.SupportContainerResources` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SupportContainerResources {
    /// `resources`.
    pub resources: ResourceRequirementsWithoutClaims,
    /// `type`.
    pub r#type: String,
}

/// `v1.TDXAttestationConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TDXAttestationConfiguration {
    /// `enforced`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<bool>,
    /// `qgsSocketPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qgs_socket_path: Option<String>,
}

/// `v1.TDXConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TDXConfiguration {
    /// `attestation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<TDXAttestationConfiguration>,
}

/// `v1.TLSConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TLSConfiguration {
    /// `ciphers`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ciphers: Vec<String>,
    /// `minTLSVersion`.
    #[serde(default, rename = "minTLSVersion", skip_serializing_if = "Option::is_none")]
    pub min_tls_version: Option<String>,
}

/// `v1.TokenBucketRateLimiter` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenBucketRateLimiter {
    /// `burst`.
    pub burst: i32,
    /// `qps`.
    pub qps: f32,
}

/// `v1.USBHostDevice` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct USBHostDevice {
    /// `externalResourceProvider`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_resource_provider: Option<bool>,
    /// `resourceName`.
    pub resource_name: String,
    /// `selectors`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub selectors: Vec<USBSelector>,
}

/// `v1.USBSelector` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct USBSelector {
    /// `product`.
    pub product: String,
    /// `vendor`.
    pub vendor: String,
}

/// `v1.VirtTemplateDeployment` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtTemplateDeployment {
    /// `enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// `v1.VirtualMachineInstanceProfile` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceProfile {
    /// `customProfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_profile: Option<CustomProfile>,
}

/// `v1.VirtualMachineOptions` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineOptions {
    /// `disableFreePageReporting`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_free_page_reporting: Option<DisableFreePageReporting>,
    /// `disableSerialConsoleLog`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_serial_console_log: Option<DisableSerialConsoleLog>,
}
