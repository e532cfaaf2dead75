//! Phases of a VMI: who decides them, and how.
//!
//! ```text
//!              pod is slow or in trouble        pod is up               guest runs
//!   Pending ──────────────────────► Scheduling ─────────► Scheduled ─────────────► Running
//!      │ └───────────── pod is up at once ──────────────────▲ │                       │
//!      │                                │                     │                       ├─► Succeeded  guest shut down
//!      └────────────────────────────────┴─────────────────────┴───────────────────────┴─► Failed     anything else
//!   ◄──────────── virt-controller decides ─────────────► ◄──── virt-handler decides ────►
//! ```
//!
//! virt-handler owns the phase from Scheduled on, because it sees the guest. virt-controller then only ends a VMI whose
//! pod is gone, or whose pod has ended and which the handler has not ended within a while (the node may be dead).
//! A phase never goes back, and final phases never change.

use std::fmt;

use ferrovirt_api::v1::VirtualMachineInstance;

/// `status.phase` of a VMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing exists yet but the object.
    Pending,
    /// Its pod exists.
    Scheduling,
    /// Its pod is up on a node; the node agent takes over.
    Scheduled,
    /// The guest runs (or is paused).
    Running,
    /// The guest shut down.
    Succeeded,
    /// It ended in any other way.
    Failed,
    /// Waits for a migration from another cluster.
    WaitingForSync,
    /// Its node cannot be reached.
    Unknown,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Scheduling,
        Self::Scheduled,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::WaitingForSync,
        Self::Unknown,
    ];

    /// The phase of a VMI; without a status it is Pending.
    #[must_use]
    pub fn of(vmi: &VirtualMachineInstance) -> Self {
        let text = vmi.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if text.is_empty() {
            return Self::Pending;
        }
        Self::ALL
            .into_iter()
            .find(|p| p.as_str() == text)
            .unwrap_or(Self::Unknown)
    }

    /// Wire form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Scheduling => "Scheduling",
            Self::Scheduled => "Scheduled",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::WaitingForSync => "WaitingForSync",
            Self::Unknown => "Unknown",
        }
    }

    /// Succeeded or Failed.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    /// Who decides what follows this phase.
    #[must_use]
    pub fn owner(self) -> Owner {
        match self {
            Self::Pending | Self::Scheduling | Self::WaitingForSync => Owner::Controller,
            Self::Scheduled | Self::Running | Self::Unknown => Owner::Handler,
            Self::Succeeded | Self::Failed => Owner::Nobody,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who decides the next phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// virt-controller.
    Controller,
    /// virt-handler of the VMI's node.
    Handler,
    /// The phase is final.
    Nobody,
}

/// What virt-controller sees of a VMI's pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodView {
    /// There is no pod object.
    Absent,
    /// It is not up yet; `telling`: it takes long or reports trouble, so that users should see `Scheduling`.
    Starting {
        /// Worth a write.
        telling: bool,
    },
    /// All that must run before the guest can start runs.
    Up,
    /// It is being deleted, but has not ended.
    Terminating,
    /// Its containers have ended.
    Ended {
        /// Other than with success.
        failed: bool,
        /// The node agent had its chance to say how the guest ended.
        settled: bool,
    },
}

/// What virt-handler sees of a VMI's guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestView {
    /// Not started yet, or being prepared.
    Starting,
    /// Running, blocked, suspended or paused.
    Running,
    /// It shut itself down, or was saved.
    ShutDown,
    /// It was stopped the hard way; `acpi`: although it could have been asked.
    Destroyed {
        /// ACPI is on.
        acpi: bool,
    },
    /// It moved to another node.
    Migrated,
    /// It crashed or panicked.
    Crashed,
    /// It could not be started.
    StartFailed,
    /// Its launcher is dead.
    LauncherGone,
}

/// What a process sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// By virt-controller.
    Pod {
        /// The active pod.
        pod: PodView,
        /// The VMI is being deleted.
        deleting: bool,
    },
    /// By virt-handler of the VMI's node.
    Guest(GuestView),
}

/// `status.reason` when a VMI is deleted before it had a pod.
pub const REASON_DELETED: &str = "Deleted";
/// `status.reason` when the pod's object is gone.
pub const REASON_POD_GONE: &str = "PodDisappeared";
/// `status.reason` when the pod ended before the guest did.
pub const REASON_POD_ENDED: &str = "PodTerminated";
/// `status.reason` when the guest crashed.
pub const REASON_CRASHED: &str = "GuestCrashed";
/// `status.reason` when the guest could not be started.
pub const REASON_START_FAILED: &str = "GuestStartFailed";
/// `status.reason` when the launcher died.
pub const REASON_LAUNCHER_GONE: &str = "LauncherDied";
/// `status.reason` when the guest did not stop in its grace period.
pub const REASON_DESTROYED: &str = "GuestDestroyed";

/// The next phase and `status.reason` of the VMI, or `None` while it stays as it is.
///
/// Guarantees: never leaves a final phase, never goes back, and only [`Phase::owner`] moves a VMI, except that
/// virt-controller ends what virt-handler cannot.
#[must_use]
pub fn next_phase(current: Phase, seen: Seen) -> Option<(Phase, Option<&'static str>)> {
    match seen {
        Seen::Pod { pod, deleting } => next_by_pod(current, pod, deleting),
        Seen::Guest(guest) => next_by_guest(current, guest),
    }
}

fn next_by_pod(current: Phase, pod: PodView, deleting: bool) -> Option<(Phase, Option<&'static str>)> {
    let failed = |reason| Some((Phase::Failed, Some(reason)));
    match (current, pod) {
        (Phase::Succeeded | Phase::Failed, _) => None,
        (Phase::Pending | Phase::WaitingForSync, PodView::Absent) if deleting => failed(REASON_DELETED),
        (Phase::Pending | Phase::WaitingForSync, PodView::Absent) => None,
        (_, PodView::Absent) => failed(REASON_POD_GONE),
        (Phase::Pending, PodView::Starting { telling: true }) => Some((Phase::Scheduling, None)),
        (_, PodView::Starting { .. }) => None,
        (Phase::Pending | Phase::Scheduling, PodView::Up) => Some((Phase::Scheduled, None)),
        (Phase::WaitingForSync | Phase::Scheduled | Phase::Running | Phase::Unknown, PodView::Up) => None,
        (Phase::Pending | Phase::Scheduling, PodView::Terminating | PodView::Ended { .. }) => failed(REASON_POD_ENDED),
        (_, PodView::Terminating | PodView::Ended { settled: false, .. }) => None,
        (Phase::Running, PodView::Ended { failed: false, .. }) => Some((Phase::Succeeded, None)),
        (_, PodView::Ended { .. }) => failed(REASON_POD_ENDED),
    }
}

fn next_by_guest(current: Phase, guest: GuestView) -> Option<(Phase, Option<&'static str>)> {
    let failed = |reason| Some((Phase::Failed, Some(reason)));
    match (current.owner(), guest) {
        (Owner::Controller | Owner::Nobody, _) => None,
        (Owner::Handler, GuestView::Starting | GuestView::Migrated) => None,
        (Owner::Handler, GuestView::Running) => (current != Phase::Running).then_some((Phase::Running, None)),
        (Owner::Handler, GuestView::ShutDown | GuestView::Destroyed { acpi: false }) => Some((Phase::Succeeded, None)),
        (Owner::Handler, GuestView::Destroyed { acpi: true }) => failed(REASON_DESTROYED),
        (Owner::Handler, GuestView::Crashed) => failed(REASON_CRASHED),
        (Owner::Handler, GuestView::StartFailed) => failed(REASON_START_FAILED),
        (Owner::Handler, GuestView::LauncherGone) => failed(REASON_LAUNCHER_GONE),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rank(phase: Phase) -> u8 {
        match phase {
            Phase::Pending | Phase::WaitingForSync => 0,
            Phase::Scheduling => 1,
            Phase::Scheduled => 2,
            Phase::Unknown => 3,
            Phase::Running => 4,
            Phase::Succeeded | Phase::Failed => 5,
        }
    }

    fn seen() -> impl Strategy<Value = Seen> {
        let pod = prop_oneof![
            Just(PodView::Absent),
            any::<bool>().prop_map(|telling| PodView::Starting { telling }),
            Just(PodView::Up),
            Just(PodView::Terminating),
            any::<(bool, bool)>().prop_map(|(failed, settled)| PodView::Ended { failed, settled }),
        ];
        let guest = prop_oneof![
            Just(GuestView::Starting),
            Just(GuestView::Running),
            Just(GuestView::ShutDown),
            any::<bool>().prop_map(|acpi| GuestView::Destroyed { acpi }),
            Just(GuestView::Migrated),
            Just(GuestView::Crashed),
            Just(GuestView::StartFailed),
            Just(GuestView::LauncherGone),
        ];
        prop_oneof![
            (pod, any::<bool>()).prop_map(|(pod, deleting)| Seen::Pod { pod, deleting }),
            guest.prop_map(Seen::Guest),
        ]
    }

    proptest! {
        #[test]
        fn phases_only_go_forward(start in 0..8usize, views in proptest::collection::vec(seen(), 0..20)) {
            let mut phase = Phase::ALL[start];
            for seen in views {
                let Some((next, reason)) = next_phase(phase, seen) else { continue };
                prop_assert!(rank(next) > rank(phase), "{phase} -> {next} by {seen:?}");
                prop_assert!(!phase.is_final());
                prop_assert_eq!(reason.is_some(), next == Phase::Failed);
                if matches!(seen, Seen::Guest(_)) {
                    prop_assert_eq!(phase.owner(), Owner::Handler);
                } else if phase.owner() == Owner::Handler {
                    prop_assert!(next.is_final());
                }
                phase = next;
            }
        }
    }

    #[test]
    fn the_way_of_a_vmi() {
        let pod = |pod| Seen::Pod { pod, deleting: false };
        for (phase, seen, expected) in [
            (Phase::Pending, pod(PodView::Absent), None),
            (Phase::Pending, pod(PodView::Starting { telling: false }), None),
            (
                Phase::Pending,
                pod(PodView::Starting { telling: true }),
                Some(Phase::Scheduling),
            ),
            (Phase::Pending, pod(PodView::Up), Some(Phase::Scheduled)),
            (Phase::Scheduling, pod(PodView::Absent), Some(Phase::Failed)),
            (Phase::Scheduled, Seen::Guest(GuestView::Running), Some(Phase::Running)),
            (Phase::Scheduling, Seen::Guest(GuestView::Running), None),
            (Phase::Running, pod(PodView::Absent), Some(Phase::Failed)),
            (Phase::Running, pod(PodView::Terminating), None),
            (
                Phase::Running,
                pod(PodView::Ended {
                    failed: true,
                    settled: false,
                }),
                None,
            ),
            (
                Phase::Running,
                pod(PodView::Ended {
                    failed: true,
                    settled: true,
                }),
                Some(Phase::Failed),
            ),
            (
                Phase::Running,
                pod(PodView::Ended {
                    failed: false,
                    settled: true,
                }),
                Some(Phase::Succeeded),
            ),
            (
                Phase::Scheduled,
                pod(PodView::Ended {
                    failed: false,
                    settled: true,
                }),
                Some(Phase::Failed),
            ),
            (Phase::Running, Seen::Guest(GuestView::ShutDown), Some(Phase::Succeeded)),
            (
                Phase::Running,
                Seen::Guest(GuestView::Destroyed { acpi: true }),
                Some(Phase::Failed),
            ),
            (
                Phase::Running,
                Seen::Guest(GuestView::Destroyed { acpi: false }),
                Some(Phase::Succeeded),
            ),
            (
                Phase::Pending,
                Seen::Pod {
                    pod: PodView::Absent,
                    deleting: true,
                },
                Some(Phase::Failed),
            ),
            (Phase::Succeeded, pod(PodView::Absent), None),
        ] {
            assert_eq!(next_phase(phase, seen).map(|(p, _)| p), expected, "{phase} {seen:?}");
        }
    }
}
