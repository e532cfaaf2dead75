//! Waiting for what other containers of the pod, or virt-handler, put into its volumes.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

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
