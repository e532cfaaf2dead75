//! From the wire's VMI to the domain's XML, by the rules that admission uses, too.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::cause;
use ferrovirt_core::config::ClusterConfig;
use ferrovirt_core::machine::{Architecture, Boot, LaunchSecurity, Machine, PciAddress};
use ferrovirt_domain::{Facts, FirmwareFiles, HostDeviceFact, MissingFact, NicFact};
use ferrovirt_protocol::launcher::NodeFacts;

use crate::disks::{KernelFiles, Prepared};
use crate::layout::Layout;
use crate::{cpus, host_devices, virtual_functions};

/// Debian's OVMF.
const OVMF: &str = "/usr/share/OVMF";
/// The same for arm64.
const AAVMF: &str = "/usr/share/AAVMF";
/// The same, for guests that AMD's secure processor measures (Debian package ovmf-amdsev).
const SNP_FIRMWARE: &str = "/usr/share/ovmf/OVMF.amdsev.fd";
/// The same, for guests that Intel's TDX module measures (Debian package ovmf-inteltdx; it knows Microsoft's keys).
const TDX_FIRMWARE: &str = "/usr/share/ovmf/OVMF.inteltdx.ms.fd";

/// Reads the VMI; admission has let it in, so causes are rare and told all at once.
pub fn parse(vmi: &VirtualMachineInstance) -> Result<Machine, String> {
    Machine::parse(vmi, &ClusterConfig::permissive()).map_err(|causes| cause::summary(&causes))
}

/// What a machine has from others than its spec and its node's agent.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Context ID of its sockets, by the VMI's status.
    vsock_cid: Option<u32>,
    /// Devices by resource claims, by their alias; by the VMI's status.
    host_devices: BTreeMap<String, HostDeviceFact>,
    /// Virtual functions of network cards by name of the interface.
    pub virtual_functions: BTreeMap<String, PciAddress>,
}

impl Given {
    /// Reads the status for a machine that was parsed from `vmi`.
    pub fn new(vmi: &VirtualMachineInstance, machine: &Machine) -> Self {
        let Some(status) = &vmi.status else {
            return Self::default();
        };
        let devices = status.device_status.as_ref();
        Self {
            vsock_cid: status.vsockcid.and_then(|cid| u32::try_from(cid).ok()),
            host_devices: devices
                .map(|devices| host_devices::by_claims(&machine.host_devices, devices))
                .unwrap_or_default(),
            virtual_functions: devices
                .map(|devices| virtual_functions::by_claims(&machine.interfaces, devices))
                .unwrap_or_default(),
        }
    }
}

/// The domain of the machine, with what was prepared for it.
pub fn domain_xml(
    machine: &Machine,
    node: &NodeFacts,
    disks: &[Prepared],
    kernel: KernelFiles,
    layout: &Layout,
    given: Given,
) -> Result<String, MissingFact> {
    let mut facts = facts(machine, node, disks, kernel, layout);
    facts.vsock_cid = given.vsock_cid;
    facts.host_devices.extend(given.host_devices);
    facts.virtual_functions = given.virtual_functions;
    ferrovirt_domain::domain_xml(machine, &facts)
}

/// What the file system of a disk's image likes to be asked for.
fn block_size(disk: &Prepared) -> Option<(String, u32)> {
    let size = std::fs::metadata(&disk.file.path).ok()?.blksize();
    Some((disk.name.clone(), u32::try_from(size).ok()?))
}

fn facts(machine: &Machine, node: &NodeFacts, disks: &[Prepared], kernel: KernelFiles, layout: &Layout) -> Facts {
    let nic = |nic: &ferrovirt_protocol::launcher::Nic| {
        (
            nic.network.clone(),
            NicFact {
                tap: nic.tap.clone(),
                mac: nic.mac.clone(),
                mtu: nic.mtu,
                pod_interface: nic.pod_interface.clone(),
            },
        )
    };
    let firmware = match machine.boot {
        Boot::Bios { .. } => None,
        Boot::Efi {
            secure_boot,
            persistent,
        } => {
            let nvram = if persistent {
                layout.kept_nvram()
            } else {
                layout.nvram()
            };
            let files = match (&machine.launch_security, machine.architecture) {
                (Some(LaunchSecurity::Snp), _) => FirmwareFiles::stateless(Path::new(SNP_FIRMWARE)),
                (Some(LaunchSecurity::Tdx), _) => FirmwareFiles::stateless(Path::new(TDX_FIRMWARE)),
                (_, Architecture::Arm64) => FirmwareFiles::aavmf(Path::new(AAVMF), secure_boot, nvram),
                _ => FirmwareFiles::ovmf(Path::new(OVMF), secure_boot, nvram),
            };
            Some(files).filter(|files| files.code.exists())
        }
    };
    Facts {
        namespace: layout.namespace().to_owned(),
        name: layout.name().to_owned(),
        uid: layout.uid().to_owned(),
        // KVM runs guests of its own architecture only.
        kvm: node.kvm && machine.architecture == Architecture::host(),
        emulator: PathBuf::from(format!("/usr/bin/qemu-system-{}", machine.architecture.qemu_name())),
        disks: disks
            .iter()
            .map(|disk| (disk.name.clone(), disk.file.clone()))
            .collect(),
        filesystem_sockets: machine
            .filesystems
            .iter()
            .map(|share| (share.name.clone(), layout.filesystem_socket(&share.name)))
            .collect(),
        nics: node.nics.iter().map(nic).collect(),
        host_devices: host_devices::given(&machine.host_devices, |name| std::env::var(name).ok()),
        kernel: kernel.kernel,
        initrd: kernel.initrd,
        ignition: machine.ignition.is_some().then(|| layout.ignition()),
        acpi_tables: machine
            .acpi_tables
            .iter()
            .map(|table| (table.kind, layout.acpi_table(&table.volume, table.kind)))
            .filter(|(_, file)| file.exists())
            .collect(),
        firmware,
        tpm_state: Some(layout.kept_tpm(&machine.uuid.to_string())),
        cpus: if machine.cpu.pinning.is_some() {
            cpus::own()
        } else {
            Vec::new()
        },
        serial_socket: layout.serial_socket(),
        serial_log: layout.serial_log(),
        vnc_socket: layout.vnc_socket(),
        reservation_socket: layout.reservation_socket(),
        usb_redirection_sockets: layout.usb_redirection_sockets(),
        block_sizes: disks.iter().filter_map(block_size).collect(),
        downward_metrics_socket: layout.downward_metrics_socket(),
        virtual_functions: BTreeMap::new(),
        vsock_cid: None,
        agent_socket: layout.agent_socket(),
    }
}
