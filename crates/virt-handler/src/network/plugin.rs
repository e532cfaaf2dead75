//! Taps that the CNI plugins of network bindings made (`domainAttachmentType: tap`): found, not changed.

use ferrovirt_protocol::launcher::Nic;

use super::links::Links;
use super::wanted::PluginTap;
use super::{Devices, Error};

/// What all pods have.
const PRIMARY: &str = "eth0";

/// The tap of a NIC: the device with a tap's name, or the pod's interface itself, which may be one.
pub(super) async fn find(links: &Links, wanted: &PluginTap) -> Result<Nic, Error> {
    let pod = wanted.pod_interface.as_deref().unwrap_or(PRIMARY);
    let devices = match &wanted.pod_interface {
        Some(name) => Devices::secondary(name),
        None => Devices::primary(pod),
    };
    let interface = links.find(pod).await?;
    let (tap, mac) = match (links.find(&devices.tap).await?, &interface) {
        (Some(tap), _) => (tap, wanted.mac),
        // Its address is the only one that packets reach it by.
        (None, Some(interface)) if interface.tap => (interface.clone(), wanted.chosen_mac.unwrap_or(interface.mac)),
        (None, _) => {
            return Err(Error::NoPluginTap {
                network: wanted.name.clone(),
                tap: devices.tap,
                pod: pod.to_owned(),
            });
        }
    };
    let addresses = match &interface {
        Some(interface) => links.addresses(interface.index).await?,
        None => Vec::new(),
    };
    Ok(Nic {
        network: wanted.name.clone(),
        tap: tap.name,
        bridge: String::new(),
        mac: mac.to_string(),
        mtu: tap.mtu,
        dhcp: None,
        pod_ips: addresses.iter().map(|address| address.ip.to_string()).collect(),
        pod_interface: pod.to_owned(),
    })
}
