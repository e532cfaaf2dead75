//! Commands that read and write objects: credentials, and the installation's settings.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cluster;

use cluster::Cluster;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn credentials_live_in_secrets() {
    let cluster = Cluster::open().await;
    cluster.home.create_vm("a", "Halted").await;
    let secrets: Api<Secret> = Api::namespaced(cluster.home.client.clone(), "default");
    let data = async |name: &str| {
        let found = secrets.get(name).await.unwrap().data.unwrap_or_default();
        found
            .into_values()
            .map(|value| String::from_utf8(value.0).unwrap())
            .collect::<Vec<_>>()
    };
    let add = ["credentials", "add-ssh-key", "a", "-u", "jane", "--value"];
    let made = cluster
        .run(&[&add[..], &["ssh-ed25519 AAAA me", "--secret=keys"]].concat())
        .await;
    made.prints("Secret keys was created with the SSH key of user jane\n");
    let vm = serde_json::to_value(cluster.home.vms().get("a").await.unwrap()).unwrap();
    assert_eq!(
        vm.pointer("/spec/template/spec/accessCredentials/0"),
        Some(&json!({"sshPublicKey": {
            "source": {"secret": {"secretName": "keys"}},
            "propagationMethod": {"qemuGuestAgent": {"users": ["jane"]}},
        }}))
    );
    // The Secret is found again, and belongs to the machine.
    let more = cluster.run(&[&add[..], &["ssh-rsa BBBB"]].concat()).await;
    more.prints("Secret keys has the new SSH key of user jane\n");
    let again = cluster.run(&[&add[..], &["ssh-rsa BBBB other comment"]].concat()).await;
    again.prints("Secret keys has this key of user jane already\n");
    assert_eq!(data("keys").await.len(), 2);
    let remove = ["credentials", "remove-ssh-key", "a", "-u", "jane", "--value"];
    let removed = cluster.run(&[&remove[..], &["ssh-ed25519 AAAA"]].concat()).await;
    removed.prints("Secret keys has this key of user jane no more\n");
    assert_eq!(data("keys").await, ["ssh-rsa BBBB"]);
    cluster
        .run(&[&remove[..], &["ssh-ed25519 AAAA"]].concat())
        .await
        .fails("takes no such key");

    let set = ["credentials", "set-password", "a", "-u", "jane", "--secret=words", "-p"];
    let made = cluster.run(&[&set[..], &["first"]].concat()).await;
    made.prints("Secret words was created with the password of user jane\n");
    cluster
        .run(&[&set[..], &["second"]].concat())
        .await
        .prints("Secret words has the new password of user jane\n");
    assert_eq!(data("words").await, ["second"]);
    // Somebody else's Secret.
    let orphan = json!({"metadata": {"ownerReferences": null}});
    secrets
        .patch("words", &PatchParams::default(), &Patch::Merge(&orphan))
        .await
        .unwrap();
    cluster.run(&[&set[..], &["third"]].concat()).await.fails("--force");
    let forced = cluster.run(&[&set[..], &["third", "--force"]].concat()).await;
    forced.prints("Secret words has the new password of user jane\n");
    assert_eq!(data("words").await, ["third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_see_and_set() {
    let cluster = Cluster::open().await;
    cluster
        .run(&["permitted-devices"])
        .await
        .fails("there is no KubeVirt object");
    let kubevirt = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": "kubevirt"},
        "spec": {"configuration": {"permittedHostDevices": {
            "pciHostDevices": [{"pciVendorSelector": "10DE:1", "resourceName": "nvidia.com/a"}],
        }}},
    }))
    .unwrap();
    let kubevirts = cluster.home.kubevirts();
    kubevirts.create(&PostParams::default(), &kubevirt).await.unwrap();
    let listed = cluster.run(&["permitted-devices"]).await;
    listed.prints("Permitted Devices: \nHost Devices: \nnvidia.com/a\nGPU Devices: \n\n");
    let verbosity = ["adm", "log-verbosity"];
    let set = cluster
        .run(&[&verbosity[..], &["--all=3", "--virt-handler=7"]].concat())
        .await;
    set.prints("successfully set/reset the log verbosity\n");
    let shown = cluster
        .run(&[&verbosity[..], &["--virt-api", "--virt-handler"]].concat())
        .await;
    shown.prints("virt-api = 3\nvirt-handler = 7\n");
    let reset = cluster
        .run(&[&verbosity[..], &["--reset", "--virt-api=4"]].concat())
        .await;
    reset.prints("successfully set/reset the log verbosity\n");
    let found = serde_json::to_value(kubevirts.get("kubevirt").await.unwrap()).unwrap();
    assert_eq!(
        found.pointer("/spec/configuration/developerConfiguration/logVerbosity"),
        Some(&json!({"virtAPI": 4}))
    );
    cluster.run(&verbosity).await.fails("name a component");
}
