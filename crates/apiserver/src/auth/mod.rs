//! Who asks, and whether they may.

pub mod rbac;
pub mod reviews;
mod tokens;

use std::sync::Arc;

pub use rbac::Authorizer;
pub use tokens::Tokens;

use crate::failure::{Failure, Result, qualified};
use crate::hooks::UserInfo;
use crate::rest::context::Target;
use crate::server::{ApiServer, Inner, OpenError};
use rbac::Attributes;

/// Whether the user may do this.
///
/// # Errors
/// 403 in Kubernetes' words.
pub fn authorize(server: &Arc<Inner>, user: &UserInfo, target: &Target, verb: &'static str) -> Result<()> {
    if verb.is_empty() {
        return Err(Failure::method_not_allowed());
    }
    let resource = match &target.subresource {
        // As Kubernetes reads requests: of a longer path behind the name, roles name the first segment.
        Some(subresource) => {
            let first = subresource.split('/').next().unwrap_or_default();
            format!("{}/{first}", target.resource)
        }
        None => target.resource.clone(),
    };
    let attributes = Attributes::resource(
        verb,
        &target.group,
        &resource,
        target.namespace.as_deref(),
        target.name.as_deref(),
    );
    if server.authorizer.allows(&server.store, user, &attributes) {
        return Ok(());
    }
    let scope = target.namespace.as_ref().map_or_else(
        || "at the cluster scope".to_owned(),
        |namespace| format!("in the namespace \"{namespace}\""),
    );
    let why = format!(
        "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {scope}",
        user.username, target.group
    );
    let mut failure = Failure::forbidden(
        &target.group,
        &target.resource,
        target.name.as_deref().unwrap_or_default(),
        &why,
    );
    if target.name.is_none() {
        failure = failure.with_message(format!(
            "{} is forbidden: {why}",
            qualified(&target.group, &target.resource)
        ));
    }
    Err(failure)
}

/// Writes the roles that always exist.
///
/// # Errors
/// The store refuses.
pub async fn bootstrap(server: &ApiServer) -> Result<(), OpenError> {
    for (plural, name, object) in rbac::defaults() {
        server
            .ensure("rbac.authorization.k8s.io", plural, None, name, object)
            .await?;
    }
    Ok(())
}
