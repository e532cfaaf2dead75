//! The tokio runtime of a process that is to be small.

use std::future::Future;
use std::time::Duration;

/// Name resolution and files are the only things that block, and they are short.
const BLOCKING_THREADS: usize = 2;
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Runs a future on this thread: one thread means one malloc arena and no stacks of idle workers. What only the start
/// needed is given back to the system meanwhile.
///
/// # Errors
/// The runtime cannot be made.
pub fn block_on<F: Future>(future: F) -> std::io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_ALIVE)
        .build()?;
    runtime.spawn(crate::memory::keep_small());
    Ok(runtime.block_on(future))
}
