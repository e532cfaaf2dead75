//! A guest that really boots, from its image, with cloud-init, DHCP and a guest agent, in a network namespace.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ferrovirt_protocol::launcher::launcher_client::LauncherClient;
use ferrovirt_protocol::launcher::{
    ActRequest, Action, AgentExecRequest, AgentPingRequest, Dhcp, GuestInfoRequest, Lifecycle, Nic, ScreenshotRequest,
};
use serde_json::{Value, json};
use support::{PATIENCE, Pod, Watcher, act};
use tonic::Code;
use tonic::transport::Channel;

const MAC: &str = "52:54:00:aa:bb:cc";

/// What virt-handler prepares in the pod's network namespace, and the pod runner in its /dev.
const NETWORK: &str = "mknod $0 c 10 200 && chmod 666 $0 && mount --bind $0 /dev/net/tun && \
    ip link add k6t-eth0 type bridge && ip addr add 10.0.2.1/24 dev k6t-eth0 && \
    ip tuntap add dev tap0 mode tap user 107 && ip link set tap0 master k6t-eth0 && \
    ip link set tap0 up && ip link set k6t-eth0 up && exec \"$@\"";

/// A guest agent that answers what it must, refuses users and file systems, and does not react to a shutdown. Its port
/// reads as ended while the host has not connected to it.
const AGENT: &str = r#"#!/bin/sh
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && exec 3<>"/dev/${port##*/}"
done
answer() { echo "$1" >&3; }
fs=thawed
(
    while :; do
        while read -r line <&3; do
            case $line in
                *guest-sync*) answer "{\"return\": $(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')}" ;;
                *guest-info*) answer '{"return": {"version": "9.9", "supported_commands": [{"name": "guest-info", "enabled": true}]}}' ;;
                *guest-get-osinfo*) answer '{"return": {"id": "tiny", "name": "Tiny", "kernel-release": "6.1"}}' ;;
                *guest-get-host-name*) answer "{\"return\": {\"host-name\": \"$(hostname)\"}}" ;;
                *guest-get-timezone*) answer '{"return": {"zone": "UTC", "offset": 0}}' ;;
                *guest-network-get-interfaces*) answer '{"return": [{"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}]}, {"name": "eth0", "hardware-address": "52:54:00:aa:bb:cc", "ip-addresses": [{"ip-address": "10.0.2.2"}]}]}' ;;
                *guest-ping*) answer '{"return": {}}' ;;
                *fsfreeze-status*) answer "{\"return\": \"$fs\"}" ;;
                *fsfreeze-freeze*) fs=frozen; answer '{"return": 1}' ;;
                *fsfreeze-thaw*) fs=thawed; answer '{"return": 1}' ;;
                *guest-exec-status*) case $line in
                    *pid*8*) answer '{"return": {"exited": false}}' ;;
                    *) answer '{"return": {"exited": true, "exitcode": 4, "out-data": "aGk=", "err-data": "b2gh"}}' ;;
                    esac ;;
                *hang*guest-exec*) answer '{"return": {"pid": 8}}' ;;
                *guest-exec*) echo "the agent runs $line" >/dev/ttyS0; answer '{"return": {"pid": 7}}' ;;
                *guest-shutdown*) echo "the agent was asked to shut down" >/dev/ttyS0 ;;
                *) answer '{"error": {"class": "CommandNotFound", "desc": "not here"}}' ;;
            esac
        done
        sleep 1
    done
) &
"#;

/// A guest agent that lies, exaggerates, is silent, hangs up, behaves, and then never stops talking; each time that it
/// is asked who it is, it goes on to the next.
const HOSTILE: &str = r#"#!/bin/sh
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && device=/dev/${port##*/}
done
answer() { echo "$1" >&3; }
filler() { head -c "$1" /dev/zero | tr '\0' x; }
(
    turn=0
    while exec 3<>"$device"; do
        # The port reads as ended while the host has not connected to it.
        hung_up=
        until [ "$hung_up" ]; do
        while read -r line <&3; do
            case $line in
                *guest-sync*) answer "{\"return\": $(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')}" ;;
                *guest-info*) turn=$((turn + 1)); echo "turn $turn" >/dev/ttyS0; case $turn in
                    1) answer '{"return": {"version": 7, "supported_commands": "all"}}' ;;
                    2) answer "{\"return\": {\"version\": \"$(filler 200000)\", \"supported_commands\": []}}" ;;
                    3) sleep 7 ;;
                    4) hung_up=1; break ;;
                    [5-8]) answer '{"return": {"version": "9.9", "supported_commands": []}}' ;;
                    *) filler 104857600 >&3; echo "all was said" >/dev/ttyS0 ;;
                    esac ;;
                *) answer '{"error": {"class": "CommandNotFound", "desc": "not here"}}' ;;
            esac
        done
        sleep 1
        done
        exec 3>&-
        sleep 1
    done
) &
"#;

/// Unpacks the tiny guest's disk into `dir`; its archive is built once per machine.
fn tiny_image(dir: &Path) {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/guests/build");
    let built = Command::new(build).arg("tiny").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let archive = String::from_utf8(built.stdout).unwrap().trim().to_owned();
    let oci = tempfile::tempdir().unwrap();
    assert!(
        Command::new("tar")
            .args(["-xf", &archive, "-C"])
            .arg(oci.path())
            .status()
            .unwrap()
            .success()
    );
    let blob = |digest: &Value| -> PathBuf {
        oci.path()
            .join("blobs")
            .join(digest.as_str().unwrap().replace(':', "/"))
    };
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let index = read(oci.path().join("index.json"));
    let manifest = read(blob(&index["manifests"][0]["digest"]));
    fs::create_dir_all(dir).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let unpacked = Command::new("tar")
            .arg("-xf")
            .arg(blob(&layer["digest"]))
            .arg("-C")
            .arg(dir)
            .status();
        assert!(unpacked.unwrap().success());
    }
}

fn nic() -> Nic {
    Nic {
        network: "default".into(),
        tap: "tap0".into(),
        bridge: "k6t-eth0".into(),
        mac: MAC.into(),
        mtu: 1400,
        dhcp: Some(Dhcp {
            client_ip: "10.0.2.2".into(),
            prefix: 24,
            server_ip: "10.0.2.1".into(),
            router: "10.0.2.1".into(),
            ..Dhcp::default()
        }),
        ..Nic::default()
    }
}

fn with_hostile_agent(vmi: &mut Value) {
    with_disks(vmi);
    vmi["spec"]["volumes"][2]["cloudInitNoCloud"]["userData"] = HOSTILE.into();
}

fn with_disks(vmi: &mut Value) {
    vmi["spec"]["domain"]["memory"]["guest"] = json!("128Mi");
    vmi["spec"]["domain"]["devices"] = json!({
        "disks": [
            { "name": "root", "disk": { "bus": "virtio" } },
            { "name": "scratch", "disk": { "bus": "virtio" } },
            { "name": "seed", "disk": { "bus": "virtio" } },
        ],
        "interfaces": [{ "name": "default", "masquerade": {} }],
    });
    vmi["spec"]["networks"] = json!([{ "name": "default", "pod": {} }]);
    vmi["spec"]["volumes"] = json!([
        { "name": "root", "containerDisk": { "image": "tiny" } },
        { "name": "scratch", "emptyDisk": { "capacity": "64Mi" } },
        { "name": "seed", "cloudInitNoCloud": { "userData": AGENT } },
    ]);
}

async fn console(pod: &Pod, text: &str) {
    let log = pod
        .path("var/run/kubevirt-private")
        .join(support::UID)
        .join("virt-serial0-log");
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        let said = fs::read(&log).unwrap_or_default();
        if String::from_utf8_lossy(&said).contains(text) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the console does not say {text:?}: {}",
            String::from_utf8_lossy(&said)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn command(program: &str) -> AgentExecRequest {
    AgentExecRequest {
        command: program.into(),
        args: vec!["a b".into()],
        timeout_seconds: PATIENCE.as_secs().try_into().unwrap(),
    }
}

/// Asks the agent what virt-probe asks.
async fn answers_probes(client: &mut LauncherClient<Channel>, watcher: &mut Watcher) {
    let ping = AgentPingRequest { timeout_seconds: 20 };
    client.agent_ping(ping).await.unwrap();
    let ended = client.agent_exec(command("greet")).await.unwrap().into_inner();
    assert_eq!(
        (ended.exit_code, ended.stdout, ended.stderr),
        (4, b"hi".to_vec(), b"oh!".to_vec())
    );

    // A command that never ends is given up, and others are not kept waiting.
    let hang = AgentExecRequest {
        timeout_seconds: 1,
        ..command("hang")
    };
    let error = client.agent_exec(hang.clone()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::DeadlineExceeded, "the guest did not answer within 1s")
    );
    // It counts until it ends, so that a guest is not filled with commands that hang.
    let more = (0..7).map(|_| {
        let (mut client, hang) = (client.clone(), hang.clone());
        async move { client.agent_exec(hang).await.unwrap_err().code() }
    });
    let more = futures::future::join_all(more).await;
    assert!(more.iter().all(|code| *code == Code::DeadlineExceeded), "{more:?}");
    let error = client.agent_exec(command("greet")).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    client.agent_ping(ping).await.unwrap();

    act(client, Action::Pause, 0).await.unwrap();
    watcher.until(Lifecycle::Paused).await;
    client.agent_ping(ping).await.expect("a paused guest is well");
    let error = client.agent_exec(command("greet")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::FailedPrecondition, "the guest is paused")
    );
    act(client, Action::Unpause, 0).await.unwrap();
    watcher.until(Lifecycle::Running).await;
}

/// Waits until the published state of the file systems is this.
async fn file_systems(watcher: &mut Watcher, wanted: &str) {
    loop {
        let state = watcher.next().await;
        let info: Value = serde_json::from_slice(&state.guest_info).unwrap_or_default();
        if info["fsFreezeStatus"] == wanted {
            assert_eq!(info["hostname"], "vm", "the rest is still known");
            return;
        }
    }
}

/// By request, and after their time.
async fn freezes_and_thaws(client: &mut LauncherClient<Channel>, watcher: &mut Watcher) {
    act(client, Action::Freeze, 0).await.unwrap();
    file_systems(watcher, "frozen").await;
    act(client, Action::Freeze, 0).await.expect("they stand still already");
    act(client, Action::Unfreeze, 0).await.unwrap();
    file_systems(watcher, "thawed").await;
    let freeze = ActRequest {
        action: Action::Freeze.into(),
        thaw_seconds: 1,
        ..ActRequest::default()
    };
    client.act(freeze).await.unwrap();
    file_systems(watcher, "frozen").await;
    file_systems(watcher, "thawed").await;
}

/// A PNG of the text screen's size, also after the pointer has moved.
async fn shows_its_screen(client: &mut LauncherClient<Channel>) {
    for move_cursor in [false, true] {
        let request = ScreenshotRequest { move_cursor };
        let mut parts = client.screenshot(request).await.unwrap().into_inner();
        let mut png = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            png.extend(part.png);
        }
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "{:?}", png.get(..16));
        let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        assert!(side(16) >= 640 && side(20) >= 350, "{}x{}", side(16), side(20));
        println!("a screen of {}x{}: {} bytes", side(16), side(20), png.len());
    }
}

#[tokio::test]
async fn boots_gets_its_address_talks_through_its_agent_and_powers_off() {
    let mut pod = Pod::start_as(with_disks, |command, root| {
        command
            .args(["unshare", "--net", "sh", "-c", NETWORK])
            .arg(root.join("tun"));
    });
    let volume = pod.path("var/run/kubevirt-image-volume/disk_0");
    tiny_image(&volume);
    let image = volume.join("disk/tiny.img");
    let before = fs::read(&image).unwrap();

    let mut client = pod.client().await;
    let mut watcher = Watcher::new(&mut client).await;
    let asked = Instant::now();
    pod.sync_with(&mut client, vec![nic()]).await;
    let state = watcher.until(Lifecycle::Running).await;
    println!("from Sync to a running guest with three disks: {:?}", asked.elapsed());
    let volumes: Value = serde_json::from_slice(&state.volumes).unwrap();
    assert_eq!(
        volumes[0],
        json!({ "name": "root", "target": "vda", "size": before.len() })
    );
    assert_eq!(
        volumes[1],
        json!({ "name": "scratch", "target": "vdb", "size": 64 << 20 })
    );
    assert_eq!(volumes[2]["name"], "seed");

    console(&pod, "tiny guest vm is ready at 10.0.2.2").await;
    let info = loop {
        let state = watcher.next().await;
        if !state.guest_info.is_empty() {
            assert!(state.agent_connected);
            break serde_json::from_slice::<Value>(&state.guest_info).unwrap();
        }
    };
    assert_eq!(info["guestAgentVersion"], "9.9");
    assert_eq!(info["hostname"], "vm");
    assert_eq!(info["os"]["kernelRelease"], "6.1");
    assert_eq!(info["interfaces"].as_array().unwrap().len(), 1, "loopback is left out");
    assert_eq!(info["interfaces"][0]["interfaceName"], "eth0");
    assert_eq!(info["interfaces"][0]["ipAddress"], "10.0.2.2");
    let reply = client.guest_info(GuestInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(serde_json::from_slice::<Value>(&reply.json).unwrap(), info);
    answers_probes(&mut client, &mut watcher).await;
    console(&pod, "the agent runs").await;
    freezes_and_thaws(&mut client, &mut watcher).await;
    shows_its_screen(&mut client).await;
    support::print_memory(&pod);

    // The agent is silent about the shutdown, so the power button follows.
    act(&mut client, Action::Shutdown, 120).await.unwrap();
    assert_eq!(watcher.until(Lifecycle::ShutOff).await.reason, "Shutdown");
    assert!(pod.exit().await.success());
    console(&pod, "the agent was asked to shut down").await;
    assert!(
        fs::read(&image).unwrap() == before,
        "the image below the overlay was written to"
    );
}

/// Megabytes of a process.
fn resident(pod: &Pod, name: &str) -> u64 {
    let pid = pod.pids(name)[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[tokio::test]
async fn a_hostile_agent_hurts_nobody() {
    let mut pod = Pod::start_as(with_hostile_agent, |command, root| {
        command
            .args(["unshare", "--net", "sh", "-c", NETWORK])
            .arg(root.join("tun"));
    });
    tiny_image(&pod.path("var/run/kubevirt-image-volume/disk_0"));
    let mut client = pod.client().await;
    let mut watcher = Watcher::new(&mut client).await;
    pod.sync_with(&mut client, vec![nic()]).await;
    watcher.until(Lifecycle::Running).await;
    console(&pod, "turn 1").await;
    // Asked until it has shown everything it can do; every answer is bounded, and comes in time.
    let (mut honest, mut refused) = (false, 0);
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the agent has not said all");
        let asked = Instant::now();
        match client.guest_info(GuestInfoRequest {}).await {
            Ok(reply) => {
                let json = reply.into_inner().json;
                assert!(json.len() < 4096, "{}", json.len());
                let info: Value = serde_json::from_slice(&json).unwrap();
                honest |= info["guestAgentVersion"] == "9.9";
            }
            Err(_) => refused += 1,
        }
        assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
        let log = pod
            .path("var/run/kubevirt-private")
            .join(support::UID)
            .join("virt-serial0-log");
        if String::from_utf8_lossy(&fs::read(log).unwrap()).contains("turn 9") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(honest && refused >= 2, "honest: {honest}, refused: {refused}");
    // While it talks, everything else works.
    act(&mut client, Action::Pause, 0).await.unwrap();
    watcher.until(Lifecycle::Paused).await;
    act(&mut client, Action::Unpause, 0).await.unwrap();
    watcher.until(Lifecycle::Running).await;
    let (launcher, libvirtd) = (resident(&pod, "virt-launcher"), resident(&pod, "libvirtd"));
    println!("at most {launcher} MB of virt-launcher, {libvirtd} MB of libvirtd");
    assert!(launcher < 100 && libvirtd < 150, "{launcher} {libvirtd}");
    act(&mut client, Action::Kill, 0).await.unwrap();
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
}
