//! What a launcher reports, cut to what an honest one could mean: launchers are not trusted, and all of this ends in a
//! VMI's status. Pure.
//!
//! gRPC ends a report of more than a megabyte. Here the rest is bounded: how many things there are, how long their
//! words are, and that addresses are addresses. A status with all of it stays well below 64 KiB.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use ferrovirt_api::v1::{VirtualMachineInstanceGuestOSInfo, VirtualMachineInstanceNetworkInterface};
use ferrovirt_core::vmi::{addresses, agent};
use ferrovirt_protocol::launcher::GuestState;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Longest text for people.
pub(crate) const MAX_MESSAGE: usize = 1024;
/// Longest word: a reason, a name, a version.
const MAX_WORD: usize = 128;
/// Longest MAC address: InfiniBand's.
const MAX_MAC: usize = 59;
/// Interfaces that are believed, and addresses of each.
const MAX_INTERFACES: usize = 32;
const MAX_ADDRESSES: usize = 8;
/// Disks that are believed.
const MAX_VOLUMES: usize = 256;
/// Commands of an agent that are looked at.
const MAX_COMMANDS: usize = 512;

/// What the guest agent's report holds for a status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GuestInfo {
    pub(crate) os: Option<VirtualMachineInstanceGuestOSInfo>,
    pub(crate) fs_freeze_status: Option<String>,
    /// What the agent can do, of what it is decided on; empty while that is not known.
    #[serde(deserialize_with = "first::<_, _, MAX_COMMANDS>")]
    pub(crate) supported_commands: Vec<Command>,
    #[serde(deserialize_with = "first::<_, _, MAX_INTERFACES>")]
    pub(crate) interfaces: Vec<Interface>,
}

/// A command of the guest agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Command {
    pub(crate) name: String,
    pub(crate) enabled: bool,
}

/// A network interface, as the guest agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Interface {
    pub(crate) interface_name: Option<String>,
    pub(crate) mac: Option<String>,
    #[serde(deserialize_with = "first::<_, _, MAX_ADDRESSES>")]
    pub(crate) ip_addresses: Vec<String>,
}

/// A disk of the domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<i64>,
}

impl GuestInfo {
    /// Of a state that was [`bounded`].
    pub(crate) fn of(guest: &GuestState) -> Self {
        serde_json::from_slice(&guest.guest_info).unwrap_or_default()
    }
}

impl Interface {
    /// As one of the guest's own, which belongs to no network of the VMI.
    pub(crate) fn to_status(&self) -> VirtualMachineInstanceNetworkInterface {
        VirtualMachineInstanceNetworkInterface {
            interface_name: self.interface_name.clone(),
            mac: self.mac.clone(),
            ip_address: addresses::first(&self.ip_addresses).cloned(),
            ip_addresses: self.ip_addresses.clone(),
            info_source: Some("guest-agent".to_owned()),
            ..VirtualMachineInstanceNetworkInterface::default()
        }
    }
}

/// Of a state that was [`bounded`].
pub(crate) fn volumes(guest: &GuestState) -> Vec<Volume> {
    #[derive(Deserialize)]
    struct Volumes(#[serde(deserialize_with = "first::<_, _, MAX_VOLUMES>")] Vec<Volume>);
    serde_json::from_slice::<Volumes>(&guest.volumes).map_or_else(|_| Vec::new(), |volumes| volumes.0)
}

/// The state as it is believed. Bounding a bounded state changes nothing.
pub(crate) fn bounded(mut state: GuestState) -> GuestState {
    let mut info = GuestInfo::of(&state);
    state.reason = text(state.reason, MAX_WORD);
    state.message = text(state.message, MAX_MESSAGE);
    if let Some(credentials) = &mut state.access_credentials {
        credentials.message = text(std::mem::take(&mut credentials.message), MAX_MESSAGE);
    }
    state.domain_type = text(state.domain_type, MAX_WORD);
    state.machine_type = text(state.machine_type, MAX_WORD);
    state.volumes = json(&volumes(&state).into_iter().map(volume).collect::<Vec<_>>());
    state.guest_info = if state.guest_info.is_empty() {
        Vec::new()
    } else {
        info.os = info.os.map(os);
        info.fs_freeze_status = info.fs_freeze_status.map(word);
        info.interfaces = info.interfaces.into_iter().map(interface).collect();
        info.supported_commands
            .retain(|command| command.enabled && agent::matters(&command.name));
        info.supported_commands.sort_by(|a, b| a.name.cmp(&b.name));
        info.supported_commands.dedup();
        json(&info)
    };
    state
}

/// Text of somebody who is not trusted: no longer than `limit` bytes, and on one line.
pub(crate) fn text(mut text: String, limit: usize) -> String {
    text.truncate(text.floor_char_boundary(limit));
    if text.contains(char::is_control) {
        text = text.replace(char::is_control, " ");
        text.truncate(text.floor_char_boundary(limit));
    }
    text
}

fn word(word: String) -> String {
    text(word, MAX_WORD)
}

fn volume(volume: Volume) -> Volume {
    Volume {
        name: word(volume.name),
        target: word(volume.target),
        size: volume.size,
    }
}

fn os(os: VirtualMachineInstanceGuestOSInfo) -> VirtualMachineInstanceGuestOSInfo {
    VirtualMachineInstanceGuestOSInfo {
        id: os.id.map(word),
        name: os.name.map(word),
        pretty_name: os.pretty_name.map(word),
        version: os.version.map(word),
        version_id: os.version_id.map(word),
        kernel_release: os.kernel_release.map(word),
        kernel_version: os.kernel_version.map(word),
        machine: os.machine.map(word),
    }
}

fn interface(interface: Interface) -> Interface {
    let is_mac = |mac: &String| {
        mac.len() <= MAX_MAC
            && mac
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'-'))
    };
    let mut ip_addresses = interface.ip_addresses;
    ip_addresses.retain(|address| address.parse::<IpAddr>().is_ok());
    addresses::sort(&mut ip_addresses);
    Interface {
        interface_name: interface.interface_name.map(word),
        mac: interface.mac.filter(is_mac),
        ip_addresses,
    }
}

/// What was read from JSON a moment ago always becomes JSON again.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Reads the first `MAX` elements of a list, and forgets the others while reading: a megabyte of `{}` is no gigabyte of
/// interfaces. `null` is an empty list.
fn first<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct First<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for First<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut kept = Vec::new();
            while kept.len() < MAX {
                match list.next_element()? {
                    Some(element) => kept.push(element),
                    None => return Ok(kept),
                }
            }
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }
    deserializer.deserialize_any(First::<T, MAX>(PhantomData))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn state(info: &Value, volumes: &Value) -> GuestState {
        GuestState {
            guest_info: info.to_string().into_bytes(),
            volumes: volumes.to_string().into_bytes(),
            ..GuestState::default()
        }
    }

    #[test]
    fn an_honest_report_is_kept() {
        let info = json!({
            "os": {"id": "debian", "prettyName": "Debian \"12\""}, "fsFreezeStatus": "frozen",
            "hostname": "not of the status",
            "interfaces": [{"interfaceName": "eth0", "mac": "52:54:00:aa:bb:cc", "ipAddress": "10.0.2.2",
                "ipAddresses": ["10.0.2.2", "fe80::1"]}, {"interfaceName": "bridge"}],
        });
        let volumes_json = json!([{"name": "root", "target": "vda", "size": 5}, {"name": "x"}]);
        let state = bounded(GuestState {
            generation: 3,
            reason: "Booted".into(),
            message: "all is well".into(),
            agent_connected: true,
            domain_type: "kvm".into(),
            machine_type: "pc-q35-10.0".into(),
            ..state(&info, &volumes_json)
        });
        assert_eq!((state.generation, state.reason.as_str()), (3, "Booted"));
        assert_eq!(
            (state.message.as_str(), state.domain_type.as_str()),
            ("all is well", "kvm")
        );
        assert!(state.agent_connected && state.machine_type == "pc-q35-10.0");
        let info = GuestInfo::of(&state);
        assert_eq!(info.os.unwrap().pretty_name.as_deref(), Some("Debian \"12\""));
        assert_eq!(info.fs_freeze_status.as_deref(), Some("frozen"));
        assert_eq!(info.interfaces.len(), 2);
        assert_eq!(info.interfaces[0].ip_addresses, ["10.0.2.2", "fe80::1"]);
        let names: Vec<_> = volumes(&state)
            .into_iter()
            .map(|volume| (volume.name, volume.size))
            .collect();
        assert_eq!(names, [("root".to_owned(), Some(5)), ("x".to_owned(), None)]);
        assert_eq!(
            bounded(GuestState::default()),
            GuestState {
                volumes: b"[]".to_vec(),
                ..GuestState::default()
            }
        );
    }

    #[test]
    fn what_is_too_much_is_cut_and_what_is_wrong_is_left_out() {
        let long = "ü".repeat(100_000);
        let address = |n: usize| format!("10.0.{}.{}", n / 256, n % 256);
        let many: Vec<Value> = (0..1000)
            .map(|n| {
                let addresses: Vec<String> = (0..1000).map(address).collect();
                json!({"interfaceName": format!("{n}{long}"), "mac": "00:11", "ipAddresses": addresses})
            })
            .collect();
        let disks: Vec<Value> = (0..1000)
            .map(|n| json!({"name": n.to_string(), "target": long}))
            .collect();
        let flood = bounded(GuestState {
            reason: long.clone(),
            message: long.clone(),
            ..state(
                &json!({"os": {"name": long, "kernelVersion": long}, "interfaces": many}),
                &json!(disks),
            )
        });
        let info = GuestInfo::of(&flood);
        assert_eq!(info.interfaces.len(), MAX_INTERFACES);
        assert!(
            info.interfaces
                .iter()
                .all(|one| one.ip_addresses.len() == MAX_ADDRESSES)
        );
        assert_eq!(info.os.unwrap().name.unwrap().len(), MAX_WORD);
        assert_eq!(volumes(&flood).len(), MAX_VOLUMES);
        assert_eq!((flood.reason.len(), flood.message.len()), (MAX_WORD, MAX_MESSAGE));

        for (wrong, mac, addresses) in [
            (
                json!({"mac": "52:54:00:aa:bb:cc", "ipAddresses": ["10.0.0.1"]}),
                true,
                1,
            ),
            (
                json!({"mac": "a".repeat(60), "ipAddresses": ["javascript:", "10.0.0.1/8", "::1"]}),
                false,
                1,
            ),
            (json!({"mac": "no hex", "ipAddresses": null}), false, 0),
        ] {
            let state = bounded(state(&json!({"interfaces": [wrong]}), &json!([])));
            let interface = GuestInfo::of(&state).interfaces.remove(0);
            assert_eq!(
                (interface.mac.is_some(), interface.ip_addresses.len()),
                (mac, addresses),
                "{wrong}"
            );
        }
        for nonsense in [&b"\xff\xfe"[..], b"[", b"{\"interfaces\": 3}", b"null", b"{\"os\": 3}"] {
            let state = bounded(GuestState {
                guest_info: nonsense.to_vec(),
                volumes: nonsense.to_vec(),
                ..GuestState::default()
            });
            assert_eq!(
                (GuestInfo::of(&state), volumes(&state)),
                (GuestInfo::default(), Vec::new())
            );
        }
        assert_eq!(text("two\nlines\u{7}".into(), 100), "two lines ");
    }

    #[test]
    fn depth_without_end_is_not_followed() {
        let deep = format!("{{\"other\": {}", "[".repeat(100_000));
        let state = GuestState {
            guest_info: deep.into_bytes(),
            ..GuestState::default()
        };
        assert_eq!(GuestInfo::of(&bounded(state)), GuestInfo::default());
    }

    proptest! {
        #[test]
        fn any_report_fits(
            strings in proptest::collection::vec(".{0,300}", 1..40),
            reason in "\\PC{0,2000}",
            garbage in proptest::collection::vec(any::<u8>(), 0..500),
        ) {
            let interfaces: Vec<Value> = strings
                .iter()
                .map(|text| json!({"interfaceName": text, "mac": text, "ipAddresses": strings}))
                .collect();
            let report = GuestState {
                reason: reason.clone(),
                message: reason,
                ..state(&json!({"os": {"name": strings[0]}, "interfaces": interfaces}), &json!([]))
            };
            let once = bounded(report);
            prop_assert!(once.guest_info.len() < 32 << 10);
            prop_assert_eq!(bounded(once.clone()), once);
            let garbage = bounded(GuestState { guest_info: garbage, ..GuestState::default() });
            prop_assert!(garbage.guest_info.len() < 1024);
        }
    }
}
