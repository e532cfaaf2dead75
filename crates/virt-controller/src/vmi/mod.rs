//! VirtualMachineInstance: one pod for it, and its phases up to Scheduled.
//!
//! gather ([`Observed`]) → [`plan`](plan::plan) → apply. See [`ferrovirt_core::vmi`] for who writes what.

pub mod claims;
pub mod devices;
mod limits;
mod network_info;
mod networks;
pub mod plan;
pub mod pod;
mod status;
#[cfg(test)]
mod tests;
pub mod vsock;

use std::borrow::Cow;
use std::sync::Arc;

use ferrovirt_api::v1::{VirtualMachineInstance, VirtualMachineInstanceStatus};
use ferrovirt_core::vmi::conditions as rules;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::Home;
use crate::cache::{Key, owner_uid};
use crate::context::{Context, Trouble, conflict, gone, outdated};
use crate::events::Notice;
use crate::image_volumes::ContainerDisks;
use crate::node;
use crate::patch::{self, Written};
use crate::queue::Outcome;
use claims::Claims;
use devices::Devices;
use plan::{Effect, Observed};

/// The fields of a VMI's status that every plan is based on. virt-handler writes some of them, too.
const TESTED: [&str; 2] = ["phase", "conditions"];

/// Brings one VMI on its way. Never fails for what a user can cause: that becomes a condition.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(mut observed) = gather(&context, &key) else {
        return Outcome::Done;
    };
    if let Some(pod) = plan::awaits_devices(&observed) {
        observed.devices = match devices::look(&context.client, &observed.vmi, pod).await {
            Ok(devices) => Devices::Given(devices),
            Err(unknown) => Devices::Awaited(unknown.to_string()),
        };
    }
    let now = Timestamp::now();
    let mut plan = plan::plan(&observed, now);
    if plan.loses_pod(&observed) && lost_with_node(&context, &observed.vmi).await {
        observed.node_unresponsive = true;
        plan = plan::plan(&observed, now);
    }
    let mut status = plan.status;
    let mut failure = None;
    for effect in &plan.effects {
        if let Err(trouble) = apply(&context, &observed, effect).await {
            if let Trouble::Failed { reason, message } = &trouble {
                plan::failed(&mut status, reason, message, now);
                context
                    .events
                    .tell(&*observed.vmi, Notice::warning(reason, message.clone()));
            }
            failure = Some(trouble);
            break;
        }
    }
    plan::begin(&observed.vmi, &mut status);
    let written = write_status(&context, &observed.vmi, &status).await;
    if let (Ok(()), Some(notice)) = (&written, plan.notice) {
        context.events.tell(&*observed.vmi, notice);
    }
    match failure.or(written.err()) {
        Some(trouble) => {
            tracing::debug!(vmi = %key, %trouble, "a VMI could not be reconciled");
            Outcome::Retry
        }
        None => plan.requeue.map_or(Outcome::Done, Outcome::After),
    }
}

fn gather(context: &Context, key: &Key) -> Option<Observed> {
    let vmi = context.vmis.get(key)?;
    let uid = vmi.metadata.uid.as_deref().unwrap_or_default();
    let owner_exists = owner_uid(&*vmi).is_some_and(|owner| {
        let owned = context.vms.get(key);
        owned.is_some_and(|vm| vm.metadata.uid.as_deref() == Some(owner))
    });
    let config = Arc::clone(&context.config.borrow());
    let possible = context.container_disks.borrow().unwrap_or(ContainerDisks::Helper);
    Some(Observed {
        container_disks: if config.image_volumes {
            possible
        } else {
            ContainerDisks::Helper
        },
        claims: Claims::of(&vmi, &context.claims),
        devices: Devices::Settled,
        pods: context.pods.owned_by(uid),
        owner_exists,
        vsock_cid: context.vsock_cids.of(&vmi, &context.vmis),
        config,
        node_unresponsive: node_unresponsive(context, &vmi),
        options: Arc::clone(&context.options),
        vmi,
    })
}

fn node_unresponsive(context: &Context, vmi: &VirtualMachineInstance) -> bool {
    let node = vmi.status.as_ref().and_then(|s| s.node_name.as_deref());
    context.options.home == Home::Cluster && node.is_some_and(|node| context.nodes.unresponsive(node, Timestamp::now()))
}

/// Whether a VMI whose pod is lost lost it because of its node. Only the reason that users read depends on it, so
/// nothing waits for an API server that does not tell.
async fn lost_with_node(context: &Context, vmi: &VirtualMachineInstance) -> bool {
    let Some(name) = vmi.status.as_ref().and_then(|s| s.node_name.as_deref()) else {
        return false;
    };
    if context.options.home != Home::Cluster {
        return false;
    }
    node::is_given_up(&context.client, name).await.unwrap_or_else(|error| {
        tracing::debug!(node = name, %error, "cannot ask for a node");
        false
    })
}

async fn apply(context: &Context, observed: &Observed, effect: &Effect) -> Result<(), Trouble> {
    let vmi = &*observed.vmi;
    let namespace = vmi.metadata.namespace.as_deref().unwrap_or_default();
    match effect {
        Effect::CreatePod(pod) => create_pod(context, vmi, namespace, pod).await,
        Effect::CreateStateClaim => create_state_claim(context, observed, namespace).await,
        Effect::DeletePod {
            name,
            uid,
            grace_seconds,
        } => delete_pod(context, vmi, namespace, (name, uid), *grace_seconds).await,
        Effect::LabelNode(node) => {
            let labels = json!({ferrovirt_core::names::NODE_NAME_LABEL: node});
            // Another VMI of the same name has another UID, which no patch can change.
            let change = json!({"metadata": {"uid": vmi.metadata.uid, "labels": labels}});
            patch_vmi(context, vmi, &Patch::Merge(change)).await
        }
        Effect::OpenGate { name, open } => open_gate(context, namespace, name, *open).await,
        Effect::TellNetworks { name, info } => tell_networks(context, namespace, name, info).await,
        Effect::SetFinalizers { old, new } => {
            let path = "/metadata/finalizers";
            let operations = [
                json!({"op": "test", "path": path, "value": old}),
                json!({"op": "replace", "path": path, "value": new}),
            ];
            let same = patch::test_uid(&vmi.metadata).into_iter();
            let change = patch::patch(same.chain(operations).collect()).map_err(Trouble::patch)?;
            patch_vmi(context, vmi, &change).await
        }
    }
}

async fn create_pod(
    context: &Context,
    vmi: &VirtualMachineInstance,
    namespace: &str,
    pod: &Pod,
) -> Result<(), Trouble> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let name = pod.metadata.name.clone().unwrap_or_default();
    let mut pod = Cow::Borrowed(pod);
    let devices = networks::resources(&context.client, vmi).await?;
    if !devices.is_empty() {
        networks::ask(pod.to_mut(), &devices);
    }
    if context.options.home == Home::Cluster {
        let config = Arc::clone(&context.config.borrow());
        let wanted = limits::wanted(&context.client, namespace, &pod, &config).await?;
        if wanted != limits::Wanted::default() {
            limits::add(pod.to_mut(), vmi, &config, wanted);
        }
    }
    match pods.create(&PostParams::default(), &pod).await {
        Ok(created) => {
            context.pods.observe(created, Timestamp::now());
            context.events.tell(
                vmi,
                Notice::normal("SuccessfulCreate", format!("Created virtual machine pod {name}")),
            );
            context.vmi_queue.send(Key::of(vmi));
            Ok(())
        }
        // Created before, and not seen yet.
        Err(error) if conflict(&error) => {
            let existing = pods.get(&name).await.map_err(|e| Trouble::call("getting the pod", e))?;
            if owner_uid(&existing) != vmi.metadata.uid.as_deref() {
                let message = format!("Error creating pod: pod {name} exists and belongs to something else; delete it");
                return Err(Trouble::Failed {
                    reason: rules::FAILED_CREATE,
                    message,
                });
            }
            context.pods.observe(existing, Timestamp::now());
            context.vmi_queue.send(Key::of(vmi));
            Ok(())
        }
        Err(error) => {
            if outdated(&error) {
                // Perhaps the API server's gate for image volumes was turned off.
                context.doubt.notify_one();
            }
            Err(Trouble::failed(rules::FAILED_CREATE, "Error creating pod", &error))
        }
    }
}

/// The pod comes next, when the claim is seen.
async fn create_state_claim(context: &Context, observed: &Observed, namespace: &str) -> Result<(), Trouble> {
    let doing = "Error creating the claim for persistent state";
    let failed = |error: &kube::Error| Trouble::failed(rules::FAILED_BACKEND_STORAGE_CREATE, doing, error);
    let classes: Api<StorageClass> = Api::all(context.client.clone());
    let classes = classes.list(&ListParams::default()).await.map_err(|e| failed(&e))?;
    let class = claims::state_class(&observed.config, &classes.items).ok_or_else(|| Trouble::Failed {
        reason: rules::FAILED_BACKEND_STORAGE_CREATE,
        message: format!(
            "{doing}: no default storage class found; mark one as default, or set \
             spec.configuration.vmStateStorageClass of the KubeVirt object"
        ),
    })?;
    let claim = claims::state_claim(&observed.vmi, class, &observed.config);
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let created = match api.create(&PostParams::default(), &claim).await {
        // Created before, and not seen yet.
        Err(error) if conflict(&error) => api.get(&claim.name_any()).await,
        answer => answer,
    };
    let created = created.map_err(|error| failed(&error))?;
    if created.metadata.deletion_timestamp.is_some() {
        return Err(Trouble::Outdated);
    }
    context.claims.observe(created, Timestamp::now());
    context.vmi_queue.send(Key::of(&*observed.vmi));
    Ok(())
}

async fn delete_pod(
    context: &Context,
    vmi: &VirtualMachineInstance,
    namespace: &str,
    (name, uid): (&str, &str),
    grace_seconds: i64,
) -> Result<(), Trouble> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let parameters = DeleteParams {
        grace_period_seconds: u32::try_from(grace_seconds).ok(),
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match pods.delete(name, &parameters).await {
        Ok(answer) => {
            if let Some(deleting) = answer.left().filter(|pod| pod.metadata.deletion_timestamp.is_some()) {
                context.pods.observe(deleting, Timestamp::now());
            }
            context.events.tell(
                vmi,
                Notice::normal("SuccessfulDelete", format!("Deleted virtual machine pod {name}")),
            );
            Ok(())
        }
        Err(error) if gone(&error) || conflict(&error) => Ok(()),
        Err(error) => Err(Trouble::failed(rules::FAILED_DELETE, "Error deleting pod", &error)),
    }
}

async fn open_gate(context: &Context, namespace: &str, name: &str, open: bool) -> Result<(), Trouble> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let (status, reason) = if open {
        ("True", "NotPaused")
    } else {
        ("False", "Paused")
    };
    let condition = json!({
        "type": ferrovirt_core::names::UNPAUSED_GATE, "status": status, "reason": reason,
        "lastTransitionTime": ferrovirt_core::conditions::wire_time(Timestamp::now()),
    });
    let change = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    match pods.patch_status(name, &PatchParams::default(), &change).await {
        Ok(pod) => {
            context.pods.observe(pod, Timestamp::now());
            Ok(())
        }
        Err(error) if gone(&error) => Ok(()),
        Err(error) => Err(Trouble::call("setting the pod's readiness gate", error)),
    }
}

async fn tell_networks(context: &Context, namespace: &str, name: &str, info: &str) -> Result<(), Trouble> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let annotations = json!({ferrovirt_core::names::NETWORK_INFO_ANNOTATION: info});
    let change = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    match pods.patch(name, &PatchParams::default(), &change).await {
        Ok(pod) => {
            context.pods.observe(pod, Timestamp::now());
            Ok(())
        }
        Err(error) if gone(&error) => Ok(()),
        Err(error) => Err(Trouble::call("telling the pod of its networks", error)),
    }
}

async fn patch_vmi<P: serde::Serialize + std::fmt::Debug>(
    context: &Context,
    vmi: &VirtualMachineInstance,
    change: &Patch<P>,
) -> Result<(), Trouble> {
    let namespace = vmi.metadata.namespace.as_deref().unwrap_or_default();
    let name = vmi.metadata.name.as_deref().unwrap_or_default();
    let api: Api<VirtualMachineInstance> = Api::namespaced(context.client.clone(), namespace);
    match api.patch(name, &PatchParams::default(), change).await {
        Ok(patched) => {
            context.vmis.observe(patched, Timestamp::now());
            Ok(())
        }
        Err(error) if gone(&error) => Ok(()),
        Err(error) => Err(Trouble::call("patching the VMI", error)),
    }
}

async fn write_status(
    context: &Context,
    vmi: &VirtualMachineInstance,
    status: &VirtualMachineInstanceStatus,
) -> Result<(), Trouble> {
    let namespace = vmi.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<VirtualMachineInstance> = Api::namespaced(context.client.clone(), namespace);
    // The label may have been patched a moment ago: the newest version counts.
    let newest = context
        .vmis
        .get(&Key::of(vmi))
        .filter(|n| n.metadata.uid == vmi.metadata.uid);
    let version = newest.as_deref().unwrap_or(vmi).metadata.resource_version.as_deref();
    match patch::write_status(&api, vmi, version, status, &TESTED).await? {
        Written::Nothing => Ok(()),
        Written::Now(patched) => {
            let again = patched.metadata.deletion_timestamp.is_some();
            context.vmis.observe(patched, Timestamp::now());
            if again {
                context.vmi_queue.send(Key::of(vmi));
            }
            Ok(())
        }
        Written::Outdated(fresh) => {
            context.vmis.observe(fresh, Timestamp::now());
            Err(Trouble::Outdated)
        }
    }
}
