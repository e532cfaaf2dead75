//! Shapes of strings.

use crate::machine::PciAddress;

/// RFC 1123 label: at most 63 of `[a-z0-9-]`, alphanumeric at both ends.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 characters.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|label| !label.is_empty() && is_dns_label(label))
}

/// IANA service name, as container ports use it: at most 15 of `[a-z0-9-]` with a letter, no `-` at the ends, none doubled.
pub(super) fn is_port_name(text: &str) -> bool {
    text.len() <= 15 && is_dns_label(text) && text.bytes().any(|b| b.is_ascii_lowercase()) && !text.contains("--")
}

/// A resource of nodes: a DNS subdomain, `/`, and at most 63 of `[A-Za-z0-9_.-]`, alphanumeric at both ends.
pub(super) fn is_resource_name(text: &str) -> bool {
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.split_once('/').is_some_and(|(domain, name)| {
        let bytes = name.as_bytes();
        let inner = |b: &u8| b.is_ascii_alphanumeric() || b"_.-".contains(b);
        is_dns_subdomain(domain)
            && bytes.len() <= 63
            && outer(bytes.first())
            && outer(bytes.last())
            && bytes.iter().all(inner)
    })
}

/// A word that libvirt takes for models, features and machine types.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
}

/// A serial number: 1 to 256 of `[A-Za-z0-9_.+-]`.
pub(super) fn is_serial(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.+-".contains(&b))
}

/// A name of an interface: `[A-Za-z0-9_-]+`.
pub(super) fn is_interface_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Printable, so that it can stand in XML: no control characters.
pub(super) fn is_printable(text: &str) -> bool {
    text.chars()
        .all(|c| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}'))
}

/// An Ethernet address with `:` or `-`, made lower-case with `:`.
pub(super) fn mac_address(text: &str) -> Option<String> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let octets: Vec<&str> = text.split(separator).collect();
    let hex = |o: &&str| o.len() == 2 && o.bytes().all(|b| b.is_ascii_hexdigit());
    (octets.len() == 6 && octets.iter().all(hex)).then(|| octets.join(":").to_ascii_lowercase())
}

/// `dddd:bb:ss.f` in hexadecimal.
pub(crate) fn pci_address(text: &str) -> Option<PciAddress> {
    let hex = |part: &str, width: usize| {
        let fits = part.len() == width && part.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then(|| u16::from_str_radix(part, 16).ok()).flatten()
    };
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let address = PciAddress {
        domain: hex(domain, 4)?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        slot: u8::try_from(hex(slot, 2)?).ok()?,
        function: u8::try_from(hex(function, 1)?).ok()?,
    };
    (address.slot < 32 && address.function < 8).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, label, subdomain, port) in [
            ("a", true, true, true),
            ("a-1", true, true, true),
            ("1", true, true, false),
            ("a.b", false, true, false),
            ("a..b", false, false, false),
            ("-a", false, false, false),
            ("a-", false, false, false),
            ("A", false, false, false),
            ("", false, false, false),
            ("a--b", true, true, false),
            ("a234567890123456", true, true, false),
            ("ä", false, false, false),
        ] {
            assert_eq!(is_dns_label(text), label, "label {text}");
            assert_eq!(is_dns_subdomain(text), subdomain, "subdomain {text}");
            assert_eq!(is_port_name(text), port, "port {text}");
        }
        assert!(!is_dns_label(&"a".repeat(64)));
    }

    #[test]
    fn resource_names() {
        for (text, valid) in [
            ("example.com/device", true),
            ("nvidia.com/TU104GL_Tesla_T4", true),
            ("device", false),
            ("example.com/", false),
            ("/device", false),
            ("Example.com/device", false),
            ("example.com/a/b", false),
            ("example.com/-a", false),
        ] {
            assert_eq!(is_resource_name(text), valid, "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(mac_address("DE-AD-00-00-BE-EF").as_deref(), Some("de:ad:00:00:be:ef"));
        assert_eq!(mac_address("de:ad:00:00:be"), None);
        assert_eq!(mac_address("de:ad:00:00:be:e"), None);
        assert_eq!(mac_address("de:ad-00:00:be:ef"), None);
        let address = PciAddress {
            domain: 0,
            bus: 0x81,
            slot: 0x11,
            function: 1,
        };
        assert_eq!(pci_address("0000:81:11.1"), Some(address));
        for bad in [
            "0000:81:11",
            "0000:81:20.0",
            "0000:81:11.8",
            "000:81:11.1",
            "0000:8g:11.1",
            "",
        ] {
            assert_eq!(pci_address(bad), None, "{bad}");
        }
    }
}
