//! `start`, `stop`, `restart`: core decides by what was read, the decision is applied as JSON patches that test
//! what was read, and when the objects have changed in between it is read and decided again.

use axum::body::Body;
use ferrovirt_api::v1::{RestartOptions, StartOptions, StopOptions, VirtualMachine, VirtualMachineInstance};
use ferrovirt_core::refusal::Refusal as Rule;
use ferrovirt_core::vm::actions::{self, Effect};
use http::{Response, StatusCode};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::Value;

use super::{Subresources, Target, dry_run};
use crate::status::{self, Refusal};

/// How often a decision is made again because an object changed under it.
pub(super) const ATTEMPTS: usize = 5;
/// Why there is no VMI of a VM.
pub(super) const NOT_STARTED: &str = "VMI is not started";

impl Subresources {
    pub(super) async fn start(&self, target: &Target, options: StartOptions) -> Result<Response<Body>, Refusal> {
        let paused = options.paused.unwrap_or_default();
        self.change(target, &options.dry_run, |vm, vmi| actions::start(vm, vmi, paused))
            .await
    }

    pub(super) async fn stop(&self, target: &Target, options: StopOptions) -> Result<Response<Body>, Refusal> {
        let grace = options.grace_period;
        self.change(target, &options.dry_run, |vm, vmi| actions::stop(vm, vmi, grace))
            .await
    }

    pub(super) async fn restart(&self, target: &Target, options: RestartOptions) -> Result<Response<Body>, Refusal> {
        let grace = options.grace_period_seconds;
        self.change(target, &options.dry_run, |vm, vmi| actions::restart(vm, vmi, grace))
            .await
    }

    async fn change<D>(&self, target: &Target, dry_run_option: &[String], decide: D) -> Result<Response<Body>, Refusal>
    where
        D: Fn(&VirtualMachine, Option<&VirtualMachineInstance>) -> Result<Vec<Effect>, Rule> + Send + Sync,
    {
        let dry_run = dry_run(dry_run_option)?;
        for _ in 0..ATTEMPTS {
            let found = self.vm_if_any(target).await?;
            let vm = found.ok_or_else(|| status::not_found(target.kind.singular(), &target.name))?;
            let vmi = self.vmi_if_any(target).await?;
            let effects = decide(&vm, vmi.as_ref()).map_err(|rule| target.refuse(rule))?;
            if self.apply(target, effects, dry_run).await? == Applied::All {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::ACCEPTED;
                return Ok(response);
            }
        }
        let why = "the VM keeps changing: try again";
        Err(target.refuse(Rule::conflict(target.kind.singular(), &target.name, why)))
    }

    /// Applies effects in order.
    async fn apply(&self, target: &Target, effects: Vec<Effect>, dry_run: bool) -> Result<Applied, Refusal> {
        let vms: Api<VirtualMachine> = Api::namespaced(self.client.clone(), &target.namespace);
        let vmis: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), &target.namespace);
        let parameters = PatchParams {
            dry_run,
            ..PatchParams::default()
        };
        let name = &target.name;
        for effect in effects {
            let result = match effect {
                Effect::PatchVm(patch) => vms.patch(name, &parameters, &json_patch(patch)?).await.map(drop),
                Effect::PatchVmStatus(patch) => {
                    vms.patch_status(name, &parameters, &json_patch(patch)?).await.map(drop)
                }
                Effect::PatchVmi(patch) => vmis.patch(name, &parameters, &json_patch(patch)?).await.map(drop),
            };
            match result {
                Ok(()) => {}
                Err(kube::Error::Api(refused)) if outdated(&refused) => return Ok(Applied::Outdated),
                Err(error) => return Err(status::from_client(error)),
            }
        }
        Ok(Applied::All)
    }

    /// The VM of a target has a VMI.
    ///
    /// # Errors
    /// 404: there is no such VM, whatever VMI has its name; 409: it is not started.
    pub(super) async fn started(&self, target: &Target) -> Result<(), Refusal> {
        let vm = self.vm_if_any(target).await?;
        let vm = vm.ok_or_else(|| status::not_found(target.kind.singular(), &target.name))?;
        if vm.status.is_some_and(|status| status.created == Some(true)) {
            return Ok(());
        }
        Err(target.refuse(Rule::conflict(target.kind.singular(), &target.name, NOT_STARTED)))
    }

    pub(super) async fn vm_if_any(&self, target: &Target) -> Result<Option<VirtualMachine>, Refusal> {
        let api: Api<VirtualMachine> = Api::namespaced(self.client.clone(), &target.namespace);
        api.get_opt(&target.name).await.map_err(status::from_client)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    All,
    /// An object is not what the decision was based on.
    Outdated,
}

/// Whether the server says that the object has changed: a conflict, or a patch whose test fails. Admission's
/// refusals have causes.
pub(super) fn outdated(refused: &kube::core::Status) -> bool {
    let judged = refused
        .details
        .as_ref()
        .is_some_and(|details| !details.causes.is_empty());
    refused.code == 409 || (refused.code == 422 && !judged)
}

pub(super) fn json_patch(patch: Value) -> Result<Patch<()>, Refusal> {
    let patch = serde_json::from_value(patch)
        .map_err(|error| status::internal(format!("a rule made an unreadable patch: {error}")))?;
    Ok(Patch::Json(patch))
}
