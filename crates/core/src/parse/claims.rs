//! `spec.volumes[].persistentVolumeClaim` and `spec.volumes[].ephemeral`.

use std::collections::BTreeMap;

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::{
    EphemeralVolumeSource, PersistentVolumeClaimInfo, PersistentVolumeClaimVolumeSource, VirtualMachineInstance,
};

use super::{Cx, on};
use crate::cause::FieldPath;
use crate::machine::{Claim, Machine, Source};

/// Images are whole mebibytes.
const ALIGN: i64 = 1 << 20;

impl Cx<'_> {
    pub(super) fn claim(&mut self, source: &PersistentVolumeClaimVolumeSource, path: &FieldPath) -> Source {
        let PersistentVolumeClaimVolumeSource {
            claim_name,
            hotpluggable,
            read_only,
        } = source;
        self.causes.none_of(path, &[("hotpluggable", on(*hotpluggable))]);
        self.object_name(claim_name, &path.child("claimName"));
        Source::Claim(Claim {
            name: claim_name.clone(),
            read_only: on(*read_only),
            ephemeral: false,
            size: None,
        })
    }

    pub(super) fn ephemeral(&mut self, source: &EphemeralVolumeSource, path: &FieldPath) -> Option<Source> {
        let EphemeralVolumeSource {
            persistent_volume_claim,
        } = source;
        let path = path.child("persistentVolumeClaim");
        let Some(claim) = persistent_volume_claim else {
            self.causes
                .required(&path, "an ephemeral volume needs the claim that it begins as");
            return None;
        };
        self.object_name(&claim.claim_name, &path.child("claimName"));
        Some(Source::Claim(Claim {
            name: claim.claim_name.clone(),
            read_only: on(claim.read_only),
            ephemeral: true,
            size: None,
        }))
    }
}

/// How large new images in claims become, and which room is taken already, by what the VMI's status tells of the claims.
pub(super) fn describe(machine: &mut Machine, vmi: &VirtualMachineInstance) {
    let volumes = vmi.status.iter().flat_map(|status| &status.volume_status);
    for volume in volumes {
        let Some(info) = &volume.persistent_volume_claim_info else {
            continue;
        };
        let disks = machine.disks.iter_mut().filter(|disk| disk.name == volume.name);
        for disk in disks {
            if let Source::Claim(claim) = &mut disk.source {
                claim.size = size(info);
                // What is written to an overlay is elsewhere.
                disk.thick = info.preallocated == Some(true) && !claim.ephemeral;
            }
        }
    }
}

/// What was asked for: there may be more, but only so much was promised.
fn size(info: &PersistentVolumeClaimInfo) -> Option<u64> {
    let amount = |map: &BTreeMap<String, Quantity>| map.get("storage")?.bytes().ok();
    let least = [amount(&info.capacity), amount(&info.requests)]
        .into_iter()
        .flatten()
        .min()?;
    u64::try_from(least / ALIGN * ALIGN).ok().filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use ferrovirt_api::v1::PersistentVolumeClaimInfo;
    use serde_json::json;

    use super::size;

    #[test]
    fn images_are_as_large_as_was_asked_for() {
        for (capacity, request, expected) in [
            (Some("2Gi"), Some("1Gi"), Some(1 << 30)),
            (Some("1Gi"), Some("2Gi"), Some(1 << 30)),
            (Some("10M"), None, Some(9 << 20)),
            (None, Some("3Mi"), Some(3 << 20)),
            (Some("1"), Some("1Gi"), None),
            (Some("-1Gi"), None, None),
            (Some("much"), None, None),
            (None, None, None),
        ] {
            let map = |amount: Option<&str>| amount.map_or_else(|| json!({}), |amount| json!({"storage": amount}));
            let info = json!({"capacity": map(capacity), "requests": map(request)});
            let info: PersistentVolumeClaimInfo = serde_json::from_value(info).unwrap();
            assert_eq!(size(&info), expected, "{capacity:?} {request:?}");
        }
    }
}
