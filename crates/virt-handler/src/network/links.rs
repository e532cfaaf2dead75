//! rtnetlink, reduced to what the bindings need. Works on the namespace of the thread that connected.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteProtocol};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use super::Error;
use super::facts::{Address, Route};
use super::wanted::Mac;

/// Where DHCP servers listen.
const DHCP_PORT: u32 = 67;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    /// Index of the bridge it is on.
    pub controller: Option<u32>,
    /// QEMU can attach to it.
    pub tap: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            name: String::new(),
            index: message.header.index,
            mac: Mac([0; 6]),
            mtu: 1500,
            up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
            tap: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = Mac(bytes.try_into().unwrap_or([0; 6])),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.controller = Some(index).filter(|index| *index != 0),
                LinkAttribute::LinkInfo(infos) => {
                    let kinds = [InfoKind::Tun, InfoKind::MacVtap];
                    link.tap = infos
                        .iter()
                        .any(|info| matches!(info, LinkInfo::Kind(kind) if kinds.contains(kind)));
                }
                _ => {}
            }
        }
        link
    }
}

/// A netlink connection.
pub(super) struct Links {
    handle: Handle,
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.into();
    move |source| Error::Netlink {
        what,
        source: Box::new(source),
    }
}

impl Links {
    /// Connects; the connection's task lives on the current runtime.
    pub(super) fn connect() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Enter)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    async fn all(&self) -> Result<Vec<Link>, Error> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list devices"))?;
        Ok(messages.into_iter().map(Link::from).collect())
    }

    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.all().await?.into_iter().find(|link| link.name == name))
    }

    pub(super) async fn by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        Ok(self.all().await?.into_iter().find(|link| link.index == index))
    }

    /// A device that must be there.
    pub(super) async fn must_find(&self, name: &str) -> Result<Link, Error> {
        self.find(name)
            .await?
            .ok_or_else(|| Error::NoInterface(name.to_owned()))
    }

    /// Global addresses of a device.
    pub(super) async fn addresses(&self, index: u32) -> Result<Vec<Address>, Error> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        let mut addresses = Vec::new();
        for message in messages {
            if message.header.index != index || message.header.scope != AddressScope::Universe {
                continue;
            }
            // On point-to-point links Local is ours and Address the peer's; elsewhere they are the same.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let plain = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            if let Some(ip) = local.or(plain) {
                addresses.push(Address {
                    ip,
                    prefix: message.header.prefix_len,
                });
            }
        }
        Ok(addresses)
    }

    /// IPv4 routes of the main table with the index of their device.
    pub(super) async fn routes(&self) -> Result<Vec<(u32, Route)>, Error> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages: Vec<_> = self
            .handle
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list routes"))?;
        let mut routes = Vec::new();
        for message in messages {
            if message.header.address_family != AddressFamily::Inet
                || message.header.table != RouteHeader::RT_TABLE_MAIN
            {
                continue;
            }
            let mut device = None;
            let mut route = Route {
                destination: Ipv4Addr::UNSPECIFIED,
                prefix: message.header.destination_prefix_length,
                gateway: None,
                connected: message.header.protocol == RouteProtocol::Kernel,
            };
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => device = Some(index),
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) => route.destination = ip,
                    RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some(ip),
                    _ => {}
                }
            }
            routes.extend(device.map(|index| (index, route)));
        }
        Ok(routes)
    }

    /// Makes the bridge, or finds it.
    pub(super) async fn ensure_bridge(&self, name: &str, mac: Mac, mtu: u32) -> Result<Link, Error> {
        if let Some(link) = self.find(name).await? {
            return Ok(link);
        }
        let message = LinkBridge::new(name).address(mac.0.to_vec()).mtu(mtu).build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(failed(format!("create the bridge {name}")))?;
        self.must_find(name).await
    }

    /// Makes the tap that `owner` may attach to, or finds it; then puts it on the bridge and sets it up.
    pub(super) async fn ensure_tap(
        &self,
        name: &str,
        many_queues: bool,
        owner: u32,
        bridge: &Link,
        mtu: u32,
    ) -> Result<(), Error> {
        if self.find(name).await?.is_none() {
            crate::syscall::create_tap(name, owner, owner, many_queues).map_err(|source| Error::Tap {
                name: name.to_owned(),
                source,
            })?;
        }
        let link = self.must_find(name).await?;
        let message = LinkUnspec::new_with_index(link.index)
            .mtu(mtu)
            .controller(bridge.index)
            .up()
            .build();
        self.change(message, format!("put {name} on {}", bridge.name)).await
    }

    pub(super) async fn enslave(&self, link: &Link, bridge: &Link) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(link.index)
            .controller(bridge.index)
            .up()
            .build();
        self.change(message, format!("put {} on {}", link.name, bridge.name))
            .await
    }

    /// Gives a device another MAC address; it is down afterwards.
    pub(super) async fn set_mac(&self, link: &Link, mac: Mac) -> Result<(), Error> {
        let down = LinkUnspec::new_with_index(link.index).down().build();
        self.change(down, format!("set {} down", link.name)).await?;
        let message = LinkUnspec::new_with_index(link.index).address(mac.0.to_vec()).build();
        self.change(message, format!("change the MAC address of {}", link.name))
            .await
    }

    /// Adds an address unless it is there.
    pub(super) async fn ensure_address(&self, link: &Link, ip: IpAddr, prefix: u8) -> Result<(), Error> {
        self.handle
            .address()
            .add(link.index, ip, prefix)
            .replace()
            .execute()
            .await
            .map_err(failed(format!("add {ip}/{prefix} to {}", link.name)))
    }

    /// Takes all global addresses off a device.
    pub(super) async fn flush_addresses(&self, link: &Link) -> Result<(), Error> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        for message in messages {
            if message.header.index == link.index && message.header.scope == AddressScope::Universe {
                self.handle
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed(format!("take an address off {}", link.name)))?;
            }
        }
        Ok(())
    }

    async fn change(&self, message: LinkMessage, what: String) -> Result<(), Error> {
        self.handle.link().change(message).execute().await.map_err(failed(what))
    }
}

/// The launcher answers DHCP without any capability: in its pod's network the port is open to every user.
pub(super) fn let_dhcp_be_served() -> Result<(), Error> {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first.trim().parse().is_ok_and(|first: u32| first <= DHCP_PORT) {
        return Ok(());
    }
    set_sysctl("ipv4/ip_unprivileged_port_start", &DHCP_PORT.to_string())
}

/// Writes `/proc/sys/net/NAME` of the calling thread's network namespace, unless it says so already.
/// A sysctl that the kernel does not have (no IPv6) is left alone.
pub(super) fn set_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys/net").join(name);
    match std::fs::read_to_string(&path) {
        Ok(old) if old.trim() == value => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    std::fs::write(&path, value).map_err(|source| Error::File {
        what: "write",
        path,
        source,
    })
}
