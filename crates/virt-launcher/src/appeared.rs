//! Waiting for what other containers of the pod, or virt-handler, put into its volumes.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Waits until `path` is there, which appears in its directory by a rename. Blocks its thread.
pub fn appeared(path: &Path, patience: Duration) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(path.parent().unwrap_or(path), AddWatchFlags::IN_MOVED_TO)?;
    let deadline = Instant::now() + patience;
    // Once more: it may have come before the watch was there.
    while !path.exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(io::ErrorKind::NotFound.into()),
            // A child that ends interrupts whichever thread the kernel likes.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // What has happened is seen by looking; the events only wake us.
        drop(inotify.read_events());
    }
    Ok(())
}

/// Waits until `look` finds what it looks for, and looks again whenever something was renamed into `directory`.
/// `NotFound` when `patience` is over.
pub async fn found<T>(directory: &Path, patience: Duration, mut look: impl FnMut() -> Option<T>) -> io::Result<T> {
    let inotify = inotify::Inotify::init()?;
    inotify.watches().add(directory, inotify::WatchMask::MOVED_TO)?;
    let mut events = inotify.into_event_stream([0; 4096])?;
    let watching = async {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            events.next().await.transpose()?;
        }
    };
    let over = |_| Err(io::ErrorKind::NotFound.into());
    tokio::time::timeout(patience, watching).await.unwrap_or_else(over)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_or_comes_is_seen_and_what_stays_away_is_not_found() {
        let directory = tempfile::tempdir().unwrap();
        let (staging, path) = (directory.path().join("new"), directory.path().join("it"));
        let missing = appeared(&path, Duration::from_millis(20)).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        std::fs::write(&staging, "").unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| appeared(&path, Duration::from_secs(20)));
            std::fs::rename(&staging, &path).unwrap();
            waiting.join().unwrap().unwrap();
        });
        appeared(&path, Duration::ZERO).unwrap();
    }
}
