//! File systems that stand still, for a snapshot that is whole.

use serde_json::json;
use tokio::sync::oneshot;
use virt::domain::Domain;
use virt::sys;

use super::{Agent, AgentError, FROZEN, Request, TIMEOUT, text};

/// Seconds the agent may take to write out and freeze, or to thaw; less than clients wait.
const FREEZE_TIMEOUT: i32 = 40;
/// How long a guest may take to react to the agent's reboot before it is asked otherwise.
const REBOOT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

impl Agent {
    /// Freezes the guest's file systems. Those that stand still already are left so.
    ///
    /// # Errors
    /// The agent does not do it; some may be frozen then.
    pub async fn freeze(&self, domain: Domain) -> Result<(), AgentError> {
        let status = json!({ "execute": "guest-fsfreeze-status" });
        let status: String = self.command_within(domain.clone(), &status, TIMEOUT).await?;
        if status == FROZEN {
            return Ok(());
        }
        let freeze = json!({ "execute": "guest-fsfreeze-freeze" });
        self.command_within::<i64>(domain, &freeze, FREEZE_TIMEOUT)
            .await
            .map(drop)
    }

    /// Thaws them.
    ///
    /// # Errors
    /// The agent does not do it.
    pub async fn thaw(&self, domain: Domain) -> Result<(), AgentError> {
        let thaw = json!({ "execute": "guest-fsfreeze-thaw" });
        self.command_within::<i64>(domain, &thaw, FREEZE_TIMEOUT)
            .await
            .map(drop)
    }

    /// Asks the guest to reboot, and waits until it does.
    ///
    /// # Errors
    /// It does not.
    pub async fn reboot(&self, domain: Domain) -> Result<(), AgentError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Reboot(domain, reply);
        self.requests.send(request).map_err(|_| AgentError::Gone)?;
        match tokio::time::timeout(REBOOT_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|_| AgentError::Gone)?,
            Err(_) => Err(AgentError::TimedOut(REBOOT_TIMEOUT)),
        }
    }
}

/// libvirt knows that the agent does not answer this one.
pub(super) fn reboot(domain: &Domain) -> Result<(), AgentError> {
    let done = domain.reboot(sys::VIR_DOMAIN_REBOOT_GUEST_AGENT);
    done.map_err(|error| AgentError::NoAnswer(text(error.message().to_owned())))
}
