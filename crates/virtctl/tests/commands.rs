//! The executable against a server over TLS.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cluster;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use cluster::{Cluster, Outcome, piped, soon};
use ferrovirt_protocol::launcher::Action;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_started_and_stopped() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Halted").await;
    let strategy = async || cluster.home.vms().get("a").await.unwrap().spec.run_strategy.unwrap();
    let dry = cluster.run(&["start", "a", "--dry-run"]).await;
    dry.prints("Dry Run execution\nVM a was scheduled to start\n");
    assert_eq!(strategy().await, "Halted");
    cluster
        .run(&["start", "a"])
        .await
        .prints("VM a was scheduled to start\n");
    assert_eq!(strategy().await, "Always");
    cluster.run(&["start", "a"]).await.fails(
        "cannot start VirtualMachine a: Operation cannot be fulfilled on virtualmachine.kubevirt.io \"a\": \
         Always does not support manual start requests",
    );
    cluster.home.create_vmi("a", "Running", &[]).await;
    let forced = cluster.run(&["restart", "a", "--force=true", "--grace-period=0"]).await;
    forced.prints("VM a was scheduled to restart\n");
    cluster
        .run(&["stop", "a", "-n", "default"])
        .await
        .prints("VM a was scheduled to stop\n");
    assert_eq!(strategy().await, "Halted");
    cluster
        .run(&["stop", "a", "--force"])
        .await
        .fails("without --grace-period");
    cluster
        .run(&["stop", "none"])
        .await
        .fails("virtualmachine.kubevirt.io \"none\" not found");
    cluster
        .run(&["--context", "token", "stop", "a"])
        .await
        .fails("\"a\" not found");
    cluster
        .run(&["--context=token", "--namespace=default", "stop", "a"])
        .await
        .fails("shorter graceperiod");
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_are_paused_and_reset() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Always").await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    cluster
        .run(&["pause", "vm", "a"])
        .await
        .prints("VMI a was scheduled to pause\n");
    cluster
        .run(&["pause", "vmi/a"])
        .await
        .prints("VMI a was scheduled to pause\n");
    cluster
        .run(&["soft-reboot", "a"])
        .await
        .prints("VMI a was scheduled to soft-reboot\n");
    cluster
        .run(&["reset", "a"])
        .await
        .prints("VMI a was scheduled to reset\n");
    cluster.run(&["unpause", "vmi", "a"]).await.fails("VMI is not paused");
    cluster
        .home
        .set_vmi("a", "Running", &["Paused", "AgentConnected"])
        .await;
    cluster
        .run(&["unpause", "vmi", "a"])
        .await
        .prints("VMI a was scheduled to unpause\n");
    let acts: Vec<Action> = cluster
        .home
        .node
        .take_acts()
        .into_iter()
        .map(|(_, action)| action)
        .collect();
    use Action::{Pause, Reset, SoftReboot, Unpause};
    assert_eq!(acts, [Pause, Pause, SoftReboot, Reset, Unpause]);
    cluster.run(&["pause", "vm", "none"]).await.fails("not found");
    cluster.run(&["pause", "pod", "a"]).await.fails("use vm or vmi");
    let info = cluster.run(&["guestosinfo", "a"]).await;
    assert!(info.stdout.contains("\n  \"hostname\": \"a\""), "{info:?}");
    assert!(cluster.run(&["userlist", "a"]).await.stdout.contains("jane"));
    assert!(cluster.run(&["fslist", "a"]).await.stdout.contains("vda1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn displays_are_photographed() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("screen.png");
    let path = file.to_str().unwrap();
    cluster
        .run(&["vnc", "screenshot", "a", "--file", path])
        .await
        .prints("");
    let picture = std::fs::read(&file).unwrap();
    assert!(String::from_utf8_lossy(&picture).ends_with("PNG of a, pointer moved: false"));
    let words = ["vnc", "screenshot", "a", "-f", "-", "-m"];
    cluster.run(&words).await.prints("\u{89}PNG of a, pointer moved: true");
    cluster
        .run(&["vnc", "screenshot", "b", "-f", "-"])
        .await
        .fails("virtualmachineinstance.kubevirt.io \"b\" not found");
    let nowhere = directory.path().join("none/screen.png");
    let said = cluster
        .run(&["vnc", "screenshot", "a", "-f", nowhere.to_str().unwrap()])
        .await;
    said.fails("cannot write");
}

#[tokio::test(flavor = "multi_thread")]
async fn evacuations_are_cancelled() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Always").await;
    cluster
        .run(&["evacuate-cancel", "vm", "a"])
        .await
        .fails("VMI is not started");
    cluster.home.create_vmi("a", "Running", &[]).await;
    let dry = cluster.run(&["evacuate-cancel", "vm/a", "--dry-run"]).await;
    dry.prints("Dry Run execution\nVM default/a was canceled evacuation\n");
    let done = cluster.run(&["evacuate-cancel", "vmi", "a"]).await;
    done.prints("VMI default/a was canceled evacuation\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_redirected_through_a_port() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    cluster.run(&["usbredir", "a"]).await.fails("needs a device");
    cluster
        .run(&["usbredir", "1:2", "a", "--no-launch"])
        .await
        .fails("only the name");
    let mut child = piped(&cluster, &["usbredir", "--no-launch", "a"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = soon(lines.next_line()).await.unwrap().unwrap();
    let _device = soon(TcpStream::connect(address)).await.unwrap();
    // The machine has no port for it.
    let ended = soon(child.wait_with_output()).await.unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(
        ended.status.code() == Some(1) && said.contains("Not configured with USB Redirection"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_expanded() {
    let cluster = Cluster::open().await;
    let vm = cluster.home.create_vm("a", "Halted").await;
    let expected = serde_json::to_value(&vm).unwrap();
    let json = serde_json::to_string_pretty(&expected).unwrap();
    cluster
        .run(&["expand", "--vm=a", "-o", "json"])
        .await
        .prints(&format!("{json}\n"));
    let yaml = serde_yaml_ng::to_string(&expected).unwrap();
    cluster.run(&["expand", "--vm=a"]).await.prints(&yaml);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.yaml");
    std::fs::write(&file, &yaml).unwrap();
    cluster
        .run(&["expand", "-f", file.to_str().unwrap()])
        .await
        .prints(&yaml);
    std::fs::write(
        &file,
        yaml.replacen("\nspec:\n  ", "\nspec:\n  instancetype:\n    name: m1\n  ", 1),
    )
    .unwrap();
    let refused = cluster.run(&["expand", "-f", file.to_str().unwrap()]).await;
    refused.fails("not supported yet: spec.instancetype");
    cluster
        .run(&["expand", "-f", "/no/such/file"])
        .await
        .fails("cannot read /no/such/file");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_made_and_judged_without_a_cluster() {
    let cluster = Cluster::open().await;
    let good = cluster.path("good.yaml");
    let words = [
        "create",
        "vm",
        "--name=a",
        "--volume-containerdisk=src:image:1",
        "--run-strategy=Halted",
    ];
    let made = cluster.run(&words).await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    std::fs::write(&good, &made.stdout).unwrap();
    let path = good.to_str().unwrap();
    let judged = cluster.run(&["validate", "-f", path, "--kubeconfig=/none"]).await;
    judged.prints(&format!("{path}: VirtualMachine a is valid\n"));
    // What is valid here is valid there.
    let vm = serde_yaml_ng::from_str(&made.stdout).unwrap();
    cluster
        .home
        .vms()
        .create(&kube::api::PostParams::default(), &vm)
        .await
        .unwrap();

    std::fs::write(
        &good,
        made.stdout.replace("Halted", "Sometimes").replace("512Mi", "much"),
    )
    .unwrap();
    let judged = cluster.run(&["validate", "-f", path]).await;
    assert_eq!(judged.code, Some(1), "{}", judged.stdout);
    assert!(judged.stderr.ends_with(" mistakes were found\n"), "{}", judged.stderr);
    let line = |text: &str| made.stdout.lines().position(|line| line.contains(text)).unwrap() + 1;
    for (text, field) in [
        ("Halted", "spec.runStrategy"),
        ("512Mi", "spec.template.spec.domain.memory.guest"),
    ] {
        let expected = format!("{path}:{}: {field}: ", line(text));
        assert!(judged.stdout.contains(&expected), "{expected}: {}", judged.stdout);
    }
    cluster.run(&["create", "vm", "--name=A"]).await.fails("--name");
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_replace_the_kubeconfig() {
    let cluster = Cluster::open().await;
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    let ca = cluster.path("ca.pem");
    let flags = [
        "--server",
        &cluster.url,
        "--token",
        cluster::fixture::TOKEN,
        "--certificate-authority",
    ];
    let mut command = cluster.virtctl(&[&["version"], flags.as_slice(), &[ca.to_str().unwrap()]].concat());
    command.env_remove("KUBECONFIG");
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    let outcome = Outcome::from(output);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.stdout.contains(&format!(
            "Server Version: version.Info{{GitVersion:\"{version}\", GitCommit:"
        )),
        "{outcome:?}"
    );
    assert_eq!(outcome.stderr, "");

    let untrusted = cluster.run(&["--server=https://127.0.0.1:1", "version"]).await;
    assert_eq!(untrusted.code, Some(1));
    assert!(
        untrusted
            .stderr
            .contains("cannot get the server's version: cannot talk to the API server"),
        "{untrusted:?}"
    );
    let mut command = cluster.virtctl(&["start", "a"]);
    command.env_remove("KUBECONFIG");
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    Outcome::from(output).fails("there is no kubeconfig");
    let outcome = cluster.run(&["version", "-c"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let start = format!("Client Version: version.Info{{GitVersion:\"{version}\", GitCommit:\"\", ");
    assert!(outcome.stdout.starts_with(&start), "{outcome:?}");
    assert!(outcome.stdout.contains("Platform:\"linux/"), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piped_console_waits_for_its_guest() {
    let cluster = Cluster::open().await;
    cluster.run(&["console", "none"]).await.fails("\"none\" not found");
    cluster.home.create_vm("off", "Halted").await;
    cluster
        .run(&["console", "off"])
        .await
        .fails("start it with virtctl start off");
    cluster.home.create_vmi("a", "Scheduling", &[]).await;
    cluster
        .run(&["console", "a", "--timeout=0"])
        .await
        .fails("does not run after 0 s");
    let mut child = piped(&cluster, &["console", "a"]);
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(
        soon(told.next_line())
            .await
            .unwrap()
            .unwrap()
            .contains("its phase is Scheduling")
    );
    cluster.home.set_vmi("a", "Running", &[]).await;
    assert!(
        soon(told.next_line())
            .await
            .unwrap()
            .unwrap()
            .contains("Successfully connected to a console")
    );
    let mut input = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    input.write_all(b"echo me").await.unwrap();
    let wanted = b"hello from default/a/console\r\necho me";
    let mut shown = vec![0; wanted.len()];
    soon(screen.read_exact(&mut shown)).await.unwrap();
    assert_eq!(shown, wanted);
    input.write_all(b"\x1dnot sent").await.unwrap();
    assert!(soon(child.wait()).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_console_closes_the_first() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &["Paused"]).await;
    let mut first = piped(&cluster, &["console", "a"]);
    let keys = first.stdin.take().unwrap();
    let mut greeting = [0; 5];
    let mut screen = first.stdout.take().unwrap();
    soon(screen.read_exact(&mut greeting)).await.unwrap();
    let mut second = piped(&cluster, &["console", "a"]);
    soon(second.stdout.as_mut().unwrap().read_exact(&mut greeting))
        .await
        .unwrap();
    assert_eq!(soon(first.wait()).await.unwrap().code(), Some(1));
    let mut told = String::new();
    first.stderr.take().unwrap().read_to_string(&mut told).await.unwrap();
    let start = "You were disconnected from the console. This could be caused by one of the following:\n - ";
    assert!(
        told.contains(start) && told.contains("somebody else connected"),
        "{told}"
    );
    assert!(told.contains("Warning: a is paused"), "{told}");
    drop(keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = guest.local_addr().unwrap().port();
    let guest_udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let udp_port = guest_udp.local_addr().unwrap().port();
    let ports = [format!(":{port}"), format!("udp/0:{udp_port}")];
    let mut child = piped(&cluster, &["port-forward", "vmi/a", &ports[0], &ports[1]]);
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut addresses = Vec::new();
    for protocol in ["tcp", "udp"] {
        let line = soon(told.next_line()).await.unwrap().unwrap();
        let rest = line.strip_prefix(&format!("Forwarding {protocol} from ")).unwrap();
        addresses.push(rest.split_once(" -> ").unwrap().0.to_owned());
    }
    for round in 0..2_u8 {
        let mut client = TcpStream::connect(&addresses[0]).await.unwrap();
        let (mut inside, _) = soon(guest.accept()).await.unwrap();
        client.write_all(&[round, b'a', 0xff]).await.unwrap();
        let mut buffer = [0; 3];
        soon(inside.read_exact(&mut buffer)).await.unwrap();
        assert_eq!(buffer, [round, b'a', 0xff]);
        inside.write_all(b"answer").await.unwrap();
        drop(inside);
        let mut answer = String::new();
        soon(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "answer");
    }
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(&addresses[1]).await.unwrap();
    client.send(b"query").await.unwrap();
    let mut buffer = [0; 16];
    let (length, from) = soon(guest_udp.recv_from(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..length], b"query");
    guest_udp.send_to(b"reply", from).await.unwrap();
    let length = soon(client.recv(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..length], b"reply");

    let mut child = piped(
        &cluster,
        &["port-forward", "--stdio=true", "vmi/a/default", &port.to_string()],
    );
    let (mut inside, _) = soon(guest.accept()).await.unwrap();
    child.stdin.as_mut().unwrap().write_all(b"SSH-2.0").await.unwrap();
    let mut buffer = [0; 7];
    soon(inside.read_exact(&mut buffer)).await.unwrap();
    inside.write_all(b"bye").await.unwrap();
    drop(inside);
    let mut answer = String::new();
    soon(child.stdout.take().unwrap().read_to_string(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, "bye");
    assert!(soon(child.wait()).await.unwrap().success());
    cluster
        .run(&["port-forward", "--stdio", "vmi/a", "1", "2"])
        .await
        .fails("exactly one port");
    drop(guest);
    cluster
        .run(&["port-forward", "--stdio", "vmi/a", &port.to_string()])
        .await
        .fails("dialing VM");
}

#[tokio::test(flavor = "multi_thread")]
async fn displays_are_offered_on_a_port() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    let mut child = piped(&cluster, &["vnc", "a", "--proxy-only"]);
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = soon(told.next_line()).await.unwrap().unwrap();
    let port: u16 = line
        .strip_prefix("{\"port\":")
        .and_then(|rest| rest.strip_suffix('}'))
        .unwrap()
        .parse()
        .unwrap();
    let mut viewer = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut greeting = [0; 25];
    soon(viewer.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"hello from default/a/vnc\r");
    drop(viewer);
    assert!(soon(child.wait()).await.unwrap().success());

    // A viewer of the user's own is told where to connect.
    let script = cluster.path("vncviewer");
    let text = "#!/bin/bash\nexec 3<>/dev/tcp/${1%%::*}/${1##*::}\nread -r line <&3\necho \"seen: $line\"\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    // It is on this machine, whatever --address says.
    let words = [
        "vnc",
        "a",
        "--vnc-path",
        script.to_str().unwrap(),
        "--address=192.0.2.1",
    ];
    let outcome = cluster.run(&words).await;
    assert_eq!(
        (outcome.code, outcome.stdout.trim_end()),
        (Some(0), "seen: hello from default/a/vnc"),
        "{outcome:?}"
    );
    let mut command = cluster.virtctl(&["vnc", "a"]);
    command.env("PATH", "/nowhere");
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    Outcome::from(output).fails("no VNC viewer was found");
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_goes_through_the_proxy_command() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Always").await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    // As its controller says.
    let started = Patch::Merge(json!({"status": {"created": true}}));
    let vms = cluster.home.vms();
    vms.patch_status("a", &PatchParams::default(), &started).await.unwrap();
    let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = guest.local_addr().unwrap().port().to_string();
    // Does what ssh does with its ProxyCommand.
    let script = cluster.path("ssh");
    let text = "#!/bin/bash\necho \"${@:3}\" >&2\nproxy=${2#ProxyCommand=}\necho from-ssh | cat - <(sleep 20) | exec sh -c \"exec ${proxy//%%/%}\"\nexit 7\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let kubeconfig = cluster.path("100% mine");
    std::fs::rename(cluster.path("config"), &kubeconfig).unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let arguments = [
        "ssh",
        "me@vm/a",
        "-p",
        &port,
        "--kubeconfig",
        kubeconfig,
        "-c",
        "uname -a",
    ];
    let mut command = Command::from(cluster.virtctl(&arguments));
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", cluster.directory.path().display()));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let (mut inside, _) = soon(guest.accept()).await.unwrap();
    let mut heard = [0; 9];
    soon(inside.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"from-ssh\n");
    inside.write_all(b"to-ssh").await.unwrap();
    drop(inside);
    let mut out = [0; 6];
    soon(child.stdout.as_mut().unwrap().read_exact(&mut out)).await.unwrap();
    assert_eq!(&out, b"to-ssh");
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = soon(told.next_line()).await.unwrap().unwrap();
    assert!(line.ends_with("-l me vm.a.default -- uname -a"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_select_one_machine() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Always").await;
    let made = cluster
        .run(&["expose", "vm", "a", "--name=web", "--port=80", "--target-port", "8080"])
        .await;
    made.prints("Service web successfully created for vm a\n");
    let services: kube::Api<k8s_openapi::api::core::v1::Service> =
        kube::Api::namespaced(cluster.home.client.clone(), "default");
    let spec = services.get("web").await.unwrap().spec.unwrap();
    let expected = [("vmi.kubevirt.io/id".to_owned(), "a".to_owned())];
    assert_eq!(spec.selector.unwrap(), expected.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_plugin_of_kubectl() {
    let cluster = Cluster::open().await;
    let plugin = cluster.path("kubectl-virt");
    symlink(env!("CARGO_BIN_EXE_virtctl"), &plugin).unwrap();
    let output = Command::new(&plugin).args(["help", "start"]).output().await.unwrap();
    let outcome = Outcome::from(output);
    assert!(outcome.stdout.contains("Usage: kubectl virt start"), "{outcome:?}");
    assert!(
        outcome.stdout.contains("kubectl virt start myvm --paused"),
        "{outcome:?}"
    );
}
