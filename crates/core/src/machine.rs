//! A virtual machine as the launcher builds it: a VMI spec read once, every default resolved.
//!
//! Not serializable on purpose: the wire form is the VMI. The only way to a [`Machine`] is `Machine::parse`.

mod extras;
mod host_devices;
mod hyperv;
mod launch_security;
mod network;

use std::net::Ipv4Addr;

use uuid::Uuid;

pub use extras::{
    AccessCredential, Claim, CredentialMethod, Files, FilesOrigin, Filesystem, FilesystemSource, HookClaim, HookScript,
    HookSidecar, KernelBoot, ObjectRef, ServiceAccount, Tpm,
};
pub use host_devices::{ClaimSource, Display, HostDevice, HostDeviceList, HostDeviceSource, ResourceClaim};
pub use hyperv::{Enlightenment, Hyperv, api_name as hyperv_name};
pub use launch_security::LaunchSecurity;
pub use network::{Attachment, NicNetwork, Plugin};

/// Most queues of a tap device.
const MAX_QUEUES: u32 = 256;

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

impl Architecture {
    /// This executable's architecture; amd64 where KubeVirt knows no name for it.
    #[must_use]
    pub fn host() -> Self {
        match std::env::consts::ARCH {
            "aarch64" => Self::Arm64,
            "s390x" => Self::S390x,
            _ => Self::Amd64,
        }
    }

    /// By Kubernetes' name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "amd64" => Some(Self::Amd64),
            "arm64" => Some(Self::Arm64),
            "s390x" => Some(Self::S390x),
            _ => None,
        }
    }

    /// Kubernetes' name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::S390x => "s390x",
        }
    }

    /// QEMU's and libvirt's name.
    #[must_use]
    pub fn qemu_name(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
            Self::S390x => "s390x",
        }
    }
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
    /// SMBIOS strings of the cluster.
    pub smbios: Smbios,
    /// SMBIOS chassis strings of the machine.
    pub chassis: Chassis,
    /// Processor.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Its pod may have no more CPUs and memory than it asks for.
    pub guaranteed: bool,
    /// How it boots.
    pub boot: Boot,
    /// ACPI on.
    pub acpi: bool,
    /// ACPI tables beside those of the machine.
    pub acpi_tables: Vec<AcpiTable>,
    /// APIC on.
    pub apic: bool,
    /// APIC end of interrupt accelerated; `None`: as QEMU does.
    pub apic_eoi: Option<bool>,
    /// KVM hidden from the guest.
    pub kvm_hidden: bool,
    /// Paravirtual spinlocks; `None`: as QEMU does.
    pub pv_spinlock: Option<bool>,
    /// System management mode on.
    pub smm: bool,
    /// Hyper-V enlightenments.
    pub hyperv: Option<Hyperv>,
    /// Clock base.
    pub clock: Clock,
    /// Timers that differ from QEMU's defaults.
    pub timers: Vec<Timer>,
    /// Disks, in the order of `spec.domain.devices.disks` (then volumes without a disk).
    pub disks: Vec<Disk>,
    /// Shared directories, in the order of `spec.domain.devices.filesystems`.
    pub filesystems: Vec<Filesystem>,
    /// Threads that serve disks, numbered from 1.
    pub io_threads: u32,
    /// The thread of the SCSI controller; `None`: QEMU's main loop.
    pub scsi_io_thread: Option<u32>,
    /// NICs, in the order of `spec.domain.devices.interfaces`.
    pub interfaces: Vec<Interface>,
    /// Devices of the node, GPUs first.
    pub host_devices: Vec<HostDevice>,
    /// Claims of the pod, by which some of those are given.
    pub resource_claims: Vec<ResourceClaim>,
    /// virtio-rng.
    pub rng: bool,
    /// serial0 exists.
    pub serial_console: bool,
    /// serial0 is written to a log file.
    pub log_serial_console: bool,
    /// VNC and a video card exist.
    pub graphics: bool,
    /// Model of the video card, if chosen.
    pub video: Option<String>,
    /// The balloon exists.
    pub mem_balloon: bool,
    /// Seconds between balloon statistics; 0: none.
    pub mem_balloon_stats_period: u32,
    /// The guest gives pages back that it has freed.
    pub free_page_reporting: bool,
    /// PCI devices may be above 4 GiB.
    pub pci_hole64: bool,
    /// Watchdog.
    pub watchdog: Option<Watchdog>,
    /// Panic devices: isa, pvpanic or hyperv.
    pub panic_devices: Vec<String>,
    /// One queue per vCPU on virtio disks.
    pub block_multi_queue: bool,
    /// One queue per vCPU on virtio NICs.
    pub network_multi_queue: bool,
    /// Input devices.
    pub inputs: Vec<Input>,
    /// Sound card.
    pub sound: Option<Sound>,
    /// An emulated TPM 2.0.
    pub tpm: Option<Tpm>,
    /// Ports that a client's USB devices can be plugged into.
    pub usb_redirection: bool,
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
    /// `rebootPolicy: Terminate`: a reboot by the guest ends the machine.
    pub terminate_on_reboot: bool,
    /// How its memory is protected from its node.
    pub launch_security: Option<LaunchSecurity>,
    /// A kernel of its own.
    pub kernel_boot: Option<KernelBoot>,
    /// Configuration for Ignition, which the guest reads from its firmware's configuration device.
    pub ignition: Option<String>,
    /// Containers that may change its domain and its cloud-init data before it starts.
    pub hook_sidecars: Vec<HookSidecar>,
    /// A port on which the guest asks for metrics of itself and of its node.
    pub downward_metrics: bool,
    /// Sockets between the guest and its node, by the context ID of the VMI's status.
    pub vsock: bool,
    /// Keys and passwords of its users.
    pub access_credentials: Vec<AccessCredential>,
    /// Account of the pod; `None`: the namespace's default one, without its token.
    pub service_account: Option<ServiceAccount>,
}

impl Machine {
    /// Devices of the node may be in it that reach its memory by themselves.
    #[must_use]
    pub fn has_vfio(&self) -> bool {
        let virtual_function = |interface: &Interface| interface.binding == Binding::Sriov;
        !self.host_devices.is_empty() || self.interfaces.iter().any(virtual_function)
    }

    /// passt plays its network.
    #[must_use]
    pub fn has_passt(&self) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.binding == Binding::Passt)
    }

    /// Names of the plugins that bind its NICs, each once, in the order of the NICs.
    #[must_use]
    pub fn binding_plugins(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for plugin in self.interfaces.iter().filter_map(Interface::plugin) {
            if !names.contains(&plugin.name.as_str()) {
                names.push(&plugin.name);
            }
        }
        names
    }

    /// Whether the guest stands still after its start, until somebody lets it run.
    #[must_use]
    pub fn starts_still(&self) -> bool {
        self.start_paused || self.launch_security.as_ref().is_some_and(LaunchSecurity::is_attested)
    }

    /// How many queues a NIC has, and therefore its tap: one per vCPU where that is wanted and the model can.
    #[must_use]
    pub fn network_queues(&self, interface: &Interface) -> u32 {
        // passt has one pair, and virtual functions have what the card gives.
        let own = !matches!(interface.binding, Binding::Sriov | Binding::Passt);
        if self.network_multi_queue && interface.model == "virtio" && own {
            self.cpu.vcpus().clamp(1, MAX_QUEUES)
        } else {
            1
        }
    }
}

/// SMBIOS strings that a cluster gives all its guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    /// System and base board.
    pub manufacturer: String,
    /// System and base board.
    pub product: String,
    /// System.
    pub family: String,
    /// System.
    pub sku: Option<String>,
    /// System.
    pub version: Option<String>,
}

/// SMBIOS chassis strings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chassis {
    /// Asset tag.
    pub asset: Option<String>,
    /// Manufacturer.
    pub manufacturer: Option<String>,
    /// Serial.
    pub serial: Option<String>,
    /// SKU.
    pub sku: Option<String>,
    /// Version.
    pub version: Option<String>,
}

/// An ACPI table by which Windows finds its license.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTable {
    /// slic or msdm.
    pub kind: &'static str,
    /// Volume of the Secret whose key `<kind>.bin` is the table.
    pub volume: String,
}

/// A timer of the guest, in libvirt's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// rtc, pit, hpet, kvmclock or hypervclock.
    pub name: &'static str,
    /// Whether the guest sees it.
    pub present: bool,
    /// delay, catchup, merge or discard.
    pub tick_policy: Option<String>,
    /// guest or wall; rtc only.
    pub track: Option<String>,
}

/// A watchdog device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchdog {
    /// Name in the spec.
    pub name: String,
    /// i6300esb or diag288.
    pub model: &'static str,
    /// reset, poweroff or shutdown.
    pub action: String,
}

/// A sound card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sound {
    /// Name in the spec.
    pub name: String,
    /// ich9 or ac97.
    pub model: String,
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
    /// CPUs of the node that are this guest's alone.
    pub pinning: Option<Pinning>,
    /// vCPUs that the node runs before all else, in order; none in most guests.
    pub realtime: Vec<u32>,
}

/// How a guest has CPUs of the node to itself: one for each vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinning {
    /// One more, for what QEMU does beside running vCPUs.
    pub isolate_emulator: bool,
    /// That one is two where all of them would be an odd number.
    pub even: bool,
    /// The guest has NUMA nodes as its CPUs have.
    pub host_numa: bool,
}

impl Cpu {
    /// vCPUs at boot.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }

    /// vCPUs after the last plug.
    #[must_use]
    pub fn max_vcpus(&self) -> u32 {
        self.max_sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
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
    /// Bytes of the huge pages that the guest's memory is made of.
    pub huge_page: Option<u64>,
    /// QEMU may lock all of it, for devices that reach it without QEMU's help.
    pub lockable: bool,
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
        /// Variables outlive the machine's stop.
        persistent: bool,
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
    /// Index of the volume in `spec.volumes`; the one after the last where there is no volume.
    pub volume_index: usize,
    /// Disk or CD-ROM.
    pub device: DiskDevice,
    /// Bus.
    pub bus: Bus,
    /// The guest cannot write.
    pub readonly: bool,
    /// The guest may reserve the device for itself; its node's daemon does it.
    pub reservation: bool,
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
    /// Sizes that the guest sees; `None`: 512.
    pub block_size: Option<BlockSize>,
    /// Other machines may write to it at the same time.
    pub shareable: bool,
    /// All of its room was taken beforehand, and is kept.
    pub thick: bool,
    /// A thread serves this disk and no other.
    pub dedicated_io_thread: bool,
    /// Threads that serve it; none: QEMU's main loop, or its controller's thread.
    pub io_threads: Vec<u32>,
    /// PCI address, if chosen; virtio only.
    pub pci_address: Option<PciAddress>,
    /// What the guest is told about it on a config drive.
    pub tag: Option<String>,
    /// Where its bytes come from.
    pub source: Source,
}

/// Block sizes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSize {
    /// Those of the medium behind it.
    MatchVolume,
    /// Bytes.
    Custom {
        /// Least access.
        logical: u32,
        /// Unit of the medium.
        physical: u32,
        /// Least discard.
        discard: Option<u32>,
    },
}

/// `domain:bus:slot.function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    /// Domain.
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Slot, below 32.
    pub slot: u8,
    /// Function, below 8.
    pub function: u8,
}

impl PciAddress {
    /// Reads `dddd:bb:ss.f`, in hexadecimal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        crate::parse::pci_address(text)
    }
}

impl std::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            domain,
            bus,
            slot,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{slot:02x}.{function}")
    }
}

/// Kind of disk device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskDevice {
    /// Hard disk.
    Disk,
    /// A SCSI device of the node, whose commands the guest sends itself.
    Lun,
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
        /// Other nodes have the same file, so that the machine can move there.
        shared: bool,
    },
    /// Cloud-init.
    CloudInit(CloudInit),
    /// Files of an object of the cluster.
    Files(Files),
    /// Metrics of the machine and of its node, which change while it runs.
    DownwardMetrics,
    /// A disk that outlives the pod.
    Claim(Claim),
    /// Nothing: a drive without a medium.
    Empty,
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
    /// Where it is.
    pub network: NicNetwork,
    /// How it gets there.
    pub binding: Binding,
    /// virtio, e1000, e1000e, rtl8139, ne2k_pci, pcnet. Without meaning for a virtual function.
    pub model: String,
    /// MAC address, if chosen, as `02:00:00:00:00:01`.
    pub mac: Option<String>,
    /// PCI address, if chosen.
    pub pci_address: Option<PciAddress>,
    /// ACPI index, if chosen; the guest names the NIC by it.
    pub acpi_index: Option<u32>,
    /// The link is down.
    pub link_down: bool,
    /// 1 is first.
    pub boot_order: Option<u32>,
    /// Ports that masquerade and passt forward; with no ranges either: all.
    pub ports: Vec<Port>,
    /// More ports that masquerade forwards.
    pub port_ranges: Vec<PortRange>,
    /// `pod.vmNetworkCIDR`, if given.
    pub vm_network_cidr: Option<String>,
    /// `pod.vmIPv6NetworkCIDR`, if given.
    pub vm_ipv6_network_cidr: Option<String>,
    /// What the guest is told about it on a config drive.
    pub tag: Option<String>,
    /// What DHCP tells the guest beside its address.
    pub dhcp: DhcpOptions,
}

impl Interface {
    /// The plugin that binds it.
    #[must_use]
    pub fn plugin(&self) -> Option<&Plugin> {
        match &self.binding {
            Binding::Plugin(plugin) => Some(plugin),
            Binding::Tap(_) | Binding::Sriov | Binding::Passt => None,
        }
    }

    /// The pod's interface behind it; `None`: the one that all pods have, or, of a device by a resource claim, none.
    #[must_use]
    pub fn pod_interface(&self) -> Option<String> {
        match self.network {
            NicNetwork::Multus { default: false, .. } => Some(crate::names::pod_interface(&self.name)),
            NicNetwork::Pod | NicNetwork::Multus { default: true, .. } | NicNetwork::Claim { .. } => None,
        }
    }
}

/// How a NIC is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// By a tap device of the pod, which virt-handler makes.
    Tap(TapBinding),
    /// The guest has a virtual function of the node's network card to itself.
    Sriov,
    /// By passt, which plays the network for the guest and has no privileges for it.
    Passt,
    /// By a plugin.
    Plugin(Plugin),
}

/// What is behind a NIC's tap device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapBinding {
    /// NAT.
    Masquerade,
    /// The guest takes over the pod's address.
    Bridge,
}

/// What DHCP tells a guest beside its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DhcpOptions {
    /// Boot file (option 67).
    pub boot_file: Option<String>,
    /// TFTP server (option 66): a name or an address.
    pub tftp_server: Option<String>,
    /// Time servers (option 42).
    pub ntp_servers: Vec<Ipv4Addr>,
    /// Options 224 to 254, as text.
    pub private: Vec<(u8, String)>,
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

/// Forwarded ports with numbers in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First.
    pub start: u16,
    /// Last.
    pub end: u16,
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
