//! Where libvirt put the devices of a domain.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::xml::attribute;

/// Kinds of devices that a guest may want to recognise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Disk.
    Disk,
    /// Device of the node.
    HostDevice,
    /// NIC.
    Nic,
}

/// A device and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub kind: DeviceKind,
    /// Its name in the VMI.
    pub name: String,
    /// pci, scsi, sata, usb …
    pub bus: String,
    /// Where it is there: `0000:01:00.0`, or numbers of controller, bus, target and unit.
    pub address: String,
    /// Of a NIC.
    pub mac: Option<String>,
}

/// The devices of a domain's XML that have a name of ours and an address.
pub fn places(xml: &str) -> Vec<Place> {
    let mut found = Vec::new();
    let mut reader = Reader::from_str(xml);
    let mut device = None::<Place>;
    // Elements below the device's; those of a source are not the device's own.
    let mut depth = 0_u32;
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) if device.is_none() => device = kind(&tag).map(empty),
            Ok(Event::Start(tag)) => {
                if let Some(device) = device.as_mut().filter(|_| depth == 0) {
                    read(device, &tag);
                }
                depth += 1;
            }
            Ok(Event::Empty(tag)) => {
                if let Some(device) = device.as_mut().filter(|_| depth == 0) {
                    read(device, &tag);
                }
            }
            Ok(Event::End(_)) if device.is_some() && depth > 0 => depth -= 1,
            Ok(Event::End(_)) => {
                let whole = |place: &Place| !place.name.is_empty() && !place.address.is_empty();
                found.extend(device.take().filter(whole));
            }
            Ok(Event::Eof) | Err(_) => return found,
            Ok(_) => {}
        }
    }
}

fn kind(tag: &BytesStart<'_>) -> Option<DeviceKind> {
    match tag.name().as_ref() {
        b"disk" => Some(DeviceKind::Disk),
        b"hostdev" => Some(DeviceKind::HostDevice),
        b"interface" => Some(DeviceKind::Nic),
        _ => None,
    }
}

fn empty(kind: DeviceKind) -> Place {
    Place {
        kind,
        name: String::new(),
        bus: String::new(),
        address: String::new(),
        mac: None,
    }
}

fn read(device: &mut Place, tag: &BytesStart<'_>) {
    let value = |name| attribute(tag, name);
    match tag.name().as_ref() {
        b"alias" => {
            if let Some(name) = value("name").strip_prefix("ua-") {
                name.clone_into(&mut device.name);
            }
        }
        b"mac" => device.mac = Some(value("address")),
        // Of a disk whose address is one of a controller.
        b"target" if device.bus.is_empty() => device.bus = value("bus"),
        b"address" => match value("type").as_str() {
            "pci" => {
                let part = |name| value(name).trim_start_matches("0x").to_owned();
                let (domain, bus, slot, function) = (part("domain"), part("bus"), part("slot"), part("function"));
                "pci".clone_into(&mut device.bus);
                device.address = format!("{domain}:{bus}:{slot}.{function}");
            }
            "drive" => {
                device.address = ["controller", "bus", "target", "unit"].map(value).join(":");
            }
            "usb" => device.address = ["bus", "port"].map(value).join(":"),
            _ => {}
        },
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_where_libvirt_put_them() {
        let xml = "<domain type='kvm'><devices>\
            <disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/><alias name='ua-a'/>\
            <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>\
            <disk type='file' device='disk'><target dev='sda' bus='scsi'/><alias name='ua-b'/>\
            <address type='drive' controller='0' bus='0' target='1' unit='2'/></disk>\
            <interface type='ethernet'><mac address='02:00:00:00:00:01'/><target dev='tap0'/><alias name='ua-n'/>\
            <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></interface>\
            <hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x81' slot='0x11' function='0x1'/>\
            </source><alias name='ua-hostdevice-h'/><address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/>\
            </hostdev><disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk></devices></domain>";
        let place = |kind, name: &str, bus: &str, address: &str, mac: Option<&str>| Place {
            kind,
            name: name.into(),
            bus: bus.into(),
            address: address.into(),
            mac: mac.map(str::to_owned),
        };
        let expected = [
            place(DeviceKind::Disk, "a", "pci", "0000:04:00.0", None),
            place(DeviceKind::Disk, "b", "scsi", "0:0:1:2", None),
            place(DeviceKind::Nic, "n", "pci", "0000:01:00.0", Some("02:00:00:00:00:01")),
            place(DeviceKind::HostDevice, "hostdevice-h", "pci", "0000:06:00.0", None),
        ];
        assert_eq!(places(xml), expected);
        assert_eq!(places("<domain type="), []);
    }
}
