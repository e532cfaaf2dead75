//! Directories that the guest shares: each has a container of the pod that serves it.

use std::io;
use std::time::{Duration, Instant};

use ferrovirt_core::machine::Machine;

use crate::appeared::appeared;
use crate::layout::Layout;

/// How long the containers may take together. They start before the launcher, and again some seconds after a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory that nobody serves.
#[derive(Debug, thiserror::Error)]
#[error("nobody serves filesystem \"{name}\"; see the log of the container virtiofs-{name}")]
pub struct Error {
    name: String,
    #[source]
    source: io::Error,
}

/// Waits until all directories are served.
pub async fn served(layout: &Layout, machine: &Machine) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    for share in &machine.filesystems {
        let socket = layout.filesystem_socket(&share.name);
        let left = deadline.saturating_duration_since(Instant::now());
        let waiting = tokio::task::spawn_blocking(move || appeared(&socket, left));
        let waited = waiting.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        waited.map_err(|source| Error {
            name: share.name.clone(),
            source,
        })?;
    }
    Ok(())
}
