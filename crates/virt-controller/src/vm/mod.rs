//! VirtualMachine: one VMI for it, as its run strategy says.
//!
//! gather ([`Observed`]) → [`plan`](plan::plan) → apply. See [`ferrovirt_core::vm`] for the rules.

pub mod plan;
pub mod render;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance, VirtualMachineSpec, VirtualMachineStatus};
use ferrovirt_core::names;
use ferrovirt_core::vm::actions;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cache::{Key, owner_uid};
use crate::context::{Context, Trouble, conflict, gone};
use crate::events::Notice;
use crate::patch::{self, Written};
use crate::queue::Outcome;
use crate::vmi::claims;
use plan::{Effect, FAILED_CREATE, FAILED_DELETE, Observed, Plan, started_generation};

/// The fields of a VM's status that others write, too: subresources queue requests and clear failures.
const TESTED: [&str; 2] = ["stateChangeRequests", "startFailure"];

/// Specs that VMs were started with: those that differ from what the VMs are now. By UID of the VM.
#[derive(Debug, Default)]
pub struct Revisions(Mutex<HashMap<String, (i64, Arc<VirtualMachineSpec>)>>);

impl Revisions {
    fn get(&self, uid: &str, generation: i64) -> Option<Arc<VirtualMachineSpec>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(uid)
            .filter(|(g, _)| *g == generation)
            .map(|(_, spec)| Arc::clone(spec))
    }

    fn put(&self, uid: &str, generation: i64, spec: Arc<VirtualMachineSpec>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid.to_owned(), (generation, spec));
    }

    /// Forgets a VM.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Brings one VM on its way. Never fails for what a user can cause: that becomes a condition.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    match attempt(&context, &key).await {
        Ok(outcome) => outcome,
        Err(trouble) => {
            tracing::debug!(vm = %key, %trouble, "a VM could not be reconciled");
            Outcome::Retry
        }
    }
}

async fn attempt(context: &Context, key: &Key) -> Result<Outcome, Trouble> {
    let Some(observed) = gather(context, key).await? else {
        return Ok(Outcome::Done);
    };
    let mut plan = plan::plan(&observed, Timestamp::now());
    let mut failure = None;
    for effect in &plan.effects {
        if let Err(trouble) = apply(context, &observed, effect).await {
            failure = Some(trouble);
            break;
        }
    }
    // The status tells what is true after the effects.
    let mut vm = Arc::clone(&observed.vm);
    if !plan.effects.is_empty() {
        let Some(after) = gather(context, key).await? else {
            return Ok(Outcome::Done);
        };
        let Plan { status, requeue, .. } = plan::plan(&after, Timestamp::now());
        (plan.status, plan.requeue) = (status, requeue);
        vm = after.vm;
    }
    if let Some(Trouble::Failed { reason, message }) = &failure {
        plan::fail(&mut plan.status, &vm, (reason, message), Timestamp::now());
        context.events.tell(&*vm, Notice::warning(reason, message.clone()));
    }
    write_status(context, &vm, &plan.status).await?;
    match failure {
        Some(trouble) => Err(trouble),
        None => Ok(plan.requeue.map_or(Outcome::Done, Outcome::After)),
    }
}

async fn gather(context: &Context, key: &Key) -> Result<Option<Observed>, Trouble> {
    let Some(vm) = context.vms.get(key) else {
        return Ok(None);
    };
    let known = context.vmis.get(key);
    let owner = known.as_ref().map(|vmi| owner_uid(&**vmi).map(str::to_owned));
    let orphan = known.clone().filter(|_| owner == Some(None));
    let vmi = known.filter(|_| owner == Some(vm.metadata.uid.clone()));
    let started = match &vmi {
        Some(vmi) => started_spec(context, &vm, vmi).await?,
        None => None,
    };
    let template = vm.spec.template.spec.as_ref();
    let unbound_claims = template.is_some_and(|spec| claims::unbound(namespace(&vm), spec, &context.claims));
    Ok(Some(Observed {
        vm,
        vmi,
        orphan,
        started,
        unbound_claims,
        live_update: context.config.borrow().live_update,
        jitter: rand::random(),
    }))
}

/// The spec that a VMI was started with, if the VM has another generation by now and the revision still exists.
async fn started_spec(
    context: &Context,
    vm: &VirtualMachine,
    vmi: &VirtualMachineInstance,
) -> Result<Option<Arc<VirtualMachineSpec>>, Trouble> {
    let Some(generation) = started_generation(vmi).filter(|g| Some(*g) != vm.metadata.generation) else {
        return Ok(None);
    };
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    if let Some(known) = context.revisions.get(uid, generation) {
        return Ok(Some(known));
    }
    let revisions: Api<ControllerRevision> = Api::namespaced(context.client.clone(), namespace(vm));
    let found = revisions.get_opt(&names::start_revision(uid, generation)).await;
    let found = found.map_err(|e| Trouble::call("reading the revision that the VM was started with", e))?;
    let spec = found.and_then(|r| r.data).and_then(|data| {
        let spec = data.0.get("spec")?.clone();
        serde_json::from_value::<VirtualMachineSpec>(spec).ok()
    });
    let spec = spec.map(Arc::new);
    if let Some(spec) = &spec {
        context.revisions.put(uid, generation, Arc::clone(spec));
    }
    Ok(spec)
}

fn namespace(vm: &VirtualMachine) -> &str {
    vm.metadata.namespace.as_deref().unwrap_or_default()
}

fn name(vm: &VirtualMachine) -> &str {
    vm.metadata.name.as_deref().unwrap_or_default()
}

async fn apply(context: &Context, observed: &Observed, effect: &Effect) -> Result<(), Trouble> {
    let vm = &*observed.vm;
    match effect {
        Effect::SetFinalizers { old, new } => patch_vm(context, vm, finalizers(old, new, &vm.metadata)).await,
        Effect::CreateVmi { revision, vmi } => create(context, vm, revision, vmi).await,
        Effect::AdoptVmi(vmi) => patch_vmi(context, vmi, adoption(vm, vmi), "adopting the VMI").await,
        Effect::UpdateVmi(operations) => {
            let Some(vmi) = &observed.vmi else { return Ok(()) };
            patch_vmi(context, vmi, operations.clone(), "changing the VMI").await
        }
        Effect::DeleteVmi { uid } => delete(context, vm, uid).await,
        Effect::ReleaseVmi { old, new } => {
            let Some(vmi) = &observed.vmi else { return Ok(()) };
            patch_vmi(context, vmi, finalizers(old, new, &vmi.metadata), "releasing the VMI").await
        }
        Effect::TurnOn => {
            let actions::Effect::PatchVm(Value::Array(operations)) = actions::turn(vm, true) else {
                return Ok(());
            };
            patch_vm(context, vm, operations).await
        }
    }
}

/// Makes a VM the controller of a VMI that has none.
fn adoption(vm: &VirtualMachine, vmi: &VirtualMachineInstance) -> Vec<Value> {
    let path = "/metadata/ownerReferences";
    let owner = render::owner(vm);
    let meta = &vmi.metadata;
    let same = json!({"op": "test", "path": "/metadata/resourceVersion", "value": meta.resource_version});
    let add = match &meta.owner_references {
        Some(_) => json!({"op": "add", "path": format!("{path}/-"), "value": owner}),
        None => json!({"op": "add", "path": path, "value": [owner]}),
    };
    vec![same, add]
}

fn finalizers(old: &[String], new: &[String], meta: &ObjectMeta) -> Vec<Value> {
    let path = "/metadata/finalizers";
    let test = match &meta.finalizers {
        Some(_) => json!({"op": "test", "path": path, "value": old}),
        None => json!({"op": "test", "path": "/metadata/resourceVersion", "value": meta.resource_version}),
    };
    vec![test, json!({"op": "add", "path": path, "value": new})]
}

/// An answer in which "not there" is fine.
fn taken<K>(answer: Result<K, kube::Error>, doing: &'static str) -> Result<Option<K>, Trouble> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(Trouble::call(doing, error)),
    }
}

async fn patch_vmi(
    context: &Context,
    vmi: &VirtualMachineInstance,
    operations: Vec<Value>,
    doing: &'static str,
) -> Result<(), Trouble> {
    let same = patch::test_uid(&vmi.metadata).into_iter();
    let change = patch::patch(same.chain(operations).collect()).map_err(Trouble::patch)?;
    let namespace = vmi.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<VirtualMachineInstance> = Api::namespaced(context.client.clone(), namespace);
    let answer = api.patch(&vmi.name_any(), &PatchParams::default(), &change).await;
    if let Some(patched) = taken(answer, doing)? {
        context.vmis.observe(patched, Timestamp::now());
    }
    Ok(())
}

async fn patch_vm(context: &Context, vm: &VirtualMachine, operations: Vec<Value>) -> Result<(), Trouble> {
    let same = patch::test_uid(&vm.metadata).into_iter();
    let change = patch::patch(same.chain(operations).collect()).map_err(Trouble::patch)?;
    let api: Api<VirtualMachine> = Api::namespaced(context.client.clone(), namespace(vm));
    let answer = api.patch(name(vm), &PatchParams::default(), &change).await;
    if let Some(patched) = taken(answer, "patching the VM")? {
        context.vms.observe(patched, Timestamp::now());
    }
    Ok(())
}

async fn create(
    context: &Context,
    vm: &VirtualMachine,
    revision: &ControllerRevision,
    vmi: &VirtualMachineInstance,
) -> Result<(), Trouble> {
    let revisions: Api<ControllerRevision> = Api::namespaced(context.client.clone(), namespace(vm));
    match revisions.create(&PostParams::default(), revision).await {
        Ok(_) => {}
        Err(error) if conflict(&error) => {}
        Err(error) => {
            return Err(Trouble::failed(
                FAILED_CREATE,
                "Error creating the VM's revision",
                &error,
            ));
        }
    }
    let vmis: Api<VirtualMachineInstance> = Api::namespaced(context.client.clone(), namespace(vm));
    let name = name(vm);
    match vmis.create(&PostParams::default(), vmi).await {
        Ok(created) => {
            context.vmis.observe(created, Timestamp::now());
            context.vmi_queue.send(Key::of(vm));
            let message = format!("Started the virtual machine by creating the new virtual machine instance {name}");
            context.events.tell(vm, Notice::normal("SuccessfulCreate", message));
            forget_older(&revisions, vm, revision).await;
            Ok(())
        }
        // Created before, and not seen yet; or somebody else's.
        Err(error) if conflict(&error) => {
            let existing = vmis.get(name).await.map_err(|e| Trouble::call("getting the VMI", e))?;
            if owner_uid(&existing).is_none() {
                // It is adopted next.
                context.vmis.observe(existing, Timestamp::now());
                return Err(Trouble::Outdated);
            }
            if owner_uid(&existing) != vm.metadata.uid.as_deref() {
                let message = format!("VirtualMachineInstance {name} exists and belongs to something else; delete it");
                return Err(Trouble::Failed {
                    reason: FAILED_CREATE,
                    message,
                });
            }
            context.vmis.observe(existing, Timestamp::now());
            Ok(())
        }
        Err(error) => Err(Trouble::failed(
            FAILED_CREATE,
            "Error creating virtual machine instance",
            &error,
        )),
    }
}

/// Deletes the revisions that the VM was started with before. A failure costs only space, until the next start.
async fn forget_older(revisions: &Api<ControllerRevision>, vm: &VirtualMachine, current: &ControllerRevision) {
    if current.revision <= 1 {
        return;
    }
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let ours = ListParams::default().labels(&format!("{}={uid}", names::CREATED_BY_LABEL));
    let all = match revisions.list_metadata(&ours).await {
        Ok(all) => all,
        Err(error) => {
            tracing::debug!(%error, "revisions could not be listed");
            return;
        }
    };
    let old = all
        .items
        .into_iter()
        .filter_map(|r| r.metadata.name)
        .filter(|n| Some(n) != current.metadata.name.as_ref());
    for name in old {
        if let Err(error) = revisions.delete(&name, &DeleteParams::default()).await {
            tracing::debug!(%error, name, "a revision could not be deleted");
        }
    }
}

async fn delete(context: &Context, vm: &VirtualMachine, uid: &str) -> Result<(), Trouble> {
    let vmis: Api<VirtualMachineInstance> = Api::namespaced(context.client.clone(), namespace(vm));
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let name = name(vm);
    match vmis.delete(name, &parameters).await {
        Ok(answer) => {
            if let Some(deleting) = answer.left().filter(|v| v.metadata.deletion_timestamp.is_some()) {
                context.vmis.observe(deleting, Timestamp::now());
            }
            let message = format!("Stopped the virtual machine by deleting the virtual machine instance {name}");
            context.events.tell(vm, Notice::normal("SuccessfulDelete", message));
            Ok(())
        }
        Err(error) if gone(&error) || conflict(&error) => Ok(()),
        Err(error) => Err(Trouble::failed(
            FAILED_DELETE,
            "Error deleting virtual machine instance",
            &error,
        )),
    }
}

async fn write_status(context: &Context, vm: &VirtualMachine, status: &VirtualMachineStatus) -> Result<(), Trouble> {
    let api: Api<VirtualMachine> = Api::namespaced(context.client.clone(), namespace(vm));
    let version = vm.metadata.resource_version.as_deref();
    match patch::write_status(&api, vm, version, status, &TESTED).await? {
        Written::Nothing => Ok(()),
        Written::Now(vm) => {
            context.vms.observe(vm, Timestamp::now());
            Ok(())
        }
        Written::Outdated(vm) => {
            context.vms.observe(vm, Timestamp::now());
            Err(Trouble::Outdated)
        }
    }
}
