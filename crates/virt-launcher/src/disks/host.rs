//! Disks that are files of the node.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::format;
use crate::layout::Layout;

/// A created disk may be this much smaller than asked for when space is short.
const TOLERANCE_PERCENT: u64 = 10;
const ALIGN: u64 = 1 << 20;

/// Why there is no host disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path names no file.
    #[error("hostDisk.path {0:?} does not end with a file name")]
    NoFileName(String),
    /// It is missing and may not be created.
    #[error("hostDisk file {name:?} does not exist on the node; create it, or use type DiskOrCreate with a capacity")]
    Missing {
        /// File name.
        name: String,
    },
    /// It is something else.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// Where.
        path: PathBuf,
    },
    /// Not enough space.
    #[error("the disk needs {wanted} bytes, but its directory has room for only {free}")]
    NoSpace {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there.
        free: u64,
    },
    /// It could not be used.
    #[error("cannot open or create {}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is there and could not be made longer.
    #[error("cannot make {} {wanted} bytes long", path.display())]
    Grow {
        /// Where.
        path: PathBuf,
        /// Bytes asked for.
        wanted: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The file of the volume and its size; created sparse when it is missing and `create` gives a size.
pub fn disk(layout: &Layout, volume: &str, node_path: &str, create: Option<u64>) -> Result<(PathBuf, u64), Error> {
    let name = Path::new(node_path).file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::NoFileName(node_path.to_owned()))?;
    image(layout.host_disk(volume, name), create)
}

/// The image at `path` and its size; created sparse when it is missing and `create` gives a size.
pub fn image(path: PathBuf, create: Option<u64>) -> Result<(PathBuf, u64), Error> {
    match fs::symlink_metadata(&path) {
        // The node agent makes a missing file, empty, where this user may not.
        Ok(meta) if meta.is_file() && meta.len() == 0 && create.is_some() => {
            let size = affordable(&path, create.unwrap_or_default())?;
            let open = OpenOptions::new().write(true).open(&path);
            match open.and_then(|file| file.set_len(size)) {
                Ok(()) => Ok((path, size)),
                Err(source) => Err(Error::File { path, source }),
            }
        }
        Ok(meta) if meta.is_file() => Ok((path, meta.len())),
        Ok(_) => Err(Error::NotAFile { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let wanted = create.ok_or_else(|| Error::Missing { name: name() })?;
            let size = affordable(&path, wanted)?;
            let open = OpenOptions::new().write(true).create_new(true).open(&path);
            match open.and_then(|file| file.set_len(size)) {
                Ok(()) => Ok((path, size)),
                Err(source) => Err(Error::File { path, source }),
            }
        }
        Err(source) => Err(Error::File { path, source }),
    }
}

/// Makes the raw image at `path` as long as a new one for `wanted` bytes would become, sparse, and returns its size. It
/// never becomes shorter, and an image of another format stays as it is.
pub fn grow(path: &Path, wanted: u64) -> Result<u64, Error> {
    let fail = |source| Error::Grow {
        path: path.to_owned(),
        wanted,
        source,
    };
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let length = meta.len();
    if !format::is_raw(&mut file).map_err(fail)? {
        tracing::info!(image = %path.display(), "not a raw image; its size stays");
        return Ok(length);
    }
    // What the image takes already is room for it, too.
    let room = free(path)?.saturating_add(meta.blocks() * 512);
    let size = fit(wanted, room)?.max(length);
    if size > length {
        file.set_len(size).map_err(fail)?;
        tracing::info!(image = %path.display(), from = length, to = size, "made an image larger");
    }
    if size < wanted {
        tracing::info!(image = %path.display(), wanted, size, "an image stays shorter than asked for: space is short");
    }
    Ok(size)
}

fn affordable(path: &Path, wanted: u64) -> Result<u64, Error> {
    let size = fit(wanted, free(path)?)?;
    if size < wanted {
        tracing::warn!(wanted, size, "disk made smaller than asked for, because space is short");
    }
    Ok(size)
}

fn free(path: &Path) -> Result<u64, Error> {
    let dir = path.parent().unwrap_or(path);
    let stat = statvfs(dir).map_err(|errno| Error::File {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn fit(wanted: u64, free: u64) -> Result<u64, Error> {
    if free >= wanted {
        return Ok(wanted);
    }
    let least = u128::from(wanted) * u128::from(100 - TOLERANCE_PERCENT) / 100;
    let size = free / ALIGN * ALIGN;
    if u128::from(size) >= least && size > 0 {
        return Ok(size);
    }
    Err(Error::NoSpace { wanted, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creates_sparse_files_once() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), "n", "v", "u");
        let file = layout.host_disk("vol", "disk.img");
        assert!(matches!(
            disk(&layout, "vol", "/data/disk.img", None),
            Err(Error::Missing { .. })
        ));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        assert_eq!(
            disk(&layout, "vol", "/data/disk.img", Some(1 << 30)).unwrap(),
            (file.clone(), 1 << 30)
        );
        assert_eq!(fs::metadata(&file).unwrap().blocks(), 0);
        assert_eq!(disk(&layout, "vol", "/data/disk.img", None).unwrap(), (file, 1 << 30));
        assert!(matches!(disk(&layout, "vol", "/", None), Err(Error::NoFileName(_))));
    }

    #[test]
    fn shrinks_within_the_tolerance() {
        let mib = 1 << 20;
        assert_eq!(fit(100 * mib, 200 * mib).unwrap(), 100 * mib);
        assert_eq!(fit(100 * mib, 95 * mib + 5).unwrap(), 95 * mib);
        assert!(matches!(fit(100 * mib, 89 * mib), Err(Error::NoSpace { .. })));
    }
}
