//! Network namespaces and work inside them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// A network namespace, held by a descriptor.
#[derive(Debug)]
pub struct NetworkNamespace {
    file: File,
    id: String,
}

impl NetworkNamespace {
    /// Opens `/proc/PID/ns/net` or a bind mount of it.
    ///
    /// # Errors
    /// The path is not there or may not be looked at.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let id = format!("{}:{}", metadata.dev(), metadata.ino());
        Ok(Self { file, id })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// No `/proc`.
    pub fn own() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Tells namespaces apart while they exist.
    #[must_use]
    pub fn id(&self) -> String {
        self.id.clone()
    }
}

/// Runs `work` to its end on a new thread that has entered `namespace`, with a tokio runtime of its own.
/// No thread of the caller's runtime ever changes its namespace. Dropping the future does not stop the work.
///
/// # Errors
/// The thread or its runtime cannot be made, or may not enter.
pub async fn inside<W, F>(namespace: &NetworkNamespace, work: W) -> io::Result<F::Output>
where
    W: FnOnce() -> F + Send + 'static,
    F: Future,
    F::Output: Send + 'static,
{
    let namespace: OwnedFd = namespace.file.as_fd().try_clone_to_owned()?;
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("pod-network".to_owned())
        .spawn(move || {
            let result = (|| {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Ok(runtime.block_on(work()))
            })();
            // A dropped receiver means that nobody waits any more.
            let _ = sender.send(result);
        })?;
    receiver
        .await
        .map_err(|_| io::Error::other("the thread inside the namespace panicked"))?
}
