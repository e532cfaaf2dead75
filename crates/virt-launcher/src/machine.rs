//! From the wire's VMI to the domain's XML, by the rules that admission uses, too.

use std::path::{Path, PathBuf};

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::cause;
use ferrovirt_core::config::ClusterConfig;
use ferrovirt_core::machine::{Boot, Machine};
use ferrovirt_domain::{Facts, FirmwareFiles, MissingFact, NicFact};
use ferrovirt_protocol::launcher::NodeFacts;

use crate::disks::{KernelFiles, Prepared};
use crate::layout::Layout;

/// Debian's OVMF.
const OVMF: &str = "/usr/share/OVMF";

/// Reads the VMI; admission has let it in, so causes are rare and told all at once.
pub fn parse(vmi: &VirtualMachineInstance) -> Result<Machine, String> {
    Machine::parse(vmi, &ClusterConfig::permissive()).map_err(|causes| cause::summary(&causes))
}

/// The domain of the machine, with what was prepared for it.
pub fn domain_xml(
    machine: &Machine,
    node: &NodeFacts,
    disks: &[Prepared],
    kernel: KernelFiles,
    layout: &Layout,
) -> Result<String, MissingFact> {
    ferrovirt_domain::domain_xml(machine, &facts(machine, node, disks, kernel, layout))
}

fn facts(machine: &Machine, node: &NodeFacts, disks: &[Prepared], kernel: KernelFiles, layout: &Layout) -> Facts {
    let nic = |nic: &ferrovirt_protocol::launcher::Nic| {
        (
            nic.network.clone(),
            NicFact {
                tap: nic.tap.clone(),
                mac: nic.mac.clone(),
                mtu: nic.mtu,
            },
        )
    };
    let firmware = match machine.boot {
        Boot::Bios { .. } => None,
        Boot::Efi { secure_boot } => {
            Some(FirmwareFiles::ovmf(Path::new(OVMF), secure_boot, layout.nvram())).filter(|files| files.code.exists())
        }
    };
    Facts {
        namespace: layout.namespace().to_owned(),
        name: layout.name().to_owned(),
        uid: layout.uid().to_owned(),
        kvm: node.kvm,
        emulator: PathBuf::from(format!("/usr/bin/qemu-system-{}", machine.architecture.qemu_name())),
        disks: disks
            .iter()
            .map(|disk| (disk.name.clone(), disk.file.clone()))
            .collect(),
        nics: node.nics.iter().map(nic).collect(),
        kernel: kernel.kernel,
        initrd: kernel.initrd,
        firmware,
        serial_socket: layout.serial_socket(),
        serial_log: layout.serial_log(),
        vnc_socket: layout.vnc_socket(),
        agent_socket: layout.agent_socket(),
    }
}
