//! What a config drive tells the guest about devices that have a tag.

use ferrovirt_core::machine::{CloudInit, CloudInitFlavor, Disk, Interface, Machine, Source};
use serde_json::{Value, json};

use super::{Error, cloud_init};
use crate::children::Children;
use crate::hooks::Hooks;
use crate::hypervisor::{DeviceKind, Place};
use crate::layout::Layout;

/// The entry of one tagged device.
fn describe(machine: &Machine, place: &Place) -> Option<Value> {
    let (kind, tag, serial) = match place.kind {
        DeviceKind::Disk => {
            let disk: &Disk = machine.disks.iter().find(|disk| disk.name == place.name)?;
            ("disk", disk.tag.as_ref()?, disk.serial.as_ref())
        }
        DeviceKind::Nic => {
            let nic: &Interface = machine.interfaces.iter().find(|nic| nic.name == place.name)?;
            ("nic", nic.tag.as_ref()?, None)
        }
        DeviceKind::HostDevice => {
            let device = machine
                .host_devices
                .iter()
                .find(|device| device.alias() == place.name)?;
            ("hostdev", device.tag.as_ref()?, None)
        }
    };
    let mut entry = json!({"type": kind, "bus": place.bus, "address": place.address, "tags": [tag]});
    if let Some(mac) = &place.mac {
        entry["mac"] = mac.as_str().into();
    }
    if let Some(serial) = serial {
        entry["serial"] = serial.as_str().into();
    }
    Some(entry)
}

/// All entries, in the order of the domain.
fn entries(machine: &Machine, places: &[Place]) -> Vec<Value> {
    places.iter().filter_map(|place| describe(machine, place)).collect()
}

/// Writes the config drive, if there is one, once more: with the addresses that libvirt gave to tagged devices.
pub async fn tell(
    layout: &Layout,
    children: &Children,
    hooks: &Hooks,
    machine: &Machine,
    places: &[Place],
) -> Result<(), Error> {
    let entries = entries(machine, places);
    if entries.is_empty() {
        return Ok(());
    }
    for disk in &machine.disks {
        let Source::CloudInit(data @ CloudInit { flavor, .. }) = &disk.source else {
            continue;
        };
        if *flavor == CloudInitFlavor::ConfigDrive {
            let built = cloud_init::build(layout, children, hooks, machine, &disk.name, data, &entries).await;
            built.map_err(|error| Error {
                volume: disk.name.clone(),
                source: error.into(),
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ferrovirt_core::ClusterConfig;

    use super::*;

    /// Shows `spec.domain.devices.disks[].tag`, `spec.domain.devices.interfaces[].tag`,
    /// `spec.domain.devices.gpus[].tag`, `spec.domain.devices.hostDevices[].tag`.
    #[tokio::test]
    async fn tagged_devices_are_on_the_config_drive() {
        let vmi = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
            "spec": {
                "domain": {"memory": {"guest": "64Mi"}, "devices": {
                    "disks": [
                        {"name": "a", "disk": {"bus": "virtio"}, "tag": "scratch", "serial": "S1"},
                        {"name": "b", "disk": {"bus": "virtio"}},
                        {"name": "seed", "disk": {"bus": "virtio"}},
                    ],
                    "gpus": [{"name": "g", "deviceName": "ex.com/gpu", "tag": "fast"}],
                    "hostDevices": [{"name": "h", "deviceName": "ex.com/dev", "tag": "crypto"}],
                    "interfaces": [{"name": "n", "masquerade": {}, "tag": "uplink"}],
                }},
                "networks": [{"name": "n", "pod": {}}],
                "volumes": [
                    {"name": "a", "emptyDisk": {"capacity": "1Gi"}},
                    {"name": "b", "emptyDisk": {"capacity": "1Gi"}},
                    {"name": "seed", "cloudInitConfigDrive": {"userData": "U"}},
                ],
            },
        });
        let vmi = serde_json::from_value(vmi).unwrap();
        let machine = Machine::parse(&vmi, &ClusterConfig::permissive()).unwrap();
        let place = |kind, name: &str, address: &str, mac: Option<&str>| Place {
            kind,
            name: name.into(),
            bus: "pci".into(),
            address: address.into(),
            mac: mac.map(str::to_owned),
        };
        let places = [
            place(DeviceKind::Disk, "a", "0000:04:00.0", None),
            place(DeviceKind::Disk, "b", "0000:05:00.0", None),
            place(DeviceKind::Nic, "n", "0000:01:00.0", Some("02:00:00:00:00:01")),
            place(DeviceKind::HostDevice, "gpu-g", "0000:06:00.0", None),
            place(DeviceKind::HostDevice, "hostdevice-h", "0000:07:00.0", None),
        ];
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "ns", "vm", "u");
        let children = Children::default();
        let reaper = tokio::spawn(children.clone().reap());
        tell(&layout, &children, &Hooks::default(), &machine, &places)
            .await
            .unwrap();
        reaper.abort();
        let out = root.path().join("meta.json");
        let image = layout.cloud_init().join("configdrive.iso");
        let status = std::process::Command::new("xorriso")
            .args(["-osirrox", "on", "-indev", image.to_str().unwrap(), "-extract"])
            .args(["/openstack/latest/meta_data.json", out.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
        let meta: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
        let expected = json!([
            {"type": "disk", "bus": "pci", "address": "0000:04:00.0", "serial": "S1", "tags": ["scratch"]},
            {"type": "nic", "bus": "pci", "address": "0000:01:00.0", "mac": "02:00:00:00:00:01", "tags": ["uplink"]},
            {"type": "hostdev", "bus": "pci", "address": "0000:06:00.0", "tags": ["fast"]},
            {"type": "hostdev", "bus": "pci", "address": "0000:07:00.0", "tags": ["crypto"]},
        ]);
        assert_eq!(meta["devices"], expected);
    }
}
