//! The group `subresources.kubevirt.io` behind the API server's aggregation layer.
//!
//! ```text
//!  user ──► API server (authenticates, authorizes) ──front-proxy certificate, X-Remote-*──► here
//!    /apis, /apis/GROUP, /apis/GROUP/VERSION, …/version, …/healthz, /openapi/… ──► anybody
//!    everything else ── no trusted certificate ──► 401
//!                    ── SubjectAccessReview says no ──► 403
//!                    ── else ──► Subresources, as in the embedded home
//! ```

mod access;
mod documents;
mod front_proxy;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::{any, get};
use ferrovirt_runtime::tls::Peer;
use http::{HeaderMap, Response, StatusCode};

use access::Asked;
pub(crate) use front_proxy::{FrontProxy, follow};

use crate::status::{self, Refusal};
use crate::subresources::{self, Subresources};

#[derive(Clone)]
struct Group {
    client: kube::Client,
    proxy: FrontProxy,
    subresources: Subresources,
}

/// The aggregated API. `client` asks whether users may do what they want.
pub(crate) fn router(client: kube::Client, proxy: FrontProxy, subresources: Subresources) -> Router {
    let group = Group {
        client,
        proxy,
        subresources,
    };
    Router::new()
        .route(
            "/apis",
            get(async || status::json(StatusCode::OK, &documents::groups())),
        )
        .route(
            "/apis/subresources.kubevirt.io",
            get(async || status::json(StatusCode::OK, &documents::group())),
        )
        .route("/apis/subresources.kubevirt.io/{*rest}", any(handle))
        .route(
            "/openapi/v2",
            get(async |headers: HeaderMap| documents::openapi_v2(&headers)),
        )
        .route(
            "/openapi/v3",
            get(async || status::json(StatusCode::OK, &documents::openapi_v3_root())),
        )
        .route(
            "/openapi/v3/apis/subresources.kubevirt.io/{version}",
            get(async |path: axum::extract::Path<String>, headers: HeaderMap| documents::openapi_v3(&path.0, &headers)),
        )
        .with_state(group)
}

async fn handle(State(group): State<Group>, request: Request) -> Response<Body> {
    match group.admit(&request) {
        Ok(None) => {}
        Ok(Some(asked)) => {
            if let Err(refusal) = access::authorize(&group.client, &asked).await {
                return status::refuse(&refusal);
            }
        }
        Err(refusal) => return status::refuse(&refusal),
    }
    group.subresources.handle(request).await
}

impl Group {
    /// What has to be allowed first, and to whom.
    fn admit(&self, request: &Request) -> Result<Option<Asked>, Refusal> {
        let path = request.uri().path();
        // What needs no permission tells nothing about anybody's objects.
        let Some(attributes) = subresources::attributes(request.method(), path) else {
            return Ok(None);
        };
        let user = self
            .proxy
            .user(request.extensions().get::<Peer>(), request.headers())
            .ok_or_else(status::unauthorized)?;
        Ok(Some(Asked {
            user,
            version: path.split('/').nth(3).unwrap_or_default().to_owned(),
            attributes,
        }))
    }
}
