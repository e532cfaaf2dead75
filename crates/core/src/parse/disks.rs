//! `spec.domain.devices.disks`, joined with the volumes.

use std::collections::BTreeMap;

use ferrovirt_api::v1::{CDRomTarget, Devices, Disk as WireDisk, DiskTarget, LunTarget, Volume};

use super::{Cx, on, text};
use crate::cause::FieldPath;
use crate::machine::{Bus, Disk, DiskDevice, Interface, PciAddress, Source};

const CACHES: [&str; 3] = ["none", "writethrough", "writeback"];
const ERROR_POLICIES: [&str; 4] = ["stop", "ignore", "report", "enospace"];

/// What disk, cdrom or lun say about the device.
struct Target {
    device: DiskDevice,
    bus: Bus,
    readonly: bool,
    pci_address: Option<PciAddress>,
}

impl Cx<'_> {
    pub(super) fn disks(
        &mut self,
        disks: &[WireDisk],
        volumes: &[Volume],
        sources: &[Option<Source>],
        path: &FieldPath,
    ) -> Vec<Disk> {
        let path = path.child("domain.devices.disks");
        let mut parsed: Vec<Disk> = Vec::new();
        for (i, disk) in disks.iter().enumerate() {
            let path = path.index(i);
            if disks[..i].iter().any(|other| other.name == disk.name) {
                self.causes.duplicate(
                    &path.child("name"),
                    format!("another disk has the name \"{}\"", disk.name),
                );
            }
            let volume_index = volumes.iter().position(|v| v.name == disk.name);
            if volume_index.is_none() {
                self.causes.invalid(
                    &path.child("name"),
                    format!("there is no volume \"{}\" for this disk", disk.name),
                );
            }
            let target = self.disk(disk, &path);
            let source = volume_index.and_then(|v| sources.get(v)?.clone());
            let (Some(volume_index), Some(source), Some(target)) = (volume_index, source, target) else {
                continue;
            };
            parsed.push(join(disk, target, volume_index, source));
        }
        parsed
    }

    fn disk(&mut self, disk: &WireDisk, path: &FieldPath) -> Option<Target> {
        let WireDisk {
            block_size,
            // Compared with those of the NICs, when both are known.
            boot_order: _,
            cache,
            cdrom,
            changed_block_tracking,
            dedicated_io_thread,
            disk: hard_disk,
            error_policy,
            io,
            lun,
            name: _,
            serial,
            shareable,
            tag,
        } = disk;
        self.causes.none_of(
            path,
            &[
                ("blockSize", block_size.is_some()),
                ("changedBlockTracking", on(*changed_block_tracking)),
                ("dedicatedIOThread", on(*dedicated_io_thread)),
                ("shareable", on(*shareable)),
                ("tag", tag.is_some()),
            ],
        );
        if let Some(serial) = serial.as_deref().filter(|s| !s.is_empty()) {
            self.serial(serial, &path.child("serial"));
        }
        let set = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
        if let Some(cache) = set(cache) {
            self.causes.one_of(&path.child("cache"), &cache, &CACHES);
        }
        if let Some(io) = set(io) {
            self.causes.one_of(&path.child("io"), &io, &["native", "threads"]);
            let cached = set(cache).is_some_and(|c| c != "none");
            if io == "native" && cached {
                self.causes.invalid(&path.child("io"), "native I/O needs cache none");
            }
        }
        if let Some(policy) = set(error_policy) {
            self.causes.one_of(&path.child("errorPolicy"), &policy, &ERROR_POLICIES);
        }
        let kinds = [hard_disk.is_some(), cdrom.is_some(), lun.is_some()];
        if kinds.iter().filter(|k| **k).count() > 1 {
            self.causes.invalid(path, "disk, cdrom and lun exclude each other");
            return None;
        }
        match (hard_disk, cdrom, lun) {
            (Some(target), _, _) => self.hard_disk(target, &path.child("disk")),
            (_, Some(target), _) => self.cdrom(target, &path.child("cdrom")),
            (_, _, Some(target)) => {
                self.lun(target, &path.child("lun"));
                None
            }
            (None, None, None) => None,
        }
    }

    fn hard_disk(&mut self, target: &DiskTarget, path: &FieldPath) -> Option<Target> {
        let DiskTarget {
            bus,
            pci_address,
            readonly,
        } = target;
        let bus = self.bus(bus.as_deref(), path)?;
        let readonly = on(*readonly);
        if bus == Bus::Sata && readonly {
            self.causes.invalid(
                &path.child("readonly"),
                "a sata disk cannot be read-only; use another bus or cdrom",
            );
        }
        let mut parsed = None;
        if let Some(address) = pci_address.as_deref().filter(|a| !a.is_empty()) {
            let field = path.child("pciAddress");
            if bus != Bus::Virtio {
                self.causes.invalid(&field, "only virtio disks have a PCI address");
            }
            parsed = self.pci_address(address, &field);
        }
        Some(Target {
            device: DiskDevice::Disk,
            bus,
            readonly,
            pci_address: parsed,
        })
    }

    fn cdrom(&mut self, target: &CDRomTarget, path: &FieldPath) -> Option<Target> {
        let CDRomTarget { bus, readonly, tray } = target;
        let bus = self.bus(bus.as_deref(), path)?;
        if bus == Bus::Virtio {
            self.causes
                .invalid(&path.child("bus"), "virtio has no CD-ROM; use sata, scsi or usb");
        }
        self.causes.none_of(path, &[("readonly", *readonly == Some(false))]);
        let tray = tray.as_deref().filter(|t| !t.is_empty()).unwrap_or("closed");
        self.causes.one_of(&path.child("tray"), tray, &["open", "closed"]);
        let device = DiskDevice::Cdrom { open: tray == "open" };
        Some(Target {
            device,
            bus,
            readonly: true,
            pci_address: None,
        })
    }

    fn lun(&mut self, target: &LunTarget, path: &FieldPath) {
        let LunTarget {
            bus,
            readonly,
            reservation,
        } = target;
        _ = self.bus(bus.as_deref(), path);
        self.causes.not_yet(path);
        self.causes
            .none_of(path, &[("readonly", on(*readonly)), ("reservation", on(*reservation))]);
    }

    fn bus(&mut self, bus: Option<&str>, path: &FieldPath) -> Option<Bus> {
        let field = path.child("bus");
        let bus = bus.unwrap_or_default();
        match bus {
            "virtio" => Some(Bus::Virtio),
            "sata" => Some(Bus::Sata),
            "scsi" => Some(Bus::Scsi),
            "usb" => Some(Bus::Usb),
            "ide" => {
                self.causes
                    .invalid(&field, "IDE is not supported; use virtio, sata, scsi or usb");
                None
            }
            _ => {
                self.causes.one_of(&field, bus, &["virtio", "sata", "scsi", "usb"]);
                None
            }
        }
    }

    pub(super) fn pci_address(&mut self, address: &str, field: &FieldPath) -> Option<PciAddress> {
        let parsed = text::pci_address(address);
        if parsed.is_none() {
            self.causes.invalid(
                field,
                format!("\"{address}\" is not a PCI address such as 0000:81:01.0"),
            );
        }
        parsed
    }

    /// Boot orders start at 1 and are unique among disks and NICs.
    pub(super) fn boot_orders(&mut self, devices: &Devices, path: &FieldPath) {
        let path = path.child("domain.devices");
        let disks = devices.disks.iter().enumerate();
        let disks = disks.map(|(i, d)| (path.child("disks").index(i), d.boot_order));
        let nics = devices.interfaces.iter().enumerate();
        let nics = nics.map(|(i, n)| (path.child("interfaces").index(i), n.boot_order));
        let mut seen: BTreeMap<i32, FieldPath> = BTreeMap::new();
        for (device, order) in disks.chain(nics) {
            let Some(order) = order else { continue };
            let field = device.child("bootOrder");
            if order < 1 {
                self.causes
                    .invalid(&field, format!("{order} is no boot order: the first is 1"));
            } else if let Some(other) = seen.get(&order) {
                self.causes
                    .duplicate(&field, format!("boot order {order} is also that of {other}"));
            } else {
                seen.insert(order, device);
            }
        }
    }
}

/// A checked boot order.
pub(super) fn boot_order(order: Option<i32>) -> Option<u32> {
    order.and_then(|o| u32::try_from(o).ok())
}

fn join(disk: &WireDisk, target: Target, volume_index: usize, source: Source) -> Disk {
    let set = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
    Disk {
        name: disk.name.clone(),
        volume_index,
        device: target.device,
        bus: target.bus,
        readonly: target.readonly,
        serial: set(&disk.serial),
        boot_order: boot_order(disk.boot_order),
        cache: set(&disk.cache),
        io: set(&disk.io),
        error_policy: set(&disk.error_policy),
        pci_address: target.pci_address,
        source,
    }
}

/// PCI addresses that two devices ask for.
pub(super) fn taken_twice(disks: &[Disk], nics: &[Interface]) -> Option<PciAddress> {
    let mut seen = Vec::new();
    let addresses = disks
        .iter()
        .map(|d| d.pci_address)
        .chain(nics.iter().map(|n| n.pci_address));
    for address in addresses.flatten() {
        if seen.contains(&address) {
            return Some(address);
        }
        seen.push(address);
    }
    None
}
