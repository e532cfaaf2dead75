//! `pause`, `unpause`, `softreboot`, `reset`, `freeze`, `unfreeze`, `vnc/screenshot`, `evacuate/cancel` and what the
//! guest agent knows.

use std::time::Duration;

use axum::body::Body;
use ferrovirt_api::v1::{PauseOptions, UnpauseOptions, VirtualMachineInstance};
use ferrovirt_core::duration;
use ferrovirt_core::refusal::Refusal as Rule;
use ferrovirt_core::vmi::actions::{self, VmiAction};
use ferrovirt_protocol::launcher::Action;
use http::{HeaderValue, Response, StatusCode, header};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};

use super::route::{Kind, Verb};
use super::stream::{flag, node_error};
use super::vm::{ATTEMPTS, NOT_STARTED, json_patch, outdated};
use super::{Subresources, Target, dry_run};
use crate::status::{self, Refusal};

/// Body of `freeze`; all of it may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FreezeOptions {
    unfreeze_timeout: Option<String>,
}

/// Body of `evacuate/cancel`; all of it may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct CancelOptions {
    dry_run: Option<Vec<String>>,
    evacuation_node_name: Option<String>,
}

impl Subresources {
    /// The VMI of a target; a VM's VMI has the VM's name.
    pub(super) async fn vmi(&self, target: &Target) -> Result<VirtualMachineInstance, Refusal> {
        self.vmi_if_any(target)
            .await?
            .ok_or_else(|| status::not_found(Kind::VirtualMachineInstance.singular(), &target.name))
    }

    pub(super) async fn vmi_if_any(&self, target: &Target) -> Result<Option<VirtualMachineInstance>, Refusal> {
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), &target.namespace);
        api.get_opt(&target.name).await.map_err(status::from_client)
    }

    /// The VMI of a target, if its state allows `action`.
    pub(super) async fn admitted(&self, target: &Target, action: VmiAction) -> Result<VirtualMachineInstance, Refusal> {
        let found = self.vmi(target).await?;
        // Only unpausing looks at the VM.
        let owner = match action {
            VmiAction::Unpause => self.vm_if_any(target).await?,
            _ => None,
        };
        actions::admit(&found, owner.as_ref(), action)
            .map_err(|rule| status::from_rule(Kind::VirtualMachineInstance.singular(), &target.name, rule))?;
        Ok(found)
    }

    pub(super) async fn pause(&self, target: &Target, options: PauseOptions) -> Result<Response<Body>, Refusal> {
        let dry_run = dry_run(&options.dry_run)?;
        let vmi = self.admitted(target, VmiAction::Pause).await?;
        self.perform(target, &vmi, Action::Pause, dry_run).await
    }

    pub(super) async fn unpause(&self, target: &Target, options: UnpauseOptions) -> Result<Response<Body>, Refusal> {
        let dry_run = dry_run(&options.dry_run)?;
        let vmi = self.admitted(target, VmiAction::Unpause).await?;
        self.perform(target, &vmi, Action::Unpause, dry_run).await
    }

    pub(super) async fn soft_reboot(&self, target: &Target) -> Result<Response<Body>, Refusal> {
        let vmi = self.admitted(target, VmiAction::SoftReboot).await?;
        self.perform(target, &vmi, Action::SoftReboot, false).await
    }

    pub(super) async fn reset(&self, target: &Target) -> Result<Response<Body>, Refusal> {
        let vmi = self.admitted(target, VmiAction::Reset).await?;
        self.perform(target, &vmi, Action::Reset, false).await
    }

    pub(super) async fn freeze(&self, target: &Target, options: FreezeOptions) -> Result<Response<Body>, Refusal> {
        let thaw_after = thaw_after(options.unfreeze_timeout.as_deref().unwrap_or_default())?;
        let vmi = self.admitted(target, VmiAction::Freeze).await?;
        let done = self
            .agent(&vmi)
            .freeze(&target.namespace, &target.name, thaw_after)
            .await;
        done.map_err(|error| node_error(target, &error))?;
        Ok(Response::new(Body::empty()))
    }

    pub(super) async fn unfreeze(&self, target: &Target) -> Result<Response<Body>, Refusal> {
        let vmi = self.admitted(target, VmiAction::Freeze).await?;
        self.perform(target, &vmi, Action::Unfreeze, false).await
    }

    pub(super) async fn screenshot(&self, target: &Target, query: &str) -> Result<Response<Body>, Refusal> {
        let move_cursor = flag(query, "moveCursor")?;
        let vmi = self.admitted(target, VmiAction::Screenshot).await?;
        let picture = self
            .agent(&vmi)
            .screenshot(&target.namespace, &target.name, move_cursor)
            .await;
        let picture = picture.map_err(|error| node_error(target, &error))?;
        let mut response = Response::new(Body::from(picture));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
        Ok(response)
    }

    pub(super) async fn cancel_evacuation(
        &self,
        target: &Target,
        options: CancelOptions,
    ) -> Result<Response<Body>, Refusal> {
        let dry_run = dry_run(&options.dry_run.unwrap_or_default())?;
        let node = options.evacuation_node_name.unwrap_or_default();
        if target.kind == Kind::VirtualMachine && self.vm_if_any(target).await?.is_none() {
            return Err(status::not_found(target.kind.singular(), &target.name));
        }
        let conflict = |why: &str| target.refuse(Rule::conflict(target.kind.singular(), &target.name, why));
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), &target.namespace);
        for _ in 0..ATTEMPTS {
            let vmi = match (self.vmi_if_any(target).await?, target.kind) {
                (Some(vmi), _) => vmi,
                (None, Kind::VirtualMachine) => return Err(conflict(NOT_STARTED)),
                (None, kind) => return Err(status::not_found(kind.singular(), &target.name)),
            };
            let Some(patch) = actions::cancel_evacuation(&vmi, &node).map_err(|rule| target.refuse(rule))? else {
                return Ok(Response::new(Body::empty()));
            };
            let patch: Patch<()> = json_patch(patch)?;
            let parameters = PatchParams {
                dry_run,
                ..PatchParams::default()
            };
            match api.patch_status(&target.name, &parameters, &patch).await {
                Ok(_) => return Ok(Response::new(Body::empty())),
                Err(kube::Error::Api(refused)) if outdated(&refused) => {}
                Err(error) => return Err(status::from_client(error)),
            }
        }
        Err(conflict("the VMI keeps changing: try again"))
    }

    async fn perform(
        &self,
        target: &Target,
        vmi: &VirtualMachineInstance,
        action: Action,
        dry_run: bool,
    ) -> Result<Response<Body>, Refusal> {
        if !dry_run {
            self.agent(vmi)
                .act(&target.namespace, &target.name, action)
                .await
                .map_err(|error| node_error(target, &error))?;
        }
        Ok(Response::new(Body::empty()))
    }

    pub(super) async fn guest_info(&self, target: &Target, verb: Verb) -> Result<Response<Body>, Refusal> {
        let vmi = self.admitted(target, VmiAction::GuestInfo).await?;
        let info = self
            .agent(&vmi)
            .guest_info(&target.namespace, &target.name)
            .await
            .map_err(|error| status::internal(status::chain(&error)))?;
        Ok(status::json(StatusCode::OK, &view(verb, info)))
    }
}

/// After which time file systems thaw in any case; zero: only when they are asked to.
fn thaw_after(text: &str) -> Result<Duration, Refusal> {
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    let time = duration::parse(text).and_then(|time| Duration::try_from(time).ok());
    time.ok_or_else(|| status::bad_request(format!("unfreezeTimeout: {text:?} is no duration such as 5m0s")))
}

/// The part of what the agent said that a subresource shows.
fn view(verb: Verb, mut info: Value) -> Value {
    let items = match verb {
        Verb::UserList => info.pointer_mut("/userList"),
        Verb::FilesystemList => info.pointer_mut("/fsInfo/disks"),
        _ => return info,
    };
    let items = match items.map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    json!({"metadata": {}, "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_thaw() {
        for (text, expected) in [
            ("", Some(0)),
            ("0s", Some(0)),
            ("5m0s", Some(300)),
            ("soon", None),
            ("-5s", None),
        ] {
            let found = thaw_after(text).map(|time| time.as_secs());
            assert_eq!(
                found.map_err(|refusal| refusal.code),
                expected.ok_or(Some(400)),
                "{text}"
            );
        }
    }

    #[test]
    fn views_of_guest_information() {
        let info =
            json!({"hostname": "h", "userList": [{"userName": "u"}], "fsInfo": {"disks": [{"diskName": "vda1"}]}});
        assert_eq!(view(Verb::GuestOsInfo, info.clone()), info);
        assert_eq!(view(Verb::UserList, info.clone())["items"][0]["userName"], "u");
        assert_eq!(view(Verb::FilesystemList, info)["items"][0]["diskName"], "vda1");
        assert_eq!(view(Verb::UserList, json!({})), json!({"metadata": {}, "items": []}));
    }
}
