//! `status.printableStatus`: one word for people.

use std::fmt;

use super::RunStrategy;
use crate::vmi::{Phase, VmiFacts};

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// `status.printableStatus`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PrintableStatus { $($(#[$doc])* $name),* }
        impl PrintableStatus {
            /// Wire form.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}
statuses! {
    /// The VM is being deleted.
    Terminating,
    /// The VMI is being deleted.
    Stopping,
    /// The VMI moves to another node.
    Migrating,
    /// The guest is paused.
    Paused,
    /// The guest runs.
    Running,
    /// A claim does not exist.
    ErrorPvcNotFound,
    /// A DataVolume failed.
    DataVolumeError,
    /// No node takes the pod.
    ErrorUnschedulable,
    /// A DataVolume is being filled.
    Provisioning,
    /// A claim is not bound.
    WaitingForVolumeBinding,
    /// An image cannot be pulled.
    ErrImagePull,
    /// An image could not be pulled and will be tried again.
    ImagePullBackOff,
    /// On its way to Running.
    Starting,
    /// Starts have failed; the next try waits.
    CrashLoopBackOff,
    /// There is no guest.
    Stopped,
    /// Waits for a migration from another cluster.
    WaitingForReceiver,
    /// None of the others.
    Unknown,
}

impl fmt::Display for PrintableStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the word depends on.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// The VM has a deletion timestamp.
    pub vm_deleting: bool,
    /// The VM's strategy, if it can be read.
    pub strategy: Option<RunStrategy>,
    /// The VM's VMI.
    pub vmi: Option<&'a VmiFacts>,
    /// The VMI is condemned: its deletion was just asked for.
    pub deletion_expected: bool,
    /// A VMI was just asked for.
    pub creation_expected: bool,
    /// A migration is in progress.
    pub migrating: bool,
    /// VMI condition Paused is True.
    pub paused: bool,
    /// Reason of VMI condition Synchronized, if that is False.
    pub sync_failure: Option<&'a str>,
    /// VMI condition PodScheduled is False for reason Unschedulable.
    pub unschedulable: bool,
    /// A DataVolume failed.
    pub data_volume_error: bool,
    /// A DataVolume is being filled.
    pub provisioning: bool,
    /// The VM should run, and a claim is not bound.
    pub waiting_for_binding: bool,
    /// `status.startFailure.consecutiveFailCount`.
    pub start_failures: i32,
}

/// The first word that fits.
#[must_use]
pub fn printable_status(f: &Facts<'_>) -> PrintableStatus {
    use PrintableStatus as P;
    let phase = f.vmi.map(|v| v.phase);
    let live = f.vmi.is_some_and(|v| !v.phase.is_final());
    let running = phase == Some(Phase::Running);
    let starting = matches!(phase, Some(Phase::Pending | Phase::Scheduling | Phase::Scheduled));
    let receiving = f.strategy == Some(RunStrategy::WaitAsReceiver);
    let rules = [
        (f.vm_deleting, P::Terminating),
        (
            live && (f.vmi.is_some_and(|v| v.deleting) || f.deletion_expected),
            P::Stopping,
        ),
        (live && f.migrating, P::Migrating),
        (running && f.paused, P::Paused),
        (running, P::Running),
        (f.sync_failure == Some("FailedPvcNotFound"), P::ErrorPvcNotFound),
        (f.data_volume_error, P::DataVolumeError),
        (live && f.unschedulable, P::ErrorUnschedulable),
        (f.provisioning, P::Provisioning),
        (f.waiting_for_binding, P::WaitingForVolumeBinding),
        (live && f.sync_failure == Some("ErrImagePull"), P::ErrImagePull),
        (live && f.sync_failure == Some("ImagePullBackOff"), P::ImagePullBackOff),
        (starting || f.creation_expected, P::Starting),
        (
            !live && f.start_failures > 0 && f.strategy.is_some_and(RunStrategy::backs_off),
            P::CrashLoopBackOff,
        ),
        (!live && !receiving, P::Stopped),
        (
            receiving && (f.vmi.is_none() || phase == Some(Phase::WaitingForSync)),
            P::WaitingForReceiver,
        ),
    ];
    rules
        .into_iter()
        .find_map(|(fits, word)| fits.then_some(word))
        .unwrap_or(P::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(phase: Phase, deleting: bool) -> VmiFacts {
        VmiFacts {
            uid: "u".into(),
            phase,
            deleting,
            was_running: false,
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "one row per word")]
    fn every_word() {
        let none = Facts {
            strategy: Some(RunStrategy::Always),
            ..Facts::default()
        };
        let pending = facts(Phase::Pending, false);
        let scheduling = facts(Phase::Scheduling, false);
        let running = facts(Phase::Running, false);
        let stopping = facts(Phase::Running, true);
        let failed = facts(Phase::Failed, false);
        let gone = facts(Phase::Succeeded, true);
        let syncing = facts(Phase::WaitingForSync, false);
        let unknown = facts(Phase::Unknown, false);
        let with = |vmi| Facts {
            vmi: Some(vmi),
            ..none.clone()
        };
        let receiver = Some(RunStrategy::WaitAsReceiver);
        for (facts, word) in [
            (
                Facts {
                    vm_deleting: true,
                    ..with(&running)
                },
                "Terminating",
            ),
            (with(&stopping), "Stopping"),
            (
                Facts {
                    deletion_expected: true,
                    ..with(&running)
                },
                "Stopping",
            ),
            (
                Facts {
                    migrating: true,
                    paused: true,
                    ..with(&running)
                },
                "Migrating",
            ),
            (
                Facts {
                    paused: true,
                    ..with(&running)
                },
                "Paused",
            ),
            (
                Facts {
                    sync_failure: Some("ErrImagePull"),
                    ..with(&running)
                },
                "Running",
            ),
            (
                Facts {
                    sync_failure: Some("FailedPvcNotFound"),
                    unschedulable: true,
                    ..with(&pending)
                },
                "ErrorPvcNotFound",
            ),
            (
                Facts {
                    data_volume_error: true,
                    ..none.clone()
                },
                "DataVolumeError",
            ),
            (
                Facts {
                    unschedulable: true,
                    ..with(&scheduling)
                },
                "ErrorUnschedulable",
            ),
            (
                Facts {
                    provisioning: true,
                    ..none.clone()
                },
                "Provisioning",
            ),
            (
                Facts {
                    waiting_for_binding: true,
                    ..with(&pending)
                },
                "WaitingForVolumeBinding",
            ),
            (
                Facts {
                    sync_failure: Some("ErrImagePull"),
                    ..with(&scheduling)
                },
                "ErrImagePull",
            ),
            (
                Facts {
                    sync_failure: Some("ImagePullBackOff"),
                    ..with(&scheduling)
                },
                "ImagePullBackOff",
            ),
            (
                Facts {
                    sync_failure: Some("FailedCreate"),
                    ..with(&pending)
                },
                "Starting",
            ),
            (with(&scheduling), "Starting"),
            (
                Facts {
                    creation_expected: true,
                    start_failures: 1,
                    ..none.clone()
                },
                "Starting",
            ),
            (
                Facts {
                    start_failures: 1,
                    ..none.clone()
                },
                "CrashLoopBackOff",
            ),
            (
                Facts {
                    start_failures: 1,
                    ..with(&failed)
                },
                "CrashLoopBackOff",
            ),
            (
                Facts {
                    start_failures: 1,
                    strategy: Some(RunStrategy::Manual),
                    ..none.clone()
                },
                "Stopped",
            ),
            (with(&failed), "Stopped"),
            (with(&gone), "Stopped"),
            (none.clone(), "Stopped"),
            (
                Facts {
                    strategy: receiver,
                    ..none.clone()
                },
                "WaitingForReceiver",
            ),
            (
                Facts {
                    strategy: receiver,
                    ..with(&syncing)
                },
                "WaitingForReceiver",
            ),
            (with(&unknown), "Unknown"),
        ] {
            assert_eq!(printable_status(&facts).as_str(), word, "{facts:?}");
        }
    }
}
