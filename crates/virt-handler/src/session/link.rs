//! Keeps a session connected to its launcher and publishes what the launcher says.
//!
//! ```text
//!            socket appears            process proved
//! Waiting ───────────────► Connecting ───────────────► Following ─┐ newest GuestState
//!    ▲                        │   │                      │   ▲────┘
//!    └── socket not ready ────┘   │ nobody listens,      │ stream ends
//!                                 │ impostor             ├─ process lives ──► Connecting
//!                                 ▼                      └─ process gone ───► Gone
//!                               Gone            after a final state: end
//! ```

use std::path::PathBuf;
use std::time::Duration;

use ferrovirt_protocol::launcher::{GuestState, Lifecycle, WatchRequest};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::launcher::{ConnectError, Launcher};
use super::report;
use crate::sockets;

/// Between binding and listening a socket refuses; longer than this means that its owner is dead.
const REFUSED_FOR: Duration = Duration::from_secs(2);
/// Least time between reports that are no news.
const CHATTER: Duration = Duration::from_millis(20);
/// An honest guest changes its course less often than so many times, each of which takes no longer than this.
const COURSES: u32 = 20;
const COURSE: Duration = Duration::from_secs(1);
/// How long a process may outlive its connection before it counts as alive.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// What is known of a launcher. Only the newest value matters.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkView {
    /// Connected now.
    pub(crate) launcher: Option<Launcher>,
    /// The newest state it reported.
    pub(crate) guest: Option<GuestState>,
    /// The process is gone; nothing follows.
    pub(crate) gone: bool,
    /// It was connected to once.
    pub(crate) met: bool,
    /// Why it will never be talked to; nothing follows.
    pub(crate) rejected: Option<String>,
}

/// Where the launcher is.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) pods_dir: PathBuf,
    pub(crate) pod_uid: String,
    pub(crate) user: u32,
}

/// Runs until the launcher is gone or rejected. Cancel safe.
pub(crate) async fn run(address: Address, view: watch::Sender<LinkView>) {
    let relative = sockets::launcher_socket(&address.pod_uid);
    let mut refused_for = Duration::ZERO;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Err(error) = sockets::appeared(&address.pods_dir, &relative).await {
            tracing::warn!(pod = address.pod_uid, %error, "cannot wait for the launcher's socket");
            sleep(Duration::from_secs(1)).await;
            continue;
        }
        match Launcher::connect(&address.pods_dir, &address.pod_uid, address.user).await {
            Ok(launcher) => {
                (refused_for, pause) = (Duration::ZERO, Duration::from_millis(5));
                view.send_modify(|view| {
                    view.launcher = Some(launcher.clone());
                    view.met = true;
                });
                follow(&launcher, &view).await;
                view.send_modify(|view| view.launcher = None);
                let ended = |guest: &GuestState| {
                    matches!(
                        guest.lifecycle(),
                        Lifecycle::ShutOff | Lifecycle::Crashed | Lifecycle::Failed
                    )
                };
                if view.borrow().guest.as_ref().is_some_and(ended) {
                    // It has said all; if it lives on, there is nothing more to hear.
                    return;
                }
                if matches!(timeout(EXIT_GRACE, launcher.exited()).await, Ok(Ok(()))) {
                    view.send_modify(|view| view.gone = true);
                    return;
                }
            }
            Err(ConnectError::Impostor(why)) => {
                let why = ConnectError::Impostor(why).to_string();
                tracing::error!(pod = address.pod_uid, "{why}");
                view.send_modify(|view| view.rejected = Some(why));
                return;
            }
            Err(ConnectError::Refused) if refused_for >= REFUSED_FOR => {
                view.send_modify(|view| view.gone = true);
                return;
            }
            Err(error) => {
                if matches!(error, ConnectError::Refused) {
                    refused_for += pause;
                } else {
                    tracing::debug!(pod = address.pod_uid, error = %ferrovirt_runtime::logs::chain(&error), "not connected");
                }
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(500));
            }
        }
    }
}

/// Publishes states until the stream ends. A state that was sent before the launcher died is still read.
async fn follow(launcher: &Launcher, view: &watch::Sender<LinkView>) {
    let mut client = launcher.client.clone();
    let mut states = match client.watch(WatchRequest {}).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            tracing::debug!(%status, "the launcher does not let itself be watched");
            return;
        }
    };
    let mut patience = Patience::new(Instant::now());
    let ended = loop {
        match states.message().await {
            Ok(Some(state)) => {
                let state = report::bounded(state);
                let news = view
                    .borrow()
                    .guest
                    .as_ref()
                    .is_none_or(|old| old.lifecycle != state.lifecycle);
                view.send_modify(|view| view.guest = Some(state));
                // A launcher that talks without end is not listened to without end.
                sleep(patience.pause(news, Instant::now())).await;
            }
            Ok(None) => return,
            Err(status) => break status,
        }
    };
    if matches!(ended.code(), tonic::Code::OutOfRange | tonic::Code::ResourceExhausted) {
        tracing::warn!(status = ended.message(), "a launcher said more than is listened to");
    }
}

/// How long a launcher is left alone after a report.
struct Patience {
    /// Changes of course that cost nothing.
    left: u32,
    since: Instant,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self {
            left: COURSES,
            since: now,
        }
    }

    fn pause(&mut self, news: bool, now: Instant) -> Duration {
        if !news {
            return CHATTER;
        }
        if now.duration_since(self.since) >= COURSE * COURSES {
            *self = Self::new(now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Duration::ZERO
            }
            None => COURSE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_and_comes_back() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        assert_eq!(patience.pause(false, start), CHATTER);
        for _ in 0..COURSES {
            assert_eq!(patience.pause(true, start), Duration::ZERO);
        }
        assert_eq!(patience.pause(true, start), COURSE);
        assert_eq!(patience.pause(true, start + COURSE * COURSES), Duration::ZERO);
    }
}
