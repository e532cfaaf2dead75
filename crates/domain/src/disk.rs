//! Disks and CD-ROMs.

use std::path::Path;

use ferrovirt_core::machine::{BlockSize, Bus, Disk, DiskDevice, Machine, Source};

use crate::facts::{Backing, BlockSizes, DiskFile, DiskFormat, Facts, MissingFact};
use crate::xml::{Element, el};
use crate::{alias, io_threads, pci_address, virtio};

/// Name of the target device of each disk, in order: `vda`, `sda`, …
#[must_use]
pub fn targets(disks: &[Disk]) -> Vec<String> {
    let (mut vd, mut sd) = (0, 0);
    disks
        .iter()
        .map(|disk| {
            let (prefix, count) = match disk.bus {
                Bus::Virtio => ("vd", &mut vd),
                Bus::Sata | Bus::Scsi | Bus::Usb => ("sd", &mut sd),
            };
            let name = format!("{prefix}{}", letters(*count));
            *count += 1;
            name
        })
        .collect()
}

/// a, b, … z, aa, ab, …
fn letters(mut n: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(char::from(b'a' + u8::try_from(n % 26).unwrap_or_default()));
        if n < 26 {
            return letters.iter().rev().collect();
        }
        n = n / 26 - 1;
    }
}

pub(crate) fn disks(machine: &Machine, facts: &Facts) -> Result<Vec<Element>, MissingFact> {
    let targets = targets(&machine.disks);
    let disks = machine.disks.iter().zip(targets);
    disks
        .map(|(disk, target)| {
            let missing = || MissingFact::Disk(disk.name.clone());
            let block_io = block_io(disk, facts)?;
            if disk.source == Source::Empty {
                return Ok(element(machine, disk, None, &target, block_io));
            }
            let file = facts.disks.get(&disk.name).ok_or_else(missing)?;
            let reservations = disk.reservation.then(|| reservations(&facts.reservation_socket));
            let source = source(&file.path, file.block).children(reservations);
            Ok(element(machine, disk, Some((file, source)), &target, block_io))
        })
        .collect()
}

fn element(
    machine: &Machine,
    disk: &Disk,
    medium: Option<(&DiskFile, Element)>,
    target: &str,
    block_io: Option<Element>,
) -> Element {
    let (device, tray) = match disk.device {
        DiskDevice::Disk => ("disk", None),
        DiskDevice::Lun => ("lun", None),
        DiskDevice::Cdrom { open } => ("cdrom", Some(if open { "open" } else { "closed" })),
    };
    let bus = match disk.bus {
        Bus::Virtio => "virtio",
        Bus::Sata => "sata",
        Bus::Scsi => "scsi",
        Bus::Usb => "usb",
    };
    let (file, source) = medium.unzip();
    let block = file.is_some_and(|file| file.block);
    let mut element = el("disk").attr("type", kind(block)).attr("device", device);
    if disk.bus == Bus::Virtio {
        element = element.attr("model", virtio(machine));
    }
    element = element
        .child(driver(machine, disk, file))
        .children(source)
        .children(file.map(|file| backing(file.backing.as_ref())))
        .children(block_io)
        .child(el("target").attr("dev", target).attr("bus", bus).attr_if("tray", tray));
    if disk.readonly {
        element = element.child(el("readonly"));
    }
    if disk.shareable {
        element = element.child(el("shareable"));
    }
    element
        .children(disk.serial.as_ref().map(|serial| el("serial").text(serial)))
        .children(disk.boot_order.map(|order| el("boot").attr("order", order)))
        .child(alias(&disk.name))
        .children(pci_address(disk.pci_address))
}

fn kind(block: bool) -> &'static str {
    if block { "block" } else { "file" }
}

fn source(path: &Path, block: bool) -> Element {
    el("source").attr(if block { "dev" } else { "file" }, path.display())
}

/// Who asks the device's reservations for the guest: QEMU may not do it itself.
fn reservations(socket: &Path) -> Element {
    el("reservations").attr("managed", "no").child(
        el("source")
            .attr("type", "unix")
            .attr("path", socket.display())
            .attr("mode", "client"),
    )
}

fn driver(machine: &Machine, disk: &Disk, file: Option<&DiskFile>) -> Element {
    let queues = machine.block_multi_queue && disk.bus == Bus::Virtio;
    let cache = disk.cache.as_ref().or(file.map(|file| &file.cache));
    // libvirt allows it without a cache only.
    let whole = file.is_some_and(|file| file.block || file.allocated);
    let native = (whole && cache.is_some_and(|cache| cache == "none")).then_some("native");
    let driver = el("driver")
        .attr("name", "qemu")
        .attr("type", file.map_or(DiskFormat::Raw, |file| file.format).name())
        .attr_if("cache", cache)
        .attr("error_policy", disk.error_policy.as_deref().unwrap_or("stop"))
        .attr_if("io", disk.io.as_deref().or(native))
        .attr_if("discard", (!disk.thick).then_some("unmap"))
        .attr_if("queues", queues.then(|| machine.cpu.vcpus()));
    io_threads::driver(driver, &disk.io_threads)
}

fn block_io(disk: &Disk, facts: &Facts) -> Result<Option<Element>, MissingFact> {
    let sizes = match disk.block_size {
        None => return Ok(None),
        Some(BlockSize::Custom {
            logical,
            physical,
            discard,
        }) => (logical, physical, discard),
        Some(BlockSize::MatchVolume) => {
            let sizes = facts.block_sizes.get(&disk.name);
            let BlockSizes {
                logical,
                physical,
                discard,
            } = *sizes.ok_or_else(|| MissingFact::BlockSize(disk.name.clone()))?;
            (logical, physical, discard)
        }
    };
    let (logical, physical, discard) = sizes;
    let element = el("blockio")
        .attr("logical_block_size", logical)
        .attr("physical_block_size", physical)
        .attr_if("discard_granularity", discard);
    Ok(Some(element))
}

/// The chain below the image, said in full: libvirt need not look into files to find it.
fn backing(backing: Option<&Backing>) -> Element {
    match backing {
        None => el("backingStore"),
        Some(Backing { path, block, format }) => el("backingStore")
            .attr("type", kind(*block))
            .child(el("format").attr("type", format.name()))
            .child(source(path, *block))
            .child(el("backingStore")),
    }
}

#[cfg(test)]
mod tests {
    use super::letters;

    #[test]
    fn names_go_on_after_z() {
        for (n, name) in [(0, "a"), (25, "z"), (26, "aa"), (51, "az"), (52, "ba"), (702, "aaa")] {
            assert_eq!(letters(n), name);
        }
    }
}
