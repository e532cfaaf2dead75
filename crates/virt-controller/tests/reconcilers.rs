//! The controllers against a real API server in process. Each test plays the scheduler, the pod runner and the node
//! agent: it writes what they would write.

#![expect(clippy::unwrap_used, reason = "what a test cannot do ends it")]

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance};
use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::vm::actions::{self, Effect};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use virt_controller::{Home, Options};

const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    _server: ApiServer,
    client: Client,
    controllers: Option<(CancellationToken, JoinHandle<Result<(), virt_controller::Error>>)>,
    config: watch::Sender<Arc<ClusterConfig>>,
}

impl World {
    async fn new() -> Self {
        Self::with(Vec::new()).await
    }

    /// A world that serves more kinds, by their CRDs.
    async fn with(more: Vec<Value>) -> Self {
        let own = ferrovirt_api::crds();
        let own = own.iter().map(|crd| serde_json::to_value(crd).unwrap());
        let crds = own.chain(more).collect();
        let server = ApiServer::open(Config {
            crds,
            ..Config::memory()
        })
        .await
        .unwrap();
        let client = server.client(UserInfo::admin("system:serviceaccount:kubevirt:kubevirt-controller"));
        let (config, _) = watch::channel(Arc::new(ClusterConfig::standalone()));
        let mut world = Self {
            _server: server,
            client,
            controllers: None,
            config,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let shutdown = CancellationToken::new();
        let options = Options {
            launcher_image: "ferrovirt/virt-launcher:test".to_owned(),
            sidecar_shim_image: None,
            home: Home::Standalone,
        };
        let (client, config) = (self.client.clone(), self.config.subscribe());
        let task = tokio::spawn(virt_controller::run(client, config, options, shutdown.clone()));
        self.controllers = Some((shutdown, task));
    }

    /// Stops the controllers, in an orderly way or as a crash does.
    async fn stop(&mut self, crash: bool) {
        let (shutdown, task) = self.controllers.take().unwrap();
        if crash {
            task.abort();
            assert!(task.await.is_err());
        } else {
            shutdown.cancel();
            tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap().unwrap();
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, strategy: &str) -> VirtualMachine {
        let vm = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            // Admission stamps the finalizer.
            "metadata": {"name": "vm", "finalizers": ["kubevirt.io/virtualMachineControllerFinalize"]},
            "spec": {"runStrategy": strategy, "template": {"spec": {
                "domain": {"memory": {"guest": "64Mi"}, "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]}},
                "volumes": [{"name": "root", "containerDisk": {"image": "guest:v1"}}]}}}
        }))
        .unwrap();
        self.api().create(&PostParams::default(), &vm).await.unwrap()
    }

    async fn vm(&self, what: &str, test: impl Fn(&VirtualMachine) -> bool) -> VirtualMachine {
        let api: Api<VirtualMachine> = self.api();
        eventually(what, || async { api.get_opt("vm").await.unwrap() }, test).await
    }

    async fn printable(&self, word: &str) -> VirtualMachine {
        let is = |vm: &VirtualMachine| vm.status.as_ref().and_then(|s| s.printable_status.as_deref()) == Some(word);
        self.vm(word, is).await
    }

    async fn vmi(&self, what: &str, test: impl Fn(&VirtualMachineInstance) -> bool) -> VirtualMachineInstance {
        let api: Api<VirtualMachineInstance> = self.api();
        eventually(what, || async { api.get_opt("vm").await.unwrap() }, test).await
    }

    async fn phase(&self, phase: &str) -> VirtualMachineInstance {
        self.vmi(phase, |vmi| {
            vmi.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)
        })
        .await
    }

    async fn pod(&self) -> Pod {
        let api: Api<Pod> = self.api();
        let first = || async { api.list(&ListParams::default()).await.unwrap().items.into_iter().next() };
        eventually("pod", first, |_| true).await
    }

    async fn bind(&self, pod: &Pod) {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name_any()},
            "target": {"kind": "Node", "name": "node1"}});
        let api: Api<Pod> = self.api();
        let _: Value = api
            .create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding)
            .await
            .unwrap();
    }

    async fn pod_status(&self, pod: &Pod, status: Value) {
        let change = Patch::Merge(json!({"status": status}));
        self.api::<Pod>()
            .patch_status(&pod.name_any(), &PatchParams::default(), &change)
            .await
            .unwrap();
    }

    async fn compute(&self, pod: &Pod, phase: &str, state: Value) {
        let ready = if phase == "Running" { "True" } else { "False" };
        let status = json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{"name": "compute", "image": "", "imageID": "", "ready": phase == "Running",
                "restartCount": 0, "state": state}]});
        self.pod_status(pod, status).await;
    }

    /// What the node agent does when the guest runs, or has ended.
    async fn guest(&self, phase: &str) {
        let now = jiff::Timestamp::now();
        let vmi = self.api::<VirtualMachineInstance>().get("vm").await.unwrap();
        let mut stamps = vmi.status.unwrap().phase_transition_timestamps;
        stamps.push(serde_json::from_value(json!({"phase": phase, "phaseTransitionTimestamp": now})).unwrap());
        let change = Patch::Merge(json!({"status": {"phase": phase, "phaseTransitionTimestamps": stamps}}));
        self.api::<VirtualMachineInstance>()
            .patch_status("vm", &PatchParams::default(), &change)
            .await
            .unwrap();
    }

    /// Brings the VM up to Running.
    async fn run(&self) -> Pod {
        let pod = self.pod().await;
        self.bind(&pod).await;
        self.compute(&pod, "Running", json!({"running": {}})).await;
        self.phase("Scheduled").await;
        self.guest("Running").await;
        self.printable("Running").await;
        pod
    }

    /// What the pod runner does when a pod that is being deleted has ended.
    async fn remove(&self, pod: &Pod) {
        let now = DeleteParams::default().grace_period(0);
        self.api::<Pod>().delete(&pod.name_any(), &now).await.unwrap();
    }

    async fn set_strategy(&self, strategy: &str) {
        let change = Patch::Merge(json!({"spec": {"runStrategy": strategy}}));
        self.api::<VirtualMachine>()
            .patch("vm", &PatchParams::default(), &change)
            .await
            .unwrap();
    }

    async fn gone<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = self.api();
        let absent = || async { api.get_opt(name).await.unwrap().is_none().then_some(()) };
        eventually("to be gone", absent, |()| true).await;
    }

    /// Every version of an object kind from now on, and the changes between them.
    async fn record<K>(&self) -> Arc<Mutex<Vec<Value>>>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + Send
            + 'static,
    {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let api: Api<K> = self.api();
        let version = api
            .list(&ListParams::default())
            .await
            .unwrap()
            .metadata
            .resource_version
            .unwrap();
        tokio::spawn(async move {
            let mut events = api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
            while let Some(Ok(event)) = events.next().await {
                if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event {
                    sink.lock().unwrap().push(serde_json::to_value(&object).unwrap());
                }
            }
        });
        seen
    }
}

async fn eventually<T: Debug, F: Future<Output = Option<T>>>(
    what: &str,
    mut get: impl FnMut() -> F,
    test: impl Fn(&T) -> bool,
) -> T {
    let start = tokio::time::Instant::now();
    loop {
        let last = get().await;
        if let Some(found) = last.as_ref().filter(|found| test(found)) {
            let _ = found;
            return last.unwrap();
        }
        assert!(
            start.elapsed() < DEADLINE,
            "waited in vain for {what}; last seen: {last:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn reasons(vm: &VirtualMachine, kind: &str) -> Option<(String, String)> {
    let conditions = &vm.status.as_ref()?.conditions;
    let found = conditions.iter().find(|c| c.r#type == kind)?;
    Some((found.status.clone(), found.reason.clone().unwrap_or_default()))
}

#[tokio::test]
async fn a_vm_starts_within_its_budget_of_writes() {
    let world = World::new().await;
    let (vms, vmis) = (
        world.record::<VirtualMachine>().await,
        world.record::<VirtualMachineInstance>().await,
    );
    let pods = world.record::<Pod>().await;
    world.create("Always").await;
    let pod = world.run().await;
    assert_eq!(
        pod.metadata.owner_references.as_ref().unwrap()[0].kind,
        "VirtualMachineInstance"
    );
    let vmi = world.vmi("Ready", |vmi| {
        vmi.status
            .as_ref()
            .is_some_and(|s| s.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"))
    });
    let vmi = vmi.await;
    assert_eq!(vmi.metadata.labels.as_ref().unwrap()["kubevirt.io/nodeName"], "node1");
    let status = vmi.status.unwrap();
    assert_eq!(status.node_name.as_deref(), Some("node1"));
    assert_eq!(status.active_pods[pod.metadata.uid.as_ref().unwrap()], "node1");
    let revision = status.virtual_machine_revision_name.unwrap();
    world.api::<ControllerRevision>().get(&revision).await.unwrap();
    let vm = world
        .vm("ready", |vm| vm.status.as_ref().is_some_and(|s| s.ready == Some(true)))
        .await;
    let status = vm.status.as_ref().unwrap();
    assert_eq!(
        (status.created, status.run_strategy.as_deref()),
        (Some(true), Some("Always"))
    );
    assert_eq!(reasons(&vm, "Ready").unwrap().0, "True");
    assert_eq!(status.volume_snapshot_statuses.len(), 1);

    let until = |all: &Mutex<Vec<Value>>, path: &str, word: &str| {
        let all = all.lock().unwrap();
        all.iter()
            .position(|v| v.pointer(path) == Some(&json!(word)))
            .unwrap_or_else(|| panic!("{all:#?}"))
    };
    // Created, labelled, Scheduled, Running (the last is the node agent's).
    assert_eq!(until(&vmis, "/status/phase", "Running"), 3);
    assert_eq!(until(&vms, "/status/printableStatus", "Running"), 2);
    // Created, bound, started.
    assert_eq!(pods.lock().unwrap().len(), 3);

    let api = world.api::<Event>();
    let events = || async {
        let list = api.list(&ListParams::default()).await.unwrap();
        let made = list
            .items
            .into_iter()
            .filter(|e| e.reason.as_deref() == Some("SuccessfulCreate"));
        Some(made.filter_map(|e| e.involved_object.kind).collect::<Vec<_>>())
    };
    eventually("events", events, |kinds| {
        kinds.len() == 2 && kinds.iter().any(|k| k == "VirtualMachine")
    })
    .await;
}

#[tokio::test]
async fn halting_stops_and_deleting_cleans_up() {
    let world = World::new().await;
    world.create("Always").await;
    let pod = world.run().await;
    world.set_strategy("Halted").await;
    world.printable("Stopping").await;
    let api = world.api::<Pod>();
    let name = pod.name_any();
    let deleted = eventually(
        "the pod's deletion",
        || async { api.get_opt(&name).await.unwrap() },
        |pod| pod.metadata.deletion_timestamp.is_some(),
    );
    assert_eq!(deleted.await.metadata.deletion_grace_period_seconds, Some(45));
    world.guest("Succeeded").await;
    world.remove(&pod).await;
    world.gone::<VirtualMachineInstance>("vm").await;
    let absent = |vm: &VirtualMachine| vm.status.as_ref().is_some_and(|s| s.created == Some(false));
    let vm = world.vm("created to be false", absent).await;
    assert_eq!(reasons(&vm, "Ready").unwrap(), ("False".into(), "VMINotExists".into()));
    assert_eq!(vm.status.unwrap().printable_status.as_deref(), Some("Stopped"));
    world
        .api::<VirtualMachine>()
        .delete("vm", &DeleteParams::default())
        .await
        .unwrap();
    world.gone::<VirtualMachine>("vm").await;
}

#[tokio::test]
async fn deleting_a_vm_takes_its_guest_along() {
    let world = World::new().await;
    world.create("Always").await;
    let pod = world.run().await;
    world
        .api::<VirtualMachine>()
        .delete("vm", &DeleteParams::default())
        .await
        .unwrap();
    world.printable("Terminating").await;
    world
        .vmi("deletion", |vmi| vmi.metadata.deletion_timestamp.is_some())
        .await;
    world.guest("Succeeded").await;
    world.remove(&pod).await;
    world.gone::<VirtualMachineInstance>("vm").await;
    world.gone::<VirtualMachine>("vm").await;
}

#[tokio::test]
async fn trouble_of_the_pod_is_shown() {
    let world = World::new().await;
    world.create("Always").await;
    world.printable("Starting").await;
    let pod = world.pod().await;
    let unschedulable = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}]});
    world.pod_status(&pod, unschedulable).await;
    let vm = world.printable("ErrorUnschedulable").await;
    assert_eq!(reasons(&vm, "PodScheduled").unwrap().1, "Unschedulable");
    world.phase("Scheduling").await;
    world
        .pod_status(
            &pod,
            json!({"conditions": [{"type": "PodScheduled", "status": "True"}]}),
        )
        .await;
    world.printable("Starting").await;
    world.bind(&pod).await;
    for reason in ["ErrImagePull", "ImagePullBackOff"] {
        let waiting = json!({"waiting": {"reason": reason, "message": "guest:v1: not found"}});
        world.compute(&pod, "Pending", waiting).await;
        let vm = world.printable(reason).await;
        assert_eq!(reasons(&vm, "Synchronized").unwrap(), ("False".into(), reason.into()));
    }
    world
        .compute(&pod, "Running", json!({"waiting": null, "running": {}}))
        .await;
    let vmi = world.phase("Scheduled").await;
    assert!(vmi.status.unwrap().conditions.iter().all(|c| c.r#type == "Ready"));
}

#[tokio::test]
async fn starts_that_fail_become_a_crash_loop() {
    let world = World::new().await;
    world.create("Always").await;
    let pod = world.pod().await;
    world.bind(&pod).await;
    world
        .compute(&pod, "Failed", json!({"terminated": {"exitCode": 1}}))
        .await;
    let vm = world.printable("CrashLoopBackOff").await;
    let failure = vm.status.unwrap().start_failure.unwrap();
    assert_eq!(failure.consecutive_fail_count, Some(1));
    // The pod has ended: the server lets it go at once.
    world.gone::<Pod>(&pod.name_any()).await;
    world.gone::<VirtualMachineInstance>("vm").await;
    // Nothing is started before the pause is over; halting forgets the failures.
    world.set_strategy("Halted").await;
    let vm = world.printable("Stopped").await;
    assert_eq!(vm.status.unwrap().start_failure, None);
}

#[tokio::test]
async fn a_pod_that_vanishes_fails_the_vmi_and_the_strategy_decides() {
    let world = World::new().await;
    let first = world.create("Always").await;
    let pod = world.run().await;
    let old = world.phase("Running").await;
    world.remove(&pod).await;
    let new = world.vmi("a new VMI", |vmi| vmi.metadata.uid != old.metadata.uid).await;
    assert_eq!(
        new.metadata.owner_references.unwrap()[0].uid,
        first.metadata.uid.unwrap()
    );
    let again = world.pod().await;
    assert_ne!(again.name_any(), pod.name_any());
    world.run().await;
}

#[tokio::test]
async fn a_launcher_that_dies_fails_the_vmi_with_a_reason() {
    let world = World::new().await;
    world.create("Manual").await;
    world.api::<VirtualMachine>().get("vm").await.unwrap();
    apply(
        &world,
        actions::start(&world.vm("vm", |_| true).await, None, false).unwrap(),
    )
    .await;
    let pod = world.run().await;
    let finished = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(5);
    world
        .compute(
            &pod,
            "Failed",
            json!({"running": null, "terminated": {"exitCode": 137, "finishedAt": finished}}),
        )
        .await;
    let vmi = world.phase("Failed").await;
    assert_eq!(vmi.status.unwrap().reason.as_deref(), Some("PodTerminated"));
    let vm = world.printable("Stopped").await;
    assert!(vm.status.unwrap().state_change_requests.is_empty());
}

async fn apply(world: &World, effects: Vec<Effect>) {
    let parameters = PatchParams::default();
    let patch = |value: &Value| Patch::<()>::Json(serde_json::from_value(value.clone()).unwrap());
    for effect in &effects {
        match effect {
            Effect::PatchVm(value) => {
                world
                    .api::<VirtualMachine>()
                    .patch("vm", &parameters, &patch(value))
                    .await
                    .map(|_| ())
                    .unwrap();
            }
            Effect::PatchVmStatus(value) => {
                world
                    .api::<VirtualMachine>()
                    .patch_status("vm", &parameters, &patch(value))
                    .await
                    .map(|_| ())
                    .unwrap();
            }
            Effect::PatchVmi(value) => {
                let api = world.api::<VirtualMachineInstance>();
                api.patch("vm", &parameters, &patch(value)).await.map(|_| ()).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_restart_replaces_the_vmi_and_takes_the_new_template() {
    let world = World::new().await;
    world.create("Always").await;
    let pod = world.run().await;
    let old = world.phase("Running").await;
    let change = Patch::Merge(json!({"spec": {"template": {"spec": {"hostname": "renamed"}}}}));
    world
        .api::<VirtualMachine>()
        .patch("vm", &PatchParams::default(), &change)
        .await
        .unwrap();
    let vm = world
        .vm("RestartRequired", |vm| reasons(vm, "RestartRequired").is_some())
        .await;
    apply(&world, actions::restart(&vm, Some(&old), None).unwrap()).await;
    world
        .vmi("deletion", |vmi| vmi.metadata.deletion_timestamp.is_some())
        .await;
    world.guest("Succeeded").await;
    world.remove(&pod).await;
    let new = world.vmi("a new VMI", |vmi| vmi.metadata.uid != old.metadata.uid).await;
    assert_eq!(new.spec.hostname.as_deref(), Some("renamed"));
    let vm = world.vm("the requests to leave", |vm| {
        vm.status.as_ref().is_some_and(|s| s.state_change_requests.is_empty())
            && reasons(vm, "RestartRequired").is_none()
    });
    let vm = vm.await;
    assert_eq!(vm.status.unwrap().start_failure, None);
    let revisions = world.api::<ControllerRevision>();
    let left = || async { Some(revisions.list(&ListParams::default()).await.unwrap().items) };
    let left = eventually("the old revision to leave", left, |all| all.len() == 1).await;
    assert_eq!(left[0].revision, 2);
}

#[tokio::test]
async fn a_status_that_is_spelled_differently_is_still_written() {
    let world = World::new().await;
    world.create("Always").await;
    let pod = world.pod().await;
    world.bind(&pod).await;
    world.compute(&pod, "Running", json!({"running": {}})).await;
    world.phase("Scheduled").await;
    let condition = json!([{"type": "Ready", "status": "False", "reason": "GuestNotRunning", "message": "",
        "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00.000000Z"}]);
    let change = Patch::Merge(json!({"status": {"phase": "Running", "conditions": condition}}));
    world
        .api::<VirtualMachineInstance>()
        .patch_status("vm", &PatchParams::default(), &change)
        .await
        .unwrap();
    world
        .vm("ready", |vm| vm.status.as_ref().is_some_and(|s| s.ready == Some(true)))
        .await;
}

#[tokio::test]
async fn a_paused_start_of_a_halted_vm_turns_it_on() {
    let world = World::new().await;
    world.create("Halted").await;
    let vm = world.printable("Stopped").await;
    apply(&world, actions::start(&vm, None, true).unwrap()).await;
    let vmi = world.vmi("VMI", |_| true).await;
    assert_eq!(vmi.spec.start_strategy.as_deref(), Some("Paused"));
    let vm = world.vm("the request to leave", |vm| {
        vm.status
            .as_ref()
            .is_some_and(|s| s.state_change_requests.is_empty() && s.created == Some(true))
    });
    assert_eq!(vm.await.spec.run_strategy.as_deref(), Some("Always"));
}

#[tokio::test]
async fn a_vmi_that_is_nobodys_becomes_the_vms() {
    let world = World::new().await;
    let vmi = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
        "spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}}}
    }))
    .unwrap();
    let vmis = world.api::<VirtualMachineInstance>();
    let orphan = vmis.create(&PostParams::default(), &vmi).await.unwrap();
    let vm = world.create("Always").await;
    let adopted = world
        .vmi("an owner", |vmi| vmi.metadata.owner_references.is_some())
        .await;
    assert_eq!(adopted.metadata.uid, orphan.metadata.uid);
    let owner = &adopted.owner_references()[0];
    assert_eq!(
        (Some(&owner.uid), owner.controller),
        (vm.metadata.uid.as_ref(), Some(true))
    );
    let vm = world
        .vm("its VMI", |vm| {
            vm.status.as_ref().is_some_and(|s| s.created == Some(true))
        })
        .await;
    assert_eq!(reasons(&vm, "Failure"), None);
}

#[tokio::test]
async fn a_vmi_in_the_way_is_a_failure_that_heals() {
    let world = World::new().await;
    let map = serde_json::from_value(json!({"metadata": {"name": "owner"}})).unwrap();
    let owner: ConfigMap = world.api().create(&PostParams::default(), &map).await.unwrap();
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid,
        "controller": true});
    let vmi = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "ownerReferences": [owner]},
        "spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}}}
    }))
    .unwrap();
    let vmis = world.api::<VirtualMachineInstance>();
    let other = vmis.create(&PostParams::default(), &vmi).await.unwrap();
    world.create("Always").await;
    let vm = world.vm("Failure", |vm| reasons(vm, "Failure").is_some()).await;
    assert_eq!(reasons(&vm, "Failure").unwrap(), ("True".into(), "FailedCreate".into()));
    assert!(vmis.get("vm").await.unwrap().metadata.deletion_timestamp.is_none());
    vmis.delete("vm", &DeleteParams::default()).await.unwrap();
    world
        .vmi("the VM's own VMI", |vmi| vmi.metadata.uid != other.metadata.uid)
        .await;
    world.vm("healing", |vm| reasons(vm, "Failure").is_none()).await;
}

#[tokio::test]
async fn a_vmi_that_no_pod_can_be_made_for_says_so_until_it_can() {
    let world = World::new().await;
    let vmi = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
        "spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}},
            "volumes": [{"name": "data", "hostDisk": {"path": "/srv/a.img", "type": "Disk"}}]}
    }))
    .unwrap();
    world.config.send_replace(Arc::new(ClusterConfig::default()));
    world
        .api::<VirtualMachineInstance>()
        .create(&PostParams::default(), &vmi)
        .await
        .unwrap();
    world
        .vmi("Synchronized", |vmi| {
            let conditions = vmi.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            conditions
                .iter()
                .any(|c| c.r#type == "Synchronized" && c.reason.as_deref() == Some("FailedCreate"))
        })
        .await;
    world.config.send_replace(Arc::new(ClusterConfig::standalone()));
    world.pod().await;
}

#[tokio::test]
async fn killing_the_controllers_anywhere_changes_nothing() {
    let mut world = World::new().await;
    world.create("Always").await;
    let pod = world.pod().await;
    world.stop(true).await;
    world.bind(&pod).await;
    world.compute(&pod, "Running", json!({"running": {}})).await;
    world.start();
    let vmi = world.phase("Scheduled").await;
    world.stop(false).await;
    world.guest("Running").await;
    world.start();
    world.printable("Running").await;
    assert_eq!(
        world
            .api::<Pod>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    let now = world.phase("Running").await;
    assert_eq!(now.metadata.uid, vmi.metadata.uid);
    // The pod disappears while nobody looks.
    world.stop(true).await;
    world.remove(&pod).await;
    world.start();
    world.vmi("a new VMI", |vmi| vmi.metadata.uid != now.metadata.uid).await;
}

#[tokio::test]
async fn twenty_vms_at_once() {
    let world = World::new().await;
    let api = world.api::<VirtualMachine>();
    for i in 0..20 {
        let vm = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": format!("vm{i}")},
            "spec": {"running": true, "template": {"spec": {
                "domain": {"memory": {"guest": "64Mi"}, "devices": {}}}}}
        }))
        .unwrap();
        api.create(&PostParams::default(), &vm).await.unwrap();
    }
    let pods = world.api::<Pod>();
    let all = || async { Some(pods.list(&ListParams::default()).await.unwrap().items.len()) };
    eventually("20 pods", all, |n| *n == 20).await;
    for pod in pods.list(&ListParams::default()).await.unwrap() {
        world.bind(&pod).await;
        world.compute(&pod, "Running", json!({"running": {}})).await;
    }
    let vmis = world.api::<VirtualMachineInstance>();
    let scheduled = || async {
        let all = vmis.list(&ListParams::default()).await.unwrap().items;
        let phase = |v: &VirtualMachineInstance| v.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        Some(all.iter().filter(|v| phase(v) == "Scheduled").count())
    };
    eventually("20 scheduled VMIs", scheduled, |n| *n == 20).await;
}

/// A kind of resource.k8s.io, as far as this test needs it.
fn resource_kind(kind: &str, plural: &str, scope: &str, selectable: &[&str]) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let spec = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"nodeName": {"type": "string"}}});
    let fields: Vec<Value> = selectable.iter().map(|path| json!({"jsonPath": path})).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.resource.k8s.io")},
        "spec": {
            "group": "resource.k8s.io", "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "selectableFields": fields,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": open}}},
            }],
        },
    })
}

/// Shows `spec.resourceClaims[].resourceClaimTemplateName`.
#[tokio::test]
async fn a_vmi_waits_for_the_devices_of_its_claims() {
    let kinds = [
        resource_kind("ResourceClaim", "resourceclaims", "Namespaced", &[]),
        resource_kind("ResourceSlice", "resourceslices", "Cluster", &[".spec.nodeName"]),
    ];
    let world = World::with(kinds.to_vec()).await;
    let config = ClusterConfig {
        resource_claims: true,
        ..ClusterConfig::standalone()
    };
    world.config.send(Arc::new(config)).unwrap();
    let vmi = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
        "spec": {
            "resourceClaims": [{"name": "c", "resourceClaimTemplateName": "gpu"}],
            "domain": {"memory": {"guest": "64Mi"}, "devices": {
                "gpus": [{"name": "g", "claimName": "c", "requestName": "r"}]}},
        },
    }))
    .unwrap();
    let vmis: Api<VirtualMachineInstance> = world.api();
    vmis.create(&PostParams::default(), &vmi).await.unwrap();
    let pod = world.pod().await;
    world.bind(&pod).await;
    let made = json!({"resourceClaimStatuses": [{"name": "c", "resourceClaimName": "made"}]});
    world.pod_status(&pod, made).await;
    world.compute(&pod, "Running", json!({"running": {}})).await;
    let waiting = world
        .vmi("DevicesNotAllocated", |vmi| {
            let conditions = vmi.status.iter().flat_map(|status| &status.conditions);
            conditions
                .into_iter()
                .any(|c| c.reason.as_deref() == Some("DevicesNotAllocated"))
        })
        .await;
    assert_eq!(waiting.status.unwrap().phase.as_deref(), Some("Scheduling"));

    let slice = |node: &str, address: &str| {
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": node},
            "spec": {
                "driver": "gpu.ex.com", "nodeName": node,
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "gpu-0", "attributes": {"resource.kubernetes.io/pciBusID": {"string": address}}}],
            },
        })
    };
    let slices: Api<ResourceSlice> = Api::all(world.client.clone());
    for slice in [slice("node1", "0000:01:00.0"), slice("node2", "0000:02:00.0")] {
        let slice = serde_json::from_value(slice).unwrap();
        slices.create(&PostParams::default(), &slice).await.unwrap();
    }
    let claim = serde_json::from_value(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "made"}, "spec": {},
        "status": {"allocation": {"devices": {"results": [
            {"request": "r", "driver": "gpu.ex.com", "pool": "p", "device": "gpu-0"}]}}},
    }))
    .unwrap();
    let claims: Api<ResourceClaim> = world.api();
    claims.create(&PostParams::default(), &claim).await.unwrap();
    let scheduled = world.phase("Scheduled").await;
    let status = scheduled.status.unwrap();
    let given = serde_json::to_value(status.device_status).unwrap();
    let expected = json!({"gpuStatuses": [{"name": "g", "deviceResourceClaimStatus": {
        "name": "gpu-0", "resourceClaimName": "made", "attributes": {"pciAddress": "0000:01:00.0"}}}]});
    assert_eq!(given, expected);
    assert!(status.conditions.iter().all(|c| c.r#type != "Synchronized"));
}
