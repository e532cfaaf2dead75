//! `spec.domain.devices.disks`, joined with the volumes.

use std::collections::BTreeMap;

use ferrovirt_api::v1::{
    BlockSize as WireBlockSize, CDRomTarget, CustomBlockSize, Devices, Disk as WireDisk, DiskTarget, LunTarget, Volume,
};

use super::{Cx, on, text};
use crate::cause::FieldPath;
use crate::config::GATE_EMPTY_DRIVES;
use crate::machine::{BlockSize, Bus, Disk, DiskDevice, Interface, PciAddress, Source};

const CACHES: [&str; 3] = ["none", "writethrough", "writeback"];
/// Least and largest block size.
const BLOCK_SIZES: std::ops::RangeInclusive<i32> = 512..=2 << 20;
/// What QEMU's IDE devices, which those on sata are, can have.
const SATA_SECTOR: u32 = 512;
const ERROR_POLICIES: [&str; 4] = ["stop", "ignore", "report", "enospace"];

/// What disk, cdrom or lun say about the device.
struct Target {
    device: DiskDevice,
    bus: Bus,
    readonly: bool,
    reservation: bool,
    pci_address: Option<PciAddress>,
    block_size: Option<BlockSize>,
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
            self.unique_disk(disk, &disks[..i], &path);
            let volume_index = volumes.iter().position(|v| v.name == disk.name);
            let drive = volume_index.is_none() && disk.cdrom.is_some() && self.config.gate(GATE_EMPTY_DRIVES);
            if volume_index.is_none() && !drive {
                self.causes.invalid(
                    &path.child("name"),
                    format!("there is no volume \"{}\" for this disk", disk.name),
                );
            }
            let target = self.disk(disk, &path);
            let claimed = volume_index.and_then(|v| volumes.get(v));
            let claimed = claimed.is_some_and(|v| v.persistent_volume_claim.is_some() || v.data_volume.is_some());
            if disk.lun.is_some() && volume_index.is_some() && !claimed {
                self.causes.invalid(
                    &path.child("lun"),
                    "a lun needs a volume of the type persistentVolumeClaim or dataVolume",
                );
            }
            let source = match volume_index {
                Some(volume) => sources.get(volume).cloned().flatten(),
                None => drive.then_some(Source::Empty),
            };
            let (Some(source), Some(target)) = (source, target) else {
                continue;
            };
            if target.device == DiskDevice::Disk && target.bus == Bus::Sata && is_fixed(&source) {
                self.causes.invalid(
                    &path.child("disk.bus"),
                    "a sata disk cannot be read-only, and its claim is; use another bus or cdrom",
                );
            }
            if source == Source::DownwardMetrics && (target.device, target.bus) != (DiskDevice::Disk, Bus::Virtio) {
                let field = if target.device == DiskDevice::Disk {
                    "disk.bus"
                } else {
                    "cdrom"
                };
                self.causes
                    .invalid(&path.child(field), "downwardMetrics are on a disk on the bus virtio");
            }
            let disk = join(disk, target, volume_index.unwrap_or(volumes.len()), source);
            if disk.shareable && !is_shared(&disk.source) {
                self.causes.invalid(
                    &path.child("shareable"),
                    "a disk that is made for one machine cannot be shared; share a claim or a hostDisk",
                );
            }
            parsed.push(disk);
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
        self.causes
            .none_of(path, &[("changedBlockTracking", on(*changed_block_tracking))]);
        self.tag(tag.as_deref(), &path.child("tag"));
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
        if on(*shareable) && set(cache).is_some_and(|c| c != "none") {
            self.causes
                .invalid(&path.child("cache"), "a shareable disk needs cache none");
        }
        if let Some(policy) = set(error_policy) {
            self.causes.one_of(&path.child("errorPolicy"), &policy, &ERROR_POLICIES);
        }
        let kinds = [hard_disk.is_some(), cdrom.is_some(), lun.is_some()];
        if kinds.iter().filter(|k| **k).count() > 1 {
            self.causes.invalid(path, "disk, cdrom and lun exclude each other");
            return None;
        }
        let block_size = block_size.as_ref();
        let block_size = block_size.and_then(|b| self.block_size(b, &path.child("blockSize")));
        let target = match (hard_disk, cdrom, lun) {
            (Some(target), _, _) => self.hard_disk(target, &path.child("disk")),
            (_, Some(target), _) => self.cdrom(target, &path.child("cdrom")),
            (_, _, Some(target)) => {
                self.none_of_a_lun(disk, path);
                self.lun(target, &path.child("lun"))
            }
            (None, None, None) => None,
        }?;
        if on(*dedicated_io_thread) && target.bus != Bus::Virtio {
            self.causes.invalid(
                &path.child("dedicatedIOThread"),
                "only virtio disks have an I/O thread of their own",
            );
        }
        if let Some(BlockSize::Custom { logical, .. }) = block_size
            && target.bus == Bus::Sata
            && logical != SATA_SECTOR
        {
            let message = format!("a sata device has sectors of {SATA_SECTOR} bytes; use another bus");
            self.causes.invalid(&path.child("blockSize.custom.logical"), message);
        }
        Some(Target { block_size, ..target })
    }

    /// What disks say by themselves, without the volumes that VMIs have for them.
    pub(super) fn disks_of_preset(&mut self, disks: &[WireDisk], path: &FieldPath) {
        let list = path.child("domain.devices.disks");
        for (i, disk) in disks.iter().enumerate() {
            self.unique_disk(disk, &disks[..i], &list.index(i));
            self.disk(disk, &list.index(i));
        }
        let devices = Devices {
            disks: disks.to_vec(),
            ..Devices::default()
        };
        self.boot_orders(&devices, path);
    }

    fn unique_disk(&mut self, disk: &WireDisk, earlier: &[WireDisk], path: &FieldPath) {
        if earlier.iter().any(|other| other.name == disk.name) {
            self.causes.duplicate(
                &path.child("name"),
                format!("another disk has the name \"{}\"", disk.name),
            );
        }
    }

    fn block_size(&mut self, sizes: &WireBlockSize, path: &FieldPath) -> Option<BlockSize> {
        let WireBlockSize { custom, match_volume } = sizes;
        let matching = match_volume.as_ref().is_some_and(|m| m.enabled.unwrap_or(true));
        let Some(CustomBlockSize {
            discard_granularity,
            logical,
            physical,
        }) = custom
        else {
            return matching.then_some(BlockSize::MatchVolume);
        };
        if matching {
            self.causes.invalid(path, "custom and matchVolume exclude each other");
        }
        let path = path.child("custom");
        let mut size = |name: &str, size: i32| {
            if !BLOCK_SIZES.contains(&size) || size.count_ones() != 1 {
                let field = path.child(name);
                let message = format!("{size} is not a power of two from 512 to {}", BLOCK_SIZES.end());
                self.causes.invalid(&field, message);
            }
            u32::try_from(size).unwrap_or_default()
        };
        let logical = size("logical", logical.unwrap_or_default());
        let physical = size("physical", physical.unwrap_or_default());
        let discard = discard_granularity.map(|d| u32::try_from(d).unwrap_or_default());
        if logical > physical {
            self.causes
                .invalid(&path.child("logical"), "logical is more than physical");
        }
        if discard.is_some_and(|d| logical == 0 || d == 0 || !d.is_multiple_of(logical)) {
            self.causes.invalid(
                &path.child("discardGranularity"),
                "the granularity of discards is a multiple of logical",
            );
        }
        Some(BlockSize::Custom {
            logical,
            physical,
            discard,
        })
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
            reservation: false,
            pci_address: parsed,
            block_size: None,
        })
    }

    fn cdrom(&mut self, target: &CDRomTarget, path: &FieldPath) -> Option<Target> {
        let CDRomTarget { bus, readonly, tray } = target;
        let bus = self.bus(bus.as_deref(), path)?;
        if bus == Bus::Virtio {
            self.causes
                .invalid(&path.child("bus"), "virtio has no CD-ROM; use sata, scsi or usb");
        }
        let tray = tray.as_deref().filter(|t| !t.is_empty()).unwrap_or("closed");
        self.causes.one_of(&path.child("tray"), tray, &["open", "closed"]);
        let device = DiskDevice::Cdrom { open: tray == "open" };
        Some(Target {
            device,
            bus,
            readonly: readonly.unwrap_or(true),
            reservation: false,
            pci_address: None,
            block_size: None,
        })
    }

    /// What the device behind a lun says of itself, nobody else may say.
    fn none_of_a_lun(&mut self, disk: &WireDisk, path: &FieldPath) {
        if disk.serial.as_deref().is_some_and(|serial| !serial.is_empty()) {
            let message = "a lun has the serial number of its device";
            self.causes.invalid(&path.child("serial"), message);
        }
        if disk.block_size.is_some() {
            let message = "a lun has the block size of its device";
            self.causes.invalid(&path.child("blockSize"), message);
        }
    }

    fn lun(&mut self, target: &LunTarget, path: &FieldPath) -> Option<Target> {
        let LunTarget {
            bus,
            readonly,
            reservation,
        } = target;
        let bus = self.bus(bus.as_deref(), path)?;
        if bus != Bus::Scsi {
            self.causes
                .invalid(&path.child("bus"), "a lun takes SCSI commands: its bus is scsi");
        }
        let field = path.child("reservation");
        if on(*reservation) && !self.config.reservation_daemons {
            let message = "one machine has no daemon that reserves devices for guests; a cluster may have one";
            self.causes.not_supported(&field, message);
        } else if on(*reservation) && !self.config.persistent_reservation {
            let message = "persistentReservationConfiguration.enabled is not set in the cluster's configuration";
            self.causes.invalid(&field, message);
        }
        Some(Target {
            device: DiskDevice::Lun,
            bus,
            readonly: on(*readonly),
            reservation: on(*reservation),
            pci_address: None,
            block_size: None,
        })
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

    /// What the guest is told about a device.
    pub(super) fn tag(&mut self, tag: Option<&str>, field: &FieldPath) {
        if !tag.is_none_or(text::is_printable) {
            self.causes.invalid(field, "has control characters");
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

/// Whether other machines may have the same bytes.
fn is_shared(source: &Source) -> bool {
    match source {
        Source::HostDisk { .. } => true,
        Source::Claim(claim) => !claim.ephemeral,
        _ => false,
    }
}

/// Whether what the guest writes would go where nobody may write.
fn is_fixed(source: &Source) -> bool {
    matches!(source, Source::Claim(claim) if claim.read_only && !claim.ephemeral)
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
        readonly: target.readonly || is_fixed(&source) || source == Source::DownwardMetrics,
        reservation: target.reservation,
        serial: set(&disk.serial),
        boot_order: boot_order(disk.boot_order),
        // What a host's cache holds back, the other machines would not see.
        cache: set(&disk.cache).or_else(|| on(disk.shareable).then(|| "none".to_owned())),
        io: set(&disk.io),
        error_policy: set(&disk.error_policy),
        // No volume, nothing to match.
        block_size: target
            .block_size
            .filter(|size| source != Source::Empty || *size != BlockSize::MatchVolume),
        shareable: on(disk.shareable),
        dedicated_io_thread: on(disk.dedicated_io_thread),
        thick: false,
        io_threads: Vec::new(),
        pci_address: target.pci_address,
        tag: set(&disk.tag),
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
