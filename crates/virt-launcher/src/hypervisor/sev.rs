//! AMD SEV, as libvirt tells of it.

use std::ffi::CString;
use std::path::PathBuf;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::enumutil::Enum;
use virt::error::ErrorNumber;

use super::{Error, Value, ffi, xml};

/// The node's secure processor, both in base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// Its key.
    pub pdh: String,
    /// Whom it is trusted by.
    pub cert_chain: String,
}

/// A guest as it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// What the firmware measured, in base64.
    pub measurement: String,
    /// Version of the firmware's interface.
    pub api: (u32, u32),
    /// Build of the firmware.
    pub build_id: u32,
    /// Policy bits.
    pub policy: u32,
    /// File of the guest's firmware.
    pub loader: PathBuf,
}

/// A secret of the guest's owner, both in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// By which AMD's firmware reads it.
    pub header: CString,
    /// Encrypted.
    pub secret: CString,
}

pub(super) fn platform(connection: &Connect) -> Result<Platform, Error> {
    let found = ffi::sev_platform(connection).map_err(|error| explain(&error, "this node has no AMD SEV"))?;
    let platform = Platform {
        pdh: text(&found, "pdh"),
        cert_chain: text(&found, "cert-chain"),
    };
    if platform.pdh.is_empty() {
        return Err(Error {
            message: "this node has no AMD SEV that its libvirt can use: it tells no key of the secure processor"
                .into(),
        });
    }
    Ok(platform)
}

pub(super) fn launch(domain: &Domain) -> Result<Launch, Error> {
    let found = ffi::launch_security(domain).map_err(|error| explain(&error, "the guest runs without AMD SEV"))?;
    let launch = read(&found, &domain.xml_desc(0)?);
    if launch.measurement.is_empty() {
        return Err(Error {
            message: "the guest runs without AMD SEV: its libvirt tells no measurement".into(),
        });
    }
    Ok(launch)
}

pub(super) fn inject(domain: &Domain, secret: &Secret) -> Result<(), Error> {
    ffi::set_launch_secret(domain, &secret.header, &secret.secret)
        .map_err(|error| explain(&error, "the guest runs without AMD SEV"))
}

fn read(found: &[(String, Value)], xml: &str) -> Launch {
    Launch {
        measurement: text(found, "sev-measurement"),
        api: (number(found, "sev-api-major"), number(found, "sev-api-minor")),
        build_id: number(found, "sev-build-id"),
        policy: number(found, "sev-policy"),
        loader: xml::loader(xml).into(),
    }
}

/// Says what is missing where libvirt only says that it cannot.
fn explain(error: &virt::error::Error, missing: &str) -> Error {
    let cannot = matches!(
        error.code(),
        Enum::Known(
            ErrorNumber::OperationUnsupported
                | ErrorNumber::ConfigUnsupported
                | ErrorNumber::ArgumentUnsupported
                | ErrorNumber::NoSupport
        )
    );
    let message = error.message();
    Error {
        message: if cannot {
            format!("{missing} that its libvirt can use: {message}")
        } else {
            message.to_owned()
        },
    }
}

fn text(found: &[(String, Value)], name: &str) -> String {
    match found.iter().find(|(key, _)| key == name) {
        Some((_, Value::Text(text))) => text.clone(),
        _ => String::new(),
    }
}

fn number(found: &[(String, Value)], name: &str) -> u32 {
    match found.iter().find(|(key, _)| key == name) {
        Some((_, Value::Number(number))) => u32::try_from(*number).unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirt_s_words_are_understood() {
        let number = |name: &str, number| (name.to_owned(), Value::Number(number));
        let found = [
            ("sev-measurement".to_owned(), Value::Text("QUFB".to_owned())),
            number("sev-api-major", 1),
            number("sev-api-minor", 55),
            number("sev-build-id", 21),
            number("sev-policy", 3),
        ];
        let xml = "<domain type='kvm'><os><loader readonly='yes' type='pflash'>/a &amp; b.fd</loader>\
            <nvram>/vars</nvram></os></domain>";
        let expected = Launch {
            measurement: "QUFB".to_owned(),
            api: (1, 55),
            build_id: 21,
            policy: 3,
            loader: "/a & b.fd".into(),
        };
        assert_eq!(read(&found, xml), expected);
        assert_eq!(read(&[], "<domain type='kvm'/>"), Launch::default());
    }
}
