//! Volumes follow their Secrets and ConfigMaps while their pod runs. A kubelet does so within a minute; here, at once.

use std::path::Path;

use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, future};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Volume};
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, ResourceExt};
use tracing::debug;

use super::Preparation;
use crate::images::ImageStore;

/// What a volume shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    Secret(String),
    ConfigMap(String),
}

fn shown(volume: &Volume) -> Option<Shown> {
    if let Some(secret) = &volume.secret {
        return secret.secret_name.clone().map(Shown::Secret);
    }
    volume.config_map.as_ref().map(|map| Shown::ConfigMap(map.name.clone()))
}

/// Whether a pod has anything to keep current.
pub(in super::super) fn any(pod: &Pod) -> bool {
    volumes(pod).any(|volume| shown(volume).is_some())
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// Writes the files of a pod's volumes again whenever what they show has changed. What goes away is still shown. Runs
/// until it is dropped.
pub(in super::super) async fn keep(client: &Client, images: &ImageStore, pod: &Pod, directory: &Path, group: u32) {
    let preparation = Preparation {
        client,
        images,
        pod,
        directory,
        group,
    };
    let namespace = pod.namespace().unwrap_or_default();
    let mut seen: Vec<Shown> = Vec::new();
    let mut changes: SelectAll<BoxStream<'static, Shown>> = SelectAll::new();
    for object in volumes(pod).filter_map(shown) {
        if seen.contains(&object) {
            continue;
        }
        seen.push(object.clone());
        changes.push(match &object {
            Shown::Secret(name) => {
                let watched = watch_object(Api::<Secret>::namespaced(client.clone(), &namespace), name);
                let changed = watched.filter(|event| future::ready(matches!(event, Ok(Some(_)))));
                changed.map(move |_| object.clone()).boxed()
            }
            Shown::ConfigMap(name) => {
                let watched = watch_object(Api::<ConfigMap>::namespaced(client.clone(), &namespace), name);
                let changed = watched.filter(|event| future::ready(matches!(event, Ok(Some(_)))));
                changed.map(move |_| object.clone()).boxed()
            }
        });
    }
    while let Some(object) = changes.next().await {
        for volume in volumes(pod).filter(|volume| shown(volume).as_ref() == Some(&object)) {
            if let Err(message) = preparation.plain(volume).await {
                debug!(
                    pod = pod.name_any(),
                    volume = volume.name,
                    message,
                    "a volume stays as it was"
                );
            }
        }
    }
}
