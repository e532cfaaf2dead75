//! How the executable finds its way to the server, and what it can do with few rights there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster::{Cluster, piped, soon};
use ferrovirt_apiserver::UserInfo;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A proxy that connects; its port, and how often it did.
async fn proxy() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(near.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
                let mut far = TcpStream::connect(target).await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (port, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_used_and_left_out() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Halted").await;
    let dry = "Dry Run execution\nVM a was scheduled to start\n";
    let words = ["start", "a", "--dry-run"];
    // Nothing answers there; this machine needs no proxy.
    for no_proxy in ["", "localhost,,x y,"] {
        let environment = [("HTTPS_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", no_proxy)];
        cluster.run_with(&words, &environment).await.prints(dry);
    }
    let (port, count) = proxy().await;
    let config = std::fs::read_to_string(cluster.path("config")).unwrap();
    cluster.write(
        "config",
        &config.replace(
            "cluster: {server",
            &format!("cluster: {{proxy-url: 'http://127.0.0.1:{port}', server"),
        ),
    );
    cluster.run(&words).await.prints(dry);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // Streams take the same way.
    cluster.home.create_vmi("a", "Running", &[]).await;
    let console = cluster.run(&["console", "a"]).await;
    assert_eq!(console.code, Some(0), "{console:?}");
    assert!(count.load(Ordering::SeqCst) > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubeconfigs_are_merged_and_empty_flags_are_none() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Halted").await;
    cluster.write("empty", "{kind: Config, apiVersion: v1, current-context: ''}");
    let paths = ["none", "empty", "config"].map(|name| cluster.path(name).display().to_string());
    let dry = "Dry Run execution\nVM a was scheduled to start\n";
    let environment = [("KUBECONFIG", paths.join(":"))];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    cluster
        .run_with(&["start", "a", "--dry-run"], &environment)
        .await
        .prints(dry);
    let words = [
        "start",
        "a",
        "--dry-run=TRUE",
        "--kubeconfig=",
        "-n",
        "",
        "--context",
        "",
        "--token=",
        "--server=",
        "--as=",
    ];
    cluster.run(&words).await.prints(dry);
    // The last one counts.
    let words = [
        "start",
        "a",
        "--dry-run=false",
        "-n",
        "x",
        "-n",
        "default",
        "--dry-run=1",
    ];
    cluster.run(&words).await.prints(dry);
    let missing = [("KUBECONFIG", paths[0].as_str())];
    cluster
        .run_with(&["start", "a"], &missing)
        .await
        .fails("which does not exist");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_group_others_show_help() {
    let cluster = Cluster::open().await;
    for words in [&[][..], &["create"], &["credentials"], &["adm"]] {
        let outcome = cluster.run(words).await;
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{words:?}");
        assert!(outcome.stdout.contains("Usage: virtctl"), "{words:?} {outcome:?}");
    }
}

/// From now on the user may only open consoles and displays.
async fn restrict(cluster: &Cluster) {
    let client = &cluster.home.client;
    let role: Role = serde_json::from_value(json!({
        "metadata": {"name": "viewer"},
        "rules": [{
            "apiGroups": ["subresources.kubevirt.io"],
            "resources": ["virtualmachineinstances/console", "virtualmachineinstances/vnc"],
            "verbs": ["get"],
        }],
    }))
    .unwrap();
    let roles: Api<Role> = Api::namespaced(client.clone(), "default");
    roles.create(&PostParams::default(), &role).await.unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "viewer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "viewer"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "joe"}],
    }))
    .unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), "default");
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    *cluster.user.lock().unwrap() = UserInfo {
        username: "joe".into(),
        groups: vec!["system:authenticated".into()],
        ..UserInfo::default()
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn consoles_and_displays_need_no_other_right() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Scheduling", &[]).await;
    restrict(&cluster).await;
    cluster.run(&["pause", "vmi", "a"]).await.fails("forbidden");
    cluster
        .run(&["vnc", "a", "--proxy-only"])
        .await
        .fails("VMI is not running");
    cluster
        .run(&["console", "a", "--timeout=1s"])
        .await
        .fails("does not run after 1 s: VMI is not running");
    let mut console = piped(&cluster, &["console", "a"]);
    let mut screen = console.stdout.take().unwrap();
    cluster.home.set_vmi("a", "Running", &[]).await;
    let mut greeting = [0; 28];
    soon(screen.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"hello from default/a/console");

    let words = ["vnc", "a", "--proxy-only", "--address", "localhost"];
    let mut display = piped(&cluster, &words);
    let mut told = BufReader::new(display.stdout.take().unwrap()).lines();
    let line = soon(told.next_line()).await.unwrap().unwrap();
    let port: Value = serde_json::from_str(&line).unwrap();
    let port = u16::try_from(port["port"].as_u64().unwrap()).unwrap();
    let mut viewer = TcpStream::connect(("localhost", port)).await.unwrap();
    let mut greeting = [0; 24];
    soon(viewer.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"hello from default/a/vnc");
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_sockets_are_forwarded() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi_with_sockets("a").await;
    for (words, tls) in [(&["--vsock"][..], true), (&["--vsock", "--vsock-tls=false"], false)] {
        let mut child = piped(&cluster, &[&["port-forward", "--stdio", "vm/a", "22"], words].concat());
        let expected = format!("hello from default/a/vsock 22 {tls}\r\n");
        let mut heard = vec![0; expected.len()];
        soon(child.stdout.as_mut().unwrap().read_exact(&mut heard))
            .await
            .unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), expected);
    }
    cluster
        .run(&["port-forward", "--vsock", "vmi/a", "udp/1"])
        .await
        .fails("has no udp");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_taken_with_flags_anywhere() {
    let cluster = Cluster::open().await;
    cluster.home.create_vmi("a", "Running", &[]).await;
    let words = ["vnc", "-n", "default", "screenshot", "a", "-f", "-"];
    cluster.run(&words).await.prints("\u{89}PNG of a, pointer moved: false");
}
