//! Nodes whose agent is silent: they take no more VMs, and a VMI that loses its pod there failed because of the node.
//!
//! ```text
//!                  no heartbeat for 5 minutes
//!   Responsive ───────────────────────────────► Silent    label kubevirt.io/schedulable=false, event NodeUnresponsive
//!       ▲                                         │
//!       └──────────── a heartbeat ────────────────┘       (virt-handler sets the label back)
//!   either ── the Node object is deleted ──► Gone         its VMIs end when their pods are collected
//! ```
//!
//! A guest on a silent node may well be running, so its VMI lives as long as its pod object does: only Kubernetes, or
//! an administrator who deletes the Node or taints it as out of service, knows that the node is really off. That may be
//! known before the silence is long enough, so the Node is asked when a pod was lost; see [`is_given_up`].
//!
//! Clocks of nodes are not believed: silence begins when this process last saw the heartbeat change, or when it last
//! learned of all nodes anew, since nobody was heard while the API server was not.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ferrovirt_core::names;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cache::Key;
use crate::context::{Context, gone};
use crate::events::Notice;

/// A node agent that was not heard for so long is silent.
const SILENCE: SignedDuration = SignedDuration::from_mins(5);
/// Taint by which an administrator says that a node is off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long after a failed write it is tried again.
const PAUSE: Duration = Duration::from_secs(30);

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Agent {
    /// What its agent said last, if ever.
    heartbeat: Option<String>,
    /// When this process saw that, by its own clock.
    heard: Timestamp,
    /// Its label says that it takes VMs.
    schedulable: bool,
}

impl Agent {
    /// As seen at `now`; with what was known of it before, if it was followed since.
    fn of(node: &PartialObjectMeta<Node>, before: Option<&Self>, now: Timestamp) -> Option<Self> {
        let labels = node.metadata.labels.as_ref();
        let schedulable = labels.and_then(|l| l.get(names::SCHEDULABLE_LABEL))?;
        let annotations = node.metadata.annotations.as_ref();
        let heartbeat = annotations.and_then(|a| a.get(names::HEARTBEAT_ANNOTATION)).cloned();
        let same = before.filter(|before| before.heartbeat == heartbeat);
        Some(Self {
            heard: same.map_or(now, |before| before.heard),
            heartbeat,
            schedulable: schedulable == "true",
        })
    }

    /// When it counts as silent, if it says nothing more.
    fn silent_at(&self) -> Timestamp {
        let heard = self.heartbeat.as_ref().map(|_| self.heard);
        heard
            .and_then(|at| at.checked_add(SILENCE).ok())
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// The nodes that have, or had, an agent.
#[derive(Debug, Default)]
pub struct Nodes {
    known: RwLock<HashMap<String, Agent>>,
}

impl Nodes {
    /// Nobody answers for what runs on `node`: its agent is silent, or the node is gone.
    pub fn unresponsive(&self, node: &str, now: Timestamp) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(node).is_none_or(|agent| agent.silent_at() <= now)
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<String, Agent>) -> T) -> T {
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The nodes that take VMs although they are silent, and when the next one will be.
    fn due(&self, now: Timestamp) -> (Vec<String>, Option<Timestamp>) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let open = known.iter().filter(|(_, agent)| agent.schedulable);
        let (silent, heard): (Vec<_>, Vec<_>) = open.partition(|(_, agent)| agent.silent_at() <= now);
        let names = silent.into_iter().map(|(name, _)| name.clone()).collect();
        (names, heard.iter().map(|(_, agent)| agent.silent_at()).min())
    }
}

/// Follows the nodes until `shutdown`. `ready` is answered when all of them are known.
pub async fn run(context: Arc<Context>, ready: oneshot::Sender<()>, shutdown: CancellationToken) {
    let api: Api<PartialObjectMeta<Node>> = Api::all(context.client.clone());
    let selected = watcher::Config::default().labels(names::SCHEDULABLE_LABEL);
    let mut events = pin!(watch(api, selected).default_backoff());
    let mut ready = Some(ready);
    let mut listed = HashMap::new();
    let mut pause = None;
    loop {
        let (silent, next) = context.nodes.due(Timestamp::now());
        let until = next.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        let wait = if silent.is_empty() {
            until
        } else {
            pause.or(Some(Duration::ZERO))
        };
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
            () = sleep(wait) => {
                pause = None;
                for node in silent {
                    if !close(&context, &node).await {
                        pause = Some(PAUSE);
                    }
                }
                continue;
            }
        };
        match event {
            None => return,
            Some(Err(error)) => tracing::warn!(%error, "the watch of nodes failed and starts anew"),
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(node))) => {
                let agent = Agent::of(&node, None, Timestamp::now());
                listed.extend(agent.map(|agent| (node.metadata.name.unwrap_or_default(), agent)));
            }
            Some(Ok(Event::InitDone)) => {
                let listed = std::mem::take(&mut listed);
                context.nodes.change(|known| *known = listed);
                if let Some(ready) = ready.take() {
                    // Nobody waits any more when the process ends.
                    let _ = ready.send(());
                }
            }
            Some(Ok(Event::Apply(node))) => {
                let name = node.metadata.name.clone().unwrap_or_default();
                context
                    .nodes
                    .change(|known| match Agent::of(&node, known.get(&name), Timestamp::now()) {
                        Some(agent) => known.insert(name, agent),
                        None => known.remove(&name),
                    });
            }
            Some(Ok(Event::Delete(node))) => {
                let name = node.metadata.name.unwrap_or_default();
                context.nodes.change(|known| known.remove(&name));
                look_at_vmis(&context, &name);
            }
        }
    }
}

/// Whether Kubernetes has given a node up: it is gone, not ready, or out of service.
///
/// # Errors
/// The API server does not tell.
pub async fn is_given_up(client: &Client, node: &str) -> Result<bool, kube::Error> {
    let node = Api::<Node>::all(client.clone()).get_opt(node).await?;
    Ok(node.is_none_or(|node| given_up(&node)))
}

fn given_up(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|c| c.type_ == "Ready"));
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    ready.is_none_or(|c| c.status != "True")
        || taints.is_some_and(|all| all.iter().any(|taint| taint.key == OUT_OF_SERVICE))
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Marks a silent node, so that no more VMs come. Answers whether that is done.
async fn close(context: &Context, name: &str) -> bool {
    let api: Api<Node> = Api::all(context.client.clone());
    let change = Patch::Merge(json!({"metadata": {"labels": {names::SCHEDULABLE_LABEL: "false"}}}));
    match api.patch_metadata(name, &PatchParams::default(), &change).await {
        Ok(_) => {
            tracing::warn!(
                node = name,
                "virt-handler has been silent for five minutes; no more VMs are placed there"
            );
            let message = "virt-handler has sent no heartbeat for five minutes; no more VMs are placed on this node";
            let node = Node {
                metadata: kube::api::ObjectMeta {
                    name: Some(name.to_owned()),
                    ..Default::default()
                },
                ..Node::default()
            };
            context.events.tell(&node, Notice::warning(NODE_UNRESPONSIVE, message));
            context.nodes.change(|known| {
                if let Some(agent) = known.get_mut(name) {
                    agent.schedulable = false;
                }
            });
            look_at_vmis(context, name);
            true
        }
        Err(error) if gone(&error) => true,
        Err(error) => {
            tracing::warn!(node = name, %error, "a silent node could not be marked");
            false
        }
    }
}

/// Has the VMIs of a node looked at again.
fn look_at_vmis(context: &Context, node: &str) {
    let there = |key: &Key| {
        let vmi = context.vmis.get(key);
        let status = vmi.as_ref().and_then(|vmi| vmi.status.as_ref());
        status.and_then(|s| s.node_name.as_deref()) == Some(node)
    };
    for key in context.vmis.keys().into_iter().filter(there) {
        context.vmi_queue.send(key);
    }
}

/// Reason of the event, and `status.reason` of VMIs that end because of their node.
pub const NODE_UNRESPONSIVE: &str = "NodeUnresponsive";

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn node(label: Option<&str>, heartbeat: Option<&str>) -> PartialObjectMeta<Node> {
        let pair = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        let meta = kube::api::ObjectMeta {
            labels: label.map(|v| pair(names::SCHEDULABLE_LABEL, v)),
            annotations: heartbeat.map(|v| pair(names::HEARTBEAT_ANNOTATION, v)),
            ..Default::default()
        };
        PartialObjectMeta {
            metadata: meta,
            ..Default::default()
        }
    }

    #[test]
    fn a_node_is_silent_after_five_minutes() {
        let nodes = Nodes::default();
        let agents = [
            ("heard", node(Some("true"), Some("a")), 600),
            ("closed", node(Some("false"), Some("a")), 60),
            ("never", node(Some("true"), None), 600),
        ];
        for (name, node, seen) in &agents {
            nodes.change(|known| known.insert((*name).to_owned(), Agent::of(node, None, at(*seen)).unwrap()));
        }
        assert_eq!(Agent::of(&node(None, Some("a")), None, at(600)), None);
        for (name, now, unresponsive) in [
            ("heard", 899, false),
            ("heard", 900, true),
            ("closed", 700, true),
            ("never", 1, true),
            ("unknown", 1, true),
        ] {
            assert_eq!(nodes.unresponsive(name, at(now)), unresponsive, "{name} at {now}");
        }
        assert_eq!(nodes.due(at(700)), (vec!["never".to_owned()], Some(at(900))));
        nodes.change(|known| known.remove("never"));
        assert_eq!(nodes.due(at(900)), (vec!["heard".to_owned()], None));
    }

    #[test]
    fn clocks_of_nodes_are_not_believed() {
        // An hour behind, and then a year ahead.
        let first = Agent::of(&node(Some("true"), Some("1970-01-01T00:00:00Z")), None, at(3600)).unwrap();
        assert_eq!(first.silent_at(), at(3900));
        let other = node(Some("false"), Some("1970-01-01T00:00:00Z"));
        let same = Agent::of(&other, Some(&first), at(3700)).unwrap();
        assert_eq!(same.silent_at(), at(3900), "what else changes is no sign of life");
        let ahead = Agent::of(&node(Some("true"), Some("1971-01-01T00:00:00Z")), Some(&same), at(3800)).unwrap();
        assert_eq!(ahead.silent_at(), at(4100));
        // Learned anew after the API server was away.
        let again = Agent::of(&node(Some("true"), Some("1971-01-01T00:00:00Z")), None, at(9000)).unwrap();
        assert_eq!(again.silent_at(), at(9300));
    }

    #[test]
    fn kubernetes_gives_nodes_up() {
        let taint = |key: &str| json!([{"key": key, "effect": "NoExecute"}]);
        for (ready, taints, expected) in [
            (Some("True"), json!([]), false),
            (Some("True"), taint("example.com/drain"), false),
            (Some("True"), taint(OUT_OF_SERVICE), true),
            (Some("False"), json!([]), true),
            (Some("Unknown"), json!([]), true),
            (None, json!([]), true),
        ] {
            let conditions: Vec<_> = ready
                .map(|status| json!({"type": "Ready", "status": status}))
                .into_iter()
                .collect();
            let node =
                json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": conditions}});
            let node: Node = serde_json::from_value(node).unwrap();
            assert_eq!(given_up(&node), expected, "{node:?}");
        }
    }
}
