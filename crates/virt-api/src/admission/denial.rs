//! How a refusal reads. Who called the webhook adds its name: see [`super::as_passed_on`].

use ferrovirt_core::cause::{Cause, CauseReason};
use http::StatusCode;
use serde_json::Value;

use super::{Kind, Operation, Request};
use crate::status::{self, Refusal};

/// More causes than this are only in the details, or the message fills the screen.
const MESSAGE_CAUSES: usize = 10;

/// What is refused.
pub(super) struct Denial {
    kind: &'static str,
    name: String,
}

/// The webhook that judges a kind.
pub(super) fn webhook(kind: Kind, operation: Operation) -> &'static str {
    let update = operation == Operation::Update;
    match kind {
        Kind::KubeVirt => "kubevirt-validator.kubevirt.io",
        Kind::Machine => "virtualmachine-validator.kubevirt.io",
        Kind::Instance if update => "virtualmachineinstances-update-validator.kubevirt.io",
        Kind::Instance => "virtualmachineinstances-create-validator.kubevirt.io",
        Kind::Migration if update => "migration-update-validator.kubevirt.io",
        Kind::Migration => "migration-create-validator.kubevirt.io",
        Kind::Preset => "virtualmachineinstancepreset-validator.kubevirt.io",
        Kind::ReplicaSet => "virtualmachineinstancereplicaset-validator.kubevirt.io",
    }
}

impl Denial {
    pub(super) fn new(kind: Kind, request: &Request<'_>, object: &Value) -> Self {
        let field = |path| {
            object
                .pointer(path)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
        };
        let name = match request.name {
            "" => field("/metadata/name")
                .or_else(|| field("/metadata/generateName"))
                .unwrap_or_default(),
            name => name,
        };
        Self {
            kind: kind.name(),
            name: name.to_owned(),
        }
    }

    /// 422 with all causes, if there is one.
    pub(super) fn unless_empty(&self, causes: Vec<Cause>) -> Result<(), Refusal> {
        if causes.is_empty() {
            return Ok(());
        }
        Err(self.invalid(causes))
    }

    fn invalid(&self, causes: Vec<Cause>) -> Refusal {
        let shown: Vec<String> = causes.iter().take(MESSAGE_CAUSES).map(ToString::to_string).collect();
        let mut why = shown.join(", ");
        if let Some(more) = causes.len().checked_sub(MESSAGE_CAUSES).filter(|more| *more > 0) {
            why.push_str(&format!(" (and {more} more)"));
        }
        let refusal = status::failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", why);
        let causes = causes.into_iter().map(Into::into).collect();
        status::about(refusal, self.kind, &self.name, Some(causes))
    }

    /// 422 for an object that is not of its type although its schema has nothing against it.
    pub(super) fn unreadable(&self, error: &serde_path_to_error::Error<serde_json::Error>) -> Refusal {
        let (path, why) = (error.path(), error.inner().to_string());
        // The path of a field that is missing ends with what should have it.
        let missing = why
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next());
        let field = match missing {
            Some(missing) if path.iter().next().is_some() => format!("{path}.{missing}"),
            Some(missing) => missing.to_owned(),
            None => path.to_string(),
        };
        let reason = match missing {
            Some(_) => CauseReason::FieldValueRequired,
            None => CauseReason::FieldValueInvalid,
        };
        self.invalid(vec![Cause {
            reason,
            field,
            message: why,
        }])
    }
}
