//! Whether a VMI could move to another node while it runs: `LiveMigratable`; and whether it could if its disks went along
//! to others: `StorageLiveMigratable`. Set by virt-handler.

use ferrovirt_api::v1::{VirtualMachineInstance, VirtualMachineInstanceSpec, Volume};

use super::conditions::LIVE_MIGRATABLE;
use crate::conditions::Desired;
use crate::config::ClusterConfig;
use crate::machine::Architecture;

/// Condition type.
pub const STORAGE_LIVE_MIGRATABLE: &str = "StorageLiveMigratable";
/// Annotation of a VMI: its bridge on the pod network may migrate (the addresses change).
pub const ALLOW_BRIDGE_ANNOTATION: &str = "kubevirt.io/allow-pod-bridge-network-live-migration";

/// How a VMI's disks would move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationMethod {
    /// Only memory moves.
    LiveMigration,
    /// Local disks move with it.
    BlockMigration,
}

impl MigrationMethod {
    /// Wire form, of `status.migrationMethod`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LiveMigration => "LiveMigration",
            Self::BlockMigration => "BlockMigration",
        }
    }
}

/// How disks would move.
#[must_use]
pub fn migration_method(spec: &VirtualMachineInstanceSpec) -> MigrationMethod {
    if spec.volumes.iter().any(is_local) {
        MigrationMethod::BlockMigration
    } else {
        MigrationMethod::LiveMigration
    }
}

/// What `LiveMigratable` should say. The first obstacle in KubeVirt's order is named.
#[must_use]
pub fn live_migratable(vmi: &VirtualMachineInstance, config: &ClusterConfig) -> Desired {
    let disks = || Some(("DisksNotLiveMigratable", disk_obstacle(vmi)?));
    match obstacles(vmi, config).next().or_else(disks) {
        None => Desired::new(LIVE_MIGRATABLE, true, "", ""),
        Some((reason, message)) => Desired::new(LIVE_MIGRATABLE, false, reason, message),
    }
}

/// What `StorageLiveMigratable` should say. A VMI whose disks are copied to others may have any; all else that keeps it
/// from moving is named.
#[must_use]
pub fn storage_live_migratable(vmi: &VirtualMachineInstance, config: &ClusterConfig) -> Desired {
    let all: Vec<String> = obstacles(vmi, config)
        .map(|(reason, message)| format!("{reason}: {message}"))
        .collect();
    let reason = if all.is_empty() { "" } else { "NotMigratable" };
    Desired::new(STORAGE_LIVE_MIGRATABLE, all.is_empty(), reason, all.join(", "))
}

/// Reasons and messages, but for those of disks, in KubeVirt's order.
fn obstacles(vmi: &VirtualMachineInstance, config: &ClusterConfig) -> impl Iterator<Item = (&'static str, String)> {
    let spec = &vmi.spec;
    let bridge_allowed = vmi
        .metadata
        .annotations
        .iter()
        .any(|a| a.contains_key(ALLOW_BRIDGE_ANNOTATION));
    let all = [
        interface_obstacle(spec, bridge_allowed, config),
        device_obstacle(spec),
        security_obstacle(spec),
        reservation_obstacle(spec),
        hyperv_obstacle(spec),
    ];
    all.into_iter().flatten()
}

fn interface_obstacle(
    spec: &VirtualMachineInstanceSpec,
    bridge_allowed: bool,
    config: &ClusterConfig,
) -> Option<(&'static str, String)> {
    let reason = "InterfaceNotLiveMigratable";
    for interface in &spec.domain.devices.interfaces {
        let network = spec.networks.iter().find(|n| n.name == interface.name);
        let on_pod_network = network.is_some_and(|n| n.pod.is_some());
        if on_pod_network && interface.bridge.is_some() && !bridge_allowed {
            let message = format!(
                "cannot migrate VMI which does not use masquerade to connect to the pod network \
                 or bridge with {ALLOW_BRIDGE_ANNOTATION} VM annotation"
            );
            return Some((reason, message));
        }
        let migrates = |name: &String| {
            let registered = config.binding_plugins.get(name).and_then(|plugin| plugin.as_ref().ok());
            registered.is_some_and(|plugin| plugin.migratable)
        };
        let plugin = interface.binding.as_ref().map(|binding| &binding.name);
        if let Some(name) = plugin.filter(|name| !migrates(name)) {
            let message = format!("cannot migrate VMI: network binding plugin {name} has no migration method");
            return Some((reason, message));
        }
    }
    None
}

fn device_obstacle(spec: &VirtualMachineInstanceSpec) -> Option<(&'static str, String)> {
    let devices = &spec.domain.devices;
    if !devices.gpus.is_empty() || !devices.host_devices.is_empty() {
        return Some(("HostDeviceNotLiveMigratable", "VMI uses a PCI host devices".to_owned()));
    }
    None
}

fn security_obstacle(spec: &VirtualMachineInstanceSpec) -> Option<(&'static str, String)> {
    let security = spec.domain.launch_security.as_ref()?;
    let (reason, what) = if spec.architecture.as_deref() == Some(Architecture::S390x.name()) {
        ("SecureExecutionNotLiveMigratable", "Secure Execution")
    } else if security.tdx.is_some() {
        ("TDXNotLiveMigratable", "TDX")
    } else if security.sev.is_some() || security.snp.is_some() {
        ("SEVNotLiveMigratable", "SEV")
    } else {
        return None;
    };
    Some((reason, format!("VMI uses {what}")))
}

/// The guest sees what the hypervisor of its node can do, which another node's may not.
fn hyperv_obstacle(spec: &VirtualMachineInstanceSpec) -> Option<(&'static str, String)> {
    let passthrough = spec.domain.features.as_ref()?.hyperv_passthrough.as_ref()?;
    passthrough.enabled.unwrap_or(true).then(|| {
        let message = "VMI uses hyperv passthrough".to_owned();
        ("HypervPassthroughNotLiveMigratable", message)
    })
}

/// What keeps a disk from being used by another node, in words for people.
fn disk_obstacle(vmi: &VirtualMachineInstance) -> Option<String> {
    let shared = |volume: &&Volume| {
        let filesystems = &vmi.spec.domain.devices.filesystems;
        filesystems.iter().any(|filesystem| filesystem.name == volume.name)
    };
    for volume in vmi.spec.volumes.iter().filter(|volume| !shared(volume)) {
        if let Some(claim) = volume
            .persistent_volume_claim
            .as_ref()
            .filter(|_| !is_shared(vmi, volume))
        {
            let name = &claim.claim_name;
            return Some(format!(
                "cannot migrate VMI: PVC {name} is not shared, live migration requires that all PVCs must be shared \
                 (using ReadWriteMany access mode)"
            ));
        }
        if let Some(host_disk) = volume.host_disk.as_ref()
            && !host_disk.shared.unwrap_or(false)
        {
            return Some(format!("cannot migrate VMI with non-shared HostDisk {}", volume.name));
        }
    }
    None
}

/// Who holds a reservation is a node, and the other one would not get in.
fn reservation_obstacle(spec: &VirtualMachineInstanceSpec) -> Option<(&'static str, String)> {
    let mut luns = spec.domain.devices.disks.iter().filter_map(|disk| disk.lun.as_ref());
    luns.any(|lun| lun.reservation == Some(true)).then(|| {
        let message = "VMI uses SCSI persistent reservation".to_owned();
        ("PersistentReservationNotLiveMigratable", message)
    })
}

/// The claim of a volume can be written to from several nodes, as far as the VMI's status tells.
fn is_shared(vmi: &VirtualMachineInstance, volume: &Volume) -> bool {
    let mut volumes = vmi.status.iter().flat_map(|status| &status.volume_status);
    let status = volumes.find(|status| status.name == volume.name);
    let info = status.and_then(|status| status.persistent_volume_claim_info.as_ref());
    info.is_some_and(|info| info.access_modes.iter().any(|mode| mode == "ReadWriteMany"))
}

/// Its bytes are on the node only, and the guest can change them.
fn is_local(volume: &Volume) -> bool {
    [
        volume.container_disk.is_some(),
        volume.empty_disk.is_some(),
        volume.ephemeral.is_some(),
        volume.host_disk.is_some(),
    ]
    .contains(&true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vmi(volumes: serde_json::Value, interface: serde_json::Value, annotated: bool) -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "x", "annotations": if annotated { json!({ALLOW_BRIDGE_ANNOTATION: ""}) } else { json!({}) }},
            "spec": {
                "domain": {"devices": {"interfaces": [interface]}},
                "networks": [{"name": "default", "pod": {}}],
                "volumes": volumes,
            }
        }))
        .unwrap()
    }

    /// What is shared is served anew at the other end.
    #[test]
    fn shared_directories_are_no_obstacle() {
        let claim = json!([{"name": "root", "persistentVolumeClaim": {"claimName": "c"}}]);
        let mut vmi = vmi(claim, json!({"name": "default", "masquerade": {}}), false);
        assert_eq!(
            live_migratable(&vmi, &ClusterConfig::default()).reason,
            "DisksNotLiveMigratable"
        );
        let filesystems = json!([{"name": "root", "virtiofs": {}}]);
        vmi.spec.domain.devices.filesystems = serde_json::from_value(filesystems).unwrap();
        assert!(live_migratable(&vmi, &ClusterConfig::default()).status);
    }

    #[test]
    fn reservations_stay() {
        let mut vmi = vmi(json!([]), json!({"name": "default", "masquerade": {}}), false);
        for (reservation, expected) in [(false, ""), (true, "PersistentReservationNotLiveMigratable")] {
            let disks = json!([{"name": "a", "lun": {"bus": "scsi", "reservation": reservation}}]);
            vmi.spec.domain.devices.disks = serde_json::from_value(disks).unwrap();
            assert_eq!(live_migratable(&vmi, &ClusterConfig::default()).reason, expected);
        }
    }

    /// In KubeVirt's order: what passes the hypervisor through hides a claim, and is hidden by a reservation.
    #[test]
    fn a_hypervisor_that_is_passed_through_stays() {
        let claim = json!([{"name": "root", "persistentVolumeClaim": {"claimName": "c"}}]);
        let hyperv = "HypervPassthroughNotLiveMigratable";
        let disks = "DisksNotLiveMigratable";
        let reservation = "PersistentReservationNotLiveMigratable";
        for (passthrough, volumes, reserved, expected) in [
            (json!({}), json!([]), false, hyperv),
            (json!({"enabled": true}), json!([]), false, hyperv),
            (json!({"enabled": false}), json!([]), false, ""),
            (json!(null), json!([]), false, ""),
            (json!({"enabled": true}), claim.clone(), false, hyperv),
            (json!({"enabled": false}), claim.clone(), false, disks),
            (json!({"enabled": true}), claim, true, reservation),
        ] {
            let mut vmi = vmi(volumes, json!({"name": "default", "masquerade": {}}), false);
            let features = json!({"hypervPassthrough": passthrough});
            vmi.spec.domain.features = serde_json::from_value(features.clone()).unwrap();
            let lun = json!([{"name": "a", "lun": {"bus": "scsi", "reservation": reserved}}]);
            vmi.spec.domain.devices.disks = serde_json::from_value(lun).unwrap();
            let desired = live_migratable(&vmi, &ClusterConfig::default());
            assert_eq!(desired.reason, expected, "{features}");
            assert_eq!(desired.status, expected.is_empty(), "{features}");
        }
    }

    #[test]
    fn with_other_disks_only_disks_are_no_obstacle() {
        let config = ClusterConfig::default();
        let claim = json!([{"name": "root", "persistentVolumeClaim": {"claimName": "c"}}]);
        let moves = vmi(claim.clone(), json!({"name": "default", "masquerade": {}}), false);
        assert!(!live_migratable(&moves, &config).status);
        let storage = storage_live_migratable(&moves, &config);
        assert_eq!(
            (
                storage.kind.as_str(),
                storage.status,
                storage.reason.as_str(),
                storage.message.as_str()
            ),
            ("StorageLiveMigratable", true, "", "")
        );
        let mut stays = vmi(claim, json!({"name": "default", "bridge": {}}), false);
        stays.spec.domain.launch_security = serde_json::from_value(json!({"sev": {}})).unwrap();
        let storage = storage_live_migratable(&stays, &config);
        assert_eq!((storage.status, storage.reason.as_str()), (false, "NotMigratable"));
        let (first, second) = storage.message.split_once(", SEVNotLiveMigratable: ").unwrap();
        assert!(
            first.starts_with("InterfaceNotLiveMigratable: cannot migrate"),
            "{first}"
        );
        assert_eq!(second, "VMI uses SEV");
    }

    #[test]
    fn encrypted_memory_stays() {
        let mut vmi = vmi(json!([]), json!({"name": "default", "masquerade": {}}), false);
        for (architecture, security, expected) in [
            ("amd64", json!({"sev": {}}), "SEVNotLiveMigratable"),
            ("amd64", json!({"snp": {}}), "SEVNotLiveMigratable"),
            ("amd64", json!({"tdx": {}}), "TDXNotLiveMigratable"),
            ("s390x", json!({}), "SecureExecutionNotLiveMigratable"),
        ] {
            vmi.spec.architecture = Some(architecture.to_owned());
            vmi.spec.domain.launch_security = serde_json::from_value(security).unwrap();
            assert_eq!(live_migratable(&vmi, &ClusterConfig::default()).reason, expected);
        }
    }

    #[test]
    fn plugins_say_whether_they_migrate() {
        let config = json!({"network": {"binding": {"moves": {"migration": {}}, "stays": {}, "bad": {"migration": {}, "downwardAPI": "x"}}}});
        let config = ClusterConfig::from_kubevirt(&serde_json::from_value(config).unwrap());
        for (plugin, status) in [("moves", true), ("stays", false), ("bad", false), ("unknown", false)] {
            let vmi = vmi(
                json!([]),
                json!({"name": "default", "binding": {"name": plugin}}),
                false,
            );
            let desired = live_migratable(&vmi, &config);
            let reason = if status { "" } else { "InterfaceNotLiveMigratable" };
            assert_eq!((desired.status, desired.reason.as_str()), (status, reason), "{plugin}");
        }
    }

    /// Shows `spec.volumes[].hostDisk.shared`.
    #[test]
    fn obstacles() {
        let masquerade = json!({"name": "default", "masquerade": {}});
        let bridge = json!({"name": "default", "bridge": {}});
        let container = json!([{"name": "root", "containerDisk": {"image": "x"}}]);
        let host = json!([{"name": "root", "hostDisk": {"path": "/x", "type": "Disk"}}]);
        let shared = json!([{"name": "root", "hostDisk": {"path": "/x", "type": "Disk", "shared": true}}]);
        for (volumes, interface, annotated, expected, method) in [
            (json!([]), &masquerade, false, None, MigrationMethod::LiveMigration),
            (
                container.clone(),
                &masquerade,
                false,
                None,
                MigrationMethod::BlockMigration,
            ),
            (
                json!([]),
                &bridge,
                false,
                Some("InterfaceNotLiveMigratable"),
                MigrationMethod::LiveMigration,
            ),
            (json!([]), &bridge, true, None, MigrationMethod::LiveMigration),
            (
                host,
                &masquerade,
                false,
                Some("DisksNotLiveMigratable"),
                MigrationMethod::BlockMigration,
            ),
            (shared, &masquerade, false, None, MigrationMethod::BlockMigration),
        ] {
            let vmi = vmi(volumes, interface.clone(), annotated);
            let desired = live_migratable(&vmi, &ClusterConfig::default());
            assert_eq!(desired.status, expected.is_none());
            assert_eq!(desired.reason, expected.unwrap_or_default());
            assert_eq!(migration_method(&vmi.spec), method);
        }
    }
}
