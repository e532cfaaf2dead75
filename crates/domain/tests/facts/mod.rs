//! Facts that fit any machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ferrovirt_core::machine::{
    Architecture, Attachment, Binding, Boot, Disk, Filesystem, HostDevice, HostDeviceSource, Interface, Machine,
    PciAddress, Source,
};
use ferrovirt_domain::{
    Backing, BlockSizes, DiskFile, DiskFormat, Facts, FirmwareFiles, HostCpu, HostDeviceFact, NicFact,
};

pub const UID: &str = "8f37b1a5-7b0a-4ac9-a28e-0ab2ddd20ac1";

pub fn facts(machine: &Machine, kvm: bool) -> Facts {
    let private = |file: &str| format!("/var/run/kubevirt-private/{UID}/{file}").into();
    let media = machine.disks.iter().filter(|disk| disk.source != Source::Empty);
    let boot = machine.kernel_boot.as_ref();
    let boot_file = |path: Option<&String>| path.map(|path| format!("/image/kernel-boot{path}").into());
    let secure_boot = matches!(machine.boot, Boot::Efi { secure_boot: true, .. });
    Facts {
        namespace: "ns".to_owned(),
        name: "vm".to_owned(),
        uid: UID.to_owned(),
        kvm,
        emulator: "/usr/bin/qemu-system-x86_64".into(),
        disks: media.map(disk_file).collect(),
        filesystem_sockets: filesystem_sockets(machine),
        nics: nics(machine),
        virtual_functions: virtual_functions(machine),
        host_devices: host_devices(machine),
        kernel: boot_file(boot.and_then(|boot| boot.kernel.as_ref())),
        initrd: boot_file(boot.and_then(|boot| boot.initrd.as_ref())),
        ignition: Some("/ignition/data.ign".into()),
        acpi_tables: ["slic", "msdm"]
            .map(|kind| (kind, format!("/acpi/{kind}.bin").into()))
            .into(),
        firmware: Some(if machine.architecture == Architecture::Arm64 {
            FirmwareFiles::aavmf("/usr/share/AAVMF".as_ref(), secure_boot, "/nvram.fd".into())
        } else {
            FirmwareFiles::ovmf("/usr/share/OVMF".as_ref(), secure_boot, "/nvram.fd".into())
        }),
        tpm_state: Some("/state/tpm".into()),
        cpus: (0..16)
            .map(|i| HostCpu {
                id: 4 + i,
                node: i / 2 % 2,
            })
            .collect(),
        serial_socket: private("virt-serial0"),
        serial_log: private("virt-serial0-log"),
        vnc_socket: private("virt-vnc"),
        reservation_socket: "/var/run/kubevirt/daemons/pr/pr-helper.sock".into(),
        usb_redirection_sockets: (0..4).map(|i| private(&format!("virt-usbredir-{i}"))).collect(),
        block_sizes: machine
            .disks
            .iter()
            .map(|disk| (disk.name.clone(), block_sizes(disk)))
            .collect(),
        downward_metrics_socket: private("metrics"),
        vsock_cid: Some(7),
        agent_socket: private("agent"),
    }
}

/// The image behind a disk.
fn disk_file(disk: &Disk) -> (String, DiskFile) {
    let ephemeral = matches!(&disk.source, Source::Claim(claim) if claim.ephemeral);
    let overlay = ephemeral || matches!(disk.source, Source::ContainerDisk { .. });
    // By the name of the volume, as only the pod can tell.
    let block = disk.name.starts_with("block");
    let (path, format) = match &disk.source {
        _ if overlay => ("/disk.qcow2".to_owned(), DiskFormat::Qcow2),
        Source::EmptyDisk { .. } => (format!("/empty/{}.qcow2", disk.name), DiskFormat::Qcow2),
        Source::HostDisk { path, .. } => (path.clone(), DiskFormat::Raw),
        Source::CloudInit(_) => ("/seed.iso".to_owned(), DiskFormat::Raw),
        Source::Claim(_) if block => (format!("/dev/{}", disk.name), DiskFormat::Raw),
        Source::Claim(_) => (format!("/disks/{}/disk.img", disk.name), DiskFormat::Raw),
        Source::DownwardMetrics => ("/metrics/vhostmd0".to_owned(), DiskFormat::Raw),
        Source::Files(_) => (format!("/files/{}.iso", disk.name), DiskFormat::Raw),
        Source::ContainerDisk { .. } | Source::Empty => unreachable!("an overlay, or no medium"),
    };
    let backing = overlay.then(|| Backing {
        path: if block {
            format!("/dev/{}", disk.name).into()
        } else {
            format!("/image/disk_{}/disk.img", disk.volume_index).into()
        },
        block,
        format: DiskFormat::Raw,
    });
    let cache = if block && !overlay { "none" } else { "writethrough" }.to_owned();
    (
        disk.name.clone(),
        DiskFile {
            path: path.into(),
            block: block && !overlay,
            format,
            backing,
            cache,
            allocated: false,
        },
    )
}

/// Those of a file system, or of a disk that emulates the sectors of old.
fn block_sizes(disk: &Disk) -> BlockSizes {
    let device = disk.name == "block";
    BlockSizes {
        logical: if device { 512 } else { 4096 },
        physical: 4096,
        discard: (!device).then_some(4096),
    }
}

fn nics(machine: &Machine) -> BTreeMap<String, NicFact> {
    let tap = |interface: &&Interface| match &interface.binding {
        Binding::Tap(_) | Binding::Passt => true,
        Binding::Sriov => false,
        Binding::Plugin(plugin) => plugin.attachment != Attachment::Sidecar,
    };
    let nics = machine.interfaces.iter().filter(tap).enumerate().map(|(i, interface)| {
        let nic = NicFact {
            tap: format!("tap{i}"),
            mac: "02:00:00:00:00:07".to_owned(),
            mtu: 1480,
            pod_interface: format!("eth{i}"),
        };
        (interface.name.clone(), nic)
    });
    nics.collect()
}

fn virtual_functions(machine: &Machine) -> BTreeMap<String, PciAddress> {
    let sriov = machine.interfaces.iter().filter(|nic| nic.binding == Binding::Sriov);
    let addresses = (1_u8..).map(|slot| PciAddress {
        domain: 0,
        bus: 0x3b,
        slot,
        function: 2,
    });
    sriov.zip(addresses).map(|(nic, at)| (nic.name.clone(), at)).collect()
}

fn filesystem_sockets(machine: &Machine) -> BTreeMap<String, PathBuf> {
    let socket = |share: &Filesystem| (share.name.clone(), format!("/shares/{}.sock", share.name).into());
    machine.filesystems.iter().map(socket).collect()
}

/// Parts of GPUs have names of their resources or requests that begin with `m`, USB devices such with `u`.
fn host_devices(machine: &Machine) -> BTreeMap<String, HostDeviceFact> {
    let devices = machine.host_devices.iter().zip(1_u8..);
    let fact = |(device, n): (&HostDevice, u8)| {
        let name = match &device.source {
            HostDeviceSource::Resource(resource) => resource.rsplit_once('/').map(|(_, name)| name),
            HostDeviceSource::Claim { request, .. } => Some(request.as_str()),
        };
        let fact = match name.map(|name| &name[..1]) {
            Some("m") => HostDeviceFact::Mediated(uuid::Uuid::from_u128(u128::from(n))),
            Some("u") => HostDeviceFact::Usb {
                bus: 3,
                device: n.into(),
            },
            _ => HostDeviceFact::Pci(PciAddress {
                domain: 0,
                bus: 0x81,
                slot: n,
                function: 1,
            }),
        };
        (device.alias(), fact)
    };
    devices.map(fact).collect()
}
