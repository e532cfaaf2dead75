//! The queue `status.stateChangeRequests`. Only its head counts; requests leave it when they have come true.

use std::collections::BTreeMap;

use ferrovirt_api::v1::VirtualMachineStateChangeRequest;

use crate::vmi::VmiFacts;

/// Key of a Start request's data: the guest starts paused.
pub const PAUSED_DATA: &str = "paused";

/// A request, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Start a VMI.
    Start {
        /// With its guest paused.
        paused: bool,
    },
    /// Stop the VMI with this UID.
    Stop {
        /// UID of the VMI.
        uid: String,
    },
}

/// The wire form of a Start request.
#[must_use]
pub fn start(paused: bool) -> VirtualMachineStateChangeRequest {
    let data = if paused {
        BTreeMap::from([(PAUSED_DATA.to_owned(), "true".to_owned())])
    } else {
        BTreeMap::new()
    };
    VirtualMachineStateChangeRequest {
        action: "Start".to_owned(),
        data,
        uid: None,
    }
}

/// The wire form of a Stop request.
#[must_use]
pub fn stop(vmi_uid: &str) -> VirtualMachineStateChangeRequest {
    VirtualMachineStateChangeRequest {
        action: "Stop".to_owned(),
        data: BTreeMap::new(),
        uid: Some(vmi_uid.to_owned()),
    }
}

/// The head of the queue. A request of an unknown action is none: it would block the queue forever.
#[must_use]
pub fn head(requests: &[VirtualMachineStateChangeRequest]) -> Option<Request> {
    let first = requests.first()?;
    match first.action.as_str() {
        "Start" => Some(Request::Start {
            paused: first.data.get(PAUSED_DATA).is_some_and(|v| v == "true"),
        }),
        "Stop" => Some(Request::Stop {
            uid: first.uid.clone().unwrap_or_default(),
        }),
        _ => None,
    }
}

/// The queue without the requests that have come true, from the head on: a Stop when its VMI is gone, a Start when a
/// VMI lives.
#[must_use]
pub fn settle(
    requests: &[VirtualMachineStateChangeRequest],
    vmi: Option<&VmiFacts>,
) -> Vec<VirtualMachineStateChangeRequest> {
    let settled = requests
        .iter()
        .take_while(|r| match head(std::slice::from_ref(r)) {
            None => true,
            Some(Request::Stop { uid }) => vmi.is_none_or(|v| v.uid != uid),
            Some(Request::Start { .. }) => vmi.is_some_and(VmiFacts::is_live),
        })
        .count();
    requests[settled..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmi::Phase;

    #[test]
    fn settling() {
        let live = VmiFacts {
            uid: "u".into(),
            phase: Phase::Running,
            deleting: false,
            was_running: true,
        };
        let dying = VmiFacts {
            deleting: true,
            ..live.clone()
        };
        let restart = [stop("u"), start(false)];
        assert_eq!(settle(&restart, Some(&live)), restart);
        assert_eq!(settle(&restart, Some(&dying)), restart);
        assert_eq!(settle(&restart, None), restart[1..]);
        let next = VmiFacts {
            uid: "v".into(),
            ..live.clone()
        };
        assert_eq!(settle(&restart, Some(&next)), []);
        assert_eq!(settle(&[start(true)], Some(&dying)), [start(true)]);
        let odd = VirtualMachineStateChangeRequest {
            action: "Dance".into(),
            ..Default::default()
        };
        assert_eq!(settle(&[odd, start(true)], None), [start(true)]);
        assert_eq!(head(&[start(true)]), Some(Request::Start { paused: true }));
    }
}
