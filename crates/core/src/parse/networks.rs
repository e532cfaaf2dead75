//! `spec.networks` and `spec.domain.devices.interfaces`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ferrovirt_api::v1::{
    Interface as WireInterface, MultusNetwork, Network, PodNetwork, Port as WirePort, PortRange as WirePortRange,
    VirtualMachineInstanceResourceClaim,
};

use super::disks::boot_order;
use super::{Cx, is_definition, text};
use crate::cause::FieldPath;
use crate::config::{GATE_PASST, GATE_PORT_RANGES};
use crate::machine::{Binding, Interface, NicNetwork, Port, PortRange, TapBinding};

const MODELS: [&str; 7] = ["e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139", "virtio"];
/// Address of masquerade's bridge.
const RESERVED_MAC: &str = "02:00:00:00:00:00";
const MAX_PORT_RANGES: usize = 10;

fn place(network: &Network) -> NicNetwork {
    let Network {
        multus,
        name: _,
        pod: _,
        resource_claim,
    } = network;
    match (multus, resource_claim) {
        (Some(multus), _) => NicNetwork::Multus {
            definition: multus.network_name.clone(),
            default: multus.default == Some(true),
        },
        (None, Some(request)) => NicNetwork::Claim {
            claim: request.claim_name.clone().unwrap_or_default(),
            request: request.request_name.clone().unwrap_or_default(),
        },
        (None, None) => NicNetwork::Pod,
    }
}

impl Cx<'_> {
    pub(super) fn interfaces(
        &mut self,
        interfaces: &[WireInterface],
        networks: &[Network],
        claims: &[VirtualMachineInstanceResourceClaim],
        path: &FieldPath,
    ) -> Vec<Interface> {
        self.networks(networks, interfaces, claims, path);
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

    fn networks(
        &mut self,
        networks: &[Network],
        interfaces: &[WireInterface],
        claims: &[VirtualMachineInstanceResourceClaim],
        path: &FieldPath,
    ) {
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
            if let Some(request) = resource_claim {
                self.claimed_network(request, claims, &path.child("resourceClaim"));
            }
            if multus.is_some() && !self.config.secondary_networks {
                self.causes.not_supported(
                    &path.child("multus"),
                    "one machine has the pod network only; a cluster may have others",
                );
            }
            if let Some(multus) = multus {
                self.definition(multus, &path.child("multus.networkName"));
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
            if default(network) && networks.iter().any(|other| other.pod.is_some()) {
                self.causes.invalid(
                    &path.child("multus.default"),
                    "a default network takes the place of the pod network, which is listed, too",
                );
            }
        }
    }

    /// The name of a NetworkAttachmentDefinition.
    fn definition(&mut self, multus: &MultusNetwork, field: &FieldPath) {
        let MultusNetwork {
            default: _,
            network_name,
        } = multus;
        if network_name.is_empty() {
            self.causes
                .required(field, "a multus network needs the name of its definition");
        } else if !is_definition(network_name) {
            self.causes.invalid(
                field,
                format!("\"{network_name}\" is not the name of a definition, with or without its namespace"),
            );
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
            state: _,
            tag,
        } = interface;
        self.tag(tag.as_deref(), &path.child("tag"));
        let pod = network.and_then(|n| n.pod.as_ref());
        let binding = self.binding(interface, network, path);
        let model = model.as_deref().filter(|m| !m.is_empty()).unwrap_or("virtio");
        self.causes.one_of(&path.child("model"), model, &MODELS);
        let mac = mac_address.as_deref().filter(|m| !m.is_empty());
        let mac = mac.and_then(|mac| self.mac_address(mac, binding.as_ref(), &path.child("macAddress")));
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
        let secondary = network.is_some_and(|n| n.multus.as_ref().is_some_and(|m| m.default != Some(true)));
        let pluggable = secondary && interface.bridge.is_some();
        let (link_down, absent) = self.state(interface, pluggable, &path.child("state"));
        let ports = self.ports(ports, &path.child("ports"));
        let port_ranges = self.port_ranges(
            port_ranges,
            &ports,
            interface.masquerade.is_some(),
            &path.child("portRanges"),
        );
        let set = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
        if absent {
            return None;
        }
        Some(Interface {
            name: name.clone(),
            network: network.map_or(NicNetwork::Pod, place),
            binding: binding?,
            model: model.to_owned(),
            mac,
            pci_address,
            acpi_index,
            link_down,
            boot_order: boot_order(*order),
            ports,
            port_ranges,
            vm_network_cidr: pod.and_then(|pod| set(&pod.vm_network_cidr)),
            vm_ipv6_network_cidr: pod.and_then(|pod| set(&pod.vm_i_pv6_network_cidr)),
            tag: set(tag),
            dhcp,
        })
    }

    fn binding(&mut self, interface: &WireInterface, network: Option<&Network>, path: &FieldPath) -> Option<Binding> {
        let on_pod_network = network.is_some_and(|network| network.pod.is_some());
        let gone = [
            ("macvtap", interface.macvtap.is_some()),
            ("passt", interface.passt.is_some()),
            ("slirp", interface.slirp.is_some()),
        ];
        let built = [
            interface.bridge.is_some(),
            interface.masquerade.is_some(),
            interface.sriov.is_some(),
            interface.binding.is_some(),
            interface.passt_binding.is_some(),
        ];
        let count = gone.iter().map(|b| b.1).chain(built).filter(|set| *set).count();
        match count {
            0 => self.causes.required(
                path,
                "an interface needs a binding: masquerade, bridge, passtBinding, sriov or a plugin's",
            ),
            1 => {}
            _ => self.causes.invalid(path, "an interface has one binding"),
        }
        for (name, _) in gone.iter().filter(|(_, set)| *set) {
            self.causes
                .not_supported(&path.child(name), format!("the {name} binding is discontinued"));
        }
        if interface.masquerade.is_some() && !on_pod_network {
            self.causes
                .invalid(&path.child("masquerade"), "masquerade works on the pod network only");
        }
        if interface.passt_binding.is_some() {
            self.passt(interface, on_pod_network, path);
        }
        if interface.bridge.is_some() && on_pod_network && !self.config.permit_bridge_on_pod_network {
            self.causes.not_supported(
                &path.child("bridge"),
                "the cluster's configuration forbids bridge on the pod network",
            );
        }
        if interface.sriov.is_some() && on_pod_network {
            self.causes.invalid(
                &path.child("sriov"),
                "sriov works on multus networks and on those of resource claims",
            );
        }
        if interface.sriov.is_none() && network.is_some_and(|network| network.resource_claim.is_some()) {
            self.causes.invalid(
                path,
                "the network is a device of a resource claim, which sriov alone gives to the guest",
            );
        }
        let plugin = interface.binding.as_ref();
        let plugin = plugin.and_then(|binding| self.plugin(binding, &path.child("binding")));
        match built {
            [true, false, false, false, false] => Some(Binding::Tap(TapBinding::Bridge)),
            [false, true, false, false, false] => Some(Binding::Tap(TapBinding::Masquerade)),
            [false, false, true, false, false] => Some(Binding::Sriov),
            [false, false, false, true, false] => plugin.map(Binding::Plugin),
            [false, false, false, false, true] => Some(Binding::Passt),
            _ => None,
        }
    }

    /// What passt cannot do.
    fn passt(&mut self, interface: &WireInterface, on_pod_network: bool, path: &FieldPath) {
        let field = path.child("passtBinding");
        self.gate(GATE_PASST, &field);
        if !on_pod_network {
            self.causes
                .invalid(&field, "passtBinding works on the pod network only");
        }
        if interface
            .model
            .as_deref()
            .is_some_and(|model| !model.is_empty() && model != "virtio")
        {
            self.causes
                .invalid(&path.child("model"), "passtBinding needs the model virtio");
        }
        if interface.dhcp_options.is_some() {
            self.causes.invalid(
                &path.child("dhcpOptions"),
                "passt, which answers DHCP, has no such options",
            );
        }
    }

    fn mac_address(&mut self, mac: &str, binding: Option<&Binding>, field: &FieldPath) -> Option<String> {
        let Some(mac) = text::mac_address(mac) else {
            self.causes.invalid(
                field,
                format!("\"{mac}\" is not a MAC address such as 02:00:00:00:00:01"),
            );
            return None;
        };
        if binding == Some(&Binding::Tap(TapBinding::Masquerade)) && mac == RESERVED_MAC {
            self.causes
                .invalid(field, format!("{mac} is reserved for masquerade's gateway"));
        }
        let first = u8::from_str_radix(&mac[..2], 16).unwrap_or_default();
        if first & 1 == 1 {
            self.causes.invalid(field, format!("{mac} is a multicast address"));
        }
        Some(mac)
    }

    /// Whether the link is down, and whether there is no NIC at all.
    fn state(&mut self, interface: &WireInterface, pluggable: bool, field: &FieldPath) -> (bool, bool) {
        match interface.state.as_deref().unwrap_or_default() {
            "up" | "down" | "absent" if interface.sriov.is_some() => {
                self.causes
                    .invalid(field, "the link of a virtual function (sriov) is not ours to change");
                (false, false)
            }
            "" | "up" => (false, false),
            "down" => (true, false),
            "absent" => {
                if !pluggable {
                    self.causes
                        .invalid(field, "absent is for bridge interfaces on secondary networks only");
                }
                (false, true)
            }
            other => {
                self.causes.one_of(field, other, &["up", "down", "absent"]);
                (false, false)
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

    fn port_ranges(
        &mut self,
        ranges: &[WirePortRange],
        ports: &[Port],
        masquerade: bool,
        path: &FieldPath,
    ) -> Vec<PortRange> {
        if ranges.is_empty() {
            return Vec::new();
        }
        self.gate(GATE_PORT_RANGES, path);
        if !masquerade {
            self.causes.invalid(path, "port ranges need the masquerade binding");
        }
        if ranges.len() > MAX_PORT_RANGES {
            self.causes
                .invalid(path, format!("more than {MAX_PORT_RANGES} port ranges"));
        }
        let mut parsed: Vec<PortRange> = Vec::new();
        for (i, WirePortRange { end, protocol, start }) in ranges.iter().enumerate() {
            let path = path.index(i);
            let protocol = if protocol.is_empty() { "TCP" } else { protocol };
            self.causes.one_of(&path.child("protocol"), protocol, &["TCP", "UDP"]);
            let mut port = |name: &str, port: i32| {
                let number = u16::try_from(port).ok().filter(|p| *p > 0);
                if number.is_none() {
                    self.causes
                        .invalid(&path.child(name), format!("{port} is not between 1 and 65535"));
                }
                number
            };
            let (Some(start), Some(end)) = (port("start", *start), port("end", *end)) else {
                continue;
            };
            let range = PortRange {
                start,
                end,
                udp: protocol == "UDP",
            };
            if start > end {
                self.causes
                    .invalid(&path.child("end"), format!("{end} is before the start, {start}"));
            }
            let other = |other: &PortRange| other.udp == range.udp && other.start <= end && start <= other.end;
            if parsed.iter().any(other) {
                self.causes
                    .invalid(&path, format!("{start} to {end} overlaps with another range"));
            }
            if let Some(port) = ports
                .iter()
                .find(|p| p.udp == range.udp && (start..=end).contains(&p.port))
            {
                self.causes
                    .invalid(&path, format!("{start} to {end} overlaps with port {}", port.port));
            }
            parsed.push(range);
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
        let masquerade = interface.is_none_or(|interface| interface.masquerade.is_some());
        for (name, cidr, v6) in [
            ("vmNetworkCIDR", set(vm_network_cidr), false),
            ("vmIPv6NetworkCIDR", set(vm_i_pv6_network_cidr), true),
        ] {
            let Some(cidr) = cidr else { continue };
            let field = path.child(name);
            if !masquerade {
                self.causes
                    .invalid(&field, format!("{name} needs the masquerade binding"));
            }
            let valid = cidr.split_once('/').is_some_and(|(address, prefix)| {
                let prefix = prefix.parse::<u8>();
                if v6 {
                    address.parse::<Ipv6Addr>().is_ok() && prefix.is_ok_and(|p| (8..=126).contains(&p))
                } else {
                    address.parse::<Ipv4Addr>().is_ok() && prefix.is_ok_and(|p| (8..=30).contains(&p))
                }
            });
            let example = if v6 {
                "an IPv6 network such as fd10:0:2::/120, with a prefix of 8 to 126"
            } else {
                "an IPv4 network such as 10.0.2.0/24, with a prefix of 8 to 30"
            };
            if !valid {
                self.causes.invalid(&field, format!("\"{cidr}\" is not {example}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ferrovirt_api::v1::VirtualMachineInstance;
    use serde_json::{Value, json};

    use crate::config::ClusterConfig;
    use crate::machine::Machine;

    fn causes(domain: Value, config: &ClusterConfig) -> Vec<String> {
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
            "spec": {"domain": domain, "networks": [{"name": "n", "pod": {}}]},
        }))
        .unwrap();
        let causes = Machine::parse(&vmi, config).err().unwrap_or_default();
        causes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn passt_has_a_gate_and_reads_no_protected_memory() {
        let mut domain = json!({
            "memory": {"guest": "64Mi"}, "devices": {"interfaces": [{"name": "n", "passtBinding": {}}]},
        });
        assert_eq!(causes(domain.clone(), &ClusterConfig::default()), Vec::<String>::new());
        let developer = json!({"developerConfiguration": {"disabledFeatureGates": ["PasstBinding"]}});
        let closed = ClusterConfig::from_kubevirt(&serde_json::from_value(developer).unwrap());
        let refused = causes(domain.clone(), &closed);
        assert!(
            refused[0].contains("feature gate PasstBinding is not enabled"),
            "{refused:?}"
        );
        domain["launchSecurity"] = json!({"snp": {}});
        domain["firmware"] = json!({"bootloader": {"efi": {"secureBoot": false}}});
        let refused = causes(domain, &ClusterConfig::default());
        let memory = |cause: &String| cause.contains("memory that passt cannot read");
        assert!(refused.iter().any(memory), "{refused:?}");
    }
}
