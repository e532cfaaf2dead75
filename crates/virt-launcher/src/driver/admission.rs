//! Which request is allowed when. Pure: action × phase, decided by an exhaustive table.

use std::fmt;

/// Phase of the guest, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was asked for yet.
    Waiting,
    /// Disks, network, domain.
    Preparing,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
    /// The guest was asked to end.
    ShuttingDown,
    /// It has ended.
    Ended,
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stand still.
    Pause,
    /// Go on.
    Unpause,
    /// End well, within the grace period.
    Shutdown,
    /// End now.
    Kill,
    /// Press reset.
    Reset,
}

/// What an allowed request leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call libvirt for it.
    Do,
    /// There is no guest yet: end without one.
    EndWithoutGuest,
    /// Let the start finish, then end the guest.
    AbortStart,
    /// Already so.
    Nothing,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// There is no running guest.
    NotRunning,
    /// It is being started.
    Starting,
    /// It is paused.
    Paused,
    /// It is not paused.
    NotPaused,
    /// It is being shut down.
    ShuttingDown,
    /// It has ended.
    Ended,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRunning => "the guest is not running",
            Self::Starting => "the guest is still being started",
            Self::Paused => "the guest is paused",
            Self::NotPaused => "the guest is not paused",
            Self::ShuttingDown => "the guest is being shut down",
            Self::Ended => "the guest has ended",
        })
    }
}

/// Decides a request.
pub fn admit(phase: Phase, action: Action) -> Result<Step, Denied> {
    use Action::{Kill, Pause, Reset, Shutdown, Unpause};
    match (phase, action) {
        (Phase::Waiting, Shutdown | Kill) => Ok(Step::EndWithoutGuest),
        (Phase::Waiting, Pause | Unpause | Reset) => Err(Denied::NotRunning),
        (Phase::Preparing, Shutdown | Kill) => Ok(Step::AbortStart),
        (Phase::Preparing, Pause | Unpause | Reset) => Err(Denied::Starting),
        (Phase::Running, Pause | Shutdown | Kill | Reset) => Ok(Step::Do),
        (Phase::Running, Unpause) => Err(Denied::NotPaused),
        (Phase::Paused, Unpause | Shutdown | Kill | Reset) => Ok(Step::Do),
        (Phase::Paused, Pause) => Err(Denied::Paused),
        (Phase::ShuttingDown, Shutdown | Kill) => Ok(Step::Do),
        (Phase::ShuttingDown, Pause | Unpause | Reset) => Err(Denied::ShuttingDown),
        (Phase::Ended, Shutdown | Kill) => Ok(Step::Nothing),
        (Phase::Ended, Pause | Unpause | Reset) => Err(Denied::Ended),
    }
}

/// What is asked of the guest agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Does it answer?
    Ping,
    /// What does a command in the guest say?
    Exec,
    /// Will it freeze the file systems?
    Freeze,
    /// Will it thaw them?
    Thaw,
    /// Will it reboot the guest?
    Reboot,
}

/// Who answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Respondent {
    /// The agent in the guest.
    Agent,
    /// Nobody has to be asked: the guest is well.
    Nobody,
}

/// Decides a question. A guest that stands still cannot answer, which is no illness of it; but it can run nothing.
pub fn admit_question(phase: Phase, question: Question) -> Result<Respondent, Denied> {
    use Question::{Exec, Freeze, Ping, Reboot, Thaw};
    match (phase, question) {
        (Phase::Running, _) | (Phase::ShuttingDown, Ping | Exec | Thaw) => Ok(Respondent::Agent),
        // A guest whose file systems stand still cannot end by itself.
        (Phase::ShuttingDown, Freeze | Reboot) => Err(Denied::ShuttingDown),
        (Phase::Paused, Ping) => Ok(Respondent::Nobody),
        (Phase::Paused, Exec | Freeze | Thaw | Reboot) => Err(Denied::Paused),
        (Phase::Waiting, Ping | Exec | Freeze | Thaw | Reboot) => Err(Denied::NotRunning),
        (Phase::Preparing, Ping | Exec | Freeze | Thaw | Reboot) => Err(Denied::Starting),
        (Phase::Ended, Ping | Exec | Freeze | Thaw | Reboot) => Err(Denied::Ended),
    }
}

/// Whether there is a screen to look at.
pub fn admit_screenshot(phase: Phase) -> Result<(), Denied> {
    match phase {
        Phase::Running | Phase::Paused | Phase::ShuttingDown => Ok(()),
        Phase::Waiting => Err(Denied::NotRunning),
        Phase::Preparing => Err(Denied::Starting),
        Phase::Ended => Err(Denied::Ended),
    }
}

/// What the owner of a guest in encrypted memory asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// Whom is the node's secure processor trusted by?
    Platform,
    /// What did it measure?
    Measurement,
    /// Will it take a secret?
    Secret,
}

/// Decides such a question. Of the node anything may be asked at any time; the firmware takes secrets only before the
/// guest has run.
pub fn admit_attestation(phase: Phase, asked: Attestation) -> Result<(), Denied> {
    use Attestation::{Measurement, Platform, Secret};
    match (phase, asked) {
        (Phase::Ended, Platform | Measurement | Secret) => Err(Denied::Ended),
        (_, Platform) | (Phase::Paused, Measurement | Secret) | (Phase::Running, Measurement) => Ok(()),
        (Phase::Running, Secret) => Err(Denied::NotPaused),
        (Phase::Waiting, Measurement | Secret) => Err(Denied::NotRunning),
        (Phase::Preparing, Measurement | Secret) => Err(Denied::Starting),
        (Phase::ShuttingDown, Measurement | Secret) => Err(Denied::ShuttingDown),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PHASES: [Phase; 6] = [
        Phase::Waiting,
        Phase::Preparing,
        Phase::Running,
        Phase::Paused,
        Phase::ShuttingDown,
        Phase::Ended,
    ];
    const ACTIONS: [Action; 5] = [
        Action::Pause,
        Action::Unpause,
        Action::Shutdown,
        Action::Kill,
        Action::Reset,
    ];

    #[test]
    fn secrets_are_for_those_who_stand_still() {
        for phase in PHASES {
            let secret = admit_attestation(phase, Attestation::Secret);
            assert_eq!(secret.is_ok(), phase == Phase::Paused, "{phase:?}");
            let platform = admit_attestation(phase, Attestation::Platform);
            assert_eq!(platform.is_ok(), phase != Phase::Ended, "{phase:?}");
            let measurement = admit_attestation(phase, Attestation::Measurement);
            let there = matches!(phase, Phase::Running | Phase::Paused);
            assert_eq!(measurement.is_ok(), there, "{phase:?}");
        }
    }

    /// The phase after an admitted request that succeeds.
    fn after(phase: Phase, action: Action, step: Step) -> Phase {
        match (step, action) {
            (Step::Nothing, _) | (Step::AbortStart, _) => phase,
            (Step::EndWithoutGuest, _) | (Step::Do, Action::Kill) => Phase::Ended,
            (Step::Do, Action::Pause) => Phase::Paused,
            (Step::Do, Action::Unpause) => Phase::Running,
            (Step::Do, Action::Shutdown) => Phase::ShuttingDown,
            (Step::Do, Action::Reset) => phase,
        }
    }

    proptest! {
        #[test]
        fn no_sequence_wakes_the_dead_or_skips_the_end(
            start in 0..PHASES.len(),
            actions in proptest::collection::vec(0..ACTIONS.len(), 0..40),
        ) {
            let mut phase = PHASES[start];
            for action in actions.into_iter().map(|index| ACTIONS[index]) {
                let before = phase;
                if let Ok(step) = admit(phase, action) {
                    phase = after(phase, action, step);
                }
                if before == Phase::Ended {
                    prop_assert_eq!(phase, Phase::Ended);
                }
                if before == Phase::ShuttingDown {
                    prop_assert!(matches!(phase, Phase::ShuttingDown | Phase::Ended));
                }
                if matches!(action, Action::Shutdown | Action::Kill) {
                    prop_assert!(admit(before, action).is_ok(), "ending must always be possible");
                }
            }
        }

        #[test]
        fn pausing_and_unpausing_exclude_each_other(index in 0..PHASES.len()) {
            let phase = PHASES[index];
            prop_assert!(admit(phase, Action::Pause).is_err() || admit(phase, Action::Unpause).is_err());
        }
    }
}
