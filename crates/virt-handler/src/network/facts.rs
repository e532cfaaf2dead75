//! The pod's interface as the CNI plugins configured it.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::Error;
use super::links::{Link, Links};
use super::wanted::Mac;

/// An address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
}

/// An IPv4 route over the pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub destination: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    /// The kernel made it for an address of the interface.
    pub connected: bool,
}

/// The pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodInterface {
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    /// Global addresses, IPv4 first.
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
}

impl PodInterface {
    /// The first IPv4 address.
    pub(crate) fn ipv4(&self) -> Option<(Ipv4Addr, u8)> {
        self.addresses.iter().find_map(|address| match address.ip {
            IpAddr::V4(ip) => Some((ip, address.prefix)),
            IpAddr::V6(_) => None,
        })
    }

    /// Whether the pod has a global IPv6 address.
    pub(crate) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|address| address.ip.is_ipv6())
    }

    /// The gateway of the default route.
    pub(crate) fn gateway(&self) -> Option<Ipv4Addr> {
        self.routes
            .iter()
            .find(|route| route.prefix == 0)
            .and_then(|route| route.gateway)
    }
}

/// Looks at the interface of the default route, or at eth0 where there is none.
pub(super) async fn discover(links: &Links) -> Result<PodInterface, Error> {
    let routes = links.routes().await?;
    let by_route = routes
        .iter()
        .find(|(_, route)| route.prefix == 0)
        .map(|(index, _)| *index);
    let link = match by_route {
        Some(index) => links.by_index(index).await?,
        None => links.find("eth0").await?,
    };
    let Some(link) = link else {
        return Err(Error::NoInterface("eth0".to_owned()));
    };
    let interface = look(links, link, routes).await?;
    if interface.ipv4().is_none() {
        return Err(Error::NoAddress(interface.name));
    }
    Ok(interface)
}

/// Looks at another interface, which need not have an address.
pub(super) async fn named(links: &Links, name: &str) -> Result<PodInterface, Error> {
    let link = links.must_find(name).await?;
    look(links, link, links.routes().await?).await
}

async fn look(links: &Links, link: Link, routes: Vec<(u32, Route)>) -> Result<PodInterface, Error> {
    let mut addresses = links.addresses(link.index).await?;
    addresses.sort_by_key(|address| address.ip.is_ipv6());
    Ok(PodInterface {
        name: link.name,
        mac: link.mac,
        mtu: link.mtu,
        addresses,
        routes: routes
            .into_iter()
            .filter(|(index, _)| *index == link.index)
            .map(|(_, route)| route)
            .collect(),
    })
}
