//! Devices of the node that the kubelet gave to this pod. Device plugins tell which by variables of the environment, one
//! for each resource, with the addresses of all its devices.

use std::collections::BTreeMap;

use ferrovirt_core::machine::{HostDevice, PciAddress};
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

/// A device for each of `wanted`, by alias; those of one resource in the order in which they were given. `read` looks
/// variables up. What is not there is left out.
pub fn given(wanted: &[HostDevice], read: impl Fn(&str) -> Option<String>) -> BTreeMap<String, HostDeviceFact> {
    let mut pools: BTreeMap<&str, std::vec::IntoIter<HostDeviceFact>> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for device in wanted {
        let pool = pools
            .entry(&device.resource)
            .or_insert_with(|| pool(&device.resource, &read).into_iter());
        found.extend(pool.next().map(|fact| (device.alias(), fact)));
    }
    found
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
    use ferrovirt_core::machine::HostDeviceList;

    use super::*;

    fn device(name: &str, resource: &str) -> HostDevice {
        HostDevice {
            name: name.into(),
            list: HostDeviceList::HostDevice,
            resource: resource.into(),
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
}
