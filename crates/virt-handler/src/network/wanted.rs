//! What a VMI asks of the network.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::config::BindingPlugin;
use ferrovirt_core::machine::{self, Attachment, Interface, Machine};
use ferrovirt_core::{Cause, ClusterConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Binding, Dns};

/// A MAC address; shown as `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered address that only depends on its arguments.
    #[must_use]
    pub fn derive(seed: &str, purpose: &str) -> Self {
        let digest = Sha256::digest(format!("{seed}/{purpose}"));
        Self([2, digest[0], digest[1], digest[2], digest[3], digest[4]])
    }

    /// As [`Mac::derive`], in the range that people know as virtual machines'.
    fn derive_guest(seed: &str) -> Self {
        let digest = Sha256::digest(seed);
        Self([0x52, 0x54, 0x00, digest[0], digest[1], digest[2]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        if parts.next().is_some() {
            Err(())
        } else {
            Ok(Self(bytes))
        }
    }
}

/// A forwarded port, or several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Number of the first.
    pub port: u16,
    /// Number of the last.
    pub last: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// One NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedNic {
    /// Name of interface and network.
    pub name: String,
    /// The pod's interface behind it; `None`: the one that all pods have.
    pub pod_interface: Option<String>,
    /// Place among the guest's NICs.
    pub place: u8,
    /// Binding.
    pub binding: Binding,
    /// The VMI's choice, or one that stays the same each time a VMI of this name starts.
    pub mac: Mac,
    /// The VMI's choice.
    pub chosen_mac: Option<Mac>,
    /// Ports that masquerade forwards; empty: all.
    pub ports: Vec<Port>,
    /// `vmNetworkCIDR`.
    pub cidr: Option<String>,
    /// `vmIPv6NetworkCIDR`.
    pub cidr_v6: Option<String>,
    /// QEMU attaches to the tap more than once.
    pub many_queues: bool,
    /// What other addresses are derived from.
    pub seed: String,
}

/// One NIC on a tap device that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginTap {
    /// Name of interface and network.
    pub name: String,
    /// The pod's interface behind it; `None`: the one that all pods have.
    pub pod_interface: Option<String>,
    /// As in [`WantedNic`].
    pub mac: Mac,
    /// The VMI's choice.
    pub chosen_mac: Option<Mac>,
}

/// One NIC whose network passt plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasstNic {
    /// Name of interface and network.
    pub name: String,
    /// As in [`WantedNic`].
    pub mac: Mac,
}

/// A guest's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// NICs.
    pub nics: Vec<WantedNic>,
    /// NICs whose taps the CNI plugins of network bindings make.
    pub plugin_taps: Vec<PluginTap>,
    /// The NIC of passt, which is on the pod network.
    pub passt: Option<PasstNic>,
    /// Host name that DHCP announces.
    pub hostname: String,
    /// User and group that may attach to the taps.
    pub owner: u32,
    /// Resolver settings for the guest.
    pub dns: Dns,
}

impl Wanted {
    /// Reads a VMI. `attachments`: what the plugins of its pod leave to us, by their names.
    ///
    /// # Errors
    /// What admission should have refused.
    pub fn of(
        vmi: &VirtualMachineInstance,
        attachments: &BTreeMap<String, Attachment>,
        owner: u32,
        dns: Dns,
    ) -> Result<Self, Vec<Cause>> {
        let machine = Machine::parse(vmi, &config(attachments))?;
        let namespace = vmi.metadata.namespace.as_deref().unwrap_or_default();
        let name = vmi.metadata.name.as_deref().unwrap_or_default();
        let seed = |interface: &Interface| format!("{namespace}/{name}/{}", interface.name);
        let chosen = |interface: &Interface| interface.mac.as_ref().and_then(|mac| mac.parse().ok());
        let taps = machine
            .interfaces
            .iter()
            .filter_map(|interface| Some((interface, own_tap(interface)?)));
        let nics = taps.zip(0..=u8::MAX).map(|((interface, binding), place)| {
            let (seed, chosen_mac) = (seed(interface), chosen(interface));
            WantedNic {
                mac: chosen_mac.unwrap_or_else(|| Mac::derive_guest(&seed)),
                chosen_mac,
                name: interface.name.clone(),
                pod_interface: interface.pod_interface(),
                place,
                binding,
                ports: interface
                    .ports
                    .iter()
                    .map(|port| Port {
                        port: port.port,
                        last: port.port,
                        udp: port.udp,
                    })
                    .chain(interface.port_ranges.iter().map(|range| Port {
                        port: range.start,
                        last: range.end,
                        udp: range.udp,
                    }))
                    .collect(),
                cidr: interface.vm_network_cidr.clone(),
                cidr_v6: interface.vm_ipv6_network_cidr.clone(),
                many_queues: machine.network_queues(interface) > 1,
                seed,
            }
        });
        let of_plugin = |interface: &&Interface| {
            let plugin = interface.plugin();
            plugin.is_some_and(|plugin| plugin.attachment == Attachment::Tap)
        };
        let plugin_taps = machine.interfaces.iter().filter(of_plugin).map(|interface| PluginTap {
            name: interface.name.clone(),
            pod_interface: interface.pod_interface(),
            mac: chosen(interface).unwrap_or_else(|| Mac::derive_guest(&seed(interface))),
            chosen_mac: chosen(interface),
        });
        let plugin_taps = plugin_taps.collect();
        let mut passt = machine.interfaces.iter();
        let passt = passt.find(|interface| interface.binding == machine::Binding::Passt);
        let passt = passt.map(|interface| PasstNic {
            name: interface.name.clone(),
            mac: chosen(interface).unwrap_or_else(|| Mac::derive_guest(&seed(interface))),
        });
        Ok(Self {
            nics: nics.collect(),
            plugin_taps,
            passt,
            hostname: machine.hostname,
            owner,
            dns,
        })
    }

    /// DHCPv4 can only carry these.
    pub(crate) fn ipv4_servers(&self) -> Vec<String> {
        self.dns
            .servers
            .iter()
            .filter(|server| server.is_ipv4())
            .map(ToString::to_string)
            .collect()
    }
}

/// Nothing is forbidden, but plugins are what the pod was made with.
fn config(attachments: &BTreeMap<String, Attachment>) -> ClusterConfig {
    let plugin = |(name, attachment): (&String, &Attachment)| {
        let plugin = BindingPlugin {
            attachment: *attachment,
            ..BindingPlugin::default()
        };
        (name.clone(), Ok(plugin))
    };
    ClusterConfig {
        binding_plugins: attachments.iter().map(plugin).collect(),
        any_binding_plugin: false,
        ..ClusterConfig::permissive()
    }
}

/// What is behind the tap of a NIC whose tap is ours. Virtual functions and passt have none.
fn own_tap(interface: &Interface) -> Option<Binding> {
    match &interface.binding {
        machine::Binding::Tap(binding) => Some(*binding),
        machine::Binding::Plugin(plugin) if plugin.attachment == Attachment::ManagedTap => Some(Binding::Bridge),
        machine::Binding::Plugin(_) | machine::Binding::Sriov | machine::Binding::Passt => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses() {
        assert_eq!(
            "02:00:5E:10:aa:0f".parse::<Mac>().unwrap().to_string(),
            "02:00:5e:10:aa:0f"
        );
        for bad in [
            "",
            "02:00:5e:10:aa",
            "02:00:5e:10:aa:0f:11",
            "2:0:5e:10:aa:0f",
            "zz:00:5e:10:aa:0f",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert_eq!(Mac::derive_guest("a/b/c"), Mac::derive_guest("a/b/c"));
        assert_ne!(Mac::derive("a/b/c", "pod"), Mac::derive("a/b/c", "bridge"));
    }

    /// Shows `spec.networks[].pod.vmNetworkCIDR`, `spec.domain.devices.interfaces[].portRanges[].start`,
    /// `spec.domain.devices.interfaces[].portRanges[].end`, `spec.domain.devices.interfaces[].portRanges[].protocol`.
    #[test]
    fn a_vmi_is_read() {
        let vmi: VirtualMachineInstance = serde_json::from_value(serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "web.x", "namespace": "ns"},
            "spec": {
                "networks": [{"name": "n", "pod": {"vmNetworkCIDR": "10.9.0.0/24"}}],
                "domain": {"memory": {"guest": "64Mi"}, "devices": {"interfaces": [
                    {"name": "n", "masquerade": {}, "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}],
                     "portRanges": [{"start": 6000, "end": 6009, "protocol": "UDP"}]},
                ]}},
            },
        }))
        .unwrap();
        let wanted = Wanted::of(&vmi, &BTreeMap::new(), 107, Dns::default()).unwrap();
        assert_eq!(wanted.hostname, "web");
        assert_eq!(wanted.nics.len(), 1);
        let nic = &wanted.nics[0];
        assert_eq!(
            (nic.binding, nic.cidr.as_deref()),
            (Binding::Masquerade, Some("10.9.0.0/24"))
        );
        let port = |port, last, udp| Port { port, last, udp };
        let ports = [port(80, 80, false), port(53, 53, true), port(6000, 6009, true)];
        assert_eq!(nic.ports, ports);
        assert!(nic.mac.to_string().starts_with("52:54:00:"));
    }

    /// Shows `spec.domain.devices.interfaces[].passtBinding`.
    #[test]
    fn passt_has_no_tap() {
        let vmi: VirtualMachineInstance = serde_json::from_value(serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x", "namespace": "ns"},
            "spec": {
                "networks": [{"name": "a", "pod": {}}],
                "domain": {"memory": {"guest": "64Mi"}, "devices": {"interfaces": [
                    {"name": "a", "passtBinding": {}, "macAddress": "02:00:00:00:00:07"},
                ]}},
            },
        }))
        .unwrap();
        let wanted = Wanted::of(&vmi, &BTreeMap::new(), 107, Dns::default()).unwrap();
        assert!(wanted.nics.is_empty() && wanted.plugin_taps.is_empty());
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        let name = "a".to_owned();
        assert_eq!(wanted.passt, Some(PasstNic { name, mac }));
    }

    /// Shows `spec.domain.devices.interfaces[].binding`.
    #[test]
    fn plugins_have_what_the_pod_was_made_with() {
        let vmi: VirtualMachineInstance = serde_json::from_value(serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "x", "namespace": "ns"},
            "spec": {
                "networks": [
                    {"name": "a", "pod": {}}, {"name": "b", "multus": {"networkName": "b"}},
                    {"name": "c", "multus": {"networkName": "c"}},
                ],
                "domain": {"memory": {"guest": "64Mi"}, "devices": {"interfaces": [
                    {"name": "a", "binding": {"name": "managed"}},
                    {"name": "b", "binding": {"name": "tap"}, "macAddress": "02:00:00:00:00:07"},
                    {"name": "c", "binding": {"name": "sidecar"}},
                ]}},
            },
        }))
        .unwrap();
        let mut attachments = BTreeMap::from([
            ("managed".to_owned(), Attachment::ManagedTap),
            ("tap".to_owned(), Attachment::Tap),
            ("sidecar".to_owned(), Attachment::Sidecar),
        ]);
        let wanted = Wanted::of(&vmi, &attachments, 107, Dns::default()).unwrap();
        let [nic] = wanted.nics.as_slice() else {
            panic!("{:?}", wanted.nics)
        };
        assert_eq!((nic.name.as_str(), nic.binding), ("a", Binding::Bridge));
        let [tap] = wanted.plugin_taps.as_slice() else {
            panic!("{:?}", wanted.plugin_taps)
        };
        assert_eq!(tap.name, "b");
        assert_eq!(tap.mac.to_string(), "02:00:00:00:00:07");
        assert!(tap.pod_interface.as_ref().is_some_and(|name| name.starts_with("pod")));
        attachments.remove("tap");
        assert!(Wanted::of(&vmi, &attachments, 107, Dns::default()).is_err());
    }
}
