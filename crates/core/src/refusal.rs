//! Requests that the state of an object does not allow, as the API answers them.

/// Why a request is refused: what a `metav1.Status` says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// HTTP status code.
    pub code: u16,
    /// `Conflict`, `BadRequest`, `Forbidden`, `InternalError`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// 409: the object's state does not allow it. `resource` is `virtualmachine` or `virtualmachineinstance`.
    #[must_use]
    pub fn conflict(resource: &str, name: &str, why: &str) -> Self {
        Self {
            code: 409,
            reason: "Conflict",
            message: format!("Operation cannot be fulfilled on {resource}.kubevirt.io \"{name}\": {why}"),
        }
    }

    /// 400: the request makes no sense for this object.
    #[must_use]
    pub fn bad_request(why: impl Into<String>) -> Self {
        Self {
            code: 400,
            reason: "BadRequest",
            message: why.into(),
        }
    }

    /// 403: never allowed for this object.
    #[must_use]
    pub fn forbidden(resource: &str, name: &str, why: &str) -> Self {
        Self {
            code: 403,
            reason: "Forbidden",
            message: format!("{resource}.kubevirt.io \"{name}\" is forbidden: {why}"),
        }
    }

    /// 500 that carries another refusal's text: what the guest information subresources answer.
    #[must_use]
    pub fn internal(self) -> Self {
        Self {
            code: 500,
            reason: "InternalError",
            message: format!("Internal error occurred: {}", self.message),
        }
    }
}
