//! A guest in AMD SEV's encrypted memory whose owner looks at it before it runs.
//!
//! ```text
//!   Scheduled ── the owner reads the node's certificates, sends its session ──► Running, paused
//!     ── the owner compares the measurement, sends its secret, unpauses ──► Running
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ferrovirt_api::v1::{SEV, SEVSecretOptions, SEVSessionOptions, VirtualMachineInstance};
use serde_json::{Value, json};

use super::actions::{self, VmiAction};
use crate::refusal::Refusal;

/// Largest key, session, header or secret, in bytes: AMD's firmware takes none larger from KVM.
pub const MAX_BLOB: usize = 16 << 10;

/// The SEV settings of a VMI whose owner wants to attest it.
#[must_use]
pub fn requested(vmi: &VirtualMachineInstance) -> Option<&SEV> {
    let security = vmi.spec.domain.launch_security.as_ref()?;
    security.sev.as_ref().filter(|sev| sev.attestation.is_some())
}

/// Whether the guest may not be started yet, because its owner has sent no session.
#[must_use]
pub fn awaits_session(vmi: &VirtualMachineInstance) -> bool {
    requested(vmi).is_some_and(|sev| !is_set(sev.session.as_deref()) || !is_set(sev.dh_cert.as_deref()))
}

/// Whether a session, or a part of one, is there already.
#[must_use]
pub(crate) fn has_session(sev: &SEV) -> bool {
    is_set(sev.session.as_deref()) || is_set(sev.dh_cert.as_deref())
}

fn is_set(text: Option<&str>) -> bool {
    text.is_some_and(|text| !text.is_empty())
}

/// Looks at something for the firmware that came as base64.
///
/// # Errors
/// What is wrong with it.
pub fn check_blob(text: &str) -> Result<(), String> {
    // So much text may hold three bytes too many, which the second look sees; it bounds the work of the first one.
    let large = || format!("is larger than {} KiB", MAX_BLOB >> 10);
    if text.len() > MAX_BLOB.div_ceil(3) * 4 {
        return Err(large());
    }
    match STANDARD.decode(text) {
        Ok(data) if data.len() > MAX_BLOB => Err(large()),
        Ok(_) => Ok(()),
        Err(_) => Err("is not valid base64".to_owned()),
    }
}

fn needed<'a>(name: &str, text: Option<&'a str>) -> Result<&'a str, Refusal> {
    let text = text.unwrap_or_default();
    if text.is_empty() {
        return Err(Refusal::bad_request(format!("{name}: is required, in base64")));
    }
    check_blob(text).map_err(|why| Refusal::bad_request(format!("{name}: {why}")))?;
    Ok(text)
}

/// The owner's key and session, in this order.
///
/// # Errors
/// 400: one is missing, too large or not base64.
pub fn session(options: &SEVSessionOptions) -> Result<(&str, &str), Refusal> {
    let session = needed("session", options.session.as_deref())?;
    Ok((needed("dhCert", options.dh_cert.as_deref())?, session))
}

/// A secret's header and the secret, in this order.
///
/// # Errors
/// 400: one is missing, too large or not base64.
pub fn secret(options: &SEVSecretOptions) -> Result<(&str, &str), Refusal> {
    let header = needed("header", options.header.as_deref())?;
    Ok((header, needed("secret", options.secret.as_deref())?))
}

/// `sev/setupsession`: the JSON patch of the VMI that gives it the owner's key and session, and with them its start.
///
/// # Errors
/// The answer that the client gets.
pub fn set_up(vmi: &VirtualMachineInstance, dh_cert: &str, session: &str) -> Result<Value, Refusal> {
    actions::admit(vmi, None, VmiAction::SevSession)?;
    let path = |field: &str| format!("/spec/domain/launchSecurity/sev/{field}");
    Ok(json!([
        {"op": "test", "path": "/metadata/resourceVersion", "value": vmi.metadata.resource_version},
        {"op": "add", "path": path("dhCert"), "value": dh_cert},
        {"op": "add", "path": path("session"), "value": session},
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmi(phase: &str, sev: Value) -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "resourceVersion": "7"},
            "spec": {"domain": {"devices": {}, "launchSecurity": {"sev": sev}}},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn only_an_attested_guest_waits_for_its_session() {
        for (sev, waits) in [
            (Value::Null, false),
            (json!({}), false),
            (json!({"attestation": {}}), true),
            (json!({"attestation": {}, "session": "", "dhCert": ""}), true),
            (json!({"attestation": {}, "session": "QUFB"}), true),
            (json!({"attestation": {}, "dhCert": "QUFB"}), true),
            (json!({"attestation": {}, "session": "QUFB", "dhCert": "QkJC"}), false),
        ] {
            assert_eq!(awaits_session(&vmi("Scheduled", sev.clone())), waits, "{sev}");
        }
    }

    #[test]
    fn a_session_is_set_up_once() {
        let patch = set_up(&vmi("Scheduled", json!({"attestation": {}})), "QUFB", "QkJC").unwrap();
        let expected = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "add", "path": "/spec/domain/launchSecurity/sev/dhCert", "value": "QUFB"},
            {"op": "add", "path": "/spec/domain/launchSecurity/sev/session", "value": "QkJC"},
        ]);
        assert_eq!(patch, expected);
        for (phase, sev) in [
            ("Scheduled", json!({})),
            (
                "Scheduled",
                json!({"attestation": {}, "session": "QUFB", "dhCert": "QkJC"}),
            ),
            ("Scheduling", json!({"attestation": {}})),
            ("Running", json!({"attestation": {}})),
        ] {
            let refused = set_up(&vmi(phase, sev.clone()), "QUFB", "QkJC").unwrap_err();
            assert_eq!(refused.code, 409, "{phase} {sev}");
        }
    }

    #[test]
    fn what_owners_send_is_bounded() {
        let of = |bytes: usize| STANDARD.encode(vec![b'x'; bytes]);
        let large = "is larger than 16 KiB";
        for (text, wrong) in [
            (of(1), None),
            (of(MAX_BLOB), None),
            (of(MAX_BLOB + 1), Some(large)),
            (of(MAX_BLOB << 8), Some(large)),
            ("?".to_owned(), Some("is not valid base64")),
        ] {
            assert_eq!(check_blob(&text).err().as_deref(), wrong, "{} characters", text.len());
        }
        let options = |session: &str, cert: &str| SEVSessionOptions {
            session: Some(session.to_owned()),
            dh_cert: Some(cert.to_owned()),
        };
        assert_eq!(session(&options("QUFB", "QkJC")), Ok(("QkJC", "QUFB")));
        for wrong in [
            SEVSessionOptions::default(),
            options("", "QkJC"),
            options("QUFB", ""),
            options("QUFB", "?"),
            options(&of(MAX_BLOB + 1), "QkJC"),
        ] {
            assert_eq!(session(&wrong).unwrap_err().code, 400, "{wrong:?}");
        }
        let given = SEVSecretOptions {
            header: Some("QUFB".to_owned()),
            secret: Some("QkJC".to_owned()),
        };
        assert_eq!(secret(&given), Ok(("QUFB", "QkJC")));
        let refused = secret(&SEVSecretOptions { secret: None, ..given }).unwrap_err();
        assert_eq!(refused.message, "secret: is required, in base64");
    }
}
