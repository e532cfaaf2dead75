//! The guest's life with real libvirtd and QEMU, driven through the launcher's socket.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use ferrovirt_protocol::launcher::{
    Action, AgentPingRequest, GuestInfoRequest, Lifecycle, SevMeasurementRequest, SevPlatformRequest, SevSecretRequest,
};
use serde_json::json;
use support::{PATIENCE, Pod, Watcher, act, signal};
use tonic::Code;

#[tokio::test]
async fn starts_pauses_goes_on_and_is_shut_down() {
    let mut pod = Pod::start(|_| ());
    let mut client = pod.client().await;
    let mut watcher = Watcher::new(&mut client).await;
    assert_eq!(watcher.next().await.lifecycle(), Lifecycle::Waiting);
    let error = act(&mut client, Action::Pause, 0).await.unwrap_err();
    assert_eq!(error, (Code::FailedPrecondition, "the guest is not running".into()));
    let ping = AgentPingRequest { timeout_seconds: 1 };
    let error = client.agent_ping(ping).await.unwrap_err();
    assert_eq!(error.message(), "the guest is not running");

    let asked = Instant::now();
    pod.sync(&mut client).await;
    let state = watcher.until(Lifecycle::Running).await;
    println!("from Sync to a running guest: {:?}", asked.elapsed());
    assert_eq!(state.domain_type, "qemu");
    assert!(state.machine_type.starts_with("pc-q35-"), "{}", state.machine_type);
    pod.sync(&mut client).await;
    assert_eq!(pod.pids("qemu-system-x86").len(), 1, "a second Sync starts nothing");

    act(&mut client, Action::Pause, 0).await.unwrap();
    assert_eq!(watcher.until(Lifecycle::Paused).await.reason, "User");
    let error = act(&mut client, Action::Pause, 0).await.unwrap_err();
    assert_eq!(error, (Code::FailedPrecondition, "the guest is paused".into()));
    act(&mut client, Action::Unpause, 0).await.unwrap();
    watcher.until(Lifecycle::Running).await;
    act(&mut client, Action::Reset, 0).await.unwrap();
    let error = client.guest_info(GuestInfoRequest {}).await.unwrap_err();
    assert_eq!(error.message(), "the guest agent is not connected");
    let error = client.agent_ping(ping).await.unwrap_err();
    assert_eq!(error.message(), "the guest agent is not connected");

    // Nothing in this guest listens to its power button, so the grace period runs out.
    let asked = Instant::now();
    act(&mut client, Action::Shutdown, 1).await.unwrap();
    watcher.until(Lifecycle::ShuttingDown).await;
    assert_eq!(watcher.until(Lifecycle::ShutOff).await.reason, "Destroyed");
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert!(pod.exit().await.success());
}

/// What the owner of a guest in encrypted memory asks, asked where there is no such memory.
#[tokio::test]
async fn what_is_missing_for_sev_is_said() {
    let mut pod = Pod::start(|_| ());
    let mut client = pod.client().await;
    let mut watcher = Watcher::new(&mut client).await;
    if !std::path::Path::new("/dev/sev").exists() {
        let error = client.sev_platform(SevPlatformRequest {}).await.unwrap_err();
        println!("the node: {}", error.message());
        assert_eq!(error.code(), Code::Internal);
        assert!(
            error
                .message()
                .contains("this node has no AMD SEV that its libvirt can use"),
            "{error}"
        );
    }
    let error = client.sev_measurement(SevMeasurementRequest {}).await.unwrap_err();
    assert_eq!(error.message(), "the guest is not running");

    pod.sync(&mut client).await;
    watcher.until(Lifecycle::Running).await;
    let error = client.sev_measurement(SevMeasurementRequest {}).await.unwrap_err();
    println!("the guest: {}", error.message());
    assert!(error.message().contains("the guest runs without AMD SEV"), "{error}");
    let secret = SevSecretRequest {
        header: "QUFB".into(),
        secret: "QkJC".into(),
    };
    let error = client.sev_secret(secret.clone()).await.unwrap_err();
    assert_eq!(error.message(), "the guest is not paused");
    act(&mut client, Action::Pause, 0).await.unwrap();
    let error = client.sev_secret(secret.clone()).await.unwrap_err();
    println!("the secret: {}", error.message());
    assert!(error.message().contains("the guest runs without AMD SEV"), "{error}");
    for header in ["", "?", &"A".repeat(21852)] {
        let header = header.to_owned();
        let wrong = client
            .sev_secret(SevSecretRequest {
                header,
                ..secret.clone()
            })
            .await;
        assert_eq!(wrong.unwrap_err().code(), Code::InvalidArgument);
    }
    act(&mut client, Action::Kill, 0).await.unwrap();
    assert!(pod.exit().await.success());
}

/// A libvirtd that is none of those `before`, as soon as there is one.
async fn next_libvirtd(pod: &Pod, before: &[i32]) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(pid) = pod.pids("libvirtd").into_iter().find(|pid| !before.contains(pid)) {
            return pid;
        }
        assert!(Instant::now() < deadline, "libvirtd is not started again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_guest_survives_the_death_of_libvirtd() {
    let mut pod = Pod::start(|_| ());
    let (mut client, mut watcher) = pod.run().await;
    let guest = pod.pids("qemu-system-x86");
    for _ in 0..2 {
        let before = pod.pids("libvirtd");
        signal(before[0], "KILL");
        next_libvirtd(&pod, &before).await;
        act(&mut client, Action::Pause, 0).await.unwrap();
        watcher.until(Lifecycle::Paused).await;
        act(&mut client, Action::Unpause, 0).await.unwrap();
        watcher.until(Lifecycle::Running).await;
        assert_eq!(pod.pids("qemu-system-x86"), guest, "the same guest");
    }
    act(&mut client, Action::Kill, 0).await.unwrap();
    assert_eq!(watcher.until(Lifecycle::ShutOff).await.reason, "Destroyed");
    assert!(pod.exit().await.success());
}

#[tokio::test]
async fn a_guest_survives_a_libvirtd_that_keeps_ending() {
    let mut pod = Pod::start(|_| ());
    let (mut client, mut watcher) = pod.run().await;
    let guest = pod.pids("qemu-system-x86");
    let mut killed = Vec::new();
    // More often than is accepted of a libvirtd before there is a guest.
    for _ in 0..7 {
        let daemon = next_libvirtd(&pod, &killed).await;
        signal(daemon, "KILL");
        killed.push(daemon);
    }
    next_libvirtd(&pod, &killed).await;
    act(&mut client, Action::Pause, 0).await.unwrap();
    watcher.until(Lifecycle::Paused).await;
    assert_eq!(pod.pids("qemu-system-x86"), guest, "the same guest");
    act(&mut client, Action::Kill, 0).await.unwrap();
    assert_eq!(watcher.until(Lifecycle::ShutOff).await.reason, "Destroyed");
    assert!(pod.exit().await.success());
}

#[tokio::test]
async fn a_guest_that_dies_has_crashed() {
    let mut pod = Pod::start(|_| ());
    let (_, mut watcher) = pod.run().await;
    signal(pod.pids("qemu-system-x86")[0], "KILL");
    let state = watcher.until(Lifecycle::Crashed).await;
    assert!(["Crashed", "Failed"].contains(&state.reason.as_str()), "{state:?}");
    assert!(!state.message.is_empty());
    assert_eq!(pod.exit().await.code(), Some(1));
}

#[tokio::test]
async fn a_guest_that_dies_without_libvirtd_has_crashed() {
    let mut pod = Pod::start(|_| ());
    let (_, mut watcher) = pod.run().await;
    let (daemon, guest) = (pod.pids("libvirtd")[0], pod.pids("qemu-system-x86")[0]);
    signal(daemon, "STOP");
    signal(guest, "KILL");
    signal(daemon, "KILL");
    watcher.until(Lifecycle::Crashed).await;
    assert_eq!(pod.exit().await.code(), Some(1));
}

#[tokio::test]
async fn sigterm_shuts_the_guest_down() {
    let mut pod = Pod::start(|_| ());
    let (_, mut watcher) = pod.run().await;
    signal(pod.launcher().unwrap(), "TERM");
    watcher.until(Lifecycle::ShuttingDown).await;
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
}

#[tokio::test]
async fn sigterm_before_a_guest_ends_at_once() {
    let mut pod = Pod::start(|_| ());
    let mut client = pod.client().await;
    let mut watcher = Watcher::new(&mut client).await;
    signal(pod.launcher().unwrap(), "TERM");
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
}

#[tokio::test]
async fn runs_as_the_pod_user_with_nothing_but_its_name() {
    let mut pod = Pod::start_as(
        |_| (),
        |command, root| {
            // As the pod runner does: the image names the user, the process starts as that user.
            let script = "echo 'qemu:x:107:107::/:/bin/false' | cat /etc/passwd - > $0 && \
                mount --bind $0 /etc/passwd && \
                exec setpriv --reuid 107 --regid 107 --clear-groups --bounding-set=-all --no-new-privs \"$@\"";
            command.args(["sh", "-c", script]).arg(root.join("passwd"));
        },
    );
    let (mut client, mut watcher) = pod.run().await;
    for process in ["virt-launcher", "libvirtd", "qemu-system-x86"] {
        let pid = pod.pids(process)[0];
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Uid:\t107\t107\t107\t107"), "{process}: {status}");
        assert!(status.contains("CapEff:\t0000000000000000"), "{process}: {status}");
    }
    act(&mut client, Action::Shutdown, 0).await.unwrap();
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
}

#[tokio::test]
async fn a_missing_image_fails_the_start_with_a_reason() {
    let mut pod = Pod::start(|vmi| {
        vmi["spec"]["domain"]["devices"] =
            json!({ "autoattachPodInterface": false, "disks": [{ "name": "root", "disk": { "bus": "virtio" } }] });
        vmi["spec"]["volumes"] = json!([{ "name": "root", "containerDisk": { "image": "registry/none:1" } }]);
    });
    let mut client = pod.client().await;
    let mut watcher = Watcher::new(&mut client).await;
    pod.sync(&mut client).await;
    let state = watcher.until(Lifecycle::Failed).await;
    assert_eq!(state.reason, "DisksNotPrepared");
    assert!(
        state.message.contains("cannot prepare volume \"root\""),
        "{}",
        state.message
    );
    assert_eq!(pod.exit().await.code(), Some(1));
}
