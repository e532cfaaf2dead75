#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! ```text
//!  container-disk-binary (launcher's image)     volume<disk> (the user's image)
//!    container-disk --install DIR ──copy──►       container-disk --copy-path DIR/disk_0
//!                                                   listens on DIR/disk_0.sock until SIGTERM
//!                                                        ▲
//!  virt-handler ──connects, sees whose root it is────────┘  and mounts that root, read-only, into the launcher
//! ```
//!
//! It runs in images that hold nothing but a disk, so it is linked statically, and it reads nothing of the image: what
//! is in there may be hostile.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};

/// What it is called where it was copied to.
const NAME: &str = "container-disk";
const USAGE: &str = "usage: container-disk --install DIR | --copy-path PATH";

/// What it was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    /// Copy this executable into a directory.
    Install(PathBuf),
    /// Listen on `PATH.sock` until it is told to end.
    Offer(PathBuf),
}

fn main() -> ExitCode {
    let done = match task(std::env::args_os().skip(1)) {
        Some(Task::Install(directory)) => install(&directory),
        Some(Task::Offer(path)) => offer(&path),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn task(arguments: impl Iterator<Item = OsString>) -> Option<Task> {
    let arguments: Vec<OsString> = arguments.collect();
    let [option, path] = arguments.as_slice() else {
        return None;
    };
    match option.to_str()? {
        "--install" => Some(Task::Install(path.into())),
        "--copy-path" => Some(Task::Offer(path.into())),
        _ => None,
    }
}

fn at<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Copies this executable, all or nothing: a container that is started again finds it whole.
fn install(directory: &Path) -> io::Result<()> {
    let (staging, target) = (directory.join(".new"), directory.join(NAME));
    at(&staging, fs::copy("/proc/self/exe", &staging))?;
    at(&staging, fs::set_permissions(&staging, Permissions::from_mode(0o755)))?;
    at(&target, fs::rename(&staging, &target))
}

/// Answers nobody: that the connection stands tells whose process listens.
fn offer(path: &Path) -> io::Result<()> {
    // A first process is only ended by signals that it waits for. Before there are threads, so that none of them is.
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.add(Signal::SIGINT);
    end.thread_block()?;
    let socket = with_suffix(path, ".sock");
    let listener = listen(&socket)?;
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            drop(connection);
        }
    });
    end.wait()?;
    at(&socket, fs::remove_file(&socket))
}

/// It listens before it appears under its name, so whoever sees it can connect.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    let staging = with_suffix(socket, ".new");
    match fs::remove_file(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return at(&staging, Err(error)),
        _ => {}
    }
    let listener = at(&staging, UnixListener::bind(&staging))?;
    at(socket, fs::rename(&staging, socket))?;
    Ok(listener)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsStr::to_owned(path.as_os_str());
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn arguments_are_read() {
        let read = |words: &[&str]| task(words.iter().map(OsString::from));
        assert_eq!(read(&["--install", "/bin"]), Some(Task::Install("/bin".into())));
        assert_eq!(
            read(&["--copy-path", "/d/disk_0"]),
            Some(Task::Offer("/d/disk_0".into()))
        );
        for wrong in [&[][..], &["--install"], &["--copy-path", "a", "b"], &["--other", "a"]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn it_copies_itself() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            install(directory.path()).unwrap();
        }
        let copy = directory.path().join(NAME);
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o755);
        let own = fs::metadata("/proc/self/exe").unwrap().len();
        assert_eq!(fs::metadata(&copy).unwrap().len(), own);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(install(&directory.path().join("missing")).is_err());
    }

    #[test]
    fn a_socket_that_was_left_behind_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("disk_0.sock");
        drop(listen(&socket).unwrap());
        assert!(UnixStream::connect(&socket).is_err());
        let _listener = listen(&socket).unwrap();
        UnixStream::connect(&socket).unwrap();
    }
}
