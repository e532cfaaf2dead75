//! File systems of the guest that stand still, and thaw by themselves in time.

use std::time::Duration;

use tokio::time::Instant;

use super::admission::Question;
use super::{AGENT_RETRY, Driver, Input, Reply, RequestError};
use crate::agent::{self, AgentError};

impl Driver {
    pub(super) async fn freeze(&self, thaw_after: Option<Duration>, reply: Reply<()>) {
        let domain = match self.respondent(Question::Freeze).await {
            Ok(Some(domain)) => domain,
            Ok(None) => return drop(reply.send(Err(RequestError::NoAgent))),
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (agent, to_self) = (self.parts.agent.clone(), self.to_self.clone());
        tokio::spawn(async move {
            let done = agent.freeze(domain).await;
            let _ = to_self.send(Input::Froze(true, thaw_after, done, Some(reply)));
        });
    }

    /// Without a `reply` because the time is over.
    pub(super) async fn thaw(&mut self, reply: Option<Reply<()>>) {
        let domain = match self.respondent(Question::Thaw).await {
            Ok(Some(domain)) => domain,
            Ok(None) => return self.not_thawed(reply, RequestError::NoAgent),
            Err(error) => return self.not_thawed(reply, error),
        };
        let (agent, to_self) = (self.parts.agent.clone(), self.to_self.clone());
        tokio::spawn(async move {
            let done = agent.thaw(domain).await;
            let _ = to_self.send(Input::Froze(false, None, done, reply));
        });
    }

    /// What is to thaw by itself is tried until it does.
    fn not_thawed(&mut self, reply: Option<Reply<()>>, error: RequestError) {
        match reply {
            Some(reply) => drop(reply.send(Err(error))),
            None => {
                tracing::warn!(%error, "the guest's file systems cannot be thawed yet");
                self.thaw_at = Some(Instant::now() + AGENT_RETRY);
            }
        }
    }

    pub(super) fn on_froze(
        &mut self,
        frozen: bool,
        thaw_after: Option<Duration>,
        done: Result<(), AgentError>,
        reply: Option<Reply<()>>,
    ) {
        let now = Instant::now();
        match (&done, frozen) {
            (Ok(()), _) => {
                self.thaw_at = thaw_after.map(|after| now + after);
                let known = self.publisher.guest_info();
                let info = agent::with_freeze_status(&known, frozen);
                self.publisher.update(|state| state.guest_info = info);
                // What could not be asked of a frozen guest is asked now.
                if !frozen && self.agent_connected {
                    self.next_report = Some(now);
                }
            }
            // Nobody knows what is frozen now, and nobody would thaw it.
            (Err(_), true) => self.thaw_at = Some(now),
            (Err(error), false) if reply.is_none() => {
                tracing::warn!(%error, "the guest's file systems cannot be thawed yet");
                self.thaw_at = Some(now + AGENT_RETRY);
            }
            (Err(_), false) => {}
        }
        if let Some(reply) = reply {
            let _ = reply.send(done.map_err(RequestError::from));
        }
    }
}
