#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! ```text
//!  guest ── virtio queues in the guest's memory ──► virtiofs-server ──► DIRECTORY
//!            (QEMU sends the memory and the queues over SOCKET)
//! ```
//!
//! It runs in a container of its own, as the user of the launcher and without capabilities: the container is the sandbox,
//! so it has none itself. Whatever a guest's user writes therefore belongs to that one user, and a guest reads and writes
//! what that user may.
//!
//! One process serves one guest after another, each from the beginning, until it is told to end.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use vhost::vhost_user::{Error as Protocol, Listener};
use vhost_user_backend::{Error as Daemon, VhostUserDaemon};
use virtiofsd::filesystem::{FileSystem, SerializableFileSystem};
use virtiofsd::passthrough::read_only::PassthroughFsRo;
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::soft_idmap::cmdline::IdMap;
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The name of the executable, and of the container's command.
pub const NAME: &str = "virtiofs-server";
const USAGE: &str = "usage: virtiofs-server --socket PATH --directory DIRECTORY [--read-only] [--owned-by-root]";

/// How long a guest believes what it saw. Others write to a directory, too: a file that changed is seen anew after this.
const BELIEVED: Duration = Duration::from_secs(1);
/// Most files that a guest may keep open, and names that it may know, where the container's own limit is higher.
const MAX_FILES: u64 = 1_000_000;
/// Descriptors that are not the guest's: one for each piece of its memory, and our own.
const OWN_FILES: u64 = 600;

/// Why a directory is not served.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{USAGE}")]
    Usage,
    #[error("cannot {what} {}", path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot {what}")]
    System { what: &'static str, source: io::Error },
    #[error("the limit of {0} open files leaves the guest none; allow more than {OWN_FILES}")]
    TooFewFiles(u64),
    #[error("cannot serve the guest: {0}")]
    Serve(String),
}

/// What it was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Task {
    socket: PathBuf,
    directory: PathBuf,
    read_only: bool,
    /// What belongs to this process's user is the guest's root's.
    owned_by_root: bool,
}

impl Task {
    fn read(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let (mut socket, mut directory) = (None, None);
        let (mut read_only, mut owned_by_root) = (false, false);
        while let Some(argument) = arguments.next() {
            match argument.to_str()? {
                "--socket" => socket = Some(arguments.next()?.into()),
                "--directory" => directory = Some(arguments.next()?.into()),
                "--read-only" => read_only = true,
                "--owned-by-root" => owned_by_root = true,
                _ => return None,
            }
        }
        Some(Self {
            socket: socket?,
            directory: directory?,
            read_only,
            owned_by_root,
        })
    }
}

/// Runs it to its end, with the arguments after the executable's name. Must be called while there is one thread.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Task::read(arguments).ok_or(Error::Usage).and_then(|task| run(&task)) {
        Ok(never) => match never {},
        Err(error) => {
            let mut message = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            eprintln!("{NAME}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<std::convert::Infallible, Error> {
    end_on_signals()?;
    // A second logger cannot be there.
    let _ = log::set_logger(&Stderr).map(|()| log::set_max_level(log::LevelFilter::Warn));
    let files = raise_file_limit()?;
    let directory = task.directory.clone();
    // Said now, not when a guest mounts it.
    std::fs::read_dir(&directory).map_err(|source| Error::Path {
        what: "read the directory",
        path: directory,
        source,
    })?;
    let mut listener = Listener::from(listen(&task.socket)?);
    loop {
        let config = config(task, files)?;
        let failed = |source| Error::System {
            what: "open the directory's descriptors",
            source,
        };
        if task.read_only {
            serve(PassthroughFsRo::new(config).map_err(failed)?, &mut listener)?;
        } else {
            serve(PassthroughFs::new(config).map_err(failed)?, &mut listener)?;
        }
    }
}

/// Serves the next QEMU that connects until it is gone.
fn serve<F>(files: F, listener: &mut Listener) -> Result<(), Error>
where
    F: FileSystem + SerializableFileSystem + Send + Sync + 'static,
{
    let backend = VhostUserFsBackendBuilder::default().build(files);
    let backend = Arc::new(backend.map_err(|error| Error::Serve(error.to_string()))?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon =
        VhostUserDaemon::new(NAME.to_owned(), backend, memory).map_err(|error| Error::Serve(error.to_string()))?;
    daemon
        .start(listener)
        .map_err(|error| Error::Serve(error.to_string()))?;
    match daemon.wait() {
        // QEMU ended, however it did.
        Ok(()) | Err(Daemon::HandleRequest(Protocol::Disconnected | Protocol::PartialMessage)) => Ok(()),
        Err(error) => {
            eprintln!("{NAME}: the guest's QEMU is not understood: {error}");
            Ok(())
        }
    }
}

fn config(task: &Task, files: u64) -> Result<Config, Error> {
    let root_dir = task.directory.to_str().ok_or(Error::Usage)?.to_owned();
    let map = |own| {
        // Only root may become someone else.
        let mut map = vec![IdMap::SquashGuest {
            from_guest: 0,
            to_host: own,
            count: u32::MAX,
        }];
        if task.owned_by_root {
            map.push(IdMap::SquashHost {
                from_host: own,
                to_guest: 0,
                count: 1,
            });
        }
        Some(map)
    };
    Ok(Config {
        entry_timeout: BELIEVED,
        attr_timeout: BELIEVED,
        cache_policy: CachePolicy::Auto,
        root_dir,
        uid_map: map(nix::unistd::geteuid().as_raw()),
        gid_map: map(nix::unistd::getegid().as_raw()),
        guest_fd_limit: files,
        ..Config::default()
    })
}

/// A first process is only ended by signals that it waits for. Before there are threads, so that none of them is.
fn end_on_signals() -> Result<(), Error> {
    let system = |error: nix::Error| Error::System {
        what: "wait for signals",
        source: error.into(),
    };
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.add(Signal::SIGINT);
    end.thread_block().map_err(system)?;
    std::thread::spawn(move || {
        // What the guest was told is written is in the kernel already.
        let code = i32::from(end.wait().is_err());
        std::process::exit(code);
    });
    Ok(())
}

/// Raises the limit of open files as far as it goes, and says how many of them are the guest's.
fn raise_file_limit() -> Result<u64, Error> {
    let system = |error: nix::Error| Error::System {
        what: "raise the limit of open files",
        source: error.into(),
    };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system)?;
    let wanted = hard.min(MAX_FILES).max(soft);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map_err(system)?;
    let guest = wanted.checked_sub(OWN_FILES).filter(|files| *files > 0);
    guest.ok_or(Error::TooFewFiles(wanted))
}

/// It listens before it appears under its name, so whoever sees it can connect.
fn listen(socket: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Path {
        what: "listen on",
        path: socket.to_owned(),
        source,
    };
    let mut staging = socket.as_os_str().to_owned();
    staging.push(".new");
    let staging = PathBuf::from(staging);
    match std::fs::remove_file(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&staging).map_err(failed)?;
    std::fs::rename(&staging, socket).map_err(failed)?;
    Ok(listener)
}

/// What the library has to say, for `kubectl logs`.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Nobody to tell that nobody can be told.
        let _ = writeln!(io::stderr(), "{NAME}: {}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn arguments_are_read() {
        let read = |words: &[&str]| Task::read(words.iter().map(OsString::from));
        let task = |switch| Task {
            socket: "/s".into(),
            directory: "/d".into(),
            read_only: switch,
            owned_by_root: switch,
        };
        assert_eq!(read(&["--socket", "/s", "--directory", "/d"]), Some(task(false)));
        assert_eq!(
            read(&["--read-only", "--owned-by-root", "--directory", "/d", "--socket", "/s"]),
            Some(task(true))
        );
        for wrong in [
            &[][..],
            &["--socket", "/s"],
            &["--directory", "/d", "--socket"],
            &["--socket", "/s", "--directory", "/d", "/e"],
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_socket_can_be_connected_to_when_it_is_there_and_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("share.sock");
        for _ in 0..2 {
            let _listener = listen(&socket).unwrap();
            UnixStream::connect(&socket).unwrap();
        }
        let missing = listen(&directory.path().join("missing/share.sock")).unwrap_err();
        assert!(missing.to_string().contains("missing/share.sock"), "{missing}");
    }

    #[test]
    fn a_connection_that_ends_is_followed_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("share.sock");
        let mut listener = Listener::from(listen(&socket).unwrap());
        let task = Task {
            socket,
            directory: directory.path().to_owned(),
            read_only: false,
            owned_by_root: true,
        };
        for _ in 0..3 {
            let waiting = UnixStream::connect(&task.socket).unwrap();
            drop(waiting);
            let files = PassthroughFs::new(config(&task, 100).unwrap()).unwrap();
            serve(files, &mut listener).unwrap();
        }
    }
}
