//! `/openapi/v2` and `/openapi/v3`.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response};

use crate::failure::{Failure, Result};
use crate::server::Inner;

/// Answers a path below `/openapi`.
///
/// # Errors
/// 404 for unknown documents.
pub fn handle(_server: &Arc<Inner>, _path: &[&str], _request: &Request<Body>) -> Result<Response<Body>> {
    Err(Failure::no_such_path())
}
