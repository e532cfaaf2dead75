//! What a session does next: a pure decision over all that it knows.
//!
//! ```text
//!   pod bound        launcher there      VMI Scheduled, KVM known           guest ends
//!  ────────► Waiting ─────────► Prepare ──────────────────► Sync ─► follow ─────────────► final phase, parked
//!                                  (network, before the VMI is even Scheduled)
//!  VMI deleted: Stop(grace), again when the grace period became shorter.
//!  Launcher dead or not to be trusted: the VMI fails with a reason. What would keep a guest from being started does
//!  nothing to one that was.
//! ```

use std::time::{Duration, Instant};

use ferrovirt_api::v1::{PersistentVolumeClaimInfo, VirtualMachineInstance, VirtualMachineInstanceStatus};
use ferrovirt_core::vmi::Phase;
use ferrovirt_core::vmi::phase::Owner;
use ferrovirt_protocol::launcher::Lifecycle;

/// Facts about the guest that need not be told at once are collected this long …
const COLLECT: Duration = Duration::from_millis(300);
/// … and told at most this often.
const SPACING: Duration = Duration::from_secs(1);

/// The pod's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Not prepared yet.
    Missing,
    /// Prepared.
    Ready,
}

/// A change of the VMI's status that waits to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Somebody may be waiting for it: the phase, a pause, an error.
    pub(crate) urgent: bool,
    /// When it was first seen.
    pub(crate) since: Instant,
}

/// All that a session knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed {
    pub(crate) now: Instant,
    /// Of the VMI.
    pub(crate) phase: Phase,
    /// The VMI is being deleted, with so many seconds for the guest to shut down.
    pub(crate) deleting: Option<u64>,
    /// There is a connection to the launcher.
    pub(crate) connected: bool,
    pub(crate) network: Network,
    /// What the launcher says of its guest.
    pub(crate) lifecycle: Option<Lifecycle>,
    /// The launcher has accepted the VMI as it is now.
    pub(crate) synced: bool,
    /// The guest's owner attests it, and has sent no session yet.
    pub(crate) awaits_session: bool,
    /// The node knows whether it has KVM.
    pub(crate) kvm_known: bool,
    /// The guest was asked to stop, with so many seconds.
    pub(crate) asked: Option<u64>,
    /// It can never be started here.
    pub(crate) hopeless: bool,
    pub(crate) pending: Option<Pending>,
    pub(crate) last_write: Option<Instant>,
    /// A step failed; none is tried before this.
    pub(crate) retry_at: Option<Instant>,
    /// A write failed; none is tried before this.
    pub(crate) write_at: Option<Instant>,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write the pending status.
    Write,
    /// Prepare the pod's network.
    Prepare,
    /// Send the VMI to the launcher.
    Sync,
    /// Ask the guest to stop within so many seconds; 0: at once.
    Stop(u64),
    /// Wait for news, at most until then.
    Wait(Option<Instant>),
}

/// Decides.
pub(crate) fn next(o: &Observed) -> Step {
    let later = |at: Option<Instant>| at.filter(|at| *at > o.now);
    if o.pending.is_some_and(|pending| pending.urgent) && later(o.write_at).is_none() {
        return Step::Write;
    }
    let mut wake = None;
    match (act(o), later(o.retry_at)) {
        (Some(step), None) => return step,
        (Some(_), retry) => wake = retry,
        (None, _) => {}
    }
    if let Some(pending) = o.pending {
        let spaced = o.last_write.map_or(pending.since, |at| at + SPACING);
        let due = if pending.urgent {
            pending.since
        } else {
            (pending.since + COLLECT).max(spaced)
        };
        let due = due.max(o.write_at.unwrap_or(due));
        if due <= o.now {
            return Step::Write;
        }
        wake = wake.into_iter().chain([due]).min();
    }
    Step::Wait(wake)
}

/// Whether a guest was started. What would keep another from being started is no reason to end this one.
pub(crate) fn begun(phase: Phase, lifecycle: Option<Lifecycle>) -> bool {
    let launched = matches!(
        lifecycle,
        Some(Lifecycle::Preparing | Lifecycle::Running | Lifecycle::Paused | Lifecycle::ShuttingDown)
    );
    phase == Phase::Running || launched
}

/// Whether a step that failed with the old VMI may do better with the new one: something differs that others write. What
/// this agent writes does not count, its own words about the failure among it.
pub(crate) fn may_help(old: &VirtualMachineInstance, new: &VirtualMachineInstance) -> bool {
    let (was, is) = (&old.metadata, &new.metadata);
    let metadata =
        was.deletion_timestamp != is.deletion_timestamp || was.labels != is.labels || was.annotations != is.annotations;
    let none = VirtualMachineInstanceStatus::default();
    let (was, is) = (
        old.status.as_ref().unwrap_or(&none),
        new.status.as_ref().unwrap_or(&none),
    );
    let status = was.phase != is.phase
        || was.active_pods != is.active_pods
        || was.device_status != is.device_status
        || was.vsockcid != is.vsockcid
        || !claims(was).eq(claims(is));
    metadata || status || old.spec != new.spec
}

/// What is known of the claims of a VMI.
fn claims(status: &VirtualMachineInstanceStatus) -> impl Iterator<Item = &PersistentVolumeClaimInfo> {
    let volumes = status.volume_status.iter();
    volumes.filter_map(|volume| volume.persistent_volume_claim_info.as_ref())
}

/// Whether a watched object is newer than the one that is held; a write's answer may be ahead of the watch.
pub(crate) fn is_newer(new: &VirtualMachineInstance, old: &VirtualMachineInstance) -> bool {
    let version = |vmi: &VirtualMachineInstance| {
        vmi.metadata
            .resource_version
            .as_deref()
            .and_then(|v| v.parse::<u64>().ok())
    };
    match (version(new), version(old)) {
        (Some(new), Some(old)) => new > old,
        _ => true,
    }
}

fn act(o: &Observed) -> Option<Step> {
    if !o.connected || o.phase.is_final() {
        return None;
    }
    if let Some(grace) = o.deleting {
        let alive = match o.lifecycle {
            Some(Lifecycle::Preparing | Lifecycle::Running | Lifecycle::Paused | Lifecycle::ShuttingDown) => true,
            // Nothing to stop: the end of the pod ends the launcher.
            None | Some(Lifecycle::Unspecified | Lifecycle::Waiting) => false,
            Some(Lifecycle::ShutOff | Lifecycle::Crashed | Lifecycle::Failed) => false,
        };
        return (alive && o.asked.is_none_or(|asked| grace < asked)).then_some(Step::Stop(grace));
    }
    if o.hopeless {
        return None;
    }
    if o.network == Network::Missing {
        return Some(Step::Prepare);
    }
    let final_state = matches!(
        o.lifecycle,
        Some(Lifecycle::ShutOff | Lifecycle::Crashed | Lifecycle::Failed)
    );
    // What the launcher says comes right after the connection; before it, nobody knows whether the guest was started.
    let may_start = o.phase.owner() == Owner::Handler && o.kvm_known && !o.awaits_session && o.lifecycle.is_some();
    (may_start && !o.synced && !final_state).then_some(Step::Sync)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ready(now: Instant) -> Observed {
        Observed {
            now,
            phase: Phase::Scheduled,
            deleting: None,
            connected: true,
            network: Network::Ready,
            lifecycle: Some(Lifecycle::Waiting),
            synced: false,
            awaits_session: false,
            kvm_known: true,
            asked: None,
            hopeless: false,
            pending: None,
            last_write: None,
            retry_at: None,
            write_at: None,
        }
    }

    #[test]
    fn the_way_to_a_running_guest() {
        let o = ready(Instant::now());
        let missing = Network::Missing;
        for (observed, expected) in [
            (Observed { connected: false, ..o }, Step::Wait(None)),
            (
                Observed {
                    network: missing,
                    phase: Phase::Pending,
                    ..o
                },
                Step::Prepare,
            ),
            (
                Observed {
                    network: missing,
                    phase: Phase::Pending,
                    kvm_known: false,
                    ..o
                },
                Step::Prepare,
            ),
            (
                Observed {
                    phase: Phase::Scheduling,
                    ..o
                },
                Step::Wait(None),
            ),
            (Observed { kvm_known: false, ..o }, Step::Wait(None)),
            (Observed { lifecycle: None, ..o }, Step::Wait(None)),
            (
                Observed {
                    awaits_session: true,
                    ..o
                },
                Step::Wait(None),
            ),
            (
                Observed {
                    awaits_session: true,
                    network: missing,
                    ..o
                },
                Step::Prepare,
            ),
            (o, Step::Sync),
            (Observed { synced: true, ..o }, Step::Wait(None)),
            (
                Observed {
                    phase: Phase::Running,
                    lifecycle: Some(Lifecycle::Running),
                    ..o
                },
                Step::Sync,
            ),
            (
                Observed {
                    lifecycle: Some(Lifecycle::Failed),
                    ..o
                },
                Step::Wait(None),
            ),
            (
                Observed {
                    phase: Phase::Succeeded,
                    network: missing,
                    ..o
                },
                Step::Wait(None),
            ),
            (Observed { hopeless: true, ..o }, Step::Wait(None)),
        ] {
            assert_eq!(next(&observed), expected, "{observed:?}");
        }
    }

    #[test]
    fn when_a_guest_was_started() {
        for (phase, lifecycle, expected) in [
            (Phase::Scheduled, None, false),
            (Phase::Scheduled, Some(Lifecycle::Waiting), false),
            (Phase::Scheduled, Some(Lifecycle::Preparing), true),
            (Phase::Scheduled, Some(Lifecycle::Running), true),
            (Phase::Scheduled, Some(Lifecycle::Failed), false),
            (Phase::Running, None, true),
            (Phase::Running, Some(Lifecycle::Paused), true),
        ] {
            assert_eq!(begun(phase, lifecycle), expected, "{phase:?} {lifecycle:?}");
        }
    }

    #[test]
    fn only_what_others_write_ends_a_pause() {
        let old = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {"domain": {"devices": {}}},
            "status": {"phase": "Scheduled", "activePods": {"u": "n"}, "volumeStatus": [{"name": "root", "target": ""}]},
        });
        let parse = |vmi: &Value| serde_json::from_value::<VirtualMachineInstance>(vmi.clone()).unwrap();
        let trouble = json!([{"type": "Synchronized", "status": "False", "message": "no tap"}]);
        let claim = json!([{"name": "root", "target": "", "persistentVolumeClaimInfo": {"claimName": "c"}}]);
        for (path, value, expected) in [
            ("/metadata/resourceVersion", json!("8"), false),
            ("/metadata/generation", json!(2), false),
            ("/metadata/labels", json!({"a": "c"}), true),
            ("/metadata/annotations", json!({"a": ""}), true),
            ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"), true),
            ("/spec/domain", json!({"devices": {}, "memory": {"guest": "1Gi"}}), true),
            ("/status/phase", json!("Running"), true),
            ("/status/activePods", json!({"u": "n", "v": "n"}), true),
            ("/status/VSOCKCID", json!(3), true),
            ("/status/volumeStatus", claim, true),
            (
                "/status/volumeStatus",
                json!([{"name": "root", "target": "vda", "size": 5}]),
                false,
            ),
            ("/status/conditions", trouble, false),
            ("/status/interfaces", json!([{"name": "default"}]), false),
            ("/status/guestOSInfo", json!({"id": "debian"}), false),
        ] {
            let mut new = old.clone();
            let (parent, field) = path.rsplit_once('/').unwrap();
            new.pointer_mut(parent).unwrap()[field] = value;
            assert_ne!(parse(&old), parse(&new), "{path} is read");
            assert_eq!(may_help(&parse(&old), &parse(&new)), expected, "{path}");
        }
        assert!(!may_help(&parse(&old), &parse(&old)));
    }

    #[test]
    fn deleting_asks_once_and_again_only_for_less_time() {
        let running = Observed {
            phase: Phase::Running,
            lifecycle: Some(Lifecycle::Running),
            deleting: Some(30),
            ..ready(Instant::now())
        };
        for (observed, expected) in [
            (running, Step::Stop(30)),
            (
                Observed {
                    asked: Some(30),
                    ..running
                },
                Step::Wait(None),
            ),
            (
                Observed {
                    asked: Some(30),
                    deleting: Some(1),
                    ..running
                },
                Step::Stop(1),
            ),
            (
                Observed {
                    asked: Some(1),
                    ..running
                },
                Step::Wait(None),
            ),
            (
                Observed {
                    deleting: Some(0),
                    ..running
                },
                Step::Stop(0),
            ),
            (
                Observed {
                    lifecycle: Some(Lifecycle::Preparing),
                    ..running
                },
                Step::Stop(30),
            ),
            (
                Observed {
                    lifecycle: Some(Lifecycle::Waiting),
                    ..running
                },
                Step::Wait(None),
            ),
            (
                Observed {
                    lifecycle: Some(Lifecycle::ShutOff),
                    ..running
                },
                Step::Wait(None),
            ),
        ] {
            assert_eq!(next(&observed), expected, "{observed:?}");
        }
    }

    #[test]
    fn writes_are_urgent_or_collected_and_spaced() {
        let now = Instant::now();
        let o = Observed {
            synced: true,
            ..ready(now)
        };
        let quiet = |since| Some(Pending { urgent: false, since });
        let urgent = Some(Pending {
            urgent: true,
            since: now,
        });
        let ago = |ms| now.checked_sub(Duration::from_millis(ms)).unwrap();
        let later = now + SPACING;
        for (observed, expected) in [
            (
                Observed {
                    pending: urgent,
                    last_write: Some(now),
                    ..o
                },
                Step::Write,
            ),
            (
                Observed {
                    pending: quiet(now),
                    ..o
                },
                Step::Wait(Some(now + COLLECT)),
            ),
            (
                Observed {
                    pending: quiet(ago(300)),
                    ..o
                },
                Step::Write,
            ),
            (
                Observed {
                    pending: quiet(ago(300)),
                    last_write: Some(ago(600)),
                    ..o
                },
                Step::Wait(Some(ago(600) + SPACING)),
            ),
            (
                Observed {
                    pending: quiet(ago(300)),
                    last_write: Some(ago(1000)),
                    ..o
                },
                Step::Write,
            ),
            (
                Observed {
                    pending: quiet(ago(300)),
                    write_at: Some(later),
                    ..o
                },
                Step::Wait(Some(later)),
            ),
            (
                Observed {
                    pending: urgent,
                    write_at: Some(later),
                    ..o
                },
                Step::Wait(Some(later)),
            ),
        ] {
            assert_eq!(next(&observed), expected, "{observed:?}");
        }
    }

    #[test]
    fn a_pause_after_a_failed_step_holds_back_neither_news_nor_in_the_end_the_step() {
        let now = Instant::now();
        let o = ready(now);
        let urgent = Some(Pending {
            urgent: true,
            since: now,
        });
        let later = Some(now + SPACING);
        for (observed, expected) in [
            (
                Observed {
                    pending: urgent,
                    retry_at: later,
                    ..o
                },
                Step::Write,
            ),
            (Observed { retry_at: later, ..o }, Step::Wait(later)),
            (
                Observed {
                    retry_at: now.checked_sub(SPACING),
                    ..o
                },
                Step::Sync,
            ),
        ] {
            assert_eq!(next(&observed), expected, "{observed:?}");
        }
    }
}
