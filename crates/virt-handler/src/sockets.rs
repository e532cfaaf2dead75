//! Sockets in a pod's volumes. The launcher owns those directories and is not trusted: no symbolic link is
//! followed and nothing outside the pod's directory is reached.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ferrovirt_protocol::paths;
use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use tokio::net::UnixStream;

/// Where a pod's emptyDir volume is, below the pods directory.
pub(crate) fn volume(pod_uid: &str, volume: &str) -> PathBuf {
    Path::new(pod_uid).join("volumes/kubernetes.io~empty-dir").join(volume)
}

/// The launcher's socket, below the pods directory.
pub(crate) fn launcher_socket(pod_uid: &str) -> PathBuf {
    volume(pod_uid, paths::SOCKETS_VOLUME).join(paths::LAUNCHER_SOCKET)
}

/// One of a guest's sockets, below the pods directory.
pub(crate) fn guest_socket(pod_uid: &str, vmi_uid: &str, name: &str) -> PathBuf {
    volume(pod_uid, paths::PRIVATE_VOLUME).join(vmi_uid).join(name)
}

/// Opens what `relative` names below `root` for reference only, without following any symbolic link.
pub(crate) fn open_beneath(root: &Path, relative: &Path) -> io::Result<File> {
    let root = File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(File::from(openat2_settled(&root, relative, how)?))
}

/// `openat2` answers EAGAIN when a rename or mount anywhere on the machine crossed a scoped lookup (openat2(2)), which
/// says nothing about the path: the lookup is repeated.
pub(crate) fn openat2_settled<P: ?Sized + nix::NixPath>(
    root: &File,
    path: &P,
    how: OpenHow,
) -> nix::Result<std::os::fd::OwnedFd> {
    let mut left = 1000;
    loop {
        match openat2(root, path, how) {
            Err(nix::errno::Errno::EAGAIN) if left > 0 => left -= 1,
            result => return result,
        }
    }
}

/// Opens `relative` as a process sees it whose root directory is `root`.
pub(crate) fn open_in_root(root: &File, relative: &str, flags: OFlag) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(File::from(openat2_settled(root, relative, how)?))
}

/// Whether two descriptors refer to the same file.
pub(crate) fn same_file(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Connects to a socket below `root`.
pub(crate) async fn connect_beneath(root: &Path, relative: &Path) -> io::Result<UnixStream> {
    let file = open_beneath(root, relative)?;
    if !file.metadata()?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"));
    }
    // The descriptor, not the path: what was checked is what is connected to.
    UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd())).await
}

/// Waits until `relative` exists below `root`. Sleeps on inotify; wakes when something appears where a part is missing.
pub(crate) async fn appeared(root: &Path, relative: &Path) -> io::Result<()> {
    let inotify = Inotify::init()?;
    let mut watches = inotify.watches();
    let mut events = inotify.into_event_stream(vec![0; 4096])?;
    let mut watched: Option<(PathBuf, WatchDescriptor)> = None;
    loop {
        let existing = deepest_existing(root, relative);
        if existing == relative {
            return Ok(());
        }
        if watched.as_ref().is_none_or(|(path, _)| *path != existing) {
            if let Some((_, old)) = watched.take() {
                // Fails only when the directory is gone, and its watch with it.
                let _ = watches.remove(old);
            }
            let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
            match watches.add(root.join(&existing), mask) {
                Ok(watch) => watched = Some((existing, watch)),
                // It went away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound && existing != Path::new("") => {}
                Err(error) => return Err(error),
            }
            // Once more: what appeared before the watch was set makes no event.
            continue;
        }
        // A watch that ends makes a last event of its own. It wakes nobody: removing a watch would wake the next look,
        // which removes a watch, and so on.
        loop {
            let event = events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                break;
            }
            if watched.as_ref().is_some_and(|(_, watch)| *watch == event.wd) {
                if event
                    .mask
                    .intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF)
                {
                    watched = None;
                }
                break;
            }
        }
    }
}

fn deepest_existing(root: &Path, relative: &Path) -> PathBuf {
    relative
        .ancestors()
        .find(|ancestor| ancestor.as_os_str().is_empty() || open_beneath(root, ancestor).is_ok())
        .unwrap_or(Path::new(""))
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_awaited_through_missing_directories() {
        let root = tempfile::tempdir().unwrap();
        let relative = launcher_socket("uid");
        let waiting = tokio::spawn({
            let (root, relative) = (root.path().to_owned(), relative.clone());
            async move { appeared(&root, &relative).await }
        });
        let mut directory = root.path().to_owned();
        for part in relative.parent().unwrap() {
            directory.push(part);
            std::fs::create_dir(&directory).unwrap();
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        let _listener = UnixListener::bind(root.path().join(&relative)).unwrap();
        tokio::time::timeout(Duration::from_secs(5), waiting)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        connect_beneath(root.path(), &relative).await.unwrap();
    }

    /// Other pods come and go all the time.
    #[tokio::test]
    async fn a_waiter_sleeps_between_events() {
        let root = tempfile::tempdir().unwrap();
        let mut waiting = Box::pin(appeared(root.path(), Path::new("uid/volumes/socket")));
        let mut wait = async |deadline| tokio::time::timeout(deadline, &mut waiting).await;
        let moment = Duration::from_millis(100);
        let before = cpu_time();
        assert!(wait(moment).await.is_err());
        for directory in ["other", "uid", "uid/other", "uid/volumes"] {
            std::fs::create_dir(root.path().join(directory)).unwrap();
            assert!(wait(moment).await.is_err());
        }
        // It begins again where its pod's directory is made anew, too.
        std::fs::remove_dir_all(root.path().join("uid")).unwrap();
        assert!(wait(moment).await.is_err());
        std::fs::create_dir_all(root.path().join("uid/volumes")).unwrap();
        assert!(wait(moment).await.is_err());
        let used = cpu_time() - before;
        assert!(used < Duration::from_millis(200), "{used:?} of 700 ms");
        std::fs::write(root.path().join("uid/volumes/socket"), "").unwrap();
        wait(Duration::from_secs(5)).await.unwrap().unwrap();
    }

    /// What this thread has computed, whatever else the machine does (proc(5), schedstat).
    fn cpu_time() -> Duration {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    }

    #[tokio::test]
    async fn links_and_plain_files_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(outside.path().join("s")).unwrap();
        symlink(outside.path().join("s"), root.path().join("link")).unwrap();
        symlink(outside.path(), root.path().join("dir")).unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        for bad in ["link", "dir/s", "../s", "file"] {
            assert!(connect_beneath(root.path(), Path::new(bad)).await.is_err(), "{bad}");
        }
    }
}
