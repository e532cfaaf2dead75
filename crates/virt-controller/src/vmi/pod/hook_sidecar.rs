//! Hook sidecars: containers of the user's images or scripts, and of the administrator's plugins for network bindings, that
//! the launcher asks before it defines the guest. They start before the guest's container and end with it, and have nothing
//! of the pod but the directory of their own socket.

use ferrovirt_core::cause::{Cause, CauseReason};
use ferrovirt_core::machine::{HookScript, HookSidecar, Machine};
use ferrovirt_core::names;
use ferrovirt_protocol::paths;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EnvVar, PersistentVolumeClaimVolumeSource, ResourceRequirements, Volume,
    VolumeMount,
};

use super::storage::{Storage, annotation, empty_dir, mount};
use super::{quantities, security};
use crate::Options;

/// Readable and executable for all.
const SCRIPT_MODE: i32 = 0o755;

fn container_name(index: usize) -> String {
    format!("{}{index}", paths::HOOK_SIDECAR)
}

fn script_volume(index: usize) -> String {
    format!("{}-script", container_name(index))
}

fn claim_volume(index: usize) -> String {
    format!("{}-claim", container_name(index))
}

/// Adds the volumes that they need, and what the guest's container has of them.
pub(super) fn add_volumes(machine: &Machine, storage: &mut Storage) {
    if machine.hook_sidecars.is_empty() {
        return;
    }
    storage.volumes.push(empty_dir(paths::HOOKS_VOLUME));
    storage.mounts.push(mount(paths::HOOKS_VOLUME, paths::HOOKS_DIR));
    if machine.hook_sidecars.iter().any(|sidecar| sidecar.device_info) {
        storage.volumes.push(annotation(
            paths::NETWORK_INFO_VOLUME,
            names::NETWORK_INFO_ANNOTATION,
            paths::NETWORK_INFO,
        ));
    }
    for (i, sidecar) in machine.hook_sidecars.iter().enumerate() {
        if let Some(script) = &sidecar.script {
            storage.volumes.push(Volume {
                config_map: Some(ConfigMapVolumeSource {
                    default_mode: Some(SCRIPT_MODE),
                    name: script.config_map.clone(),
                    ..ConfigMapVolumeSource::default()
                }),
                name: script_volume(i),
                ..Volume::default()
            });
        }
        if let Some(claim) = &sidecar.claim {
            storage.volumes.push(Volume {
                name: claim_volume(i),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.name.clone(),
                    read_only: None,
                }),
                ..Volume::default()
            });
            let shared = claim.shared_path.as_deref();
            storage.mounts.extend(shared.map(|path| mount(&claim_volume(i), path)));
        }
    }
}

/// The containers, in order.
///
/// # Errors
/// One has no image, and no image came with the installation.
pub(super) fn containers(machine: &Machine, options: &Options) -> Result<Vec<Container>, Cause> {
    let guaranteed = machine.guaranteed;
    let sidecars = machine.hook_sidecars.iter().enumerate();
    let sidecars = sidecars.map(|(i, sidecar)| {
        let image = sidecar.image.as_ref().or(options.sidecar_shim_image.as_ref());
        let image = image.ok_or_else(|| Cause {
            reason: CauseReason::FieldValueRequired,
            field: format!("metadata.annotations[hooks.kubevirt.io/hookSidecars][{i}].image"),
            message: "the hook sidecar has no image, and none came with this installation: name one, or start \
                      virt-controller with --sidecar-shim-image"
                .to_owned(),
        })?;
        Ok(container(i, sidecar, image, guaranteed))
    });
    sidecars.collect()
}

fn container(index: usize, sidecar: &HookSidecar, image: &str, guaranteed: bool) -> Container {
    let HookSidecar {
        image: _,
        pull_policy,
        command,
        args,
        script,
        device_info,
        claim,
    } = sidecar;
    let name = container_name(index);
    let mut mounts = vec![VolumeMount {
        sub_path: Some(name.clone()),
        ..mount(paths::HOOKS_VOLUME, paths::HOOKS_DIR)
    }];
    mounts.extend(script.as_ref().map(
        |HookScript {
             config_map: _,
             key,
             path,
         }| VolumeMount {
            read_only: Some(true),
            sub_path: Some(key.clone()),
            ..mount(&script_volume(index), path)
        },
    ));
    mounts.extend(claim.as_ref().map(|claim| mount(&claim_volume(index), &claim.path)));
    mounts.extend(device_info.then(|| VolumeMount {
        read_only: Some(true),
        ..mount(paths::NETWORK_INFO_VOLUME, paths::POD_INFO_DIR)
    }));
    Container {
        args: (!args.is_empty()).then(|| args.clone()),
        command: (!command.is_empty()).then(|| command.clone()),
        env: Some(vec![EnvVar {
            name: "CONTAINER_NAME".to_owned(),
            value: Some(name.clone()),
            value_from: None,
        }]),
        image: Some(image.to_owned()),
        image_pull_policy: pull_policy.clone(),
        name,
        // What a pod has to say of which all is guaranteed; in others it is the namespace's business.
        resources: guaranteed.then(|| ResourceRequirements {
            claims: None,
            limits: Some(quantities(&[("cpu", "200m"), ("memory", "64M")])),
            requests: None,
        }),
        // Ends with the guest's container, and its end is not the pod's.
        restart_policy: Some("Always".to_owned()),
        security_context: Some(k8s_openapi::api::core::v1::SecurityContext {
            // It is not our image: we cannot know where it writes.
            read_only_root_filesystem: None,
            ..security(&[])
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}
