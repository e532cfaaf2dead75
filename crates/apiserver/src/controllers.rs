//! What the server does by itself when objects change: garbage, namespaces and CRDs on their way out.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::server::Inner;
use crate::store::Event;

/// Starts the task. It ends with the server.
pub fn spawn(_server: &Arc<Inner>, mut journal: mpsc::UnboundedReceiver<Arc<Event>>) {
    tokio::spawn(async move { while journal.recv().await.is_some() {} });
}
