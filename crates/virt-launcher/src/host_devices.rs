//! Devices of the node that the kubelet gave to this pod. Device plugins tell which by variables of the environment, one
//! for each resource, with the addresses of all its devices. Which devices resource claims were given, virt-controller
//! writes into the VMI's status.

use std::collections::BTreeMap;

use ferrovirt_api::v1::{DeviceAttribute, DeviceStatus};
use ferrovirt_core::machine::{HostDevice, HostDeviceList, PciAddress};
use ferrovirt_domain::HostDeviceFact;
use uuid::Uuid;

/// Reads one address.
type Read = fn(&str) -> Option<HostDeviceFact>;

/// Beginnings of the variables' names, with what their values are.
const PREFIXES: [(&str, Read); 4] = [
    ("PCI_RESOURCE", pci),
    ("MDEV_PCI_RESOURCE", mediated),
    ("USB_RESOURCE", usb),
    // As device plugins for networks have it.
    ("PCIDEVICE", pci),
];

fn pci(address: &str) -> Option<HostDeviceFact> {
    PciAddress::parse(address).map(HostDeviceFact::Pci)
}

fn mediated(uuid: &str) -> Option<HostDeviceFact> {
    Uuid::try_parse(uuid).ok().map(HostDeviceFact::Mediated)
}

fn usb(address: &str) -> Option<HostDeviceFact> {
    let (bus, device) = address.split_once(':')?;
    Some(HostDeviceFact::Usb {
        bus: bus.parse().ok()?,
        device: device.parse().ok()?,
    })
}

/// `example.com/device` as a part of a variable's name.
fn variable(prefix: &str, resource: &str) -> String {
    let name: String = resource
        .chars()
        .map(|c| {
            if matches!(c, '/' | '.') {
                '_'
            } else {
                c.to_ascii_uppercase()
            }
        })
        .collect();
    format!("{prefix}_{name}")
}

/// A device for each of `wanted` that is of a resource, by alias; those of one resource in the order in which they were
/// given. `read` looks variables up. What is not there is left out.
pub fn given(wanted: &[HostDevice], read: impl Fn(&str) -> Option<String>) -> BTreeMap<String, HostDeviceFact> {
    let mut pools: BTreeMap<&str, std::vec::IntoIter<HostDeviceFact>> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (device, resource) in wanted.iter().filter_map(|device| Some((device, device.resource()?))) {
        let pool = pools
            .entry(resource)
            .or_insert_with(|| pool(resource, &read).into_iter());
        found.extend(pool.next().map(|fact| (device.alias(), fact)));
    }
    found
}

/// A device for each of `wanted` that is of a resource claim, by alias, as the VMI's status says. What it does not say,
/// or says in a way that cannot be read, is left out.
pub fn by_claims(wanted: &[HostDevice], status: &DeviceStatus) -> BTreeMap<String, HostDeviceFact> {
    let claimed = wanted.iter().filter(|device| device.resource().is_none());
    let fact = |device: &HostDevice| {
        let list = match device.list {
            HostDeviceList::Gpu => &status.gpu_statuses,
            HostDeviceList::HostDevice => &status.host_device_statuses,
        };
        let info = list.iter().find(|info| info.name == device.name)?;
        let given = info.device_resource_claim_status.as_ref()?.attributes.as_ref()?;
        // A part of a device may have the address of the whole, too.
        let DeviceAttribute {
            m_dev_uuid,
            pci_address,
        } = given;
        match m_dev_uuid {
            Some(uuid) => mediated(uuid),
            None => pci(pci_address.as_deref()?),
        }
    };
    claimed
        .filter_map(|device| Some((device.alias(), fact(device)?)))
        .collect()
}

fn pool(resource: &str, read: &impl Fn(&str) -> Option<String>) -> Vec<HostDeviceFact> {
    let mut all = Vec::new();
    for (prefix, parse) in PREFIXES {
        let value = read(&variable(prefix, resource)).unwrap_or_default();
        all.extend(value.split(',').filter_map(|address| parse(address.trim())));
    }
    all
}

#[cfg(test)]
mod tests {
    use ferrovirt_core::machine::HostDeviceSource;
    use serde_json::json;

    use super::*;

    fn device(name: &str, resource: &str) -> HostDevice {
        HostDevice {
            name: name.into(),
            list: HostDeviceList::HostDevice,
            source: HostDeviceSource::Resource(resource.into()),
            tag: None,
            display: None,
        }
    }

    /// Shows `spec.domain.devices.hostDevices[].deviceName`, `spec.domain.devices.gpus[].deviceName`.
    #[test]
    fn the_pods_devices_are_divided() {
        let environment = BTreeMap::from([
            ("PCI_RESOURCE_EX_COM_PCI-1", "0000:81:01.0,0000:81:02.0"),
            ("MDEV_PCI_RESOURCE_EX_COM_VGPU", "fa11c0de-0000-0000-0000-000000000001,"),
            ("USB_RESOURCE_EX_COM_STICK", "3:11"),
            ("PCI_RESOURCE_EX_COM_BAD", "81:01.0"),
        ]);
        let wanted = [
            device("a", "ex.com/pci-1"),
            device("b", "ex.com/pci-1"),
            device("c", "ex.com/pci-1"),
            device("d", "ex.com/vgpu"),
            device("e", "ex.com/stick"),
            device("f", "ex.com/bad"),
            device("g", "ex.com/none"),
        ];
        let found = given(&wanted, |name| environment.get(name).map(|value| (*value).to_owned()));
        let address = |slot| PciAddress {
            domain: 0,
            bus: 0x81,
            slot,
            function: 0,
        };
        let uuid = Uuid::from_u128(0xfa11_c0de_0000_0000_0000_0000_0000_0001);
        let expected = BTreeMap::from([
            ("hostdevice-a".to_owned(), HostDeviceFact::Pci(address(1))),
            ("hostdevice-b".to_owned(), HostDeviceFact::Pci(address(2))),
            ("hostdevice-d".to_owned(), HostDeviceFact::Mediated(uuid)),
            ("hostdevice-e".to_owned(), HostDeviceFact::Usb { bus: 3, device: 11 }),
        ]);
        assert_eq!(found, expected);
    }

    /// Shows `spec.domain.devices.hostDevices[].claimName`, `spec.domain.devices.gpus[].claimName`.
    #[test]
    fn the_status_tells_what_claims_were_given() {
        let claimed = |name: &str, list| HostDevice {
            list,
            source: HostDeviceSource::Claim {
                claim: "c".into(),
                request: name.into(),
            },
            ..device(name, "")
        };
        let (gpu, host) = (HostDeviceList::Gpu, HostDeviceList::HostDevice);
        let uuid = "fa11c0de-0000-0000-0000-000000000001";
        let info =
            |name: &str, attributes| json!({"name": name, "deviceResourceClaimStatus": {"attributes": attributes}});
        let status: DeviceStatus = serde_json::from_value(json!({
            "gpuStatuses": [info("a", json!({"pciAddress": "0000:81:01.0"})), info("plugin", json!({"pciAddress": "0000:81:03.0"}))],
            "hostDeviceStatuses": [
                info("a", json!({"pciAddress": "0000:81:02.0"})),
                info("part", json!({"pciAddress": "0000:81:02.0", "mDevUUID": uuid})),
                info("odd", json!({"pciAddress": "81:02"})), info("nothing", json!({})), {"name": "bare"},
            ],
        }))
        .unwrap();
        let wanted = [
            claimed("a", gpu),
            device("plugin", "ex.com/pci-1"),
            claimed("a", host),
            claimed("part", host),
            claimed("odd", host),
            claimed("nothing", host),
            claimed("bare", host),
            claimed("unknown", host),
        ];
        let expected = BTreeMap::from([
            ("gpu-a".to_owned(), pci("0000:81:01.0").unwrap()),
            ("hostdevice-a".to_owned(), pci("0000:81:02.0").unwrap()),
            ("hostdevice-part".to_owned(), mediated(uuid).unwrap()),
        ]);
        assert_eq!(by_claims(&wanted, &status), expected);
        assert_eq!(by_claims(&wanted, &DeviceStatus::default()), BTreeMap::new());
        // Claims are no resources of which the environment could tell.
        let found = given(&wanted[..1], |_| Some("0000:81:09.0".to_owned()));
        assert_eq!(found, BTreeMap::new());
    }
}
