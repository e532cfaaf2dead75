//! The node agent against the in-process API server and a scripted launcher in namespaces of its own.
#![allow(clippy::unwrap_used, reason = "a test's own code")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferrovirt_api::v1::SEVSecretOptions;
use ferrovirt_core::ClusterConfig;
use ferrovirt_protocol::launcher::Action;
use ferrovirt_protocol::streams::NodeAgent;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use virt_handler::{Agent, Options};

mod launcher;
mod world;

use launcher::{MAKE_NETWORK, MOUNT_CONTAINER_DISKS, MOUNT_SOCKETS};
use world::{World, has_condition, phase, revision};

const DEADLINE: Duration = Duration::from_secs(20);
const POD_IP: &str = "10.88.0.7";

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
    for condition in ["SoftwareEmulation", "LiveMigratable", "StorageLiveMigratable"] {
        assert!(has_condition(&vmi, condition), "{condition}");
    }
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
        .until("it is told", async || world.has_event("Stopped").await)
        .await;
}

#[tokio::test]
async fn a_guest_that_has_no_time_to_shut_down_is_killed() {
    let mut world = World::new().await;
    world.running().await;
    let patch = Patch::Merge(json!({"spec": {"terminationGracePeriodSeconds": 0}}));
    let vmis = world.vmis();
    vmis.patch("vm", &PatchParams::default(), &patch).await.unwrap();
    vmis.delete("vm", &DeleteParams::default()).await.unwrap();
    let kill = json!({"act": "KILL", "grace": 0});
    world
        .until("it is killed", async || world.requests().last() == Some(&kill))
        .await;
    world
        .until("it is told", async || world.has_event("Deleted").await)
        .await;
    assert!(!world.has_event("ShuttingDown").await);
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
    world
        .until("that is told", async || world.has_event("Resumed").await)
        .await;
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
async fn a_guest_that_runs_outlives_what_would_keep_it_from_starting() {
    let mut world = World::new().await;
    let before = world.running().await;
    world.shutdown.cancel();
    world.agent = Agent::new(world.directory.path().join("pods"));
    // Guests would need KVM, which this node has not.
    let mut options = world.options();
    options.config = watch::channel(Arc::new(ClusterConfig::default())).1;
    assert!(!options.config.borrow().use_emulation);
    world.start_agent(options);
    world
        .until("it is synced again", async || world.requests().len() == 2)
        .await;
    world
        .until("actions arrive", async || {
            world.agent.act("default", "vm", Action::Pause).await.is_ok()
        })
        .await;
    let after = world.vmi_when("Paused", |vmi| has_condition(vmi, "Paused")).await;
    assert_eq!(phase(&after), "Running");
    assert_eq!(writes_between(&world, revision(&before), revision(&after)).await, 1);
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

#[tokio::test]
async fn labels_outlast_a_qemu_that_does_not_answer() {
    const OLD: &str = "machine-type.node.kubevirt.io/old";
    let mut world = World::new().await;
    let nodes = Api::<Node>::all(world.client.clone());
    let patch = Patch::Merge(json!({"metadata": {"labels": {OLD: "true"}}}));
    nodes.patch("node-a", &PatchParams::default(), &patch).await.unwrap();
    let labels = async || nodes.get("node-a").await.unwrap().metadata.labels.unwrap_or_default();
    let qemu = world.directory.path().join("qemu");
    world.start_agent(Options {
        qemu: qemu.clone(),
        ..world.options()
    });
    world
        .until("the node is offered", async || {
            labels().await.contains_key("ferrovirt.node.kubevirt.io/kvm")
        })
        .await;
    assert!(labels().await.contains_key(OLD), "nobody has said otherwise");
    std::os::unix::fs::symlink("/usr/bin/qemu-system-x86_64", &qemu).unwrap();
    world
        .until("QEMU was asked again", async || {
            let labels = labels().await;
            labels.contains_key("machine-type.node.kubevirt.io/q35") && !labels.contains_key(OLD)
        })
        .await;
}
