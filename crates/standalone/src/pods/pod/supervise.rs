//! Starting, Running, Stopping.

use std::fs;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use rustix::process::Signal;
use tokio::time::Instant;
use tracing::{debug, info};

use super::super::cgroup::{self, Cgroup, Limits};
use super::super::container::{Role, Surroundings, describe, host_resolv_conf, in_start_order};
use super::super::exec;
use super::super::probes::{self, ProbeResult, Purpose, Target};
use super::super::process::{Exit, Process};
use super::super::state::{ContainerRecord, Ended};
use super::super::status::Waiting;
use super::PodTask;
use super::prepare::Prepared;

/// A container's name, and how it ended.
pub(super) type ExitFuture = BoxFuture<'static, (String, Exit)>;

/// Pause before a status that could not be written is written again.
pub(super) const PUBLISH_RETRY: Duration = Duration::from_secs(1);
/// First and longest pause before a container that ended is started again.
const RESTART_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// After so long a run the pauses begin anew.
const RESTART_FORGIVEN: Duration = Duration::from_secs(600);
/// What sidecars get to end after the main containers; ours need milliseconds.
const SIDECAR_GRACE: Duration = Duration::from_secs(5);
/// `terminationGracePeriodSeconds`, if the pod does not say.
const DEFAULT_GRACE: i64 = 30;

/// Memory of a container that ended and is to be started again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restart {
    at: Instant,
    pause: Duration,
}

/// The pod is being stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopping {
    /// What still runs then is killed.
    deadline: Instant,
    sidecars_told: bool,
}

/// The end that a deletion sets. Its deadline is by the monotonic clock: setting the machine's clock, or suspending it,
/// must not cost a guest the time to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    grace: Duration,
    deadline: Instant,
}

impl Deletion {
    /// What holds when a deletion with this `grace` is seen, of which by the wall clock so much is `left`: that counts
    /// only the first time. Later only a smaller grace counts, from now, and never makes it longer.
    fn asked(known: Option<Self>, grace: Duration, left: Duration, now: Instant) -> Self {
        match known {
            None => Self {
                grace,
                deadline: now + left.min(grace),
            },
            Some(known) if grace < known.grace => Self {
                grace,
                deadline: now + grace.min(known.deadline.saturating_duration_since(now)),
            },
            Some(known) => known,
        }
    }
}

enum Happened {
    Exit(String, Exit),
    Probe(ProbeResult),
    Prepared(Prepared),
    Pod,
    Timer,
}

pub(super) fn exit_of(name: String, process: Process) -> ExitFuture {
    Box::pin(async move {
        let exit = process.exited().await;
        (name, exit)
    })
}

impl PodTask {
    /// Runs the containers until none runs and none will be started again.
    pub(super) async fn supervise(&mut self) {
        let adopted: Vec<String> = self.processes.keys().cloned().collect();
        for name in adopted {
            self.start_probes(&name);
        }
        loop {
            self.take_newest();
            if self.deletion_is_asked() {
                self.stop_for_deletion();
            }
            self.stop_in_order();
            if self.stopping.is_none() {
                self.start_what_can_be().await;
                // A container that cannot be started may be the end of the pod.
                self.stop_in_order();
            }
            if self.stopping.is_some() && self.processes.is_empty() {
                return;
            }
            self.publish().await;
            match self.next().await {
                Happened::Exit(name, exit) => self.ended(&name, exit).await,
                Happened::Probe(result) => self.probed(result).await,
                Happened::Prepared(volumes) => self.take_prepared(volumes).await,
                Happened::Pod | Happened::Timer => {}
            }
            self.kill_after_deadline();
        }
    }

    async fn next(&mut self) -> Happened {
        let timer = self.next_timer();
        let (_, results) = &mut self.probe_results;
        let (_, prepared) = &mut self.prepared;
        tokio::select! {
            Some((name, exit)) = self.exits.next() => Happened::Exit(name, exit),
            Some(result) = results.recv() => Happened::Probe(result),
            Some(volumes) = prepared.recv() => Happened::Prepared(volumes),
            changed = self.pods.changed() => {
                if changed.is_err() {
                    // The pod runner itself stops, and takes this task with it.
                    std::future::pending::<()>().await;
                }
                Happened::Pod
            }
            () = self.gone.cancelled(), if self.stopping.is_none() => Happened::Pod,
            () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => Happened::Timer,
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let restarts = self
            .restarts
            .iter()
            .filter(|(name, _)| !self.processes.contains_key(*name));
        let restarts = restarts
            .map(|(_, restart)| restart.at)
            // Without volumes nothing can be started, and their coming is an event of its own.
            .filter(|_| self.stopping.is_none() && self.volumes.is_some());
        let deadline = self.stopping.map(|stopping| stopping.deadline);
        restarts.chain(deadline).chain(self.publish_again).min()
    }

    /// Starts each container whose turn it is: after the init containers before it, and not too soon again.
    async fn start_what_can_be(&mut self) {
        let Some(spec) = self.pod.spec.clone() else { return };
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        for (role, container) in in_start_order(&spec) {
            let name = &container.name;
            let known = self.view.containers.get(name).cloned().unwrap_or_default();
            if known.running() {
                if role == Role::Init {
                    return;
                }
                continue;
            }
            match known.ended() {
                Some(_) if role == Role::Init && known.succeeded() => continue,
                Some(ended) if !restarts(role, policy, ended.exit) => {
                    if role == Role::Init {
                        let message = format!("init container \"{name}\" failed");
                        self.fail(Waiting::new("InitContainerFailed", message));
                        return;
                    }
                    continue;
                }
                Some(_)
                    if self
                        .restarts
                        .get(name)
                        .is_some_and(|restart| restart.at > Instant::now()) => {}
                // A container that cannot be described will not be better next time.
                None if known.waiting.is_some() => return,
                _ => self.start(container).await,
            }
            if role == Role::Init || self.stopping.is_some() {
                return;
            }
        }
    }

    async fn start(&mut self, container: &Container) {
        let name = container.name.clone();
        let previous = self.view.containers.get(&name).and_then(|view| view.record.clone());
        let restarts = previous.as_ref().map_or(0, |record| record.restarts + 1);
        let log = self
            .context
            .logs(&self.namespace, &self.name, &self.uid)
            .file(&name, restarts);
        let cgroup = Cgroup::create(&self.uid, &name, Limits::of(container.resources.as_ref()));
        let Some(volumes) = &self.volumes else { return };
        let around = Surroundings {
            config: &self.context.config,
            volumes,
            ips: &self.view.ips,
            cgroups: cgroup.procs(),
            log: log.clone(),
            resolv_conf: host_resolv_conf(),
        };
        let spec = match describe(&self.pod, container, around) {
            Ok(spec) => spec,
            Err(refusal) => {
                self.warn("Failed", &refusal.message).await;
                let view = self.view.containers.entry(name).or_default();
                view.waiting = Some(Waiting::new(refusal.reason, refusal.message));
                return;
            }
        };
        if let Err(error) = log.parent().map_or(Ok(()), fs::create_dir_all) {
            return self.fail(Waiting::new(
                "StartError",
                format!("cannot create the log of \"{name}\": {error}"),
            ));
        }
        let executable = self.context.config.executable.clone();
        let record = async |process| {
            let view = self.view.containers.entry(name.clone()).or_default();
            view.waiting = None;
            view.ready = container.readiness_probe.is_none();
            view.record = Some(ContainerRecord {
                id: uuid::Uuid::new_v4().simple().to_string(),
                process,
                started_at: Timestamp::now(),
                restarts,
                ended: None,
                previous: previous.map(|record| {
                    Box::new(ContainerRecord {
                        previous: None,
                        ..record
                    })
                }),
            });
            self.save()
        };
        match Process::start(&executable, &spec, record).await {
            Ok(process) => {
                debug!(pod = %self.name, container = %name, pid = process.id().pid, "started");
                self.exits.push(exit_of(name.clone(), process.clone()));
                self.processes.insert(name.clone(), process);
                self.context.log_limits.add(log);
                self.start_probes(&name);
            }
            Err(error) => {
                let message = ferrovirt_runtime::logs::chain(&error);
                let message = format!("cannot start container \"{name}\": {message}");
                self.note_end(&name, Exit::Code(128));
                self.warn("Failed", &message).await;
                self.fail(Waiting::new("StartError", message));
            }
        }
    }

    /// The pod as a whole has failed; what runs of it is stopped.
    fn fail(&mut self, failure: Waiting) {
        info!(pod = %self.name, namespace = %self.namespace, reason = %failure.message, "the pod failed");
        self.view.failure = Some(failure);
        self.stop(self.grace());
    }

    /// Records the end of a container's newest instance.
    pub(super) fn note_end(&mut self, name: &str, exit: Exit) {
        self.processes.remove(name);
        self.probes.remove(name);
        let out_of_memory = exit == Exit::Signal(9) && cgroup::oom_kills(&self.uid, name) > 0;
        if let Some(record) = self.view.containers.get_mut(name).and_then(|view| view.record.as_mut()) {
            record.ended = Some(Ended {
                exit,
                at: Timestamp::now(),
                out_of_memory,
            });
        }
        if let Err(error) = self.save() {
            tracing::warn!(pod = %self.name, %error, "cannot write down the end of a container");
        }
    }

    async fn ended(&mut self, name: &str, exit: Exit) {
        let exit = self.said_exit(name, exit);
        info!(pod = %self.name, namespace = %self.namespace, container = name, ?exit, "a container ended");
        self.note_end(name, exit);
        let Some(spec) = self.pod.spec.clone() else { return };
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        let role = in_start_order(&spec)
            .find(|(_, container)| container.name == name)
            .map(|(role, _)| role);
        if self.stopping.is_some() || !role.is_some_and(|role| restarts(role, policy, exit)) {
            return;
        }
        let view = self.view.containers.entry(name.to_owned()).or_default();
        let ran = view
            .record
            .as_ref()
            .map_or(0, |record| record.started_at.duration_until(Timestamp::now()).as_secs());
        let forgiven = u64::try_from(ran).unwrap_or(0) >= RESTART_FORGIVEN.as_secs();
        let pause = match self.restarts.get(name).filter(|_| !forgiven) {
            // The first end is followed by a start at once.
            None => Duration::ZERO,
            Some(last) if last.pause.is_zero() => RESTART_BACKOFF.0,
            Some(last) => last.pause.saturating_mul(2).min(RESTART_BACKOFF.1),
        };
        self.restarts.insert(
            name.to_owned(),
            Restart {
                at: Instant::now() + pause,
                pause,
            },
        );
        if !pause.is_zero() {
            let message = format!("back-off {}s restarting failed container={name}", pause.as_secs());
            view.waiting = Some(Waiting::new("CrashLoopBackOff", message));
            self.warn("BackOff", &format!("Back-off restarting failed container {name}"))
                .await;
        }
    }

    fn start_probes(&mut self, name: &str) {
        let container = self
            .pod
            .spec
            .iter()
            .flat_map(in_start_order)
            .find(|(_, container)| container.name == name);
        let (Some((_, container)), Some(ip)) = (container, self.view.ips.first()) else {
            return;
        };
        let process = self.processes.get(name).map(Process::id);
        // The container was started, so commands in it can be described, too.
        let exec = exec::describe(&self.pod, container, &self.view.ips);
        let (Some(process), Ok(exec)) = (process, exec) else {
            return;
        };
        let target = Target {
            container: container.clone(),
            ip: *ip,
            executable: self.context.config.executable.clone(),
            process,
            exec,
        };
        if let Some(running) = probes::start(&target, &self.probe_results.0) {
            self.probes.insert(name.to_owned(), running);
        }
    }

    pub(super) fn stop_probes(&mut self) {
        self.probes.clear();
    }

    async fn probed(&mut self, result: ProbeResult) {
        let ProbeResult {
            container,
            purpose,
            outcome,
        } = result;
        match (purpose, outcome) {
            (Purpose::Readiness, outcome) => {
                let view = self.view.containers.entry(container).or_default();
                view.ready = outcome.is_ok();
                if let Err(message) = outcome {
                    self.warn("Unhealthy", &format!("Readiness probe failed: {message}"))
                        .await;
                }
            }
            (Purpose::Liveness, Err(message)) => {
                self.warn("Unhealthy", &format!("Liveness probe failed: {message}"))
                    .await;
                if let Some(process) = self.processes.get(&container) {
                    process.signal(Signal::TERM);
                    // One that does not listen would stay for ever: a probe that goes on failing kills it.
                    if self
                        .probes
                        .get_mut(&container)
                        .is_some_and(probes::Running::told_before)
                    {
                        process.signal(Signal::KILL);
                    }
                }
            }
            (Purpose::Liveness, Ok(())) => {}
        }
    }

    pub(super) fn grace(&self) -> Duration {
        let seconds = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.termination_grace_period_seconds);
        Duration::from_secs(u64::try_from(seconds.unwrap_or(DEFAULT_GRACE)).unwrap_or(0))
    }

    /// Deletion: the grace is what the deletion says, counted from when it was asked.
    fn stop_for_deletion(&mut self) {
        let (grace, left) = self.grace_of_deletion();
        let asked = Deletion::asked(self.deletion, grace, left, Instant::now());
        if self.deletion.replace(asked) != Some(asked) {
            self.stop_by(asked.deadline);
        }
    }

    /// The grace of the deletion, and what is left of it by the wall clock.
    fn grace_of_deletion(&self) -> (Duration, Duration) {
        if self.gone.is_cancelled() {
            return (SIDECAR_GRACE, SIDECAR_GRACE);
        }
        let meta = &self.pod.metadata;
        let seconds = meta
            .deletion_grace_period_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        let grace = seconds.map_or_else(|| self.grace(), Duration::from_secs);
        let Some(until) = &meta.deletion_timestamp else {
            return (grace, grace);
        };
        // `deletionTimestamp` is the end of the grace.
        let left = Timestamp::now().duration_until(until.0);
        (
            grace,
            Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(0)),
        )
    }

    fn stop(&mut self, grace: Duration) {
        self.stop_by(Instant::now() + grace);
    }

    /// Begins to stop, or shortens the grace of what is being stopped.
    fn stop_by(&mut self, deadline: Instant) {
        match &mut self.stopping {
            Some(stopping) => stopping.deadline = stopping.deadline.min(deadline).max(Instant::now()),
            None => {
                self.stopping = Some(Stopping {
                    deadline,
                    sidecars_told: false,
                });
                self.signal_role(|role| role != Role::Sidecar, Signal::TERM);
            }
        }
    }

    /// Main containers first, then sidecars; also begins when the main ones have ended by themselves.
    fn stop_in_order(&mut self) {
        let mains_run = self.any_running(|role| role != Role::Sidecar);
        if self.stopping.is_none() && !mains_run && self.mains_are_over() {
            self.stop(self.grace());
        }
        if let Some(stopping) = &mut self.stopping
            && !mains_run
            && !stopping.sidecars_told
        {
            stopping.sidecars_told = true;
            stopping.deadline = Instant::now() + SIDECAR_GRACE;
            self.signal_role(|role| role == Role::Sidecar, Signal::TERM);
        }
    }

    fn kill_after_deadline(&mut self) {
        if self
            .stopping
            .is_some_and(|stopping| stopping.deadline <= Instant::now())
        {
            self.signal_role(|_| true, Signal::KILL);
            // SIGKILL works; what is awaited now is only the exit.
            if let Some(stopping) = &mut self.stopping {
                stopping.deadline = Instant::now() + SIDECAR_GRACE;
            }
        }
    }

    /// All main containers have ended and none will be started again.
    fn mains_are_over(&self) -> bool {
        let Some(spec) = &self.pod.spec else { return true };
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        spec.containers.iter().all(|container| {
            let ended = self.view.containers.get(&container.name).and_then(|view| view.ended());
            ended.is_some_and(|ended| !restarts(Role::Main, policy, ended.exit))
        })
    }

    fn role_of(&self, name: &str) -> Option<Role> {
        let mut containers = self.pod.spec.iter().flat_map(in_start_order);
        containers
            .find(|(_, container)| container.name == name)
            .map(|(role, _)| role)
    }

    fn any_running(&self, wanted: impl Fn(Role) -> bool) -> bool {
        self.processes
            .keys()
            .any(|name| self.role_of(name).is_some_and(&wanted))
    }

    fn signal_role(&self, wanted: impl Fn(Role) -> bool, signal: Signal) {
        for (name, process) in &self.processes {
            if self.role_of(name).is_none_or(&wanted) {
                process.signal(signal);
            }
        }
    }
}

/// Whether a container is started again after it ended so.
fn restarts(role: Role, policy: &str, exit: Exit) -> bool {
    match (role, policy) {
        (Role::Sidecar, _) => true,
        (Role::Init, "Never") => false,
        (Role::Init, _) | (Role::Main, "OnFailure") => exit != Exit::Code(0),
        (Role::Main, policy) => policy == "Always",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_smaller_grace_moves_the_end_of_a_deletion() {
        let seconds = Duration::from_secs;
        let begin = Instant::now();
        let known = Deletion {
            grace: seconds(30),
            deadline: begin + seconds(30),
        };
        for (what, known, [grace, left, now, expected]) in [
            ("just asked", None, [30, 30, 0, 30]),
            ("asked before this pod runner began", None, [30, 12, 0, 12]),
            ("over before this pod runner began", None, [30, 0, 0, 0]),
            ("the clock was set back before", None, [30, 900, 0, 30]),
            ("the clock went on", Some(known), [30, 20, 10, 30]),
            ("the clock was set forward", Some(known), [30, 0, 10, 30]),
            ("the clock was set back", Some(known), [30, 900, 10, 30]),
            ("a larger grace", Some(known), [60, 50, 10, 30]),
            ("a smaller grace", Some(known), [5, 0, 10, 15]),
            ("a smaller grace that would end later", Some(known), [20, 0, 15, 30]),
        ] {
            let asked = Deletion::asked(known, seconds(grace), seconds(left), begin + seconds(now));
            assert_eq!(asked.deadline, begin + seconds(expected), "{what}");
            let again = Deletion::asked(Some(asked), seconds(grace), seconds(0), begin + seconds(now + 1));
            assert_eq!(again, asked, "{what}");
        }
    }

    #[test]
    fn restart_rules() {
        for (role, policy, exit, expected) in [
            (Role::Main, "Never", Exit::Code(1), false),
            (Role::Main, "Never", Exit::Code(0), false),
            (Role::Main, "OnFailure", Exit::Code(0), false),
            (Role::Main, "OnFailure", Exit::Signal(9), true),
            (Role::Main, "Always", Exit::Code(0), true),
            (Role::Sidecar, "Never", Exit::Code(0), true),
            (Role::Init, "Never", Exit::Code(1), false),
            (Role::Init, "Always", Exit::Code(1), true),
            (Role::Init, "Always", Exit::Code(0), false),
        ] {
            assert_eq!(restarts(role, policy, exit), expected, "{role:?} {policy} {exit:?}");
        }
    }
}
