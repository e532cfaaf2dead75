//! Events are kept for an hour. Old ones go when new ones come, so that nothing has to wake up for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::delete_object;
use crate::server::Inner;
use crate::store::Key;

const KEEP: Duration = Duration::from_secs(3600);
/// More than this are never kept.
const LIMIT: usize = 2000;

/// Events in the order of their last change.
#[derive(Default)]
pub(super) struct OldEvents {
    order: VecDeque<(Instant, Key)>,
    added: bool,
}

impl OldEvents {
    /// An event was written.
    pub(super) fn add(&mut self, key: &Key, again: bool) {
        if again {
            self.order.retain(|(_, other)| other != key);
        }
        self.order.push_back((Instant::now(), key.clone()));
        self.added = true;
    }

    /// Deletes what is too old or too much, if anything came since the last time.
    pub(super) async fn prune(&mut self, server: &Arc<Inner>) {
        if !std::mem::take(&mut self.added) {
            return;
        }
        while let Some((since, key)) = self.order.front()
            && (self.order.len() > LIMIT || since.elapsed() > KEEP)
        {
            if let Some(stored) = server.store.get(key) {
                // An event that cannot be deleted is no loss.
                _ = delete_object(server, &stored, None).await;
            }
            self.order.pop_front();
        }
    }
}
