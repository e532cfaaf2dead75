//! Condition lists: the same rules for every kind.
//!
//! `lastTransitionTime` changes exactly when `status` does, and setting what is already there changes nothing,
//! so that a caller can compare lists to know whether there is anything to write.

use ferrovirt_api::v1::{VirtualMachineCondition, VirtualMachineInstanceCondition};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// `status` of a condition.
pub const TRUE: &str = "True";
/// `status` of a condition.
pub const FALSE: &str = "False";

/// What a writer wants a condition to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Condition type.
    pub kind: String,
    /// Holds or not.
    pub status: bool,
    /// CamelCase reason; may be empty.
    pub reason: String,
    /// For people; may be empty.
    pub message: String,
}

impl Desired {
    /// A condition with a reason and a message.
    pub fn new(kind: &str, status: bool, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            status,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// An entry of a condition list.
pub trait Condition: Clone + PartialEq {
    /// `type`.
    fn kind(&self) -> &str;
    /// `status`.
    fn status(&self) -> &str;
    /// `reason`, empty if absent.
    fn reason(&self) -> &str;
    /// `message`, empty if absent.
    fn message(&self) -> &str;
    /// `lastTransitionTime`.
    fn transition(&self) -> Option<&Time>;
    /// A new entry.
    fn make(kind: &str, status: &str, reason: &str, message: &str, transition: Option<Time>) -> Self;
}

macro_rules! wire_condition {
    ($type:ty) => {
        impl Condition for $type {
            fn kind(&self) -> &str {
                &self.r#type
            }
            fn status(&self) -> &str {
                &self.status
            }
            fn reason(&self) -> &str {
                self.reason.as_deref().unwrap_or_default()
            }
            fn message(&self) -> &str {
                self.message.as_deref().unwrap_or_default()
            }
            fn transition(&self) -> Option<&Time> {
                self.last_transition_time.as_ref()
            }
            fn make(kind: &str, status: &str, reason: &str, message: &str, transition: Option<Time>) -> Self {
                let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
                Self {
                    r#type: kind.to_owned(),
                    status: status.to_owned(),
                    reason: text(reason),
                    message: text(message),
                    last_transition_time: transition,
                    last_probe_time: None,
                }
            }
        }
    };
}
wire_condition!(VirtualMachineCondition);
wire_condition!(VirtualMachineInstanceCondition);

/// `now` with the precision of the wire.
#[must_use]
pub fn wire_time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The condition of type `kind`.
pub fn find<'a, C: Condition>(list: &'a [C], kind: &str) -> Option<&'a C> {
    list.iter().find(|c| c.kind() == kind)
}

/// Whether the condition of type `kind` is there and True.
pub fn is_true<C: Condition>(list: &[C], kind: &str) -> bool {
    find(list, kind).is_some_and(|c| c.status() == TRUE)
}

/// Sets one condition. Returns whether the list changed.
pub fn set<C: Condition>(list: &mut Vec<C>, desired: &Desired, now: Timestamp) -> bool {
    let status = if desired.status { TRUE } else { FALSE };
    put(list, &desired.kind, status, &desired.reason, &desired.message, now)
}

/// Sets one condition with any status, `Unknown` included. Returns whether the list changed.
pub fn put<C: Condition>(
    list: &mut Vec<C>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let make = |transition| C::make(kind, status, reason, message, transition);
    match list.iter_mut().find(|c| c.kind() == kind) {
        Some(old) if old.status() == status => {
            if old.reason() == reason && old.message() == message {
                return false;
            }
            *old = make(old.transition().cloned());
        }
        Some(old) => *old = make(Some(wire_time(now))),
        None => list.push(make(Some(wire_time(now)))),
    }
    true
}

/// Makes the list have this condition as it is, with its time. Returns whether the list changed.
pub fn copy<C: Condition>(list: &mut Vec<C>, other: &impl Condition) -> bool {
    let transition = other.transition().cloned();
    let new = C::make(
        other.kind(),
        other.status(),
        other.reason(),
        other.message(),
        transition,
    );
    match list.iter_mut().find(|c| c.kind() == other.kind()) {
        Some(old) if *old == new => return false,
        Some(old) => *old = new,
        None => list.push(new),
    }
    true
}

/// Removes the condition of type `kind`. Returns whether the list changed.
pub fn remove<C: Condition>(list: &mut Vec<C>, kind: &str) -> bool {
    let before = list.len();
    list.retain(|c| c.kind() != kind);
    list.len() != before
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    proptest! {
        #[test]
        fn setting_is_idempotent_and_transitions_follow_status(
            steps in proptest::collection::vec((0..3usize, any::<bool>(), "[AB]", "[xy]?"), 1..30)
        ) {
            let mut list: Vec<VirtualMachineInstanceCondition> = Vec::new();
            for (i, (kind, status, reason, message)) in steps.into_iter().enumerate() {
                let desired = Desired::new(["Ready", "Paused", "Synchronized"][kind], status, reason, message);
                let old = find(&list, &desired.kind).cloned();
                let now = at(i64::try_from(i).unwrap() + 1);
                let changed = set(&mut list, &desired, now);
                let new = find(&list, &desired.kind).cloned().unwrap();
                prop_assert_eq!(changed, old.as_ref() != Some(&new));
                match old {
                    Some(old) if old.status == new.status => {
                        prop_assert_eq!(old.last_transition_time, new.last_transition_time.clone());
                    }
                    _ => prop_assert_eq!(new.last_transition_time.clone(), Some(Time(now))),
                }
                let before = list.clone();
                prop_assert!(!set(&mut list, &desired, at(1_000_000)));
                prop_assert_eq!(&before, &list);
                let mut kinds: Vec<&str> = list.iter().map(Condition::kind).collect();
                kinds.sort_unstable();
                kinds.dedup();
                prop_assert_eq!(kinds.len(), list.len());
            }
        }
    }

    #[test]
    fn removing_says_whether_it_was_there() {
        let mut list: Vec<VirtualMachineCondition> = Vec::new();
        set(&mut list, &Desired::new("Ready", true, "", ""), at(1));
        assert!(remove(&mut list, "Ready"));
        assert!(!remove(&mut list, "Ready"));
    }
}
