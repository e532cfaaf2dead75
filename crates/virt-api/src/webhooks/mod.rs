//! Webhooks of a cluster's API server: AdmissionReviews in, AdmissionReviews out.
//!
//! ```text
//!  POST /virtualmachines-mutate …          ──► Admission::mutate   ──► JSON patch from what came to what it became
//!  POST /virtualmachines-validate …        ──► Admission::validate ──► allowed, or a Status with every cause
//!  POST /launcher-eviction-validate        ──► eviction            ──► allowed, or 429
//! ```
//!
//! The paths are KubeVirt's; which rules apply is read from the review. A mutating call that the API server makes again
//! finds nothing left to complete. A review costs no request of ours, but for evictions.

mod eviction;
mod review;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::post;
use ferrovirt_core::ClusterConfig;
use http::{Response, StatusCode};
use tokio::sync::watch;

use crate::admission::Admission;
use crate::status::{self, Refusal};
use review::{Allowed, Decision, Review};

/// An object and its predecessor, each as large as the API server stores at most, and what the review adds.
const MAX_REVIEW: usize = 8 << 20;

const MUTATE: &[&str] = &[
    "/virtualmachines-mutate",
    "/virtualmachineinstances-mutate",
    "/migration-mutate-create",
];

const VALIDATE: &[&str] = &[
    "/virtualmachines-validate",
    "/virtualmachineinstances-validate-create",
    "/virtualmachineinstances-validate-update",
    "/vmipreset-validate",
    "/virtualmachinereplicaset-validate",
    "/migration-validate-create",
    "/migration-validate-update",
    "/kubevirt-validate-create",
    "/kubevirt-validate-update",
];

const EVICT: &[&str] = &["/launcher-eviction-validate", "/pod-eviction-validate"];

struct Rules {
    admission: Admission,
    client: kube::Client,
    config: watch::Receiver<Arc<ClusterConfig>>,
}

/// The webhooks. VMIs whose pods are evicted are read and marked through `client`.
pub(crate) fn router(
    admission: Admission,
    client: kube::Client,
    config: watch::Receiver<Arc<ClusterConfig>>,
) -> Router {
    let rules = Arc::new(Rules {
        admission,
        client,
        config,
    });
    let mut router = Router::new();
    for path in MUTATE {
        router = router.route(path, post(mutate));
    }
    for path in VALIDATE {
        router = router.route(path, post(validate));
    }
    for path in EVICT {
        router = router.route(path, post(evict));
    }
    router.with_state(rules)
}

async fn mutate(State(rules): State<Arc<Rules>>, body: Body) -> Response<Body> {
    reply(body, async |review| rules.mutate(review).await).await
}

async fn validate(State(rules): State<Arc<Rules>>, body: Body) -> Response<Body> {
    reply(body, async |review| rules.validate(review).await).await
}

async fn evict(State(rules): State<Arc<Rules>>, body: Body) -> Response<Body> {
    reply(body, async |review| rules.evict(review).await).await
}

async fn reply(body: Body, decide: impl AsyncFnOnce(&mut Review) -> Decision) -> Response<Body> {
    let mut review = match read(body).await {
        Ok(review) => review,
        Err(refusal) => return status::refuse(&refusal),
    };
    let decision = decide(&mut review).await;
    status::json(StatusCode::OK, &review::answer(&review.request.uid, decision))
}

async fn read(body: Body) -> Result<Review, Refusal> {
    let bytes = ferrovirt_runtime::http::body(body, MAX_REVIEW)
        .await
        .map_err(|error| status::bad_request(status::chain(&error)))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        status::bad_request(format!(
            "the body is no AdmissionReview of admission.k8s.io/v1: {error}"
        ))
    })
}

impl Rules {
    async fn mutate(&self, review: &mut Review) -> Decision {
        let object = review.request.object.take();
        let (Some(request), Some(before)) = (review.request.for_rules(), object) else {
            return Ok(Allowed::default());
        };
        let mut after = before.clone();
        let warnings = self.admission.mutate(request, &mut after).await?;
        Ok(Allowed {
            warnings,
            patch: Some(json_patch::diff(&before, &after)),
        })
    }

    async fn validate(&self, review: &mut Review) -> Decision {
        let object = review.request.object.take();
        let Some(request) = review.request.for_rules() else {
            return Ok(Allowed::default());
        };
        let warnings = self.admission.validate(request, object.as_ref()).await?;
        Ok(Allowed { warnings, patch: None })
    }

    async fn evict(&self, review: &mut Review) -> Decision {
        if let Some((namespace, pod)) = review.request.evicts() {
            let dry_run =
                review.request.dry_run.unwrap_or_default() || eviction::dry_run(review.request.object.as_ref());
            let default = self.config.borrow().eviction_strategy.clone();
            eviction::judge(&self.client, namespace, pod, &default, dry_run).await?;
        }
        Ok(Allowed::default())
    }
}
