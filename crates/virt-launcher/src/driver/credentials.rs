//! Keys and passwords that the guest agent gives to users: when it connects, and when their Secrets change.

use std::time::Duration;

use ferrovirt_core::machine::AccessCredential;
use ferrovirt_protocol::launcher::AccessCredentials;
use tokio::time::Instant;

use super::{AGENT_RETRY, Driver, Input};
use crate::credentials::{Order, by_agent, orders};

/// How often the Secrets are looked at. A kubelet itself takes up to a minute to bring a change.
const LOOK: Duration = Duration::from_secs(5);

/// What the agent is to give, and has given.
#[derive(Default)]
pub(super) struct Credentials {
    list: Vec<AccessCredential>,
    /// What this agent has done; a guest that booted anew may have forgotten it.
    done: Option<Vec<Order>>,
    /// When the Secrets are looked at again.
    pub(super) next: Option<Instant>,
}

impl Driver {
    /// The guest has started.
    pub(super) fn credentials_known(&mut self, mut list: Vec<AccessCredential>) {
        list.retain(by_agent);
        if list.is_empty() {
            return;
        }
        self.credentials.list = list;
        self.credentials_agent(self.agent_connected);
    }

    /// The agent came or went.
    pub(super) fn credentials_agent(&mut self, connected: bool) {
        if self.credentials.list.is_empty() {
            return;
        }
        self.credentials.done = None;
        self.credentials.next = connected.then(Instant::now);
        if !connected {
            self.tell_credentials(false, "Guest agent is offline");
        }
    }

    pub(super) async fn sync_credentials(&mut self) {
        self.credentials.next = Some(Instant::now() + LOOK);
        let wanted = match orders(&self.parts.layout, &self.credentials.list) {
            Ok(wanted) => wanted,
            Err(error) => return self.tell_credentials(false, &error.to_string()),
        };
        if self.credentials.done.as_ref() == Some(&wanted) {
            return;
        }
        let Ok(domain) = self.parts.hypervisor.domain().await else {
            return;
        };
        // Not again before this has ended.
        self.credentials.next = None;
        let (agent, to_self) = (self.parts.agent.clone(), self.to_self.clone());
        tokio::spawn(async move {
            let mut result = Ok(());
            for order in &wanted {
                let done = agent.order(domain.clone(), &order.command()).await;
                // One user's trouble is not another's.
                result = result.and(done.map_err(|error| format!("user {:?}: {error}", order.user())));
            }
            let _ = to_self.send(Input::Ordered(wanted, result));
        });
    }

    pub(super) fn on_ordered(&mut self, orders: Vec<Order>, result: Result<(), String>) {
        if !self.agent_connected {
            return;
        }
        match result {
            Ok(()) => {
                self.credentials.done = Some(orders);
                self.credentials.next = Some(Instant::now() + LOOK);
                self.tell_credentials(true, "");
            }
            Err(message) => {
                self.credentials.next = Some(Instant::now() + AGENT_RETRY);
                self.tell_credentials(false, &message);
            }
        }
    }

    fn tell_credentials(&self, synchronized: bool, message: &str) {
        self.publisher.update(|state| {
            state.access_credentials = Some(AccessCredentials {
                synchronized,
                message: message.to_owned(),
            });
        });
    }
}
