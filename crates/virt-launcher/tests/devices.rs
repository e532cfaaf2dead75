//! Devices that libvirt and QEMU must be able to make, whether or not a guest looks at them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;

use ferrovirt_protocol::launcher::{Action, Lifecycle};
use serde_json::{Value, json};
use support::{Pod, act};

/// As the pod runner does: the image names the user, the process starts as that user, and has its own `/tmp`.
fn as_pod_user(command: &mut std::process::Command, root: &Path) {
    let script = "echo 'qemu:x:107:107::/:/bin/false' | cat /etc/passwd - > $0 && \
        mount --bind $0 /etc/passwd && \
        exec setpriv --reuid 107 --regid 107 --clear-groups --bounding-set=-all --no-new-privs \"$@\"";
    command.args(["sh", "-c", script]).arg(root.join("passwd"));
}

async fn runs(devices: Value, domain: Value, volumes: Value) -> Vec<String> {
    let mut pod = Pod::start_as(
        |vmi| {
            for (key, value) in domain.as_object().unwrap() {
                vmi["spec"]["domain"][key] = value.clone();
            }
            for (key, value) in devices.as_object().unwrap() {
                vmi["spec"]["domain"]["devices"][key] = value.clone();
            }
            vmi["spec"]["volumes"] = volumes;
        },
        as_pod_user,
    );
    let (mut client, mut watcher) = pod.run().await;
    let pid = pod.pids("qemu-system-x86")[0];
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = line
        .split(|byte| *byte == 0)
        .map(|a| String::from_utf8_lossy(a).into_owned());
    let arguments = arguments.collect();
    act(&mut client, Action::Kill, 0).await.unwrap();
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
    arguments
}

fn has(arguments: &[String], part: &str) -> bool {
    arguments.iter().any(|argument| argument.contains(part))
}

#[tokio::test]
async fn a_tpm() {
    let arguments = runs(json!({"tpm": {}}), json!({}), json!([])).await;
    assert!(has(&arguments, "tpm-tis"), "{arguments:?}");
}

#[tokio::test]
async fn disks_of_all_sorts() {
    let domain = json!({"cpu": {"cores": 2}, "ioThreadsPolicy": "supplementalPool", "ioThreads": {"supplementalPoolThreadCount": 2}});
    let devices = json!({
        "blockMultiQueue": true,
        "disks": [
            {"name": "pool", "disk": {"bus": "virtio"}, "blockSize": {"matchVolume": {}}},
            {"name": "own", "disk": {"bus": "virtio"}, "dedicatedIOThread": true, "serial": "S1"},
            {"name": "scsi", "disk": {"bus": "scsi"}, "blockSize": {"custom": {"logical": 512, "physical": 4096, "discardGranularity": 4096}}},
            {"name": "cd", "cdrom": {"bus": "sata", "readonly": false}},
        ],
    });
    let volume = |name: &str| json!({"name": name, "emptyDisk": {"capacity": "1Mi"}});
    let volumes = json!([volume("pool"), volume("own"), volume("scsi"), volume("cd")]);
    let arguments = runs(devices, domain, volumes).await;
    for part in [
        "iothread1",
        "iothread3",
        "iothread-vq-mapping",
        "\"logical_block_size\":4096",
        "\"physical_block_size\":4096",
    ] {
        assert!(has(&arguments, part), "{part}: {arguments:?}");
    }
}

#[tokio::test]
async fn sound_and_usb_redirection() {
    for model in ["ich9", "ac97"] {
        let devices = json!({"sound": {"name": "card", "model": model}, "clientPassthrough": {}});
        let arguments = runs(devices, json!({}), json!([])).await;
        assert!(
            arguments.iter().filter(|a| a.contains("usb-redir\"")).count() == 4,
            "{arguments:?}"
        );
    }
}

#[tokio::test]
async fn a_guest_on_cpus_of_its_own() {
    let cpu = json!({"sockets": 1, "dedicatedCpuPlacement": true});
    let mut pod = Pod::start_as(|vmi| vmi["spec"]["domain"]["cpu"] = cpu, as_pod_user);
    let (mut client, mut watcher) = pod.run().await;
    let pid = pod.pids("qemu-system-x86")[0];
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let vcpu = statuses
        .into_iter()
        .find(|status| status.starts_with("Name:\tCPU 0"))
        .unwrap();
    let allowed = vcpu
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))
        .unwrap();
    assert!(allowed.parse::<u32>().is_ok(), "one CPU, not {allowed}");
    act(&mut client, Action::Kill, 0).await.unwrap();
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
}
