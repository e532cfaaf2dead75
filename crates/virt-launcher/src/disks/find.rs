//! Finds the one image inside an image volume, without leaving the volume.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// Directory that holds the image when no path is given.
const DEFAULT_DIR: &str = "disk";
/// More files than this are not counted.
const MAX_COUNT: usize = 100;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume or something in it cannot be opened.
    #[error("cannot open {} in the container image", path.display())]
    Open {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not exactly one file.
    #[error(
        "the container image must have exactly one file in /{DEFAULT_DIR}, or containerDisk.path must name it; found {found}"
    )]
    Count {
        /// How many.
        found: usize,
    },
    /// Not a file.
    #[error("{} in the container image is not a regular file", path.display())]
    NotAFile {
        /// What.
        path: PathBuf,
    },
}

/// Opens the image in the volume mounted at `root`: the file at `path`, or else the only file in `/disk`. Symbolic
/// links are followed as if `root` were the root directory. The returned path has none, so QEMU opens the same file.
pub fn image(root: &Path, path: Option<&str>) -> Result<(File, PathBuf), Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::Open { path, source }
    };
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let base = open(root, directory, Mode::empty()).map_err(|errno| at(root)(errno.into()))?;
    let inside = match path {
        Some(path) => PathBuf::from(path.trim_start_matches('/')),
        None => only_file(&base)?,
    };
    let file = open_inside(&base, &inside, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map_err(at(&inside))?;
    if !file.metadata().map_err(at(&inside))?.is_file() {
        return Err(Error::NotAFile { path: inside });
    }
    let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(at(&inside))?;
    Ok((file, real))
}

fn only_file(base: &OwnedFd) -> Result<PathBuf, Error> {
    let path = PathBuf::from(DEFAULT_DIR);
    let fail = |source| Error::Open {
        path: PathBuf::from(DEFAULT_DIR),
        source,
    };
    let dir = open_inside(base, &path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(fail)?;
    let mut names = Vec::new();
    let entries = fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(fail)?;
    for entry in entries.take(MAX_COUNT) {
        names.push(entry.map_err(fail)?.file_name());
    }
    match names.as_slice() {
        [name] => Ok(path.join(name)),
        _ => Err(Error::Count { found: names.len() }),
    }
}

fn open_inside(base: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // EAGAIN says that a rename or mount anywhere on the machine crossed the lookup, nothing about the path (openat2(2)).
    let mut left = 1000;
    loop {
        match openat2(base, path, how) {
            Err(Errno::EAGAIN) if left > 0 => left -= 1,
            result => return Ok(File::from(result?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::unistd::mkfifo;

    use super::*;

    fn volume(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    #[test]
    fn takes_the_only_file() {
        let dir = volume(&["disk/debian.qcow2", "etc/passwd"]);
        let (_, path) = image(dir.path(), None).unwrap();
        assert_eq!(path, dir.path().canonicalize().unwrap().join("disk/debian.qcow2"));
    }

    #[test]
    fn takes_the_named_file() {
        let dir = volume(&["disk/a", "disk/b", "images/x.img"]);
        let (_, path) = image(dir.path(), Some("/images/x.img")).unwrap();
        assert!(path.ends_with("images/x.img"));
        assert!(matches!(
            image(dir.path(), Some("/images/y.img")),
            Err(Error::Open { .. })
        ));
    }

    #[test]
    fn refuses_none_many_and_directories() {
        assert!(matches!(
            image(volume(&["etc/passwd"]).path(), None),
            Err(Error::Open { .. })
        ));
        assert!(matches!(
            image(volume(&["disk/a", "disk/b"]).path(), None),
            Err(Error::Count { found: 2 })
        ));
        assert!(matches!(
            image(volume(&["disk/a/b"]).path(), None),
            Err(Error::NotAFile { .. })
        ));
    }

    /// What a hostile image may have: how it is made in the volume, and the file that is opened, if any is.
    #[test]
    fn a_hostile_image_reaches_nothing_beyond_itself() {
        let link = |target: &'static str| move |at: &Path| symlink(target, at.join("disk/disk.img")).unwrap();
        let none: Option<&str> = None;
        let own_shadow = Some("etc/shadow");
        type Make<'a> = Box<dyn Fn(&Path) + 'a>;
        let cases: Vec<(&str, Make<'_>, Option<&str>)> = vec![
            ("an absolute link", Box::new(link("/etc/shadow")), own_shadow),
            (
                "a link that climbs",
                Box::new(link("../../../../etc/shadow")),
                own_shadow,
            ),
            (
                "a link to what only the node has",
                Box::new(link("/etc/hostname")),
                none,
            ),
            ("a link to itself", Box::new(link("disk.img")), none),
            ("a link to a descriptor", Box::new(link("/proc/self/fd/0")), none),
            (
                "a link by way of /proc to the node's root",
                Box::new(|at: &Path| {
                    symlink("/proc/1/root", at.join("proc")).unwrap();
                    symlink("/proc/etc/hostname", at.join("disk/disk.img")).unwrap();
                }),
                none,
            ),
            (
                "a FIFO",
                Box::new(|at: &Path| mkfifo(&at.join("disk/disk.img"), Mode::S_IRWXU).unwrap()),
                none,
            ),
            (
                "a socket",
                Box::new(|at: &Path| drop(UnixListener::bind(at.join("disk/disk.img")).unwrap())),
                none,
            ),
            (
                "a directory",
                Box::new(|at: &Path| fs::create_dir(at.join("disk/disk.img")).unwrap()),
                none,
            ),
            (
                "two files",
                Box::new(|at: &Path| {
                    for name in ["a", "b"] {
                        fs::write(at.join("disk").join(name), name).unwrap();
                    }
                }),
                none,
            ),
            (
                "no end of files",
                Box::new(|at: &Path| {
                    for number in 0..2 * MAX_COUNT {
                        fs::write(at.join(format!("disk/{number}")), "").unwrap();
                    }
                }),
                none,
            ),
            ("no file", Box::new(|_: &Path| {}), none),
            (
                "a link for the directory",
                Box::new(|at: &Path| {
                    fs::remove_dir(at.join("disk")).unwrap();
                    symlink("/", at.join("disk")).unwrap();
                }),
                none,
            ),
        ];
        for (what, make, opened) in cases {
            let dir = volume(&["etc/shadow"]);
            fs::create_dir(dir.path().join("disk")).unwrap();
            make(dir.path());
            let found = image(dir.path(), None).map(|(_, path)| path);
            let wanted = opened.map(|path| dir.path().canonicalize().unwrap().join(path));
            assert_eq!(found.as_ref().ok(), wanted.as_ref(), "{what}: {found:?}");
        }
    }

    #[test]
    fn links_stay_inside() {
        let dir = volume(&["disk/.keep", "etc/shadow"]);
        fs::remove_file(dir.path().join("disk/.keep")).unwrap();
        symlink("/etc/shadow", dir.path().join("disk/image")).unwrap();
        let (_, path) = image(dir.path(), None).unwrap();
        assert_eq!(path, dir.path().canonicalize().unwrap().join("etc/shadow"));
        fs::remove_file(dir.path().join("disk/image")).unwrap();
        symlink("../../../../../../../../etc/hostname", dir.path().join("disk/image")).unwrap();
        assert!(matches!(image(dir.path(), None), Err(Error::Open { .. })));
    }
}
