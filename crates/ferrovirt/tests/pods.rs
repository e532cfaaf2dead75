//! The pod runner with everything real: namespaces, mounts, cgroups, CNI, processes. Needs root.
#![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use ferrovirt_standalone::images::ImageStore;
use ferrovirt_standalone::paths::DataDir;
use ferrovirt_standalone::pods::PodRunner;
use ferrovirt_standalone::pods::config::RunnerConfig;
use ferrovirt_standalone::pods::network::NetworkConfig;
use ferrovirt_standalone::scheduler;
use k8s_openapi::api::core::v1::{Event, Node, Pod, PodStatus, Secret};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);
static HOMES: AtomicU32 = AtomicU32::new(0);

/// An API server, a scheduler and a pod runner with a network of their own.
struct Home {
    _server: ApiServer,
    client: Client,
    directory: tempfile::TempDir,
    config: RunnerConfig,
    tasks: JoinSet<()>,
}

impl Home {
    async fn start() -> Self {
        let number = HOMES.fetch_add(1, Ordering::Relaxed);
        let server = ApiServer::open(Config::memory()).await.unwrap();
        let client = server.client(UserInfo::admin("kubernetes-admin"));
        let directory = tempfile::Builder::new().prefix("ferrovirt-pods-").tempdir().unwrap();
        let data = DataDir::new(directory.path());
        let unique = format!("{}{number}", std::process::id() % 10_000);
        let network = NetworkConfig {
            bridge: format!("fvt{unique}"),
            subnet: format!("10.{}.{}.0/24", 100 + std::process::id() % 100, number),
            directory: data.cni(),
            netns: PathBuf::from(format!("/run/ferrovirt-test/{unique}")),
        };
        let executable = PathBuf::from(env!("CARGO_BIN_EXE_ferrovirt"));
        let config = RunnerConfig {
            node: "node01".into(),
            host_ip: "127.0.0.1".parse().unwrap(),
            image: "ferrovirt/virt-launcher".into(),
            launcher: executable.clone(),
            executable,
            data,
            network,
            kvm: tokio::sync::watch::channel(Some(false)).1,
        };
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "node01"},
            "status": {"allocatable": {"cpu": "8", "memory": "64Gi", "pods": "110"}},
        }))
        .unwrap();
        Api::all(client.clone())
            .create(&PostParams::default(), &node)
            .await
            .unwrap();
        let mut home = Self {
            _server: server.clone(),
            client: client.clone(),
            directory,
            config,
            tasks: JoinSet::new(),
        };
        home.tasks.spawn(async move {
            scheduler::run(client, CancellationToken::new()).await.unwrap();
        });
        home.start_runner(Some(&server)).await;
        home
    }

    /// Like the next `ferrovirt up` on the same directory.
    async fn start_runner(&mut self, server: Option<&ApiServer>) {
        let images = ImageStore::open(&self.config.data.images()).unwrap();
        let runner = PodRunner::new(self.config.clone(), self.client.clone(), images)
            .await
            .unwrap();
        server.unwrap_or(&self._server).set_kubelet(runner.kubelet());
        self.tasks
            .spawn(async move { runner.run(CancellationToken::new()).await.unwrap() });
    }

    /// What SIGKILL of `ferrovirt up` does to its tasks.
    async fn kill_runner(&mut self) {
        self.tasks.shutdown().await;
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, pod: Value) -> Pod {
        let pod = serde_json::from_value(pod).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    async fn until(&self, name: &str, what: &str, holds: impl Fn(&Pod) -> bool) -> Pod {
        let started = Instant::now();
        loop {
            let pod = self.pods().get(name).await.unwrap();
            if holds(&pod) {
                return pod;
            }
            assert!(
                started.elapsed() < DEADLINE,
                "{name} is never {what}: {:#?}",
                pod.status
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_phase(&self, name: &str, phase: &str) -> Pod {
        self.until(name, phase, |pod| status(pod).phase.as_deref() == Some(phase))
            .await
    }

    async fn until_gone(&self, name: &str) {
        let started = Instant::now();
        while self.pods().get_opt(name).await.unwrap().is_some() {
            assert!(started.elapsed() < DEADLINE, "{name} stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn logs(&self, name: &str, container: &str) -> String {
        let parameters = LogParams {
            container: Some(container.into()),
            ..LogParams::default()
        };
        self.pods().logs(name, &parameters).await.unwrap()
    }

    async fn events(&self, reason: &str) -> Vec<String> {
        let events = Api::<Event>::namespaced(self.client.clone(), "default")
            .list(&ListParams::default())
            .await
            .unwrap();
        let chosen = events
            .items
            .into_iter()
            .filter(|event| event.reason.as_deref() == Some(reason));
        chosen.filter_map(|event| event.message).collect()
    }

    /// Soon nothing of any pod is left on the machine.
    async fn assert_clean(&self, uid: &str) {
        let begun = Instant::now();
        while let Some(left) = self.left(uid) {
            assert!(begun.elapsed() < DEADLINE, "{left} is left");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn left(&self, uid: &str) -> Option<String> {
        let reserved = self.config.data.cni().join("state").join(&self.config.network.bridge);
        let addresses = fs::read_dir(reserved)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let addresses = addresses.filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().parse::<std::net::IpAddr>().is_ok())
        });
        let logs = fs::read_dir(self.config.data.pod_logs())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let own = [
            self.config.data.pods().join(uid),
            self.config.network.netns_of(uid),
            Path::new("/sys/fs/cgroup/memory/ferrovirt").join(uid),
            Path::new("/sys/fs/cgroup/ferrovirt").join(uid),
        ];
        let mut left = own
            .into_iter()
            .filter(|path| path.exists())
            .chain(addresses)
            .chain(logs);
        left.next().map(|path| path.display().to_string())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let bridge = &self.config.network.bridge;
        let _ = Command::new("ip").args(["link", "del", bridge]).output();
        let _ = Command::new("nft").args(["delete", "table", "ip", bridge]).output();
        let _ = fs::remove_dir(&self.config.network.netns);
        let _ = fs::remove_dir_all(self.directory.path());
    }
}

fn status(pod: &Pod) -> PodStatus {
    pod.status.clone().unwrap_or_default()
}

fn pod(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 30,
            "securityContext": {"runAsUser": 107, "runAsGroup": 107, "fsGroup": 107, "runAsNonRoot": true},
            "containers": [{
                "name": "compute", "image": "ferrovirt/virt-launcher:0.1.0", "command": ["/bin/sh", "-c", script],
                "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
            }],
        },
    })
}

fn exit_code(pod: &Pod) -> i32 {
    let statuses = status(pod).container_statuses.unwrap();
    statuses[0].state.clone().unwrap().terminated.unwrap().exit_code
}

const WAIT: &str = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_shut_in() {
    let home = Home::start().await;
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "s"}, "stringData": {"userdata": "#cloud-config\n"},
    }))
    .unwrap();
    Api::<Secret>::namespaced(home.client.clone(), "default")
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let script = "
        id -u; id -g; hostname; echo pid $$$$
        grep -E 'CapEff|CapAmb|NoNewPrivs|Seccomp:' /proc/self/status
        ls /root /home /etc/shadow /boot /var/lib 2>&1
        touch /usr/x 2>&1; touch /x 2>&1; touch /run/x /tmp/x && echo writable
        cat /secret/userdata; touch /secret/x 2>&1; stat -c %a:%g /scratch; echo data > /scratch/file && echo stored
        ls /dev; ls -l /usr/bin/virt-launcher | cut -c1-4; cat /etc/passwd; cat /etc/hosts
        mount -t tmpfs t /mnt 2>&1; unshare -r true 2>&1 && echo escaped; echo > /proc/sys/kernel/core_pattern 2>&1
        ls /sys/class/net; ps 2>/dev/null; kill -0 2 2>&1; exit 3";
    let mut manifest = pod("shut-in", script);
    manifest["spec"]["hostname"] = "guest".into();
    manifest["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "s", "mountPath": "/secret"}, {"name": "e", "mountPath": "/scratch"}]);
    manifest["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "s"}}, {"name": "e", "emptyDir": {}}]);
    let uid = home.create(manifest).await.uid().unwrap();
    let pod = home.until_phase("shut-in", "Failed").await;
    assert_eq!(exit_code(&pod), 3);
    let log = home.logs("shut-in", "compute").await;
    println!("{log}");
    for expected in [
        "107\n107\nguest\npid 1\n",
        "CapEff:\t0000000000000400",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "/etc/shadow': No such file",
        "/boot': No such file",
        "touch: cannot touch '/usr/x': Read-only file system",
        "touch: cannot touch '/x': Read-only file system",
        "writable",
        "#cloud-config",
        "touch: cannot touch '/secret/x': Read-only file system",
        "2777:107",
        "stored",
        "qemu:x:107:107",
        "\tguest\n",
        "eth0",
    ] {
        assert!(log.contains(expected), "{expected:?} is not in:\n{log}");
    }
    assert!(
        !log.contains("kvm\n"),
        "KVM is not known to work, so there is no device"
    );
    home.pods().delete("shut-in", &DeleteParams::default()).await.unwrap();
    home.until_gone("shut-in").await;
    home.assert_clean(&uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_is_reached_and_ends_gracefully() {
    let home = Home::start().await;
    let mut manifest = pod("p", WAIT);
    manifest["spec"]["initContainers"] = json!([{
        "name": "tail", "image": "ferrovirt/virt-launcher:0.1.0", "restartPolicy": "Always",
        "command": ["/usr/bin/virt-tail", "--logfile", "/shared/log"],
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
    }]);
    manifest["spec"]["containers"][0]["command"][2] = format!("printf 'one\\ntwo\\nhalf' > /shared/log; {WAIT}").into();
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    manifest["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    let begun = Instant::now();
    let uid = home.create(manifest).await.uid().unwrap();
    let pod = home.until_phase("p", "Running").await;
    println!("POST to Running: {:?}", begun.elapsed());
    let status = status(&pod);
    let ready = status
        .conditions
        .unwrap()
        .into_iter()
        .find(|condition| condition.type_ == "Ready")
        .unwrap();
    assert_eq!(ready.status, "True");
    let ip: std::net::IpAddr = status.pod_ip.unwrap().parse().unwrap();
    // The pod answers (with a refusal), so the network works.
    let refused = tokio::net::TcpStream::connect(SocketAddr::new(ip, 9))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let begun = Instant::now();
    while home.logs("p", "tail").await != "one\ntwo\nhalf" {
        assert!(begun.elapsed() < DEADLINE, "{:?}", home.logs("p", "tail").await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(home.logs("p", "compute").await, "up\n");
    let begun = Instant::now();
    home.pods().delete("p", &DeleteParams::default()).await.unwrap();
    home.until_gone("p").await;
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "the grace was not cut short by the end of the container"
    );
    home.assert_clean(&uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_end_with_the_main_container_and_come_back_before() {
    let home = Home::start().await;
    let mut manifest = pod("p", "while [ ! -e /shared/end ]; do sleep 0.1; done; exit 0");
    manifest["spec"]["initContainers"] = json!([{
        "name": "side", "image": "ferrovirt/virt-launcher:0.1.0", "restartPolicy": "Always",
        "command": ["/bin/sh", "-c", "if [ -e /shared/again ]; then touch /shared/end; trap 'exit 0' TERM; \
            while :; do sleep 1 & wait $!; done; fi; touch /shared/again"],
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
    }]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    manifest["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    let uid = home.create(manifest).await.uid().unwrap();
    let pod = home.until_phase("p", "Succeeded").await;
    let side = status(&pod).init_container_statuses.unwrap().remove(0);
    assert_eq!(side.restart_count, 1);
    assert!(side.state.unwrap().terminated.is_some());
    home.pods().delete("p", &DeleteParams::default()).await.unwrap();
    home.until_gone("p").await;
    home.assert_clean(&uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ignores_sigterm_is_killed_after_its_grace() {
    let home = Home::start().await;
    let uid = home
        .create(pod("deaf", "trap '' TERM; echo up; while :; do sleep 1; done"))
        .await
        .uid()
        .unwrap();
    home.until_phase("deaf", "Running").await;
    let begun = Instant::now();
    home.pods()
        .delete(
            "deaf",
            &DeleteParams {
                grace_period_seconds: Some(2),
                ..DeleteParams::default()
            },
        )
        .await
        .unwrap();
    home.until_gone("deaf").await;
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    home.assert_clean(&uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pod_runner_takes_over_what_runs() {
    let mut home = Home::start().await;
    let uid = home.create(pod("stays", WAIT)).await.uid().unwrap();
    let lost = home.create(pod("lost", WAIT)).await;
    home.until_phase("stays", "Running").await;
    home.until_phase("lost", "Running").await;
    home.kill_runner().await;
    let state = home.config.data.pods().join(lost.uid().unwrap()).join("state.json");
    let state: Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
    let pid = state["containers"]["compute"]["process"]["pid"].to_string();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    home.start_runner(None).await;
    let lost = home.until_phase("lost", "Failed").await;
    assert_eq!(exit_code(&lost), 137);
    let pod = home.pods().get("stays").await.unwrap();
    assert_eq!(status(&pod).phase.as_deref(), Some("Running"));
    assert_eq!(home.logs("stays", "compute").await, "up\n");
    for name in ["stays", "lost"] {
        home.pods().delete(name, &DeleteParams::default()).await.unwrap();
    }
    home.until_gone("stays").await;
    home.until_gone("lost").await;
    home.assert_clean(&uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_machine_nothing_is_a_ghost() {
    let mut home = Home::start().await;
    let uid = home.create(pod("p", WAIT)).await.uid().unwrap();
    home.until_phase("p", "Running").await;
    home.kill_runner().await;
    let path = home.config.data.pods().join(&uid).join("state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let pid = state["containers"]["compute"]["process"]["pid"].to_string();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    state["boot"] = "another".into();
    fs::write(&path, state.to_string()).unwrap();
    home.start_runner(None).await;
    let pod = home.until_phase("p", "Failed").await;
    assert_eq!(status(&pod).reason.as_deref(), Some("Lost"));
    home.pods().delete("p", &DeleteParams::default()).await.unwrap();
    home.until_gone("p").await;
    home.assert_clean(&uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why() {
    let home = Home::start().await;
    let mut foreign = pod("foreign", "true");
    foreign["spec"]["containers"][0]["image"] = "nginx".into();
    let mut missing = pod("missing", "true");
    missing["spec"]["volumes"] = json!([{"name": "d", "image": {"reference": "demo/none:1", "pullPolicy": "Never"}}]);
    let mut no_secret = pod("no-secret", "true");
    no_secret["spec"]["volumes"] = json!([{"name": "d", "secret": {"secretName": "absent"}}]);
    let mut large = pod("large", "true");
    large["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "1Ti"}});
    let waiting = |pod: &Pod| {
        let statuses = status(pod).container_statuses?;
        statuses.first()?.state.clone()?.waiting
    };
    for (manifest, reason, message, event) in [
        (foreign, "ErrImagePull", "containers belong on a cluster", "Failed"),
        (missing, "ErrImageNeverPull", "demo/none:1", "Failed"),
        (
            no_secret,
            "ContainerCreating",
            "secret \"absent\" not found",
            "FailedMount",
        ),
    ] {
        let name = home.create(manifest).await.name_any();
        let pod = home
            .until(&name, "explained", |pod| {
                waiting(pod).is_some_and(|waiting| waiting.message.is_some())
            })
            .await;
        let found = waiting(&pod).unwrap();
        assert_eq!(found.reason.as_deref(), Some(reason));
        assert!(found.message.unwrap().contains(message));
        let begun = Instant::now();
        while !home.events(event).await.iter().any(|text| text.contains(message)) {
            assert!(begun.elapsed() < DEADLINE, "no event {event}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        home.pods().delete(&name, &DeleteParams::default()).await.unwrap();
        home.until_gone(&name).await;
    }
    home.create(large).await;
    let scheduled = |pod: &Pod| {
        let conditions = status(pod).conditions.unwrap_or_default();
        conditions
            .into_iter()
            .find(|condition| condition.type_ == "PodScheduled")
    };
    let pod = home
        .until("large", "unschedulable", |pod| scheduled(pod).is_some())
        .await;
    let condition = scheduled(&pod).unwrap();
    assert_eq!(condition.reason.as_deref(), Some("Unschedulable"));
    assert_eq!(
        condition.message.as_deref(),
        Some("0/1 nodes are available: 1 Insufficient memory.")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_in_a_container_decide_whether_it_is_ready_and_alive() {
    let home = Home::start().await;
    let ready = |pod: &Pod| {
        let statuses = status(pod).container_statuses.unwrap_or_default();
        statuses.first().is_some_and(|status| status.ready)
    };
    let with_probe = |name: &str, kind: &str, command: Value, more: Value| {
        let mut manifest = pod(name, WAIT);
        let mut probe = json!({"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 1});
        for (key, value) in more.as_object().unwrap() {
            probe[key] = value.clone();
        }
        manifest["spec"]["containers"][0][kind] = probe;
        manifest["spec"]["containers"][0]["env"] = json!([{"name": "PLACE", "value": "/tmp"}]);
        manifest
    };
    let event = async |text: &str| {
        let begun = Instant::now();
        while !home.events("Unhealthy").await.iter().any(|event| event.contains(text)) {
            let seen = home.events("Unhealthy").await;
            assert!(begun.elapsed() < DEADLINE, "no event {text:?} but {seen:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };

    // As the container's user, with its environment, until it succeeds. Of two pipes either may be read first: it has one.
    let script = "exec 2>&1; id -u; ls $PLACE/ready || { touch $PLACE/ready; exit 3; }";
    home.create(with_probe(
        "twice",
        "readinessProbe",
        json!(["sh", "-c", script]),
        json!({}),
    ))
    .await;
    let pod = home.until("twice", "ready", ready).await;
    let conditions = status(&pod).conditions.unwrap();
    let condition = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    let said = (condition.status.as_str(), &condition.reason, &condition.message);
    assert_eq!(said, ("True", &None, &None), "what was missing is forgotten");
    event("Readiness probe failed: 107\nls: cannot access '/tmp/ready'").await;

    // What outlasts its time is killed, although its child keeps the pipes open; what is noisy does no harm.
    let script = "echo begun; sleep 1000 & yes | head -c 1000000; sleep 1000";
    home.create(with_probe(
        "slow",
        "readinessProbe",
        json!(["sh", "-c", script]),
        json!({"timeoutSeconds": 2}),
    ))
    .await;
    event("Readiness probe failed: command timed out: \"sh -c echo begun;").await;
    assert!(!ready(&home.pods().get("slow").await.unwrap()));

    // The guest's agent is asked through the launcher, which is not here.
    let command = json!(["/usr/bin/virt-probe", "--domainName", "default_ask", "--guestAgentPing"]);
    home.create(with_probe(
        "ask",
        "livenessProbe",
        command,
        json!({"initialDelaySeconds": 1}),
    ))
    .await;
    event("Liveness probe failed: virt-probe: default_ask: cannot connect to /var/run/kubevirt/sockets/launcher-sock: No such file")
        .await;
    let pod = home.until_phase("ask", "Succeeded").await;
    assert_eq!(exit_code(&pod), 0, "it was asked to end");
    for name in ["twice", "slow", "ask"] {
        home.pods().delete(name, &DeleteParams::default()).await.unwrap();
    }
    for name in ["twice", "slow", "ask"] {
        home.until_gone(name).await;
    }
}
