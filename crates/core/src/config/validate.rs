//! What is wrong with the configuration in a `KubeVirt` object, and what of it changes nothing here.

use ferrovirt_api::v1::{
    ArchConfiguration, DeveloperConfiguration, KubeVirtConfiguration, LiveUpdateConfiguration, NetworkConfiguration,
    PermittedHostDevices,
};

use super::{BindingPlugin, ClusterConfig, devices};
use crate::cause::{Cause, Causes, FieldPath};
use crate::machine::Architecture;
use crate::parse::EVICTION_STRATEGIES;

/// The helper containers whose resources an administrator may set.
pub const SUPPORT_CONTAINERS: [&str; 6] = [
    "hotplug-disk",
    "container-disk",
    "virtiofs",
    "sidecar",
    "vmexport",
    "guest-console-log",
];

/// Values that cannot be meant: read as they are, they would be passed over in silence, or every VM would be refused.
///
/// Of an update only what it brings is judged: what `old` had already can be corrected one by one.
#[must_use]
pub fn validate_configuration(
    configuration: &KubeVirtConfiguration,
    old: Option<&KubeVirtConfiguration>,
    defaults: &ClusterConfig,
) -> Vec<Cause> {
    let known = old.map(|old| causes(old, defaults)).unwrap_or_default();
    let mut new = causes(configuration, defaults);
    new.retain(|cause| !known.contains(cause));
    new
}

fn causes(c: &KubeVirtConfiguration, defaults: &ClusterConfig) -> Vec<Cause> {
    let mut causes = Causes::default();
    let path = FieldPath::root("spec.configuration");
    choice(
        &mut causes,
        &path,
        "evictionStrategy",
        c.eviction_strategy.as_deref(),
        &EVICTION_STRATEGIES,
    );
    let strategy = c.vm_rollout_strategy.as_deref();
    choice(
        &mut causes,
        &path,
        "vmRolloutStrategy",
        strategy,
        &["LiveUpdate", "Stage"],
    );
    let strategy = c.role_aggregation_strategy.as_deref();
    choice(
        &mut causes,
        &path,
        "roleAggregationStrategy",
        strategy,
        &["AggregateToDefault", "Manual"],
    );
    if let Some(request) = c.cpu_request.as_ref().filter(|q| !q.millis().is_ok_and(|m| m > 0)) {
        causes.invalid(
            &path.child("cpuRequest"),
            format!("\"{}\" is not an amount of CPUs above 0, such as 100m", request.0),
        );
    }
    at_least(
        &mut causes,
        &path,
        "memBalloonStatsPeriod",
        c.mem_balloon_stats_period,
        0,
    );
    let ratio = c
        .additional_guest_memory_overhead_ratio
        .as_deref()
        .filter(|r| !r.is_empty());
    if let Some(ratio) = ratio.filter(|r| !r.parse::<f64>().is_ok_and(|r| r.is_finite() && r >= 1.0)) {
        causes.invalid(
            &path.child("additionalGuestMemoryOverheadRatio"),
            format!("\"{ratio}\" is not a factor of at least 1, such as 1.5"),
        );
    }
    let per_node = c.virtual_machine_instances_per_node;
    at_least(&mut causes, &path, "virtualMachineInstancesPerNode", per_node, 1);
    for (i, support) in c.support_container_resources.iter().enumerate() {
        let field = path.child("supportContainerResources").index(i).child("type");
        causes.one_of(&field, &support.r#type, &SUPPORT_CONTAINERS);
    }
    if let Some(developer) = &c.developer_configuration {
        of_developers(&mut causes, developer, &path.child("developerConfiguration"));
    }
    if let Some(live) = &c.live_update_configuration {
        live_updates(&mut causes, live, &path.child("liveUpdateConfiguration"));
    }
    if let Some(network) = &c.network {
        of_networks(&mut causes, network, &path.child("network"));
    }
    if let Some(permitted) = &c.permitted_host_devices {
        host_devices(&mut causes, permitted, &path.child("permittedHostDevices"));
    }
    machine_types(&mut causes, c, defaults, &path);
    causes.into_vec()
}

fn choice(causes: &mut Causes, path: &FieldPath, name: &str, value: Option<&str>, allowed: &[&str]) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        causes.one_of(&path.child(name), value, allowed);
    }
}

fn at_least(causes: &mut Causes, path: &FieldPath, name: &str, value: Option<impl Into<i64>>, least: i64) {
    if let Some(value) = value
        .map(Into::into)
        .filter(|value| !(least..=i64::from(u32::MAX)).contains(value))
    {
        causes.invalid(
            &path.child(name),
            format!("{value} is not between {least} and {}", u32::MAX),
        );
    }
}

fn of_developers(causes: &mut Causes, developer: &DeveloperConfiguration, path: &FieldPath) {
    at_least(causes, path, "memoryOvercommit", developer.memory_overcommit, 1);
    at_least(causes, path, "cpuAllocationRatio", developer.cpu_allocation_ratio, 1);
    for gate in &developer.disabled_feature_gates {
        if developer.feature_gates.contains(gate) {
            causes.invalid(
                &path.child("disabledFeatureGates"),
                format!("the gate \"{gate}\" is in featureGates, too: it is on or off"),
            );
        }
    }
    let Some(verbosity) = &developer.log_verbosity else {
        return;
    };
    let path = path.child("logVerbosity");
    let components = [
        ("virtAPI", verbosity.virt_api),
        ("virtController", verbosity.virt_controller),
        ("virtHandler", verbosity.virt_handler),
        ("virtLauncher", verbosity.virt_launcher),
        ("virtOperator", verbosity.virt_operator),
    ];
    let nodes = verbosity.node_verbosity.iter();
    let nodes = nodes.map(|(node, level)| (path.child("nodeVerbosity").key(node), *level));
    let all = components
        .iter()
        .filter_map(|(name, level)| Some((path.child(name), (*level)?)));
    for (field, level) in all.chain(nodes) {
        if u8::try_from(level).is_err() {
            causes.invalid(&field, format!("{level} is not between 0 and {}", u8::MAX));
        }
    }
}

fn live_updates(causes: &mut Causes, live: &LiveUpdateConfiguration, path: &FieldPath) {
    at_least(causes, path, "maxHotplugRatio", live.max_hotplug_ratio, 1);
    at_least(causes, path, "maxCpuSockets", live.max_cpu_sockets, 1);
    if let Some(most) = live.max_guest.as_ref().filter(|q| !q.bytes().is_ok_and(|b| b > 0)) {
        causes.invalid(
            &path.child("maxGuest"),
            format!("\"{}\" is not an amount of memory, such as 8Gi", most.0),
        );
    }
}

fn of_networks(causes: &mut Causes, network: &NetworkConfiguration, path: &FieldPath) {
    let default = network.default_network_interface.as_deref();
    choice(
        causes,
        path,
        "defaultNetworkInterface",
        default,
        &["bridge", "masquerade"],
    );
    if network.permit_slirp_interface == Some(true) {
        causes.not_supported(
            &path.child("permitSlirpInterface"),
            "slirp was discontinued; use masquerade",
        );
    }
    for (name, plugin) in &network.binding {
        BindingPlugin::read(plugin, &path.child("binding").key(name), causes);
    }
}

fn host_devices(causes: &mut Causes, permitted: &PermittedHostDevices, path: &FieldPath) {
    let named = |causes: &mut Causes, path: &FieldPath, name: &str| {
        if name.is_empty() {
            causes.required(
                &path.child("resourceName"),
                "say by which resource VMs ask for the device",
            );
        }
    };
    for (i, device) in permitted.pci_host_devices.iter().enumerate() {
        let path = path.child("pciHostDevices").index(i);
        named(causes, &path, &device.resource_name);
        if devices::pci_numbers(&device.pci_vendor_selector).is_none() {
            causes.invalid(
                &path.child("pciVendorSelector"),
                format!(
                    "\"{}\" is not VENDOR:DEVICE in hexadecimal digits, such as 10DE:1EB8",
                    device.pci_vendor_selector
                ),
            );
        }
    }
    for (i, device) in permitted.mediated_devices.iter().enumerate() {
        let path = path.child("mediatedDevices").index(i);
        named(causes, &path, &device.resource_name);
        if device.mdev_name_selector.is_empty() {
            causes.required(
                &path.child("mdevNameSelector"),
                "say which type of mediated devices, such as GRID T4-1Q",
            );
        }
    }
    for (i, device) in permitted.usb.iter().enumerate() {
        let path = path.child("usb").index(i);
        named(causes, &path, &device.resource_name);
        for (j, selector) in device.selectors.iter().enumerate() {
            if devices::pair(&selector.vendor, &selector.product).is_none() {
                causes.invalid(
                    &path.child("selectors").index(j),
                    format!(
                        "vendor \"{}\" and product \"{}\" are not both hexadecimal numbers, such as 46f4 and 0001",
                        selector.vendor, selector.product
                    ),
                );
            }
        }
    }
}

/// A default that is not allowed would have every VM refused that names no machine type.
fn machine_types(causes: &mut Causes, c: &KubeVirtConfiguration, defaults: &ClusterConfig, path: &FieldPath) {
    let path_of_all = path.child("architectureConfiguration");
    let default = ArchConfiguration::default();
    let each = c.architecture_configuration.as_ref().unwrap_or(&default);
    let name = each.default_architecture.as_deref();
    let known = ["amd64", "arm64", "s390x"];
    choice(causes, &path_of_all, "defaultArchitecture", name, &known);
    if name.is_some_and(|name| !name.is_empty() && !known.contains(&name)) {
        return;
    }
    let own = defaults.architecture;
    let resolved = defaults.clone().with(c);
    let architectures = [
        (Architecture::Amd64, each.amd64.as_ref()),
        (Architecture::Arm64, each.arm64.as_ref()),
        (Architecture::S390x, each.s390x.as_ref()),
    ];
    for (architecture, specific) in architectures {
        let types = resolved.machine_types(architecture);
        if types.allows(&types.default) {
            continue;
        }
        let named = specific.and_then(|s| s.machine_type.as_deref()) == Some(types.default.as_str());
        let field = match architecture == own && !named {
            true => path.child("machineType"),
            false => path_of_all.child(architecture.name()).child("machineType"),
        };
        causes.not_supported(
            &field,
            format!(
                "the default machine type \"{}\" is none of emulatedMachines ({})",
                types.default,
                types.allowed.join(", ")
            ),
        );
    }
}

/// Fields that are read and change nothing here.
const WITHOUT_EFFECT: [&str; 23] = [
    "apiConfiguration",
    "changedBlockTrackingLabelSelectors",
    "commonInstancetypesDeployment",
    "confidentialCompute",
    "controllerConfiguration",
    "developerConfiguration.clusterProfiler",
    "developerConfiguration.diskVerification",
    "developerConfiguration.minimumClusterTSCFrequency",
    "developerConfiguration.minimumReservePVCBytes",
    "developerConfiguration.pvcTolerateLessSpaceUpToPercent",
    "handlerConfiguration",
    "hypervisors",
    "instancetype",
    "ksmConfiguration",
    "mediatedDevicesConfiguration",
    "migrations",
    "minCPUModel",
    "ovmfPath",
    "selinuxLauncherType",
    "supportedGuestAgentVersions",
    "tlsConfiguration",
    "virtTemplateDeployment",
    "webhookConfiguration",
];

/// The fields that are set and change nothing here, as warnings for who sets them.
#[must_use]
pub fn without_effect(configuration: &KubeVirtConfiguration, defaults: &ClusterConfig) -> Vec<String> {
    let set = serde_json::to_value(configuration).unwrap_or_default();
    let is_set = |name: &&str| {
        let value = set.pointer(&format!("/{}", name.replace('.', "/")));
        value.is_some_and(|value| !value.is_null())
    };
    let runtime_class = (!defaults.runtime_classes).then_some("defaultRuntimeClass");
    let all = WITHOUT_EFFECT.into_iter().chain(runtime_class).filter(is_set);
    all.map(|name| format!("spec.configuration.{name} changes nothing yet"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(json: serde_json::Value) -> KubeVirtConfiguration {
        serde_json::from_value(json).unwrap()
    }

    fn fields(json: serde_json::Value) -> Vec<String> {
        let causes = validate_configuration(&configuration(json), None, &ClusterConfig::default());
        causes
            .into_iter()
            .map(|cause| cause.field.replacen("spec.configuration.", "", 1))
            .collect()
    }

    const MISTAKES: &[(&str, &str)] = &[
        (r#"{"evictionStrategy": "Sometimes"}"#, "evictionStrategy"),
        (r#"{"vmRolloutStrategy": "Now"}"#, "vmRolloutStrategy"),
        (r#"{"roleAggregationStrategy": "manual"}"#, "roleAggregationStrategy"),
        (r#"{"cpuRequest": "0"}"#, "cpuRequest"),
        (
            r#"{"virtualMachineInstancesPerNode": 0}"#,
            "virtualMachineInstancesPerNode",
        ),
        (r#"{"memBalloonStatsPeriod": -1}"#, "memBalloonStatsPeriod"),
        (
            r#"{"additionalGuestMemoryOverheadRatio": "0.5"}"#,
            "additionalGuestMemoryOverheadRatio",
        ),
        (
            r#"{"additionalGuestMemoryOverheadRatio": "inf"}"#,
            "additionalGuestMemoryOverheadRatio",
        ),
        (
            r#"{"supportContainerResources": [{"type": "side", "resources": {}}]}"#,
            "supportContainerResources[0].type",
        ),
        (
            r#"{"developerConfiguration": {"memoryOvercommit": 0}}"#,
            "developerConfiguration.memoryOvercommit",
        ),
        (
            r#"{"developerConfiguration": {"cpuAllocationRatio": -1}}"#,
            "developerConfiguration.cpuAllocationRatio",
        ),
        (
            r#"{"developerConfiguration": {"featureGates": ["A"], "disabledFeatureGates": ["A"]}}"#,
            "developerConfiguration.disabledFeatureGates",
        ),
        (
            r#"{"developerConfiguration": {"logVerbosity": {"virtHandler": 300}}}"#,
            "developerConfiguration.logVerbosity.virtHandler",
        ),
        (
            r#"{"developerConfiguration": {"logVerbosity": {"nodeVerbosity": {"n1": -1}}}}"#,
            "developerConfiguration.logVerbosity.nodeVerbosity[n1]",
        ),
        (
            r#"{"liveUpdateConfiguration": {"maxHotplugRatio": 0}}"#,
            "liveUpdateConfiguration.maxHotplugRatio",
        ),
        (
            r#"{"liveUpdateConfiguration": {"maxCpuSockets": 0}}"#,
            "liveUpdateConfiguration.maxCpuSockets",
        ),
        (
            r#"{"liveUpdateConfiguration": {"maxGuest": "0"}}"#,
            "liveUpdateConfiguration.maxGuest",
        ),
        (
            r#"{"network": {"defaultNetworkInterface": "slirp"}}"#,
            "network.defaultNetworkInterface",
        ),
        (
            r#"{"network": {"permitSlirpInterface": true}}"#,
            "network.permitSlirpInterface",
        ),
        (
            r#"{"permittedHostDevices": {"pciHostDevices": [{"pciVendorSelector": "10DE", "resourceName": "a/b"}]}}"#,
            "permittedHostDevices.pciHostDevices[0].pciVendorSelector",
        ),
        (
            r#"{"permittedHostDevices": {"mediatedDevices": [{"mdevNameSelector": "T4", "resourceName": ""}]}}"#,
            "permittedHostDevices.mediatedDevices[0].resourceName",
        ),
        (
            r#"{"permittedHostDevices": {"usb": [{"resourceName": "a/b", "selectors": [{"vendor": "x", "product": "1"}]}]}}"#,
            "permittedHostDevices.usb[0].selectors[0]",
        ),
        (
            r#"{"architectureConfiguration": {"defaultArchitecture": "sparc"}}"#,
            "architectureConfiguration.defaultArchitecture",
        ),
        (
            r#"{"architectureConfiguration": {"arm64": {"machineType": "q35"}}}"#,
            "architectureConfiguration.arm64.machineType",
        ),
    ];

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_field() {
        for (text, field) in MISTAKES {
            assert_eq!(fields(serde_json::from_str(text).unwrap()), [*field], "{text}");
        }
    }

    #[test]
    fn a_default_machine_type_is_one_that_is_allowed() {
        let defaults = ClusterConfig {
            architecture: Architecture::Amd64,
            ..ClusterConfig::default()
        };
        let judge = |json| {
            let causes = validate_configuration(&configuration(json), None, &defaults);
            causes.into_iter().map(|cause| cause.field).collect::<Vec<_>>()
        };
        assert_eq!(
            judge(serde_json::json!({"machineType": "pc"})),
            ["spec.configuration.machineType"]
        );
        assert!(judge(serde_json::json!({"machineType": "pc", "emulatedMachines": ["pc*"]})).is_empty());
        assert_eq!(
            judge(serde_json::json!({"emulatedMachines": ["pc-i440fx*"]})),
            ["spec.configuration.machineType"]
        );
    }

    #[test]
    fn what_was_there_before_stands_in_nobodys_way() {
        let old = configuration(serde_json::json!({"evictionStrategy": "Sometimes"}));
        let new = configuration(serde_json::json!({"evictionStrategy": "Sometimes", "vmRolloutStrategy": "Now"}));
        let causes = validate_configuration(&new, Some(&old), &ClusterConfig::default());
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!(causes[0].field, "spec.configuration.vmRolloutStrategy");
    }

    #[test]
    fn defaults_are_good_and_warn_of_nothing() {
        for defaults in [ClusterConfig::default(), ClusterConfig::standalone()] {
            let none = KubeVirtConfiguration::default();
            assert!(validate_configuration(&none, None, &defaults).is_empty());
            assert!(without_effect(&none, &defaults).is_empty());
        }
    }

    #[test]
    fn what_changes_nothing_is_told() {
        let given = configuration(serde_json::json!({
            "defaultRuntimeClass": "kata",
            "tlsConfiguration": {"minTLSVersion": "VersionTLS13"},
            "developerConfiguration": {"diskVerification": {"memoryLimit": "2G"}},
        }));
        let told = |defaults| without_effect(&given, &defaults);
        assert_eq!(
            told(ClusterConfig::default()),
            [
                "spec.configuration.developerConfiguration.diskVerification changes nothing yet",
                "spec.configuration.tlsConfiguration changes nothing yet",
            ]
        );
        let last = told(ClusterConfig::standalone()).pop().unwrap();
        assert!(last.contains("defaultRuntimeClass"), "{last}");
    }
}
