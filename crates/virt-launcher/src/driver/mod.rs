//! The driver: the one task that owns the guest.
//!
//! ```text
//!            Sync               disks, domain, start
//!  Waiting ────────► Preparing ──────────────────────► Running ◄──────► Paused
//!     │                  │                               │  │              │
//!     │ Shutdown, Kill   │ a step fails                  │  │ Shutdown     │ Shutdown
//!     ▼                  ▼                               │  ▼              │
//!  SHUT_OFF           FAILED                             │ ShuttingDown ◄──┘
//!                                                        │  │  asked every 5 s, destroyed after the grace
//!                                                        ▼  ▼
//!                                               SHUT_OFF or CRASHED
//! ```
//!
//! Happy path: `Sync` starts the guest, the guest powers itself off, `SHUT_OFF` with reason `Shutdown`.
//! Failure paths: a start step fails (`FAILED` with the step as reason), or QEMU ends by itself (`CRASHED`).
//! libvirtd's death is no transition: it is started again, and what it then finds is treated like an event.
//!
//! Requests, libvirt's events, timers and the results of background work are items of queues; events go first.
//! Nothing else changes the guest or its published state.

mod admission;
mod attestation;
mod credentials;
mod freeze;
mod publisher;
mod questions;
mod start;

use std::path::PathBuf;
use std::time::Duration;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_protocol::launcher::{GuestState, Lifecycle, NodeFacts, SevMeasurementReply, SevPlatformReply};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use admission::{Action, Denied};
pub use publisher::{has_guest, is_final};

use crate::agent::{Agent, AgentError, Command, Ended, Report};
use crate::children::Children;
use crate::credentials::Order;
use crate::hypervisor::{self, Activity, Event, Hypervisor, Stats, Verb};
use crate::layout::Layout;
use crate::screen::ScreenError;
use admission::{Phase, Step, admit};
use credentials::Credentials;
use publisher::Publisher;
use start::{StartFailure, Started};

/// How often a guest that shuts down is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// After how long the agent is asked what is new: soon after it connects, since a guest that boots gets its addresses
/// and its name then; later only now and then.
const AGENT_INTERVALS: [Duration; 5] = [
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(40),
    Duration::from_secs(80),
    Duration::from_secs(120),
];
/// When an agent that did not answer everything is asked again.
const AGENT_RETRY: Duration = Duration::from_secs(10);
/// Longer grace periods are cut to this.
const MAX_GRACE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not now.
    #[error("{0}")]
    Denied(Denied),
    /// libvirt did not do it.
    #[error("libvirt: {0}")]
    Libvirt(#[from] hypervisor::Error),
    /// The guest agent is not there.
    #[error("the guest agent is not connected")]
    NoAgent,
    /// It is, and does not do what it is asked.
    #[error("{0}")]
    Agent(#[from] AgentError),
    /// There is no picture of the screen.
    #[error("{0}")]
    Screen(#[from] ScreenError),
    /// The guest's firmware cannot be read.
    #[error("cannot read the guest's firmware {path}: {1}", path = .0.display())]
    Firmware(PathBuf, #[source] std::io::Error),
}

type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// What the driver is asked or told.
pub enum Input {
    /// Make the guest what the VMI says.
    Sync(Box<VirtualMachineInstance>, NodeFacts, Reply<()>),
    /// Do one thing; the duration is the grace of a shutdown.
    Act(Action, Duration, Reply<()>),
    /// What does the agent say now?
    GuestInfo(Reply<Vec<u8>>),
    /// Does the agent answer within this time?
    Ping(Duration, Reply<()>),
    /// Run this in the guest.
    Exec(Command, Reply<Ended>),
    /// Freeze the guest's file systems, and thaw them after this time in any case.
    Freeze(Option<Duration>, Reply<()>),
    /// Thaw them.
    Thaw(Reply<()>),
    /// They were frozen (true) or thawed, or not.
    Froze(bool, Option<Duration>, Result<(), AgentError>, Option<Reply<()>>),
    /// Ask the guest to reboot.
    SoftReboot(Reply<()>),
    /// What does the screen show? A screen that is asleep is woken first, if asked for.
    Screenshot(bool, Reply<Vec<u8>>),
    /// What does the guest use?
    Stats(Reply<Stats>),
    /// What is the node's AMD SEV?
    SevPlatform(Reply<SevPlatformReply>),
    /// What did it measure when the guest was started?
    SevMeasurement(Reply<SevMeasurementReply>),
    /// Lay this into the guest's memory.
    SevSecret(hypervisor::sev::Secret, Reply<()>),
    /// The pod is being stopped.
    Terminate,
    /// The start ended.
    Started(Result<Started, StartFailure>),
    /// The agent answered.
    Reported(Report),
    /// The agent has done these orders, or why not.
    Ordered(Vec<Order>, Result<(), String>),
}

/// How the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was shut down or destroyed on request, or never wanted.
    ShutOff,
    /// It crashed or could not be started.
    Failed,
}

enum State {
    Waiting,
    Preparing {
        abort: CancellationToken,
        ended: Option<Activity>,
    },
    Running,
    Paused,
    ShuttingDown {
        deadline: Instant,
        ask_again: Instant,
    },
    Ended(Outcome),
}

impl State {
    fn phase(&self) -> Phase {
        match self {
            Self::Waiting => Phase::Waiting,
            Self::Preparing { .. } => Phase::Preparing,
            Self::Running => Phase::Running,
            Self::Paused => Phase::Paused,
            Self::ShuttingDown { .. } => Phase::ShuttingDown,
            Self::Ended(_) => Phase::Ended,
        }
    }
}

/// Everything the driver works with.
pub struct Parts {
    /// Paths.
    pub layout: Layout,
    /// Processes.
    pub children: Children,
    /// libvirt.
    pub hypervisor: Hypervisor,
    /// Its events.
    pub events: mpsc::UnboundedReceiver<Event>,
    /// The guest agent.
    pub agent: Agent,
    /// Grace of a shutdown before the VMI is known.
    pub default_grace: Duration,
    /// How many hook sidecars the pod has, if it was said.
    pub hook_sidecars: Option<usize>,
    /// Serial consoles are logged unless they say otherwise.
    pub console_log: bool,
}

/// The driver.
pub struct Driver {
    parts: Parts,
    publisher: Publisher,
    inputs: mpsc::UnboundedReceiver<Input>,
    to_self: mpsc::UnboundedSender<Input>,
    state: State,
    grace: Duration,
    asked_at: Instant,
    agent_connected: bool,
    agent_retried: bool,
    /// How often the agent has answered since it connected.
    agent_answers: usize,
    next_report: Option<Instant>,
    credentials: Credentials,
    /// When file systems are thawed that stand still.
    thaw_at: Option<Instant>,
    /// What the guest asks by other ways than its agent.
    servers: JoinSet<()>,
}

impl Driver {
    /// A driver, its input, and the published state.
    pub fn new(parts: Parts) -> (Self, mpsc::UnboundedSender<Input>, watch::Receiver<GuestState>) {
        let (publisher, published) = Publisher::new();
        let (sender, inputs) = mpsc::unbounded_channel();
        let driver = Self {
            grace: parts.default_grace,
            parts,
            publisher,
            inputs,
            to_self: sender.clone(),
            state: State::Waiting,
            asked_at: Instant::now(),
            agent_connected: false,
            agent_retried: false,
            agent_answers: 0,
            next_report: None,
            credentials: Credentials::default(),
            thaw_at: None,
            servers: JoinSet::new(),
        };
        (driver, sender, published)
    }

    /// Drives the guest to its end.
    pub async fn run(mut self) -> Outcome {
        loop {
            if let State::Ended(outcome) = self.state {
                return outcome;
            }
            let wake = self.next_wake();
            tokio::select! {
                biased;
                Some(event) = self.parts.events.recv() => self.on_event(event),
                Some(input) = self.inputs.recv() => self.on_input(input).await,
                () = sleep_until(wake) => self.on_time().await,
            }
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let shutdown = match self.state {
            State::ShuttingDown { deadline, ask_again } => Some(deadline.min(ask_again)),
            _ => None,
        };
        let others = self.next_report.into_iter().chain(self.credentials.next);
        shutdown.into_iter().chain(others).chain(self.thaw_at).min()
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        if self.next_report.is_some_and(|at| at <= now) {
            self.next_report = None;
            self.ask_agent().await;
        }
        if self.credentials.next.is_some_and(|at| at <= now) {
            self.sync_credentials().await;
        }
        if self.thaw_at.is_some_and(|at| at <= now) {
            self.thaw_at = None;
            self.thaw(None).await;
        }
        if let State::ShuttingDown { deadline, ask_again } = self.state {
            if deadline <= now {
                tracing::info!("the grace period is over; destroying the guest");
                if let Err(error) = self.parts.hypervisor.act(Verb::Destroy).await {
                    tracing::warn!(%error, "cannot destroy the guest");
                }
                // If that failed for a reason that passes, try again.
                self.state = State::ShuttingDown {
                    deadline: now + ASK_AGAIN,
                    ask_again: now + MAX_GRACE,
                };
            } else if ask_again <= now {
                self.state = State::ShuttingDown {
                    deadline,
                    ask_again: now + ASK_AGAIN,
                };
                self.power_button().await;
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Activity(activity) => self.on_activity(activity),
            Event::Agent(connected) => self.on_agent(connected),
            Event::Connected(observed) => match (&self.state, observed) {
                (State::Waiting | State::Preparing { .. } | State::Ended(_), _) => {}
                (_, Some((activity, agent))) => {
                    tracing::info!(?activity, "found the guest again");
                    self.on_activity(activity);
                    self.on_agent(agent);
                }
                (_, None) => self.end(&Activity::Crashed("Unknown")),
            },
        }
    }

    fn on_activity(&mut self, activity: Activity) {
        match (&mut self.state, &activity) {
            (State::Preparing { ended, .. }, Activity::Off(_) | Activity::Crashed(_)) => *ended = Some(activity),
            (State::Running | State::Paused | State::ShuttingDown { .. }, Activity::Off(_) | Activity::Crashed(_)) => {
                self.end(&activity);
            }
            (State::Paused, Activity::Running) => self.running("Unpaused"),
            (State::Running, Activity::Paused(reason)) if *reason != "ShuttingDown" => self.paused(reason),
            (
                State::Waiting
                | State::Preparing { .. }
                | State::Running
                | State::Paused
                | State::ShuttingDown { .. }
                | State::Ended(_),
                _,
            ) => {}
        }
    }

    fn on_agent(&mut self, connected: bool) {
        if self.agent_connected == connected {
            return;
        }
        self.agent_connected = connected;
        self.agent_retried = false;
        self.agent_answers = 0;
        self.next_report = connected.then(Instant::now);
        self.credentials_agent(connected);
        self.publisher.update(|state| {
            state.agent_connected = connected;
            if !connected {
                state.guest_info.clear();
            }
        });
    }

    async fn on_input(&mut self, input: Input) {
        match input {
            Input::Sync(vmi, node, reply) => drop(reply.send(self.sync(*vmi, node))),
            Input::Act(action, grace, reply) => {
                let done = self.act(action, grace).await;
                let _ = reply.send(done);
            }
            Input::GuestInfo(reply) => self.guest_info(reply).await,
            Input::Ping(timeout, reply) => self.ping(timeout, reply).await,
            Input::Exec(command, reply) => self.exec(command, reply).await,
            Input::Freeze(thaw_after, reply) => self.freeze(thaw_after, reply).await,
            Input::Thaw(reply) => self.thaw(Some(reply)).await,
            Input::Froze(frozen, thaw_after, done, reply) => self.on_froze(frozen, thaw_after, done, reply),
            Input::SoftReboot(reply) => self.soft_reboot(reply).await,
            Input::Screenshot(wake, reply) => self.screenshot(wake, reply).await,
            Input::Stats(reply) => self.stats(reply),
            Input::SevPlatform(reply) => self.sev_platform(reply),
            Input::SevMeasurement(reply) => self.sev_measurement(reply),
            Input::SevSecret(secret, reply) => {
                let done = self.sev_secret(secret).await;
                let _ = reply.send(done);
            }
            Input::Terminate => {
                tracing::info!("asked to end");
                if let Err(error) = self.act(Action::Shutdown, self.grace).await {
                    tracing::warn!(%error, "cannot shut the guest down");
                }
            }
            Input::Started(result) => self.on_started(result).await,
            Input::Reported(report) => self.on_report(report),
            Input::Ordered(orders, result) => self.on_ordered(orders, result),
        }
    }

    fn sync(&mut self, vmi: VirtualMachineInstance, node: NodeFacts) -> Result<(), RequestError> {
        match self.state.phase() {
            Phase::Waiting => {}
            // The guest is what it was asked to be; nothing of it can be changed while it runs yet.
            Phase::Preparing | Phase::Running | Phase::Paused | Phase::ShuttingDown => return Ok(()),
            Phase::Ended => return Err(RequestError::Denied(Denied::Ended)),
        }
        self.asked_at = Instant::now();
        let abort = CancellationToken::new();
        self.state = State::Preparing {
            abort: abort.clone(),
            ended: None,
        };
        self.publisher.lifecycle(Lifecycle::Preparing, "", "");
        let context = start::Context {
            hook_sidecars: self.parts.hook_sidecars,
            console_log: self.parts.console_log,
            layout: self.parts.layout.clone(),
            children: self.parts.children.clone(),
            hypervisor: self.parts.hypervisor.clone(),
        };
        let to_self = self.to_self.clone();
        tokio::spawn(async move {
            let _ = to_self.send(Input::Started(start::start(context, vmi, node, abort).await));
        });
        Ok(())
    }

    async fn on_started(&mut self, result: Result<Started, StartFailure>) {
        let State::Preparing { abort, ended } = &mut self.state else {
            return;
        };
        let (abort, ended) = (abort.is_cancelled(), ended.take());
        let started = match result {
            Ok(started) => started,
            Err(failure) if abort => {
                tracing::info!(error = failure.message, "the start was ended");
                self.ended_before_start();
                return;
            }
            Err(failure) => {
                tracing::error!(
                    reason = failure.reason,
                    error = failure.message,
                    "the guest cannot be started"
                );
                self.publisher
                    .lifecycle(Lifecycle::Failed, failure.reason, &failure.message);
                self.state = State::Ended(Outcome::Failed);
                return;
            }
        };
        tracing::info!(
            milliseconds = self.asked_at.elapsed().as_millis(),
            "the guest was started"
        );
        self.grace = started.grace;
        self.credentials_known(started.credentials);
        for server in started.dhcp {
            self.servers.spawn(server.run());
        }
        if let Some(reporter) = started.metrics {
            self.servers.spawn(reporter.run());
        }
        self.publisher.update(|state| {
            state.domain_type = started.description.domain_type;
            state.machine_type = started.description.machine_type;
            state.volumes = serde_json::to_vec(&started.description.disks).unwrap_or_default();
        });
        match (started.paused, ended) {
            (_, Some(activity)) => return self.end(&activity),
            (true, None) => self.paused("StartingUp"),
            (false, None) => self.running("Booted"),
        }
        if abort && let Err(error) = self.act(Action::Kill, Duration::ZERO).await {
            tracing::warn!(%error, "cannot end the guest that is no longer wanted");
        }
    }

    async fn act(&mut self, action: Action, grace: Duration) -> Result<(), RequestError> {
        match admit(self.state.phase(), action).map_err(RequestError::Denied)? {
            Step::Nothing => Ok(()),
            Step::EndWithoutGuest => {
                self.ended_before_start();
                Ok(())
            }
            Step::AbortStart => {
                if let State::Preparing { abort, .. } = &self.state {
                    abort.cancel();
                }
                Ok(())
            }
            Step::Do => self.perform(action, grace).await,
        }
    }

    fn ended_before_start(&mut self) {
        self.publisher
            .lifecycle(Lifecycle::ShutOff, "Destroyed", "ended before it was started");
        self.state = State::Ended(Outcome::ShutOff);
    }

    async fn perform(&mut self, action: Action, grace: Duration) -> Result<(), RequestError> {
        let hypervisor = &self.parts.hypervisor;
        match action {
            Action::Pause => {
                hypervisor.act(Verb::Suspend).await?;
                self.paused("User");
            }
            Action::Unpause => {
                hypervisor.act(Verb::Resume).await?;
                self.running("Unpaused");
            }
            Action::Reset => hypervisor.act(Verb::Reset).await?,
            Action::Kill => hypervisor.act(Verb::Destroy).await?,
            Action::Shutdown if grace.is_zero() => hypervisor.act(Verb::Destroy).await?,
            Action::Shutdown => self.shut_down(grace).await,
        }
        Ok(())
    }

    async fn shut_down(&mut self, grace: Duration) {
        let now = Instant::now();
        let asked = now + grace.min(MAX_GRACE);
        if let State::ShuttingDown { deadline, .. } = &mut self.state {
            // Asked again: the grace period can be made shorter, never longer.
            *deadline = asked.min(*deadline);
            return;
        }
        if matches!(self.state, State::Paused) {
            // A guest that stands still cannot end by itself.
            if let Err(error) = self.parts.hypervisor.act(Verb::Resume).await {
                tracing::info!(%error, "cannot unpause the guest for its shutdown");
            }
        }
        self.state = State::ShuttingDown {
            deadline: asked,
            ask_again: now + ASK_AGAIN,
        };
        self.publisher.lifecycle(Lifecycle::ShuttingDown, "", "");
        if self.agent_connected {
            match self.parts.hypervisor.domain().await {
                Ok(domain) => return self.parts.agent.shut_down(domain),
                Err(error) => tracing::warn!(%error, "cannot ask the guest agent"),
            }
        }
        self.power_button().await;
    }

    async fn power_button(&self) {
        if let Err(error) = self.parts.hypervisor.act(Verb::AcpiShutdown).await {
            tracing::warn!(%error, "cannot press the guest's power button");
        }
    }

    fn running(&mut self, reason: &str) {
        self.state = State::Running;
        self.publisher.lifecycle(Lifecycle::Running, reason, "");
    }

    fn paused(&mut self, reason: &str) {
        self.state = State::Paused;
        self.publisher.lifecycle(Lifecycle::Paused, reason, "");
    }

    fn end(&mut self, activity: &Activity) {
        let (lifecycle, reason, message, outcome) = match activity {
            Activity::Off(reason) => (Lifecycle::ShutOff, *reason, "", Outcome::ShutOff),
            Activity::Crashed(reason) => (
                Lifecycle::Crashed,
                *reason,
                // libvirt says both of a guest that told of its panic by a device.
                if matches!(*reason, "Panicked" | "Crashed") {
                    "the guest panicked"
                } else {
                    "the guest's QEMU process ended unexpectedly"
                },
                Outcome::Failed,
            ),
            Activity::Running | Activity::Paused(_) => return,
        };
        tracing::info!(?activity, "the guest has ended");
        self.publisher.update(|state| {
            state.lifecycle = lifecycle.into();
            state.reason = reason.to_owned();
            state.message = message.to_owned();
            state.agent_connected = false;
            state.guest_info.clear();
        });
        self.state = State::Ended(outcome);
    }

    async fn ask_agent(&mut self) {
        let Ok(domain) = self.parts.hypervisor.domain().await else {
            self.next_report = Some(Instant::now() + AGENT_RETRY);
            return;
        };
        let (agent, to_self) = (self.parts.agent.clone(), self.to_self.clone());
        tokio::spawn(async move {
            if let Some(report) = agent.collect(domain).await {
                let _ = to_self.send(Input::Reported(report));
            }
        });
    }

    fn on_report(&mut self, report: Report) {
        if !self.agent_connected {
            return;
        }
        // Asked again soon only once: an agent that lacks a command for good is not asked every few seconds.
        let soon = !report.complete && !std::mem::replace(&mut self.agent_retried, true);
        let wait = if soon {
            AGENT_RETRY
        } else {
            agent_interval(self.agent_answers)
        };
        self.next_report = Some(Instant::now() + wait);
        self.agent_answers += 1;
        if !report.json.is_empty() {
            let known = self.publisher.guest_info();
            self.publisher.update(|state| state.guest_info = report.over(&known));
        }
    }

    /// In the background: nothing has to wait for statistics.
    fn stats(&self, reply: Reply<Stats>) {
        let there = matches!(self.state, State::Running | State::Paused | State::ShuttingDown { .. });
        let hypervisor = self.parts.hypervisor.clone();
        tokio::spawn(async move {
            let stats = if there {
                hypervisor.stats().await
            } else {
                Ok(Stats::new())
            };
            let _ = reply.send(stats.map_err(RequestError::from));
        });
    }
}

/// How long after an answer of the agent it is asked again, if it answered so often before.
fn agent_interval(answers: usize) -> Duration {
    AGENT_INTERVALS[answers.min(AGENT_INTERVALS.len() - 1)]
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_has_just_connected_is_asked_more_often() {
        let waits: Vec<u64> = (0..7).map(|answers| agent_interval(answers).as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 120, 120, 120]);
    }
}
