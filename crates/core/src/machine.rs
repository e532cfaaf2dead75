//! A virtual machine as the launcher builds it: a VMI spec read once, every default resolved.
//!
//! Not serializable on purpose: the wire form is the VMI. The only way to a [`Machine`] is `Machine::parse`.

use uuid::Uuid;

/// The guest's processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
    /// IBM Z.
    S390x,
}

/// One virtual machine, with volumes joined to disks and networks joined to interfaces.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// `spec.architecture`.
    pub architecture: Architecture,
    /// `spec.domain.machine.type`, e.g. `q35`.
    pub machine_type: String,
    /// SMBIOS system UUID.
    pub uuid: Uuid,
    /// SMBIOS system serial.
    pub serial: Option<String>,
    /// Processor.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// How it boots.
    pub boot: Boot,
    /// ACPI on.
    pub acpi: bool,
    /// APIC on.
    pub apic: bool,
    /// System management mode on.
    pub smm: bool,
    /// Clock base.
    pub clock: Clock,
    /// Disks, in the order of `spec.domain.devices.disks` (then volumes without a disk).
    pub disks: Vec<Disk>,
    /// NICs, in the order of `spec.domain.devices.interfaces`.
    pub interfaces: Vec<Interface>,
    /// virtio-rng.
    pub rng: bool,
    /// serial0 exists.
    pub serial_console: bool,
    /// serial0 is written to a log file.
    pub log_serial_console: bool,
    /// VNC and a video card exist.
    pub graphics: bool,
    /// The balloon exists.
    pub mem_balloon: bool,
    /// Input devices.
    pub inputs: Vec<Input>,
    /// virtio models are the non-transitional ones unless this is set.
    pub virtio_transitional: bool,
    /// `spec.hostname` or the VMI's name made a DNS label.
    pub hostname: String,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
    /// Seconds between asking the guest to stop and stopping it; default 30.
    pub termination_grace_seconds: u64,
    /// `startStrategy: Paused`.
    pub start_paused: bool,
}

/// Processor topology and model.
#[derive(Clone, Debug, PartialEq)]
pub struct Cpu {
    /// Sockets at boot.
    pub sockets: u32,
    /// Cores per socket.
    pub cores: u32,
    /// Threads per core.
    pub threads: u32,
    /// Sockets that can be plugged in; at least `sockets`.
    pub max_sockets: u32,
    /// Model.
    pub model: CpuModel,
    /// Features over the model: name and libvirt policy (force, require, optional, disable, forbid).
    pub features: Vec<(String, String)>,
}

/// CPU model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuModel {
    /// `host-model`; `max` under TCG.
    HostModel,
    /// `host-passthrough`; `max` under TCG.
    HostPassthrough,
    /// A named libvirt model.
    Named(String),
}

/// Memory sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// At boot.
    pub guest: u64,
    /// Ceiling of hotplug, if above `guest`.
    pub max_guest: Option<u64>,
}

/// Firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// SeaBIOS.
    Bios {
        /// Its messages go to the serial console.
        use_serial: bool,
    },
    /// OVMF.
    Efi {
        /// Secure Boot enforced.
        secure_boot: bool,
    },
}

/// Guest clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clock {
    /// UTC plus an offset in seconds.
    Utc(i32),
    /// A time zone name.
    Timezone(String),
}

/// One disk with the volume behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Name of disk and volume.
    pub name: String,
    /// Index of the volume in `spec.volumes`.
    pub volume_index: usize,
    /// Disk or CD-ROM.
    pub device: DiskDevice,
    /// Bus.
    pub bus: Bus,
    /// The guest cannot write.
    pub readonly: bool,
    /// `serial`.
    pub serial: Option<String>,
    /// 1 is first.
    pub boot_order: Option<u32>,
    /// none, writethrough or writeback; `None`: none where `O_DIRECT` works, else writethrough.
    pub cache: Option<String>,
    /// native or threads.
    pub io: Option<String>,
    /// stop, ignore, report or enospace; default stop.
    pub error_policy: Option<String>,
    /// Where its bytes come from.
    pub source: Source,
}

/// Kind of disk device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskDevice {
    /// Hard disk.
    Disk,
    /// CD-ROM; `open`: the tray is open.
    Cdrom {
        /// Tray state.
        open: bool,
    },
}

/// Disk bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    Virtio,
    /// AHCI.
    Sata,
    /// virtio-scsi.
    Scsi,
    /// USB storage.
    Usb,
}

/// Volume sources that are built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An image of an OCI image, shared read-only below an overlay.
    ContainerDisk {
        /// Image reference.
        image: String,
        /// `path` inside the image, if given.
        path: Option<String>,
    },
    /// Scratch space, empty at each start; capacity in bytes.
    EmptyDisk {
        /// Bytes.
        capacity: u64,
    },
    /// A file of the node.
    HostDisk {
        /// Absolute path on the node.
        path: String,
        /// Create it with this many bytes when it is missing (`DiskOrCreate`).
        create: Option<u64>,
    },
    /// Cloud-init.
    CloudInit(CloudInit),
}

/// Cloud-init data source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudInit {
    /// Which format.
    pub flavor: CloudInitFlavor,
    /// User data.
    pub user_data: Option<CloudInitData>,
    /// Network data.
    pub network_data: Option<CloudInitData>,
}

/// Cloud-init format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloudInitFlavor {
    /// `cidata`.
    NoCloud,
    /// `config-2`.
    ConfigDrive,
}

/// One piece of cloud-init data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudInitData {
    /// In the spec, decoded.
    Inline(Vec<u8>),
    /// In a Secret, mounted by the pod.
    Secret(String),
}

/// One NIC with the network behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name of interface and network.
    pub name: String,
    /// How it reaches the pod's network.
    pub binding: Binding,
    /// virtio, e1000, e1000e, rtl8139, ne2k_pci, pcnet.
    pub model: String,
    /// MAC address, if chosen.
    pub mac: Option<String>,
    /// 1 is first.
    pub boot_order: Option<u32>,
    /// Ports that masquerade forwards; empty: all.
    pub ports: Vec<Port>,
    /// `pod.vmNetworkCIDR`, if given.
    pub vm_network_cidr: Option<String>,
}

/// How a NIC is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// NAT.
    Masquerade,
    /// The guest takes over the pod's address.
    Bridge,
}

/// A forwarded port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name, may be empty.
    pub name: String,
    /// Number.
    pub port: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// An input device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// usb or virtio.
    pub bus: String,
    /// tablet.
    pub kind: String,
    /// Name.
    pub name: String,
}
