//! Masquerade: the guest is alone in a small network behind the pod's address.
//!
//! ```text
//! guest 10.0.2.2 ── tap0 ── k6t-eth0 10.0.2.1 ──(NAT)── eth0, the pod's address
//! ```

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ferrovirt_protocol::launcher::Dhcp;

use super::facts::PodInterface;
use super::links::{Links, set_sysctl};
use super::wanted::{Mac, Wanted, WantedNic};
use super::{Devices, Error};

/// The same in every pod, so that a guest that moves keeps its neighbour.
const BRIDGE_MAC: Mac = Mac([2, 0, 0, 0, 0, 0]);
/// Ports of the pod that live migration uses; never the guest's unless it lists them.
const RESERVED_TCP: &str = "{ 49152, 49153 }";

/// The guest's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet {
    gateway: Ipv4Addr,
    guest: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// `vmNetworkCIDR`, or 10.0.2.0/24: the first address is the gateway's, the second the guest's.
    fn of(nic: &WantedNic) -> Result<Self, Error> {
        let text = nic.cidr.as_deref().unwrap_or("10.0.2.0/24");
        let bad = || Error::Cidr(text.to_owned());
        let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| (1..=30).contains(prefix))
            .ok_or_else(bad)?;
        let network = u32::from(ip) & (u32::MAX << (32 - u32::from(prefix)));
        Ok(Self {
            gateway: Ipv4Addr::from(network + 1),
            guest: Ipv4Addr::from(network + 2),
            prefix,
        })
    }
}

/// The guest's IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SubnetV6 {
    gateway: Ipv6Addr,
    guest: Ipv6Addr,
    prefix: u8,
}

impl SubnetV6 {
    /// `vmIPv6NetworkCIDR`, or fd10:0:2::/120, with addresses as in [`Subnet::of`].
    fn of(nic: &WantedNic) -> Result<Self, Error> {
        let text = nic.cidr_v6.as_deref().unwrap_or("fd10:0:2::/120");
        let bad = || Error::CidrV6(text.to_owned());
        let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| (1..=126).contains(prefix))
            .ok_or_else(bad)?;
        let network = u128::from(ip) & (u128::MAX << (128 - u32::from(prefix)));
        Ok(Self {
            gateway: Ipv6Addr::from(network + 1),
            guest: Ipv6Addr::from(network + 2),
            prefix,
        })
    }
}

/// What the guest is told by DHCP.
pub(super) fn dhcp(nic: &WantedNic, wanted: &Wanted) -> Result<Dhcp, Error> {
    let subnet = Subnet::of(nic)?;
    Ok(Dhcp {
        client_ip: subnet.guest.to_string(),
        prefix: u32::from(subnet.prefix),
        server_ip: subnet.gateway.to_string(),
        router: subnet.gateway.to_string(),
        dns: wanted.ipv4_servers(),
        search: wanted.dns.search.clone(),
        hostname: wanted.hostname.clone(),
        routes: Vec::new(),
    })
}

/// Makes the devices and sysctls; returns the packet filter's rules.
pub(super) async fn apply(
    links: &Links,
    pod: &PodInterface,
    devices: &Devices,
    nic: &WantedNic,
    wanted: &Wanted,
) -> Result<String, Error> {
    let (subnet, subnet_v6) = (Subnet::of(nic)?, SubnetV6::of(nic)?);
    let bridge = links.ensure_bridge(&devices.bridge, BRIDGE_MAC, pod.mtu).await?;
    set_sysctl("ipv4/ip_forward", "1")?;
    // Lets 127.0.0.1 in the pod reach the guest; the rules keep the guest away from the pod's loopback.
    set_sysctl(&format!("ipv4/conf/{}/route_localnet", devices.bridge), "1")?;
    links
        .ensure_address(&bridge, IpAddr::V4(subnet.gateway), subnet.prefix)
        .await?;
    if pod.has_ipv6() {
        set_sysctl("ipv6/conf/all/forwarding", "1")?;
        links
            .ensure_address(&bridge, IpAddr::V6(subnet_v6.gateway), subnet_v6.prefix)
            .await?;
    } else {
        set_sysctl(&format!("ipv6/conf/{}/disable_ipv6", devices.bridge), "1")?;
    }
    links
        .ensure_tap(&devices.tap, nic.many_queues, wanted.owner, &bridge, pod.mtu)
        .await?;
    Ok(rules(subnet, subnet_v6, pod, devices, nic))
}

fn rules(subnet: Subnet, subnet_v6: SubnetV6, pod: &PodInterface, devices: &Devices, nic: &WantedNic) -> String {
    let of_family = |v6: bool| pod.addresses.iter().map(|a| a.ip).filter(move |ip| ip.is_ipv6() == v6);
    let v4 = Family {
        name: "ip",
        loopback: IpAddr::V4(Ipv4Addr::LOCALHOST),
        martians: "127.0.0.0/8",
        guest: IpAddr::V4(subnet.guest),
        gateway: IpAddr::V4(subnet.gateway),
        pod: of_family(false).collect(),
    };
    let v6 = Family {
        name: "ip6",
        loopback: IpAddr::V6(Ipv6Addr::LOCALHOST),
        martians: "::1",
        guest: IpAddr::V6(subnet_v6.guest),
        gateway: IpAddr::V6(subnet_v6.gateway),
        pod: of_family(true).collect(),
    };
    let mut text = v4.rules(devices, nic);
    if pod.has_ipv6() {
        text += &v6.rules(devices, nic);
    }
    text
}

/// One address family's side of the NAT.
struct Family {
    name: &'static str,
    loopback: IpAddr,
    martians: &'static str,
    guest: IpAddr,
    gateway: IpAddr,
    pod: Vec<IpAddr>,
}

impl Family {
    /// Idempotent: chains are made if missing, emptied and filled in one transaction.
    fn rules(&self, devices: &Devices, nic: &WantedNic) -> String {
        let Self {
            name,
            guest,
            gateway,
            loopback,
            martians,
            ..
        } = self;
        let (pod, bridge) = (&devices.pod, &devices.bridge);
        let mut text = format!("add table {name} nat\n");
        for (chain, hook) in [
            ("prerouting", "{ type nat hook prerouting priority -100 ; }"),
            ("output", "{ type nat hook output priority -100 ; }"),
            ("postrouting", "{ type nat hook postrouting priority 100 ; }"),
            ("martians", "{ type filter hook prerouting priority -300 ; }"),
            ("KUBEVIRT_PREINBOUND", ""),
            ("KUBEVIRT_POSTINBOUND", ""),
        ] {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "add chain {name} nat {chain} {hook}\nflush chain {name} nat {chain}\n"
            );
        }
        let mut rule = |chain: &str, rule: String| {
            let _ = writeln!(text, "add rule {name} nat {chain} {rule}");
        };
        rule(
            "martians",
            format!("iifname \"{bridge}\" {name} daddr {martians} counter drop"),
        );
        rule(
            "prerouting",
            format!("iifname \"{pod}\" counter jump KUBEVIRT_PREINBOUND"),
        );
        rule(
            "postrouting",
            format!("{name} saddr {guest} oifname \"{pod}\" counter masquerade"),
        );
        rule(
            "postrouting",
            format!("oifname \"{bridge}\" counter jump KUBEVIRT_POSTINBOUND"),
        );
        let own: Vec<String> = std::iter::once(loopback)
            .chain(&self.pod)
            .map(IpAddr::to_string)
            .collect();
        let to_own = format!("{name} daddr {{ {} }}", own.join(", "));
        let forwards = forwarded(nic);
        if forwards == [String::new()] {
            rule(
                "KUBEVIRT_PREINBOUND",
                format!("tcp dport {RESERVED_TCP} counter return"),
            );
            rule("output", format!("{to_own} tcp dport {RESERVED_TCP} counter return"));
        }
        for ports in forwards {
            rule("KUBEVIRT_PREINBOUND", format!("{ports} counter dnat to {guest}"));
            rule("output", format!("{to_own} {ports} counter dnat to {guest}"));
        }
        rule(
            "KUBEVIRT_POSTINBOUND",
            format!("{name} saddr {loopback} counter snat to {gateway}"),
        );
        text
    }
}

/// Matches of what is forwarded: one per protocol of the listed ports, or one that matches everything.
fn forwarded(nic: &WantedNic) -> Vec<String> {
    if nic.ports.is_empty() {
        return vec![String::new()];
    }
    [(false, "tcp"), (true, "udp")]
        .into_iter()
        .filter_map(|(udp, protocol)| {
            let ports = nic.ports.iter().filter(|p| p.udp == udp);
            let mut ports: Vec<(u16, u16)> = ports.map(|p| (p.port, p.last)).collect();
            ports.sort_unstable();
            ports.dedup();
            let element = |(first, last): &(u16, u16)| {
                if first == last {
                    first.to_string()
                } else {
                    format!("{first}-{last}")
                }
            };
            let ports: Vec<String> = ports.iter().map(element).collect();
            (!ports.is_empty()).then(|| format!("{protocol} dport {{ {} }}", ports.join(", ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Binding, Port};

    fn nic(cidr: Option<&str>, ports: &[(u16, bool)]) -> WantedNic {
        WantedNic {
            name: "default".into(),
            pod_interface: None,
            place: 0,
            binding: Binding::Masquerade,
            mac: Mac([0x52, 0x54, 0, 1, 2, 3]),
            chosen_mac: None,
            ports: ports
                .iter()
                .map(|&(port, udp)| Port { port, last: port, udp })
                .collect(),
            cidr: cidr.map(str::to_owned),
            cidr_v6: None,
            many_queues: false,
            seed: String::new(),
        }
    }

    #[test]
    fn subnets() {
        for (cidr, expected) in [
            (None, Some(("10.0.2.1", "10.0.2.2", 24))),
            (Some("10.11.12.0/24"), Some(("10.11.12.1", "10.11.12.2", 24))),
            (Some("192.168.7.99/30"), Some(("192.168.7.97", "192.168.7.98", 30))),
            (Some("10.0.0.0/31"), None),
            (Some("10.0.0.0/0"), None),
            (Some("nonsense"), None),
            (Some("fd00::/64"), None),
        ] {
            let got = Subnet::of(&nic(cidr, &[])).ok();
            let expected = expected.map(|(gateway, guest, prefix)| Subnet {
                gateway: gateway.parse().unwrap(),
                guest: guest.parse().unwrap(),
                prefix,
            });
            assert_eq!(got, expected, "{cidr:?}");
        }
    }

    #[test]
    fn ports_are_grouped_by_protocol() {
        assert_eq!(forwarded(&nic(None, &[])), [""]);
        assert_eq!(
            forwarded(&nic(None, &[(443, false), (53, true), (80, false), (80, false)])),
            ["tcp dport { 80, 443 }", "udp dport { 53 }"]
        );
        let mut ranged = nic(None, &[(80, false)]);
        ranged.ports.push(Port {
            port: 6000,
            last: 6009,
            udp: false,
        });
        assert_eq!(forwarded(&ranged), ["tcp dport { 80, 6000-6009 }"]);
    }

    /// Shows `spec.networks[].pod.vmIPv6NetworkCIDR`.
    #[test]
    fn subnets_of_ipv6() {
        for (cidr, expected) in [
            (None, Some(("fd10:0:2::1", "fd10:0:2::2", 120))),
            (Some("fd00:5::ff/112"), Some(("fd00:5::1", "fd00:5::2", 112))),
            (Some("fd00::/127"), None),
            (Some("10.0.0.0/24"), None),
            (Some("nonsense"), None),
        ] {
            let nic = WantedNic {
                cidr_v6: cidr.map(str::to_owned),
                ..nic(None, &[])
            };
            let expected = expected.map(|(gateway, guest, prefix)| SubnetV6 {
                gateway: gateway.parse().unwrap(),
                guest: guest.parse().unwrap(),
                prefix,
            });
            assert_eq!(SubnetV6::of(&nic).ok(), expected, "{cidr:?}");
        }
    }
}
