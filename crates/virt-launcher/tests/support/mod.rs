//! A launcher as in a pod: PID 1 of a PID namespace, with directories of its own. Needs root.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ferrovirt_protocol::launcher::launcher_client::LauncherClient;
use ferrovirt_protocol::launcher::{
    ActRequest, Action, GuestState, Lifecycle, Nic, NodeFacts, SyncRequest, WatchRequest,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Streaming};

/// Everything must happen within this; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// UID of the VMI.
pub const UID: &str = "0b9dbd4c-5e44-4b32-a9c1-2f9ea4ae1d8f";

/// QEMU's capabilities, probed once per test executable.
fn capabilities() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt-launcher"));
        let status = command.arg("--prepare-capabilities").arg(&cache).status().unwrap();
        assert!(status.success(), "the capabilities could not be prepared");
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        dir
    })
    .path()
}

/// A launcher and its root directory. Dropping it ends the whole PID namespace.
pub struct Pod {
    root: tempfile::TempDir,
    process: Child,
    vmi: Value,
}

impl Pod {
    /// Starts a launcher; `edit` changes the VMI it will be given.
    pub fn start(edit: impl FnOnce(&mut Value)) -> Self {
        Self::start_as(edit, |_, _| ())
    }

    /// Also with another command line before the launcher's.
    pub fn start_as(edit: impl FnOnce(&mut Value), wrap: impl FnOnce(&mut Command, &Path)) -> Self {
        let root = tempfile::Builder::new().prefix("vl").tempdir_in("/tmp").unwrap();
        fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        // The pod's user makes what it needs, as in a pod.
        let prepared = root.path().join("var/cache/ferrovirt");
        fs::create_dir_all(&prepared).unwrap();
        std::os::unix::fs::symlink(capabilities().join("cache"), prepared.join("libvirt-qemu")).unwrap();
        for path in ["", "var"] {
            std::os::unix::fs::chown(root.path().join(path), Some(107), Some(107)).unwrap();
        }
        let mut vmi = json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": { "name": "vm", "namespace": "test", "uid": UID },
            "spec": {
                "terminationGracePeriodSeconds": 2,
                "domain": {
                    "cpu": { "cores": 1 },
                    "memory": { "guest": "32Mi" },
                    "devices": { "autoattachPodInterface": false },
                },
            },
        });
        edit(&mut vmi);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--mount-proc", "--fork"]);
        wrap(&mut command, root.path());
        command
            .arg(env!("CARGO_BIN_EXE_virt-launcher"))
            .args([
                "--name",
                "vm",
                "--namespace",
                "test",
                "--uid",
                "0b9dbd4c-5e44-4b32-a9c1-2f9ea4ae1d8f",
            ])
            .args(["--log-level", "debug", "--root"])
            .arg(root.path())
            .stdin(Stdio::null())
            .process_group(0);
        let process = command.spawn().unwrap();
        Self { root, process, vmi }
    }

    /// Its root directory.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// A client, as soon as the launcher listens.
    pub async fn client(&mut self) -> LauncherClient<Channel> {
        let socket = self.path("var/run/kubevirt/sockets/launcher-sock");
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(self.process.try_wait().unwrap().is_none(), "the launcher ended");
            assert!(Instant::now() < deadline, "the launcher does not listen");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://launcher");
        LauncherClient::new(endpoint.connect_with_connector(connect).await.unwrap())
    }

    /// Asks for the guest, without NICs.
    pub async fn sync(&self, client: &mut LauncherClient<Channel>) {
        self.sync_with(client, Vec::new()).await;
    }

    /// Asks for the guest.
    pub async fn sync_with(&self, client: &mut LauncherClient<Channel>, nics: Vec<Nic>) {
        let node = NodeFacts {
            kvm: false,
            allow_emulation: true,
            nics,
            cluster: None,
        };
        let vmi = serde_json::to_vec(&self.vmi).unwrap();
        client.sync(SyncRequest { vmi, node: Some(node) }).await.unwrap();
    }

    /// Starts the guest and waits until it runs.
    pub async fn run(&mut self) -> (LauncherClient<Channel>, Watcher) {
        let mut client = self.client().await;
        let mut watcher = Watcher::new(&mut client).await;
        self.sync(&mut client).await;
        watcher.until(Lifecycle::Running).await;
        (client, watcher)
    }

    /// Host pids of processes of this pod with this name.
    pub fn pids(&self, name: &str) -> Vec<i32> {
        let ours = self.launcher().and_then(pid_namespace);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if comm.trim() == name && ours.is_some() && pid_namespace(pid) == ours {
                found.push(pid);
            }
        }
        found
    }

    /// Host pid of the launcher: the only child of `unshare`.
    pub fn launcher(&self) -> Option<i32> {
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Waits for the end of the launcher.
    pub async fn exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the launcher does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Its PID namespace ends with it.
        if let Some(pid) = self.launcher() {
            let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pid_namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Sends a signal to a process that a test found in its own pod.
pub fn signal(pid: i32, name: &str) {
    assert!(
        Command::new("kill")
            .args(["-s", name, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// Prints what the processes beside QEMU cost.
pub fn print_memory(pod: &Pod) {
    for name in ["virt-launcher", "libvirtd"] {
        for pid in pod.pids(name) {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let lines = rollup
                .lines()
                .filter(|line| ["Rss:", "Pss:", "Pss_Anon:"].iter().any(|key| line.starts_with(key)));
            println!(
                "{name}: {}",
                lines
                    .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
    }
}

/// The guest's states as they come.
pub struct Watcher {
    states: Streaming<GuestState>,
    generation: u64,
}

impl Watcher {
    /// Starts watching.
    pub async fn new(client: &mut LauncherClient<Channel>) -> Self {
        Self {
            states: client.watch(WatchRequest {}).await.unwrap().into_inner(),
            generation: 0,
        }
    }

    /// The next state; generations only grow.
    pub async fn next(&mut self) -> GuestState {
        let next = tokio::time::timeout(PATIENCE, self.states.message())
            .await
            .expect("no state in time");
        let state = next.unwrap().expect("the stream ended");
        assert!(state.generation > self.generation);
        self.generation = state.generation;
        state
    }

    /// The first state with this lifecycle.
    pub async fn until(&mut self, lifecycle: Lifecycle) -> GuestState {
        loop {
            let state = self.next().await;
            if state.lifecycle() == lifecycle {
                return state;
            }
            let over = [Lifecycle::ShutOff, Lifecycle::Crashed, Lifecycle::Failed].contains(&state.lifecycle());
            assert!(!over, "{lifecycle:?} is not reached: {state:?}");
        }
    }
}

/// Does one thing.
pub async fn act(
    client: &mut LauncherClient<Channel>,
    action: Action,
    grace_seconds: u64,
) -> Result<(), (Code, String)> {
    let request = ActRequest {
        action: action.into(),
        grace_seconds,
        thaw_seconds: 0,
    };
    let done = client.act(request).await;
    done.map(drop)
        .map_err(|status| (status.code(), status.message().to_owned()))
}
