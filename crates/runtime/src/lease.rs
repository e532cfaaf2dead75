//! Leader election by a `coordination.k8s.io` Lease: of several processes with the same lease one works at a time.
//!
//! ```text
//!             the lease is absent, free, ours, or has not             ┌── renewed ──┐
//!             been renewed for its duration                           ▼             │
//!   Waiting ────────────────────────────────────────────────────► Leading ──────────┘
//!      │                                                              │
//!      │ shutdown                    another holder, or no renewal    ├─ work ends ─► released ─► Ok(Some(output))
//!      ▼                             for two thirds of the duration ──┴─► Err: end the process
//!   Ok(None)
//! ```
//!
//! Who waits follows the lease by a watch, so a released lease is taken at once and waiting costs no requests. Clocks of
//! different machines are never compared: a lease has ended when *this* process has seen it unchanged for its duration.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, ResourceExt};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// After a request that failed, this long is waited.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a release may take.
const RELEASE: Duration = Duration::from_secs(5);
/// How long the API server keeps a watch open. It sends bookmarks meanwhile, so silence is noticed by TCP.
const WATCH_SECONDS: u32 = 1500;

/// Which lease, and who asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// Who this process is. Two processes that run at the same time must not share it; a process that is restarted in
    /// its pod should keep it (the pod's name), as it then need not wait for its own old lease to end.
    pub identity: String,
    /// A lease that was not renewed for so long may be taken by others.
    pub duration: Duration,
    /// How often it is renewed.
    pub renew_every: Duration,
}

impl Settings {
    /// A lease of 60 s that is renewed every 20 s: three requests per minute.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration: Duration::from_secs(60),
            renew_every: Duration::from_secs(20),
        }
    }

    /// Without a renewal for so long, the leader stops. The rest of the duration is the margin for it to do so.
    fn patience(&self) -> Duration {
        self.duration * 2 / 3
    }
}

/// Why this process does not lead any more. It should end at once: another one may already work.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Another process has it.
    #[error("the lease {lease} was taken by {holder:?}")]
    Taken {
        /// Namespace and name.
        lease: String,
        /// By whom.
        holder: String,
    },
    /// It could not be renewed in time.
    #[error("the lease {lease} could not be renewed in time")]
    Unrenewed {
        /// Namespace and name.
        lease: String,
        /// Why the last renewal failed.
        #[source]
        source: Option<Box<kube::Error>>,
    },
}

/// Waits for the lease, then runs `work` while it is kept, and releases it when `work` has ended.
///
/// `work` is polled only while this process leads, and must end by itself after `shutdown`. The answer is its output,
/// or `None` if `shutdown` came before this process ever led.
///
/// Cancel safe in that nothing of it runs on; the lease is then not released, and others wait until it ends.
///
/// # Errors
/// The lease was lost; `work` has been dropped.
pub async fn lead<W: Future>(
    client: Client,
    settings: Settings,
    shutdown: CancellationToken,
    work: W,
) -> Result<Option<W::Output>, Lost> {
    let election = Election::new(client, settings);
    let lease = tokio::select! {
        () = shutdown.cancelled() => return Ok(None),
        lease = election.acquire() => lease,
    };
    tracing::info!(lease = %election, identity = election.settings.identity, "leading");
    let held = lease.1.clone();
    let output = {
        let mut keep = pin!(election.keep(lease));
        let mut work = pin!(work);
        tokio::select! {
            output = &mut work => Ok(output),
            lost = &mut keep => Err(lost),
        }
    };
    match output {
        Ok(output) => {
            election.release(&held).await;
            Ok(Some(output))
        }
        Err(lost) => Err(lost),
    }
}

/// A name for this process among all that ask for the same lease: its pod's name, which a restarted container keeps.
/// Where `POD_NAME` is not set, one that nobody else has.
#[must_use]
pub fn identity() -> String {
    std::env::var("POD_NAME").unwrap_or_else(|_| {
        let now = Timestamp::now().as_microsecond();
        format!("process-{}-{now}", std::process::id())
    })
}

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    holder: String,
    duration: Duration,
    renewed: Option<Timestamp>,
    /// When this process saw it change last.
    since: Instant,
}

impl Seen {
    /// What is known after `lease` was seen.
    fn update(before: Option<&Self>, lease: &Lease, default: Duration, now: Instant) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        let new = Self {
            holder: spec.holder_identity.unwrap_or_default(),
            duration: seconds.map_or(default, Duration::from_secs),
            renewed: spec.renew_time.map(|t| t.0),
            since: now,
        };
        match before {
            Some(old) if old.holder == new.holder && old.renewed == new.renewed => Self {
                since: old.since,
                ..new
            },
            _ => new,
        }
    }
}

/// What a process that waits does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// There is no lease.
    Create,
    /// Nobody holds it.
    Take,
    /// Somebody does, at least until then.
    Wait(Instant),
}

fn decide(seen: Option<&Seen>, identity: &str, now: Instant) -> Decision {
    let Some(seen) = seen else { return Decision::Create };
    let end = seen.since + seen.duration;
    if seen.holder.is_empty() || seen.holder == identity || now >= end {
        Decision::Take
    } else {
        Decision::Wait(end)
    }
}

struct Election {
    api: Api<Lease>,
    settings: Settings,
}

impl fmt::Display for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.settings.namespace, self.settings.name)
    }
}

/// When the lease was asked for, and the lease.
type Held = (Instant, Lease);

impl Election {
    fn new(client: Client, settings: Settings) -> Self {
        Self {
            api: Api::namespaced(client, &settings.namespace),
            settings,
        }
    }

    async fn acquire(&self) -> Held {
        let one = watcher::Config::default()
            .fields(&format!("metadata.name={}", self.settings.name))
            .timeout(WATCH_SECONDS);
        let mut events = pin!(watch(self.api.clone(), one).default_backoff());
        let mut lease: Option<Lease> = None;
        let mut seen: Option<Seen> = None;
        let mut complete = false;
        // Until then nothing is tried, as something failed.
        let mut pause = Instant::now();
        loop {
            let now = Instant::now();
            let until = if !complete {
                None
            } else if now < pause {
                Some(pause)
            } else {
                match decide(seen.as_ref(), &self.settings.identity, now) {
                    Decision::Wait(until) => Some(until),
                    Decision::Create | Decision::Take => match self.write(lease.as_ref(), true).await {
                        Ok(lease) => return (now, lease),
                        Err(error) => {
                            if !conflict(&error) {
                                tracing::warn!(lease = %self, %error, "cannot take the lease");
                            }
                            pause = Instant::now() + PAUSE;
                            continue;
                        }
                    },
                }
            };
            let event = tokio::select! {
                event = events.next() => event,
                () = sleep_until(until.unwrap_or(now)), if until.is_some() => continue,
            };
            match event {
                Some(Ok(Event::Apply(object) | Event::InitApply(object))) => {
                    let now = Instant::now();
                    seen = Some(Seen::update(seen.as_ref(), &object, self.settings.duration, now));
                    lease = Some(object);
                    pause = now;
                }
                Some(Ok(Event::Delete(_) | Event::Init)) => {
                    lease = None;
                    seen = None;
                }
                Some(Ok(Event::InitDone)) => complete = true,
                Some(Err(error)) => tracing::warn!(lease = %self, %error, "cannot follow the lease"),
                None => sleep(PAUSE).await,
            }
        }
    }

    /// Renews the lease until that is no longer possible.
    async fn keep(&self, (mut last, mut lease): Held) -> Lost {
        let mut source = None;
        let mut next = last + self.settings.renew_every;
        loop {
            let end = last + self.settings.patience();
            sleep_until(next.min(end)).await;
            let now = Instant::now();
            if now >= end {
                return Lost::Unrenewed {
                    lease: self.to_string(),
                    source,
                };
            }
            let failure = match timeout(end - now, self.write(Some(&lease), false)).await {
                Ok(Ok(renewed)) => {
                    (last, lease, source) = (now, renewed, None);
                    next = now + self.settings.renew_every;
                    continue;
                }
                Ok(Err(error)) => error,
                Err(_) => continue,
            };
            next = Instant::now() + PAUSE;
            if conflict(&failure) || gone(&failure) {
                match timeout(end - now, self.api.get_opt(&self.settings.name)).await {
                    Ok(Ok(found)) => {
                        let holder = found.as_ref().map(holder).unwrap_or_default();
                        if holder != self.settings.identity {
                            let lease = self.to_string();
                            return Lost::Taken { lease, holder };
                        }
                        // Somebody else changed a label, say.
                        if let Some(found) = found {
                            lease = found;
                        }
                        next = now;
                        continue;
                    }
                    Ok(Err(error)) => source = Some(Box::new(error)),
                    Err(_) => {}
                }
            } else {
                source = Some(Box::new(failure));
            }
            tracing::warn!(lease = %self, error = source.as_ref().map(ToString::to_string), "cannot renew the lease");
        }
    }

    /// Writes that this process holds the lease now. Fails if it is no longer as in `old`.
    async fn write(&self, old: Option<&Lease>, taking: bool) -> Result<Lease, kube::Error> {
        let now = Some(MicroTime(Timestamp::now()));
        let mut spec = old.and_then(|l| l.spec.clone()).unwrap_or_default();
        if taking {
            let same = spec.holder_identity.as_deref() == Some(&self.settings.identity);
            let changes = i32::from(!same && old.is_some());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + changes);
            spec.acquire_time.clone_from(&now);
        }
        spec.holder_identity = Some(self.settings.identity.clone());
        spec.lease_duration_seconds = i32::try_from(self.settings.duration.as_secs()).ok();
        spec.renew_time = now;
        self.put(old, spec).await
    }

    async fn put(&self, old: Option<&Lease>, spec: LeaseSpec) -> Result<Lease, kube::Error> {
        let metadata = old.map_or_else(
            || ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
            |l| ObjectMeta {
                managed_fields: None,
                ..l.metadata.clone()
            },
        );
        let lease = Lease {
            metadata,
            spec: Some(spec),
        };
        let parameters = PostParams::default();
        match old {
            None => self.api.create(&parameters, &lease).await,
            Some(_) => self.api.replace(&self.settings.name, &parameters, &lease).await,
        }
    }

    /// Lets others have it at once. If that fails, they wait until it ends.
    async fn release(&self, acquired: &Lease) {
        let release = async {
            let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else {
                return Ok(());
            };
            if holder(&lease) != self.settings.identity || lease.uid() != acquired.uid() {
                return Ok(());
            }
            let mut spec = lease.spec.take().unwrap_or_default();
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            self.put(Some(&lease), spec).await.map(|_| ())
        };
        match timeout(RELEASE, release).await {
            Ok(Ok(())) => tracing::info!(lease = %self, "released"),
            Ok(Err(error)) => tracing::warn!(lease = %self, %error, "cannot release the lease; it ends by itself"),
            Err(_) => tracing::warn!(lease = %self, "cannot release the lease in time; it ends by itself"),
        }
    }
}

fn holder(lease: &Lease) -> String {
    let spec = lease.spec.as_ref();
    spec.and_then(|s| s.holder_identity.clone()).unwrap_or_default()
}

fn conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use ferrovirt_apiserver::{ApiServer, Config, UserInfo};
    use kube::api::{DeleteParams, Patch, PatchParams};
    use serde_json::json;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;

    #[test]
    fn decisions() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let seen = |holder: &str| Seen {
            holder: holder.to_owned(),
            duration: Duration::from_secs(60),
            renewed: None,
            since: start,
        };
        for (held_by, now, expected) in [
            (None, 0, Decision::Create),
            (Some(""), 0, Decision::Take),
            (Some("me"), 0, Decision::Take),
            (Some("other"), 0, Decision::Wait(at(60))),
            (Some("other"), 59, Decision::Wait(at(60))),
            (Some("other"), 60, Decision::Take),
        ] {
            let seen = held_by.map(seen);
            assert_eq!(decide(seen.as_ref(), "me", at(now)), expected, "{held_by:?} at {now}");
        }
    }

    #[test]
    fn only_a_renewal_starts_the_time_anew() {
        let start = Instant::now();
        let lease = |holder: &str, renewed: &str, label: &str| -> Lease {
            serde_json::from_value(json!({"metadata": {"labels": {"l": label}}, "spec": {
                "holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}}))
            .unwrap()
        };
        let (t0, t1) = ("2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:01.000000Z");
        let default = Duration::from_secs(60);
        let first = Seen::update(None, &lease("a", t0, ""), default, start);
        assert_eq!(first.duration, Duration::from_secs(15));
        let later = start + Duration::from_secs(5);
        for (change, since) in [
            (lease("a", t0, "x"), start),
            (lease("a", t1, ""), later),
            (lease("b", t0, ""), later),
        ] {
            assert_eq!(Seen::update(Some(&first), &change, default, later).since, since);
        }
    }

    const DEADLINE: Duration = Duration::from_secs(20);

    type Candidate = (CancellationToken, JoinHandle<Result<Option<()>, Lost>>);

    /// A process that reports its name when it begins to lead.
    fn candidate(client: &Client, name: &'static str, leads: &mpsc::UnboundedSender<&'static str>) -> Candidate {
        let shutdown = CancellationToken::new();
        let settings = Settings {
            duration: Duration::from_secs(3),
            renew_every: Duration::from_millis(200),
            ..Settings::new("default", "test", name)
        };
        let (stop, leads) = (shutdown.clone(), leads.clone());
        let work = async move {
            leads.send(name).unwrap();
            stop.cancelled().await;
        };
        let task = tokio::spawn(lead(client.clone(), settings, shutdown.clone(), work));
        (shutdown, task)
    }

    async fn next(leads: &mut mpsc::UnboundedReceiver<&'static str>) -> &'static str {
        timeout(DEADLINE, leads.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn one_leads_at_a_time_and_the_next_takes_over() {
        let server = ApiServer::open(Config::memory()).await.unwrap();
        let client = server.client(UserInfo::admin("test"));
        let (sender, mut leads) = mpsc::unbounded_channel();
        let (stop_a, a) = candidate(&client, "a", &sender);
        assert_eq!(next(&mut leads).await, "a");
        let (_stop_b, b) = candidate(&client, "b", &sender);
        let (stop_c, c) = candidate(&client, "c", &sender);

        // Released in order: somebody else follows long before the lease would have ended.
        let begun = Instant::now();
        stop_a.cancel();
        assert!(matches!(timeout(DEADLINE, a).await.unwrap().unwrap(), Ok(Some(()))));
        let second = next(&mut leads).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

        // Killed: the lease ends by itself.
        let (killed, left, third) = if second == "b" { (b, c, "c") } else { (c, b, "b") };
        killed.abort();
        assert_eq!(next(&mut leads).await, third);

        // Taken away by force: the leader ends.
        let api: Api<Lease> = Api::namespaced(client, "default");
        let change = Patch::Merge(json!({"spec": {"holderIdentity": "intruder"}}));
        api.patch("test", &PatchParams::default(), &change).await.unwrap();
        match timeout(DEADLINE, left).await.unwrap().unwrap() {
            Err(Lost::Taken { holder, .. }) => assert_eq!(holder, "intruder"),
            other => panic!("{other:?}"),
        }
        drop(stop_c);
    }

    #[tokio::test]
    async fn a_restarted_process_takes_its_own_lease_at_once() {
        let server = ApiServer::open(Config::memory()).await.unwrap();
        let client = server.client(UserInfo::admin("test"));
        let (sender, mut leads) = mpsc::unbounded_channel();
        let (_stop, killed) = candidate(&client, "a", &sender);
        assert_eq!(next(&mut leads).await, "a");
        killed.abort();
        let begun = Instant::now();
        let (stop, task) = candidate(&client, "a", &sender);
        assert_eq!(next(&mut leads).await, "a");
        assert!(begun.elapsed() < Duration::from_secs(3));

        // Deleted under its feet: it does not know whether another one leads, so it stops.
        let api: Api<Lease> = Api::namespaced(client, "default");
        api.delete("test", &DeleteParams::default()).await.unwrap();
        assert!(matches!(
            timeout(DEADLINE, task).await.unwrap().unwrap(),
            Err(Lost::Taken { .. })
        ));
        drop(stop);
    }

    #[tokio::test]
    async fn who_waits_ends_on_shutdown() {
        let server = ApiServer::open(Config::memory()).await.unwrap();
        let client = server.client(UserInfo::admin("test"));
        let (sender, mut leads) = mpsc::unbounded_channel();
        let (_stop, _leader) = candidate(&client, "a", &sender);
        next(&mut leads).await;
        let (stop, waiting) = candidate(&client, "b", &sender);
        stop.cancel();
        assert!(matches!(timeout(DEADLINE, waiting).await.unwrap().unwrap(), Ok(None)));
    }
}
