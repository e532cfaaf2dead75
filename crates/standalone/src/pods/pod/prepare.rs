//! Preparing: volumes, images and network at the same time, again and again until all are there.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::time::Instant;

use super::super::container::{Role, group};
use super::super::network::{Attachment, NetworkError, PortMapping, Sandbox};
use super::super::status::Waiting;
use super::super::volumes::{Preparation, VolumeError, Volumes};
use super::{Context, PodTask};

/// A pod that is not prepared after this long says so in its status; before, it is not worth a write.
const QUIET: Duration = Duration::from_secs(1);
/// First and longest pause between pulls of an image.
const PULL_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// First and longest pause between attempts to mount a volume or to wire the network.
const MOUNT_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

impl PodTask {
    /// Returns whether everything is there; if not, the pod is to be deleted.
    pub(super) async fn prepare(&mut self) -> bool {
        let announce_at = Instant::now() + QUIET;
        let mut announced = self.view.started_at.is_some();
        self.view.started_at.get_or_insert_with(Timestamp::now);
        let mut failures = 0;
        while self.network.is_none() || self.volumes.is_none() {
            let attempt = attempt(
                Arc::clone(&self.context),
                Arc::clone(&self.pod),
                self.ports.clone(),
                self.network.is_none(),
            );
            let mut attempt = std::pin::pin!(attempt);
            let (network, volumes) = loop {
                tokio::select! {
                    outcome = &mut attempt => break outcome,
                    () = self.wait_for_deletion() => return false,
                    () = tokio::time::sleep_until(announce_at), if !announced => {
                        announced = true;
                        self.publish().await;
                    }
                }
            };
            if let Some(Ok(attachment)) = &network {
                self.view.ips.clone_from(&attachment.ips);
                self.network = Some(attachment.clone());
            }
            let pause = match (network, volumes) {
                (None | Some(Ok(_)), Ok(volumes)) => {
                    self.view.images.clone_from(&volumes.images);
                    self.volumes = Some(volumes);
                    break;
                }
                (_, Err(error)) => self.report_volume(&error, failures).await,
                (Some(Err(error)), Ok(_)) => self.report_network(&error, failures).await,
            };
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wait_for_deletion() => return false,
            }
        }
        for view in self.view.containers.values_mut() {
            view.waiting = None;
        }
        !self.deletion_is_asked()
    }

    /// Tells the user, and says how long to wait before the next attempt.
    async fn report_volume(&mut self, error: &VolumeError, failures: u32) -> Duration {
        let message = error.to_string();
        let (event, waiting, backoff) = match error {
            VolumeError::Mount { .. } => ("FailedMount", Waiting::new("ContainerCreating", message), MOUNT_BACKOFF),
            VolumeError::Image(image) => {
                let again = failures > 0 && image.reason == "ErrImagePull";
                let reason = if again { "ImagePullBackOff" } else { image.reason };
                ("Failed", Waiting::new(reason, message), PULL_BACKOFF)
            }
        };
        self.report(event, &waiting).await;
        pause(backoff, failures)
    }

    async fn report_network(&mut self, error: &NetworkError, failures: u32) -> Duration {
        let message = format!(
            "Failed to create pod sandbox: {}",
            ferrovirt_runtime::logs::chain(error)
        );
        self.report("FailedCreatePodSandBox", &Waiting::new("ContainerCreating", message))
            .await;
        pause(MOUNT_BACKOFF, failures)
    }

    async fn report(&mut self, event: &str, waiting: &Waiting) {
        self.wait_with(Role::Main, waiting);
        self.publish().await;
        self.warn(event, &waiting.message).await;
    }
}

fn pause((first, longest): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(longest)
}

/// One attempt; owns all it needs, so that the task can do other things meanwhile.
async fn attempt(
    context: Arc<Context>,
    pod: Arc<Pod>,
    ports: Vec<PortMapping>,
    network_wanted: bool,
) -> (Option<Result<Attachment, NetworkError>>, Result<Volumes, VolumeError>) {
    let uid = pod.uid().unwrap_or_default();
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let network = async {
        if !network_wanted {
            return None;
        }
        let sandbox = Sandbox {
            uid: &uid,
            namespace: &namespace,
            name: &name,
            ports: &ports,
        };
        Some(context.config.network.attach(&sandbox).await)
    };
    let directory = context.directory(&uid);
    let volumes = Preparation {
        client: &context.client,
        images: &context.images,
        pod: &pod,
        directory: &directory,
        group: group(&pod),
    };
    let (network, volumes, _) = tokio::join!(network, volumes.run(), context.config.kvm_works());
    (network, volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit() {
        let seconds: Vec<u64> = (0..7).map(|failures| pause(PULL_BACKOFF, failures).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(pause(MOUNT_BACKOFF, u32::MAX), MOUNT_BACKOFF.1);
    }
}
