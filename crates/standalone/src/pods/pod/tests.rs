//! Taking over a process that runs, without what needs root: the pod has no network, no cgroup and no root file system.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, PostParams};

use super::super::network::NetworkConfig;
use super::super::state::{ContainerRecord, boot_id};
use super::*;
use crate::paths::DataDir;

struct World {
    context: Arc<Context>,
    directory: tempfile::TempDir,
    _server: ApiServer,
}

impl World {
    async fn new() -> Self {
        let server = ApiServer::open(Config::memory()).await.unwrap();
        let client = server.client(UserInfo::admin("system:node:here"));
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path());
        let images = ImageStore::open(&data.images()).unwrap();
        let network = NetworkConfig {
            bridge: "unused".into(),
            subnet: "192.0.2.0/24".into(),
            directory: data.cni(),
            netns: directory.path().join("netns"),
        };
        let config = RunnerConfig {
            node: "here".into(),
            host_ip: "127.0.0.1".parse().unwrap(),
            image: "ours".into(),
            executable: "/nonexistent/ferrovirt".into(),
            launcher: "/nonexistent/virt-launcher".into(),
            data,
            network,
            kvm: watch::channel(Some(false)).1,
        };
        let context = Context {
            config,
            events: Events::new(client.clone(), "kubelet", Some("here")),
            client,
            images,
            boot: boot_id(),
            log_limits: LogLimits::start(CancellationToken::new()),
        };
        Self {
            context: Arc::new(context),
            directory,
            _server: server,
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), "default")
    }

    async fn was_told(&self, text: &str) -> bool {
        let events = Api::<Event>::namespaced(self.context.client.clone(), "default");
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let mut messages = events.into_iter().filter_map(|event| event.message);
        messages.any(|message| message.contains(text))
    }
}

/// A pod that this machine would neither accept nor be able to prepare.
fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "spec": {
            "nodeName": "here", "restartPolicy": "Never",
            "containers": [{"name": "compute", "image": "foreign"}],
            "volumes": [{"name": "s", "secret": {"secretName": "absent"}}],
        },
    }))
    .unwrap()
}

/// A process that says goodbye if it is asked to end, and not if it is killed.
fn guest(goodbye: &Path) -> Child {
    let script = format!(
        "trap 'echo bye > {}; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        goodbye.display()
    );
    let mut child = Command::new("/bin/sh")
        .args(["-c", script.as_str()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    child
}

/// What an earlier pod runner wrote down.
fn record(pod: &Pod, child: &Child) -> PodRecord {
    let container = ContainerRecord {
        id: "c".into(),
        process: Process::of_child(child).unwrap().id(),
        started_at: Timestamp::now(),
        restarts: 0,
        ended: None,
        previous: None,
    };
    PodRecord {
        uid: pod.uid().unwrap(),
        namespace: "default".into(),
        name: pod.name_any(),
        boot: boot_id(),
        started_at: Timestamp::now(),
        grace_seconds: 30,
        ports: Vec::new(),
        network: None,
        images: BTreeMap::new(),
        volumes: None,
        containers: [("compute".to_owned(), container)].into(),
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "never {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_runs_is_supervised_even_if_it_could_not_be_started_now() {
    for deleted_before in [false, true] {
        let world = World::new().await;
        let goodbye = world.directory.path().join("goodbye");
        let mut child = guest(&goodbye);
        let pods = world.pods();
        let created = pods.create(&PostParams::default(), &pod()).await.unwrap();
        let record = record(&created, &child);
        if deleted_before {
            pods.delete("p", &DeleteParams::default()).await.unwrap();
        }
        let (sender, receiver) = watch::channel(Arc::new(pods.get("p").await.unwrap()));
        let gone = CancellationToken::new();
        let task = PodTask::new(Arc::clone(&world.context), receiver, gone.clone());
        let running = tokio::spawn(task.run(Some(record)));
        if !deleted_before {
            until("explained", async || {
                world.was_told("secret \"absent\" not found").await
            })
            .await;
            let found = pods.get("p").await.unwrap();
            assert_eq!(phase(&found), Some("Running"));
            assert!(!goodbye.exists(), "the guest was asked to end");
            pods.delete("p", &DeleteParams::default()).await.unwrap();
            sender.send_replace(Arc::new(pods.get("p").await.unwrap()));
        }
        until("gone", async || pods.get_opt("p").await.unwrap().is_none()).await;
        assert_eq!(fs::read_to_string(&goodbye).unwrap(), "bye\n", "{deleted_before}");
        gone.cancel();
        running.await.unwrap();
        // Supervision may have reaped it.
        let _ = child.wait();
        assert!(!world.context.directory(&created.uid().unwrap()).exists());
    }
}
