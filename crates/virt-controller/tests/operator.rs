//! The operator against a real API server in process. Each test plays the controllers that roll processes out.

#![expect(clippy::unwrap_used, reason = "what a test cannot do ends it")]

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use ferrovirt_api::cdi::{CDI, CDISpec};
use ferrovirt_api::v1::KubeVirt;
use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Secret};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use virt_controller::operator::resources::{KINDS, Kind, MANAGED_BY, OPERATOR};
use virt_controller::operator::{Release, Settings, manifests, reconcile_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// Kinds that the embedded server does not have.
fn foreign_kinds() -> Vec<Value> {
    let missing = [
        "DaemonSet",
        "Deployment",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "APIService",
    ];
    let crd = |name: &str| {
        let kind = Kind::named(name);
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{}.{}", kind.plural, kind.group)},
            "spec": {
                "group": kind.group, "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
                "names": {"kind": kind.kind, "plural": kind.plural, "singular": kind.kind.to_lowercase()},
                "versions": [{
                    "name": kind.version, "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                }],
            },
        })
    };
    missing.map(crd).to_vec()
}

fn release(version: &str) -> Release {
    let image = |name: &str| format!("registry.example/{name}:{version}");
    Release {
        version: version.to_owned(),
        api_image: image("ferrovirt"),
        controller_image: image("ferrovirt"),
        handler_image: image("virt-handler"),
        launcher_image: image("virt-launcher"),
        guestfs_image: image("libguestfs-tools"),
        sidecar_shim_image: image("sidecar-shim"),
    }
}

struct World {
    _server: ApiServer,
    client: Client,
    operator: Option<(CancellationToken, JoinHandle<()>)>,
}

impl World {
    async fn new() -> Self {
        let mut crds = foreign_kinds();
        crds.extend(manifests::definitions());
        let server = ApiServer::open(Config {
            crds,
            namespaces: vec!["kubevirt".to_owned()],
            ..Config::memory()
        })
        .await
        .unwrap();
        let client = server.client(UserInfo::admin("system:serviceaccount:kubevirt:kubevirt-operator"));
        let nodes: Api<Node> = Api::all(client.clone());
        for name in ["node1", "node2"] {
            let node = serde_json::from_value(json!({"metadata": {"name": name, "labels": {
                "kubevirt.io/schedulable": "true", "kubernetes.io/os": "linux"}}}))
            .unwrap();
            nodes.create(&PostParams::default(), &node).await.unwrap();
        }
        let mut world = Self {
            _server: server,
            client,
            operator: None,
        };
        world.start("v1.0.0");
        world
    }

    fn start(&mut self, version: &str) {
        let stop = CancellationToken::new();
        let settings = Settings {
            namespace: "kubevirt".to_owned(),
            release: release(version),
            webhooks: true,
            verbosity: 2,
        };
        let work = reconcile_until(self.client.clone(), settings, stop.clone());
        self.operator = Some((stop, tokio::spawn(work)));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.operator.take().unwrap();
        stop.cancel();
        tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap();
    }

    fn kubevirts(&self) -> Api<KubeVirt> {
        Api::namespaced(self.client.clone(), "kubevirt")
    }

    async fn create(&self, spec: Value) {
        let mut object = manifests::kubevirt("kubevirt");
        object["spec"] = spec;
        let object = serde_json::from_value(object).unwrap();
        self.kubevirts().create(&PostParams::default(), &object).await.unwrap();
    }

    async fn edit(&self, change: Value) {
        let change = Patch::Merge(change);
        self.kubevirts()
            .patch("kubevirt", &PatchParams::default(), &change)
            .await
            .unwrap();
    }

    async fn kubevirt(&self, what: &str, test: impl Fn(&KubeVirt) -> bool) -> KubeVirt {
        let get = || async { self.kubevirts().get_opt("kubevirt").await.unwrap() };
        eventually(what, get, test).await
    }

    async fn condition(&self, kind: &str, status: &str, reason: &str) -> KubeVirt {
        let what = format!("{kind}={status}:{reason}");
        self.kubevirt(&what, |kv| {
            let conditions = kv.status.iter().flat_map(|s| &s.conditions);
            let mut of_kind = conditions.filter(|c| c.r#type == kind);
            of_kind.any(|c| c.status == status && c.reason.as_deref() == Some(reason))
        })
        .await
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let kind = Kind::named(kind);
        let resource: ApiResource = kind.api_resource();
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), "kubevirt", &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        }
    }

    /// The process as it should be, once the operator has written it with this image's tag.
    async fn workload(&self, name: &str, tag: &str) -> DynamicObject {
        let api = self.api(kind_of(name));
        let image = |object: &DynamicObject| {
            let container = &object.data["spec"]["template"]["spec"]["containers"][0];
            container["image"].as_str().unwrap_or_default().to_owned()
        };
        let get = || async { api.get_opt(name).await.unwrap() };
        eventually(name, get, |object| image(object).ends_with(tag)).await
    }

    /// What the controllers of processes and the kubelets do.
    async fn roll_out(&self, name: &str, tag: &str) {
        let object = self.workload(name, tag).await;
        let generation = object.metadata.generation.unwrap();
        let status = if kind_of(name) == "DaemonSet" {
            json!({"observedGeneration": generation, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2})
        } else {
            let replicas = &object.data["spec"]["replicas"];
            json!({"observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas})
        };
        let change = Patch::Merge(json!({"status": status}));
        let api = self.api(kind_of(name));
        api.patch_status(name, &PatchParams::default(), &change).await.unwrap();
    }

    async fn deploy(&self) {
        self.create(json!({})).await;
        for name in ["virt-api", "virt-controller", "virt-handler"] {
            self.roll_out(name, ":v1.0.0").await;
        }
        self.condition("Available", "True", "AllComponentsReady").await;
    }

    /// Everything that the operator has installed, with the version of each object.
    async fn installed(&self) -> BTreeMap<String, String> {
        let ours = ListParams::default().labels(&format!("{MANAGED_BY}={OPERATOR}"));
        let mut all = BTreeMap::new();
        for kind in KINDS.iter().filter(|kind| !kind.optional) {
            for object in self.api(kind.kind).list(&ours).await.unwrap() {
                let id = format!("{} {}", kind.kind, object.name_any());
                all.insert(id, object.resource_version().unwrap_or_default());
            }
        }
        all
    }

    async fn secret(&self, name: &str) -> Option<Secret> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), "kubevirt");
        api.get_opt(name).await.unwrap()
    }
}

fn kind_of(name: &str) -> &'static str {
    if name == "virt-handler" {
        "DaemonSet"
    } else {
        "Deployment"
    }
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, get: impl Fn() -> F, test: impl Fn(&T) -> bool) -> T {
    let found = async {
        loop {
            if let Some(object) = get().await.filter(&test) {
                return object;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, found).await;
    found.unwrap_or_else(|_| panic!("not in time: {what}"))
}

#[tokio::test]
async fn installs_heals_and_then_rests() {
    let mut world = World::new().await;
    world.create(json!({})).await;
    // All processes are written before any of them is ready, and virt-api has a second replica on two nodes.
    let api = world.workload("virt-api", ":v1.0.0").await;
    assert_eq!(api.data["spec"]["replicas"], 2);
    world.condition("Progressing", "True", "DeploymentInProgress").await;
    for name in ["virt-controller", "virt-handler", "virt-api"] {
        world.roll_out(name, ":v1.0.0").await;
    }
    let deployed = world.condition("Available", "True", "AllComponentsReady").await;
    let status = deployed.status.clone().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Deployed"));
    assert_eq!(status.observed_kube_virt_version.as_deref(), Some("v1.0.0"));
    assert_eq!(status.observed_kube_virt_registry.as_deref(), Some("registry.example"));
    assert_eq!(deployed.finalizers(), ["kubevirt.io/foregroundDeleteKubeVirt"]);

    // The authority of the bundle is what webhooks are checked by.
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "kubevirt");
    let bundle = maps.get("kubevirt-ca").await.unwrap().data.unwrap()["ca-bundle"].clone();
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(world.client.clone());
    let hook = hooks
        .get("virt-api-validator")
        .await
        .unwrap()
        .webhooks
        .unwrap()
        .remove(0);
    assert_eq!(hook.client_config.ca_bundle.unwrap().0, bundle.as_bytes());

    // What is deleted or edited is written again.
    let roles: Api<ClusterRole> = Api::all(world.client.clone());
    let view = roles.get("kubevirt.io:view").await.unwrap();
    roles
        .delete("kubevirt.io:view", &DeleteParams::default())
        .await
        .unwrap();
    let get = || async { roles.get_opt("kubevirt.io:view").await.unwrap() };
    let again = eventually("the role is back", get, |role| role.uid() != view.uid()).await;
    assert_eq!(again.rules, view.rules);
    let change = Patch::Merge(json!({"rules": []}));
    roles
        .patch("kubevirt.io:view", &PatchParams::default(), &change)
        .await
        .unwrap();
    eventually("the rules are back", get, |role| role.rules == view.rules).await;
    let change = Patch::Merge(json!({"spec": {"replicas": 0}}));
    let deployments = world.api("Deployment");
    deployments
        .patch("virt-api", &PatchParams::default(), &change)
        .await
        .unwrap();
    let get = || async { deployments.get_opt("virt-api").await.unwrap() };
    eventually("replicas are back", get, |object| object.data["spec"]["replicas"] == 2).await;
    world.roll_out("virt-api", ":v1.0.0").await;
    let old = world.secret("kubevirt-virt-api-certs").await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), "kubevirt");
    secrets
        .delete("kubevirt-virt-api-certs", &DeleteParams::default())
        .await
        .unwrap();
    let get = || async { world.secret("kubevirt-virt-api-certs").await };
    eventually("a new certificate", get, |secret| secret.uid() != old.uid()).await;
    world.condition("Available", "True", "AllComponentsReady").await;

    // A restart changes nothing.
    let before = world.installed().await;
    world.stop().await;
    world.start("v1.0.0");
    world
        .edit(json!({"metadata": {"annotations": {"touched": "yes"}}}))
        .await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "kubevirt");
    maps.delete("kubevirt-ca", &DeleteParams::default()).await.unwrap();
    let get = || async { maps.get_opt("kubevirt-ca").await.unwrap() };
    let map = eventually("the bundle is back", get, |_| true).await;
    assert_eq!(map.data.unwrap()["ca-bundle"], bundle);
    let mut after = world.installed().await;
    after.insert(
        "ConfigMap kubevirt-ca".to_owned(),
        before["ConfigMap kubevirt-ca"].clone(),
    );
    assert_eq!(before, after);
}

#[tokio::test]
async fn updates_from_the_nodes_to_the_api_and_back() {
    let mut world = World::new().await;
    world.deploy().await;
    world.stop().await;
    world.start("v1.1.0");
    for (next, waiting) in [
        ("virt-handler", &["virt-controller", "virt-api"][..]),
        ("virt-controller", &["virt-api"]),
        ("virt-api", &[]),
    ] {
        world.workload(next, ":v1.1.0").await;
        world.condition("Progressing", "True", "UpdateInProgress").await;
        for name in waiting {
            world.workload(name, ":v1.0.0").await;
        }
        world.roll_out(next, ":v1.1.0").await;
    }
    let updated = world.condition("Progressing", "False", "AllComponentsReady").await;
    let version = updated.status.unwrap().observed_kube_virt_version;
    assert_eq!(version.as_deref(), Some("v1.1.0"));

    // Back again by the object's tag: the other way round.
    world.edit(json!({"spec": {"imageTag": "v1.0.0"}})).await;
    world.workload("virt-api", ":v1.0.0").await;
    world.workload("virt-handler", ":v1.1.0").await;
    for name in ["virt-api", "virt-controller", "virt-handler"] {
        world.roll_out(name, ":v1.0.0").await;
    }
    world
        .kubevirt("rolled back", |kv| {
            kv.status.as_ref().unwrap().observed_kube_virt_version.as_deref() == Some("v1.0.0")
        })
        .await;
}

#[tokio::test]
async fn mistakes_are_conditions_and_corrections_are_taken() {
    let world = World::new().await;
    let bad = json!({"customizeComponents": {"patches": [{
        "resourceType": "Deployment", "resourceName": "virt-api", "type": "json", "patch": "nonsense"}]}});
    world.create(bad).await;
    let failed = world.condition("Synchronized", "False", "DeploymentFailed").await;
    let conditions = failed.status.unwrap().conditions;
    let message = conditions.iter().find_map(|c| c.message.clone()).unwrap();
    assert!(message.contains("json patch of Deployment virt-api"), "{message}");
    let good = json!([{"op": "replace", "path": "/spec/replicas", "value": 4}]).to_string();
    world
        .edit(json!({"spec": {"customizeComponents": {"patches": [{
            "resourceType": "Deployment", "resourceName": "virt-api", "type": "json", "patch": good}]}}}))
        .await;
    let api = world.workload("virt-api", ":v1.0.0").await;
    assert_eq!(api.data["spec"]["replicas"], 4);

    // Another object is told that it is one too many.
    let other: KubeVirt = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt",
        "metadata": {"name": "other", "namespace": "kubevirt"}, "spec": {}}))
    .unwrap();
    world.kubevirts().create(&PostParams::default(), &other).await.unwrap();
    let get = || async { world.kubevirts().get_opt("other").await.unwrap() };
    eventually("the other is refused", get, |kv| {
        let mut conditions = kv.status.iter().flat_map(|s| &s.conditions);
        conditions.any(|c| c.reason.as_deref() == Some("ExistingDeployment"))
    })
    .await;
}

#[tokio::test]
async fn removal_waits_for_workloads_if_told_to_and_leaves_nothing() {
    let world = World::new().await;
    world.deploy().await;
    world
        .edit(json!({"spec": {"uninstallStrategy": "BlockUninstallIfWorkloadsExist"}}))
        .await;
    let vms: Api<ferrovirt_api::v1::VirtualMachine> = Api::namespaced(world.client.clone(), "default");
    let vm = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "vm"},
        "spec": {"runStrategy": "Halted", "template": {"spec": {"domain": {"devices": {}}}}}}))
    .unwrap();
    vms.create(&PostParams::default(), &vm).await.unwrap();
    world
        .kubevirts()
        .delete("kubevirt", &DeleteParams::default())
        .await
        .unwrap();
    world.condition("Synchronized", "False", "DeletionFailed").await;
    assert!(world.installed().await.contains_key("Deployment virt-api"));

    world
        .edit(json!({"spec": {"uninstallStrategy": "RemoveWorkloads"}}))
        .await;
    let gone = || async { Some(world.kubevirts().get_opt("kubevirt").await.unwrap().is_none()) };
    eventually("the KubeVirt object is gone", gone, |gone| *gone).await;
    assert_eq!(world.installed().await, BTreeMap::new());
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = nodes.get("node1").await.unwrap();
    assert_eq!(node.labels().keys().collect::<Vec<_>>(), ["kubernetes.io/os"]);

    // And it can be installed again.
    world.deploy().await;
}

#[tokio::test]
async fn cdi_objects_are_told_the_truth() {
    let world = World::new().await;
    let cdis: Api<CDI> = Api::all(world.client.clone());
    let create = async |name: &str| {
        let object = CDI::new(name, CDISpec::default());
        cdis.create(&PostParams::default(), &object).await.unwrap();
    };
    let reason = |cdi: &CDI| {
        let status = cdi.status.clone().unwrap_or_default();
        let degraded = status
            .conditions
            .iter()
            .find(|c| c.r#type == "Degraded" && c.status == "True");
        degraded.and_then(|c| c.reason.clone()).unwrap_or_default()
    };
    let get = |name: &'static str| {
        let cdis = cdis.clone();
        move || {
            let cdis = cdis.clone();
            async move { cdis.get_opt(name).await.unwrap() }
        }
    };
    create("cdi").await;
    let answered = eventually("an answer", get("cdi"), |cdi| reason(cdi) == "NotSupported").await;
    let status = answered.status.clone().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Error"));
    assert_eq!(
        (status.operator_version.as_deref(), status.observed_version),
        (Some("v1.0.0"), None)
    );
    assert!(answered.finalizers().is_empty());
    let events: Api<Event> = Api::namespaced(world.client.clone(), "default");
    let told = || async { events.list(&ListParams::default()).await.unwrap().items.pop() };
    let event = eventually("an event", told, |_| true).await;
    assert_eq!(event.involved_object.uid, answered.uid());
    assert_eq!(event.reason.as_deref(), Some("NotSupported"));

    // Another operator's word counts.
    let theirs = PatchParams {
        field_manager: Some("cdi-operator".to_owned()),
        ..PatchParams::default()
    };
    let change = Patch::Merge(json!({"status": {"phase": "Deployed", "operatorVersion": "v1.62.0"}}));
    cdis.patch_status("cdi", &theirs, &change).await.unwrap();
    create("second").await;
    eventually("the second is refused", get("second"), |cdi| {
        reason(cdi) == "ConfigError"
    })
    .await;
    let status = cdis.get("cdi").await.unwrap().status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Deployed"));

    // Nothing holds them, and the next one counts.
    cdis.delete("cdi", &DeleteParams::default()).await.unwrap();
    assert_eq!(cdis.get_opt("cdi").await.unwrap(), None);
    eventually("the second counts", get("second"), |cdi| reason(cdi) == "NotSupported").await;

    // Without the kind everything else goes on.
    let kinds: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    kinds
        .delete("cdis.cdi.kubevirt.io", &DeleteParams::default())
        .await
        .unwrap();
    world.deploy().await;
}
