//! Which VMIs are this node's, and their sessions.
//!
//! Two watches, both filtered by the server: launcher pods bound to this node, and VMIs labelled with it. A pod
//! opens a session before its VMI is labelled, so that the guest's network is ready when its turn comes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::sync::Arc;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::machine::Attachment;
use ferrovirt_core::names::{
    APP_LABEL, ATTACHMENTS_ANNOTATION, CREATED_BY_LABEL, DOMAIN_ANNOTATION, NETWORK_STATUS_ANNOTATION, NODE_NAME_LABEL,
    VIRT_LAUNCHER,
};
use ferrovirt_protocol::paths::CONTAINER_DISKS_VOLUME;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::Reported;
use crate::session::{Context, Session};

/// What a session is told from outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    /// Newest VMI of the watch; absent until it is labelled with this node.
    pub(crate) vmi: Option<Arc<VirtualMachineInstance>>,
    /// Its launcher pod.
    pub(crate) pod: Option<PodFacts>,
}

/// What matters of a launcher pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodFacts {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) vmi_uid: String,
    pub(crate) vmi_name: String,
    pub(crate) ended: Option<Reported>,
    /// Its containerDisks are held by containers, to be mounted.
    pub(crate) holds_container_disks: bool,
    /// What each network binding plugin left to us when the pod was made.
    pub(crate) attachments: BTreeMap<String, Attachment>,
    /// The pod's interfaces that Multus tells of.
    pub(crate) network_status: BTreeSet<String>,
    created: Option<Time>,
}

impl PodFacts {
    /// Reads a pod; `None` if it is no launcher of a VMI, or claims to be without belonging to one.
    fn of(pod: &Pod) -> Option<Self> {
        let owner = pod
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true))?;
        let vmi_uid = pod.labels().get(CREATED_BY_LABEL)?;
        if owner.kind != "VirtualMachineInstance" || owner.uid != *vmi_uid {
            return None;
        }
        // A launcher has a network of its own; the node's is not rearranged for a pod that claims to be one.
        if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
            return None;
        }
        let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes).flatten();
        // A disk of the VMI may have that name, too, but is no such directory.
        let holds_container_disks = volumes
            .into_iter()
            .any(|volume| volume.name == CONTAINER_DISKS_VOLUME && volume.empty_dir.is_some());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        Some(Self {
            uid: pod.uid()?,
            namespace: pod.namespace()?,
            vmi_uid: vmi_uid.clone(),
            vmi_name: pod.annotations().get(DOMAIN_ANNOTATION).unwrap_or(&owner.name).clone(),
            ended: match phase {
                Some("Succeeded") => Some(Reported::Succeeded),
                Some("Failed") => Some(Reported::Failed),
                _ => None,
            },
            holds_container_disks,
            attachments: pod
                .annotations()
                .get(ATTACHMENTS_ANNOTATION)
                .map(|text| attachments(text))
                .unwrap_or_default(),
            network_status: pod
                .annotations()
                .get(NETWORK_STATUS_ANNOTATION)
                .map(|text| network_status(text))
                .unwrap_or_default(),
            created: pod.creation_timestamp(),
        })
    }
}

/// Plugins whose attachment is not known are left out, and their guests are not started.
fn attachments(text: &str) -> BTreeMap<String, Attachment> {
    let named: BTreeMap<String, String> = serde_json::from_str(text).unwrap_or_default();
    let known = |(plugin, name): (String, String)| Some((plugin, Attachment::from_name(&name)?));
    named.into_iter().filter_map(known).collect()
}

fn network_status(text: &str) -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Told {
        #[serde(default)]
        interface: String,
    }
    let told: Vec<Told> = serde_json::from_str(text).unwrap_or_default();
    let names = told.into_iter().map(|told| told.interface);
    names.filter(|name| !name.is_empty()).collect()
}

struct Entry {
    inputs: watch::Sender<Inputs>,
    pods: Vec<PodFacts>,
    _session: AbortOnDropHandle<()>,
}

impl Entry {
    /// The youngest pod that lives, else the youngest.
    fn choose(&self) {
        let pod = self
            .pods
            .iter()
            .max_by_key(|pod| (pod.ended.is_none(), pod.created.clone()))
            .cloned();
        self.inputs.send_if_modified(|inputs| {
            let changed = inputs.pod != pod;
            inputs.pod = pod;
            changed
        });
    }
}

/// Sessions by the UID of their VMI.
pub(crate) struct Registry {
    context: Arc<Context>,
    entries: HashMap<String, Entry>,
    /// VMI UIDs, respectively pod UIDs, of a listing that goes on.
    listed_vmis: HashSet<String>,
    listed_pods: HashSet<String>,
}

enum Seen {
    Vmi(Box<Event<DeserializeGuard<VirtualMachineInstance>>>),
    Pod(Box<Event<Pod>>),
}

impl Registry {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            entries: HashMap::new(),
            listed_vmis: HashSet::new(),
            listed_pods: HashSet::new(),
        }
    }

    /// Runs for ever; sessions end with it. Cancel safe.
    pub(crate) async fn run(mut self) {
        let node = &self.context.options.node_name;
        let vmis = Api::<DeserializeGuard<VirtualMachineInstance>>::all(self.context.client.clone());
        let ours = watcher::Config::default().labels(&format!("{NODE_NAME_LABEL}={node}"));
        let pods = Api::<Pod>::all(self.context.client.clone());
        let launchers = watcher::Config::default()
            .fields(&format!("spec.nodeName={node}"))
            .labels(&format!("{APP_LABEL}={VIRT_LAUNCHER}"));
        let vmis = watcher(vmis, ours)
            .default_backoff()
            .map_ok(|event| Seen::Vmi(Box::new(event)));
        let pods = watcher(pods, launchers)
            .default_backoff()
            .map_ok(|event| Seen::Pod(Box::new(event)));
        let mut events = futures::stream::select(vmis.boxed(), pods.boxed());
        while let Some(event) = events.next().await {
            match event {
                Ok(Seen::Vmi(event)) => self.on_vmi(*event),
                Ok(Seen::Pod(event)) => self.on_pod(*event),
                Err(error) => {
                    let error = ferrovirt_runtime::logs::chain(&error);
                    tracing::warn!(error, "a watch failed; it is set up again");
                }
            }
        }
    }

    fn on_vmi(&mut self, event: Event<DeserializeGuard<VirtualMachineInstance>>) {
        match event {
            Event::Init => self.listed_vmis.clear(),
            Event::InitApply(vmi) => {
                self.listed_vmis.insert(vmi.uid().unwrap_or_default());
                self.apply_vmi(vmi);
            }
            Event::Apply(vmi) => self.apply_vmi(vmi),
            Event::Delete(vmi) => self.drop_vmi(&vmi.uid().unwrap_or_default()),
            Event::InitDone => {
                let known = self
                    .entries
                    .iter()
                    .filter(|(_, entry)| entry.inputs.borrow().vmi.is_some());
                let lost: Vec<String> = known
                    .map(|(uid, _)| uid.clone())
                    .filter(|uid| !self.listed_vmis.contains(uid))
                    .collect();
                for uid in lost {
                    self.drop_vmi(&uid);
                }
            }
        }
    }

    fn apply_vmi(&mut self, vmi: DeserializeGuard<VirtualMachineInstance>) {
        let name = vmi.name_any();
        match vmi.0 {
            Ok(vmi) => {
                let entry = self.entry(&vmi.uid().unwrap_or_default());
                entry.inputs.send_modify(|inputs| inputs.vmi = Some(Arc::new(vmi)));
            }
            Err(error) => tracing::error!(vmi = name, error = %error.error, "a VirtualMachineInstance cannot be read"),
        }
    }

    fn drop_vmi(&mut self, uid: &str) {
        let Some(entry) = self.entries.remove(uid) else { return };
        if let Some(vmi) = &entry.inputs.borrow().vmi {
            self.context
                .guests
                .forget(&vmi.namespace().unwrap_or_default(), &vmi.name_any(), uid);
        }
    }

    fn on_pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed_pods.clear(),
            Event::InitApply(pod) => {
                self.listed_pods.insert(pod.uid().unwrap_or_default());
                self.apply_pod(&pod);
            }
            Event::Apply(pod) => self.apply_pod(&pod),
            Event::Delete(pod) => self.drop_pod(&pod.uid().unwrap_or_default()),
            Event::InitDone => {
                let known = self
                    .entries
                    .values()
                    .flat_map(|entry| &entry.pods)
                    .map(|pod| pod.uid.clone());
                let lost: Vec<String> = known.filter(|uid| !self.listed_pods.contains(uid)).collect();
                for uid in lost {
                    self.drop_pod(&uid);
                }
                self.drop_stale_records();
            }
        }
    }

    fn apply_pod(&mut self, pod: &Pod) {
        let Some(facts) = PodFacts::of(pod) else { return };
        let entry = self.entry(&facts.vmi_uid);
        match entry.pods.iter_mut().find(|pod| pod.uid == facts.uid) {
            Some(old) => *old = facts,
            None => entry.pods.push(facts),
        }
        entry.choose();
    }

    fn drop_pod(&mut self, uid: &str) {
        remove_record(&self.context.options.network_record(uid));
        let mut done = Vec::new();
        for (vmi_uid, entry) in &mut self.entries {
            if !entry.pods.iter().any(|pod| pod.uid == uid) {
                continue;
            }
            entry.pods.retain(|pod| pod.uid != uid);
            entry.choose();
            if entry.pods.is_empty() && entry.inputs.borrow().vmi.is_none() {
                done.push(vmi_uid.clone());
            }
        }
        for vmi_uid in done {
            self.entries.remove(&vmi_uid);
        }
    }

    /// Records of pods that went away while nobody watched.
    fn drop_stale_records(&self) {
        let Ok(files) = fs::read_dir(self.context.options.network_records()) else {
            return;
        };
        for path in files.flatten().map(|file| file.path()) {
            let uid = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if !self.listed_pods.contains(uid) {
                remove_record(&path);
            }
        }
    }

    fn entry(&mut self, vmi_uid: &str) -> &mut Entry {
        let context = &self.context;
        self.entries.entry(vmi_uid.to_owned()).or_insert_with(|| {
            let (inputs, receiver) = watch::channel(Inputs::default());
            let session = tokio::spawn(Session::new(context.clone(), receiver).run());
            Entry {
                inputs,
                pods: Vec::new(),
                _session: AbortOnDropHandle::new(session),
            }
        })
    }
}

fn remove_record(path: &std::path::Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove the network record of a pod that is gone");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::network_status;

    #[test]
    fn a_network_status_names_interfaces_or_is_nonsense() {
        let names = |text: &str| network_status(text).into_iter().collect::<Vec<_>>();
        let told = r#"[{"name": "cni", "interface": "eth0", "default": true, "ips": ["10.0.0.1"]}, {"name": "x"},
            {"name": "n/red", "interface": "podb1f51a511f1"}]"#;
        assert_eq!(names(told), ["eth0", "podb1f51a511f1"]);
        assert!(names("{").is_empty() && names("3").is_empty());
    }
}
