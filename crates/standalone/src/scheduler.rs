//! The scheduler: binds pods to nodes they fit on, or says in kube-scheduler's words why there is none.
//!
//! [`place`] is the decision, a pure function of pods and nodes. [`run`] feeds it from watches: a pod is looked at when
//! it appears, and all that wait are looked at again when a node changes or a pod frees its place, a second after a
//! binding failed, and now and then while one waits for packages that emulate its guest.

mod emulation;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Binding, Node, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, PersistentVolumeClaim, Pod, PodSpec,
    Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::claims::claims_of;
use crate::events::Events;
use crate::quantity;

use emulation::{ARCH_LABEL, Emulation};

/// Name of this scheduler, and of the default one; pods that name another are left alone.
const NAME: &str = "default-scheduler";
/// How soon it is noticed that packages were installed which a guest waits for.
const LOOK_FOR_PACKAGES: Duration = Duration::from_secs(5);
/// Pause before a binding that failed is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// Amounts of resources: millicores for `cpu`, whole units for everything else.
pub type Amounts = BTreeMap<String, u64>;

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// To this node.
    Node(String),
    /// Nowhere; the message is what kube-scheduler says.
    Nowhere(String),
}

/// A node and what its pods have taken of it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The node.
    pub node: &'a Node,
    /// Sum of the requests of the pods that are on it.
    pub used: &'a Amounts,
    /// How many pods are on it.
    pub pods: u64,
}

/// Chooses the node with the most free memory among those that fit.
#[must_use]
pub fn place(pod: &Pod, emulation: &Emulation, candidates: &[Candidate<'_>]) -> Placement {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(u64, &Node)> = None;
    for candidate in candidates {
        let objections = objections(pod, emulation, candidate);
        if objections.is_empty() {
            let allocatable = allocatable(candidate.node);
            let memory = |amounts: &Amounts| amounts.get("memory").copied().unwrap_or(0);
            let free = memory(&allocatable).saturating_sub(memory(candidate.used));
            if best.is_none_or(|(most, _)| free > most) {
                best = Some((free, candidate.node));
            }
        }
        for reason in objections {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    match best {
        Some((_, node)) => Placement::Node(node.name_any()),
        None => Placement::Nowhere(message(candidates.len(), &reasons)),
    }
}

fn message(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

/// Why a pod cannot run on a node; the first filter that objects speaks, as in kube-scheduler.
fn objections(pod: &Pod, emulation: &Emulation, candidate: &Candidate<'_>) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let node = candidate.node;
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
        && !tolerates(spec, "node.kubernetes.io/unschedulable", "", "NoSchedule")
    {
        return vec!["node(s) were unschedulable".into()];
    }
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    if let Some(taint) = taints
        .filter(|taint| taint.effect != "PreferNoSchedule")
        .find(|taint| !tolerated(spec, taint))
    {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!("node(s) had untolerated taint(s) {{{}: {value}}}", taint.key)];
    }
    if !selected(spec, emulation, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".into()];
    }
    if let Emulation::Lacks(what) = emulation {
        return vec![what.clone()];
    }
    let allocatable = allocatable(node);
    let mut lacking = Vec::new();
    if candidate.pods + 1 > allocatable.get("pods").copied().unwrap_or(u64::MAX) {
        lacking.push("Too many pods".to_owned());
    }
    for (resource, wanted) in requests(spec) {
        let free = allocatable.get(&resource).copied().unwrap_or(0);
        let free = free.saturating_sub(candidate.used.get(&resource).copied().unwrap_or(0));
        if wanted > 0 && wanted > free {
            lacking.push(format!("Insufficient {resource}"));
        }
    }
    lacking
}

/// What a pod takes of a node: the larger of its containers (with the sidecars) and any init container, plus the pod's overhead.
#[must_use]
pub fn requests(spec: &PodSpec) -> Amounts {
    let of = |container: &k8s_openapi::api::core::v1::Container| {
        let resources = container.resources.clone().unwrap_or_default();
        let mut wanted = resources.limits.unwrap_or_default();
        // A limit without a request is a request, too.
        wanted.extend(resources.requests.unwrap_or_default());
        amounts(&wanted)
    };
    let mut running = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &of(container));
        } else {
            let mut at_once = running.clone();
            add(&mut at_once, &of(container));
            raise(&mut peak, &at_once);
        }
    }
    for container in &spec.containers {
        add(&mut running, &of(container));
    }
    raise(&mut running, &peak);
    add(&mut running, &amounts(&spec.overhead.clone().unwrap_or_default()));
    running
}

/// Adds `more` to `sum`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (resource, amount) in more {
        let entry = sum.entry(resource.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

fn raise(sum: &mut Amounts, other: &Amounts) {
    for (resource, amount) in other {
        let entry = sum.entry(resource.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

/// Quantities as numbers; what is no quantity counts as nothing.
#[must_use]
pub fn amounts(quantities: &BTreeMap<String, Quantity>) -> Amounts {
    let read = |resource: &str, value: &Quantity| match resource {
        "cpu" => quantity::millis(value),
        _ => quantity::bytes(value),
    };
    quantities
        .iter()
        .map(|(resource, value)| (resource.clone(), read(resource, value).unwrap_or(0)))
        .collect()
}

/// Why a pod has to wait for its claims.
fn unbound<'a>(pod: &Pod, find: impl Fn(&str) -> Option<&'a PersistentVolumeClaim>) -> Option<String> {
    claims_of(pod).find_map(|name| {
        let Some(claim) = find(name) else {
            return Some(format!("persistentvolumeclaim \"{name}\" not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Some(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        (phase != Some("Bound")).then(|| "pod has unbound immediate PersistentVolumeClaims".to_owned())
    })
}

fn allocatable(node: &Node) -> Amounts {
    node.status
        .as_ref()
        .and_then(|status| status.allocatable.as_ref())
        .map(amounts)
        .unwrap_or_default()
}

fn tolerated(spec: &PodSpec, taint: &Taint) -> bool {
    tolerates(
        spec,
        &taint.key,
        taint.value.as_deref().unwrap_or_default(),
        &taint.effect,
    )
}

fn tolerates(spec: &PodSpec, key: &str, value: &str, effect: &str) -> bool {
    spec.tolerations.iter().flatten().any(|toleration: &Toleration| {
        let of = |field: &Option<String>| field.clone().unwrap_or_default();
        let (wanted_key, wanted_effect) = (of(&toleration.key), of(&toleration.effect));
        if !wanted_effect.is_empty() && wanted_effect != effect {
            return false;
        }
        match toleration.operator.as_deref() {
            Some("Exists") => wanted_key.is_empty() || wanted_key == key,
            _ => wanted_key == key && of(&toleration.value) == value,
        }
    })
}

fn selected(spec: &PodSpec, emulation: &Emulation, node: &Node) -> bool {
    let labels = node.labels();
    let selector = spec
        .node_selector
        .iter()
        .flatten()
        .filter(|(key, _)| *emulation == Emulation::Unneeded || *key != ARCH_LABEL)
        .all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    selector && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.labels();
    let fields = BTreeMap::from([("metadata.name".to_owned(), node.name_any())]);
    let expressions = term
        .match_expressions
        .iter()
        .flatten()
        .map(|expression| (expression, labels));
    let mut all = expressions
        .chain(term.match_fields.iter().flatten().map(|field| (field, &fields)))
        .peekable();
    // A term without requirements matches nothing.
    all.peek().is_some() && all.all(|(requirement, values)| requirement_holds(requirement, values))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.clone().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compare = |holds: fn(i64, i64) -> bool| {
        let numbers = (value.and_then(number), values.first().and_then(number));
        matches!(numbers, (Some(have), Some(want)) if holds(have, want))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, want| have > want),
        "Lt" => compare(|have, want| have < want),
        _ => false,
    }
}

/// The scheduler cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the watch of {0} ended")]
pub struct WatchEnded(&'static str);

/// Schedules until `stop`.
///
/// # Errors
/// A watch ended, which it never does by itself.
pub async fn run(client: Client, stop: CancellationToken) -> Result<(), WatchEnded> {
    let mut pods = std::pin::pin!(watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()));
    let mut nodes = std::pin::pin!(watcher(Api::<Node>::all(client.clone()), watcher::Config::default()));
    let claims = Api::<PersistentVolumeClaim>::all(client.clone());
    let mut claims = std::pin::pin!(watcher(claims, watcher::Config::default()));
    let events = Events::new(client.clone(), NAME, None);
    let mut scheduler = Scheduler {
        client,
        events,
        pods: Cache::default(),
        nodes: Cache::default(),
        claims: Cache::default(),
        bind_again: None,
    };
    let mut packages = tokio::time::interval(LOOK_FOR_PACKAGES);
    packages.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let again = scheduler.bind_again;
        let look = tokio::select! {
            _ = packages.tick(), if scheduler.lacks_packages() => Look::All,
            () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                scheduler.bind_again = None;
                Look::All
            }
            () = stop.cancelled() => return Ok(()),
            event = pods.next() => match event.ok_or(WatchEnded("pods"))? {
                Ok(event) => scheduler.pod_event(event),
                Err(error) => interrupted(&error).await,
            },
            event = nodes.next() => match event.ok_or(WatchEnded("nodes"))? {
                Ok(event) => {
                    scheduler.nodes.apply(event, |_| true);
                    Look::All
                }
                Err(error) => interrupted(&error).await,
            },
            event = claims.next() => match event.ok_or(WatchEnded("claims"))? {
                Ok(event) => {
                    scheduler.claims.apply(event, |_| true);
                    Look::All
                }
                Err(error) => interrupted(&error).await,
            },
        };
        match look {
            Look::Nothing => {}
            Look::All => {
                for key in scheduler.waiting() {
                    scheduler.schedule(&key).await;
                }
            }
            Look::One(key) => scheduler.schedule(&key).await,
        }
    }
}

async fn interrupted(error: &watcher::Error) -> Look {
    warn!(%error, "a watch of the scheduler was interrupted");
    tokio::time::sleep(Duration::from_millis(500)).await;
    Look::Nothing
}

/// Namespace and name.
pub(crate) type Key = (String, String);

/// Which pods to look at after an event.
enum Look {
    Nothing,
    One(Key),
    All,
}

/// Objects by namespace and name, as a watch says.
pub(crate) struct Cache<K> {
    pub(crate) objects: BTreeMap<Key, Arc<K>>,
    incoming: BTreeMap<Key, Arc<K>>,
    /// The watch has told of all that there is.
    pub(crate) synced: bool,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            incoming: BTreeMap::new(),
            synced: false,
        }
    }
}

impl<K: ResourceExt> Cache<K> {
    pub(crate) fn apply(&mut self, event: Event<K>, keep: impl Fn(&K) -> bool) {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        match event {
            Event::Init => self.incoming.clear(),
            Event::InitApply(object) => {
                if keep(&object) {
                    self.incoming.insert(key(&object), Arc::new(object));
                }
            }
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.incoming);
                self.synced = true;
            }
            Event::Apply(object) if keep(&object) => {
                self.objects.insert(key(&object), Arc::new(object));
            }
            Event::Apply(object) | Event::Delete(object) => {
                self.objects.remove(&key(&object));
            }
        }
    }
}

struct Scheduler {
    client: Client,
    events: Events,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    claims: Cache<PersistentVolumeClaim>,
    /// A pod could not be bound; look at all again then.
    bind_again: Option<Instant>,
}

impl Scheduler {
    fn pod_event(&mut self, event: Event<Pod>) -> Look {
        let look = match &event {
            Event::Apply(pod) if is_waiting(pod) => Look::One((pod.namespace().unwrap_or_default(), pod.name_any())),
            Event::Apply(pod) if !takes_place(pod) => Look::All,
            Event::Delete(_) | Event::InitDone => Look::All,
            Event::Apply(_) | Event::Init | Event::InitApply(_) => Look::Nothing,
        };
        self.pods.apply(event, takes_place);
        look
    }

    fn waiting(&self) -> Vec<Key> {
        let mut waiting: Vec<_> = self.pods.objects.iter().filter(|(_, pod)| is_waiting(pod)).collect();
        waiting.sort_by_key(|(_, pod)| pod.creation_timestamp().map(|time| time.0));
        waiting.into_iter().map(|(key, _)| key.clone()).collect()
    }

    /// A pod waits for what somebody may install.
    fn lacks_packages(&self) -> bool {
        let mut waiting = self.pods.objects.values().filter(|pod| is_waiting(pod));
        waiting.any(|pod| emulation::of(pod) != Emulation::Unneeded)
    }

    async fn schedule(&mut self, key: &Key) {
        if !self.pods.synced || !self.nodes.synced || !self.claims.synced {
            return;
        }
        let Some(pod) = self.pods.objects.get(key).filter(|pod| is_waiting(pod)).cloned() else {
            return;
        };
        match self.decide(&pod) {
            Placement::Node(node) => self.bind(&pod, &node).await,
            Placement::Nowhere(message) => self.refuse(&pod, &message).await,
        }
    }

    fn decide(&self, pod: &Pod) -> Placement {
        let claim = |name: &str| {
            let key = (pod.namespace().unwrap_or_default(), name.to_owned());
            self.claims.objects.get(&key).map(|claim| &**claim)
        };
        if let Some(reason) = unbound(pod, claim) {
            let nodes = self.nodes.objects.len();
            return Placement::Nowhere(format!("0/{nodes} nodes are available: {reason}."));
        }
        let mut used: BTreeMap<&str, (Amounts, u64)> = BTreeMap::new();
        for pod in self.pods.objects.values() {
            if let Some((spec, node)) = pod
                .spec
                .as_ref()
                .and_then(|spec| Some((spec, spec.node_name.as_deref()?)))
            {
                let (sum, count) = used.entry(node).or_default();
                add(sum, &requests(spec));
                *count += 1;
            }
        }
        let nothing = (Amounts::new(), 0);
        let of = |node: &Node| used.get(node.name_any().as_str()).unwrap_or(&nothing);
        let candidates: Vec<_> = self
            .nodes
            .objects
            .values()
            .map(|node| Candidate {
                node,
                used: &of(node).0,
                pods: of(node).1,
            })
            .collect();
        place(pod, &emulation::of(pod), &candidates)
    }

    async fn bind(&mut self, pod: &Arc<Pod>, node: &str) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                uid: pod.uid(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        let bound = api
            .create_subresource::<Binding, serde_json::Value>("binding", &name, &PostParams::default(), &binding)
            .await;
        match bound {
            Ok(_) => {
                debug!(pod = %name, namespace, node, "bound");
                // The watch will say so, too, but the next decision must know now.
                let mut placed = Pod::clone(pod);
                placed.spec.get_or_insert_default().node_name = Some(node.to_owned());
                self.pods.objects.insert((namespace, name), Arc::new(placed));
            }
            // The watch tells late of what was done already.
            Err(kube::Error::Api(status)) if status.code == 409 => debug!(pod = %name, namespace, "bound or gone"),
            Err(error) => {
                warn!(pod = %name, namespace, %error, "cannot bind a pod; trying again");
                self.bind_again.get_or_insert_with(|| Instant::now() + BIND_AGAIN);
            }
        }
    }

    async fn refuse(&self, pod: &Pod, message: &str) {
        if already_says(pod, message) {
            return;
        }
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": Timestamp::now(),
        });
        let patch =
            Patch::Strategic(json!({ "metadata": { "uid": pod.uid() }, "status": { "conditions": [condition] } }));
        let api = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        if let Err(error) = api.patch_status(&name, &PatchParams::default(), &patch).await {
            warn!(pod = %name, namespace, %error, "cannot say why a pod is not scheduled");
        }
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(name),
            namespace: Some(namespace),
            uid: pod.uid(),
            ..ObjectReference::default()
        };
        self.events.warn(&about, "FailedScheduling", message).await;
    }
}

fn already_says(pod: &Pod, message: &str) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "PodScheduled" && condition.message.as_deref() == Some(message))
}

/// The pod wants a node, and from us.
fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec
        .scheduler_name
        .as_deref()
        .is_none_or(|name| name.is_empty() || name == NAME);
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    let unbound = spec.node_name.as_deref().is_none_or(str::is_empty);
    ours && unbound && !gated && pod.metadata.deletion_timestamp.is_none() && takes_place(pod)
}

/// The pod takes room on its node, or waits for some.
pub(crate) fn takes_place(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests;
