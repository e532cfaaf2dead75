//! What only the node and the launcher know about a machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ferrovirt_core::machine::{HostDeviceSource, PciAddress};
use uuid::Uuid;

/// Where a machine runs and what was prepared for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The VMI's namespace.
    pub namespace: String,
    /// The VMI's name.
    pub name: String,
    /// The VMI's UID.
    pub uid: String,
    /// KVM works here; otherwise QEMU emulates (TCG).
    pub kvm: bool,
    /// QEMU, e.g. `/usr/bin/qemu-system-x86_64`.
    pub emulator: PathBuf,
    /// Disk images by name of the disk.
    pub disks: BTreeMap<String, DiskFile>,
    /// Unix sockets of those who serve shared directories, by the name of the file system.
    pub filesystem_sockets: BTreeMap<String, PathBuf>,
    /// NICs by name of the interface.
    pub nics: BTreeMap<String, NicFact>,
    /// Virtual functions of the node's network cards by name of the interface.
    pub virtual_functions: BTreeMap<String, PciAddress>,
    /// Devices of the node by their alias in the domain.
    pub host_devices: BTreeMap<String, HostDeviceFact>,
    /// The kernel that the machine boots without firmware's help.
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// File with Ignition's configuration.
    pub ignition: Option<PathBuf>,
    /// Files of ACPI tables by kind: slic, msdm.
    pub acpi_tables: BTreeMap<&'static str, PathBuf>,
    /// UEFI firmware; needed when the machine boots by it.
    pub firmware: Option<FirmwareFiles>,
    /// Directory of the TPM's state; needed when that outlives the machine's stop.
    pub tpm_state: Option<PathBuf>,
    /// CPUs that are this machine's alone, those of one core side by side; empty where they are shared.
    pub cpus: Vec<HostCpu>,
    /// Unix socket of serial0, made by QEMU.
    pub serial_socket: PathBuf,
    /// Everything that serial0 says is appended here, if the machine logs it.
    pub serial_log: PathBuf,
    /// Unix socket of VNC, made by QEMU.
    pub vnc_socket: PathBuf,
    /// Unix socket of the node's daemon that reserves devices.
    pub reservation_socket: PathBuf,
    /// Unix sockets that clients' USB devices come through, made by QEMU.
    pub usb_redirection_sockets: Vec<PathBuf>,
    /// Blocks of the image of each disk that matches its volume.
    pub block_sizes: BTreeMap<String, BlockSizes>,
    /// Unix socket of the port for metrics, made by QEMU.
    pub downward_metrics_socket: PathBuf,
    /// Context ID of the machine's sockets; needed when it has them.
    pub vsock_cid: Option<u32>,
    /// Unix socket of the guest agent's channel, made by QEMU.
    pub agent_socket: PathBuf,
}

/// A CPU of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCpu {
    /// Number.
    pub id: u32,
    /// Its NUMA node.
    pub node: u32,
}

/// The blocks that an image is read and written in, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// The smallest that can be addressed.
    pub logical: u32,
    /// The smallest that is written without reading before.
    pub physical: u32,
    /// The smallest that can be given back, if any can.
    pub discard: Option<u32>,
}

/// The image behind a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFile {
    /// File.
    pub path: PathBuf,
    /// It is a block device.
    pub block: bool,
    /// Its format.
    pub format: DiskFormat,
    /// The image that it is an overlay of.
    pub backing: Option<Backing>,
    /// Cache mode for a disk that chooses none: `none` where `O_DIRECT` works, else `writethrough`.
    pub cache: String,
    /// Nothing of the file is left out: asynchronous I/O never waits for its file system.
    pub allocated: bool,
}

/// An image below an overlay; has no image below itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// File.
    pub path: PathBuf,
    /// It is a block device.
    pub block: bool,
    /// Its format.
    pub format: DiskFormat,
}

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// Bytes of the disk.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl DiskFormat {
    /// QEMU's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A tap device that waits for its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicFact {
    /// Device, e.g. `tap0`.
    pub tap: String,
    /// The guest's address.
    pub mac: String,
    /// The guest's MTU.
    pub mtu: u32,
    /// The pod's interface behind it, e.g. `eth0`.
    pub pod_interface: String,
}

/// A device of the node that the kubelet gave to the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostDeviceFact {
    /// On the PCI bus.
    Pci(PciAddress),
    /// A part of one, by its UUID.
    Mediated(Uuid),
    /// On a USB.
    Usb {
        /// Number of the bus.
        bus: u16,
        /// Number on it.
        device: u16,
    },
}

/// Files of a UEFI firmware build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFiles {
    /// Code, shared and read-only.
    pub code: PathBuf,
    /// Variables to begin with.
    pub vars_template: PathBuf,
    /// This machine's variables, copied from the template by libvirt.
    pub nvram: PathBuf,
}

impl FirmwareFiles {
    /// Debian's OVMF build in `directory` (`/usr/share/OVMF`) that fits.
    #[must_use]
    pub fn ovmf(directory: &std::path::Path, secure_boot: bool, nvram: PathBuf) -> Self {
        let (code, vars) = if secure_boot {
            ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd")
        } else {
            ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
        };
        Self {
            code: directory.join(code),
            vars_template: directory.join(vars),
            nvram,
        }
    }

    /// A build that keeps nothing beside itself.
    #[must_use]
    pub fn stateless(code: &std::path::Path) -> Self {
        Self {
            code: code.to_owned(),
            vars_template: PathBuf::new(),
            nvram: PathBuf::new(),
        }
    }

    /// Debian's build for arm64 in `directory` (`/usr/share/AAVMF`) that fits.
    #[must_use]
    pub fn aavmf(directory: &std::path::Path, secure_boot: bool, nvram: PathBuf) -> Self {
        let kind = if secure_boot { "ms.fd" } else { "fd" };
        Self {
            code: directory.join(format!("AAVMF_CODE.{kind}")),
            vars_template: directory.join(format!("AAVMF_VARS.{kind}")),
            nvram,
        }
    }
}

/// The facts lack something that the machine has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingFact {
    /// No image.
    #[error("disk \"{0}\" was not prepared: it has no image")]
    Disk(String),
    /// Fewer CPUs than the machine has.
    #[error("the machine needs {wanted} CPUs of its own, and has {given}")]
    Cpus {
        /// Needed.
        wanted: usize,
        /// There.
        given: usize,
    },
    /// Nobody asked the image's file system.
    #[error("the block size of disk \"{0}\" is not known")]
    BlockSize(String),
    /// A Secret has no such key.
    #[error("the Secret of volume \"{volume}\" has no ACPI table under the key {kind}.bin")]
    AcpiTable {
        /// slic or msdm.
        kind: &'static str,
        /// Volume.
        volume: String,
    },
    /// No server.
    #[error("filesystem \"{0}\" was not prepared: nobody serves it")]
    Filesystem(String),
    /// No tap device.
    #[error("interface \"{0}\" was not prepared: it has no tap device")]
    Nic(String),
    /// No virtual function.
    #[error("interface \"{0}\": the pod was given no virtual function of a network card")]
    VirtualFunction(String),
    /// No device.
    #[error("device \"{name}\": the pod was given no (more) {wanted}")]
    HostDevice {
        /// Name in the spec.
        name: String,
        /// What the pod asked for.
        wanted: HostDeviceSource,
    },
    /// No file.
    #[error("the {0} of kernelBoot was not prepared")]
    KernelBoot(&'static str),
    /// No file.
    #[error("the configuration for Ignition was not prepared")]
    Ignition,
    /// Nobody gave one.
    #[error("the machine has sockets, and the VMI's status has no VSOCKCID")]
    VsockCid,
    /// No directory.
    #[error("the TPM's state has no place that outlives the machine")]
    TpmState,
    /// No firmware files.
    #[error("the machine boots by UEFI, and this node has no UEFI firmware")]
    Firmware,
}
