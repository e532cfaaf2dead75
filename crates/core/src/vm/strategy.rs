//! Run strategies: what should become of a VM's VMI.
//!
//! | Strategy | no VMI | live VMI | final VMI |
//! |---|---|---|---|
//! | Always | create, after the backoff | delete on a Stop request | delete |
//! | RerunOnFailure | create when fresh or asked, after the backoff | delete on a Stop request | delete; queue a Start if it failed |
//! | Manual | create when asked | delete on a Stop request | delete on a Stop request |
//! | Halted | turn on when a Start is queued | delete | delete |
//! | Once | create, after the backoff | – | – |
//! | WaitAsReceiver | – (needs migration between clusters, refused at admission) | – | – |
//!
//! A VMI that is being deleted is waited for, whatever the strategy.

use std::fmt;

use ferrovirt_api::v1::{VirtualMachineSpec, VirtualMachineStateChangeRequest};
use jiff::Timestamp;

use super::requests::{Request, head};
use crate::vmi::{Phase, VmiFacts};

/// `spec.runStrategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunStrategy {
    /// A VMI should always exist.
    Always,
    /// A new VMI follows one that failed.
    RerunOnFailure,
    /// Started and stopped by requests only.
    Manual,
    /// No VMI should exist.
    Halted,
    /// One VMI, whose end is final.
    Once,
    /// A VMI that waits for a migration from another cluster.
    WaitAsReceiver,
}

impl RunStrategy {
    /// Every strategy.
    pub const ALL: [Self; 6] = [
        Self::Always,
        Self::RerunOnFailure,
        Self::Manual,
        Self::Halted,
        Self::Once,
        Self::WaitAsReceiver,
    ];

    /// Wire form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::RerunOnFailure => "RerunOnFailure",
            Self::Manual => "Manual",
            Self::Halted => "Halted",
            Self::Once => "Once",
            Self::WaitAsReceiver => "WaitAsReceiver",
        }
    }

    /// Reads the wire form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// The strategy of a VM. `running` is the older way to say Always or Halted; neither means Halted.
    ///
    /// # Errors
    /// Both are given, or the strategy is not known. Admission refuses such VMs.
    pub fn of(spec: &VirtualMachineSpec) -> Result<Self, RunStrategyError> {
        match (spec.running, spec.run_strategy.as_deref()) {
            (Some(_), Some(_)) => Err(RunStrategyError::Both),
            (Some(true), None) => Ok(Self::Always),
            (Some(false) | None, None) => Ok(Self::Halted),
            (None, Some(text)) => Self::parse(text).ok_or_else(|| RunStrategyError::Unknown(text.to_owned())),
        }
    }

    /// Whether failed starts are counted and followed by a pause.
    #[must_use]
    pub fn backs_off(self) -> bool {
        matches!(self, Self::Always | Self::RerunOnFailure | Self::Once)
    }
}

impl fmt::Display for RunStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a VM has no run strategy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunStrategyError {
    /// Both ways to say it are used.
    #[error("spec.running and spec.runStrategy are mutually exclusive: remove one of them")]
    Both,
    /// Not a strategy.
    #[error("spec.runStrategy \"{0}\" is not one of Always, RerunOnFailure, Manual, Halted, Once, WaitAsReceiver")]
    Unknown(String),
}

/// What the decision depends on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The VM's strategy.
    pub strategy: RunStrategy,
    /// The VM's VMI.
    pub vmi: Option<&'a VmiFacts>,
    /// `status.stateChangeRequests`, settled ones removed.
    pub requests: &'a [VirtualMachineStateChangeRequest],
    /// `status.runStrategy`.
    pub mirrored: Option<RunStrategy>,
    /// `status.startFailure.retryAfterTimestamp`.
    pub retry_after: Option<Timestamp>,
    /// The time.
    pub now: Timestamp,
}

/// What to do about the VMI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be, or on its way.
    Nothing,
    /// Create it.
    Create {
        /// Its guest starts paused.
        paused: bool,
    },
    /// Create it, but not before this time.
    Wait {
        /// End of the backoff.
        until: Timestamp,
    },
    /// Delete it.
    Delete,
    /// Append a Start request, so that the failed VMI can be deleted without forgetting that a new one must follow.
    QueueStart,
    /// Change the spec to Always: a halted VM was asked to start paused.
    TurnOn,
}

/// The next step of a VM that is not being deleted.
#[must_use]
pub fn decide(situation: &Situation<'_>) -> Step {
    match situation.vmi {
        None => without_vmi(situation),
        Some(vmi) if vmi.deleting => Step::Nothing,
        Some(vmi) if vmi.phase.is_final() => with_final(situation, vmi),
        Some(vmi) => with_live(situation, vmi),
    }
}

fn without_vmi(s: &Situation<'_>) -> Step {
    let start = match head(s.requests) {
        Some(Request::Start { paused }) => Some(paused),
        Some(Request::Stop { .. }) | None => None,
    };
    let create = Step::Create {
        paused: start.unwrap_or(false),
    };
    let after_backoff = |create| match s.retry_after {
        Some(until) if until > s.now => Step::Wait { until },
        _ => create,
    };
    match s.strategy {
        RunStrategy::Always | RunStrategy::Once => after_backoff(create),
        RunStrategy::RerunOnFailure if start.is_some() || s.mirrored != Some(RunStrategy::RerunOnFailure) => {
            after_backoff(create)
        }
        RunStrategy::Manual if start.is_some() => create,
        RunStrategy::Halted if start.is_some() => Step::TurnOn,
        RunStrategy::RerunOnFailure | RunStrategy::Manual | RunStrategy::Halted | RunStrategy::WaitAsReceiver => {
            Step::Nothing
        }
    }
}

fn stop_asked(s: &Situation<'_>, vmi: &VmiFacts) -> bool {
    matches!(head(s.requests), Some(Request::Stop { uid }) if uid == vmi.uid)
}

fn with_live(s: &Situation<'_>, vmi: &VmiFacts) -> Step {
    let stop = stop_asked(s, vmi);
    match s.strategy {
        RunStrategy::Halted => Step::Delete,
        RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Manual if stop => Step::Delete,
        RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Manual => Step::Nothing,
        RunStrategy::Once | RunStrategy::WaitAsReceiver => Step::Nothing,
    }
}

fn with_final(s: &Situation<'_>, vmi: &VmiFacts) -> Step {
    let start_queued = s.requests.iter().any(|r| r.action == "Start");
    match s.strategy {
        RunStrategy::Always | RunStrategy::Halted => Step::Delete,
        RunStrategy::RerunOnFailure if vmi.phase == Phase::Failed && !start_queued => Step::QueueStart,
        RunStrategy::RerunOnFailure => Step::Delete,
        RunStrategy::Manual if stop_asked(s, vmi) => Step::Delete,
        RunStrategy::Manual | RunStrategy::Once | RunStrategy::WaitAsReceiver => Step::Nothing,
    }
}

/// `status.runStrategy` after a reconcile: it follows the spec once a VMI has existed. While a creation is still
/// due it stays, because a fresh RerunOnFailure VM is recognized by it.
#[must_use]
pub fn mirror(
    strategy: RunStrategy,
    mirrored: Option<RunStrategy>,
    vmi_exists: bool,
    step: &Step,
) -> Option<RunStrategy> {
    let creation_due = matches!(step, Step::Create { .. } | Step::Wait { .. });
    match mirrored {
        _ if vmi_exists => Some(strategy),
        Some(_) if !creation_due => Some(strategy),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vm::requests::{settle, start, stop};

    fn vmi(uid: &str, phase: Phase, deleting: bool) -> VmiFacts {
        VmiFacts {
            uid: uid.to_owned(),
            phase,
            deleting,
            was_running: phase == Phase::Running,
        }
    }

    #[test]
    fn resolution() {
        let spec = |running, strategy: Option<&str>| VirtualMachineSpec {
            running,
            run_strategy: strategy.map(str::to_owned),
            ..VirtualMachineSpec::default()
        };
        assert_eq!(RunStrategy::of(&spec(Some(true), None)), Ok(RunStrategy::Always));
        assert_eq!(RunStrategy::of(&spec(Some(false), None)), Ok(RunStrategy::Halted));
        assert_eq!(RunStrategy::of(&spec(None, None)), Ok(RunStrategy::Halted));
        assert_eq!(
            RunStrategy::of(&spec(Some(true), Some("Always"))),
            Err(RunStrategyError::Both)
        );
        assert_eq!(
            RunStrategy::of(&spec(None, Some("x"))),
            Err(RunStrategyError::Unknown("x".into()))
        );
        for strategy in RunStrategy::ALL {
            assert_eq!(RunStrategy::of(&spec(None, Some(strategy.as_str()))), Ok(strategy));
        }
    }

    #[test]
    fn table() {
        use RunStrategy::{Always, Halted, Manual, Once, RerunOnFailure};
        let now = Timestamp::from_second(100).unwrap();
        let later = Timestamp::from_second(110).unwrap();
        let live = vmi("u", Phase::Running, false);
        let dying = vmi("u", Phase::Running, true);
        let failed = vmi("u", Phase::Failed, false);
        let done = vmi("u", Phase::Succeeded, false);
        let create = Step::Create { paused: false };
        let none: Vec<VirtualMachineStateChangeRequest> = vec![];
        let begin = vec![start(false)];
        let begin_paused = vec![start(true)];
        let end = vec![stop("u")];
        let end_other = vec![stop("other")];
        let rerun = Some(RerunOnFailure);
        for (strategy, vmi, requests, mirrored, retry_after, expected) in [
            (Always, None, &none, None, None, create.clone()),
            (Always, None, &none, None, Some(later), Step::Wait { until: later }),
            (Always, None, &none, None, Some(now), create.clone()),
            (Always, None, &begin_paused, None, None, Step::Create { paused: true }),
            (Always, Some(&live), &none, None, None, Step::Nothing),
            (Always, Some(&live), &end, None, None, Step::Delete),
            (Always, Some(&live), &end_other, None, None, Step::Nothing),
            (Always, Some(&dying), &end, None, None, Step::Nothing),
            (Always, Some(&failed), &none, None, None, Step::Delete),
            (RerunOnFailure, None, &none, None, None, create.clone()),
            (RerunOnFailure, None, &none, rerun, None, Step::Nothing),
            (RerunOnFailure, None, &none, Some(Halted), None, create.clone()),
            (RerunOnFailure, None, &begin, rerun, None, create.clone()),
            (
                RerunOnFailure,
                None,
                &begin,
                rerun,
                Some(later),
                Step::Wait { until: later },
            ),
            (RerunOnFailure, Some(&failed), &none, rerun, None, Step::QueueStart),
            (RerunOnFailure, Some(&failed), &begin, rerun, None, Step::Delete),
            (RerunOnFailure, Some(&done), &none, rerun, None, Step::Delete),
            (Manual, None, &none, None, None, Step::Nothing),
            (Manual, None, &begin, None, Some(later), create.clone()),
            (Manual, Some(&done), &none, None, None, Step::Nothing),
            (Manual, Some(&done), &end, None, None, Step::Delete),
            (Manual, Some(&live), &end, None, None, Step::Delete),
            (Halted, None, &none, None, None, Step::Nothing),
            (Halted, None, &begin_paused, None, None, Step::TurnOn),
            (Halted, Some(&live), &none, None, None, Step::Delete),
            (Halted, Some(&done), &none, None, None, Step::Delete),
            (Once, None, &none, None, None, create.clone()),
            (Once, Some(&live), &end, None, None, Step::Nothing),
            (Once, Some(&failed), &none, None, None, Step::Nothing),
        ] {
            let situation = Situation {
                strategy,
                vmi,
                requests,
                mirrored,
                retry_after,
                now,
            };
            assert_eq!(decide(&situation), expected, "{situation:?}");
        }
    }

    proptest! {
        /// From any state, a VM reaches in few steps the state that its strategy asks for, if VMIs that are
        /// created live and VMIs that are deleted go; and then stays there.
        #[test]
        fn converges(
            strategy in (0..5usize).prop_map(|i| RunStrategy::ALL[i]),
            phase in proptest::option::of((0..6usize).prop_map(|i| Phase::ALL[i])),
            queue in proptest::collection::vec(prop_oneof![
                any::<bool>().prop_map(start), Just(stop("u0")), Just(stop("gone"))], 0..3),
            mirrored in proptest::option::of((0..5usize).prop_map(|i| RunStrategy::ALL[i])),
        ) {
            let now = Timestamp::from_second(100).unwrap();
            let (mut strategy, mut mirrored, mut requests) = (strategy, mirrored, queue);
            let mut current = phase.map(|p| vmi("u0", p, false));
            let mut quiet = false;
            for round in 0..20 {
                requests = settle(&requests, current.as_ref());
                let step = decide(&Situation {
                    strategy, vmi: current.as_ref(), requests: &requests, mirrored, retry_after: None, now });
                mirrored = mirror(strategy, mirrored, current.is_some(), &step);
                match step {
                    Step::Nothing => { quiet = true; break; }
                    Step::Create { .. } => {
                        prop_assert!(current.is_none());
                        current = Some(vmi(&format!("u{}", round + 1), Phase::Running, false));
                    }
                    Step::Delete => { prop_assert!(current.is_some()); current = None; }
                    Step::QueueStart => requests.push(start(false)),
                    Step::TurnOn => strategy = RunStrategy::Always,
                    Step::Wait { .. } => prop_assert!(false, "nothing to wait for"),
                }
            }
            prop_assert!(quiet);
            match strategy {
                RunStrategy::Always => prop_assert!(current.is_some_and(|v| v.is_live())),
                RunStrategy::Halted => prop_assert!(current.is_none()),
                RunStrategy::Once => prop_assert!(current.is_some()),
                RunStrategy::RerunOnFailure => prop_assert!(current.is_none_or(|v| v.is_live())),
                RunStrategy::Manual | RunStrategy::WaitAsReceiver => {}
            }
        }
    }
}
