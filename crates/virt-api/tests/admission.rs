//! Admission through the API server.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fixture;

use ferrovirt_api::v1::{VirtualMachineInstanceMigration, VirtualMachineInstancePreset};
use fixture::{Home, vm, vmi};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::{Value, json};

fn refused<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> Status {
    match result {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("not refused: {other:?}"),
    }
}

fn fields(status: &Status) -> Vec<&str> {
    let details = status.details.as_ref().unwrap();
    details.causes.iter().map(|cause| cause.field.as_str()).collect()
}

#[tokio::test]
async fn machines_are_completed_and_judged() {
    let home = Home::open().await;
    let made = home.create_vm("a", "Halted").await;
    let mut manifest = vm("a", "Halted");
    manifest
        .metadata
        .resource_version
        .clone_from(&made.metadata.resource_version);
    let replaced = home
        .vms()
        .replace("a", &PostParams::default(), &manifest)
        .await
        .unwrap();
    assert_eq!(replaced.spec, made.spec, "the guest sees the hardware that it has seen");
    let spec = made.spec.template.spec.unwrap();
    assert!(spec.domain.firmware.is_some_and(|firmware| firmware.uuid.is_some()));

    let mut bad = vm("b", "Sometimes");
    bad.spec.running = Some(true);
    let status = refused(home.vms().create(&PostParams::default(), &bad).await);
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert!(fields(&status).contains(&"spec.running"), "{status:?}");
    assert!(home.vms().get_opt("b").await.unwrap().is_none());

    let change = Patch::Merge(json!({"spec": {"runStrategy": "Never"}}));
    let status = refused(home.vms().patch("a", &PatchParams::default(), &change).await);
    assert_eq!(fields(&status), ["spec.runStrategy"]);
    home.vms().delete("a", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn instances_are_completed_and_belong_to_us() {
    let home = Home::open().await;
    let preset: VirtualMachineInstancePreset = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstancePreset",
        "metadata": {"name": "small"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "domain": {"devices": {}, "cpu": {"cores": 2}}},
    }))
    .unwrap();
    let presets: Api<VirtualMachineInstancePreset> = Api::namespaced(home.client.clone(), "default");
    presets.create(&PostParams::default(), &preset).await.unwrap();

    let made = home.vmis().create(&PostParams::default(), &vmi("a")).await.unwrap();
    // Its controller's, who is not here.
    assert_eq!(made.status, None);
    assert_eq!(made.spec.domain.cpu.and_then(|cpu| cpu.cores), Some(2));
    let finalizers = made.metadata.finalizers.unwrap();
    assert!(
        finalizers
            .iter()
            .any(|name| name == "kubevirt.io/foregroundDeleteVirtualMachine")
    );

    let change: Patch<Value> = Patch::Merge(json!({"spec": {"terminationGracePeriodSeconds": 1}}));
    let status = refused(home.vmis().patch("a", &PatchParams::default(), &change).await);
    assert!(
        status.message.contains("update of VMI object is restricted"),
        "{}",
        status.message
    );
    let ours: Api<ferrovirt_api::v1::VirtualMachineInstance> = Api::namespaced(home.controller.clone(), "default");
    ours.patch("a", &PatchParams::default(), &change).await.unwrap();

    let label: Patch<Value> = Patch::Merge(json!({"metadata": {"labels": {"kubevirt.io/nodeName": "n"}}}));
    assert_eq!(
        refused(home.vmis().patch("a", &PatchParams::default(), &label).await).code,
        422
    );
    ours.patch("a", &PatchParams::default(), &label).await.unwrap();
}

#[tokio::test]
async fn there_is_one_kubevirt() {
    let home = Home::open().await;
    let object = |name: &str| -> ferrovirt_api::v1::KubeVirt {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": name}, "spec": {},
        }))
        .unwrap()
    };
    home.kubevirts()
        .create(&PostParams::default(), &object("kubevirt"))
        .await
        .unwrap();
    let status = refused(home.kubevirts().create(&PostParams::default(), &object("other")).await);
    assert_eq!(status.code, 422);
    assert!(
        status
            .message
            .contains("there is already a KubeVirt object, kubevirt/kubevirt"),
        "{}",
        status.message
    );
}

#[tokio::test]
async fn migrations_are_refused_with_a_reason() {
    let home = Home::open().await;
    let migration: VirtualMachineInstanceMigration = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstanceMigration",
        "metadata": {"name": "m"},
        "spec": {"vmiName": "a"},
    }))
    .unwrap();
    let api: Api<VirtualMachineInstanceMigration> = Api::namespaced(home.client.clone(), "default");
    let status = refused(api.create(&PostParams::default(), &migration).await);
    assert_eq!(status.code, 422);
    assert!(status.message.contains("not supported yet"), "{}", status.message);
}
