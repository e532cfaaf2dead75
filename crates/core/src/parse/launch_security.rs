//! `spec.domain.launchSecurity`.

use ferrovirt_api::v1::{LaunchSecurity as WireLaunchSecurity, Probe, SEV, SEVPolicy};

use super::{Cx, on};
use crate::cause::FieldPath;
use crate::config::{GATE_SEV, GATE_TDX};
use crate::machine::{Architecture, Binding, Boot, Filesystem, Interface, LaunchSecurity, Machine};
use crate::vmi::attestation::check_blob;

impl Cx<'_> {
    /// `machine` has its firmware.
    pub(super) fn launch_security(
        &mut self,
        security: Option<&WireLaunchSecurity>,
        machine: &Machine,
        path: &FieldPath,
    ) -> Option<LaunchSecurity> {
        let WireLaunchSecurity { sev, snp, tdx } = security?;
        let (max_guest, path) = (path.child("memory.maxGuest"), path.child("launchSecurity"));
        let kinds = [sev.is_some(), snp.is_some(), tdx.is_some()];
        if kinds.iter().filter(|kind| **kind).count() > 1 {
            self.causes.invalid(&path, "sev, snp and tdx exclude each other");
        }
        if self.architecture == Architecture::S390x {
            if kinds.contains(&true) {
                self.causes
                    .not_supported(&path, "s390x has Secure Execution only: launchSecurity is empty");
            }
            return Some(LaunchSecurity::SecureExecution);
        }
        if self.architecture == Architecture::Arm64 {
            self.causes.not_supported(&path, "arm64 has no launch security");
        }
        if !kinds.contains(&true) {
            self.causes
                .required(&path, "launchSecurity needs a kind: sev, snp or tdx");
        }
        if machine.memory.max_guest.is_some() {
            let why = "a machine with launchSecurity has no memory hotplug";
            self.causes.invalid(&max_guest, why);
        }
        self.protected_boot(machine, sev.is_none(), &path);
        if tdx.is_some() {
            let path = path.child("tdx");
            self.gate(GATE_TDX, &path);
            if machine.smm {
                let why = "a TDX guest has no system management mode: remove features.smm";
                self.causes.invalid(&path, why);
            }
            return Some(LaunchSecurity::Tdx);
        }
        if snp.is_some() {
            self.gate(GATE_SEV, &path.child("snp"));
            return Some(LaunchSecurity::Snp);
        }
        let path = path.child("sev");
        let SEV {
            attestation,
            dh_cert,
            policy,
            session,
        } = sev.as_ref()?;
        self.gate(GATE_SEV, &path);
        let mut data = |name: &str, data: &Option<String>| {
            let data = data.clone().filter(|d| !d.is_empty())?;
            if let Err(why) = check_blob(&data) {
                self.causes.invalid(&path.child(name), why);
            }
            Some(data)
        };
        let (dh_cert, session) = (data("dhCert", dh_cert), data("session", session));
        if attestation.is_some() {
            // The subresource gives both, and only to who has none: such a machine would wait for ever.
            for (name, missing) in [("dhCert", dh_cert.is_none()), ("session", session.is_none())] {
                if missing && (dh_cert.is_some() || session.is_some()) {
                    let field = path.child(name);
                    let why = "attestation needs dhCert and session, or neither: sev/setupsession then sets both";
                    self.causes.required(&field, why);
                }
            }
        }
        Some(LaunchSecurity::Sev {
            attestation: attestation.is_some(),
            dh_cert,
            session,
            encrypted_state: policy
                .as_ref()
                .is_some_and(|SEVPolicy { encrypted_state }| on(*encrypted_state)),
        })
    }

    /// What is measured is UEFI firmware, and none that can change by itself.
    fn protected_boot(&mut self, machine: &Machine, stateless: bool, path: &FieldPath) {
        match machine.boot {
            Boot::Bios { .. } => self
                .causes
                .invalid(path, "launchSecurity needs firmware.bootloader.efi"),
            Boot::Efi { secure_boot: true, .. } => self.causes.invalid(
                path,
                "launchSecurity and secure boot exclude each other: set efi.secureBoot to false",
            ),
            Boot::Efi { persistent: true, .. } if stateless => self.causes.invalid(
                path,
                "firmware that snp and tdx measure keeps no variables: remove efi.persistent",
            ),
            Boot::Efi { secure_boot: false, .. } => {}
        }
    }

    /// Who stands still until its owner has looked at it answers no probe; pinging the agent knows about pauses.
    pub(super) fn attested_probe(&mut self, machine: &Machine, probe: Option<&Probe>, path: &FieldPath) {
        let attested = machine
            .launch_security
            .as_ref()
            .is_some_and(LaunchSecurity::is_attested);
        if attested && probe.is_some_and(|probe| probe.guest_agent_ping.is_none()) {
            let field = path.child("domain.launchSecurity.sev.attestation");
            let why = "a guest that is attested starts paused: its livenessProbe can be a guestAgentPing only";
            self.causes.invalid(&field, why);
        }
    }

    /// Option ROMs are nothing that was measured, and passt reads and writes the guest's memory.
    pub(super) fn protected_interfaces(&mut self, interfaces: &[Interface], path: &FieldPath) {
        let path = path.child("domain.devices.interfaces");
        for (i, nic) in interfaces.iter().enumerate() {
            if nic.boot_order.is_some() {
                self.causes.invalid(
                    &path.index(i).child("bootOrder"),
                    "a machine with launchSecurity does not boot from the network",
                );
            }
            if nic.binding == Binding::Passt {
                self.causes.invalid(
                    &path.index(i).child("passtBinding"),
                    "a machine with launchSecurity has memory that passt cannot read",
                );
            }
        }
    }

    /// Who serves a directory reads and writes the guest's memory.
    pub(super) fn protected_filesystems(&mut self, filesystems: &[Filesystem], path: &FieldPath) {
        if !filesystems.is_empty() {
            let field = path.child("domain.devices.filesystems");
            self.causes
                .invalid(&field, "a machine with launchSecurity shares no directories");
        }
    }
}

#[cfg(test)]
mod tests {
    use ferrovirt_api::v1::VirtualMachineInstance;
    use serde_json::json;

    use super::*;
    use crate::config::ClusterConfig;

    /// Its owner looks at it first; that is no `startStrategy`, which shows a boot menu.
    #[test]
    fn an_attested_guest_starts_still() {
        for (sev, still) in [
            (json!({}), false),
            (json!({"dhCert": "QUFB", "session": "QkJC"}), false),
            (json!({"attestation": {}}), true),
            (json!({"attestation": {}, "dhCert": "QUFB", "session": "QkJC"}), true),
        ] {
            let vmi: VirtualMachineInstance = serde_json::from_value(json!({
                "metadata": {"name": "vm"},
                "spec": {"architecture": "amd64", "domain": {
                    "devices": {}, "memory": {"guest": "64Mi"}, "launchSecurity": {"sev": sev},
                    "firmware": {"bootloader": {"efi": {"secureBoot": false}}},
                }},
            }))
            .unwrap();
            let machine = Machine::parse(&vmi, &ClusterConfig::permissive()).unwrap();
            assert_eq!((machine.starts_still(), machine.start_paused), (still, false), "{sev}");
        }
    }
}
