//! Conditions of a VM: its own, and those of its VMI. All are set by virt-controller.

use ferrovirt_api::v1::{VirtualMachineCondition, VirtualMachineInstance, VirtualMachineSpec, VolumeSnapshotStatus};
use jiff::Timestamp;

use crate::conditions::{self, Condition, Desired};
use crate::vmi::conditions::SYNCHRONIZED;

/// Condition type: the VMI's Ready.
pub const READY: &str = "Ready";
/// Condition type: the last reconcile failed, or the last start did; absent otherwise.
pub const FAILURE: &str = "Failure";
/// Condition type: the guest runs with an older template.
pub const RESTART_REQUIRED: &str = "RestartRequired";
/// Condition type: storage needs an administrator.
pub const MANUAL_RECOVERY_REQUIRED: &str = "ManualRecoveryRequired";

/// The conditions that are the VM's own; every other one mirrors the VMI's.
const OWN: [&str; 4] = [READY, FAILURE, RESTART_REQUIRED, MANUAL_RECOVERY_REQUIRED];

/// Makes a VM's list say what its VMI's says, with the VM's own conditions left alone.
pub fn mirror(list: &mut Vec<VirtualMachineCondition>, vmi: Option<&VirtualMachineInstance>, now: Timestamp) {
    let theirs = vmi
        .and_then(|v| v.status.as_ref())
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let ready = match (vmi, conditions::find(theirs, READY)) {
        (None, _) => Err(("VMINotExists", "VMI does not exist")),
        (Some(_), None) => Err(("VMIConditionMissing", "VMI is missing the Ready condition")),
        (Some(_), Some(condition)) => Ok(condition),
    };
    match ready {
        Ok(condition) => conditions::copy(list, condition),
        Err((reason, message)) => conditions::set(list, &Desired::new(READY, false, reason, message), now),
    };
    for c in theirs.iter().filter(|c| !OWN.contains(&c.kind())) {
        conditions::copy(list, c);
    }
    list.retain(|c| OWN.contains(&c.kind()) || conditions::find(theirs, c.kind()).is_some());
}

/// `RestartRequired`: see [`super::template::needs_restart`].
#[must_use]
pub fn restart_required() -> Desired {
    let message = "a non-live-updatable field was changed in the template spec";
    Desired::new(RESTART_REQUIRED, true, RESTART_REQUIRED, message)
}

/// `Failure` of a VM whose VMI ended before its guest ever ran: why, in the VMI's own words, which go with it.
#[must_use]
pub fn failed_start(vmi: &VirtualMachineInstance) -> Desired {
    let status = vmi.status.as_ref();
    let synchronized = status.and_then(|s| conditions::find(&s.conditions, SYNCHRONIZED));
    let why = synchronized
        .filter(|c| c.status() == conditions::FALSE)
        .map(Condition::message);
    let why = why.filter(|why| !why.is_empty());
    let reason = status.and_then(|s| s.reason.as_deref().or(s.phase.as_deref()));
    let reason = reason.unwrap_or_default();
    let name = vmi.metadata.name.as_deref().unwrap_or_default();
    let message = match why {
        Some(why) => format!("virtual machine instance {name} ended before its guest ran: {why}"),
        None => format!("virtual machine instance {name} ended before its guest ran"),
    };
    Desired::new(FAILURE, true, reason, message)
}

/// `status.volumeSnapshotStatuses`. None of the volume sources that are built can be snapshotted.
#[must_use]
pub fn volume_snapshot_statuses(spec: &VirtualMachineSpec) -> Vec<VolumeSnapshotStatus> {
    let volumes = spec.template.spec.iter().flat_map(|s| &s.volumes);
    volumes
        .map(|volume| VolumeSnapshotStatus {
            enabled: false,
            name: volume.name.clone(),
            reason: Some(format!(
                "Snapshot is not supported for this volumeSource type [{}]",
                volume.name
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vmi(entries: &[(&str, bool, &str)]) -> VirtualMachineInstance {
        let mut vmi = VirtualMachineInstance::default();
        let list = &mut vmi.status.get_or_insert_default().conditions;
        for (kind, status, reason) in entries {
            conditions::set(list, &Desired::new(kind, *status, *reason, ""), Timestamp::UNIX_EPOCH);
        }
        vmi
    }

    fn reasons(list: &[VirtualMachineCondition]) -> Vec<(&str, &str, &str)> {
        list.iter().map(|c| (c.kind(), c.status(), c.reason())).collect()
    }

    #[test]
    fn mirrors() {
        let now = Timestamp::UNIX_EPOCH;
        let mut list = Vec::new();
        conditions::set(&mut list, &Desired::new(RESTART_REQUIRED, true, "", ""), now);
        mirror(&mut list, None, now);
        assert_eq!(
            reasons(&list),
            [(RESTART_REQUIRED, "True", ""), (READY, "False", "VMINotExists")]
        );
        mirror(&mut list, Some(&vmi(&[("Paused", true, "PausedByUser")])), now);
        let expected = [
            (RESTART_REQUIRED, "True", ""),
            (READY, "False", "VMIConditionMissing"),
            ("Paused", "True", "PausedByUser"),
        ];
        assert_eq!(reasons(&list), expected);
        mirror(&mut list, Some(&vmi(&[(READY, true, "")])), now);
        assert_eq!(reasons(&list), [(RESTART_REQUIRED, "True", ""), (READY, "True", "")]);
    }

    #[test]
    fn what_is_mirrored_changed_when_it_did_and_not_when_it_was_seen() {
        let mut source = vmi(&[("Paused", true, "PausedByUser"), (READY, false, "GuestPaused")]);
        let later = Timestamp::from_second(60).unwrap();
        let mut list = Vec::new();
        mirror(&mut list, None, later);
        mirror(&mut list, Some(&source), later);
        let times = |list: &[VirtualMachineCondition]| -> Vec<i64> {
            let times = list.iter().filter_map(Condition::transition);
            times.map(|time| time.0.as_second()).collect()
        };
        assert_eq!(times(&list), [0, 0]);
        let theirs = &mut source.status.as_mut().unwrap().conditions;
        conditions::set(
            theirs,
            &Desired::new(READY, true, "", ""),
            Timestamp::from_second(30).unwrap(),
        );
        mirror(&mut list, Some(&source), later);
        assert_eq!(times(&list), [30, 0]);
    }

    #[test]
    fn a_start_that_failed_is_told_of_in_the_vmis_words() {
        for (entries, reason, expected) in [
            (
                &[(SYNCHRONIZED, false, "Synchronizing with the Domain failed.")][..],
                Some("GuestStartFailed"),
                (
                    "GuestStartFailed",
                    "virtual machine instance x ended before its guest ran",
                ),
            ),
            (
                &[],
                None,
                ("Failed", "virtual machine instance x ended before its guest ran"),
            ),
        ] {
            let mut vmi = vmi(entries);
            vmi.metadata.name = Some("x".to_owned());
            let status = vmi.status.as_mut().unwrap();
            (status.phase, status.reason) = (Some("Failed".to_owned()), reason.map(str::to_owned));
            let desired = failed_start(&vmi);
            assert_eq!((desired.reason.as_str(), desired.message.as_str()), expected);
            let list = &mut vmi.status.as_mut().unwrap().conditions;
            let told = Desired::new(SYNCHRONIZED, false, "r", "no such disk");
            conditions::set(list, &told, Timestamp::UNIX_EPOCH);
            assert!(failed_start(&vmi).message.ends_with("ran: no such disk"));
        }
    }

    proptest! {
        #[test]
        fn mirroring_is_idempotent(entries in proptest::collection::vec((0..5usize, any::<bool>(), "[ab]"), 0..6)) {
            let kinds = ["Ready", "Paused", "AgentConnected", "Synchronized", "Failure"];
            let entries: Vec<(&str, bool, &str)> =
                entries.iter().map(|(k, s, r)| (kinds[*k], *s, r.as_str())).collect();
            let source = vmi(&entries);
            let mut list = Vec::new();
            mirror(&mut list, Some(&source), Timestamp::UNIX_EPOCH);
            let first = list.clone();
            mirror(&mut list, Some(&source), Timestamp::from_second(60).unwrap());
            prop_assert_eq!(first, list);
        }
    }
}
