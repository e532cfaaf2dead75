//! The network of one launcher pod, prepared in the pod's own network namespace before its guest starts.
//!
//! Everything is decided from facts that were *recorded* before the first change (`record.rs`), so preparing
//! twice, or after a crash half-way, ends the same; for a running guest nothing is changed.

mod bridge;
mod facts;
mod links;
mod masquerade;
mod netns;
mod nft;
mod passt;
mod plugin;
mod record;
mod wanted;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ferrovirt_protocol::launcher::Nic;

pub use ferrovirt_core::machine::TapBinding as Binding;
pub use netns::{NetworkNamespace, inside};
pub use wanted::{Mac, PasstNic, PluginTap, Port, Wanted, WantedNic};

use facts::PodInterface;
use links::Links;
use record::Record;

/// Resolver settings handed to guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Servers, in order.
    pub servers: Vec<IpAddr>,
    /// Search domains, in order.
    pub search: Vec<String>,
}

impl Dns {
    /// Reads the text of a `resolv.conf`. Servers that only this host can reach (loopback) are left out,
    /// and no more than a resolver would use: three servers, six domains.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => dns.servers.extend(words.next().and_then(|w| w.parse::<IpAddr>().ok())),
                Some("search" | "domain") => dns.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        dns.servers
            .retain(|server| !server.is_loopback() && !server.is_unspecified());
        dns.servers.truncate(3);
        dns.search
            .retain(|domain| domain != "." && domain.len() <= 253 && domain.is_ascii());
        dns.search.truncate(6);
        dns
    }
}

/// Why a pod's network could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace cannot be entered.
    #[error("cannot enter the pod's network namespace")]
    Enter(#[source] io::Error),
    /// The launcher is not in a namespace of its own.
    #[error("the launcher shares the network namespace of the node; its pod must not use hostNetwork")]
    HostNetwork,
    /// The CNI plugins left nothing to bind to.
    #[error("the pod has no network interface {0}: did its CNI plugins run?")]
    NoInterface(String),
    /// The CNI plugins gave no address.
    #[error("the pod's interface {0} has no IPv4 address: the guest cannot be given one")]
    NoAddress(String),
    /// The kernel refused.
    #[error("cannot {what} in the pod's network namespace")]
    Netlink {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// read, write …
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The tap could not be made.
    #[error("cannot create the tap device {name}; is /dev/net/tun there?")]
    Tap {
        /// Its name.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `nft` failed.
    #[error("nft refused the pod's NAT rules: {0}")]
    Nft(String),
    /// `nft` could not be started.
    #[error("cannot run nft; install the package nftables")]
    NoNft(#[source] io::Error),
    /// Two NICs on the pod network.
    #[error("spec.domain.devices.interfaces: only one interface can use the pod network, found {0}")]
    TooMany(usize),
    /// A network binding's CNI plugin left no tap.
    #[error(
        "the pod has no tap device {tap} for network {network}, and {pod} is none either: did the CNI plugin of its \
         network binding run?"
    )]
    NoPluginTap {
        /// The VMI's network.
        network: String,
        /// What it should be called.
        tap: String,
        /// The pod's interface behind it.
        pod: String,
    },
    /// A bad `vmNetworkCIDR`.
    #[error("spec.networks[].pod.vmNetworkCIDR: {0} is not an IPv4 network with room for a gateway and a guest")]
    Cidr(String),
    /// A bad `vmIPv6NetworkCIDR`.
    #[error("spec.networks[].pod.vmIPv6NetworkCIDR: {0} is not an IPv6 network with room for a gateway and a guest")]
    CidrV6(String),
}

/// Names of the devices of one guest NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Devices {
    pod: String,
    bridge: String,
    tap: String,
}

impl Devices {
    fn primary(pod: &str) -> Self {
        Self {
            pod: pod.to_owned(),
            bridge: format!("k6t-{pod}"),
            tap: "tap0".to_owned(),
        }
    }

    /// `pod` is `pod` and a hash.
    fn secondary(pod: &str) -> Self {
        let hash = pod.trim_start_matches("pod");
        Self {
            pod: pod.to_owned(),
            bridge: format!("k6t-{hash}"),
            tap: format!("tap{hash}"),
        }
    }
}

/// Prepares the pod's network for the guest's NICs and says what the launcher has to know of them.
///
/// Guarantees: idempotent; a namespace that is already prepared is only looked at. `record` holds what the CNI
/// plugins had configured, since the bridge binding takes it off the pod's interface.
///
/// # Errors
/// See [`Error`]. What was done so far stays and is completed by the next call.
pub async fn prepare(namespace: &NetworkNamespace, wanted: Wanted, record: PathBuf) -> Result<Vec<Nic>, Error> {
    if wanted.nics.is_empty() && wanted.plugin_taps.is_empty() && wanted.passt.is_none() {
        return Ok(Vec::new());
    }
    let primary = wanted.nics.iter().filter(|nic| nic.pod_interface.is_none()).count();
    if primary > 1 {
        return Err(Error::TooMany(primary));
    }
    let id = namespace.id();
    inside(
        namespace,
        move || async move { prepare_here(&wanted, &record, &id).await },
    )
    .await
    .map_err(Error::Enter)?
}

/// As [`prepare`], on a thread that is in the namespace.
async fn prepare_here(wanted: &Wanted, path: &Path, namespace: &str) -> Result<Vec<Nic>, Error> {
    let links = Links::connect()?;
    let mut nics = if wanted.nics.is_empty() {
        Vec::new()
    } else {
        bind(&links, wanted, path, namespace).await?
    };
    for tap in &wanted.plugin_taps {
        nics.push(plugin::find(&links, tap).await?);
    }
    if let Some(nic) = &wanted.passt {
        nics.push(passt::prepare(&links, nic, wanted.owner).await?);
    }
    Ok(nics)
}

/// Makes what is behind the taps that are ours.
async fn bind(links: &Links, wanted: &Wanted, path: &Path, namespace: &str) -> Result<Vec<Nic>, Error> {
    let mut record = match Record::load(path)?.filter(|record| record.namespace == namespace) {
        Some(record) => record,
        None => {
            let mut others = Vec::new();
            for name in wanted.nics.iter().filter_map(|nic| nic.pod_interface.as_ref()) {
                others.push(facts::named(links, name).await?);
            }
            let record = Record {
                namespace: namespace.to_owned(),
                interface: facts::discover(links).await?,
                others,
                done: false,
            };
            record.store(path)?;
            record
        }
    };
    links::let_dhcp_be_served()?;
    let (mut rules, mut nics) = (String::new(), Vec::new());
    for nic in &wanted.nics {
        let (pod, devices) = record.behind(nic)?;
        if !(record.done && is_prepared(links, &devices).await?) {
            match nic.binding {
                Binding::Masquerade => rules += &masquerade::apply(links, pod, &devices, nic, wanted).await?,
                Binding::Bridge => bridge::apply(links, pod, &devices, nic, wanted).await?,
            }
        }
        nics.push(describe(pod, &devices, nic, wanted)?);
    }
    if !rules.is_empty() {
        nft::run(&rules).await?;
    }
    if !record.done {
        record.done = true;
        record.store(path)?;
    }
    Ok(nics)
}

impl Record {
    /// The pod's interface behind a NIC, and what is made for the NIC.
    fn behind(&self, nic: &WantedNic) -> Result<(&PodInterface, Devices), Error> {
        match &nic.pod_interface {
            None => Ok((&self.interface, Devices::primary(&self.interface.name))),
            Some(name) => {
                let other = self.others.iter().find(|other| other.name == *name);
                let other = other.ok_or_else(|| Error::NoInterface(name.clone()))?;
                Ok((other, Devices::secondary(name)))
            }
        }
    }
}

/// Whether the tap is on its bridge, which is the last thing that preparing does before the rules.
async fn is_prepared(links: &Links, devices: &Devices) -> Result<bool, Error> {
    let bridge = links.find(&devices.bridge).await?;
    let tap = links.find(&devices.tap).await?;
    Ok(matches!((bridge, tap), (Some(bridge), Some(tap)) if tap.controller == Some(bridge.index)))
}

fn describe(pod: &PodInterface, devices: &Devices, nic: &WantedNic, wanted: &Wanted) -> Result<Nic, Error> {
    let (mac, dhcp) = match nic.binding {
        Binding::Masquerade => (nic.mac, Some(masquerade::dhcp(nic, wanted)?)),
        Binding::Bridge => (nic.chosen_mac.unwrap_or(pod.mac), bridge::dhcp(pod, nic, wanted)),
    };
    Ok(Nic {
        network: nic.name.clone(),
        tap: devices.tap.clone(),
        bridge: devices.bridge.clone(),
        mac: mac.to_string(),
        mtu: pod.mtu,
        dhcp,
        pod_ips: pod.addresses.iter().map(|address| address.ip.to_string()).collect(),
        pod_interface: devices.pod.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::Dns;

    #[test]
    fn resolv_conf_without_what_a_guest_cannot_use() {
        let dns = Dns::parse(
            "# c\nnameserver 127.0.0.53\nnameserver 10.96.0.10\nnameserver x\nsearch a.svc b .\noptions ndots:5\n",
        );
        assert_eq!(
            dns,
            Dns {
                servers: vec!["10.96.0.10".parse().unwrap()],
                search: vec!["a.svc".into(), "b".into()]
            }
        );
    }
}
