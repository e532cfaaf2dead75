//! Bridge: the guest takes over the pod's address and, unless it has one of its own, its MAC address.
//!
//! ```text
//! guest, the pod's address ── tap0 ── k6t-eth0 169.254.75.10 ── eth0 (another MAC, no address)
//! ```
//!
//! The pod's address is kept in the record and in the VMI's status.

use std::net::{IpAddr, Ipv4Addr};

use ferrovirt_protocol::launcher::{Dhcp, Route};

use super::facts::PodInterface;
use super::links::{Links, set_sysctl};
use super::wanted::{Mac, Wanted, WantedNic};
use super::{Devices, Error};

/// The bridge's own address: it identifies the DHCP server and is routed nowhere.
fn bridge_ip(nic: &WantedNic) -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 75, nic.place.saturating_add(10))
}

/// What the guest is told by DHCP: what the CNI plugins had told the pod; nothing, if that was nothing.
pub(super) fn dhcp(pod: &PodInterface, nic: &WantedNic, wanted: &Wanted) -> Option<Dhcp> {
    let (ip, prefix) = pod.ipv4()?;
    let routes = pod.routes.iter().filter(|route| !route.connected && route.prefix != 0);
    Some(Dhcp {
        client_ip: ip.to_string(),
        prefix: u32::from(prefix),
        server_ip: bridge_ip(nic).to_string(),
        router: pod.gateway().map(|ip| ip.to_string()).unwrap_or_default(),
        dns: wanted.ipv4_servers(),
        search: wanted.dns.search.clone(),
        hostname: wanted.hostname.clone(),
        routes: routes
            .map(|route| Route {
                destination: route.destination.to_string(),
                prefix: u32::from(route.prefix),
                gateway: route.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string(),
            })
            .collect(),
    })
}

/// Makes the devices.
pub(super) async fn apply(
    links: &Links,
    pod: &PodInterface,
    devices: &Devices,
    nic: &WantedNic,
    wanted: &Wanted,
) -> Result<(), Error> {
    let bridge = links
        .ensure_bridge(&devices.bridge, Mac::derive(&nic.seed, "bridge"), pod.mtu)
        .await?;
    for device in [&devices.bridge, &devices.pod] {
        set_sysctl(&format!("ipv6/conf/{device}/disable_ipv6"), "1")?;
    }
    links.ensure_address(&bridge, IpAddr::V4(bridge_ip(nic)), 32).await?;
    let link = links.must_find(&devices.pod).await?;
    links.flush_addresses(&link).await?;
    if link.mac == pod.mac {
        links.set_mac(&link, Mac::derive(&nic.seed, "pod")).await?;
    }
    links.enslave(&link, &bridge).await?;
    links
        .ensure_tap(&devices.tap, nic.many_queues, wanted.owner, &bridge, pod.mtu)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Dns;
    use crate::network::facts::{Address, Route as PodRoute};

    #[test]
    fn dhcp_repeats_the_cni_result() {
        let pod = PodInterface {
            name: "eth0".into(),
            mac: Mac([2, 1, 1, 1, 1, 1]),
            mtu: 1450,
            addresses: vec![Address {
                ip: "10.88.0.7".parse().unwrap(),
                prefix: 16,
            }],
            routes: vec![
                PodRoute {
                    destination: "0.0.0.0".parse().unwrap(),
                    prefix: 0,
                    gateway: "10.88.0.1".parse().ok(),
                    connected: false,
                },
                PodRoute {
                    destination: "10.88.0.0".parse().unwrap(),
                    prefix: 16,
                    gateway: None,
                    connected: true,
                },
                PodRoute {
                    destination: "10.96.0.0".parse().unwrap(),
                    prefix: 12,
                    gateway: "10.88.0.2".parse().ok(),
                    connected: false,
                },
                PodRoute {
                    destination: "169.254.1.1".parse().unwrap(),
                    prefix: 32,
                    gateway: None,
                    connected: false,
                },
            ],
        };
        let wanted = Wanted {
            nics: vec![],
            plugin_taps: vec![],
            passt: None,
            hostname: "vm".into(),
            owner: 107,
            dns: Dns {
                servers: vec!["1.1.1.1".parse().unwrap(), "::2".parse().unwrap()],
                search: vec!["x".into()],
            },
        };
        let nic = WantedNic {
            name: "n".into(),
            pod_interface: None,
            place: 2,
            binding: crate::network::Binding::Bridge,
            mac: Mac([2, 1, 1, 1, 1, 2]),
            chosen_mac: None,
            ports: vec![],
            cidr: None,
            cidr_v6: None,
            many_queues: false,
            seed: String::new(),
        };
        let dhcp = dhcp(&pod, &nic, &wanted).unwrap();
        assert_eq!(dhcp.server_ip, "169.254.75.12");
        assert_eq!(
            (dhcp.client_ip.as_str(), dhcp.prefix, dhcp.router.as_str()),
            ("10.88.0.7", 16, "10.88.0.1")
        );
        assert_eq!(dhcp.dns, ["1.1.1.1"]);
        let routes: Vec<_> = dhcp
            .routes
            .iter()
            .map(|r| (r.destination.as_str(), r.prefix, r.gateway.as_str()))
            .collect();
        assert_eq!(routes, [("10.96.0.0", 12, "10.88.0.2"), ("169.254.1.1", 32, "0.0.0.0")]);
    }
}
