//! Whether containerDisks become image volumes of their pods.
//!
//! It takes all of an API server that keeps such volumes (from 1.35, unless somebody turned it off), kubelets that serve
//! them, and container runtimes that can. Where one lacks, a container of the disk's image stands in, which works
//! everywhere and costs a container per disk.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Node, Pod, PodSpec, Volume};
use kube::Client;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How containerDisks come into launcher pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerDisks {
    /// As image volumes.
    ImageVolumes,
    /// Held by containers of their images.
    Helper,
}

/// What became of an image volume that the API server was asked to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is one.
    Kept,
    /// It was taken for something else, or refused.
    Dropped,
    /// Something else came in between.
    Unknown,
}

/// A node's kubelet and container runtime, as the node names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeVersions {
    /// Such as `v1.35.1`.
    pub kubelet: String,
    /// Such as `containerd://2.1.4`.
    pub runtime: String,
}

/// Kubernetes' minor version from which image volumes are on unless somebody turns them off …
const ON_BY_DEFAULT: u32 = 35;
/// … and from which nobody can.
const ALWAYS_ON: u32 = 36;
/// Container runtimes that are known to have been without them, and their first version with them.
const RUNTIMES: [(&str, Option<(u32, u32)>); 3] =
    [("containerd", Some((2, 1))), ("cri-o", Some((1, 31))), ("docker", None)];
/// How often it is asked whether the API server is still the same.
const AGAIN: Duration = Duration::from_secs(600);
/// Least time between decisions.
const PAUSE: Duration = Duration::from_secs(10);
/// Nodes per request.
const PAGE: u32 = 100;
const PROBE: &str = "image-volume-probe";

/// Decides. `server` is the API server's minor version; nodes are those of the whole cluster.
#[must_use]
pub fn decide(server: Option<u32>, answer: Answer, nodes: &[NodeVersions]) -> ContainerDisks {
    let kept = match answer {
        Answer::Kept => true,
        Answer::Dropped => false,
        Answer::Unknown => server.is_some_and(|minor| minor >= ALWAYS_ON),
    };
    if kept && nodes.iter().all(|node| has_image_volumes(node, server)) {
        ContainerDisks::ImageVolumes
    } else {
        ContainerDisks::Helper
    }
}

fn has_image_volumes(node: &NodeVersions, server: Option<u32>) -> bool {
    let kubelet = version(node.kubelet.trim_start_matches('v')).map(|(_, minor)| minor);
    // Who turned them on in an API server that has them off has done so for its kubelets.
    let enough = ON_BY_DEFAULT.min(server.unwrap_or(ON_BY_DEFAULT));
    let kubelet = kubelet.is_none_or(|minor| minor >= enough);
    let runtime = node.runtime.split_once("://").is_none_or(|(name, found)| {
        let known = RUNTIMES.iter().find(|(known, _)| *known == name);
        known.is_none_or(|(_, first)| first.is_some_and(|first| version(found).is_none_or(|found| found >= first)))
    });
    kubelet && runtime
}

/// Major and minor version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, digits(parts.next()?)?))
}

/// Some clouds' minor versions end in a plus sign.
fn digits(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// A pod with an image volume that any namespace admits. It is never stored.
fn probe() -> Pod {
    let security = serde_json::json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true, "runAsUser": 107,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    Pod {
        metadata: ObjectMeta {
            name: Some(PROBE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container {
                name: PROBE.to_owned(),
                image: Some(PROBE.to_owned()),
                security_context: serde_json::from_value(security).ok(),
                ..Container::default()
            }],
            volumes: Some(vec![Volume {
                name: PROBE.to_owned(),
                image: Some(ImageVolumeSource {
                    pull_policy: None,
                    reference: Some(PROBE.to_owned()),
                }),
                ..Volume::default()
            }]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// What the API server says to [`probe`]. One without image volumes takes it for a volume without a kind.
fn judge(answer: Result<Pod, kube::Error>) -> Answer {
    match answer {
        Ok(pod) => {
            let mut volumes = pod.spec.into_iter().filter_map(|spec| spec.volumes).flatten();
            if volumes.any(|volume| volume.image.is_some()) {
                Answer::Kept
            } else {
                Answer::Dropped
            }
        }
        Err(kube::Error::Api(status)) if status.code == 422 => Answer::Dropped,
        Err(error) => {
            tracing::info!(%error, "the API server does not say whether it has image volumes");
            Answer::Unknown
        }
    }
}

/// What the decision is based on.
async fn look(client: &Client, server: Option<u32>) -> Result<ContainerDisks, kube::Error> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let answer = judge(pods.create(&dry_run, &probe()).await);
    let mut nodes = Vec::new();
    let api: Api<Node> = Api::all(client.clone());
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list(&page).await?;
        let next = list.metadata.continue_.clone().filter(|token| !token.is_empty());
        nodes.extend(list.into_iter().filter_map(|node| {
            let info = node.status?.node_info?;
            Some(NodeVersions {
                kubelet: info.kubelet_version,
                runtime: info.container_runtime_version,
            })
        }));
        match next {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(decide(server, answer, &nodes)),
        }
    }
}

/// Decides at once and again when the API server's version has changed, or when `doubt` is notified: somebody was
/// refused what was decided. Runs until `shutdown`.
pub async fn follow(
    client: Client,
    decision: watch::Sender<Option<ContainerDisks>>,
    doubt: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let work = async {
        let mut known = None;
        let mut doubted = false;
        loop {
            match client.apiserver_version().await {
                Ok(version) if doubted || known.as_deref() != Some(version.git_version.as_str()) => {
                    match look(&client, digits(&version.minor)).await {
                        Ok(way) => {
                            known = Some(version.git_version);
                            tracing::info!(?way, server = known, "how containerDisks come into pods");
                            decision.send_if_modified(|old| old.replace(way) != Some(way));
                        }
                        Err(error) => tracing::warn!(%error, "cannot find out whether there are image volumes"),
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "cannot read the API server's version"),
            }
            tokio::time::sleep(PAUSE).await;
            let wait = if known.is_some() { AGAIN } else { Duration::ZERO };
            doubted = tokio::select! {
                () = tokio::time::sleep(wait) => false,
                () = doubt.notified() => true,
            };
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_the_cluster_must_have_them() {
        use Answer::{Dropped, Kept, Unknown};
        let new = ("v1.36.2", "containerd://2.1.4");
        for (server, answer, nodes, image_volumes) in [
            (Some(36), Kept, &[new][..], true),
            (Some(36), Kept, &[], true),
            (Some(36), Dropped, &[new], false),
            (Some(36), Unknown, &[new], true),
            (Some(35), Unknown, &[new], false),
            (None, Unknown, &[new], false),
            (None, Kept, &[new], true),
            (Some(32), Dropped, &[("v1.32.0", "containerd://1.7.27")], false),
            // Turned on by hand.
            (Some(33), Kept, &[("v1.33.1+k3s1", "containerd://2.1.0")], true),
            // Kubelets that are older than their API server.
            (Some(35), Kept, &[new, ("v1.34.9", "containerd://2.1.0")], false),
            (Some(35), Kept, &[("v1.35.0", "containerd://1.7.29")], false),
            (Some(35), Kept, &[("v1.35.0", "containerd://2.0.5")], false),
            (Some(35), Kept, &[("v1.35.0", "containerd://10.0.0-rc.1")], true),
            (Some(35), Kept, &[("v1.35.0", "cri-o://1.30.2")], false),
            (Some(35), Kept, &[("v1.35.0", "cri-o://1.35.0")], true),
            (Some(35), Kept, &[("v1.35.0", "docker://29.0.1")], false),
            (Some(35), Kept, &[("v1.35.0", "another://0.1")], true),
            (Some(35), Kept, &[("", "")], true),
        ] {
            let nodes: Vec<_> = nodes
                .iter()
                .map(|&(kubelet, runtime)| NodeVersions {
                    kubelet: kubelet.to_owned(),
                    runtime: runtime.to_owned(),
                })
                .collect();
            let want = if image_volumes {
                ContainerDisks::ImageVolumes
            } else {
                ContainerDisks::Helper
            };
            assert_eq!(decide(server, answer, &nodes), want, "{server:?} {answer:?} {nodes:?}");
        }
    }

    #[test]
    fn the_api_servers_answer_is_judged() {
        assert_eq!(judge(Ok(probe())), Answer::Kept);
        let mut other = probe();
        for volume in other.spec.as_mut().unwrap().volumes.iter_mut().flatten() {
            volume.image = None;
        }
        assert_eq!(judge(Ok(other)), Answer::Dropped);
        for (code, answer) in [(422, Answer::Dropped), (403, Answer::Unknown), (500, Answer::Unknown)] {
            let status = kube::core::Status {
                code,
                ..kube::core::Status::default()
            };
            assert_eq!(judge(Err(kube::Error::Api(Box::new(status)))), answer, "{code}");
        }
    }

    #[test]
    fn minor_versions_are_read() {
        assert_eq!(digits("35+"), Some(35));
        assert_eq!(digits(""), None);
    }
}
