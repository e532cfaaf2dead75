//! What a DHCP packet is answered with. Pure.

use std::net::{AddrParseError, Ipv4Addr};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Decodable, Decoder, Encodable, Name};
use ferrovirt_core::machine::DhcpOptions;
use ferrovirt_protocol::launcher::Nic;

/// As good as forever for a guest, and what KubeVirt's guests see: 999 days.
const LEASE_SECONDS: u32 = 999 * 24 * 3600;

/// What is wrong with a description.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// An IPv4 address.
    #[error("{what} {value:?} is not an IPv4 address")]
    Address {
        /// Field.
        what: &'static str,
        /// Its value.
        value: String,
        /// Why.
        #[source]
        source: AddrParseError,
    },
    /// A MAC address.
    #[error("{0:?} is not a MAC address")]
    Mac(String),
    /// A prefix length.
    #[error("{0} is not a prefix length")]
    Prefix(u32),
    /// No DHCP.
    #[error("nothing is to be served")]
    Nothing,
}

/// The one lease of a NIC.
pub struct Lease {
    mac: [u8; 6],
    client: Ipv4Addr,
    server: Ipv4Addr,
    next: Option<Ipv4Addr>,
    options: Vec<DhcpOption>,
}

impl Lease {
    /// Reads the description; every field is checked here, none later.
    pub fn new(nic: &Nic, more: &DhcpOptions) -> Result<Self, LeaseError> {
        let dhcp = nic.dhcp.as_ref().ok_or(LeaseError::Nothing)?;
        let client = address("client_ip", &dhcp.client_ip)?;
        let mask = netmask(dhcp.prefix)?;
        let mut options = vec![DhcpOption::SubnetMask(mask), DhcpOption::BroadcastAddr(client | !mask)];
        if !dhcp.router.is_empty() {
            options.push(DhcpOption::Router(vec![address("router", &dhcp.router)?]));
        }
        // IPv6 name servers cannot be told by DHCPv4.
        let dns: Vec<Ipv4Addr> = dhcp.dns.iter().filter_map(|server| server.parse().ok()).collect();
        if !dns.is_empty() {
            options.push(DhcpOption::DomainNameServer(dns));
        }
        if !dhcp.hostname.is_empty() {
            options.push(DhcpOption::Hostname(dhcp.hostname.clone()));
        }
        let search: Vec<Name> = dhcp
            .search
            .iter()
            .filter_map(|name| Name::from_ascii(name).ok())
            .collect();
        if !search.is_empty() {
            options.push(DhcpOption::DomainName(dhcp.search[0].clone()));
            options.push(DhcpOption::DomainSearch(search));
        }
        if let Ok(mtu) = u16::try_from(nic.mtu)
            && mtu > 0
        {
            options.push(DhcpOption::InterfaceMtu(mtu));
        }
        if !dhcp.routes.is_empty() {
            let mut routes = Vec::with_capacity(dhcp.routes.len() + 1);
            for route in &dhcp.routes {
                netmask(route.prefix)?;
                let destination = address("route destination", &route.destination)?;
                routes.push((destination, route.prefix, address("route gateway", &route.gateway)?));
            }
            // Clients that know this option ignore the router option (RFC 3442).
            if !dhcp.router.is_empty() && !routes.iter().any(|(_, prefix, _)| *prefix == 0) {
                routes.push((Ipv4Addr::UNSPECIFIED, 0, address("router", &dhcp.router)?));
            }
            options.push(classless_routes(&routes));
        }
        options.extend(asked_for(more));
        Ok(Self {
            mac: mac(&nic.mac)?,
            // Firmware looks for the boot file there.
            next: more.tftp_server.as_deref().and_then(|server| server.parse().ok()),
            client,
            server: address("server_ip", &dhcp.server_ip)?,
            options,
        })
    }

    /// The packet to broadcast, or `None` when there is nothing to say.
    pub fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        // Ethernet only; `dhcproto` panics on hardware addresses longer than their field.
        if packet.get(1..3) != Some(&[1, 6]) {
            return None;
        }
        let request = Message::decode(&mut Decoder::new(packet)).ok()?;
        if request.opcode() != Opcode::BootRequest || request.chaddr() != self.mac {
            return None;
        }
        let kind = match request.opts().msg_type()? {
            MessageType::Discover => MessageType::Offer,
            MessageType::Request if !self.is_for_us(&request) => return None,
            MessageType::Request if self.asks_for_its_address(&request) => MessageType::Ack,
            MessageType::Request => MessageType::Nak,
            MessageType::Inform => MessageType::Ack,
            _ => return None,
        };
        self.reply(&request, kind).to_vec().ok()
    }

    fn is_for_us(&self, request: &Message) -> bool {
        match request.opts().get(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(server)) => *server == self.server,
            _ => true,
        }
    }

    fn asks_for_its_address(&self, request: &Message) -> bool {
        let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
            Some(DhcpOption::RequestedIpAddress(address)) => *address,
            _ => request.ciaddr(),
        };
        wanted == self.client || wanted.is_unspecified()
    }

    fn reply(&self, request: &Message, kind: MessageType) -> Message {
        let mut reply = Message::default();
        reply.set_opcode(Opcode::BootReply);
        reply.set_htype(request.htype());
        reply.set_xid(request.xid());
        reply.set_flags(Flags::default().set_broadcast());
        reply.set_giaddr(request.giaddr());
        reply.set_chaddr(&self.mac);
        reply.set_siaddr(self.next.unwrap_or(self.server));
        let inform = request.opts().msg_type() == Some(MessageType::Inform);
        let options = reply.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(self.server));
        if kind == MessageType::Nak {
            return reply;
        }
        for option in &self.options {
            options.insert(option.clone());
        }
        if !inform {
            options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
            reply.set_yiaddr(self.client);
        }
        reply.set_ciaddr(request.ciaddr());
        reply
    }
}

/// What the VMI wants its guest to be told.
fn asked_for(options: &DhcpOptions) -> Vec<DhcpOption> {
    let DhcpOptions {
        boot_file,
        tftp_server,
        ntp_servers,
        private,
    } = options;
    let mut all = Vec::new();
    all.extend(
        boot_file
            .iter()
            .map(|file| DhcpOption::BootfileName(file.clone().into_bytes())),
    );
    all.extend(
        tftp_server
            .iter()
            .map(|server| DhcpOption::TFTPServerName(server.clone().into_bytes())),
    );
    if !ntp_servers.is_empty() {
        all.push(DhcpOption::NtpServers(ntp_servers.clone()));
    }
    let private = private.iter();
    all.extend(private.map(|(number, value)| {
        let option = UnknownOption::new(OptionCode::from(*number), value.clone().into_bytes());
        DhcpOption::Unknown(option)
    }));
    all
}

fn classless_routes(routes: &[(Ipv4Addr, u32, Ipv4Addr)]) -> DhcpOption {
    let mut data = Vec::new();
    for (destination, prefix, gateway) in routes {
        data.push(u8::try_from(*prefix).unwrap_or(32));
        let significant = usize::try_from(prefix.div_ceil(8)).unwrap_or(4);
        data.extend(&destination.octets()[..significant]);
        data.extend(gateway.octets());
    }
    DhcpOption::Unknown(UnknownOption::new(OptionCode::ClasslessStaticRoute, data))
}

fn address(what: &'static str, value: &str) -> Result<Ipv4Addr, LeaseError> {
    value.parse().map_err(|source| LeaseError::Address {
        what,
        value: value.to_owned(),
        source,
    })
}

fn netmask(prefix: u32) -> Result<Ipv4Addr, LeaseError> {
    match prefix {
        0 => Ok(Ipv4Addr::UNSPECIFIED),
        1..=32 => Ok(Ipv4Addr::from(u32::MAX << (32 - prefix))),
        _ => Err(LeaseError::Prefix(prefix)),
    }
}

fn mac(text: &str) -> Result<[u8; 6], LeaseError> {
    let invalid = || LeaseError::Mac(text.to_owned());
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use ferrovirt_protocol::launcher::{Dhcp, Route};

    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn nic() -> Nic {
        Nic {
            network: "default".into(),
            bridge: "k6t-eth0".into(),
            mac: "52:54:00:12:34:56".into(),
            mtu: 1450,
            dhcp: Some(Dhcp {
                client_ip: "10.0.2.2".into(),
                prefix: 24,
                server_ip: "10.0.2.1".into(),
                router: "10.0.2.1".into(),
                dns: vec!["10.96.0.10".into(), "fd00::10".into()],
                search: vec!["default.svc.cluster.local".into(), "svc".into()],
                hostname: "vm".into(),
                routes: vec![Route {
                    destination: "10.1.0.0".into(),
                    prefix: 16,
                    gateway: "10.0.2.9".into(),
                }],
            }),
            ..Nic::default()
        }
    }

    fn ask(kind: MessageType, mac: &[u8], requested: Option<&str>, server: Option<&str>) -> Option<Message> {
        let mut request = Message::default();
        request.set_opcode(Opcode::BootRequest).set_chaddr(mac).set_xid(7);
        request.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(address) = requested {
            request
                .opts_mut()
                .insert(DhcpOption::RequestedIpAddress(address.parse().unwrap()));
        }
        if let Some(address) = server {
            request
                .opts_mut()
                .insert(DhcpOption::ServerIdentifier(address.parse().unwrap()));
        }
        let answer = Lease::new(&nic(), &DhcpOptions::default())
            .unwrap()
            .answer(&request.to_vec().unwrap())?;
        Some(Message::decode(&mut Decoder::new(&answer)).unwrap())
    }

    #[test]
    fn answers_by_kind() {
        use MessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
        let cases = [
            (Discover, None, None, Some(Offer)),
            (Request, Some("10.0.2.2"), Some("10.0.2.1"), Some(Ack)),
            (Request, Some("10.0.2.2"), None, Some(Ack)),
            (Request, None, None, Some(Ack)),
            (Request, Some("10.0.2.3"), Some("10.0.2.1"), Some(Nak)),
            (Request, Some("10.0.2.2"), Some("10.0.2.7"), None),
            (Inform, None, None, Some(Ack)),
            (Release, None, None, None),
            (Decline, None, None, None),
        ];
        for (kind, requested, server, expected) in cases {
            let answer = ask(kind, &MAC, requested, server);
            assert_eq!(
                answer.and_then(|message| message.opts().msg_type()),
                expected,
                "{kind:?} {requested:?}"
            );
        }
        assert!(
            ask(Discover, &[2, 0, 0, 0, 0, 1], None, None).is_none(),
            "another client"
        );
    }

    #[test]
    fn the_offer_says_all() {
        let offer = ask(MessageType::Discover, &MAC, None, None).unwrap();
        assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(offer.xid(), 7);
        let option = |code| offer.opts().get(code).cloned();
        assert_eq!(
            option(OptionCode::SubnetMask),
            Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)))
        );
        assert_eq!(
            option(OptionCode::Router),
            Some(DhcpOption::Router(vec![Ipv4Addr::new(10, 0, 2, 1)]))
        );
        let dns = vec![Ipv4Addr::new(10, 96, 0, 10)];
        assert_eq!(
            option(OptionCode::DomainNameServer),
            Some(DhcpOption::DomainNameServer(dns))
        );
        assert_eq!(option(OptionCode::Hostname), Some(DhcpOption::Hostname("vm".into())));
        assert_eq!(option(OptionCode::InterfaceMtu), Some(DhcpOption::InterfaceMtu(1450)));
        assert_eq!(
            option(OptionCode::AddressLeaseTime),
            Some(DhcpOption::AddressLeaseTime(LEASE_SECONDS))
        );
        let Some(DhcpOption::DomainSearch(search)) = option(OptionCode::DomainSearch) else {
            panic!("no search list")
        };
        assert_eq!(search[0].to_string(), "default.svc.cluster.local.");
        assert_eq!(search.len(), 2);
        let Some(DhcpOption::ClasslessStaticRoute(routes)) = option(OptionCode::ClasslessStaticRoute) else {
            panic!("no routes")
        };
        let routes: Vec<String> = routes.iter().map(|(net, gateway)| format!("{net} {gateway}")).collect();
        assert_eq!(routes, ["10.1.0.0/16 10.0.2.9", "0.0.0.0/0 10.0.2.1"]);
    }

    /// Shows `spec.domain.devices.interfaces[].dhcpOptions.bootFileName`,
    /// `spec.domain.devices.interfaces[].dhcpOptions.tftpServerName`,
    /// `spec.domain.devices.interfaces[].dhcpOptions.ntpServers`,
    /// `spec.domain.devices.interfaces[].dhcpOptions.privateOptions[].option`,
    /// `spec.domain.devices.interfaces[].dhcpOptions.privateOptions[].value`.
    #[test]
    fn the_offer_says_what_the_vmi_wants() {
        let options = DhcpOptions {
            boot_file: Some("boot/pxelinux.0".into()),
            tftp_server: Some("10.9.9.9".into()),
            ntp_servers: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)],
            private: vec![(240, "private".into())],
        };
        let mut request = Message::default();
        request.set_opcode(Opcode::BootRequest).set_chaddr(&MAC);
        request
            .opts_mut()
            .insert(DhcpOption::MessageType(MessageType::Discover));
        let lease = Lease::new(&nic(), &options).unwrap();
        let answer = lease.answer(&request.to_vec().unwrap()).unwrap();
        let offer = Message::decode(&mut Decoder::new(&answer)).unwrap();
        assert_eq!(offer.siaddr(), Ipv4Addr::new(10, 9, 9, 9));
        let option = |code: u8| offer.opts().get(OptionCode::from(code)).cloned();
        assert_eq!(option(67), Some(DhcpOption::BootfileName(b"boot/pxelinux.0".to_vec())));
        assert_eq!(option(66), Some(DhcpOption::TFTPServerName(b"10.9.9.9".to_vec())));
        assert_eq!(option(42), Some(DhcpOption::NtpServers(options.ntp_servers.clone())));
        let private = UnknownOption::new(OptionCode::from(240), b"private".to_vec());
        assert_eq!(option(240), Some(DhcpOption::Unknown(private)));
    }

    #[test]
    fn wrong_descriptions_are_refused() {
        let refuse = |edit: fn(&mut Nic)| {
            let mut nic = nic();
            edit(&mut nic);
            assert!(Lease::new(&nic, &DhcpOptions::default()).is_err());
        };
        refuse(|nic| nic.mac = "52:54".into());
        refuse(|nic| nic.dhcp = None);
        refuse(|nic| nic.dhcp.as_mut().unwrap().prefix = 33);
        refuse(|nic| nic.dhcp.as_mut().unwrap().client_ip = "fd00::1".into());
        refuse(|nic| nic.dhcp.as_mut().unwrap().routes[0].gateway = String::new());
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_ignored(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = Lease::new(&nic(), &DhcpOptions::default()).unwrap().answer(&bytes);
        }
    }
}
