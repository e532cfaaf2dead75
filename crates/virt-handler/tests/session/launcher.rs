//! The scripted launcher, and what plays a containerDisk's container: this executable once more, in the pod's namespaces.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use ferrovirt_protocol::launcher::launcher_server::{Launcher, LauncherServer};
use ferrovirt_protocol::launcher::{
    ActReply, ActRequest, Action, AgentExecReply, AgentExecRequest, AgentPingReply, AgentPingRequest, GuestInfoReply,
    GuestInfoRequest, GuestState, Lifecycle, ScreenshotPart, ScreenshotRequest, SevMeasurementReply,
    SevMeasurementRequest, SevPlatformReply, SevPlatformRequest, SevSecretReply, SevSecretRequest, Stat, StatsReply,
    StatsRequest, SyncReply, SyncRequest, WatchRequest, stat,
};
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

/// Set in the process that plays the launcher: the directory of its sockets.
pub const PLAY: &str = "VIRT_HANDLER_TEST_LAUNCHER";

/// The pod's volume is mounted where launchers have it.
pub const MOUNT_SOCKETS: &str =
    "mount -t tmpfs none /run && mkdir -p /run/kubevirt/sockets && mount --bind \"$0\" /run/kubevirt/sockets";
/// As launchers have the volume of a pod whose containerDisks are held by containers.
pub const MOUNT_CONTAINER_DISKS: &str = "mkdir /run/kubevirt-image-volume && \
    mount --bind \"$0/../container-disks\" /run/kubevirt-image-volume && \
    mount -o remount,bind,ro /run/kubevirt-image-volume";
/// Set in the process that plays a containerDisk's container: its root directory.
pub const PLAY_DISK: &str = "VIRT_HANDLER_TEST_CONTAINER_DISK";
pub const DISKS_DIR: &str = "var/run/kubevirt/container-disks";
/// What CNI plugins do.
pub const MAKE_NETWORK: &str = "ip link add eth0 type veth peer name v0 && ip addr add 10.88.0.7/24 dev eth0 && \
    ip link set lo up && ip link set v0 up && ip link set eth0 up";

struct Script {
    directory: PathBuf,
    state: watch::Sender<GuestState>,
}

impl Script {
    fn log(&self, entry: &Value) {
        let path = self.directory.join("requests");
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(file, "{entry}").unwrap();
    }

    fn enter(&self, lifecycle: Lifecycle, reason: &str) {
        self.state.send_modify(|state| {
            state.generation += 1;
            state.lifecycle = lifecycle.into();
            state.reason = reason.into();
            state.domain_type = "qemu".into();
            state.machine_type = "pc-q35-10.0".into();
        });
    }

    /// What the test tells it through standard input.
    fn obey(&self, line: &str) {
        match line {
            "poweroff" => self.enter(Lifecycle::ShutOff, "Shutdown"),
            "agent" => self.state.send_modify(|state| {
                state.agent_connected = true;
                let mac = "52:54:00:aa:bb:cc";
                let interface = json!({"interfaceName": "enp1s0", "mac": mac, "ipAddresses": ["10.0.2.2"]});
                let info = json!({"os": {"id": "debian"}, "interfaces": [interface]});
                state.guest_info = serde_json::to_vec(&info).unwrap();
            }),
            other => panic!("unknown order {other}"),
        }
    }
}

#[tonic::async_trait]
impl Launcher for Script {
    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncReply>, Status> {
        let request = request.into_inner();
        let node = request.node.unwrap();
        let nics: Vec<Value> = node
            .nics
            .iter()
            .map(|nic| json!({"tap": nic.tap, "mac": nic.mac, "client": nic.dhcp.as_ref().unwrap().client_ip}))
            .collect();
        let mut entry = json!({"sync": {"kvm": node.kvm, "emulation": node.allow_emulation, "nics": nics}});
        if let Some(disk) = look_at_disk(Path::new("/var/run/kubevirt-image-volume/disk_0")) {
            entry["disk"] = disk;
        }
        self.log(&entry);
        if self.state.borrow().lifecycle() == Lifecycle::Waiting {
            self.enter(Lifecycle::Running, "Booted");
        }
        Ok(Response::new(SyncReply {}))
    }

    async fn act(&self, request: Request<ActRequest>) -> Result<Response<ActReply>, Status> {
        let request = request.into_inner();
        let mut entry = json!({"act": request.action().as_str_name(), "grace": request.grace_seconds});
        if request.action() == Action::Freeze {
            entry["thaw"] = request.thaw_seconds.into();
        }
        self.log(&entry);
        match request.action() {
            Action::Pause => self.enter(Lifecycle::Paused, "User"),
            Action::Unpause => self.enter(Lifecycle::Running, "Unpaused"),
            Action::Shutdown => self.enter(Lifecycle::ShutOff, "Shutdown"),
            Action::Reset => return Err(Status::failed_precondition("not in the mood")),
            _ => {}
        }
        Ok(Response::new(ActReply {}))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<GuestState, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(
            WatchStream::new(self.state.subscribe()).map(Ok),
        )))
    }

    type ScreenshotStream = Pin<Box<dyn Stream<Item = Result<ScreenshotPart, Status>> + Send>>;

    async fn screenshot(&self, _: Request<ScreenshotRequest>) -> Result<Response<Self::ScreenshotStream>, Status> {
        let part = |png: &[u8]| Ok(ScreenshotPart { png: png.to_vec() });
        let parts = [part(b"\x89PNG"), part(b" in pieces")];
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    async fn stats(&self, _: Request<StatsRequest>) -> Result<Response<StatsReply>, Status> {
        let stat = |name: &str, number| Stat {
            name: name.to_owned(),
            value: Some(stat::Value::Number(number)),
        };
        let stats = vec![stat("cpu.time", 1_500_000_000), stat("balloon.rss", 2048)];
        Ok(Response::new(StatsReply { stats }))
    }

    async fn guest_info(&self, _: Request<GuestInfoRequest>) -> Result<Response<GuestInfoReply>, Status> {
        Ok(Response::new(GuestInfoReply {
            json: b"{\"hostname\":\"guest\"}".to_vec(),
        }))
    }

    async fn agent_ping(&self, _: Request<AgentPingRequest>) -> Result<Response<AgentPingReply>, Status> {
        Err(Status::failed_precondition("virt-handler does not probe"))
    }

    async fn sev_platform(&self, _: Request<SevPlatformRequest>) -> Result<Response<SevPlatformReply>, Status> {
        Ok(Response::new(SevPlatformReply {
            pdh: "QUFB".into(),
            cert_chain: "QkJC".into(),
        }))
    }

    async fn sev_measurement(
        &self,
        _: Request<SevMeasurementRequest>,
    ) -> Result<Response<SevMeasurementReply>, Status> {
        Ok(Response::new(SevMeasurementReply {
            measurement: "Q0ND".into(),
            api_minor: 55,
            ..SevMeasurementReply::default()
        }))
    }

    async fn sev_secret(&self, request: Request<SevSecretRequest>) -> Result<Response<SevSecretReply>, Status> {
        let SevSecretRequest { header, secret } = request.into_inner();
        self.log(&json!({"header": header, "secret": secret}));
        Ok(Response::new(SevSecretReply {}))
    }

    async fn agent_exec(&self, _: Request<AgentExecRequest>) -> Result<Response<AgentExecReply>, Status> {
        Err(Status::failed_precondition("virt-handler does not probe"))
    }
}

/// What a launcher finds where containerDisks are mounted.
fn look_at_disk(root: &Path) -> Option<Value> {
    let image = std::fs::read_to_string(root.join("disk/disk.img")).ok()?;
    let write = std::fs::write(root.join("disk/new"), "").unwrap_err();
    let below = std::fs::read_dir(root.join(DISKS_DIR)).unwrap().count();
    Some(json!({"image": image, "write": write.raw_os_error(), "below": below}))
}

/// Not a test of its own: does nothing unless it was started to play a containerDisk's container.
#[test]
fn plays_the_container_disk() {
    let Some(root) = std::env::var_os(PLAY_DISK) else {
        return;
    };
    std::os::unix::fs::chroot(root).unwrap();
    std::env::set_current_dir("/").unwrap();
    let directory = Path::new("/").join(DISKS_DIR);
    let _listener = std::os::unix::net::UnixListener::bind(directory.join("disk_0.sock")).unwrap();
    // Until the test is over.
    for line in std::io::stdin().lock().lines() {
        line.unwrap();
    }
    std::process::exit(0);
}

/// Not a test of its own: does nothing unless it was started to play the launcher.
#[test]
fn plays_the_launcher() {
    let Some(directory) = std::env::var_os(PLAY).map(PathBuf::from) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (state, _) = watch::channel(GuestState {
            lifecycle: Lifecycle::Waiting.into(),
            ..GuestState::default()
        });
        let script = Arc::new(Script {
            directory: directory.clone(),
            state,
        });
        let orders = script.clone();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                orders.obey(&line.unwrap());
            }
            // The test is over.
            std::process::exit(0);
        });
        let staging = directory.join("new");
        let listener = UnixListener::bind(&staging).unwrap();
        std::fs::rename(staging, directory.join("launcher-sock")).unwrap();
        tonic::transport::Server::builder()
            .add_service(LauncherServer::from_arc(script))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
            .unwrap();
    });
}
