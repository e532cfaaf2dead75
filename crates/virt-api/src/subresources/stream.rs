//! `console` and `vnc`: the client's websocket joined with a stream of the guest's node.

use axum::body::Body;
use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_protocol::streams::{Stream, StreamError};
use http::{Request, Response};

use super::{Subresources, Target, vmi, websocket};
use crate::status::{self, Refusal};

impl Subresources {
    pub(super) async fn console(&self, target: &Target, mut request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let found = self.vmi(target).await?;
        console_allowed(target, &found)?;
        let handshake = websocket::handshake(&mut request)?;
        let far = self.open(target, Stream::Console).await?;
        Ok(handshake.join(format!("console of {}/{}", target.namespace, target.name), far))
    }

    pub(super) async fn vnc(&self, target: &Target, mut request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let preserve_session = flag(request.uri().query().unwrap_or_default(), "preserveSession")?;
        let found = self.vmi(target).await?;
        vnc_allowed(target, &found)?;
        let handshake = websocket::handshake(&mut request)?;
        let far = self.open(target, Stream::Vnc { preserve_session }).await?;
        Ok(handshake.join(format!("vnc of {}/{}", target.namespace, target.name), far))
    }

    async fn open(
        &self,
        target: &Target,
        stream: Stream,
    ) -> Result<Box<dyn ferrovirt_protocol::streams::Duplex>, Refusal> {
        self.node
            .stream(&target.namespace, &target.name, stream)
            .await
            .map_err(|error| node_error(target, &error))
    }
}

/// How a node's refusal is answered.
pub(super) fn node_error(target: &Target, error: &StreamError) -> Refusal {
    match error {
        StreamError::NotHere(_) => target.conflict(&status::chain(error)),
        StreamError::Busy(_) | StreamError::Connect { .. } => status::internal(status::chain(error)),
    }
}

fn console_allowed(target: &Target, found: &VirtualMachineInstance) -> Result<(), Refusal> {
    if found.spec.domain.devices.autoattach_serial_console == Some(false) {
        return Err(status::bad_request("No serial consoles are present."));
    }
    connectable(target, found)
}

fn vnc_allowed(target: &Target, found: &VirtualMachineInstance) -> Result<(), Refusal> {
    if found.spec.domain.devices.autoattach_graphics_device == Some(false) {
        return Err(status::bad_request("No graphics devices are present."));
    }
    connectable(target, found)
}

fn connectable(target: &Target, found: &VirtualMachineInstance) -> Result<(), Refusal> {
    match vmi::phase(found) {
        "Running" => Ok(()),
        "Failed" => Err(target.conflict("VMI is in failed status")),
        other => Err(status::bad_request(format!(
            "Unable to connect to VirtualMachineInstance because phase is {} instead of Running",
            vmi::shown(other)
        ))),
    }
}

/// A boolean of the query string; absent is false, and without a value it is true.
fn flag(query: &str, name: &str) -> Result<bool, Refusal> {
    let Some(value) = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "true")))
        .find_map(|(key, value)| (key == name).then_some(value))
    else {
        return Ok(false);
    };
    match value {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(true),
        "" | "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(false),
        other => Err(status::bad_request(format!(
            "{name}: {other:?} is neither true nor false"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subresources::vmi::tests::{target, vmi};
    use serde_json::json;

    #[test]
    fn who_may_connect() {
        let spec = |devices| json!({"domain": {"devices": devices}});
        let plain = || spec(json!({}));
        let rows = [
            (plain(), "Running", None, None),
            (plain(), "Failed", Some(409), Some(409)),
            (plain(), "Scheduled", Some(400), Some(400)),
            (plain(), "Succeeded", Some(400), Some(400)),
            (
                spec(json!({"autoattachSerialConsole": false})),
                "Running",
                Some(400),
                None,
            ),
            (
                spec(json!({"autoattachGraphicsDevice": false})),
                "Running",
                None,
                Some(400),
            ),
            (spec(json!({"autoattachGraphicsDevice": true})), "Running", None, None),
        ];
        for (spec, phase, console, vnc) in rows {
            let found = vmi(&spec, &json!({"phase": phase}));
            let code = |result: Result<(), Refusal>| result.err().and_then(|refusal| refusal.code);
            assert_eq!(
                code(console_allowed(&target(), &found)),
                console,
                "console {spec} {phase}"
            );
            assert_eq!(code(vnc_allowed(&target(), &found)), vnc, "vnc {spec} {phase}");
        }
    }

    #[test]
    fn flags() {
        for (query, expected) in [
            ("", Some(false)),
            ("preserveSession=true", Some(true)),
            ("a=b&preserveSession", Some(true)),
            ("preserveSession=false", Some(false)),
            ("preserveSession=maybe", None),
        ] {
            assert_eq!(flag(query, "preserveSession").ok(), expected, "{query}");
        }
    }
}
