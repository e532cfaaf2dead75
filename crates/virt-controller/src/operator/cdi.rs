//! CDI objects. There are no importers yet, and this says so: in the status, and by an event, of each object that a user
//! makes.
//!
//! ```text
//!  CustomResourceDefinition of CDI ─ there ─► watch of CDI objects ─► what is said of each ─► status, event
//!                                   └ not there: nothing is asked and nothing is written
//! ```
//!
//! Nothing is installed, so nothing has to be removed: there is no finalizer. Statuses are written by server-side apply
//! without force. Where another operator of CDI runs, it owns them, and its objects are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use ferrovirt_api::cdi::{CDI, CDIStatus, Condition};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event as CoreEvent;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::mirror::WATCH_SECONDS;
use super::resources::OPERATOR;

const DEFINITION: &str = "cdis.cdi.kubevirt.io";
/// Where events of objects without a namespace are.
const EVENTS: &str = "default";
/// Until something that failed is tried again.
const PAUSE: Duration = Duration::from_secs(10);

/// What is to be said of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict<'a> {
    /// It is the one that counts, and nothing can be done for it.
    NotSupported,
    /// The one that counts is another.
    Unwanted(&'a str),
}

impl Verdict<'_> {
    fn reason(self) -> &'static str {
        match self {
            Self::NotSupported => "NotSupported",
            Self::Unwanted(_) => "ConfigError",
        }
    }

    fn message(self) -> String {
        match self {
            Self::NotSupported => "This version has no importers: nothing is installed, and DataVolumes and the other kinds of cdi.kubevirt.io are not served.".to_owned(),
            Self::Unwanted(other) => format!("There may be one CDI object, and it is {other}."),
        }
    }

    /// The status after `old`, or `None` if it says the same.
    fn status(self, old: Option<&CDIStatus>, version: &str, now: Timestamp) -> Option<CDIStatus> {
        let before = old.cloned().unwrap_or_default();
        let condition = |(kind, status): (&str, &str)| {
            let known = before
                .conditions
                .iter()
                .find(|c| c.r#type == kind && c.status == status);
            Condition {
                r#type: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(self.reason().to_owned()),
                message: Some(self.message()),
                last_heartbeat_time: None,
                last_transition_time: known.map_or_else(|| Some(Time(now)), |c| c.last_transition_time.clone()),
            }
        };
        let states = [("Available", "False"), ("Progressing", "False"), ("Degraded", "True")];
        let new = CDIStatus {
            phase: Some("Error".to_owned()),
            conditions: states.map(condition).to_vec(),
            operator_version: Some(version.to_owned()),
            target_version: Some(version.to_owned()),
            observed_version: None,
        };
        (new != before).then_some(new)
    }
}

/// The oldest object counts.
fn verdict<'a>(object: &CDI, all: &'a BTreeMap<String, CDI>) -> Verdict<'a> {
    let age = |cdi: &CDI| (cdi.creation_timestamp(), cdi.name_any());
    let first = all.values().filter(|cdi| cdi.metadata.deletion_timestamp.is_none());
    match first
        .min_by_key(|cdi| age(cdi))
        .and_then(|cdi| cdi.metadata.name.as_deref())
    {
        Some(first) if first != object.name_any() => Verdict::Unwanted(first),
        _ => Verdict::NotSupported,
    }
}

/// Says of each CDI object what becomes of it, until `stop`. Asks for nothing while the kind does not exist.
pub async fn answer(client: Client, version: String, stop: CancellationToken) -> &'static str {
    let mut answers = Answers {
        client,
        version,
        objects: BTreeMap::new(),
        foreign: BTreeSet::new(),
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = answers.run() => {}
    }
    "answers to CDI objects"
}

struct Answers {
    client: Client,
    version: String,
    /// By name, without what is not needed.
    objects: BTreeMap<String, CDI>,
    /// UIDs of those whose status somebody else writes.
    foreign: BTreeSet<String>,
}

type Objects = BoxStream<'static, Result<Event<CDI>, watcher::Error>>;

impl Answers {
    async fn run(&mut self) {
        let one = watcher::Config::default()
            .fields(&format!("metadata.name={DEFINITION}"))
            .timeout(WATCH_SECONDS);
        let definitions = watcher(
            Api::<PartialObjectMeta<CustomResourceDefinition>>::all(self.client.clone()),
            one,
        );
        let mut definitions = pin!(definitions.default_backoff());
        let mut objects: Option<Objects> = None;
        let mut listed = false;
        let mut again: Option<Instant> = None;
        loop {
            tokio::select! {
                event = definitions.next() => match event {
                    Some(Ok(Event::Apply(_) | Event::InitApply(_))) => {
                        listed = true;
                        objects.get_or_insert_with(|| self.watch());
                    }
                    Some(Ok(Event::Init)) => listed = false,
                    Some(Ok(Event::Delete(_))) => objects = None,
                    Some(Ok(Event::InitDone)) => if !listed { objects = None },
                    Some(Err(error)) => tracing::debug!(%error, "the watch of the kind CDI failed and starts anew"),
                    None => return,
                },
                event = next(&mut objects) => {
                    let complete = matches!(event, Event::Apply(_) | Event::Delete(_) | Event::InitDone);
                    self.learn(event);
                    if complete {
                        again = self.answer_all().await;
                    }
                }
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    again = self.answer_all().await;
                }
            }
            if objects.is_none() {
                self.objects.clear();
                self.foreign.clear();
                again = None;
            }
        }
    }

    fn watch(&self) -> Objects {
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let events = watcher(Api::<CDI>::all(self.client.clone()), config);
        events
            .inspect_err(|error| tracing::debug!(%error, "the watch of CDI objects failed and starts anew"))
            .default_backoff()
            .boxed()
    }

    fn learn(&mut self, event: Event<CDI>) {
        match event {
            Event::Init => self.objects.clear(),
            Event::Apply(mut cdi) | Event::InitApply(mut cdi) => {
                cdi.metadata.managed_fields = None;
                cdi.metadata.annotations = None;
                cdi.spec = ferrovirt_api::cdi::CDISpec::default();
                self.objects.insert(cdi.name_any(), cdi);
            }
            Event::Delete(cdi) => {
                self.objects.remove(&cdi.name_any());
                self.foreign.remove(&cdi.uid().unwrap_or_default());
            }
            Event::InitDone => {}
        }
    }

    /// Writes what differs. Answers with when to try again what failed.
    async fn answer_all(&mut self) -> Option<Instant> {
        let mut failed = false;
        let names: Vec<String> = self.objects.keys().cloned().collect();
        for name in names {
            let Some(cdi) = self.objects.get(&name) else { continue };
            let uid = cdi.uid().unwrap_or_default();
            if cdi.metadata.deletion_timestamp.is_some() || self.foreign.contains(&uid) {
                continue;
            }
            let verdict = verdict(cdi, &self.objects);
            let Some(status) = verdict.status(cdi.status.as_ref(), &self.version, Timestamp::now()) else {
                continue;
            };
            let news = cdi.status.as_ref().is_none_or(|old| reason(old) != reason(&status));
            match self.write(&name, &status).await {
                Ok(()) => {
                    tracing::info!(cdi = name, "{}", verdict.message());
                    if news {
                        self.tell(cdi, verdict).await;
                    }
                    if let Some(cdi) = self.objects.get_mut(&name) {
                        cdi.status = Some(status);
                    }
                }
                Err(kube::Error::Api(answer)) if answer.code == 409 => {
                    tracing::info!(cdi = name, "another operator looks after this CDI object");
                    self.foreign.insert(uid);
                }
                Err(error) if crate::context::gone(&error) => {}
                Err(error) => {
                    let error = ferrovirt_runtime::logs::chain(&error);
                    tracing::warn!(cdi = name, error, "cannot write the status of a CDI object");
                    failed = true;
                }
            }
        }
        failed.then(|| Instant::now() + PAUSE)
    }

    async fn write(&self, name: &str, status: &CDIStatus) -> Result<(), kube::Error> {
        let body = json!({
            "apiVersion": CDI::api_version(&()), "kind": CDI::kind(&()), "metadata": {"name": name}, "status": status,
        });
        let api: Api<CDI> = Api::all(self.client.clone());
        let ours = PatchParams::apply(OPERATOR);
        api.patch_status(name, &ours, &Patch::Apply(&body)).await.map(drop)
    }

    /// An event is not worth a second try.
    async fn tell(&self, cdi: &CDI, verdict: Verdict<'_>) {
        let now = Time(Timestamp::now());
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": format!("{}.{:016x}", cdi.name_any(), rand::random::<u64>()), "namespace": EVENTS},
            "involvedObject": {
                "apiVersion": CDI::api_version(&()), "kind": CDI::kind(&()), "name": cdi.name_any(), "uid": cdi.uid(),
            },
            "type": "Warning", "reason": verdict.reason(), "message": verdict.message(), "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": OPERATOR}, "reportingComponent": OPERATOR, "reportingInstance": "",
        });
        let written = match serde_json::from_value::<CoreEvent>(event) {
            Ok(event) => {
                let api: Api<CoreEvent> = Api::namespaced(self.client.clone(), EVENTS);
                api.create(&PostParams::default(), &event).await.map(drop)
            }
            Err(error) => Err(kube::Error::SerdeError(error)),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "an event was not written");
        }
    }
}

fn reason(status: &CDIStatus) -> Option<&str> {
    status
        .conditions
        .first()
        .and_then(|condition| condition.reason.as_deref())
}

/// Waits for ever while there is no watch. Watches do not end, and failures are theirs.
async fn next(objects: &mut Option<Objects>) -> Event<CDI> {
    loop {
        match objects.as_mut() {
            Some(stream) => match stream.next().await {
                Some(Ok(event)) => return event,
                Some(Err(_)) => {}
                None => *objects = None,
            },
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdi(name: &str, second: i64) -> CDI {
        let mut cdi = CDI::new(name, ferrovirt_api::cdi::CDISpec::default());
        cdi.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
        cdi
    }

    #[test]
    fn the_oldest_object_counts() {
        for (objects, expected) in [
            (vec![("a", 1)], [Verdict::NotSupported].to_vec()),
            (
                vec![("a", 2), ("b", 1)],
                vec![Verdict::Unwanted("b"), Verdict::NotSupported],
            ),
            (
                vec![("a", 1), ("b", 1)],
                vec![Verdict::NotSupported, Verdict::Unwanted("a")],
            ),
        ] {
            let all: BTreeMap<String, CDI> = objects.iter().map(|(n, s)| ((*n).to_owned(), cdi(n, *s))).collect();
            let found: Vec<Verdict<'_>> = all.values().map(|object| verdict(object, &all)).collect();
            assert_eq!(found, expected, "{objects:?}");
        }
        let mut going = cdi("a", 1);
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let all = BTreeMap::from([("a".to_owned(), going), ("b".to_owned(), cdi("b", 2))]);
        assert_eq!(verdict(&all["b"], &all), Verdict::NotSupported);
    }

    #[test]
    fn what_has_been_said_is_not_said_again() {
        let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let status = Verdict::NotSupported.status(None, "v1", early).unwrap();
        assert_eq!(status.phase.as_deref(), Some("Error"));
        let states: Vec<String> = status
            .conditions
            .iter()
            .map(|c| format!("{}={}", c.r#type, c.status))
            .collect();
        assert_eq!(states.join(" "), "Available=False Progressing=False Degraded=True");
        assert_eq!(Verdict::NotSupported.status(Some(&status), "v1", late), None);
        let other = Verdict::Unwanted("x").status(Some(&status), "v1", late).unwrap();
        assert_eq!(other.conditions[0].last_transition_time, Some(Time(early)));
        assert_eq!(reason(&other), Some("ConfigError"));
    }
}
