//! `start`, `stop`, `restart`.

use axum::body::Body;
use ferrovirt_api::v1::{RestartOptions, StartOptions, StopOptions};
use http::Response;

use super::{Subresources, Target};
use crate::status::{self, Refusal};

impl Subresources {
    pub(super) async fn start(&self, _: &Target, _: StartOptions) -> Result<Response<Body>, Refusal> {
        Err(status::not_supported_yet("start"))
    }

    pub(super) async fn stop(&self, _: &Target, _: StopOptions) -> Result<Response<Body>, Refusal> {
        Err(status::not_supported_yet("stop"))
    }

    pub(super) async fn restart(&self, _: &Target, _: RestartOptions) -> Result<Response<Body>, Refusal> {
        Err(status::not_supported_yet("restart"))
    }
}
