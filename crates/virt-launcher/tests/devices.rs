//! Devices that libvirt and QEMU must be able to make, whether or not a guest looks at them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;

use ferrovirt_protocol::hooks::info::info_server::{Info, InfoServer};
use ferrovirt_protocol::hooks::info::{HookPoint, InfoParams, InfoResult};
use ferrovirt_protocol::hooks::v1alpha3::callbacks_server::{Callbacks, CallbacksServer};
use ferrovirt_protocol::hooks::v1alpha3::{
    OnDefineDomainParams, OnDefineDomainResult, PreCloudInitIsoParams, PreCloudInitIsoResult, ShutdownParams,
    ShutdownResult,
};
use ferrovirt_protocol::launcher::{Action, Lifecycle};
use serde_json::{Value, json};
use support::{Pod, Watcher, act};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

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

/// Arguments of the guest's QEMU.
fn arguments(pod: &Pod) -> Vec<String> {
    let pid = pod.pids("qemu-system-x86")[0];
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = line.split(|byte| *byte == 0);
    arguments.map(|a| String::from_utf8_lossy(a).into_owned()).collect()
}

#[tokio::test]
async fn configuration_for_ignition() {
    let data = r#"{"ignition":{"version":"3.2.0"}}"#;
    let mut pod = Pod::start_as(
        |vmi| vmi["metadata"]["annotations"] = json!({"kubevirt.io/ignitiondata": data}),
        as_pod_user,
    );
    let (mut client, mut watcher) = pod.run().await;
    let arguments = arguments(&pod);
    let file = pod.path("var/run/libvirt/ignition-dir/test/vm/data.ign");
    let device = format!("name=opt/com.coreos/config,file={}", file.display());
    assert!(has(&arguments, &device), "{arguments:?}");
    assert_eq!(fs::read_to_string(file).unwrap(), data);
    act(&mut client, Action::Kill, 0).await.unwrap();
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
}

/// A hook sidecar that replaces one text in the domain by another.
struct Sidecar(&'static str, &'static str);

#[tonic::async_trait]
impl Info for Sidecar {
    async fn info(&self, _: Request<InfoParams>) -> Result<Response<InfoResult>, Status> {
        Ok(Response::new(InfoResult {
            name: "test".into(),
            hook_points: vec![HookPoint {
                name: "OnDefineDomain".into(),
                priority: 0,
            }],
            versions: vec!["v1alpha3".into()],
        }))
    }
}

#[tonic::async_trait]
impl Callbacks for Sidecar {
    async fn on_define_domain(
        &self,
        request: Request<OnDefineDomainParams>,
    ) -> Result<Response<OnDefineDomainResult>, Status> {
        let xml = String::from_utf8(request.into_inner().domain_xml).unwrap();
        assert!(xml.contains(self.0), "{xml}");
        let domain_xml = xml.replacen(self.0, self.1, 1).into_bytes();
        Ok(Response::new(OnDefineDomainResult { domain_xml }))
    }

    async fn pre_cloud_init_iso(
        &self,
        _: Request<PreCloudInitIsoParams>,
    ) -> Result<Response<PreCloudInitIsoResult>, Status> {
        Err(Status::unimplemented("nobody asked for it"))
    }

    async fn shutdown(&self, _: Request<ShutdownParams>) -> Result<Response<ShutdownResult>, Status> {
        Ok(Response::new(ShutdownResult {}))
    }
}

/// A launcher of a VMI with this hook sidecar, which it has to ask.
fn beside(sidecar: Sidecar) -> Pod {
    Pod::start_as(
        |vmi| {
            vmi["metadata"]["annotations"] = json!({"hooks.kubevirt.io/hookSidecars": r#"[{"image": "r/hook"}]"#});
        },
        |command, root| {
            let directory = root.join("var/run/kubevirt-hooks/hook-sidecar-0");
            fs::create_dir_all(&directory).unwrap();
            std::os::unix::fs::chown(root.join("var/run"), Some(107), Some(107)).unwrap();
            let socket = directory.join("hook.sock");
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            std::os::unix::fs::chown(socket, Some(107), Some(107)).unwrap();
            let server = tonic::transport::Server::builder()
                .add_service(InfoServer::new(Sidecar(sidecar.0, sidecar.1)))
                .add_service(CallbacksServer::new(sidecar))
                .serve_with_incoming(UnixListenerStream::new(listener));
            tokio::spawn(server);
            as_pod_user(command, root);
        },
    )
}

#[tokio::test]
async fn a_hook_sidecar_changes_the_domain() {
    let added = "<sysinfo type='fwcfg'><entry name='opt/org.example'>hello</entry></sysinfo>\n  <os>";
    let mut pod = beside(Sidecar("<os>", added));
    let (mut client, mut watcher) = pod.run().await;
    let arguments = arguments(&pod);
    assert!(has(&arguments, "name=opt/org.example,string=hello"), "{arguments:?}");
    act(&mut client, Action::Kill, 0).await.unwrap();
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
}

#[tokio::test]
async fn a_hook_sidecar_that_breaks_the_domain_fails_the_start_with_a_reason() {
    for (sidecar, reason, part) in [
        (Sidecar("</domain>", ""), "HookSidecarFailed", "it ends too early"),
        (
            Sidecar("type=\"qemu\"", "type=\"nonsense\""),
            "DomainNotDefined",
            "nonsense",
        ),
    ] {
        let mut pod = beside(sidecar);
        let mut client = pod.client().await;
        let mut watcher = Watcher::new(&mut client).await;
        pod.sync(&mut client).await;
        let state = watcher.until(Lifecycle::Failed).await;
        assert_eq!(state.reason, reason, "{state:?}");
        assert!(state.message.contains(part), "{state:?}");
        assert!(!pod.exit().await.success());
    }
}

/// Shows `spec.domain.devices.downwardMetrics`, `spec.volumes[].downwardMetrics`.
#[tokio::test]
async fn metrics_of_node_and_guest() {
    let mut pod = Pod::start_as(
        |vmi| {
            let devices = &mut vmi["spec"]["domain"]["devices"];
            devices["downwardMetrics"] = json!({});
            devices["disks"] = json!([{"name": "metrics", "disk": {"bus": "virtio"}}]);
            vmi["spec"]["volumes"] = json!([{"name": "metrics", "downwardMetrics": {}}]);
            vmi["status"]["nodeName"] = json!("node01");
        },
        as_pod_user,
    );
    let (mut client, mut watcher) = pod.run().await;
    let arguments = arguments(&pod);
    assert!(has(&arguments, "org.github.vhostmd.1"), "{arguments:?}");
    let image = pod.path("var/run/kubevirt-private/downwardapi-disks/vhostmd0");
    assert!(has(&arguments, image.to_str().unwrap()), "{arguments:?}");
    let deadline = std::time::Instant::now() + support::PATIENCE;
    loop {
        let report = fs::read(&image).unwrap();
        let report = String::from_utf8_lossy(&report);
        if report.contains("<value>node01</value>") && report.contains("<name>ResourceProcessorLimit</name>") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{report}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    act(&mut client, Action::Kill, 0).await.unwrap();
    watcher.until(Lifecycle::ShutOff).await;
    assert!(pod.exit().await.success());
}
