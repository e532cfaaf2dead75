//! The guest's published state: whole, newest only, with a generation that grows by one per visible change.

use ferrovirt_protocol::launcher::{GuestState, Lifecycle};
use tokio::sync::watch;

/// The only writer of the published state.
pub struct Publisher {
    sender: watch::Sender<GuestState>,
}

impl Publisher {
    /// Starts with `WAITING`, generation 1.
    pub fn new() -> (Self, watch::Receiver<GuestState>) {
        let first = GuestState {
            generation: 1,
            lifecycle: Lifecycle::Waiting.into(),
            ..GuestState::default()
        };
        let (sender, receiver) = watch::channel(first);
        (Self { sender }, receiver)
    }

    /// What the guest agent said last.
    pub fn guest_info(&self) -> Vec<u8> {
        self.sender.borrow().guest_info.clone()
    }

    /// Changes the state; what changes nothing wakes no one.
    pub fn update(&self, change: impl FnOnce(&mut GuestState)) {
        self.sender.send_if_modified(|state| {
            let mut next = state.clone();
            change(&mut next);
            if next == *state {
                return false;
            }
            next.generation = state.generation + 1;
            *state = next;
            true
        });
    }

    /// Publishes where the guest is in its life.
    pub fn lifecycle(&self, lifecycle: Lifecycle, reason: &str, message: &str) {
        self.update(|state| {
            state.lifecycle = lifecycle.into();
            state.reason = reason.to_owned();
            state.message = message.to_owned();
        });
    }
}

/// Whether a guest is there, which must not end because of what is beside it.
pub fn has_guest(state: &GuestState) -> bool {
    matches!(
        state.lifecycle(),
        Lifecycle::Running | Lifecycle::Paused | Lifecycle::ShuttingDown
    )
}

/// Whether nothing follows this state.
pub fn is_final(state: &GuestState) -> bool {
    matches!(
        state.lifecycle(),
        Lifecycle::ShutOff | Lifecycle::Crashed | Lifecycle::Failed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_counts_changes_only() {
        let (publisher, receiver) = Publisher::new();
        assert!(!has_guest(&receiver.borrow()));
        publisher.lifecycle(Lifecycle::Running, "Booted", "");
        publisher.lifecycle(Lifecycle::Running, "Booted", "");
        assert_eq!(receiver.borrow().generation, 2);
        assert!(has_guest(&receiver.borrow()) && !is_final(&receiver.borrow()));
        publisher.lifecycle(Lifecycle::ShutOff, "Shutdown", "");
        assert_eq!(receiver.borrow().generation, 3);
        assert!(is_final(&receiver.borrow()) && !has_guest(&receiver.borrow()));
    }
}
