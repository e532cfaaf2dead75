//! Whether a user may do what it asks for: the API server says so.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use super::front_proxy::User;
use crate::status::{self, Refusal};
use crate::subresources::{Attributes, GROUP};

/// Who wants to do what.
pub(super) struct Asked {
    pub(super) user: User,
    pub(super) version: String,
    pub(super) attributes: Attributes,
}

/// Asks by a SubjectAccessReview.
///
/// # Errors
/// 403, or whatever the API server answers instead.
pub(super) async fn authorize(client: &kube::Client, asked: &Asked) -> Result<(), Refusal> {
    let Asked {
        user,
        version,
        attributes,
    } = asked;
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: user.uid.clone(),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                version: Some(version.clone()),
                namespace: Some(attributes.namespace.clone()),
                verb: Some(attributes.verb.to_owned()),
                resource: Some(attributes.resource.to_owned()),
                subresource: Some(attributes.subresource.to_owned()),
                name: Some(attributes.name.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::<SubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .map_err(status::from_client)?;
    let answer = answer.status.unwrap_or_default();
    if answer.allowed && !answer.denied.unwrap_or_default() {
        return Ok(());
    }
    Err(status::forbidden(attributes, &user.name, answer.reason.as_deref()))
}
