//! The world around the agent: an API server, a node, a VMI with its pod, and the launcher's process.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use virt_handler::{Agent, KvmMode, Options, run_with};

use super::DEADLINE;
use super::launcher::{DISKS_DIR, MAKE_NETWORK, MOUNT_SOCKETS, PLAY, PLAY_DISK};

pub struct World {
    _server: ApiServer,
    pub client: kube::Client,
    pub directory: tempfile::TempDir,
    pub agent: Agent,
    pub shutdown: CancellationToken,
    pub launcher: Option<Child>,
    pub container_disk: Option<Child>,
    pub pod_uid: String,
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
    pub async fn new() -> Self {
        Self::with_volumes(json!([]), json!([])).await
    }

    /// As [`Self::new`]; the VMI and its pod have volumes.
    pub async fn with_volumes(of_vmi: Value, of_pod: Value) -> Self {
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

    pub async fn create_objects(&mut self, vmi_volumes: Value, pod_volumes: Value) {
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

    pub fn vmis(&self) -> Api<VirtualMachineInstance> {
        Api::default_namespaced(self.client.clone())
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    pub fn sockets(&self) -> PathBuf {
        self.directory
            .path()
            .join("pods")
            .join(&self.pod_uid)
            .join("volumes/kubernetes.io~empty-dir/sockets")
    }

    pub fn options(&self) -> Options {
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

    pub fn start_agent(&mut self, options: Options) {
        self.shutdown = CancellationToken::new();
        tokio::spawn(run_with(
            self.client.clone(),
            options,
            self.agent.clone(),
            self.shutdown.clone(),
        ));
    }

    /// Starts the launcher as the pod runner would: namespaces of its own, a network interface, the volume.
    pub fn start_launcher(&mut self) {
        let prepare = format!("{MOUNT_SOCKETS} && {MAKE_NETWORK}");
        self.start_process(&["--net", "--mount"], &prepare);
    }

    /// Starts what plays the launcher in some namespaces of its own.
    pub fn start_process(&mut self, namespaces: &[&str], prepare: &str) {
        let child = Command::new("unshare")
            .args(namespaces)
            .args(["sh", "-c", &format!("{prepare} && exec \"$@\"")])
            .arg(self.sockets())
            .arg(std::env::current_exe().unwrap())
            .args(["launcher::plays_the_launcher", "--exact", "--nocapture"])
            .env(PLAY, self.sockets())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.launcher = Some(child);
    }

    /// Starts what plays a containerDisk's container, in namespaces of its own.
    pub fn start_container_disk(&mut self) {
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
            .args(["launcher::plays_the_container_disk", "--exact", "--nocapture"])
            .env(PLAY_DISK, &root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.container_disk = Some(child);
    }

    pub fn container_disks(&self) -> PathBuf {
        self.sockets().with_file_name("container-disks")
    }

    pub fn kill_container_disk(&mut self) {
        if let Some(mut child) = self.container_disk.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn order(&mut self, order: &str) {
        let stdin = self.launcher.as_mut().unwrap().stdin.as_mut().unwrap();
        writeln!(stdin, "{order}").unwrap();
    }

    pub fn kill_launcher(&mut self) {
        if let Some(mut child) = self.launcher.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn requests(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.sockets().join("requests")).unwrap_or_default();
        // The last line may still be written.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub async fn patch_status(&self, status: Value) -> VirtualMachineInstance {
        let patch = Patch::Merge(json!({"status": status}));
        self.vmis()
            .patch_status("vm", &PatchParams::default(), &patch)
            .await
            .unwrap()
    }

    /// Changes `launchSecurity.sev` of the VMI, which needs UEFI.
    pub async fn launch_security(&self, sev: Value) {
        let firmware = json!({"bootloader": {"efi": {"secureBoot": false}}});
        let domain = json!({"firmware": firmware, "launchSecurity": {"sev": sev}});
        let patch = Patch::Merge(json!({"spec": {"domain": domain}}));
        self.vmis().patch("vm", &PatchParams::default(), &patch).await.unwrap();
    }

    /// What the VMI controller does when the pod is up.
    pub async fn schedule(&self) -> VirtualMachineInstance {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"kubevirt.io/nodeName": "node-a"}}}));
        self.vmis().patch("vm", &PatchParams::default(), &patch).await.unwrap();
        let pods = json!({self.pod_uid.clone(): "node-a"});
        self.patch_status(json!({"phase": "Scheduled", "nodeName": "node-a", "activePods": pods}))
            .await
    }

    /// The VMI, once it is as wanted.
    pub async fn vmi_when(
        &self,
        what: &str,
        wanted: impl Fn(&VirtualMachineInstance) -> bool,
    ) -> VirtualMachineInstance {
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

    pub async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
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
    pub async fn events(&self) -> Vec<(String, String)> {
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

    pub async fn has_event(&self, reason: &str) -> bool {
        self.events().await.iter().any(|(told, _)| told == reason)
    }

    pub async fn running(&mut self) -> VirtualMachineInstance {
        self.start_agent(self.options());
        self.start_launcher();
        self.schedule().await;
        self.vmi_when("Running", |vmi| phase(vmi) == "Running").await
    }
}

pub fn phase(vmi: &VirtualMachineInstance) -> &str {
    vmi.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

pub fn has_condition(vmi: &VirtualMachineInstance, kind: &str) -> bool {
    vmi.status
        .iter()
        .flat_map(|status| &status.conditions)
        .any(|c| c.r#type == kind && c.status == "True")
}

pub fn revision(vmi: &VirtualMachineInstance) -> u64 {
    vmi.metadata.resource_version.as_ref().unwrap().parse().unwrap()
}
