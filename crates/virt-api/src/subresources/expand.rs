//! `expand-spec` and `expand-vm-spec`: a VM with all that it takes from its instancetype and preference.

use axum::body::Body;
use ferrovirt_api::v1::VirtualMachine;
use http::{Request, Response, StatusCode};

use super::{Subresources, Target, body};
use crate::status::{self, Refusal};

impl Subresources {
    pub(super) async fn expand_spec(&self, target: &Target) -> Result<Response<Body>, Refusal> {
        let found = self.vm_if_any(target).await?;
        let vm = found.ok_or_else(|| status::not_found(target.kind.singular(), &target.name))?;
        Ok(status::json(StatusCode::OK, &expanded(vm)?))
    }
}

/// The VM of a body.
pub(super) async fn given(namespace: &str, request: Request<Body>) -> Result<Response<Body>, Refusal> {
    let found: Option<VirtualMachine> = body::read(request).await?;
    let vm = found.ok_or_else(|| status::bad_request("Request body is required: a VirtualMachine"))?;
    if vm.metadata.namespace.as_deref().is_some_and(|own| own != namespace) {
        return Err(status::bad_request(format!(
            "VM namespace must be {namespace:?}, as the request's is"
        )));
    }
    Ok(status::json(StatusCode::OK, &expanded(vm)?))
}

/// Without instancetype and preference a VM says everything itself.
fn expanded(vm: VirtualMachine) -> Result<VirtualMachine, Refusal> {
    match (&vm.spec.instancetype, &vm.spec.preference) {
        (None, None) => Ok(vm),
        (Some(_), _) => Err(status::not_supported_yet("spec.instancetype")),
        (None, Some(_)) => Err(status::not_supported_yet("spec.preference")),
    }
}
