//! What clients ask the guest agent, and of the screen. The driver only decides whether it may be asked; the answer is awaited elsewhere.

use std::time::Duration;

use virt::domain::Domain;

use super::admission::{Question, Respondent, admit_question, admit_screenshot};
use super::{Driver, Reply, RequestError};
use crate::agent::{AgentError, Command, Ended};
use crate::hypervisor::Verb;
use crate::screen;

impl Driver {
    pub(super) async fn guest_info(&self, reply: Reply<Vec<u8>>) {
        let domain = match self.with_agent().await {
            Ok(domain) => domain,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (agent, known) = (self.parts.agent.clone(), self.publisher.guest_info());
        tokio::spawn(async move {
            let report = agent.collect(domain).await.filter(|report| !report.json.is_empty());
            let _ = reply.send(report.map(|report| report.over(&known)).ok_or(RequestError::NoAgent));
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

    /// Through the agent, whom the guest believes; else by ACPI.
    pub(super) async fn soft_reboot(&self, reply: Reply<()>) {
        if let Err(denied) = admit_question(self.state.phase(), Question::Reboot) {
            return drop(reply.send(Err(RequestError::Denied(denied))));
        }
        let domain = self.with_agent().await.ok();
        let (agent, hypervisor) = (self.parts.agent.clone(), self.parts.hypervisor.clone());
        tokio::spawn(async move {
            let done = match domain {
                Some(domain) => agent.reboot(domain).await,
                None => Err(AgentError::Gone),
            };
            let done = match done {
                Ok(()) => Ok(()),
                Err(error) => {
                    tracing::info!(%error, "the guest agent does not reboot the guest; pressing its power button");
                    hypervisor.act(Verb::AcpiReboot).await.map_err(RequestError::from)
                }
            };
            let _ = reply.send(done);
        });
    }

    /// In the background, as statistics are.
    pub(super) async fn screenshot(&self, wake: bool, reply: Reply<Vec<u8>>) {
        let domain = match admit_screenshot(self.state.phase()) {
            Ok(()) => self.parts.hypervisor.domain().await.map_err(RequestError::from),
            Err(denied) => Err(RequestError::Denied(denied)),
        };
        let domain = match domain {
            Ok(domain) => domain,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let vnc = self.parts.layout.vnc_socket();
        tokio::spawn(async move {
            if wake && let Err(error) = screen::wake(&vnc).await {
                tracing::info!(%error, "cannot move the pointer on the guest's screen");
            }
            let _ = reply.send(screen::shot(domain).await.map_err(RequestError::from));
        });
    }

    /// The domain whose agent is to be asked; `None` if nobody has to be.
    pub(super) async fn respondent(&self, question: Question) -> Result<Option<Domain>, RequestError> {
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
