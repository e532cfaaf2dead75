//! Guests whose memory their node cannot read. QEMU makes their virtio devices fit by itself.

use ferrovirt_core::machine::{LaunchSecurity, Machine};

use crate::xml::{Element, el};

/// The owner of the node may not debug the guest.
const SEV_NO_DEBUG: u32 = 1 << 0;
/// Registers are encrypted, too.
const SEV_ENCRYPTED_STATE: u32 = 1 << 2;
/// Bit 17 must be set; threads of one core may run different guests.
const SNP_POLICY: u32 = 1 << 17 | 1 << 16;
/// A violation of the guest's page tables does not become an exception within the guest, as Linux wants it.
const TDX_POLICY: u32 = 1 << 28;

pub(crate) fn launch_security(machine: &Machine) -> Option<Element> {
    let element = |kind: &str| el("launchSecurity").attr("type", kind);
    let policy = |bits: u32| el("policy").text(format!("{bits:#06x}"));
    Some(match machine.launch_security.as_ref()? {
        // Attestation is no matter of the domain: it is started paused.
        LaunchSecurity::Sev {
            attestation: _,
            encrypted_state,
            dh_cert,
            session,
        } => {
            let state = if *encrypted_state { SEV_ENCRYPTED_STATE } else { 0 };
            element("sev")
                .child(policy(SEV_NO_DEBUG | state))
                .children(dh_cert.as_ref().map(|cert| el("dhCert").text(cert)))
                .children(session.as_ref().map(|session| el("session").text(session)))
        }
        LaunchSecurity::Snp => element("sev-snp").child(policy(SNP_POLICY)),
        LaunchSecurity::Tdx => element("tdx").child(policy(TDX_POLICY)),
        LaunchSecurity::SecureExecution => element("s390-pv"),
    })
}
