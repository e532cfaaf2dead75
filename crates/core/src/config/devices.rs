//! Devices of nodes that machines may have to themselves.

use ferrovirt_api::v1::{PermittedHostDevices, USBSelector};

/// Devices that virt-handler offers as one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSelector {
    /// What pods ask for, e.g. `nvidia.com/TU104GL_Tesla_T4`.
    pub resource: String,
    /// Which devices.
    pub kind: DeviceKind,
}

/// How devices are recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// By the numbers of vendor and product on the PCI bus.
    Pci(u16, u16),
    /// By the name of a mediated device's type, blanks as `_`.
    Mediated(String),
    /// One device for each of these vendors and products, together.
    Usb(Vec<(u16, u16)>),
}

pub(super) fn pair(vendor: &str, product: &str) -> Option<(u16, u16)> {
    let hex = |text: &str| u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    Some((hex(vendor)?, hex(product)?))
}

/// `VENDOR:DEVICE`.
pub(super) fn pci_numbers(selector: &str) -> Option<(u16, u16)> {
    let (vendor, product) = selector.split_once(':')?;
    pair(vendor, product)
}

/// What virt-handler offers itself. Selectors that cannot be read select nothing.
pub(super) fn selectors(permitted: &PermittedHostDevices) -> Vec<DeviceSelector> {
    let own = |external: Option<bool>| external != Some(true);
    let pci = permitted.pci_host_devices.iter();
    let pci = pci.filter(|d| own(d.external_resource_provider)).filter_map(|device| {
        let (vendor, product) = pci_numbers(&device.pci_vendor_selector)?;
        Some(DeviceSelector {
            resource: device.resource_name.clone(),
            kind: DeviceKind::Pci(vendor, product),
        })
    });
    let mediated = permitted.mediated_devices.iter();
    let mediated = mediated
        .filter(|d| own(d.external_resource_provider))
        .map(|device| DeviceSelector {
            resource: device.resource_name.clone(),
            kind: DeviceKind::Mediated(device.mdev_name_selector.replace(' ', "_")),
        });
    let usb = permitted.usb.iter().filter(|d| own(d.external_resource_provider));
    let usb = usb.filter_map(|device| {
        let selectors = device.selectors.iter();
        let pairs: Option<Vec<_>> = selectors
            .map(|USBSelector { product, vendor }| pair(vendor, product))
            .collect();
        Some(DeviceSelector {
            resource: device.resource_name.clone(),
            kind: DeviceKind::Usb(pairs.filter(|pairs| !pairs.is_empty())?),
        })
    });
    pci.chain(mediated).chain(usb).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_permitted_is_selected() {
        let permitted = serde_json::from_value(serde_json::json!({
            "pciHostDevices": [
                {"pciVendorSelector": "10DE:1eb8", "resourceName": "ex.com/t4"},
                {"pciVendorSelector": "10DE:1EB9", "resourceName": "ex.com/other", "externalResourceProvider": true},
                {"pciVendorSelector": "nonsense", "resourceName": "ex.com/bad"},
            ],
            "mediatedDevices": [{"mdevNameSelector": "GRID T4-1Q", "resourceName": "ex.com/vgpu"}],
            "usb": [
                {"resourceName": "ex.com/stick", "selectors": [{"vendor": "46f4", "product": "0001"}]},
                {"resourceName": "ex.com/none", "selectors": []},
            ],
        }))
        .unwrap();
        let select = |resource: &str, kind| DeviceSelector {
            resource: resource.to_owned(),
            kind,
        };
        assert_eq!(
            selectors(&permitted),
            [
                select("ex.com/t4", DeviceKind::Pci(0x10de, 0x1eb8)),
                select("ex.com/vgpu", DeviceKind::Mediated("GRID_T4-1Q".to_owned())),
                select("ex.com/stick", DeviceKind::Usb(vec![(0x46f4, 1)])),
            ]
        );
    }
}
