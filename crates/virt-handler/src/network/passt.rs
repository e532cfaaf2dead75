//! passt, which plays the pod's network for a guest: it takes address, routes and DNS from the pod, where nothing of that
//! is changed.

use ferrovirt_protocol::launcher::Nic;

use super::links::{Links, set_sysctl};
use super::wanted::PasstNic;
use super::{Error, facts};

/// Allows passt, which has no privileges, what the guest may do: to listen on any port of the pod, and to ping.
pub(super) async fn prepare(links: &Links, wanted: &PasstNic, owner: u32) -> Result<Nic, Error> {
    let pod = facts::discover(links).await?;
    set_sysctl("ipv4/ip_unprivileged_port_start", "0")?;
    set_sysctl("ipv4/ping_group_range", &format!("{owner}\t{owner}"))?;
    Ok(Nic {
        network: wanted.name.clone(),
        tap: String::new(),
        bridge: String::new(),
        mac: wanted.mac.to_string(),
        mtu: pod.mtu,
        dhcp: None,
        pod_ips: pod.addresses.iter().map(|address| address.ip.to_string()).collect(),
        pod_interface: pod.name,
    })
}
