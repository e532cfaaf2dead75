//! How a refusal reads: as the API server passes on a webhook's answer.

use ferrovirt_core::cause::Cause;
use http::StatusCode;
use serde_json::Value;

use super::{Kind, Operation, Request};
use crate::status::{self, Refusal};

/// More causes than this are only in the details, or the message fills the screen.
const MESSAGE_CAUSES: usize = 10;

/// What is refused, by which webhook's name.
pub(super) struct Denial {
    webhook: String,
    kind: &'static str,
    name: String,
}

impl Denial {
    pub(super) fn new(kind: Kind, request: &Request<'_>, object: &Value) -> Self {
        let update = request.operation == Operation::Update;
        let webhook = match kind {
            Kind::KubeVirt => "kubevirt-validator",
            Kind::Machine => "virtualmachine-validator",
            Kind::Instance if update => "virtualmachineinstances-update-validator",
            Kind::Instance => "virtualmachineinstances-create-validator",
            Kind::Migration if update => "migration-update-validator",
            Kind::Migration => "migration-create-validator",
            Kind::Preset => "virtualmachinepreset-validator",
            Kind::ReplicaSet => "virtualmachinereplicaset-validator",
        };
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
            webhook: format!("{webhook}.kubevirt.io"),
            kind: kind.name(),
            name: name.to_owned(),
        }
    }

    fn denied(&self, why: &str) -> String {
        format!("admission webhook \"{}\" denied the request: {why}", self.webhook)
    }

    /// 422 with all causes, if there is one.
    pub(super) fn unless_empty(&self, causes: Vec<Cause>) -> Result<(), Refusal> {
        if causes.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = causes.iter().take(MESSAGE_CAUSES).map(ToString::to_string).collect();
        let mut why = shown.join(", ");
        if let Some(more) = causes.len().checked_sub(MESSAGE_CAUSES).filter(|more| *more > 0) {
            why.push_str(&format!(" (and {more} more)"));
        }
        let refusal = status::failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", self.denied(&why));
        let causes = causes.into_iter().map(Into::into).collect();
        Err(status::about(refusal, self.kind, &self.name, Some(causes)))
    }

    /// 400 for an object that is not even of its type.
    pub(super) fn unreadable(&self, error: &serde_json::Error) -> Refusal {
        let why = format!("cannot read {} \"{}\": {error}", self.kind, self.name);
        status::bad_request(self.denied(&why))
    }
}
