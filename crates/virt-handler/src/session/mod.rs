//! One VMI on this node: from its pod to its end.
//!
//! A session gathers what it knows ([`plan::Observed`]), decides one step ([`plan::next`]) and applies it, until
//! there is nothing to do but wait. It owns nothing that could be lost: killed at any point, the next session of the
//! same VMI finds the prepared network, the launcher and the guest as they are.

pub(crate) mod container;
pub(crate) mod launcher;
pub(crate) mod limits;
pub(crate) mod link;
pub(crate) mod peer;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod settings;
pub(crate) mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrovirt_api::v1::{VirtualMachineInstance, VirtualMachineInstanceSpec};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::machine::Machine;
use ferrovirt_core::vmi::{Phase, attestation};
use ferrovirt_protocol::launcher::{ActRequest, Action, GuestState, Lifecycle, Nic, NodeFacts, SyncRequest};
use ferrovirt_runtime::logs::chain;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::capabilities::Capabilities;
use crate::events::{self, Note};
use crate::kvm::Verdict;
use crate::network::{self, Wanted};
use crate::registry::{Inputs, PodFacts};
use crate::streams::Guests;
use crate::{Options, Reported};
use crate::{containerdisk, hostdisk};
use limits::Limits;
use link::LinkView;
use plan::{Network, Observed, Pending, Step};
use status::{Change, Gone, Guard, View};

/// Longest wait for an answer of a launcher; it accepts at once and reports through Watch.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the pod of a launcher that was never met may take to say how it ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a pod's volumes are awaited.
const DELIVERY: Duration = Duration::from_secs(600);
/// So many failures in a row of preparing the network end the VMI.
const NETWORK_TRIES: u32 = 5;

/// What all sessions share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) options: Options,
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) kvm: watch::Receiver<Option<Verdict>>,
    pub(crate) guests: Guests,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("cannot prepare the pod's network")]
    Network(#[from] network::Error),
    #[error("the VirtualMachineInstance cannot be understood: {0}")]
    Invalid(String),
    #[error("virt-launcher refused: {0}")]
    Launcher(String),
    #[error("virt-launcher did not answer within {CALL_TIMEOUT:?}")]
    Timeout,
    #[error("the connection to virt-launcher is gone")]
    Disconnected,
    #[error("cannot write the status")]
    Api(#[from] kube::Error),
    #[error("the API server refused the status: {0}")]
    Contended(Box<kube::core::Status>),
    #[error("cannot give the launcher its devices")]
    Devices(#[source] container::Error),
    #[error(transparent)]
    ContainerDisk(#[from] containerdisk::Error),
    #[error("cannot encode the VirtualMachineInstance")]
    Encode(#[from] serde_json::Error),
}

/// What a failed step means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// Nobody needs to hear of it.
    Passing,
    /// Users are told, and it is tried again.
    Trouble,
    /// The guest will never start.
    Final,
}

impl StepError {
    /// `begun`: the guest was started; `failures`: so many steps in a row have failed.
    fn weight(&self, begun: bool, failures: u32) -> Weight {
        match self {
            Self::Disconnected | Self::Api(_) | Self::Contended(_) => Weight::Passing,
            Self::Invalid(_) if !begun => Weight::Final,
            Self::Network(_) if !begun && failures >= NETWORK_TRIES => Weight::Final,
            Self::Invalid(_)
            | Self::Network(_)
            | Self::Launcher(_)
            | Self::Timeout
            | Self::Devices(_)
            | Self::ContainerDisk(_)
            | Self::Encode(_) => Weight::Trouble,
        }
    }
}

impl From<tonic::Status> for StepError {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::Cancelled => Self::Disconnected,
            _ => Self::Launcher(status.message().to_owned()),
        }
    }
}

/// A session's memory.
pub(crate) struct Session {
    context: Arc<Context>,
    inputs: watch::Receiver<Inputs>,
    kvm: watch::Receiver<Option<Verdict>>,
    link: watch::Receiver<LinkView>,
    /// Of the pod that `link` belongs to.
    linked_pod: Option<String>,
    link_task: Option<JoinHandle<()>>,
    vmi: Option<Arc<VirtualMachineInstance>>,
    /// As it was last heard of.
    pod: Option<PodFacts>,
    nics: Option<Vec<Nic>>,
    synced: Option<VirtualMachineInstanceSpec>,
    asked: Option<u64>,
    change: Option<(Change, Instant)>,
    last_write: Option<Instant>,
    gone_since: Option<Instant>,
    trouble: Option<String>,
    hopeless: Option<String>,
    failures: u32,
    retry_at: Option<Instant>,
    write_failures: u32,
    write_at: Option<Instant>,
    guard: Guard,
    /// The failure that was told of last, while it lasts.
    told: Option<Note>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = &self.link_task {
            task.abort();
        }
    }
}

impl Session {
    pub(crate) fn new(context: Arc<Context>, inputs: watch::Receiver<Inputs>) -> Self {
        let (_, link) = watch::channel(LinkView::default());
        Self {
            kvm: context.kvm.clone(),
            context,
            inputs,
            link,
            linked_pod: None,
            link_task: None,
            vmi: None,
            pod: None,
            nics: None,
            synced: None,
            asked: None,
            change: None,
            last_write: None,
            gone_since: None,
            trouble: None,
            hopeless: None,
            failures: 0,
            retry_at: None,
            write_failures: 0,
            write_at: None,
            guard: Guard::Fields,
            told: None,
        }
    }

    /// Runs until the registry drops it. Cancel safe.
    pub(crate) async fn run(mut self) {
        loop {
            self.gather();
            let Some(vmi) = self.vmi.clone() else {
                // The watch brings it as soon as it is labelled; who has a launcher before that need not wait.
                let again = if self.link.borrow().launcher.is_some() {
                    self.fetch().await
                } else {
                    None
                };
                self.wait(again).await;
                continue;
            };
            let step = plan::next(&self.observe(&vmi));
            let result = match step {
                Step::Wait(until) => {
                    self.wait(until.into_iter().chain(self.last_words_end()).min()).await;
                    continue;
                }
                Step::Prepare => self.prepare(&vmi).await,
                Step::Sync => self.sync(&vmi).await,
                Step::Stop(grace) => self.stop(&vmi, grace).await,
                Step::Write => self.write(&vmi).await,
            };
            self.settle(&vmi, step, result);
        }
    }

    /// Reads the VMI of a launcher that came before the VMI was labelled. Returns when to try again, if ever.
    async fn fetch(&mut self) -> Option<Instant> {
        let pod = self.inputs.borrow().pod.clone()?;
        let vmis: Api<VirtualMachineInstance> = Api::namespaced(self.context.client.clone(), &pod.namespace);
        match vmis.get_opt(&pod.vmi_name).await {
            Ok(Some(vmi)) if vmi.metadata.uid.as_ref() == Some(&pod.vmi_uid) => {
                self.hold(Arc::new(vmi));
                Some(Instant::now())
            }
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(vmi = pod.vmi_name, %error, "cannot read a VirtualMachineInstance");
                Some(Instant::now() + Duration::from_secs(1))
            }
        }
    }

    /// Takes in what is new.
    fn gather(&mut self) {
        let inputs = self.inputs.borrow_and_update().clone();
        self.kvm.borrow_and_update();
        if let Some(vmi) = inputs.vmi
            && self.vmi.as_ref().is_none_or(|old| plan::is_newer(&vmi, old))
        {
            self.hold(vmi);
        }
        if self.pod != inputs.pod {
            self.pod = inputs.pod.clone();
            self.retry_at = None;
        }
        let active = |uid: &str| {
            let pods = self
                .vmi
                .as_ref()
                .and_then(|vmi| vmi.status.as_ref())
                .map(|status| &status.active_pods);
            pods.is_none_or(|pods| pods.is_empty() || pods.contains_key(uid))
        };
        if let Some(pod) = &inputs.pod
            && self.linked_pod.as_deref() != Some(&pod.uid)
            && active(&pod.uid)
        {
            let address = link::Address {
                pods_dir: self.context.options.pods_dir.clone(),
                pod_uid: pod.uid.clone(),
                user: self.context.options.launcher_user,
            };
            let (sender, receiver) = watch::channel(LinkView::default());
            self.link = receiver;
            if let Some(old) = self.link_task.replace(tokio::spawn(link::run(address, sender))) {
                old.abort();
            }
            self.deliver_capabilities(&pod.uid);
            self.linked_pod = Some(pod.uid.clone());
            (self.nics, self.synced, self.asked, self.gone_since) = (None, None, None, None);
            self.retry_at = None;
        }
        let link = self.link.borrow_and_update().clone();
        if link.gone && self.gone_since.is_none() {
            self.gone_since = Some(Instant::now());
        }
        if let (Some(why), None) = (&link.rejected, &self.hopeless) {
            self.hopeless = Some(why.clone());
        }
        if let (Some(vmi), Some(pod)) = (&self.vmi, &self.linked_pod) {
            self.context.guests.publish(vmi, pod, link.launcher.as_ref());
        }
    }

    /// Takes a VMI in. A step that failed is tried at once if it may do better with this one.
    fn hold(&mut self, vmi: Arc<VirtualMachineInstance>) {
        if self.vmi.as_ref().is_none_or(|old| plan::may_help(old, &vmi)) {
            self.retry_at = None;
        }
        self.vmi = Some(vmi);
    }

    /// In the background: the pod's volumes may not be there yet.
    fn deliver_capabilities(&self, pod_uid: &str) {
        let (context, pod_uid) = (Arc::clone(&self.context), pod_uid.to_owned());
        tokio::spawn(async move {
            if let Some(capabilities) = &context.capabilities {
                let options = &context.options;
                let delivery = capabilities.deliver(&options.pods_dir, &pod_uid, options.launcher_user);
                // A pod that comes to nothing never gets its volumes.
                let _ = tokio::time::timeout(DELIVERY, delivery).await;
            }
        });
    }

    fn observe(&mut self, vmi: &Arc<VirtualMachineInstance>) -> Observed {
        let now = Instant::now();
        let link = self.link.borrow().clone();
        let pod = self.inputs.borrow().pod.clone();
        let pod_ended = pod.as_ref().and_then(|pod| pod.ended);
        let unused = vmi.metadata.deletion_timestamp.is_some()
            && link
                .guest
                .as_ref()
                .is_none_or(|guest| guest.lifecycle() == Lifecycle::Waiting);
        let gone = match (pod_ended, self.gone_since) {
            _ if link.launcher.is_some() => None,
            (Some(Reported::Succeeded), _) => Some(Gone::Clean),
            (Some(Reported::Failed), _) => Some(Gone::Dead),
            (None, Some(_)) if link.met => Some(Gone::Dead),
            (None, Some(since)) if now >= since + LAST_WORDS => Some(Gone::Dead),
            (None, _) => None,
        };
        // A VMI that is deleted before its guest was wanted loses nothing with its launcher.
        let gone = gone.map(|gone| if unused { Gone::Clean } else { gone });
        let config = Arc::clone(&self.context.options.config.borrow());
        let view = View {
            config: Some(&config),
            guest: link.guest.as_ref(),
            gone,
            nics: self.nics.as_deref(),
            multus: pod.as_ref().map(|pod| &pod.network_status),
            trouble: self.trouble.as_deref(),
            hopeless: self.hopeless.as_deref(),
        };
        let since = self.change.as_ref().map_or(now, |(_, since)| *since);
        self.change = status::change(vmi, &view, jiff::Timestamp::now()).map(|change| (change, since));
        let grace = vmi.spec.termination_grace_period_seconds.unwrap_or(30);
        Observed {
            now,
            phase: Phase::of(vmi),
            deleting: vmi
                .metadata
                .deletion_timestamp
                .as_ref()
                .map(|_| u64::try_from(grace).unwrap_or(0)),
            connected: link.launcher.is_some(),
            network: if self.nics.is_some() {
                Network::Ready
            } else {
                Network::Missing
            },
            lifecycle: link.guest.as_ref().map(GuestState::lifecycle),
            synced: self.synced.as_ref() == Some(&vmi.spec),
            awaits_session: attestation::awaits_session(vmi),
            kvm_known: self.kvm.borrow().is_some(),
            asked: self.asked,
            hopeless: self.hopeless.is_some(),
            pending: self.change.as_ref().map(|(change, since)| Pending {
                urgent: change.urgent,
                since: *since,
            }),
            last_write: self.last_write,
            retry_at: self.retry_at,
            write_at: self.write_at,
        }
    }

    /// When a launcher that was never met counts as dead.
    fn last_words_end(&self) -> Option<Instant> {
        self.gone_since
            .map(|since| since + LAST_WORDS)
            .filter(|at| *at > Instant::now())
    }

    async fn wait(&mut self, until: Option<Instant>) {
        let timer = async {
            match until {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        // A sender that is gone has nothing more to say; the others wake the session.
        async fn changed<T>(receiver: &mut watch::Receiver<T>) {
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        tokio::select! {
            () = timer => {}
            () = changed(&mut self.inputs) => {}
            () = changed(&mut self.kvm) => {}
            () = changed(&mut self.link) => {}
        }
    }

    async fn prepare(&mut self, vmi: &VirtualMachineInstance) -> Result<(), StepError> {
        let launcher = self.link.borrow().launcher.clone().ok_or(StepError::Disconnected)?;
        let options = &self.context.options;
        let mut dns = launcher.dns.clone();
        if dns.servers.is_empty() {
            dns = options.dns.clone();
        }
        let pod = self.inputs.borrow().pod.clone();
        let pod = pod.filter(|pod| self.linked_pod.as_ref() == Some(&pod.uid));
        let attachments = pod.map(|pod| pod.attachments).unwrap_or_default();
        let wanted = Wanted::of(vmi, &attachments, options.launcher_user, dns).map_err(|causes| {
            StepError::Invalid(causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?;
        let record = options.network_record(self.linked_pod.as_deref().unwrap_or_default());
        self.nics = Some(network::prepare(&launcher.namespace, wanted, record).await?);
        Ok(())
    }

    async fn sync(&mut self, vmi: &VirtualMachineInstance) -> Result<(), StepError> {
        let mut launcher = self.link.borrow().launcher.clone().ok_or(StepError::Disconnected)?;
        let root = launcher.root().map_err(|_| StepError::Disconnected)?;
        let user = self.context.options.launcher_user;
        // A pod that asked for no KVM has none, whatever the node can do.
        let given = container::hand_over(&root, user).map_err(StepError::Devices)?;
        let kvm = self.kvm.borrow().clone();
        let usable = given.kvm && kvm.as_ref().is_some_and(|verdict| verdict.usable);
        let (allow_emulation, cluster) = {
            let config = self.context.options.config.borrow();
            (config.use_emulation, settings::of(&config))
        };
        if !usable && !allow_emulation && !self.begun(vmi) {
            let why = kvm.map(|verdict| verdict.why).unwrap_or_default();
            self.hopeless = Some(format!(
                "This node cannot run guests with KVM ({why}); set \
                 spec.configuration.developerConfiguration.useEmulation of the KubeVirt object, or use another node"
            ));
            return Ok(());
        }
        // A failure here is not the end: the launcher says in its own words what it cannot open.
        if let Err(error) = hostdisk::prepare(vmi, &root, user) {
            tracing::warn!(error = chain(&error), "hostDisk");
        }
        drop(root);
        // Nor is this: libvirt names what it was not allowed to do.
        if let Ok(machine) = Machine::parse(vmi, &ClusterConfig::permissive())
            && let Err(error) = Limits::of(&machine).give(&launcher)
        {
            tracing::warn!(error = chain(&error), "limits of the launcher");
        }
        let pod = self.inputs.borrow().pod.clone();
        if let Some(pod) = pod.filter(|pod| pod.holds_container_disks && self.linked_pod.as_ref() == Some(&pod.uid)) {
            let pods_dir = &self.context.options.pods_dir;
            let uid = &pod.uid;
            containerdisk::mount(vmi, containerdisk::Pod { pods_dir, uid, user }, &launcher).await?;
        }
        let request = SyncRequest {
            vmi: serde_json::to_vec(vmi)?,
            node: Some(NodeFacts {
                kvm: usable,
                allow_emulation,
                nics: self.nics.clone().unwrap_or_default(),
                cluster: Some(cluster),
            }),
        };
        call(launcher.client.sync(request)).await?;
        self.synced = Some(vmi.spec.clone());
        Ok(())
    }

    /// See [`plan::begun`].
    fn begun(&self, vmi: &VirtualMachineInstance) -> bool {
        let lifecycle = self.link.borrow().guest.as_ref().map(GuestState::lifecycle);
        plan::begun(Phase::of(vmi), lifecycle)
    }

    async fn stop(&mut self, vmi: &VirtualMachineInstance, grace: u64) -> Result<(), StepError> {
        let mut launcher = self.link.borrow().launcher.clone().ok_or(StepError::Disconnected)?;
        let action = if grace == 0 { Action::Kill } else { Action::Shutdown };
        call(launcher.client.act(ActRequest {
            action: action.into(),
            grace_seconds: grace,
            thaw_seconds: 0,
        }))
        .await?;
        if let Some(note) = events::asked_to_end(self.asked.is_none(), grace) {
            self.tell(vmi, note);
        }
        self.asked = Some(grace);
        Ok(())
    }

    async fn write(&mut self, vmi: &VirtualMachineInstance) -> Result<(), StepError> {
        let Some((change, _)) = self.change.take() else {
            return Ok(());
        };
        let namespace = vmi.metadata.namespace.as_deref().unwrap_or_default();
        let name = vmi.metadata.name.as_deref().unwrap_or_default();
        let vmis: Api<VirtualMachineInstance> = Api::namespaced(self.context.client.clone(), namespace);
        let patch = Patch::<()>::Json(serde_json::from_value(status::patch(vmi, &change.status, self.guard)?)?);
        match vmis.patch_status(name, &PatchParams::default(), &patch).await {
            Ok(new) => {
                self.hold(Arc::new(new));
                self.guard = Guard::Fields;
                self.last_write = Some(Instant::now());
                for note in change.notes {
                    self.tell(vmi, note);
                }
                Ok(())
            }
            // Somebody else was faster, or a field is not stored as we write it: look, then go by the version.
            Err(kube::Error::Api(status)) if matches!(status.code, 409 | 422) => {
                let strict = std::mem::replace(&mut self.guard, Guard::Version) == Guard::Version;
                let new = vmis.get(name).await?;
                if new.metadata.uid == vmi.metadata.uid {
                    self.hold(Arc::new(new));
                }
                if strict {
                    Err(StepError::Contended(status))
                } else {
                    Ok(())
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Decides what a step's result means for the next.
    fn settle(&mut self, vmi: &VirtualMachineInstance, step: Step, result: Result<(), StepError>) {
        let (failures, at) = if step == Step::Write {
            (&mut self.write_failures, &mut self.write_at)
        } else {
            (&mut self.failures, &mut self.retry_at)
        };
        let Err(error) = result else {
            (*failures, *at) = (0, None);
            if step != Step::Write {
                (self.trouble, self.told) = (None, None);
            }
            return;
        };
        *failures += 1;
        *at = Some(Instant::now() + Duration::from_millis(200) * 2u32.saturating_pow((*failures).min(7)));
        // It may hold a launcher's words.
        let text = report::text(chain(&error), report::MAX_MESSAGE);
        tracing::warn!(vmi = %label(vmi), ?step, failures = *failures, "{text}");
        match error.weight(self.begun(vmi), self.failures) {
            Weight::Passing => {}
            Weight::Final => self.hopeless = Some(text),
            Weight::Trouble => {
                self.tell(vmi, Note::warning(events::SYNC_FAILED, text.clone()));
                self.trouble = Some(text);
            }
        }
    }

    /// Emits an event. One of a failure that lasts is emitted only once; every other tells of something that happened.
    fn tell(&mut self, vmi: &VirtualMachineInstance, note: Note) {
        if !is_news(&mut self.told, &note) {
            return;
        }
        events::emit(self.context.client.clone(), &self.context.options.node_name, vmi, note);
    }
}

/// Whether a note is worth an event, after the failure that was told of last.
fn is_news(told: &mut Option<Note>, note: &Note) -> bool {
    if note.reason != events::SYNC_FAILED {
        return true;
    }
    told.replace(note.clone()).as_ref() != Some(note)
}

async fn call<T>(answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, StepError> {
    match tokio::time::timeout(CALL_TIMEOUT, answer).await {
        Ok(result) => Ok(result?.into_inner()),
        Err(_) => Err(StepError::Timeout),
    }
}

fn label(vmi: &VirtualMachineInstance) -> String {
    let metadata = &vmi.metadata;
    format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_ends_no_guest_that_was_started() {
        let invalid = || StepError::Invalid("x".to_owned());
        let network = || StepError::Network(network::Error::NoInterface("eth0".to_owned()));
        for (error, begun, failures, expected) in [
            (invalid(), false, 1, Weight::Final),
            (invalid(), true, 100, Weight::Trouble),
            (network(), false, NETWORK_TRIES - 1, Weight::Trouble),
            (network(), false, NETWORK_TRIES, Weight::Final),
            (network(), true, NETWORK_TRIES, Weight::Trouble),
            (StepError::Timeout, false, 100, Weight::Trouble),
            (StepError::Disconnected, false, 100, Weight::Passing),
        ] {
            assert_eq!(error.weight(begun, failures), expected, "{error} {begun} {failures}");
        }
    }

    #[test]
    fn what_happens_again_is_told_again_and_what_lasts_is_not() {
        let mut told = None;
        let failure = Note::warning(events::SYNC_FAILED, "no tap");
        let other = Note::warning(events::SYNC_FAILED, "no bridge");
        let (synced, not) = (
            Note::normal(events::CREDENTIALS_SYNCED, "synced"),
            Note::warning(events::CREDENTIALS_NOT_SYNCED, "offline"),
        );
        for (note, news) in [
            (&synced, true),
            (&not, true),
            (&synced, true),
            (&failure, true),
            (&failure, false),
            (&synced, true),
            (&failure, false),
            (&other, true),
            (&failure, true),
        ] {
            assert_eq!(is_news(&mut told, note), news, "{note:?}");
        }
        // As a success does.
        told = None;
        assert!(is_news(&mut told, &failure));
    }
}
