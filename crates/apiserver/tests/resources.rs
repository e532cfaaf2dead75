//! The server through `kube::Client`, in process.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

fn crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                    "spec": {"type": "object", "required": ["size"], "properties": {
                        "size": {"type": "integer", "minimum": 0}, "color": {"type": "string", "default": "red"}}},
                    "status": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}
            }]
        }
    })
}

async fn server() -> (ApiServer, kube::Client) {
    let server = ApiServer::open(Config {
        crds: vec![crd()],
        ..Config::memory()
    })
    .await
    .unwrap();
    let client = server.client(UserInfo::admin("tester"));
    (server, client)
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("key".to_owned(), value.to_owned())])),
        ..ConfigMap::default()
    }
}

fn widgets(client: &kube::Client) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"));
    Api::namespaced_with(client.clone(), "default", &resource)
}

fn widget(name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}),
    )
    .unwrap()
}

fn status(error: kube::Error) -> (u16, String, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason.clone(), status.message.clone()),
        other => panic!("no API error: {other:?}"),
    }
}

#[tokio::test]
async fn objects_are_created_read_updated_and_deleted() {
    let (_server, client) = server().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let created = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
    let (code, reason, message) = status(
        api.create(&PostParams::default(), &config_map("a", "1"))
            .await
            .unwrap_err(),
    );
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (409, "AlreadyExists", "configmaps \"a\" already exists")
    );

    let mut next = created.clone();
    next.data = Some(BTreeMap::from([("key".to_owned(), "2".to_owned())]));
    let replaced = api.replace("a", &PostParams::default(), &next).await.unwrap();
    assert_ne!(replaced.metadata.resource_version, created.metadata.resource_version);
    let (code, _, message) = status(api.replace("a", &PostParams::default(), &next).await.unwrap_err());
    assert_eq!(code, 409);
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );

    let same = api.replace("a", &PostParams::default(), &replaced).await.unwrap();
    assert_eq!(
        same.metadata.resource_version, replaced.metadata.resource_version,
        "nothing changed, nothing is written"
    );
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let (code, _, message) = status(api.get("a").await.unwrap_err());
    assert_eq!((code, message.as_str()), (404, "configmaps \"a\" not found"));
}

#[tokio::test]
async fn lists_have_pages_and_selectors() {
    let (_server, client) = server().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    for index in 0..5 {
        let mut object = config_map(&format!("m{index}"), "x");
        object.metadata.labels = Some(BTreeMap::from([("even".to_owned(), (index % 2 == 0).to_string())]));
        api.create(&PostParams::default(), &object).await.unwrap();
    }
    let page = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (2, Some(3)));
    api.delete("m3", &DeleteParams::default()).await.unwrap();
    let rest = api
        .list(&ListParams::default().continue_token(&page.metadata.continue_.unwrap()))
        .await
        .unwrap();
    assert_eq!(rest.items.len(), 3, "later pages show the state of the first");
    assert_eq!(rest.metadata.resource_version, page.metadata.resource_version);
    assert_eq!(
        api.list(&ListParams::default().labels("even=true"))
            .await
            .unwrap()
            .items
            .len(),
        3
    );
    assert_eq!(
        api.list(&ListParams::default().fields("metadata.name=m1"))
            .await
            .unwrap()
            .items
            .len(),
        1
    );
}

#[tokio::test]
async fn watches_follow_selectors_and_resume() {
    let (_server, client) = server().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let version = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let mut object = config_map("a", "1");
    object.metadata.labels = Some(BTreeMap::from([("seen".to_owned(), "yes".to_owned())]));
    api.create(&PostParams::default(), &object).await.unwrap();
    api.create(&PostParams::default(), &config_map("other", "1"))
        .await
        .unwrap();
    api.patch(
        "a",
        &PatchParams::default(),
        &Patch::Merge(json!({"data": {"key": "2"}})),
    )
    .await
    .unwrap();
    api.patch(
        "a",
        &PatchParams::default(),
        &Patch::Merge(json!({"metadata": {"labels": {"seen": "no"}}})),
    )
    .await
    .unwrap();
    let watch = api
        .watch(&WatchParams::default().labels("seen=yes").timeout(1), &version)
        .await
        .unwrap();
    let events: Vec<_> = watch.try_collect().await.unwrap();
    let kinds: Vec<String> = events
        .iter()
        .map(|event| match event {
            WatchEvent::Added(o) => format!("added {}", o.metadata.name.as_deref().unwrap()),
            WatchEvent::Modified(o) => format!("modified {}", o.data.as_ref().unwrap()["key"]),
            WatchEvent::Deleted(o) => format!("deleted {}", o.metadata.labels.as_ref().unwrap()["seen"]),
            WatchEvent::Bookmark(_) => "bookmark".to_owned(),
            WatchEvent::Error(e) => format!("error {}", e.message),
        })
        .collect();
    assert_eq!(kinds, ["added a", "modified 2", "deleted yes", "bookmark"]);
}

#[tokio::test]
async fn custom_resources_follow_their_schema() {
    let (_server, client) = server().await;
    let api = widgets(&client);
    let created = api
        .create(
            &PostParams::default(),
            &widget("w", json!({"size": 1, "unknown": true})),
        )
        .await
        .unwrap();
    assert_eq!(created.data["spec"], json!({"size": 1, "color": "red"}));
    assert_eq!(created.metadata.generation, Some(1));
    let (code, reason, message) = status(
        api.create(&PostParams::default(), &widget("bad", json!({"size": -1})))
            .await
            .unwrap_err(),
    );
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(
        message.starts_with("Widget.example.com \"bad\" is invalid: spec.size: Invalid value: -1"),
        "{message}"
    );

    let patched = api
        .patch_status(
            "w",
            &PatchParams::default(),
            &Patch::Merge(json!({"status": {"size": 3}, "spec": {"size": 9}})),
        )
        .await
        .unwrap();
    assert_eq!(
        (
            patched.data["status"]["size"].clone(),
            patched.data["spec"]["size"].clone()
        ),
        (json!(3), json!(1))
    );
    assert_eq!(patched.metadata.generation, Some(1));
    let patched = api
        .patch(
            "w",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"size": 2}, "status": {"size": 9}})),
        )
        .await
        .unwrap();
    assert_eq!(
        (patched.data["status"]["size"].clone(), patched.metadata.generation),
        (json!(3), Some(2))
    );
    let scale = api.get_scale("w").await.unwrap();
    assert_eq!(
        (scale.spec.unwrap().replicas, scale.status.unwrap().replicas),
        (Some(2), 3)
    );
    api.patch_scale(
        "w",
        &PatchParams::default(),
        &Patch::Merge(json!({"spec": {"replicas": 7}})),
    )
    .await
    .unwrap();
    assert_eq!(api.get("w").await.unwrap().data["spec"]["size"], 7);
    let test =
        json!([{"op": "test", "path": "/spec/size", "value": 1}, {"op": "replace", "path": "/spec/size", "value": 2}]);
    let (code, ..) = status(
        api.patch(
            "w",
            &PatchParams::default(),
            &Patch::<()>::Json(serde_json::from_value(test).unwrap()),
        )
        .await
        .unwrap_err(),
    );
    assert_eq!(code, 422);
}

#[tokio::test]
async fn finalizers_hold_objects() {
    let (_server, client) = server().await;
    let api = widgets(&client);
    let mut object = widget("w", json!({"size": 1}));
    object.metadata.finalizers = Some(vec!["example.com/hold".into()]);
    api.create(&PostParams::default(), &object).await.unwrap();
    api.delete("w", &DeleteParams::default()).await.unwrap();
    assert!(api.get("w").await.unwrap().metadata.deletion_timestamp.is_some());
    api.patch(
        "w",
        &PatchParams::default(),
        &Patch::Merge(json!({"metadata": {"finalizers": null}})),
    )
    .await
    .unwrap();
    assert_eq!(status(api.get("w").await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn a_namespace_must_exist() {
    let (_server, client) = server().await;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "nowhere");
    let (code, _, message) = status(
        api.create(&PostParams::default(), &config_map("a", "1"))
            .await
            .unwrap_err(),
    );
    assert_eq!((code, message.as_str()), (404, "namespaces \"nowhere\" not found"));
    let namespaces: Api<Namespace> = Api::all(client);
    assert_eq!(namespaces.list(&ListParams::default()).await.unwrap().items.len(), 3);
}

#[tokio::test]
async fn a_burst_of_writes_is_quick() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::new(ferrovirt_apiserver::Storage::File(directory.path().join("store.db")));
    let started = std::time::Instant::now();
    let server = ApiServer::open(config).await.unwrap();
    println!("open: {:?}", started.elapsed());
    let api: Api<ConfigMap> = Api::default_namespaced(server.client(UserInfo::admin("tester")));
    let started = std::time::Instant::now();
    let api = &api;
    let names: Vec<String> = (0..200).map(|index| format!("m{index}")).collect();
    futures::stream::iter(&names)
        .for_each_concurrent(20, |name| async move {
            api.create(&PostParams::default(), &config_map(name, "x"))
                .await
                .unwrap();
        })
        .await;
    println!("200 creates: {:?}", started.elapsed());
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 200);
}

/// Waits until `done` says so; at most ten seconds.
async fn eventually<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !done().await {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn owned_by(object: &mut ObjectMeta, owner: &DynamicObject, block: bool) {
    object.owner_references = Some(vec![
        serde_json::from_value(json!({"apiVersion": "example.com/v1", "kind": "Widget",
        "name": owner.metadata.name, "uid": owner.metadata.uid, "controller": true, "blockOwnerDeletion": block}))
        .unwrap(),
    ]);
}

#[tokio::test]
async fn dependents_go_with_their_owner() {
    let (_server, client) = server().await;
    let (api, maps) = (widgets(&client), Api::<ConfigMap>::default_namespaced(client.clone()));
    for (name, params) in [
        ("background", DeleteParams::background()),
        ("foreground", DeleteParams::foreground()),
        ("orphan", DeleteParams::orphan()),
    ] {
        let owner = api
            .create(&PostParams::default(), &widget(name, json!({"size": 1})))
            .await
            .unwrap();
        let mut map = config_map(name, "x");
        owned_by(&mut map.metadata, &owner, true);
        maps.create(&PostParams::default(), &map).await.unwrap();
        api.delete(name, &params).await.unwrap();
        eventually("owner gone", async || api.get_opt(name).await.unwrap().is_none()).await;
        if name == "orphan" {
            assert!(maps.get(name).await.unwrap().metadata.owner_references.is_none());
        } else {
            eventually("dependent gone", async || maps.get_opt(name).await.unwrap().is_none()).await;
        }
    }
    let mut lost = config_map("lost", "x");
    let mut owner = widget("never", json!({"size": 1}));
    owner.metadata.uid = Some("00000000-0000-0000-0000-000000000000".into());
    owned_by(&mut lost.metadata, &owner, false);
    maps.create(&PostParams::default(), &lost).await.unwrap();
    eventually("object of an absent owner gone", async || {
        maps.get_opt("lost").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_deleted_namespace_is_emptied() {
    let (_server, client) = server().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some("n".into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "n");
    let mut held = config_map("held", "x");
    held.metadata.finalizers = Some(vec!["example.com/hold".into()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), "n");
    eventually("default account", async || {
        accounts.get_opt("default").await.unwrap().is_some()
    })
    .await;
    let deleted = namespaces.delete("n", &DeleteParams::default()).await.unwrap();
    assert_eq!(
        deleted.left().unwrap().status.unwrap().phase.as_deref(),
        Some("Terminating")
    );
    let (code, _, message) = status(
        maps.create(&PostParams::default(), &config_map("late", "x"))
            .await
            .unwrap_err(),
    );
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "configmaps \"late\" is forbidden: unable to create new content in namespace n because it is being terminated"
    );
    eventually("account gone", async || {
        accounts.get_opt("default").await.unwrap().is_none()
    })
    .await;
    assert!(namespaces.get_opt("n").await.unwrap().is_some(), "the finalizer holds");
    maps.patch(
        "held",
        &PatchParams::default(),
        &Patch::Merge(json!({"metadata": {"finalizers": []}})),
    )
    .await
    .unwrap();
    eventually("namespace gone", async || {
        namespaces.get_opt("n").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_deleted_crd_takes_its_objects_along() {
    let (_server, client) = server().await;
    let crds: Api<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> =
        Api::all(client.clone());
    let api = widgets(&client);
    api.create(&PostParams::default(), &widget("w", json!({"size": 1})))
        .await
        .unwrap();
    crds.delete("widgets.example.com", &DeleteParams::default())
        .await
        .unwrap();
    eventually("CRD gone", async || {
        crds.get_opt("widgets.example.com").await.unwrap().is_none()
    })
    .await;
    // The kind goes right after its CRD, as on any API server.
    eventually("kind gone", async || api.list(&ListParams::default()).await.is_err()).await;
    let (code, _, message) = status(api.list(&ListParams::default()).await.unwrap_err());
    assert_eq!(
        (code, message.as_str()),
        (404, "the server could not find the requested resource")
    );
}
