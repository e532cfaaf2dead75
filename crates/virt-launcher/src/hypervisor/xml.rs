//! The few facts that only the running domain's XML tells.

use quick_xml::Reader;
use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};
use serde::Serialize;

const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

/// What libvirt made of the domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// `kvm` or `qemu`.
    pub domain_type: String,
    /// Versioned machine type.
    pub machine_type: String,
    /// The guest agent has opened its channel.
    pub agent_connected: bool,
    /// Disk names and the targets they got.
    pub disks: Vec<DiskTarget>,
    /// Taps and the networks they are on.
    pub taps: Vec<(String, String)>,
}

/// A disk of the domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskTarget {
    /// Name of disk and volume.
    pub name: String,
    /// vda, sda …
    pub target: String,
    /// Bytes the guest sees, where we know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Reads a domain's XML; what is missing stays empty.
pub fn describe(xml: &str) -> Description {
    let mut found = Description::default();
    let mut reader = Reader::from_str(xml);
    let mut disk = None::<DiskTarget>;
    let mut tap = None::<(String, String)>;
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag) | Event::Empty(tag)) => match tag.name().as_ref() {
                b"domain" => found.domain_type = attribute(&tag, "type"),
                b"type" => found.machine_type = attribute(&tag, "machine"),
                b"disk" => disk = Some(DiskTarget::default()),
                b"interface" => tap = Some(Default::default()),
                b"target" => match (&mut disk, &mut tap) {
                    (Some(disk), _) => disk.target = attribute(&tag, "dev"),
                    (None, Some((device, _))) => *device = attribute(&tag, "dev"),
                    (None, None) if attribute(&tag, "name") == AGENT_CHANNEL => {
                        found.agent_connected = attribute(&tag, "state") == "connected";
                    }
                    (None, None) => {}
                },
                b"alias" => {
                    let name = attribute(&tag, "name").trim_start_matches("ua-").to_owned();
                    match (&mut disk, &mut tap) {
                        (Some(disk), _) => disk.name = name,
                        (None, Some((_, network))) => *network = name,
                        (None, None) => {}
                    }
                }
                _ => {}
            },
            Ok(Event::End(tag)) if tag.name().as_ref() == b"disk" => found.disks.extend(disk.take()),
            Ok(Event::End(tag)) if tag.name().as_ref() == b"interface" => found.taps.extend(tap.take()),
            Ok(Event::Eof) | Err(_) => return found,
            Ok(_) => {}
        }
    }
}

/// File of a domain's firmware; empty where QEMU has its own.
pub(super) fn loader(xml: &str) -> String {
    let mut reader = Reader::from_str(xml);
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) if tag.name().as_ref() == b"loader" => {
                let text = reader.read_text(tag.name()).ok();
                let text = text.and_then(|text| {
                    text.decode()
                        .ok()
                        .and_then(|text| Some(unescape(&text).ok()?.into_owned()))
                });
                return text.unwrap_or_default();
            }
            Ok(Event::Eof) | Err(_) => return String::new(),
            Ok(_) => {}
        }
    }
}

pub(super) fn attribute(tag: &BytesStart<'_>, name: &str) -> String {
    match tag.try_get_attribute(name) {
        Ok(Some(attribute)) => String::from_utf8_lossy(&attribute.value).into_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_type_machine_agent_and_disks() {
        let xml = "<domain type='kvm' id='1'><os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os><devices>\
            <disk type='file' device='disk'><target dev='vda' bus='virtio'/><alias name='ua-root'/></disk>\
            <interface type='ethernet'><target dev='tap0' managed='no'/><alias name='ua-default'/></interface>\
            <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>\
            <alias name='channel0'/></channel></devices></domain>";
        let expected = Description {
            domain_type: "kvm".into(),
            machine_type: "pc-q35-10.0".into(),
            agent_connected: true,
            disks: vec![DiskTarget {
                name: "root".into(),
                target: "vda".into(),
                size: None,
            }],
            taps: vec![("tap0".into(), "default".into())],
        };
        assert_eq!(describe(xml), expected);
        assert_eq!(describe("<domain type="), Description::default());
    }
}
