//! The node agent against the in-process API server and a scripted launcher in namespaces of its own.
#![allow(clippy::unwrap_used, reason = "a test's own code")]

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrovirt_api::v1::{SEVSecretOptions, VirtualMachineInstance};
use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use ferrovirt_protocol::launcher::launcher_server::{Launcher, LauncherServer};
use ferrovirt_protocol::launcher::{
    ActReply, ActRequest, Action, AgentExecReply, AgentExecRequest, AgentPingReply, AgentPingRequest, GuestInfoReply,
    GuestInfoRequest, GuestState, Lifecycle, ScreenshotPart, ScreenshotRequest, SevMeasurementReply,
    SevMeasurementRequest, SevPlatformReply, SevPlatformRequest, SevSecretReply, SevSecretRequest, Stat, StatsReply,
    StatsRequest, SyncReply, SyncRequest, WatchRequest, stat,
};
use ferrovirt_protocol::streams::NodeAgent;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use virt_handler::{Agent, KvmMode, Options, run_with};

const DEADLINE: Duration = Duration::from_secs(20);
const POD_IP: &str = "10.88.0.7";

// ---- The scripted launcher: this executable once more, in the pod's namespaces.

/// Set in the process that plays the launcher: the directory of its sockets.
const PLAY: &str = "VIRT_HANDLER_TEST_LAUNCHER";

/// The pod's volume is mounted where launchers have it.
const MOUNT_SOCKETS: &str =
    "mount -t tmpfs none /run && mkdir -p /run/kubevirt/sockets && mount --bind \"$0\" /run/kubevirt/sockets";
/// As launchers have the volume of a pod whose containerDisks are held by containers.
const MOUNT_CONTAINER_DISKS: &str = "mkdir /run/kubevirt-image-volume && \
    mount --bind \"$0/../container-disks\" /run/kubevirt-image-volume && \
    mount -o remount,bind,ro /run/kubevirt-image-volume";
/// Set in the process that plays a containerDisk's container: its root directory.
const PLAY_DISK: &str = "VIRT_HANDLER_TEST_CONTAINER_DISK";
const DISKS_DIR: &str = "var/run/kubevirt/container-disks";
/// What CNI plugins do.
const MAKE_NETWORK: &str = "ip link add eth0 type veth peer name v0 && ip addr add 10.88.0.7/24 dev eth0 && \
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

// ---- The world around the agent.

struct World {
    _server: ApiServer,
    client: kube::Client,
    directory: tempfile::TempDir,
    agent: Agent,
    shutdown: CancellationToken,
    launcher: Option<Child>,
    container_disk: Option<Child>,
    pod_uid: String,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.kill_launcher();
        self.kill_container_disk();
    }
}

impl World {
    /// An API server with a node, a VMI and its bound pod; nobody acts yet.
    async fn new() -> Self {
        Self::with_volumes(json!([]), json!([])).await
    }

    /// As [`Self::new`]; the VMI and its pod have volumes.
    async fn with_volumes(of_vmi: Value, of_pod: Value) -> Self {
        let crds = ferrovirt_api::crds()
            .iter()
            .map(|crd| serde_json::to_value(crd).unwrap())
            .collect();
        let server = ApiServer::open(Config {
            crds,
            ..Config::memory()
        })
        .await
        .unwrap();
        let client = server.client(UserInfo::admin("tester"));
        let directory = tempfile::tempdir().unwrap();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}});
        let node: Node = serde_json::from_value(node).unwrap();
        Api::<Node>::all(client.clone())
            .create(&PostParams::default(), &node)
            .await
            .unwrap();
        let mut world = Self {
            _server: server,
            client,
            agent: Agent::new(directory.path().join("pods")),
            directory,
            shutdown: CancellationToken::new(),
            launcher: None,
            container_disk: None,
            pod_uid: String::new(),
        };
        world.create_objects(of_vmi, of_pod).await;
        world
    }

    async fn create_objects(&mut self, vmi_volumes: Value, pod_volumes: Value) {
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "finalizers": ["kubevirt.io/foregroundDeleteVirtualMachine"]},
            "spec": {
                "terminationGracePeriodSeconds": 7,
                "domain": {
                    "memory": {"guest": "64Mi"},
                    "devices": {"interfaces": [
                        {"name": "default", "masquerade": {}, "macAddress": "52:54:00:aa:bb:cc"}]},
                },
                "networks": [{"name": "default", "pod": {}}],
                "volumes": vmi_volumes,
            },
        }))
        .unwrap();
        let vmi = self.vmis().create(&PostParams::default(), &vmi).await.unwrap();
        self.patch_status(json!({"phase": "Pending"})).await;
        let uid = vmi.metadata.uid.unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "virt-launcher-vm-x",
                "labels": {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": uid},
                "annotations": {"kubevirt.io/domain": "vm"},
                "ownerReferences": [{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm",
                    "uid": uid, "controller": true}],
            },
            "spec": {"nodeName": "node-a", "containers": [{"name": "compute", "image": "x"}], "volumes": pod_volumes},
        }))
        .unwrap();
        let pod = self.pods().create(&PostParams::default(), &pod).await.unwrap();
        self.pod_uid = pod.metadata.uid.unwrap();
        std::fs::create_dir_all(self.sockets()).unwrap();
    }

    fn vmis(&self) -> Api<VirtualMachineInstance> {
        Api::default_namespaced(self.client.clone())
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    fn sockets(&self) -> PathBuf {
        self.directory
            .path()
            .join("pods")
            .join(&self.pod_uid)
            .join("volumes/kubernetes.io~empty-dir/sockets")
    }

    fn options(&self) -> Options {
        Options {
            kvm: KvmMode::Off,
            launcher_user: 0,
            ..Options::new(
                "node-a",
                self.directory.path().join("pods"),
                self.directory.path().join("state"),
            )
        }
    }

    fn start_agent(&mut self, options: Options) {
        self.shutdown = CancellationToken::new();
        tokio::spawn(run_with(
            self.client.clone(),
            options,
            self.agent.clone(),
            self.shutdown.clone(),
        ));
    }

    /// Starts the launcher as the pod runner would: namespaces of its own, a network interface, the volume.
    fn start_launcher(&mut self) {
        let prepare = format!("{MOUNT_SOCKETS} && {MAKE_NETWORK}");
        self.start_process(&["--net", "--mount"], &prepare);
    }

    /// Starts what plays the launcher in some namespaces of its own.
    fn start_process(&mut self, namespaces: &[&str], prepare: &str) {
        let child = Command::new("unshare")
            .args(namespaces)
            .args(["sh", "-c", &format!("{prepare} && exec \"$@\"")])
            .arg(self.sockets())
            .arg(std::env::current_exe().unwrap())
            .args(["plays_the_launcher", "--exact", "--nocapture"])
            .env(PLAY, self.sockets())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.launcher = Some(child);
    }

    /// Starts what plays a containerDisk's container, in namespaces of its own.
    fn start_container_disk(&mut self) {
        let root = self.directory.path().join("image");
        let volume = self.container_disks();
        let mounted = root.join(DISKS_DIR);
        for directory in [&root.join("disk"), &root.join("etc"), &mounted] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(root.join("disk/disk.img"), "the image").unwrap();
        let child = Command::new("unshare")
            .args([
                "--mount",
                "sh",
                "-c",
                "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"",
            ])
            .args([&volume, &mounted])
            .arg(std::env::current_exe().unwrap())
            .args(["plays_the_container_disk", "--exact", "--nocapture"])
            .env(PLAY_DISK, &root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.container_disk = Some(child);
    }

    fn container_disks(&self) -> PathBuf {
        self.sockets().with_file_name("container-disks")
    }

    fn kill_container_disk(&mut self) {
        if let Some(mut child) = self.container_disk.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn order(&mut self, order: &str) {
        let stdin = self.launcher.as_mut().unwrap().stdin.as_mut().unwrap();
        writeln!(stdin, "{order}").unwrap();
    }

    fn kill_launcher(&mut self) {
        if let Some(mut child) = self.launcher.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn requests(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.sockets().join("requests")).unwrap_or_default();
        // The last line may still be written.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn patch_status(&self, status: Value) -> VirtualMachineInstance {
        let patch = Patch::Merge(json!({"status": status}));
        self.vmis()
            .patch_status("vm", &PatchParams::default(), &patch)
            .await
            .unwrap()
    }

    /// Changes `launchSecurity.sev` of the VMI, which needs UEFI.
    async fn launch_security(&self, sev: Value) {
        let firmware = json!({"bootloader": {"efi": {"secureBoot": false}}});
        let domain = json!({"firmware": firmware, "launchSecurity": {"sev": sev}});
        let patch = Patch::Merge(json!({"spec": {"domain": domain}}));
        self.vmis().patch("vm", &PatchParams::default(), &patch).await.unwrap();
    }

    /// What the VMI controller does when the pod is up.
    async fn schedule(&self) -> VirtualMachineInstance {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"kubevirt.io/nodeName": "node-a"}}}));
        self.vmis().patch("vm", &PatchParams::default(), &patch).await.unwrap();
        let pods = json!({self.pod_uid.clone(): "node-a"});
        self.patch_status(json!({"phase": "Scheduled", "nodeName": "node-a", "activePods": pods}))
            .await
    }

    /// The VMI, once it is as wanted.
    async fn vmi_when(&self, what: &str, wanted: impl Fn(&VirtualMachineInstance) -> bool) -> VirtualMachineInstance {
        let start = Instant::now();
        loop {
            let vmi = self.vmis().get("vm").await.unwrap();
            if wanted(&vmi) {
                return vmi;
            }
            assert!(start.elapsed() < DEADLINE, "not {what}: {:#?}", vmi.status);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !holds().await {
            assert!(
                start.elapsed() < DEADLINE,
                "never: {what}; requests {:?}",
                self.requests()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Reasons and messages of all events, sorted.
    async fn events(&self) -> Vec<(String, String)> {
        let events = Api::<Event>::default_namespaced(self.client.clone());
        let events = events.list(&ListParams::default()).await.unwrap();
        let mut events: Vec<_> = events
            .items
            .into_iter()
            .map(|e| (e.reason.unwrap_or_default(), e.message.unwrap_or_default()))
            .collect();
        events.sort();
        events
    }

    async fn running(&mut self) -> VirtualMachineInstance {
        self.start_agent(self.options());
        self.start_launcher();
        self.schedule().await;
        self.vmi_when("Running", |vmi| phase(vmi) == "Running").await
    }
}

fn phase(vmi: &VirtualMachineInstance) -> &str {
    vmi.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn has_condition(vmi: &VirtualMachineInstance, kind: &str) -> bool {
    vmi.status
        .iter()
        .flat_map(|status| &status.conditions)
        .any(|c| c.r#type == kind && c.status == "True")
}

fn revision(vmi: &VirtualMachineInstance) -> u64 {
    vmi.metadata.resource_version.as_ref().unwrap().parse().unwrap()
}

// ---- What is tested.

#[tokio::test]
async fn from_a_bound_pod_to_a_clean_end() {
    let mut world = World::new().await;
    world.start_agent(world.options());
    world.start_launcher();
    let record = world
        .directory
        .path()
        .join("state/network")
        .join(format!("{}.json", world.pod_uid));
    world
        .until("the network is prepared before the VMI is scheduled", async || {
            std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"done\":true"))
        })
        .await;
    assert!(world.requests().is_empty(), "nothing is started before its time");

    let scheduled = revision(&world.schedule().await);
    let vmi = world.vmi_when("Running", |vmi| phase(vmi) == "Running").await;
    assert_eq!(
        world.requests(),
        [json!({"sync": {"kvm": false, "emulation": true,
            "nics": [{"tap": "tap0", "mac": "52:54:00:aa:bb:cc", "client": "10.0.2.2"}]}})]
    );
    let status = vmi.status.as_ref().unwrap();
    assert_eq!(status.interfaces[0].ip_address.as_deref(), Some(POD_IP));
    assert_eq!(status.machine.as_ref().unwrap().r#type.as_deref(), Some("pc-q35-10.0"));
    assert!(has_condition(&vmi, "SoftwareEmulation") && has_condition(&vmi, "LiveMigratable"));
    assert!(
        status
            .phase_transition_timestamps
            .iter()
            .any(|t| t.phase.as_deref() == Some("Running"))
    );
    let written = writes_between(&world, scheduled, revision(&vmi)).await;
    assert_eq!(written, 1, "one write from Scheduled to Running");
    world
        .until("it is told", async || world.events().await.len() == 1)
        .await;
    assert_eq!(world.events().await[0].0, "Started");

    world.order("agent");
    let vmi = world
        .vmi_when("connected to the agent", |vmi| has_condition(vmi, "AgentConnected"))
        .await;
    let status = vmi.status.as_ref().unwrap();
    assert_eq!(status.guest_os_info.as_ref().unwrap().id.as_deref(), Some("debian"));
    assert_eq!(status.interfaces[0].interface_name.as_deref(), Some("enp1s0"));
    assert_eq!(status.interfaces[0].ip_addresses, [POD_IP]);

    world.vmis().delete("vm", &DeleteParams::default()).await.unwrap();
    let vmi = world.vmi_when("Succeeded", |vmi| phase(vmi) == "Succeeded").await;
    assert!(!has_condition(&vmi, "AgentConnected"));
    assert_eq!(world.requests()[1..], [json!({"act": "SHUTDOWN", "grace": 7})]);
    world
        .until("all is told", async || world.events().await.len() == 3)
        .await;
    let reasons: Vec<String> = world.events().await.into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, ["ShuttingDown", "Started", "Stopped"]);
}

/// How often the VMI was written after one revision, up to another.
async fn writes_between(world: &World, from: u64, to: u64) -> usize {
    let mut stream = world
        .vmis()
        .watch(&kube::api::WatchParams::default(), &from.to_string())
        .await
        .unwrap()
        .boxed();
    let mut count = 0;
    while let Some(event) = stream.next().await {
        let kube::api::WatchEvent::Modified(vmi) = event.unwrap() else {
            continue;
        };
        count += 1;
        if revision(&vmi) >= to {
            break;
        }
    }
    count
}

#[tokio::test]
async fn a_killed_launcher_fails_its_vmi() {
    let mut world = World::new().await;
    world.running().await;
    world.kill_launcher();
    let vmi = world.vmi_when("Failed", |vmi| phase(vmi) == "Failed").await;
    assert_eq!(vmi.status.unwrap().reason.as_deref(), Some("LauncherDied"));
    world
        .until("it is told", async || {
            world.events().await.iter().any(|(reason, _)| reason == "Stopped")
        })
        .await;
}

#[tokio::test]
async fn a_guest_that_powers_off_succeeds() {
    let mut world = World::new().await;
    world.running().await;
    world.order("poweroff");
    let vmi = world.vmi_when("Succeeded", |vmi| phase(vmi) == "Succeeded").await;
    assert_eq!(vmi.status.unwrap().reason, None);
}

#[tokio::test]
async fn the_next_agent_adopts_and_writes_nothing() {
    let mut world = World::new().await;
    let before = world.running().await;
    world.shutdown.cancel();
    world.agent = Agent::new(world.directory.path().join("pods"));
    world.start_agent(world.options());
    world
        .until("it is synced again", async || world.requests().len() == 2)
        .await;
    assert_eq!(
        world.requests()[0],
        world.requests()[1],
        "the network was found as it was"
    );
    world
        .until("actions arrive", async || {
            world.agent.act("default", "vm", Action::Pause).await.is_ok()
        })
        .await;
    let after = world.vmi_when("Paused", |vmi| has_condition(vmi, "Paused")).await;
    assert_eq!(
        writes_between(&world, revision(&before), revision(&after)).await,
        1,
        "only the pause was written"
    );
    world.agent.act("default", "vm", Action::Unpause).await.unwrap();
    world.vmi_when("unpaused", |vmi| !has_condition(vmi, "Paused")).await;
    let refusal = world.agent.act("default", "vm", Action::Reset).await.unwrap_err();
    assert!(refusal.to_string().contains("not in the mood"), "{refusal}");
    assert_eq!(
        world.agent.guest_info("default", "vm").await.unwrap(),
        json!({"hostname": "guest"})
    );
    let (thaw_after, done) = (Duration::from_millis(1500), world.requests().len());
    world.agent.freeze("default", "vm", thaw_after).await.unwrap();
    assert_eq!(
        world.requests()[done..],
        [json!({"act": "FREEZE", "grace": 0, "thaw": 2})],
        "never sooner than asked for"
    );
    let png = world.agent.screenshot("default", "vm", false).await.unwrap();
    assert_eq!(png, b"\x89PNG in pieces");
}

#[tokio::test]
async fn an_attested_guest_waits_for_the_session_of_its_owner() {
    let mut world = World::new().await;
    world.launch_security(json!({"attestation": {}})).await;
    world.start_agent(world.options());
    world.start_launcher();
    world.schedule().await;
    let platform = async || world.agent.sev_platform("default", "vm").await;
    world
        .until("the launcher is there", async || platform().await.is_ok())
        .await;
    let platform = platform().await.unwrap();
    assert_eq!(
        (platform.pdh.as_deref(), platform.cert_chain.as_deref()),
        (Some("QUFB"), Some("QkJC"))
    );
    // Others are started in less.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(world.requests().is_empty(), "it is not started: {:?}", world.requests());
    assert_eq!(phase(&world.vmis().get("vm").await.unwrap()), "Scheduled");

    world
        .launch_security(json!({"session": "QUFB", "dhCert": "QkJC"}))
        .await;
    let vmi = world.vmi_when("Running", |vmi| phase(vmi) == "Running").await;
    let conditions = &vmi.status.as_ref().unwrap().conditions;
    let migratable = conditions.iter().find(|c| c.r#type == "LiveMigratable").unwrap();
    assert_eq!(migratable.reason.as_deref(), Some("SEVNotLiveMigratable"));
    let measurement = world.agent.sev_measurement("default", "vm").await.unwrap();
    assert_eq!(
        (measurement.measurement.as_deref(), measurement.api_minor),
        (Some("Q0ND"), Some(55))
    );
    let secret = SEVSecretOptions {
        header: Some("QUFB".into()),
        secret: Some("QkJC".into()),
    };
    world.agent.sev_secret("default", "vm", secret).await.unwrap();
    let requests = world.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert_eq!(requests[1], json!({"header": "QUFB", "secret": "QkJC"}));
}

#[tokio::test]
async fn a_container_disk_without_image_volumes_is_mounted_from_its_container() {
    let mut world = World::with_volumes(
        json!([{"name": "root", "containerDisk": {"image": "x"}}]),
        json!([{"name": "container-disks", "emptyDir": {}}]),
    )
    .await;
    std::fs::create_dir_all(world.container_disks()).unwrap();
    world.start_agent(world.options());
    let prepare = format!("{MOUNT_SOCKETS} && {MOUNT_CONTAINER_DISKS} && {MAKE_NETWORK}");
    world.start_process(&["--net", "--mount"], &prepare);
    world.start_container_disk();
    world.schedule().await;
    world.vmi_when("Running", |vmi| phase(vmi) == "Running").await;
    let disk = |request: &Value| request["disk"].clone();
    // EROFS; and of what is mounted in the container nothing is seen.
    let found = json!({"image": "the image", "write": 30, "below": 0});
    assert_eq!(disk(&world.requests()[0]), found);
    let nowhere_else = std::fs::read_dir(world.container_disks().join("disk_0"))
        .unwrap()
        .count();
    assert_eq!(nowhere_else, 0, "only the launcher sees it");

    // The next agent finds it as it is, whatever has become of the container.
    world.kill_container_disk();
    world.shutdown.cancel();
    world.agent = Agent::new(world.directory.path().join("pods"));
    world.start_agent(world.options());
    world
        .until("it is synced again", async || world.requests().len() == 2)
        .await;
    assert_eq!(disk(&world.requests()[1]), found);
}

#[tokio::test]
async fn nothing_is_mounted_for_a_process_that_is_not_in_the_container() {
    let mut world = World::with_volumes(
        json!([{"name": "root", "containerDisk": {"image": "x"}}]),
        json!([{"name": "container-disks", "emptyDir": {}}]),
    )
    .await;
    std::fs::create_dir_all(world.container_disks()).unwrap();
    // This process: it has no such volume.
    // By a descriptor: the path is too long for a socket's.
    let volume = std::fs::File::open(world.container_disks()).unwrap();
    let path = format!("/proc/self/fd/{}/disk_0.sock", std::os::fd::AsRawFd::as_raw_fd(&volume));
    let _listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    world.start_agent(world.options());
    let prepare = format!("{MOUNT_SOCKETS} && {MOUNT_CONTAINER_DISKS} && {MAKE_NETWORK}");
    world.start_process(&["--net", "--mount"], &prepare);
    world.schedule().await;
    let vmi = world
        .vmi_when("told what is wrong", |vmi| {
            let conditions = vmi.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|c| c.r#type == "Synchronized")
        })
        .await;
    let text = format!("{:?}", vmi.status.unwrap().conditions);
    assert!(
        text.contains("does not have the pod's volume `container-disks` mounted"),
        "{text}"
    );
    assert!(world.requests().is_empty());
}

/// The VMI fails, and says why; whoever listened on the launcher's socket was told nothing.
async fn is_refused(world: &World, why: &str) {
    world.schedule().await;
    let vmi = world.vmi_when("Failed", |vmi| phase(vmi) == "Failed").await;
    let conditions = &vmi.status.as_ref().unwrap().conditions;
    let synchronized = conditions.iter().find(|c| c.r#type == "Synchronized").unwrap();
    assert!(synchronized.message.as_ref().unwrap().contains(why), "{synchronized:?}");
    assert!(world.requests().is_empty());
}

#[tokio::test]
async fn a_process_of_another_user_is_not_talked_to() {
    let mut world = World::new().await;
    world.start_agent(Options {
        launcher_user: 107,
        ..world.options()
    });
    world.start_launcher();
    is_refused(&world, "user 0, not 107").await;
}

#[tokio::test]
async fn a_process_outside_the_pod_is_not_talked_to() {
    let mut world = World::new().await;
    world.start_agent(world.options());
    world.start_process(&["--net", "--mount"], "mount -t tmpfs none /run && ip link set lo up");
    is_refused(&world, "does not have the pod's volume `sockets` mounted").await;
}

#[tokio::test]
async fn a_process_in_the_network_of_the_node_is_not_talked_to() {
    let mut world = World::new().await;
    world.start_agent(world.options());
    world.start_process(&["--mount"], MOUNT_SOCKETS);
    is_refused(&world, "network namespace of the node").await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_takes_its_node_off() {
    let mut world = World::new().await;
    world.start_agent(Options {
        heartbeat: true,
        ..world.options()
    });
    let nodes = Api::<Node>::all(world.client.clone());
    let is = async |schedulable: &str| {
        let metadata = nodes.get("node-a").await.unwrap().metadata;
        let label = metadata.labels.unwrap_or_default().remove("kubevirt.io/schedulable");
        let beat = metadata.annotations.unwrap_or_default().remove("kubevirt.io/heartbeat");
        label.as_deref() == Some(schedulable) && beat.is_some()
    };
    world.until("the node is offered", async || is("true").await).await;
    world.shutdown.cancel();
    world.until("the node is taken off", async || is("false").await).await;
}

#[tokio::test]
async fn the_node_says_what_it_can_do() {
    let mut world = World::new().await;
    if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        panic!("install qemu-system-x86");
    }
    world.start_agent(world.options());
    let nodes = Api::<Node>::all(world.client.clone());
    world
        .until("labels and devices are there", async || {
            let node = nodes.get("node-a").await.unwrap();
            let label = |key: &str| {
                node.metadata
                    .labels
                    .as_ref()
                    .and_then(|labels| labels.get(key))
                    .map(String::as_str)
            };
            let devices = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
            label("kubevirt.io/schedulable") == Some("true")
                && label("machine-type.node.kubevirt.io/q35") == Some("true")
                && label("ferrovirt.node.kubevirt.io/kvm") == Some("false")
                && devices
                    .and_then(|d| d.get("devices.kubevirt.io/kvm"))
                    .is_some_and(|count| count.0 == "0")
        })
        .await;
}
