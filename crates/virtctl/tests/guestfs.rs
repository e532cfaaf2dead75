//! `virtctl guestfs` against a server and a node that plays the shell.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cluster;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use cluster::{Cluster, soon};
use ferrovirt_apiserver::{Kubelet, LogOptions};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

const POD: &str = "libguestfs-tools-disk";

/// A shell that echoes, and ends with `exit`.
struct Shell;

async fn play(mut socket: WebSocket) {
    let say = |text: &str| Message::binary([&[1], text.as_bytes()].concat());
    socket.send(say("$ ")).await.unwrap();
    let mut typed = String::new();
    while let Some(Ok(Message::Binary(data))) = socket.recv().await {
        let text = match data.split_first() {
            Some((0, text)) => text,
            Some((4, size)) => {
                let size = format!("size {}\r\n", String::from_utf8_lossy(size));
                socket.send(say(&size)).await.unwrap();
                continue;
            }
            _ => continue,
        };
        let text = String::from_utf8_lossy(text).into_owned();
        socket.send(say(&text)).await.unwrap();
        typed.push_str(&text);
        if typed.ends_with("exit\n") {
            let status = br#"{"metadata":{},"status":"Success"}"#;
            let _ = socket.send(Message::binary([&[3], status.as_slice()].concat())).await;
            break;
        }
    }
}

#[async_trait]
impl Kubelet for Shell {
    async fn logs(&self, _: &str, _: &str, _: LogOptions) -> Response<Body> {
        Response::new(Body::empty())
    }

    async fn connect(&self, _: &str, pod: &str, subresource: &str, request: Request<Body>) -> Response<Body> {
        assert_eq!((pod, subresource), (POD, "attach"));
        let query = request.uri().query().unwrap_or_default().to_owned();
        for part in ["container=libguestfs", "stdin=true", "tty=true"] {
            assert!(query.contains(part), "{query}");
        }
        let (mut parts, _) = request.into_parts();
        match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
            Ok(upgrade) => upgrade.protocols(["v5.channel.k8s.io"]).on_upgrade(play),
            Err(refused) => refused.into_response(),
        }
    }
}

struct Scene {
    cluster: Cluster,
    pods: Api<Pod>,
}

impl Scene {
    async fn open() -> Self {
        let cluster = Cluster::open().await;
        cluster.home.server.set_kubelet(Arc::new(Shell));
        let client = &cluster.home.client;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
        let claim = serde_json::from_value(json!({
            "metadata": {"name": "disk"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .unwrap();
        claims.create(&PostParams::default(), &claim).await.unwrap();
        let pods = Api::namespaced(client.clone(), "default");
        Self { cluster, pods }
    }

    fn spawn(&self) -> (Child, Lines<BufReader<ChildStderr>>) {
        self.spawn_on(Stdio::piped())
    }

    fn spawn_on(&self, input: Stdio) -> (Child, Lines<BufReader<ChildStderr>>) {
        let mut command = Command::from(self.cluster.virtctl(&["guestfs", "disk", "--image=tools:1"]));
        command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let told = BufReader::new(child.stderr.take().unwrap()).lines();
        (child, told)
    }

    async fn set(&self, status: Value) {
        let patch = json!({"status": status});
        self.pods
            .patch_status(POD, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .unwrap();
    }

    async fn run(&self) {
        let state = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let container = json!({
            "name": "libguestfs", "image": "tools:1", "imageID": "", "ready": true, "restartCount": 0, "state": state,
        });
        self.set(json!({"phase": "Running", "containerStatuses": [container]}))
            .await;
    }

    async fn gone(&self) -> bool {
        let found = self.pods.get_opt(POD).await.unwrap();
        found.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    }
}

async fn hears(told: &mut Lines<BufReader<ChildStderr>>, wanted: &str) {
    loop {
        let line = soon(told.next_line())
            .await
            .unwrap()
            .unwrap_or_else(|| panic!("{wanted:?} was not said"));
        if line.contains(wanted) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_opened_and_cleaned_up() {
    let scene = Scene::open().await;
    let (mut child, mut told) = scene.spawn();
    hears(&mut told, "a node is looked for").await;
    let refused = "0/1 nodes are available: 1 Insufficient devices.kubevirt.io/kvm.";
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": refused});
    scene.set(json!({"conditions": [condition]})).await;
    hears(&mut told, "--kvm=false").await;
    scene.run().await;
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"virt-df /disk/disk.img").await.unwrap();
    drop(input);
    let mut shown = String::new();
    soon(child.stdout.take().unwrap().read_to_string(&mut shown))
        .await
        .unwrap();
    assert_eq!(shown, "Use image: tools:1\n$ virt-df /disk/disk.img\nexit\n");
    assert!(soon(child.wait()).await.unwrap().success());
    assert!(scene.gone().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_cleans_up() {
    let scene = Scene::open().await;
    let (mut child, mut told) = scene.spawn();
    hears(&mut told, "a node is looked for").await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    hears(&mut told, "Error: interrupted").await;
    assert_eq!(soon(child.wait()).await.unwrap().code(), Some(1));
    assert!(scene.gone().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_cannot_be_opened() {
    let scene = Scene::open().await;
    let image = "Use image: tools:1\n";
    let outcome = scene.cluster.run(&["guestfs", "none", "--image=tools:1"]).await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), image));
    assert!(
        outcome
            .stderr
            .contains("no PersistentVolumeClaim none in namespace default"),
        "{outcome:?}"
    );
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "writer"},
        "spec": {
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "disk"}}],
        },
    }))
    .unwrap();
    scene.pods.create(&PostParams::default(), &pod).await.unwrap();
    let outcome = scene.cluster.run(&["guestfs", "disk", "--image=tools:1"]).await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), image));
    assert!(outcome.stderr.contains("is used by pod writer"), "{outcome:?}");
    assert!(scene.pods.get_opt(POD).await.unwrap().is_none());
    scene
        .cluster
        .run(&["guestfs", "disk", "--gid=1"])
        .await
        .fails("--gid needs --uid");
    // The server's own words, whatever it does not do.
    let outcome = scene.cluster.run(&["guestfs", "disk"]).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_raw_and_has_a_size() {
    let scene = Scene::open().await;
    let size = Winsize {
        ws_row: 40,
        ws_col: 123,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(Some(&size), None).unwrap();
    let before = tcgetattr(pty.slave.as_fd()).unwrap();
    let (mut child, mut told) = scene.spawn_on(Stdio::from(pty.slave.try_clone().unwrap()));
    hears(&mut told, "a node is looked for").await;
    scene.run().await;
    let mut shown = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("size") {
        line.clear();
        assert_ne!(soon(shown.read_line(&mut line)).await.unwrap(), 0);
    }
    assert!(line.contains("123") && line.contains("40"), "{line}");
    let raw = tcgetattr(pty.slave.as_fd()).unwrap();
    assert!(
        !raw.local_flags
            .intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
    );
    let mut keys = File::from(pty.master.try_clone().unwrap());
    keys.write_all(b"exit\n").unwrap();
    assert!(soon(child.wait()).await.unwrap().success());
    let after = tcgetattr(pty.slave.as_fd()).unwrap();
    assert_eq!(after.local_flags, before.local_flags);
    assert!(scene.gone().await);
}
