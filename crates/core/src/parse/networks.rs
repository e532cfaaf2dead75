//! `spec.networks` and `spec.domain.devices.interfaces`.

use std::net::Ipv4Addr;

use ferrovirt_api::v1::{Interface as WireInterface, MultusNetwork, Network, PodNetwork, Port as WirePort};

use super::disks::boot_order;
use super::{Cx, text};
use crate::cause::FieldPath;
use crate::machine::{Binding, Interface, Port};

const MODELS: [&str; 7] = ["e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139", "virtio"];
/// Address of masquerade's bridge.
const RESERVED_MAC: &str = "02:00:00:00:00:00";

impl Cx<'_> {
    pub(super) fn interfaces(
        &mut self,
        interfaces: &[WireInterface],
        networks: &[Network],
        path: &FieldPath,
    ) -> Vec<Interface> {
        self.networks(networks, interfaces, path);
        let path = path.child("domain.devices.interfaces");
        let mut parsed = Vec::new();
        for (i, interface) in interfaces.iter().enumerate() {
            let path = path.index(i);
            let field = path.child("name");
            if interface.name.is_empty() {
                self.causes.required(&field, "an interface needs a name");
            } else if !text::is_interface_name(&interface.name) {
                self.causes.invalid(
                    &field,
                    format!(
                        "\"{}\" has characters other than letters, digits, _ and -",
                        interface.name
                    ),
                );
            } else if interfaces[..i].iter().any(|other| other.name == interface.name) {
                self.causes
                    .duplicate(&field, format!("another interface has the name \"{}\"", interface.name));
            }
            let network = networks.iter().find(|n| n.name == interface.name);
            if network.is_none() {
                self.causes.invalid(
                    &field,
                    format!("there is no network \"{}\" for this interface", interface.name),
                );
            }
            parsed.extend(self.interface(interface, network, &path));
        }
        parsed
    }

    fn networks(&mut self, networks: &[Network], interfaces: &[WireInterface], path: &FieldPath) {
        let path = path.child("networks");
        for (i, network) in networks.iter().enumerate() {
            let path = path.index(i);
            let Network {
                multus,
                name,
                pod,
                resource_claim,
            } = network;
            let field = path.child("name");
            if name.is_empty() {
                self.causes.required(&field, "a network needs a name");
            } else if networks[..i].iter().any(|other| other.name == *name) {
                self.causes
                    .duplicate(&field, format!("another network has the name \"{name}\""));
            } else if !interfaces.iter().any(|interface| interface.name == *name) {
                self.causes
                    .invalid(&field, format!("there is no interface for network \"{name}\""));
            }
            let kinds = [pod.is_some(), multus.is_some(), resource_claim.is_some()];
            match kinds.iter().filter(|kind| **kind).count() {
                0 => self.causes.required(&path, "a network needs a type, such as pod"),
                1 => {}
                _ => self.causes.invalid(&path, "a network has one type"),
            }
            self.causes.none_of(
                &path,
                &[
                    ("multus", multus.is_some()),
                    ("resourceClaim", resource_claim.is_some()),
                ],
            );
            if let Some(MultusNetwork {
                default: _,
                network_name,
            }) = multus
                && network_name.is_empty()
            {
                self.causes.required(
                    &path.child("multus.networkName"),
                    "a multus network needs the name of its definition",
                );
            }
            if let Some(pod) = pod {
                let interface = interfaces.iter().find(|interface| interface.name == *name);
                self.cidr(pod, interface, &path.child("pod"));
            }
            let earlier = &networks[..i];
            if pod.is_some() && earlier.iter().any(|other| other.pod.is_some()) {
                self.causes.duplicate(&path.child("pod"), "there is one pod network");
            }
            let default = |n: &Network| n.multus.as_ref().is_some_and(|m| m.default == Some(true));
            if default(network) && earlier.iter().any(default) {
                self.causes
                    .duplicate(&path.child("multus.default"), "there is one default network");
            }
        }
    }

    fn interface(
        &mut self,
        interface: &WireInterface,
        network: Option<&Network>,
        path: &FieldPath,
    ) -> Option<Interface> {
        let WireInterface {
            acpi_index,
            binding: _,
            boot_order: order,
            bridge: _,
            dhcp_options,
            mac_address,
            macvtap: _,
            masquerade: _,
            model,
            name,
            passt: _,
            passt_binding: _,
            pci_address,
            port_ranges,
            ports,
            slirp: _,
            sriov: _,
            state,
            tag,
        } = interface;
        self.causes
            .none_of(path, &[("portRanges", !port_ranges.is_empty()), ("tag", tag.is_some())]);
        let pod = network.and_then(|n| n.pod.as_ref());
        let binding = self.binding(interface, pod.is_some(), path);
        let model = model.as_deref().filter(|m| !m.is_empty()).unwrap_or("virtio");
        self.causes.one_of(&path.child("model"), model, &MODELS);
        let mac = mac_address.as_deref().filter(|m| !m.is_empty());
        let mac = mac.and_then(|mac| self.mac_address(mac, binding, &path.child("macAddress")));
        let pci_address = pci_address.as_deref().filter(|a| !a.is_empty());
        let pci_address = pci_address.and_then(|a| self.pci_address(a, &path.child("pciAddress")));
        let acpi_index = acpi_index.and_then(|index| match u32::try_from(index) {
            Ok(index) if index > 0 => Some(index),
            _ => {
                self.causes
                    .invalid(&path.child("acpiIndex"), format!("{index} is less than 1"));
                None
            }
        });
        let dhcp = self.dhcp(dhcp_options.as_ref(), &path.child("dhcpOptions"));
        let link_down = self.state(state.as_deref(), &path.child("state"));
        let ports = self.ports(ports, &path.child("ports"));
        let vm_network_cidr = pod
            .and_then(|pod| pod.vm_network_cidr.clone())
            .filter(|cidr| !cidr.is_empty());
        Some(Interface {
            name: name.clone(),
            binding: binding?,
            model: model.to_owned(),
            mac,
            pci_address,
            acpi_index,
            link_down,
            boot_order: boot_order(*order),
            ports,
            vm_network_cidr,
            dhcp,
        })
    }

    fn binding(&mut self, interface: &WireInterface, on_pod_network: bool, path: &FieldPath) -> Option<Binding> {
        let later = [
            ("binding", interface.binding.is_some()),
            ("passtBinding", interface.passt_binding.is_some()),
            ("sriov", interface.sriov.is_some()),
        ];
        let gone = [
            ("macvtap", interface.macvtap.is_some()),
            ("passt", interface.passt.is_some()),
            ("slirp", interface.slirp.is_some()),
        ];
        let built = [interface.bridge.is_some(), interface.masquerade.is_some()];
        let count = later
            .iter()
            .chain(&gone)
            .map(|b| b.1)
            .chain(built)
            .filter(|set| *set)
            .count();
        match count {
            0 => self
                .causes
                .required(path, "an interface needs a binding: masquerade or bridge"),
            1 => {}
            _ => self.causes.invalid(path, "an interface has one binding"),
        }
        self.causes.none_of(path, &later);
        for (name, _) in gone.iter().filter(|(_, set)| *set) {
            self.causes
                .not_supported(&path.child(name), format!("the {name} binding is discontinued"));
        }
        if interface.masquerade.is_some() && !on_pod_network {
            self.causes
                .invalid(&path.child("masquerade"), "masquerade works on the pod network only");
        }
        if interface.bridge.is_some() && on_pod_network && !self.config.permit_bridge_on_pod_network {
            self.causes.not_supported(
                &path.child("bridge"),
                "the cluster's configuration forbids bridge on the pod network",
            );
        }
        match (&interface.masquerade, &interface.bridge) {
            (Some(_), None) => Some(Binding::Masquerade),
            (None, Some(_)) => Some(Binding::Bridge),
            _ => None,
        }
    }

    fn mac_address(&mut self, mac: &str, binding: Option<Binding>, field: &FieldPath) -> Option<String> {
        let Some(mac) = text::mac_address(mac) else {
            self.causes.invalid(
                field,
                format!("\"{mac}\" is not a MAC address such as 02:00:00:00:00:01"),
            );
            return None;
        };
        if binding == Some(Binding::Masquerade) && mac == RESERVED_MAC {
            self.causes
                .invalid(field, format!("{mac} is reserved for masquerade's gateway"));
        }
        let first = u8::from_str_radix(&mac[..2], 16).unwrap_or_default();
        if first & 1 == 1 {
            self.causes.invalid(field, format!("{mac} is a multicast address"));
        }
        Some(mac)
    }

    /// Whether the link is down.
    fn state(&mut self, state: Option<&str>, field: &FieldPath) -> bool {
        match state.unwrap_or_default() {
            "" | "up" => false,
            "down" => true,
            "absent" => {
                self.causes
                    .invalid(field, "absent is for bridge interfaces on secondary networks only");
                false
            }
            other => {
                self.causes.one_of(field, other, &["up", "down", "absent"]);
                false
            }
        }
    }

    fn ports(&mut self, ports: &[WirePort], path: &FieldPath) -> Vec<Port> {
        let mut parsed: Vec<Port> = Vec::new();
        for (i, WirePort { name, port, protocol }) in ports.iter().enumerate() {
            let path = path.index(i);
            let field = path.child("port");
            let protocol = protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP");
            let known = self.causes.one_of(&path.child("protocol"), protocol, &["TCP", "UDP"]);
            let name = name.clone().unwrap_or_default();
            if !name.is_empty() && !text::is_port_name(&name) {
                self.causes.invalid(
                    &path.child("name"),
                    format!("\"{name}\" is not a port name (at most 15 of a-z, 0-9 and -, with a letter)"),
                );
            } else if !name.is_empty() && parsed.iter().any(|other| other.name == name) {
                self.causes
                    .duplicate(&path.child("name"), format!("another port has the name \"{name}\""));
            }
            let udp = protocol == "UDP";
            match u16::try_from(*port) {
                Ok(port) if port > 0 => {
                    if known && parsed.iter().any(|other| (other.port, other.udp) == (port, udp)) {
                        self.causes
                            .duplicate(&field, format!("{protocol} port {port} is listed twice"));
                    }
                    parsed.push(Port { name, port, udp });
                }
                _ => self
                    .causes
                    .invalid(&field, format!("{port} is not between 1 and 65535")),
            }
        }
        parsed
    }

    /// The guest's network behind masquerade.
    fn cidr(&mut self, pod: &PodNetwork, interface: Option<&WireInterface>, path: &FieldPath) {
        let PodNetwork {
            vm_i_pv6_network_cidr,
            vm_network_cidr,
        } = pod;
        let set = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
        self.causes
            .none_of(path, &[("vmIPv6NetworkCIDR", set(vm_i_pv6_network_cidr).is_some())]);
        let Some(cidr) = set(vm_network_cidr) else { return };
        let field = path.child("vmNetworkCIDR");
        if interface.is_some_and(|interface| interface.masquerade.is_none()) {
            self.causes
                .invalid(&field, "vmNetworkCIDR needs the masquerade binding");
        }
        let valid = cidr.split_once('/').is_some_and(|(address, prefix)| {
            address.parse::<Ipv4Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|p| (8..=30).contains(&p))
        });
        if !valid {
            self.causes.invalid(
                &field,
                format!("\"{cidr}\" is not an IPv4 network such as 10.0.2.0/24, with a prefix of 8 to 30"),
            );
        }
    }
}
