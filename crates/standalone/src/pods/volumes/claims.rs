//! Volumes that are PersistentVolumeClaims.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource,
};
use kube::Api;

use super::{Preparation, Source, host_path};

/// What a group gets of a volume that it may write to, and keeps of what is made in it.
const GROUP_MODE: u32 = 0o2070;

impl Preparation<'_> {
    /// The directory of the volume that a claim is bound to.
    pub(super) async fn claim(&self, source: &PersistentVolumeClaimVolumeSource) -> Result<Source, String> {
        let name = &source.claim_name;
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &self.namespace());
        let claim = claims.get_opt(name).await;
        let claim = claim.map_err(|error| format!("cannot read persistentvolumeclaim \"{name}\": {error}"))?;
        let claim = claim.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
        let volume = bound(&claim).ok_or_else(|| format!("persistentvolumeclaim \"{name}\" is not bound"))?;
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let found = volumes.get_opt(&volume).await;
        let found = found.map_err(|error| format!("cannot read persistentvolume \"{volume}\": {error}"))?;
        let found = found.ok_or_else(|| format!("persistentvolume \"{volume}\" not found"))?;
        let path = directory(&found)?;
        let read_only = source.read_only == Some(true);
        if !read_only {
            share(&path, self.group).map_err(|error| format!("cannot give {} to the pod: {error}", path.display()))?;
        }
        Ok(Source { path, read_only })
    }
}

/// The volume of a claim that is bound.
fn bound(claim: &PersistentVolumeClaim) -> Option<String> {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    volume.filter(|name| phase == Some("Bound") && !name.is_empty())
}

fn directory(volume: &PersistentVolume) -> Result<PathBuf, String> {
    let spec = volume.spec.clone().unwrap_or_default();
    let host = match (spec.local, spec.host_path) {
        (Some(local), _) => HostPathVolumeSource {
            path: local.path,
            type_: Some("Directory".to_owned()),
        },
        (None, Some(host)) => host,
        (None, None) => return Err("only local and hostPath volumes are supported on one machine".to_owned()),
    };
    host_path(&host)
}

/// As a kubelet does for the pod's fsGroup.
fn share(path: &Path, group: u32) -> io::Result<()> {
    let found = fs::metadata(path)?;
    if found.gid() != group {
        chown(path, None, Some(group))?;
    }
    let mode = found.mode() & 0o7777;
    if mode & GROUP_MODE != GROUP_MODE {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | GROUP_MODE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_bound_has_a_volume() {
        for (phase, volume, expected) in [
            ("Bound", "pv", Some("pv")),
            ("Bound", "", None),
            ("Pending", "pv", None),
            ("Lost", "pv", None),
        ] {
            let claim = json!({"metadata": {}, "spec": {"volumeName": volume}, "status": {"phase": phase}});
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            assert_eq!(bound(&claim).as_deref(), expected);
        }
    }

    #[test]
    fn directories_of_this_machine_are_volumes() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().to_str().unwrap();
        let missing = here.path().join("missing");
        for (source, fits) in [
            (json!({"local": {"path": path}}), true),
            (json!({"hostPath": {"path": path}}), true),
            (json!({"local": {"path": missing}}), false),
            (json!({"nfs": {"server": "s", "path": "/"}}), false),
        ] {
            let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {}, "spec": source})).unwrap();
            assert_eq!(directory(&volume).is_ok(), fits, "{source}");
        }
        let group = fs::metadata(path).unwrap().gid();
        share(here.path(), group).unwrap();
        assert_eq!(fs::metadata(path).unwrap().mode() & GROUP_MODE, GROUP_MODE);
    }
}
