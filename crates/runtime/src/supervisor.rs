//! Owner of the tasks that a process cannot live without.
//!
//! ```text
//!  critical(..)*          shutdown asked               all ended, or grace over
//!  ───────────► Running ─────────────────► Stopping ────────────────────────────► Ok
//!                  │                           ▲
//!                  └─ a task ends, fails or ───┘ … ► Err(TaskError) naming that task
//!                     panics
//! ```

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

type BoxError = Box<dyn Error + Send + Sync>;

/// The first critical task that ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It returned an error.
    #[error("{task} failed")]
    Failed {
        /// Name given to [`Supervisor::critical`].
        task: &'static str,
        /// What it returned.
        #[source]
        source: BoxError,
    },
    /// It returned.
    #[error("{task} ended unexpectedly")]
    Ended {
        /// Name given to [`Supervisor::critical`].
        task: &'static str,
    },
    /// It panicked.
    #[error("a critical task panicked")]
    Panicked(#[source] JoinError),
}

/// Runs critical tasks; the first one to end takes the others down, in order.
pub struct Supervisor {
    token: CancellationToken,
    tasks: JoinSet<(&'static str, Result<(), BoxError>)>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new(CancellationToken::new())
    }
}

impl Supervisor {
    /// A supervisor whose tasks stop when `token` is cancelled.
    #[must_use]
    pub fn new(token: CancellationToken) -> Self {
        Self {
            token,
            tasks: JoinSet::new(),
        }
    }

    /// The token that tells tasks to end.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task that must run until [`Self::token`] is cancelled, and then return.
    pub fn critical<E>(&mut self, task: &'static str, future: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: Into<BoxError>,
    {
        self.tasks
            .spawn(async move { (task, future.await.map_err(Into::into)) });
    }

    /// Waits until `shutdown` completes or a task ends, cancels the token, and gives the tasks `grace` to return;
    /// those that do not are aborted.
    ///
    /// # Errors
    /// A task ended before `shutdown` did.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>, grace: Duration) -> Result<(), TaskError> {
        let outcome = tokio::select! {
            () = shutdown => Ok(()),
            () = self.token.cancelled() => Ok(()),
            Some(ended) = self.tasks.join_next() => Err(match ended {
                Ok((task, Ok(()))) => TaskError::Ended { task },
                Ok((task, Err(source))) => TaskError::Failed { task, source },
                Err(panic) => TaskError::Panicked(panic),
            }),
        };
        self.token.cancel();
        let drain = async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok((task, Ok(()))) => debug!(task, "stopped"),
                    Ok((task, Err(source))) => {
                        error!(task, error = %crate::logs::chain(source.as_ref()), "failed while stopping");
                    }
                    Err(panic) => error!(%panic, "panicked while stopping"),
                }
            }
        };
        if tokio::time::timeout(grace, drain).await.is_err() {
            warn!(tasks = self.tasks.len(), "tasks did not stop in time and are aborted");
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    const GRACE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn the_first_failure_stops_the_others_and_is_named() {
        let mut supervisor = Supervisor::default();
        let token = supervisor.token();
        supervisor.critical("bystander", async move {
            token.cancelled().await;
            Ok::<_, io::Error>(())
        });
        supervisor.critical("store", async { Err(io::Error::other("disk full")) });
        let error = supervisor.run(std::future::pending(), GRACE).await.unwrap_err();
        assert_eq!(crate::logs::chain(&error), "store failed: disk full");
    }

    #[tokio::test]
    async fn a_task_that_just_returns_is_an_error() {
        let mut supervisor = Supervisor::default();
        supervisor.critical("scheduler", async { Ok::<_, io::Error>(()) });
        let error = supervisor.run(std::future::pending(), GRACE).await.unwrap_err();
        assert_eq!(error.to_string(), "scheduler ended unexpectedly");
    }

    #[tokio::test]
    async fn shutdown_waits_for_the_tasks() {
        let mut supervisor = Supervisor::default();
        let token = supervisor.token();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        supervisor.critical("store", async move {
            token.cancelled().await;
            sender.send(()).unwrap();
            Ok::<_, io::Error>(())
        });
        supervisor.run(async {}, GRACE).await.unwrap();
        receiver.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_is_aborted() {
        let mut supervisor = Supervisor::default();
        supervisor.critical("stubborn", std::future::pending::<Result<(), io::Error>>());
        supervisor.run(async {}, GRACE).await.unwrap();
    }
}
