//! From the wire's VMI to the domain's XML, by the rules that admission uses, too.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::cause;
use ferrovirt_core::config::ClusterConfig;
use ferrovirt_core::machine::{Architecture, Boot, LaunchSecurity, Machine, PciAddress, Smbios};
use ferrovirt_domain::{BlockSizes, Facts, FirmwareFiles, HostDeviceFact, MissingFact, NicFact};
use ferrovirt_protocol::launcher::{ClusterSettings, NodeFacts};

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

/// The cluster's settings as far as a guest sees them; what only admission and the pod's maker decide is open.
pub fn config(cluster: Option<&ClusterSettings>, console_log: bool) -> ClusterConfig {
    let mut config = ClusterConfig {
        disable_serial_console_log: !console_log,
        ..ClusterConfig::permissive()
    };
    let Some(ClusterSettings {
        smbios,
        balloon_statistics_seconds,
        free_page_reporting,
    }) = cluster
    else {
        return config;
    };
    config.mem_balloon_stats_period = *balloon_statistics_seconds;
    config.free_page_reporting = *free_page_reporting;
    if let Some(smbios) = smbios.clone() {
        config.smbios = Smbios {
            manufacturer: smbios.manufacturer,
            product: smbios.product,
            family: smbios.family,
            sku: smbios.sku,
            version: smbios.version,
        };
    }
    config
}

/// Reads the VMI; admission has let it in, so causes are rare and told all at once.
pub fn parse(vmi: &VirtualMachineInstance, config: &ClusterConfig) -> Result<Machine, String> {
    Machine::parse(vmi, config).map_err(|causes| cause::summary(&causes))
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

/// The blocks of a disk's image: those of the device, or what its file system likes to be asked for.
fn block_sizes(disk: &Prepared) -> Option<(String, BlockSizes)> {
    let meta = std::fs::metadata(&disk.file.path).ok()?;
    let sizes = if meta.file_type().is_block_device() {
        let device = format!(
            "{}:{}",
            nix::sys::stat::major(meta.rdev()),
            nix::sys::stat::minor(meta.rdev())
        );
        device_blocks(&Path::new("/sys/dev/block").join(device))?
    } else {
        let size = u32::try_from(meta.blksize()).ok()?;
        BlockSizes {
            logical: size,
            physical: size,
            discard: Some(size),
        }
    };
    Some((disk.name.clone(), sizes))
}

/// What sysfs tells of a block device (sysfs-block, `queue/`); a partition has the blocks of its disk.
fn device_blocks(device: &Path) -> Option<BlockSizes> {
    let queue = [device.join("queue"), device.join("../queue")];
    let queue = queue.iter().find(|queue| queue.is_dir())?;
    let read = |name: &str| {
        std::fs::read_to_string(queue.join(name))
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    Some(BlockSizes {
        logical: read("logical_block_size")?,
        physical: read("physical_block_size")?,
        discard: read("discard_granularity").filter(|bytes| *bytes > 0),
    })
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
        block_sizes: disks.iter().filter_map(block_sizes).collect(),
        downward_metrics_socket: layout.downward_metrics_socket(),
        virtual_functions: BTreeMap::new(),
        vsock_cid: None,
        agent_socket: layout.agent_socket(),
    }
}

#[cfg(test)]
mod tests {
    use ferrovirt_protocol::launcher::Smbios as Told;

    use super::*;

    fn machine(spec: serde_json::Value, cluster: Option<&ClusterSettings>, console_log: bool) -> Machine {
        let vmi = serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x"}, "spec": spec,
        });
        parse(&serde_json::from_value(vmi).unwrap(), &config(cluster, console_log)).unwrap()
    }

    fn plain() -> serde_json::Value {
        serde_json::json!({"domain": {"memory": {"guest": "2Gi"}, "cpu": {"sockets": 2}, "devices": {}}})
    }

    #[test]
    fn a_guest_sees_what_the_cluster_decided() {
        let told = ClusterSettings {
            smbios: Some(Told {
                manufacturer: "Acme".to_owned(),
                product: "Rocket".to_owned(),
                family: "Road".to_owned(),
                sku: Some("r1".to_owned()),
                version: None,
            }),
            balloon_statistics_seconds: 7,
            free_page_reporting: false,
        };
        let seen = machine(plain(), Some(&told), true);
        assert_eq!(
            (seen.smbios.manufacturer.as_str(), seen.smbios.sku.as_deref()),
            ("Acme", Some("r1"))
        );
        assert_eq!((seen.mem_balloon_stats_period, seen.log_serial_console), (7, true));
        assert!(!seen.free_page_reporting);
        let old = machine(plain(), None, true);
        assert_eq!(
            (old.smbios.manufacturer.as_str(), old.mem_balloon_stats_period),
            ("KubeVirt", 10)
        );
    }

    #[test]
    fn a_log_that_nobody_reads_is_not_written() {
        assert!(!machine(plain(), None, false).log_serial_console);
        let mut own = plain();
        own["domain"]["devices"]["logSerialConsole"] = true.into();
        assert!(machine(own, None, false).log_serial_console);
    }

    /// Under the rollout strategy Stage, for example, admission gives none.
    #[test]
    fn room_to_grow_is_what_admission_gave() {
        let none = machine(plain(), None, true);
        assert_eq!((none.cpu.max_sockets, none.memory.max_guest), (none.cpu.sockets, None));
        let mut given = plain();
        given["domain"]["cpu"]["maxSockets"] = 4.into();
        given["domain"]["memory"]["maxGuest"] = "4Gi".into();
        let some = machine(given, None, true);
        assert_eq!((some.cpu.max_sockets, some.memory.max_guest), (4, Some(4 << 30)));
    }

    #[test]
    fn blocks_of_devices_and_partitions() {
        let root = tempfile::tempdir().unwrap();
        let queue = root.path().join("sda/queue");
        std::fs::create_dir_all(&queue).unwrap();
        std::fs::create_dir_all(root.path().join("sda/sda1")).unwrap();
        for (name, text) in [
            ("logical_block_size", "512\n"),
            ("physical_block_size", "4096\n"),
            ("discard_granularity", "0\n"),
        ] {
            std::fs::write(queue.join(name), text).unwrap();
        }
        let expected = BlockSizes {
            logical: 512,
            physical: 4096,
            discard: None,
        };
        for device in ["sda", "sda/sda1"] {
            assert_eq!(device_blocks(&root.path().join(device)), Some(expected), "{device}");
        }
        assert_eq!(device_blocks(&root.path().join("sdb")), None);
    }
}
