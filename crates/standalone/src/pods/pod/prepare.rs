//! Preparing: volumes, images and network at the same time, again and again until all are there. A pod that runs
//! already is not held up by it: its volumes are prepared once more beside its supervision.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use super::super::container::{Role, group};
use super::super::network::{Attachment, NetworkError, PortMapping, Sandbox};
use super::super::status::Waiting;
use super::super::volumes::{Preparation, VolumeError, Volumes, current};
use super::{Context, PodTask};

/// A pod that is not prepared after this long says so in its status; before, it is not worth a write.
const QUIET: Duration = Duration::from_secs(1);
/// First and longest pause between pulls of an image.
const PULL_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// First and longest pause between attempts to mount a volume or to wire the network.
const MOUNT_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// How it went to prepare the volumes of a pod that runs already.
pub(super) type Prepared = Result<Volumes, VolumeError>;

impl PodTask {
    /// For a pod of which nothing runs. Returns whether everything is there; if not, the pod is to be deleted.
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

    /// Keeps volumes current until what is returned is dropped. Those of an adopted pod are prepared again before that,
    /// which [`Self::take_prepared`] is told of: once, or until it works if no record says where they are.
    pub(super) fn keep_volumes(&self, adopted: bool) -> JoinSet<()> {
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let (results, once) = (self.prepared.0.clone(), self.kept.is_some());
        let directory = context.directory(&self.uid);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if adopted {
                prepare_again(&context, &pod, once, &results).await;
            }
            if current::any(&pod) {
                current::keep(&context.client, &context.images, &pod, &directory, group(&pod)).await;
            }
        });
        tasks
    }

    /// From now on containers of an adopted pod can be started: with volumes as they should be, else as they were.
    pub(super) async fn take_prepared(&mut self, prepared: Prepared) {
        let kept = self.kept.take();
        match prepared {
            Ok(volumes) => {
                self.view.images.clone_from(&volumes.images);
                self.volumes = Some(volumes);
            }
            Err(error) => {
                warn!(
                    pod = %self.name, namespace = %self.namespace, %error,
                    "cannot prepare the volumes of a pod that runs already; it keeps those that it has"
                );
                self.volumes = kept;
                self.warn(event_of(&error), &error.to_string()).await;
            }
        }
    }

    /// Tells the user, and says how long to wait before the next attempt.
    async fn report_volume(&mut self, error: &VolumeError, failures: u32) -> Duration {
        let message = error.to_string();
        let (waiting, backoff) = match error {
            VolumeError::Mount { .. } => (Waiting::new("ContainerCreating", message), MOUNT_BACKOFF),
            VolumeError::Image(image) => {
                let again = failures > 0 && image.reason == "ErrImagePull";
                let reason = if again { "ImagePullBackOff" } else { image.reason };
                (Waiting::new(reason, message), PULL_BACKOFF)
            }
        };
        self.report(event_of(error), &waiting).await;
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

fn event_of(error: &VolumeError) -> &'static str {
    match error {
        VolumeError::Mount { .. } => "FailedMount",
        VolumeError::Image(_) => "Failed",
    }
}

/// Prepares the volumes of a pod that runs already.
async fn prepare_again(context: &Arc<Context>, pod: &Arc<Pod>, once: bool, results: &mpsc::Sender<Prepared>) {
    let mut failures = 0;
    loop {
        let (_, volumes) = attempt(Arc::clone(context), Arc::clone(pod), Vec::new(), false).await;
        let enough = once || volumes.is_ok();
        if results.send(volumes).await.is_err() || enough {
            return;
        }
        tokio::time::sleep(pause(PULL_BACKOFF, failures)).await;
        failures += 1;
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
