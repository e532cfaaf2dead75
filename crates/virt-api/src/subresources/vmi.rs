//! `pause`, `unpause`, `softreboot`, `reset` and what the guest agent knows.

use axum::body::Body;
use ferrovirt_api::v1::{PauseOptions, UnpauseOptions, VirtualMachineInstance};
use ferrovirt_core::vmi::actions::{self, VmiAction};
use ferrovirt_protocol::launcher::Action;
use http::{Response, StatusCode};
use kube::Api;
use serde_json::{Value, json};

use super::route::{Kind, Verb};
use super::stream::node_error;
use super::{Subresources, Target, dry_run};
use crate::status::{self, Refusal};

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
    fn views_of_guest_information() {
        let info =
            json!({"hostname": "h", "userList": [{"userName": "u"}], "fsInfo": {"disks": [{"diskName": "vda1"}]}});
        assert_eq!(view(Verb::GuestOsInfo, info.clone()), info);
        assert_eq!(view(Verb::UserList, info.clone())["items"][0]["userName"], "u");
        assert_eq!(view(Verb::FilesystemList, info)["items"][0]["diskName"], "vda1");
        assert_eq!(view(Verb::UserList, json!({})), json!({"metadata": {}, "items": []}));
    }
}
