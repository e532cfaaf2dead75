//! What clients ask the guest agent. The driver only decides whether it may be asked; the answer is awaited elsewhere.

use std::time::Duration;

use virt::domain::Domain;

use super::admission::{Question, Respondent, admit_question};
use super::{Driver, Reply, RequestError};
use crate::agent::{Command, Ended};

impl Driver {
    pub(super) async fn guest_info(&self, reply: Reply<Vec<u8>>) {
        let domain = match self.with_agent().await {
            Ok(domain) => domain,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let agent = self.parts.agent.clone();
        tokio::spawn(async move {
            let report = agent.collect(domain).await.filter(|report| !report.json.is_empty());
            let _ = reply.send(report.map(|report| report.json).ok_or(RequestError::NoAgent));
        });
    }

    pub(super) async fn ping(&self, timeout: Duration, reply: Reply<()>) {
        let domain = match self.respondent(Question::Ping).await {
            Ok(Some(domain)) => domain,
            Ok(None) => return drop(reply.send(Ok(()))),
            Err(error) => return drop(reply.send(Err(error))),
        };
        let agent = self.parts.agent.clone();
        tokio::spawn(async move {
            let answer = agent.ping(domain, timeout).await;
            let _ = reply.send(answer.map_err(RequestError::from));
        });
    }

    pub(super) async fn exec(&self, command: Command, reply: Reply<Ended>) {
        let domain = match self.respondent(Question::Exec).await {
            Ok(Some(domain)) => domain,
            Ok(None) => return drop(reply.send(Err(RequestError::NoAgent))),
            Err(error) => return drop(reply.send(Err(error))),
        };
        let agent = self.parts.agent.clone();
        tokio::spawn(async move {
            let answer = agent.exec(domain, command).await;
            let _ = reply.send(answer.map_err(RequestError::from));
        });
    }

    /// The domain whose agent is to be asked; `None` if nobody has to be.
    async fn respondent(&self, question: Question) -> Result<Option<Domain>, RequestError> {
        match admit_question(self.state.phase(), question).map_err(RequestError::Denied)? {
            Respondent::Nobody => Ok(None),
            Respondent::Agent => self.with_agent().await.map(Some),
        }
    }

    async fn with_agent(&self) -> Result<Domain, RequestError> {
        if self.agent_connected {
            Ok(self.parts.hypervisor.domain().await?)
        } else {
            Err(RequestError::NoAgent)
        }
    }
}
