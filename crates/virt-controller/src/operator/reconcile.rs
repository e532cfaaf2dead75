//! The operator's loop.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ferrovirt_api::v1::KubeVirt;
use ferrovirt_runtime::logs::{self, chain};
use futures::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::authority::{Authority, secrets};
use super::certificates::Rotation;
use super::inputs::{Cluster, Inputs, Release, own_verbosity};
use super::mirror::{Mirror, WATCH_SECONDS, revision};
use super::plan::{self, Mode, Next, Seen};
use super::resources::{self, Id, Kind, OPERATOR, Object, Stage};
use super::status::{self, Progress};
use super::{Trouble, some_of};
use crate::cache::{Cache, Key};

/// Finalizer of KubeVirt objects.
const FINALIZER: &str = "kubevirt.io/foregroundDeleteKubeVirt";
/// Writes at a time.
const CONCURRENCY: usize = 8;
/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(50);
/// Until the next look when no event will tell.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// While a removal is blocked, workloads are looked for so often.
const BLOCKED_PAUSE: Duration = Duration::from_secs(10);

/// How the operator is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it runs and installs.
    pub namespace: String,
    /// What it installs.
    pub release: Release,
    /// The API server reaches its webhooks.
    pub webhooks: bool,
    /// How much it logs unless the KubeVirt object says.
    pub verbosity: u8,
}

/// Installs what the KubeVirt object says until `shutdown`.
///
/// Assumes that it is the only one of its kind in the cluster. Cancel safe: whatever was begun is continued by the next.
pub async fn reconcile_until(client: Client, settings: Settings, shutdown: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let mirror = Mirror::new(client.clone(), &settings.namespace, Arc::clone(&changed));
    let mut tasks = JoinSet::new();
    mirror.start(&mut tasks, &shutdown);
    let kubevirts = Arc::new(Cache::default());
    tasks.spawn(follow(
        client.clone(),
        Arc::clone(&kubevirts),
        Arc::clone(&changed),
        shutdown.clone(),
    ));
    tasks.spawn(super::cdi::answer(
        client.clone(),
        settings.release.version.clone(),
        shutdown.clone(),
    ));
    let authority = Authority::new(client.clone(), Arc::clone(&mirror), &settings.namespace);
    let mut operator = Operator {
        verbosity: settings.verbosity,
        client,
        settings,
        mirror,
        kubevirts,
        authority,
        wanted: None,
        rendered: None,
        applied: HashMap::new(),
        served: false,
        nodes: None,
        monitoring: None,
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = operator.mirror.synced() => operator.run(&changed, &shutdown, &mut tasks).await,
    }
    tasks.shutdown().await;
}

async fn follow(
    client: Client,
    cache: Arc<Cache<KubeVirt>>,
    changed: Arc<Notify>,
    stop: CancellationToken,
) -> &'static str {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let mut events = pin!(watcher(Api::<KubeVirt>::all(client), config).default_backoff());
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return "watch of KubeVirt objects",
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => {
                if !cache.apply(event, Timestamp::now()).is_empty() {
                    changed.notify_one();
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "the watch of KubeVirt objects failed and starts anew"),
            None => return "watch of KubeVirt objects",
        }
    }
}

/// An object as this process wrote it last.
struct Applied {
    hash: String,
    uid: String,
    revision: String,
}

/// What should be.
struct Wanted {
    inputs: Inputs,
    objects: Vec<(Id, Stage, String)>,
}

struct Operator {
    client: Client,
    /// How much is logged now.
    verbosity: u8,
    settings: Settings,
    mirror: Arc<Mirror>,
    kubevirts: Arc<Cache<KubeVirt>>,
    authority: Authority,
    wanted: Option<Wanted>,
    /// The bodies of what should be, while something is written. They are not kept: schemas of kinds are large.
    rendered: Option<Vec<Object>>,
    applied: HashMap<Id, Applied>,
    /// The API server serves all our kinds.
    served: bool,
    /// Nodes of virt-handler when the cluster's nodes were counted, and how many they were.
    nodes: Option<(i64, u64)>,
    /// Generation of the KubeVirt object when Prometheus' kinds were looked for, and whether they exist.
    monitoring: Option<(Option<i64>, bool)>,
}

impl Operator {
    async fn run(&mut self, changed: &Notify, shutdown: &CancellationToken, tasks: &mut JoinSet<&'static str>) {
        let mut failures = 0_u32;
        loop {
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = self.reconcile(tasks, shutdown) => outcome,
            };
            let next = match outcome {
                Ok(next) => {
                    failures = 0;
                    next
                }
                Err(trouble) => {
                    failures += 1;
                    let pause = FIRST_PAUSE
                        .saturating_mul(2_u32.saturating_pow(failures - 1))
                        .min(LONGEST_PAUSE);
                    tracing::warn!(error = chain(&trouble), "tried again in {pause:?}");
                    sleep(pause).await;
                    continue;
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = changed.notified() => sleep(GATHER).await,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Does what is due. Answers with the time of the next look, if there is one without a change.
    async fn reconcile(
        &mut self,
        tasks: &mut JoinSet<&'static str>,
        shutdown: &CancellationToken,
    ) -> Result<Option<Instant>, Trouble> {
        let mut all: Vec<Arc<KubeVirt>> = self
            .kubevirts
            .keys()
            .iter()
            .filter_map(|key| self.kubevirts.get(key))
            .collect();
        all.sort_by_key(|kv| {
            (
                kv.namespace() != Some(self.settings.namespace.clone()),
                kv.creation_timestamp(),
                kv.name_any(),
            )
        });
        let mut all = all.into_iter();
        let Some(kubevirt) = all
            .next()
            .filter(|kv| kv.namespace().as_ref() == Some(&self.settings.namespace))
        else {
            return Ok(None);
        };
        for other in all {
            let here = Key::of(&*kubevirt);
            let message = format!("there may be one KubeVirt object, in the operator's namespace, and it is {here}");
            self.report(&other, &Progress::Refused(message), None).await?;
        }
        if kubevirt.metadata.deletion_timestamp.is_some() {
            return self.remove(&kubevirt).await;
        }
        let verbosity = own_verbosity(&kubevirt).unwrap_or(self.settings.verbosity);
        if std::mem::replace(&mut self.verbosity, verbosity) != verbosity {
            logs::set_verbosity(verbosity);
        }
        let kubevirt = self.hold(kubevirt).await?;
        let outcome = self.install(&kubevirt, tasks, shutdown).await;
        let inputs = self.wanted.as_ref().map(|wanted| &wanted.inputs);
        match outcome {
            Ok((progress, next)) => {
                self.report(&kubevirt, &progress, inputs).await?;
                Ok(next)
            }
            Err(trouble) => {
                if trouble.is_lasting() {
                    self.report(&kubevirt, &Progress::Failed(chain(&trouble)), inputs)
                        .await?;
                }
                match trouble {
                    // Only a change of the object helps.
                    Trouble::Patch(_) | Trouble::Duration(_) => Ok(None),
                    trouble => Err(trouble),
                }
            }
        }
    }

    /// Makes sure that the object does not go before what it stands for.
    async fn hold(&self, kubevirt: Arc<KubeVirt>) -> Result<Arc<KubeVirt>, Trouble> {
        if kubevirt.finalizers().iter().any(|f| f == FINALIZER) {
            return Ok(kubevirt);
        }
        let mut finalizers = kubevirt.finalizers().to_vec();
        finalizers.push(FINALIZER.to_owned());
        let change = json!({"metadata": {"resourceVersion": kubevirt.resource_version(), "finalizers": finalizers}});
        self.write_finalizers(&kubevirt, change).await.map(Arc::new)
    }

    async fn write_finalizers(&self, kubevirt: &KubeVirt, change: serde_json::Value) -> Result<KubeVirt, Trouble> {
        let api = self.kubevirt_api(kubevirt);
        let written = api
            .patch(&kubevirt.name_any(), &PatchParams::default(), &Patch::Merge(change))
            .await;
        let written = written.map_err(|e| Trouble::call("writing the finalizers of the KubeVirt object", e))?;
        self.kubevirts.observe(written.clone(), Timestamp::now());
        Ok(written)
    }

    fn kubevirt_api(&self, kubevirt: &KubeVirt) -> Api<KubeVirt> {
        Api::namespaced(self.client.clone(), &kubevirt.namespace().unwrap_or_default())
    }

    async fn report(&self, kubevirt: &KubeVirt, progress: &Progress, inputs: Option<&Inputs>) -> Result<(), Trouble> {
        let generation = kubevirt.metadata.generation;
        let version = &self.settings.release.version;
        let old = kubevirt.status.as_ref();
        let Some(new) = status::status(old, progress, inputs, generation, version, Timestamp::now()) else {
            return Ok(());
        };
        tracing::info!(kubevirt = kubevirt.name_any(), "{progress}");
        let api = self.kubevirt_api(kubevirt);
        let change = Patch::Merge(json!({"status": new}));
        match api
            .patch_status(&kubevirt.name_any(), &PatchParams::default(), &change)
            .await
        {
            Ok(written) => {
                self.kubevirts.observe(written, Timestamp::now());
                Ok(())
            }
            Err(error) if crate::context::gone(&error) => Ok(()),
            Err(error) => Err(Trouble::call("writing the status of the KubeVirt object", error)),
        }
    }

    async fn install(
        &mut self,
        kubevirt: &KubeVirt,
        tasks: &mut JoinSet<&'static str>,
        shutdown: &CancellationToken,
    ) -> Result<(Progress, Option<Instant>), Trouble> {
        let rotation = Rotation::new(&kubevirt.spec)?;
        let now = Timestamp::now();
        let (bundle, certificates_due) = self.authority.ensure(&rotation, now).await?;
        let wait = Duration::try_from(certificates_due.duration_since(now)).unwrap_or_default();
        let due = Instant::now() + wait.max(Duration::from_secs(1));
        let cluster = self.cluster(kubevirt, tasks, shutdown).await?;
        let inputs = Inputs::new(kubevirt, &self.settings.release, &cluster, &bundle);
        let observed = kubevirt.status.clone().unwrap_or_default();
        let mode = mode(
            observed.observed_deployment_id.as_deref(),
            observed.observed_kube_virt_version.as_deref(),
            &inputs,
        );
        if self.wanted.as_ref().is_none_or(|wanted| wanted.inputs != inputs) {
            let objects = resources::render(&inputs)?;
            let summary = objects.iter().map(|o| (o.id.clone(), o.stage, o.hash.clone()));
            self.wanted = Some(Wanted {
                objects: summary.collect(),
                inputs: inputs.clone(),
            });
            self.rendered = Some(objects);
        }
        loop {
            match plan::next(&self.seen().await?, mode) {
                Next::Apply(places) => {
                    if observed.phase.is_none() {
                        let begin = Progress::Deploying("Deploying.".to_owned());
                        self.report(kubevirt, &begin, Some(&inputs)).await?;
                    }
                    let objects = match self.rendered.take() {
                        Some(objects) => objects,
                        None => resources::render(&inputs)?,
                    };
                    let todo: Vec<&Object> = places.iter().filter_map(|at| objects.get(*at)).collect();
                    self.apply(&todo).await?;
                    self.rendered = Some(objects);
                }
                Next::Wait(places) => {
                    let served = self.served;
                    if served {
                        self.rendered = None;
                    }
                    let what = self.describe(&places);
                    let progress = match (mode, observed.observed_deployment_id) {
                        (_, None) => Progress::Deploying(what),
                        (Mode::Install, Some(_)) => Progress::Unready(what),
                        (Mode::Update | Mode::Rollback, Some(_)) => Progress::Updating(what),
                    };
                    let next = if served { due } else { Instant::now() + LOOK_AGAIN };
                    return Ok((progress, Some(next.min(due))));
                }
                Next::Done => {
                    if self.rendered.take().is_some() {
                        // The CRDs are most of what this process ever holds.
                        ferrovirt_runtime::memory::give_back();
                    }
                    self.drop_orphans().await?;
                    return Ok((Progress::Deployed, Some(due)));
                }
            }
        }
    }

    fn describe(&self, places: &[usize]) -> String {
        let objects = self.wanted.iter().flat_map(|wanted| &wanted.objects);
        let waiting = objects.enumerate().filter(|(at, _)| places.contains(at));
        let ids: Vec<Id> = waiting.map(|(_, (id, ..))| id.clone()).collect();
        format!("Waiting for {}.", some_of(&ids))
    }

    async fn cluster(
        &mut self,
        kubevirt: &KubeVirt,
        tasks: &mut JoinSet<&'static str>,
        shutdown: &CancellationToken,
    ) -> Result<Cluster, Trouble> {
        let handler = Id {
            kind: Kind::named("DaemonSet"),
            namespace: self.settings.namespace.clone(),
            name: super::Component::Handler.name().to_owned(),
        };
        let rollout = self.mirror.get(&handler).and_then(|present| present.rollout);
        let handlers = rollout.unwrap_or_default().desired;
        let nodes = match self.nodes {
            Some((when, nodes)) if when == handlers => nodes,
            _ => {
                let api: Api<Node> = Api::all(self.client.clone());
                let found = api.list_metadata(&ListParams::default().limit(1)).await;
                let found = found.map_err(|e| Trouble::call("counting nodes", e))?;
                let more = u64::try_from(found.metadata.remaining_item_count.unwrap_or_default()).unwrap_or_default();
                let nodes = found.items.len() as u64 + more;
                self.nodes = Some((handlers, nodes));
                nodes
            }
        };
        let generation = kubevirt.metadata.generation;
        let monitoring = match self.monitoring {
            Some((when, known)) if known || when == generation => known,
            _ => {
                let found = self.serves("monitoring.coreos.com/v1", &["servicemonitors"]).await?;
                if found {
                    for kind in resources::KINDS.iter().filter(|kind| kind.optional) {
                        self.mirror.start_one(kind, tasks, shutdown);
                    }
                }
                self.monitoring = Some((generation, found));
                found
            }
        };
        Ok(Cluster {
            nodes,
            monitoring,
            operator_webhooks: self.settings.webhooks,
        })
    }

    async fn serves(&self, group: &str, plurals: &[&str]) -> Result<bool, Trouble> {
        match self.client.list_api_group_resources(group).await {
            Ok(list) => Ok(plurals.iter().all(|p| list.resources.iter().any(|r| r.name == *p))),
            Err(error) if crate::context::gone(&error) => Ok(false),
            Err(error) => Err(Trouble::call("asking which kinds are served", error)),
        }
    }

    /// Compares what should be with what there is.
    async fn seen(&mut self) -> Result<Vec<Seen>, Trouble> {
        let Some(wanted) = &self.wanted else {
            return Ok(Vec::new());
        };
        let see = |(id, stage, hash): &(Id, Stage, String)| {
            let present = self.mirror.get(id);
            // Once it is gone, it is written again.
            let deleting = present.as_ref().is_some_and(|present| present.deleting);
            let current = self
                .applied
                .get(id)
                .zip(present.as_ref())
                .is_some_and(|(applied, present)| {
                    applied.hash == *hash && applied.uid == present.uid && applied.revision == present.revision
                });
            let rolled_out = present
                .as_ref()
                .and_then(|p| p.rollout)
                .is_none_or(|rollout| rollout.complete);
            Seen {
                stage: *stage,
                present: present.is_some(),
                current: current || deleting,
                ready: present.is_some() && !deleting && rolled_out,
            }
        };
        let mut all: Vec<Seen> = wanted.objects.iter().map(see).collect();
        let defined = |seen: &&Seen| seen.stage == Stage::Definitions;
        if all.iter().filter(defined).any(|seen| !seen.ready || !seen.current) {
            self.served = false;
        } else if !self.served {
            let names = wanted
                .objects
                .iter()
                .filter(|(_, stage, _)| *stage == Stage::Definitions);
            let plurals = names.filter_map(|(id, ..)| id.name.split('.').next());
            self.served = self.serves("kubevirt.io/v1", &plurals.collect::<Vec<_>>()).await?;
        }
        for seen in all.iter_mut().filter(|seen| seen.stage == Stage::Definitions) {
            seen.ready &= self.served;
        }
        Ok(all)
    }

    async fn apply(&mut self, objects: &[&Object]) -> Result<(), Trouble> {
        let mut failed = None;
        // A binding needs its role.
        for kind in objects.chunk_by(|a, b| a.id.kind == b.id.kind) {
            let mirror = &self.mirror;
            let writes: Vec<_> = kind.iter().map(|object| write(mirror, object).boxed()).collect();
            let mut writes = futures::stream::iter(writes).buffer_unordered(CONCURRENCY);
            while let Some(written) = writes.next().await {
                match written {
                    Ok((id, applied)) => drop(self.applied.insert(id, applied)),
                    // The others are written all the same.
                    Err(trouble) => failed = failed.or(Some(trouble)),
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Removes what an earlier version or configuration needed.
    async fn drop_orphans(&mut self) -> Result<(), Trouble> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        let is_wanted = |id: &Id| {
            let certificate = id.kind.kind == "Secret" && secrets().any(|name| name == id.name);
            certificate || wanted.objects.iter().any(|(other, ..)| other == id)
        };
        let orphans: Vec<Id> = self.mirror.all().into_iter().filter(|id| !is_wanted(id)).collect();
        self.delete(&orphans).await
    }

    async fn delete(&self, ids: &[Id]) -> Result<(), Trouble> {
        let mirror = &self.mirror;
        let is_there = |id: &&Id| mirror.get(id).is_some_and(|present| !present.deleting);
        let deletes: Vec<_> = ids
            .iter()
            .filter(is_there)
            .map(|id| delete(mirror, id).boxed())
            .collect();
        let all = futures::stream::iter(deletes).buffer_unordered(CONCURRENCY);
        all.try_collect::<Vec<()>>().await.map(drop)
    }

    async fn remove(&mut self, kubevirt: &KubeVirt) -> Result<Option<Instant>, Trouble> {
        if !kubevirt.finalizers().iter().any(|f| f == FINALIZER) {
            return Ok(None);
        }
        if let Some(why) = super::uninstall::blocked(&self.client, kubevirt).await? {
            self.report(kubevirt, &Progress::DeletionBlocked(why), None).await?;
            return Ok(Some(Instant::now() + BLOCKED_PAUSE));
        }
        self.wanted = None;
        self.rendered = None;
        self.applied.clear();
        self.served = false;
        let present = self.mirror.all();
        let step = plan::removal(&present);
        if !step.is_empty() {
            let what = format!("Removing {}.", some_of(&step));
            self.report(kubevirt, &Progress::Deleting(what), None).await?;
            self.delete(&step).await?;
            // Each that is gone is an event.
            return Ok(None);
        }
        super::uninstall::traces(&self.client, &self.settings.namespace).await?;
        self.report(kubevirt, &Progress::Deleted, None).await?;
        let kept: Vec<&String> = kubevirt.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        let change = json!({"metadata": {"finalizers": kept}});
        match self.write_finalizers(kubevirt, change).await {
            Err(Trouble::Call { error, .. }) if crate::context::gone(&error) => {}
            outcome => drop(outcome?),
        }
        tracing::info!(kubevirt = kubevirt.name_any(), "removed");
        Ok(None)
    }
}

async fn write(mirror: &Mirror, object: &Object) -> Result<(Id, Applied), Trouble> {
    let (id, parameters) = (&object.id, PatchParams::apply(OPERATOR).force());
    let api = mirror.api(id.kind, &id.namespace);
    let written = api
        .patch_metadata(&id.name, &parameters, &Patch::Apply(&object.body))
        .await;
    let written = written.map_err(|e| Trouble::call(&format!("writing {id}"), e))?;
    tracing::debug!(%id, "written");
    let applied = Applied {
        hash: object.hash.clone(),
        uid: written.metadata.uid.clone().unwrap_or_default(),
        revision: revision(id.kind, &written.metadata),
    };
    mirror.observe(id, written.metadata);
    Ok((id.clone(), applied))
}

async fn delete(mirror: &Mirror, id: &Id) -> Result<(), Trouble> {
    let api = mirror.api(id.kind, &id.namespace);
    // A process is gone when its pods are: until then they need the rights that go after them.
    let parameters = match id.kind.kind {
        "Deployment" | "DaemonSet" => DeleteParams::foreground(),
        _ => DeleteParams::background(),
    };
    match api.delete(&id.name, &parameters).await {
        Ok(_) => tracing::debug!(%id, "removed"),
        Err(error) if crate::context::gone(&error) => {}
        Err(error) => return Err(Trouble::call(&format!("removing {id}"), error)),
    }
    Ok(())
}

fn mode(observed_id: Option<&str>, observed_version: Option<&str>, inputs: &Inputs) -> Mode {
    match (observed_id, Mode::of(observed_version, &inputs.version)) {
        (Some(id), Mode::Install) if id != inputs.deployment_id() => Mode::Update,
        (_, mode) => mode,
    }
}
