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
    for entry in fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(fail)? {
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
