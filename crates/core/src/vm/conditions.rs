//! Conditions of a VM: its own, and those of its VMI. All are set by virt-controller.

use ferrovirt_api::v1::{VirtualMachineCondition, VirtualMachineInstance, VirtualMachineSpec, VolumeSnapshotStatus};
use jiff::Timestamp;

use crate::conditions::{self, Condition, Desired};

/// Condition type: the VMI's Ready.
pub const READY: &str = "Ready";
/// Condition type: the last reconcile failed; absent otherwise.
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
        Ok(c) => conditions::put(list, READY, c.status(), c.reason(), c.message(), now),
        Err((reason, message)) => conditions::set(list, &Desired::new(READY, false, reason, message), now),
    };
    for c in theirs.iter().filter(|c| !OWN.contains(&c.kind())) {
        conditions::put(list, c.kind(), c.status(), c.reason(), c.message(), now);
    }
    list.retain(|c| OWN.contains(&c.kind()) || conditions::find(theirs, c.kind()).is_some());
}

/// `RestartRequired`, if the VM's template is not the one that its guest was started with. Nothing of a template is
/// changed in a running guest yet, so every change counts.
#[must_use]
pub fn restart_required(started: &VirtualMachineSpec, now: &VirtualMachineSpec) -> Option<Desired> {
    let same = started.template.spec == now.template.spec
        && started.instancetype == now.instancetype
        && started.preference == now.preference;
    (!same).then(|| {
        let message = "a non-live-updatable field was changed in the template spec";
        Desired::new(RESTART_REQUIRED, true, RESTART_REQUIRED, message)
    })
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

    #[test]
    fn restarts_are_for_templates() {
        let mut started = VirtualMachineSpec::default();
        started.template.spec.get_or_insert_default().hostname = Some("a".into());
        let mut changed = started.clone();
        changed.run_strategy = Some("Manual".into());
        assert_eq!(restart_required(&started, &changed), None);
        changed.template.spec.as_mut().unwrap().hostname = Some("b".into());
        assert!(restart_required(&started, &changed).is_some());
    }
}
