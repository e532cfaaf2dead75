//! `spec.domain.launchSecurity`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ferrovirt_api::v1::{LaunchSecurity as WireLaunchSecurity, SEV, SEVPolicy};

use super::{Cx, on};
use crate::cause::FieldPath;
use crate::config::{GATE_SEV, GATE_TDX};
use crate::machine::{Architecture, Boot, Filesystem, Interface, LaunchSecurity, Machine};

impl Cx<'_> {
    /// `machine` has its firmware.
    pub(super) fn launch_security(
        &mut self,
        security: Option<&WireLaunchSecurity>,
        machine: &Machine,
        path: &FieldPath,
    ) -> Option<LaunchSecurity> {
        let WireLaunchSecurity { sev, snp, tdx } = security?;
        let path = path.child("launchSecurity");
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
            self.causes.required(&path, "launchSecurity needs a kind: sev or snp");
        }
        self.protected_boot(machine, &path);
        if tdx.is_some() {
            let path = path.child("tdx");
            self.gate(GATE_TDX, &path);
            self.causes.not_yet(&path);
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
        self.causes.none_of(&path, &[("attestation", attestation.is_some())]);
        let mut data = |name: &str, data: &Option<String>| {
            let data = data.clone().filter(|d| !d.is_empty())?;
            if STANDARD.decode(&data).is_err() {
                self.causes.invalid(&path.child(name), "is not valid base64");
            }
            Some(data)
        };
        Some(LaunchSecurity::Sev {
            dh_cert: data("dhCert", dh_cert),
            session: data("session", session),
            encrypted_state: policy
                .as_ref()
                .is_some_and(|SEVPolicy { encrypted_state }| on(*encrypted_state)),
        })
    }

    /// AMD's secure processor measures UEFI firmware, and none that can change by itself.
    fn protected_boot(&mut self, machine: &Machine, path: &FieldPath) {
        match machine.boot {
            Boot::Bios { .. } => self
                .causes
                .invalid(path, "launchSecurity needs firmware.bootloader.efi"),
            Boot::Efi { secure_boot: true, .. } => self.causes.invalid(
                path,
                "launchSecurity and secure boot exclude each other: set efi.secureBoot to false",
            ),
            Boot::Efi { secure_boot: false, .. } => {}
        }
    }

    /// Option ROMs are nothing that was measured.
    pub(super) fn protected_interfaces(&mut self, interfaces: &[Interface], path: &FieldPath) {
        for (i, _) in interfaces
            .iter()
            .enumerate()
            .filter(|(_, nic)| nic.boot_order.is_some())
        {
            let field = path.child("domain.devices.interfaces").index(i).child("bootOrder");
            self.causes
                .invalid(&field, "a machine with launchSecurity does not boot from the network");
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
