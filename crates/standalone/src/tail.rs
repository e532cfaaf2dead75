//! `virt-tail`: follows a file and copies what is appended to standard output, until SIGTERM.
//!
//! It is the sidecar `guest-console-log`. One per guest, so it is small: one thread, no runtime, and asleep while
//! nothing is appended. The file need not exist yet, may be truncated, and may be replaced by a new one.
//!
//! A guest may talk without end, and its pod's volume is the node's disk. So what was copied gives its space back
//! while the guest goes on writing behind it: the file keeps its length, and a hole grows at its beginning. Started
//! again, virt-tail begins at the end of the hole. The output is bounded by whoever keeps it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use inotify::{Inotify, WatchDescriptor, WatchMask};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Whence, lseek};

/// So much of the file is kept after it was copied, for whoever wants to look into it, and given back piece by piece.
const KEPT: u64 = 1 << 20;

/// File systems give space back in blocks of this size, or of a part of it.
const BLOCK: u64 = 64 << 10;

/// Set to `cri` by the pod runner, which reads the output itself; a container runtime adds times by its own means.
pub(crate) const FORMAT_VARIABLE: &str = "FERROVIRT_LOG_FORMAT";

/// Follows the file that `--logfile` names. Returns the exit code.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    let Some(path) = log_file(arguments) else {
        eprintln!("virt-tail copies what is appended to a file to standard output\n\nUsage: virt-tail --logfile FILE");
        return 2;
    };
    let timed = std::env::var_os(FORMAT_VARIABLE).is_some_and(|format| format == "cri");
    match follow(&path, &mut Output::new(io::stdout().lock(), timed)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("virt-tail: cannot follow {}: {error}", path.display());
            1
        }
    }
}

fn log_file(mut arguments: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let _name = arguments.next();
    while let Some(argument) = arguments.next() {
        if argument == "--logfile" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(path) = argument
            .to_str()
            .and_then(|argument| argument.strip_prefix("--logfile="))
        {
            return Some(path.into());
        }
    }
    None
}

fn follow<W: Write>(path: &Path, output: &mut Output<W>) -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // As process 1 of its namespace, a signal without a handler would be ignored.
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut inotify = Inotify::init()?;
    let mut followed = Followed {
        path: path.to_owned(),
        open: None,
        watched: None,
    };
    loop {
        followed.watch(&mut inotify)?;
        followed.copy(output)?;
        let mut waiting = [
            PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(as_fd(&signals), PollFlags::POLLIN),
        ];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if waiting[1].any() == Some(true) {
            return followed.copy(output);
        }
        if waiting[0].any() == Some(true) {
            // What has happened is seen by looking; the events only wake us.
            let mut buffer = [0; 4096];
            inotify.read_events(&mut buffer)?.for_each(drop);
        }
    }
}

fn as_fd(signals: &SignalFd) -> BorrowedFd<'_> {
    signals.as_fd()
}

/// An open file, and how far it was copied and given back.
struct Open {
    file: File,
    position: u64,
    freed: u64,
}

impl Open {
    /// Opened for writing too, where that is allowed: else nothing can be given back.
    fn new(path: &Path) -> io::Result<Self> {
        let file = match File::options().read(true).write(true).open(path) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                File::open(path)?
            }
            result => result?,
        };
        // Past the hole that a former virt-tail left; a file without data is read from where it may get some. That
        // place is asked for first: data may be written between the two questions, and would be skipped.
        let end = file.metadata()?.len();
        let position = match lseek(&file, 0, Whence::SeekData) {
            Ok(position) => u64::try_from(position).unwrap_or(0),
            Err(Errno::ENXIO) => end,
            Err(_) => 0,
        };
        let mut open = Self {
            file,
            position: 0,
            freed: 0,
        };
        open.go_to(position)?;
        Ok(open)
    }

    fn go_to(&mut self, position: u64) -> io::Result<()> {
        self.position = self.file.seek(SeekFrom::Start(position))?;
        self.freed = position;
        Ok(())
    }

    fn is(&self, (device, inode): (u64, u64)) -> bool {
        self.file
            .metadata()
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (device, inode))
    }

    fn copy<W: Write>(&mut self, output: &mut Output<W>) -> io::Result<()> {
        if self.file.metadata()?.len() < self.position {
            self.go_to(0)?;
        }
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    output.write(&buffer[..read])?;
                    self.position += read as u64;
                    self.give_back();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        output.sink.flush()
    }

    /// Makes a hole of what was copied long ago.
    fn give_back(&mut self) {
        if self.position < self.freed + 2 * KEPT {
            return;
        }
        // Whole blocks: a part of one would be left as zeros, which the next virt-tail took for data.
        let length = (self.position - KEPT) / BLOCK * BLOCK - self.freed;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let (Ok(start), Ok(length)) = (i64::try_from(self.freed), i64::try_from(length)) {
            // Some file systems have no holes; the next try comes with the next piece.
            let _ = fallocate(&self.file, hole, start, length);
        }
        self.freed += length;
    }
}

/// The file and how far it was copied.
struct Followed {
    path: PathBuf,
    open: Option<Open>,
    /// What is being watched: the file, or the nearest directory above it that exists.
    watched: Option<(PathBuf, WatchDescriptor)>,
}

impl Followed {
    /// Watches the file's directory (for its appearance and replacement) or what there is of its path, and the file itself.
    fn watch(&mut self, inotify: &mut Inotify) -> io::Result<()> {
        let changes = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF;
        loop {
            let parents = self.path.ancestors().skip(1).map(|parent| {
                if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                }
            });
            let Some(nearest) = parents.into_iter().find(|parent| parent.is_dir()).map(Path::to_owned) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            if self.watched.as_ref().is_some_and(|(watched, _)| *watched == nearest) {
                break;
            }
            if let Some((_, old)) = self.watched.take() {
                let _ = inotify.watches().remove(old);
            }
            let descriptor = inotify.watches().add(&nearest, changes)?;
            // Once more: the next directory may have appeared before the watch was there.
            self.watched = Some((nearest, descriptor));
        }
        match inotify.watches().add(&self.path, WatchMask::MODIFY) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Copies all that is there.
    fn copy<W: Write>(&mut self, output: &mut Output<W>) -> io::Result<()> {
        if let Some(open) = &mut self.open {
            open.copy(output)?;
        }
        let current = match std::fs::metadata(&self.path) {
            Ok(metadata) => (metadata.dev(), metadata.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.open.as_ref().is_some_and(|open| open.is(current)) {
            return Ok(());
        }
        match Open::new(&self.path) {
            Ok(open) => self.open.insert(open).copy(output),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Standard output, each line with its time if wanted (`TIME stdout F LINE`; `P` for a part of a line).
struct Output<W> {
    sink: W,
    timed: bool,
}

impl<W: Write> Output<W> {
    fn new(sink: W, timed: bool) -> Self {
        Self { sink, timed }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.timed {
            return self.sink.write_all(bytes);
        }
        let now = Timestamp::now();
        let mut entries = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (content, kind) = match line.strip_suffix(b"\n") {
                Some(content) => (content, 'F'),
                None => (line, 'P'),
            };
            write!(entries, "{now} stdout {kind} ")?;
            entries.extend_from_slice(content);
            entries.push(b'\n');
        }
        self.sink.write_all(&entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn both_spellings_of_the_argument() {
        for arguments in [
            &["virt-tail", "--logfile", "/a"][..],
            &["virt-tail", "-v", "--logfile=/a"],
        ] {
            assert_eq!(log_file(arguments.iter().map(OsString::from)), Some("/a".into()));
        }
        assert_eq!(log_file(["virt-tail".into(), "--logfile".into()].into_iter()), None);
    }

    #[test]
    fn lines_get_their_time_and_parts_are_marked() {
        let mut output = Output::new(Vec::new(), true);
        output.write(b"one\ntwo").unwrap();
        let text = String::from_utf8(output.sink).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(lines, ["stdout F one", "stdout P two"]);
    }

    #[test]
    fn a_file_is_followed_from_before_it_exists_and_over_its_replacement() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not/yet/log");
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let followed = path.clone();
        // Ends with the test process.
        std::thread::spawn(move || follow(&followed, &mut Output::new(theirs, false)));
        let mut expect = |text: &str| {
            let mut read = vec![0; text.len()];
            ours.read_exact(&mut read).unwrap();
            assert_eq!(String::from_utf8(read).unwrap(), text);
        };
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "first\n").unwrap();
        expect("first\n");
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"second").unwrap();
        expect("second");
        let replacement = directory.path().join("new");
        fs::write(&replacement, "third\n").unwrap();
        fs::rename(&replacement, &path).unwrap();
        expect("third\n");
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.set_len(0).unwrap();
        file.write_all(b"4").unwrap();
        expect("4");
    }

    #[test]
    fn what_was_copied_gives_its_space_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
        let mut open = Open::new(&path).unwrap();
        let mut output = Output::new(Vec::new(), false);
        let line = [b'x'; 1023];
        for number in 0..8u8 {
            for _ in 0..1024 {
                log.write_all(&[number]).unwrap();
                log.write_all(&line).unwrap();
            }
            open.copy(&mut output).unwrap();
        }
        assert_eq!(output.sink.len(), 8 << 20);
        assert!(
            output
                .sink
                .chunks(1024)
                .enumerate()
                .all(|(n, chunk)| usize::from(chunk[0]) == n / 1024)
        );
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 8 << 20);
        assert!(metadata.blocks() * 512 <= 3 << 20, "{} blocks", metadata.blocks());
        // The next one begins behind the hole, at data, and goes on.
        let mut output = Output::new(Vec::new(), false);
        let mut open = Open::new(&path).unwrap();
        open.copy(&mut output).unwrap();
        assert!((1..=3 << 20).contains(&output.sink.len()));
        assert!(!output.sink.contains(&0));
        log.write_all(b"end").unwrap();
        open.copy(&mut output).unwrap();
        assert!(output.sink.ends_with(b"end"));
    }
}
