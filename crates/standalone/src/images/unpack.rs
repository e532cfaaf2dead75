//! Layers to a directory tree. Layers are hostile input.
//!
//! Only directories and regular files are kept (a containerDisk needs no more): no links, no devices, no set-id bits,
//! no foreign owners. Names that leave the tree are refused, sizes and counts are bounded, and zeros become holes.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Entries of one image.
const MAX_ENTRIES: u64 = 200_000;
/// Bytes of one image, unpacked: no disk image of a VM is larger.
const MAX_BYTES: u64 = 16 << 40;
const BLOCK: usize = 64 << 10;

/// What an image may still unpack.
#[derive(Debug)]
pub(super) struct Budget {
    entries: u64,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            entries: MAX_ENTRIES,
            bytes: MAX_BYTES,
        }
    }
}

/// Applies one layer (a tar stream, possibly compressed: gzip or zstd by its magic) on top of `root`.
///
/// Whiteouts (`.wh.NAME`, `.wh..wh..opq`) delete what lower layers brought, as the OCI image specification says.
pub(super) fn layer(root: &Path, stream: impl Read, budget: &mut Budget) -> io::Result<()> {
    let mut stream = io::BufReader::with_capacity(BLOCK, stream);
    let head = io::BufRead::fill_buf(&mut stream)?;
    let plain: Box<dyn Read + '_> = match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(stream)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(stream)?),
        _ => Box::new(stream),
    };
    let mut archive = tar::Archive::new(plain);
    for entry in archive.entries()? {
        let mut entry = entry?;
        budget.entries = budget.entries.checked_sub(1).ok_or_else(|| too_much("entries"))?;
        let name = entry.path()?.into_owned();
        let Some(relative) = inside(&name)? else { continue };
        let file_name = relative
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default()
            .to_owned();
        let parent = relative.parent().unwrap_or(Path::new("")).to_owned();
        if file_name == ".wh..wh..opq" {
            for child in fs::read_dir(directory(root, &parent)?)? {
                remove_tree(&child?.path())?;
            }
            continue;
        }
        if let Some(gone) = file_name.strip_prefix(".wh.") {
            let parent = directory(root, &parent)?;
            if !gone.is_empty() && gone != "." && gone != ".." && parent.join(gone).symlink_metadata().is_ok() {
                remove_tree(&parent.join(gone))?;
            }
            continue;
        }
        match entry.header().entry_type() {
            tar::EntryType::Directory => {
                directory(root, &relative)?;
            }
            tar::EntryType::Regular | tar::EntryType::GNUSparse | tar::EntryType::Continuous => {
                let size = entry.size();
                budget.bytes = budget.bytes.checked_sub(size).ok_or_else(|| too_much("bytes"))?;
                let path = directory(root, &parent)?.join(&file_name);
                if path.symlink_metadata().is_ok() {
                    remove_tree(&path)?;
                }
                write_sparse(&path, &mut entry)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Deletes a file or a tree, also one whose directories have been made read-only.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !metadata.is_dir() {
        return fs::remove_file(path);
    }
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for child in fs::read_dir(path)? {
        remove_tree(&child?.path())?;
    }
    fs::remove_dir(path)
}

/// Makes a finished tree readable for all and writable for nobody, flushes it, and counts its bytes on disk.
pub(super) fn seal(path: &Path) -> io::Result<u64> {
    let metadata = path.symlink_metadata()?;
    let mut size = metadata.blocks() * 512;
    if metadata.is_dir() {
        for child in fs::read_dir(path)? {
            size += seal(&child?.path())?;
        }
        fs::set_permissions(path, Permissions::from_mode(0o555))?;
    } else {
        fs::set_permissions(path, Permissions::from_mode(0o444))?;
        File::open(path)?.sync_all()?;
    }
    Ok(size)
}

fn too_much(what: &str) -> io::Error {
    io::Error::other(format!("the image has too many {what}"))
}

/// The name below the tree; `None` for the root itself.
fn inside(name: &Path) -> io::Result<Option<PathBuf>> {
    let mut relative = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => relative.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!(
                    "the image has a name that leaves it: {}",
                    name.display()
                )));
            }
        }
    }
    Ok((!relative.as_os_str().is_empty()).then_some(relative))
}

/// The directory at `relative`; a file in its way is replaced. The tree holds no links, so no step can leave it.
fn directory(root: &Path, relative: &Path) -> io::Result<PathBuf> {
    let mut path = root.to_owned();
    for part in relative.components() {
        path.push(part);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => continue,
            Ok(_) => fs::remove_file(&path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        fs::create_dir(&path)?;
    }
    Ok(path)
}

fn write_sparse(path: &Path, from: &mut impl Read) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    let mut block = vec![0; BLOCK];
    let mut length = 0u64;
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match from.read(&mut block[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        let data = &block[..filled];
        if data.iter().all(|b| *b == 0) {
            file.seek(SeekFrom::Current(i64::try_from(filled).map_err(io::Error::other)?))?;
        } else {
            file.write_all(data)?;
        }
        length += filled as u64;
        if filled < BLOCK {
            return file.set_len(length);
        }
    }
}
