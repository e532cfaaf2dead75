//! `console`, `vnc`, `usbredir` and `vsock`: the client's websocket joined with a stream of the guest's node.

use axum::body::Body;
use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::refusal::Refusal as Rule;
use ferrovirt_core::vmi::actions::VmiAction;
use ferrovirt_protocol::streams::{Duplex, Stream, StreamError};
use http::{Request, Response};

use super::{Subresources, Target, websocket};
use crate::status::{self, Refusal};

impl Subresources {
    pub(super) async fn console(&self, target: &Target, mut request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let vmi = self.admitted(target, VmiAction::Console).await?;
        let handshake = websocket::handshake(&mut request)?;
        let far = self.open(target, &vmi, Stream::Console).await?;
        let what = format!("console of {}/{}", target.namespace, target.name);
        Ok(handshake.join(what, far, self.sessions.consoles.begin(target)))
    }

    pub(super) async fn vnc(&self, target: &Target, mut request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let preserve_session = flag(request.uri().query().unwrap_or_default(), "preserveSession")?;
        let vmi = self.admitted(target, VmiAction::Vnc).await?;
        let handshake = websocket::handshake(&mut request)?;
        let far = self.open(target, &vmi, Stream::Vnc { preserve_session }).await?;
        let what = format!("vnc of {}/{}", target.namespace, target.name);
        Ok(handshake.join(what, far, self.sessions.displays.begin(target)))
    }

    pub(super) async fn usbredir(
        &self,
        target: &Target,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        let vmi = self.admitted(target, VmiAction::UsbRedir).await?;
        let handshake = websocket::handshake(&mut request)?;
        let far = self.open(target, &vmi, Stream::UsbRedir).await?;
        let what = format!("usbredir of {}/{}", target.namespace, target.name);
        Ok(handshake.join(what, far, self.sessions.devices.begin(target)))
    }

    pub(super) async fn vsock(&self, target: &Target, mut request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let query = request.uri().query().unwrap_or_default();
        let port = port(query)?;
        let tls = value(query, "tls").is_none() || flag(query, "tls")?;
        let vmi = self.admitted(target, VmiAction::Vsock).await?;
        let handshake = websocket::handshake(&mut request)?;
        let far = self.open(target, &vmi, Stream::Vsock { port, tls }).await?;
        let what = format!(
            "port {port} of the virtual sockets of {}/{}",
            target.namespace, target.name
        );
        Ok(handshake.join(what, far, self.sessions.sockets.begin(target)))
    }

    async fn open(
        &self,
        target: &Target,
        vmi: &VirtualMachineInstance,
        stream: Stream,
    ) -> Result<Box<dyn Duplex>, Refusal> {
        self.agent(vmi)
            .stream(&target.namespace, &target.name, stream)
            .await
            .map_err(|error| node_error(target, &error))
    }
}

/// How a node's refusal is answered.
pub(super) fn node_error(target: &Target, error: &StreamError) -> Refusal {
    match error {
        StreamError::NotHere(_) => {
            let rule = Rule::conflict(target.kind.singular(), &target.name, &status::chain(error));
            target.refuse(rule)
        }
        StreamError::Busy(_)
        | StreamError::Connect { .. }
        | StreamError::Refused(_)
        | StreamError::Unreachable { .. } => status::internal(status::chain(error)),
    }
}

/// A value of the query string; what is only named is true.
pub(super) fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "true")))
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// The port of a virtual socket: any number but 0 and the one that stands for any (vsock(7)).
fn port(query: &str) -> Result<u32, Refusal> {
    let given = value(query, "port").unwrap_or_default();
    match given.parse() {
        Ok(port) if port > 0 && port < u32::MAX => Ok(port),
        _ => Err(status::bad_request(format!(
            "port: {given:?} is not a number from 1 to {}",
            u32::MAX - 1
        ))),
    }
}

/// A boolean of the query string; absent is false, and without a value it is true.
pub(super) fn flag(query: &str, name: &str) -> Result<bool, Refusal> {
    let Some(value) = value(query, name) else {
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
    #[test]
    fn ports_of_virtual_sockets() {
        for (query, expected) in [
            ("port=1", Some(1)),
            ("tls=false&port=4294967294", Some(u32::MAX - 1)),
            ("port=4294967295", None),
            ("port=0", None),
            ("port=x", None),
            ("port", None),
            ("", None),
        ] {
            assert_eq!(port(query).ok(), expected, "{query}");
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
