//! The operator's own webhooks, on KubeVirt objects: there is one, it can be read, and it goes when it may.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use ferrovirt_api::v1::KubeVirt;
use ferrovirt_core::{cause, validate_kubevirt};
use kube::api::{Api, ListParams};
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use kube::{Client, ResourceExt};

use super::certificates::Rotation;
use super::inputs::{Cluster, Inputs, Release};
use super::{Trouble, resources, uninstall};

/// What the webhooks need.
#[derive(Clone)]
pub struct Webhooks {
    /// The API server.
    pub client: Client,
    /// What would be installed.
    pub release: Release,
}

type Review = AdmissionReview<KubeVirt>;

/// `/kubevirt-validate-{create,update,delete}`.
pub fn router(webhooks: Webhooks) -> Router {
    Router::new()
        .route("/kubevirt-validate-create", post(create))
        .route("/kubevirt-validate-update", post(update))
        .route("/kubevirt-validate-delete", post(delete))
        .with_state(webhooks)
}

async fn create(
    State(webhooks): State<Webhooks>,
    Json(review): Json<Review>,
) -> Json<AdmissionReview<kube::core::DynamicObject>> {
    answer(review, async |request| {
        let two = ListParams::default().limit(1);
        let others = Api::<KubeVirt>::all(webhooks.client.clone()).list_metadata(&two).await;
        let others = others.map_err(|e| Trouble::call("looking for KubeVirt objects", e).to_string())?;
        if let Some(other) = others.items.first() {
            let (namespace, name) = (other.namespace().unwrap_or_default(), other.name_any());
            return Err(format!(
                "there is a KubeVirt object already, {namespace}/{name}; there may be only one"
            ));
        }
        check(&webhooks, request.object.as_ref(), None)
    })
    .await
}

async fn update(
    State(webhooks): State<Webhooks>,
    Json(review): Json<Review>,
) -> Json<AdmissionReview<kube::core::DynamicObject>> {
    answer(review, async |request| {
        let same = request.object.as_ref().map(|o| &o.spec) == request.old_object.as_ref().map(|o| &o.spec);
        if same {
            Ok(())
        } else {
            check(&webhooks, request.object.as_ref(), request.old_object.as_ref())
        }
    })
    .await
}

async fn delete(
    State(webhooks): State<Webhooks>,
    Json(review): Json<Review>,
) -> Json<AdmissionReview<kube::core::DynamicObject>> {
    answer(review, async |request| {
        let Some(kubevirt) = &request.old_object else {
            return Ok(());
        };
        match uninstall::blocked(&webhooks.client, kubevirt).await {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(why),
            Err(trouble) => Err(ferrovirt_runtime::logs::chain(&trouble)),
        }
    })
    .await
}

async fn answer(
    review: Review,
    decide: impl AsyncFnOnce(&AdmissionRequest<KubeVirt>) -> Result<(), String>,
) -> Json<AdmissionReview<kube::core::DynamicObject>> {
    let request: AdmissionRequest<KubeVirt> = match review.try_into() {
        Ok(request) => request,
        Err(error) => return Json(AdmissionResponse::invalid(format!("no admission request: {error}")).into_review()),
    };
    let response = AdmissionResponse::from(&request);
    let response = match decide(&request).await {
        Ok(()) => response,
        Err(why) => response.deny(why),
    };
    Json(response.into_review())
}

/// Whether it could be installed as it says, and what it registers could be used.
fn check(webhooks: &Webhooks, kubevirt: Option<&KubeVirt>, old: Option<&KubeVirt>) -> Result<(), String> {
    let Some(kubevirt) = kubevirt else { return Ok(()) };
    let causes = validate_kubevirt(kubevirt, old);
    if !causes.is_empty() {
        return Err(cause::summary(&causes));
    }
    Rotation::new(&kubevirt.spec).map_err(|error| error.to_string())?;
    let cluster = Cluster {
        nodes: 2,
        monitoring: false,
        operator_webhooks: true,
    };
    let inputs = Inputs::new(kubevirt, &webhooks.release, &cluster, "");
    resources::render(&inputs).map(drop).map_err(|error| error.to_string())
}
