//! virt-api ⇄ virt-handler on a cluster: the verbs of [`crate::streams::NodeAgent`] as HTTP/1.1 over mutual TLS.
//!
//! ```text
//!  GET /v1/namespaces/NS/virtualmachineinstances/NAME/console        Upgrade: ferrovirt-stream ──► 101, raw bytes
//!  GET                                             …/vnc[?preserveSession=true] | usbredir      the same
//!  GET                                             …/vsock?port=N[&tls=true]      the same
//!  PUT                                             …/pause | unpause | softreboot | reset | unfreeze ──► 200
//!  PUT                                             …/freeze[?thawSeconds=N] ──► 200
//!  GET                                             …/vnc/screenshot[?moveCursor=true] ──► 200, PNG
//!  GET                                             …/guestosinfo ──► 200, JSON of GuestInfoReply
//!  GET                                             …/sev/fetchcertchain ──► 200, JSON of SEVPlatformInfo
//!  GET                                             …/sev/querylaunchmeasurement ──► 200, JSON of SEVMeasurementInfo
//!  PUT                                             …/sev/injectlaunchsecret, JSON of SEVSecretOptions ──► 200
//!  anything that fails ──► 4xx or 5xx with a Failure as JSON
//! ```
//!
//! Both ends are known by the common names of their certificates; addresses and DNS names do not matter.

use std::io;

use serde::{Deserialize, Serialize};

use crate::launcher::Action;
use crate::streams::{Stream, StreamError};

/// Port of virt-handler.
pub const PORT: u16 = 8186;
/// What a stream's connection is upgraded to.
pub const UPGRADE: &str = "ferrovirt-stream";
/// Longest body of a request.
pub const MAX_BODY: usize = 64 << 10;
/// Label by which the pods of virt-handler are found.
pub const HANDLER_LABEL: &str = "kubevirt.io=virt-handler";
/// Common name of virt-handler's server certificate.
pub const SERVER_NAME: &str = "kubevirt.io:system:node:virt-handler";
/// Common name of virt-api's client certificate: the only client that virt-handler serves.
pub const API_CLIENT_NAME: &str = "kubevirt.io:system:client:virt-api";
/// Common name of virt-handler's client certificate.
pub const HANDLER_CLIENT_NAME: &str = "kubevirt.io:system:client:virt-handler";

/// What is asked of a VMI's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A stream: the connection is upgraded.
    Stream(Stream),
    /// Something is done to the guest.
    Act(Action),
    /// The guest's file systems stand still.
    Freeze {
        /// They thaw after so long in any case; 0: only when they are asked to.
        thaw_seconds: u64,
    },
    /// The guest's screen.
    Screenshot {
        /// Wake it first.
        move_cursor: bool,
    },
    /// What the guest agent knows.
    GuestInfo,
    /// The node's AMD SEV.
    SevPlatform,
    /// The guest's, as it was started.
    SevMeasurement,
    /// A secret for the guest; it is the request's body.
    SevSecret,
}

/// Names of [`Call::Act`], for those actions that virt-api asks for.
const ACTIONS: [(&str, Action); 5] = [
    ("pause", Action::Pause),
    ("unpause", Action::Unpause),
    ("softreboot", Action::SoftReboot),
    ("reset", Action::Reset),
    ("unfreeze", Action::Unfreeze),
];

impl Call {
    /// Method, and path with query. `None` for an action that does not travel.
    #[must_use]
    pub fn request(self, namespace: &str, vmi: &str) -> Option<(&'static str, String)> {
        let path = |verb: &str| format!("/v1/namespaces/{namespace}/virtualmachineinstances/{vmi}/{verb}");
        let (method, verb) = match self {
            Self::Freeze { thaw_seconds: 0 } => ("PUT", "freeze"),
            Self::Freeze { thaw_seconds } => {
                let path = path(&format!("freeze?thawSeconds={thaw_seconds}"));
                return Some(("PUT", path));
            }
            Self::Screenshot { move_cursor: false } => ("GET", "vnc/screenshot"),
            Self::Screenshot { move_cursor: true } => ("GET", "vnc/screenshot?moveCursor=true"),
            Self::Stream(Stream::Console) => ("GET", "console"),
            Self::Stream(Stream::Vnc {
                preserve_session: false,
            }) => ("GET", "vnc"),
            Self::Stream(Stream::Vnc { preserve_session: true }) => ("GET", "vnc?preserveSession=true"),
            Self::Stream(Stream::UsbRedir) => ("GET", "usbredir"),
            Self::Stream(Stream::Vsock { port, tls }) => {
                let tls = if tls { "&tls=true" } else { "" };
                return Some(("GET", path(&format!("vsock?port={port}{tls}"))));
            }
            Self::GuestInfo => ("GET", "guestosinfo"),
            Self::SevPlatform => ("GET", "sev/fetchcertchain"),
            Self::SevMeasurement => ("GET", "sev/querylaunchmeasurement"),
            Self::SevSecret => ("PUT", "sev/injectlaunchsecret"),
            Self::Act(action) => ("PUT", ACTIONS.iter().find(|(_, known)| *known == action)?.0),
        };
        Some((method, path(verb)))
    }

    /// Reads a request line: namespace, name of the VMI, and what is asked. `None`: there is no such thing (404).
    #[must_use]
    pub fn parse<'a>(method: &str, path: &'a str, query: Option<&str>) -> Option<(&'a str, &'a str, Self)> {
        let rest = path.strip_prefix("/v1/namespaces/")?;
        let (namespace, rest) = rest.split_once('/')?;
        let (vmi, verb) = rest.strip_prefix("virtualmachineinstances/")?.split_once('/')?;
        if namespace.is_empty() || vmi.is_empty() {
            return None;
        }
        let asked = |wanted: &str| query.is_some_and(|query| query.split('&').any(|pair| pair == wanted));
        let preserve_session = asked("preserveSession=true");
        let call = match (method, verb) {
            ("GET", "console") => Self::Stream(Stream::Console),
            ("GET", "vnc") => Self::Stream(Stream::Vnc { preserve_session }),
            ("GET", "usbredir") => Self::Stream(Stream::UsbRedir),
            ("GET", "vsock") => {
                let port = query?.split('&').find_map(|pair| pair.strip_prefix("port="))?;
                Self::Stream(Stream::Vsock {
                    port: port.parse().ok()?,
                    tls: asked("tls=true"),
                })
            }
            ("GET", "vnc/screenshot") => Self::Screenshot {
                move_cursor: asked("moveCursor=true"),
            },
            ("PUT", "freeze") => Self::Freeze {
                thaw_seconds: match query {
                    None => 0,
                    Some(query) => query.strip_prefix("thawSeconds=")?.parse().ok()?,
                },
            },
            ("GET", "guestosinfo") => Self::GuestInfo,
            ("GET", "sev/fetchcertchain") => Self::SevPlatform,
            ("GET", "sev/querylaunchmeasurement") => Self::SevMeasurement,
            ("PUT", "sev/injectlaunchsecret") => Self::SevSecret,
            ("PUT", _) => Self::Act(ACTIONS.iter().find(|(name, _)| *name == verb)?.1),
            _ => return None,
        };
        Some((namespace, vmi, call))
    }
}

/// The body of an answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which [`StreamError`] it is.
    pub reason: Reason,
    /// What the error says about itself and its sources; for [`Reason::NotHere`] and [`Reason::Busy`] only whom it is about.
    pub message: String,
}

/// The variants of [`StreamError`] that travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// [`StreamError::NotHere`].
    NotHere,
    /// [`StreamError::Busy`].
    Busy,
    /// [`StreamError::Connect`].
    Connect,
    /// [`StreamError::Refused`].
    Refused,
}

impl Failure {
    /// The HTTP code of the answer.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self.reason {
            Reason::NotHere => 404,
            Reason::Busy => 503,
            Reason::Connect => 502,
            Reason::Refused => 409,
        }
    }

    /// The error that it was; `path` is what could not be reached.
    #[must_use]
    pub fn into_error(self, path: &str) -> StreamError {
        match self.reason {
            Reason::NotHere => StreamError::NotHere(self.message),
            Reason::Busy => StreamError::Busy(self.message),
            Reason::Refused => StreamError::Refused(self.message),
            Reason::Connect => StreamError::Connect {
                path: path.to_owned(),
                source: io::Error::other(self.message),
            },
        }
    }
}

impl From<&StreamError> for Failure {
    fn from(error: &StreamError) -> Self {
        let (reason, message) = match error {
            StreamError::NotHere(vmi) => (Reason::NotHere, vmi.clone()),
            StreamError::Busy(what) => (Reason::Busy, what.clone()),
            StreamError::Refused(why) => (Reason::Refused, why.clone()),
            StreamError::Connect { source, .. } => (Reason::Connect, format!("{error}: {source}")),
            StreamError::Unreachable { source, .. } => (Reason::Connect, format!("{error}: {source}")),
        };
        Self { reason, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_understood() {
        let vnc = |preserve_session| Call::Stream(Stream::Vnc { preserve_session });
        let calls = [
            Call::Stream(Stream::Console),
            Call::Stream(Stream::UsbRedir),
            Call::Stream(Stream::Vsock { port: 1, tls: false }),
            Call::Stream(Stream::Vsock { port: 1024, tls: true }),
            vnc(false),
            vnc(true),
            Call::Freeze { thaw_seconds: 0 },
            Call::Freeze { thaw_seconds: u64::MAX },
            Call::Screenshot { move_cursor: false },
            Call::Screenshot { move_cursor: true },
            Call::GuestInfo,
            Call::SevPlatform,
            Call::SevMeasurement,
            Call::SevSecret,
        ];
        let acts = ACTIONS.map(|(_, action)| Call::Act(action));
        for call in calls.into_iter().chain(acts) {
            let (method, target) = call.request("ns", "x").unwrap();
            let (path, query) = target
                .split_once('?')
                .map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
            assert_eq!(Call::parse(method, path, query), Some(("ns", "x", call)));
        }
        assert_eq!(Call::Act(Action::Kill).request("ns", "x"), None);
        let base = "/v1/namespaces/ns/virtualmachineinstances/x";
        for (method, path) in [
            ("PUT", format!("{base}/console")),
            ("GET", format!("{base}/pause")),
            ("PUT", format!("{base}/kill")),
            ("GET", format!("{base}/vsock")),
            ("PUT", format!("{base}/vnc/screenshot")),
            ("GET", format!("{base}/freeze")),
            ("PUT", format!("{base}/sev/fetchcertchain")),
            ("GET", format!("{base}/sev/injectlaunchsecret")),
            ("PUT", format!("{base}/sev/setupsession")),
            ("GET", base.to_owned()),
            ("GET", "/v1/namespaces//virtualmachineinstances/x/console".to_owned()),
            ("GET", "/v2/namespaces/ns/virtualmachineinstances/x/console".to_owned()),
        ] {
            assert_eq!(Call::parse(method, &path, None), None, "{method} {path}");
        }
        let freeze = format!("{base}/freeze");
        for query in ["", "thawSeconds=", "thawSeconds=-1", "thawSeconds=1&x"] {
            assert_eq!(Call::parse("PUT", &freeze, Some(query)), None, "{query}");
        }
    }

    #[test]
    fn failures_arrive_as_they_were() {
        let connect = StreamError::Connect {
            path: "virt-serial0".into(),
            source: io::Error::other("no such file"),
        };
        for (error, code, expected) in [
            (
                StreamError::NotHere("ns/x".into()),
                404,
                "VirtualMachineInstance ns/x has no guest on this node",
            ),
            (
                StreamError::Busy("VNC of ns/x".into()),
                503,
                "there is an active session to VNC of ns/x",
            ),
            (
                StreamError::Refused("the guest is paused".into()),
                409,
                "the guest is paused",
            ),
            (connect, 502, "cannot connect to node n"),
        ] {
            let failure = Failure::from(&error);
            assert_eq!(failure.code(), code);
            let text = serde_json::to_string(&failure).unwrap();
            let read: Failure = serde_json::from_str(&text).unwrap();
            assert_eq!(read.into_error("node n").to_string(), expected);
        }
    }
}
