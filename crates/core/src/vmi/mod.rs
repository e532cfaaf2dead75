//! Rules of the VirtualMachineInstance: phases, conditions, what may be asked of it.
//!
//! Who writes which field of a VMI (each writer changes only its own, by a JSON patch that tests what it read):
//!
//! | Field | virt-controller | virt-handler of `status.nodeName` |
//! |---|---|---|
//! | `metadata.labels["kubevirt.io/nodeName"]`, finalizers, the owner of an orphan; `nodeSelector`, `affinity` and `tolerations` of the spec, after the VM's | yes | – |
//! | `status.phase`, `phaseTransitionTimestamps`, `reason` | see [`phase`] | see [`phase`] |
//! | the entries of `volumeStatus` and their `persistentVolumeClaimInfo`, `nodeName`, `activePods`, `qosClass`, `runtimeUser`, `migrationTransport`, `virtualMachineRevisionName`, `launcherContainerImageVersion`, `memory`, `currentCPUTopology`, `deviceStatus` | yes | – |
//! | `interfaces`, the rest of `volumeStatus`, `guestOSInfo`, `machine`, `fsFreezeStatus`, `migrationMethod` | – | yes |
//! | conditions `Ready`, `PodScheduled`; `Synchronized` with the reasons of [`conditions::CONTROLLER_REASONS`] | yes | – |
//! | conditions `Paused`, `AgentConnected`, `AgentVersionNotSupported`, `LiveMigratable`, `StorageLiveMigratable`, `AccessCredentialsSynchronized`; `Synchronized` with other reasons | – | yes |

pub mod actions;
pub mod addresses;
pub mod agent;
pub mod attestation;
pub mod conditions;
pub mod migratable;
pub mod phase;

use ferrovirt_api::v1::{VirtualMachineInstance, VirtualMachineInstanceSpec};

pub use phase::Phase;

/// Whether something of the firmware or the TPM outlives the guest's stop, in a claim for it.
#[must_use]
pub fn keeps_state(spec: &VirtualMachineInstanceSpec) -> bool {
    let devices = &spec.domain.devices;
    let tpm = devices.tpm.as_ref().filter(|tpm| tpm.enabled != Some(false));
    let bootloader = spec.domain.firmware.as_ref().and_then(|f| f.bootloader.as_ref());
    let efi = bootloader.and_then(|bootloader| bootloader.efi.as_ref());
    tpm.is_some_and(|tpm| tpm.persistent == Some(true)) || efi.is_some_and(|efi| efi.persistent == Some(true))
}

/// What the rules of a VM need to know of its VMI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmiFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// `status.phase`.
    pub phase: Phase,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// It is or has been Running.
    pub was_running: bool,
}

impl VmiFacts {
    /// Reads a VMI.
    #[must_use]
    pub fn of(vmi: &VirtualMachineInstance) -> Self {
        let phase = Phase::of(vmi);
        let timestamps = vmi.status.iter().flat_map(|s| &s.phase_transition_timestamps);
        let running = Phase::Running.as_str();
        Self {
            uid: vmi.metadata.uid.clone().unwrap_or_default(),
            phase,
            deleting: vmi.metadata.deletion_timestamp.is_some(),
            was_running: phase == Phase::Running || timestamps.into_iter().any(|t| t.phase.as_deref() == Some(running)),
        }
    }

    /// Not final and not being deleted.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.phase.is_final() && !self.deleting
    }
}
