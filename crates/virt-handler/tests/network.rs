//! Both bindings in real network namespaces: a node, a pod, and a guest behind the pod's bridge.
#![allow(clippy::unwrap_used, reason = "a test's own code")]

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use virt_handler::network::{
    Binding, Dns, Error, Mac, NetworkNamespace, PasstNic, PluginTap, Port, Wanted, WantedNic, inside, prepare,
};

const POD_MAC: &str = "0a:58:0a:58:00:07";
const POD_IP: &str = "10.88.0.7";
const NODE_IP: &str = "10.88.0.1";

fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A named network namespace that goes away with the value.
struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "vh{}-{}-{role}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        ip(&format!("netns add {name}"));
        let this = Self(name);
        this.ip("link set lo up");
        this
    }

    fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.0))
    }

    fn open(&self) -> NetworkNamespace {
        NetworkNamespace::open(Path::new(&format!("/run/netns/{}", self.0))).unwrap()
    }

    /// A server that answers everybody with the address it sees.
    async fn serve(&self, port: u16) {
        let (ready, listening) = std::sync::mpsc::channel();
        let namespace = self.open();
        tokio::spawn(async move {
            inside(&namespace, move || async move {
                let listener = TcpListener::bind(("0.0.0.0", port)).await.unwrap();
                ready.send(()).unwrap();
                // Ends with the test process.
                loop {
                    let (mut stream, peer) = listener.accept().await.unwrap();
                    stream.write_all(peer.ip().to_string().as_bytes()).await.unwrap();
                }
            })
            .await
        });
        tokio::task::spawn_blocking(move || listening.recv().unwrap())
            .await
            .unwrap();
    }

    /// Connects from here; what the server saw, or `None` when there is no way.
    async fn ask(&self, to: &str) -> Option<IpAddr> {
        let to: SocketAddr = to.parse().unwrap();
        inside(&self.open(), move || async move {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(4);
            // The first packets may meet a bridge port that is still coming up.
            while tokio::time::Instant::now() < deadline {
                let connect = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(to)).await;
                if let Ok(Err(error)) = &connect
                    && error.kind() == std::io::ErrorKind::ConnectionRefused
                {
                    return None;
                }
                if let Ok(Ok(mut stream)) = connect {
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).await.unwrap();
                    return Some(answer.parse().unwrap());
                }
            }
            None
        })
        .await
        .unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

struct Site {
    node: Namespace,
    pod: Namespace,
    guest: Namespace,
    state: tempfile::TempDir,
}

impl Site {
    /// A pod as the CNI plugins leave it.
    fn new() -> Self {
        let site = Self {
            node: Namespace::new("node"),
            pod: Namespace::new("pod"),
            guest: Namespace::new("guest"),
            state: tempfile::tempdir().unwrap(),
        };
        site.node.ip(&format!(
            "link add v0 type veth peer name eth0 netns {} address {POD_MAC}",
            site.pod.0
        ));
        site.node.ip(&format!("addr add {NODE_IP}/24 dev v0"));
        site.node.ip("link set v0 up");
        site.pod.ip(&format!("addr add {POD_IP}/24 dev eth0"));
        site.pod.ip("link set eth0 mtu 1400 up");
        site.pod.ip(&format!("route add default via {NODE_IP}"));
        site
    }

    fn record(&self) -> PathBuf {
        self.state.path().join("pod.json")
    }

    /// Puts a second network namespace where QEMU's end of the tap would be.
    fn plug_guest(&self, mac: &str, address: &str, gateway: &str) {
        self.pod.ip(&format!(
            "link add g0 type veth peer name eth0 netns {} address {mac}",
            self.guest.0
        ));
        self.pod.ip("link set g0 master k6t-eth0 up");
        self.guest.ip(&format!("addr add {address} dev eth0"));
        self.guest.ip("link set eth0 mtu 1400 up");
        self.guest.ip(&format!("route add default via {gateway}"));
    }

    async fn prepare(&self, nic: &WantedNic) -> ferrovirt_protocol::launcher::Nic {
        let wanted = Wanted {
            nics: vec![nic.clone()],
            plugin_taps: vec![],
            passt: None,
            hostname: "vm".into(),
            owner: 107,
            dns: Dns {
                servers: vec!["10.96.0.10".parse().unwrap()],
                search: vec!["cluster.local".into()],
            },
        };
        let mut nics = prepare(&self.pod.open(), wanted, self.record()).await.unwrap();
        assert_eq!(nics.len(), 1);
        nics.remove(0)
    }

    /// All that was configured; not what the kernel finds out later, such as carriers and link-local addresses.
    fn picture(&self) -> String {
        let rules = run("ip", &format!("netns exec {} nft --stateless list ruleset", self.pod.0));
        let words = self.pod.ip("-o link");
        // What depends on who has opened a tap, and when.
        let states = ["UP", "DOWN", "LOWERLAYERDOWN", "UNKNOWN", "DORMANT", "NOTPRESENT"];
        let flag = |word: &&str| !word.starts_with('<') && !states.contains(word);
        let links = words.split_whitespace().filter(flag).collect::<Vec<_>>().join(" ");
        format!("{links}{}{}{rules}", self.pod.ip("-o -4 addr"), self.pod.ip("route"))
    }
}

fn nic(binding: Binding, ports: &[u16]) -> WantedNic {
    WantedNic {
        name: "default".into(),
        pod_interface: None,
        place: 0,
        binding,
        mac: "52:54:00:01:02:03".parse::<Mac>().unwrap(),
        chosen_mac: None,
        ports: ports
            .iter()
            .map(|&port| Port {
                port,
                last: port,
                udp: false,
            })
            .collect(),
        cidr: None,
        cidr_v6: None,
        many_queues: false,
        seed: "ns/vm/default".into(),
    }
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

/// Shows `spec.networks[].multus.networkName`.
#[tokio::test]
async fn a_second_network_has_a_bridge_of_its_own() {
    let site = Site::new();
    let device = "pod0123456789a";
    let address = "0a:58:0a:63:00:07";
    site.node.ip(&format!(
        "link add v1 type veth peer name {device} netns {} address {address}",
        site.pod.0
    ));
    site.pod.ip(&format!("link set {device} mtu 1380 up"));
    let nics = vec![
        nic(Binding::Masquerade, &[]),
        WantedNic {
            name: "red".into(),
            pod_interface: Some(device.into()),
            place: 1,
            seed: "ns/vm/red".into(),
            ..nic(Binding::Bridge, &[])
        },
    ];
    for _ in 0..2 {
        let wanted = Wanted {
            nics: nics.clone(),
            plugin_taps: vec![],
            passt: None,
            hostname: "vm".into(),
            owner: 107,
            dns: Dns::default(),
        };
        let prepared = prepare(&site.pod.open(), wanted, site.record()).await.unwrap();
        assert_eq!((prepared[0].tap.as_str(), prepared[0].mtu), ("tap0", 1400));
        let red = &prepared[1];
        assert_eq!(
            (red.tap.as_str(), red.bridge.as_str(), red.mtu),
            ("tap0123456789a", "k6t-0123456789a", 1380)
        );
        // No plugin gave an address, so the guest is given none; what arrives for it is for its NIC.
        assert_eq!((red.mac.as_str(), red.dhcp.as_ref()), (address, None));
    }
    let bridged = site.pod.ip("-o link show master k6t-0123456789a");
    assert!(
        bridged.contains("tap0123456789a") && bridged.contains(device),
        "{bridged}"
    );
}

/// Shows `spec.domain.devices.interfaces[].passtBinding`.
#[tokio::test]
async fn passt_may_listen_on_all_ports_and_nothing_is_made_for_it() {
    let site = Site::new();
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let before = site.pod.ip("-o link");
    for _ in 0..2 {
        let wanted = Wanted {
            nics: vec![],
            plugin_taps: vec![],
            passt: Some(PasstNic {
                name: "default".into(),
                mac,
            }),
            hostname: "vm".into(),
            owner: 107,
            dns: Dns::default(),
        };
        let prepared = prepare(&site.pod.open(), wanted, site.record()).await.unwrap();
        let [nic] = prepared.as_slice() else {
            panic!("{prepared:?}")
        };
        assert_eq!((nic.mac.as_str(), nic.mtu), ("02:00:00:00:00:09", 1400));
        assert!(
            nic.tap.is_empty() && nic.dhcp.is_none() && !nic.pod_ips.is_empty(),
            "{nic:?}"
        );
    }
    assert_eq!(site.pod.ip("-o link"), before);
    let first = run(
        "ip",
        &format!(
            "netns exec {} cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
            site.pod.0
        ),
    );
    assert_eq!(first.trim(), "0");
}

/// Shows `spec.domain.devices.interfaces[].binding.name`.
#[tokio::test]
async fn the_taps_of_plugins_are_found_and_left_alone() {
    let site = Site::new();
    let (first, second) = ("pod0123456789a", "podfedcba98765");
    let own = "0a:58:0a:63:00:07";
    site.pod.ip("tuntap add tap0 mode tap");
    site.pod.ip("link set tap0 mtu 1300");
    site.pod.ip("tuntap add tap0123456789a mode tap");
    // The pod's interface is itself what the guest attaches to.
    site.pod.ip(&format!("tuntap add {second} mode tap"));
    site.pod.ip(&format!("link set {second} address {own}"));
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let tap = |name: &str, pod_interface: Option<&str>| PluginTap {
        name: name.into(),
        pod_interface: pod_interface.map(str::to_owned),
        mac,
        chosen_mac: None,
    };
    let wanted = |plugin_taps| Wanted {
        nics: vec![],
        plugin_taps,
        passt: None,
        hostname: "vm".into(),
        owner: 107,
        dns: Dns::default(),
    };
    let taps = vec![tap("a", None), tap("b", Some(first)), tap("c", Some(second))];
    let before = site.pod.ip("-o link");
    let found = prepare(&site.pod.open(), wanted(taps), site.record()).await.unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|nic| (nic.network.as_str(), nic.tap.as_str(), nic.mac.clone(), nic.mtu))
        .collect();
    assert_eq!(
        found,
        [
            ("a", "tap0", mac.to_string(), 1300),
            ("b", "tap0123456789a", mac.to_string(), 1500),
            ("c", second, own.to_owned(), 1500),
        ]
    );
    assert_eq!(site.pod.ip("-o link"), before);
    let error = prepare(&site.pod.open(), wanted(vec![tap("d", Some("pod1"))]), site.record()).await;
    assert!(matches!(error, Err(Error::NoPluginTap { .. })), "{error:?}");
}

/// Shows `spec.domain.devices.networkInterfaceMultiqueue`.
#[tokio::test]
async fn taps_have_the_queues_that_are_wanted() {
    for many_queues in [false, true] {
        let site = Site::new();
        let nic = WantedNic {
            many_queues,
            ..nic(Binding::Bridge, &[])
        };
        site.prepare(&nic).await;
        // Again, as after a restart: what is there is found.
        site.prepare(&nic).await;
        let tap = site.pod.ip("-d link show tap0");
        assert_eq!(tap.contains("multi_queue numqueues"), many_queues, "{tap}");
    }
}

#[tokio::test]
async fn masquerade_both_ways() {
    let site = Site::new();
    let nic = nic(Binding::Masquerade, &[]);
    let prepared = site.prepare(&nic).await;
    assert_eq!(
        (prepared.tap.as_str(), prepared.bridge.as_str(), prepared.mtu),
        ("tap0", "k6t-eth0", 1400)
    );
    assert_eq!(
        (prepared.mac.as_str(), prepared.pod_interface.as_str()),
        ("52:54:00:01:02:03", "eth0")
    );
    assert_eq!(prepared.pod_ips, [POD_IP]);
    let dhcp = prepared.dhcp.clone().unwrap();
    assert_eq!(
        (dhcp.client_ip.as_str(), dhcp.prefix, dhcp.router.as_str()),
        ("10.0.2.2", 24, "10.0.2.1")
    );
    assert_eq!(
        (dhcp.dns, dhcp.search, dhcp.hostname),
        (vec!["10.96.0.10".into()], vec!["cluster.local".into()], "vm".into())
    );
    let tap = site.pod.ip("-d link show tap0");
    for expected in ["persist on", "vnet_hdr on", "master k6t-eth0", "mtu 1400"] {
        assert!(tap.contains(expected), "{expected} in {tap}");
    }
    for file in ["owner", "group"] {
        let id = run(
            "ip",
            &format!("netns exec {} cat /sys/class/net/tap0/{file}", site.pod.0),
        );
        assert_eq!(id.trim(), "107", "{file}");
    }
    assert!(site.pod.ip("link show k6t-eth0").contains("02:00:00:00:00:00"));

    site.plug_guest("52:54:00:01:02:03", "10.0.2.2/24", "10.0.2.1");
    site.guest.serve(8080).await;
    site.node.serve(9000).await;
    assert_eq!(site.node.ask("10.88.0.7:8080").await, address(NODE_IP), "node to guest");
    assert_eq!(site.guest.ask("10.88.0.1:9000").await, address(POD_IP), "guest to node");
    assert_eq!(
        site.pod.ask("127.0.0.1:8080").await,
        address("10.0.2.1"),
        "pod to its loopback"
    );
    assert_eq!(
        site.pod.ask("10.88.0.7:8080").await,
        address(POD_IP),
        "pod to its own address"
    );
    assert_eq!(
        site.node.ask("10.88.0.7:49152").await,
        None,
        "migration ports stay the pod's"
    );

    let before = site.picture();
    assert_eq!(site.prepare(&nic).await, prepared);
    assert_eq!(site.picture(), before, "the second time nothing changes");
}

#[tokio::test]
async fn masquerade_forwards_only_listed_ports() {
    let site = Site::new();
    let mut nic = nic(Binding::Masquerade, &[8080]);
    nic.cidr = Some("192.168.50.0/24".into());
    let dhcp = site.prepare(&nic).await.dhcp.unwrap();
    assert_eq!(
        (dhcp.client_ip.as_str(), dhcp.server_ip.as_str()),
        ("192.168.50.2", "192.168.50.1")
    );
    site.plug_guest("52:54:00:01:02:03", "192.168.50.2/24", "192.168.50.1");
    site.guest.serve(8080).await;
    site.guest.serve(8081).await;
    assert_eq!(site.node.ask("10.88.0.7:8080").await, address(NODE_IP));
    assert_eq!(site.node.ask("10.88.0.7:8081").await, None);
    assert_eq!(site.pod.ask("127.0.0.1:8080").await, address("192.168.50.1"));
    assert_eq!(site.pod.ask("127.0.0.1:8081").await, None);
}

#[tokio::test]
async fn a_guest_cannot_reach_the_loopback_of_its_pod() {
    let site = Site::new();
    site.prepare(&nic(Binding::Masquerade, &[8080])).await;
    site.plug_guest("52:54:00:01:02:03", "10.0.2.2/24", "10.0.2.1");
    site.pod.serve(7000).await;
    // As a hostile guest would: its own loopback moved away, 127.0.0.1 routed to the gateway.
    site.guest.ip("link set lo down");
    run(
        "ip",
        &format!(
            "netns exec {} sysctl -qw net.ipv4.conf.all.route_localnet=1",
            site.guest.0
        ),
    );
    site.guest.ip("route flush table local");
    site.guest.ip("route add local 10.0.2.2 dev eth0 table local");
    site.guest.ip("route add 127.0.0.1/32 via 10.0.2.1");
    assert_eq!(
        site.guest.ask("10.0.2.1:7000").await,
        address("10.0.2.2"),
        "the gateway itself answers"
    );
    assert_eq!(site.guest.ask("127.0.0.1:7000").await, None);
    // It was the rule that kept it out.
    run(
        "ip",
        &format!("netns exec {} nft flush chain ip nat martians", site.pod.0),
    );
    assert_eq!(site.guest.ask("127.0.0.1:7000").await, address("10.0.2.2"));
}

#[tokio::test]
async fn bridge_gives_the_guest_the_address_of_the_pod() {
    let site = Site::new();
    let nic = nic(Binding::Bridge, &[]);
    let prepared = site.prepare(&nic).await;
    assert_eq!(prepared.mac, POD_MAC);
    assert_eq!(prepared.pod_ips, [POD_IP]);
    let dhcp = prepared.dhcp.clone().unwrap();
    assert_eq!(
        (dhcp.client_ip.as_str(), dhcp.prefix, dhcp.router.as_str()),
        (POD_IP, 24, NODE_IP)
    );
    assert_eq!(dhcp.server_ip, "169.254.75.10");
    assert!(!site.pod.ip("-4 addr show eth0").contains(POD_IP));
    assert!(!site.pod.ip("link show eth0").contains(POD_MAC));

    site.plug_guest(POD_MAC, "10.88.0.7/24", NODE_IP);
    site.guest.serve(8080).await;
    site.node.serve(9000).await;
    assert_eq!(site.node.ask("10.88.0.7:8080").await, address(NODE_IP), "node to guest");
    assert_eq!(site.guest.ask("10.88.0.1:9000").await, address(POD_IP), "guest to node");

    let before = site.picture();
    assert_eq!(
        site.prepare(&nic).await,
        prepared,
        "found again although the pod has lost its address"
    );
    assert_eq!(site.picture(), before);

    // Killed before the end: the next try completes it from the record.
    let record = std::fs::read_to_string(site.record()).unwrap();
    std::fs::write(site.record(), record.replace("\"done\":true", "\"done\":false")).unwrap();
    assert_eq!(site.prepare(&nic).await, prepared);
    assert_eq!(site.picture(), before);
    assert_eq!(site.node.ask("10.88.0.7:8080").await, address(NODE_IP));
}

#[tokio::test]
async fn a_pod_without_an_interface_is_named() {
    let pod = Namespace::new("bare");
    let state = tempfile::tempdir().unwrap();
    let wanted = Wanted {
        nics: vec![nic(Binding::Masquerade, &[])],
        plugin_taps: vec![],
        passt: None,
        hostname: "vm".into(),
        owner: 107,
        dns: Dns::default(),
    };
    let error = prepare(&pod.open(), wanted, state.path().join("pod.json"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no network interface eth0"), "{error}");
}
