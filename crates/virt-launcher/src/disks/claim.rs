//! Disks in PersistentVolumeClaims: the image in the claim's file system, or its block device.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use ferrovirt_core::machine::Claim;

use super::host;
use crate::layout::Layout;

/// Why there is no disk in a claim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No image, and none may be made.
    #[error("claim {claim:?} has no {}, and nothing may be written to it", path.display())]
    Empty {
        /// Name.
        claim: String,
        /// Where it is looked for.
        path: PathBuf,
    },
    /// No image, and nobody said how large it should be.
    #[error("claim {claim:?} has no {}, and status.volumeStatus does not tell how large it should be", path.display())]
    NoSize {
        /// Name.
        claim: String,
        /// Where it is looked for.
        path: PathBuf,
    },
    /// The block device cannot be read.
    #[error("cannot open the block device {}", path.display())]
    Device {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The image cannot be used or made.
    #[error("claim {claim:?}")]
    Image {
        /// Name.
        claim: String,
        /// Why not.
        #[source]
        source: host::Error,
    },
}

/// A disk in a claim.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Image or device.
    pub path: PathBuf,
    /// It is a device.
    pub block: bool,
    /// Bytes the guest sees.
    pub size: u64,
}

/// Finds it; an image that is missing is made, sparse, as large as the claim.
pub fn find(layout: &Layout, volume: &str, claim: &Claim) -> Result<Found, Error> {
    let device = layout.claim_device(volume);
    if fs::metadata(&device).is_ok_and(|meta| meta.file_type().is_block_device()) {
        let size = File::open(&device).and_then(|mut device| device.seek(SeekFrom::End(0)));
        let (path, block) = (device, true);
        return match size {
            Ok(size) => Ok(Found { path, block, size }),
            Err(source) => Err(Error::Device { path, source }),
        };
    }
    let path = layout.claim_image(volume);
    let fixed = is_fixed(claim);
    let create = claim.size.filter(|_| !fixed);
    match host::image(path.clone(), create) {
        Ok((path, size)) => Ok(Found {
            path,
            block: false,
            size,
        }),
        Err(host::Error::Missing { .. }) => {
            let name = claim.name.clone();
            Err(if fixed {
                Error::Empty { claim: name, path }
            } else {
                Error::NoSize { claim: name, path }
            })
        }
        Err(source) => Err(Error::Image {
            claim: claim.name.clone(),
            source,
        }),
    }
}

/// Makes an image that is shorter than its claim allows as long as a new one would become, if it may be written to. One
/// that cannot follow its claim serves as it is.
pub fn follow(found: &mut Found, claim: &Claim) {
    let larger = |size: &u64| !found.block && !is_fixed(claim) && *size > found.size;
    let Some(wanted) = claim.size.filter(larger) else {
        return;
    };
    match host::grow(&found.path, wanted) {
        Ok(size) => found.size = size,
        Err(error) => tracing::warn!(
            claim = claim.name,
            error = &error as &dyn std::error::Error,
            "the image does not grow with its claim"
        ),
    }
}

/// Nobody writes to its image; what an overlay is to be laid over is there before.
fn is_fixed(claim: &Claim) -> bool {
    claim.read_only || claim.ephemeral
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn claim(read_only: bool, size: Option<u64>) -> Claim {
        Claim {
            name: "data".into(),
            read_only,
            ephemeral: false,
            size,
        }
    }

    #[test]
    fn an_image_is_made_once_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "n", "v", "u");
        let path = layout.claim_image("vol");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let refused = find(&layout, "vol", &claim(true, Some(1 << 30))).unwrap_err();
        assert!(matches!(refused, Error::Empty { .. }), "{refused}");
        let refused = find(&layout, "vol", &claim(false, None)).unwrap_err();
        assert!(matches!(refused, Error::NoSize { .. }), "{refused}");
        let expected = Found {
            path: path.clone(),
            block: false,
            size: 1 << 30,
        };
        assert_eq!(find(&layout, "vol", &claim(false, Some(1 << 30))).unwrap(), expected);
        assert_eq!(fs::metadata(&path).unwrap().blocks(), 0);
        fs::write(&path, "data").unwrap();
        for claim in [claim(false, Some(1 << 20)), claim(true, None)] {
            assert_eq!(find(&layout, "vol", &claim).unwrap().size, 4);
        }
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn an_image_follows_its_claim_and_never_shrinks() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "n", "v", "u");
        let path = layout.claim_image("vol");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let large = 8 << 20;
        let ephemeral = Claim {
            ephemeral: true,
            ..claim(false, Some(large))
        };
        for (content, claim, expected) in [
            (&b"data"[..], claim(false, Some(large)), large),
            (b"data", claim(false, Some(2)), 4),
            (b"data", claim(false, None), 4),
            (b"data", claim(true, Some(large)), 4),
            (b"data", ephemeral, 4),
            // There is not so much room anywhere.
            (b"data", claim(false, Some(1 << 62)), 4),
            (b"LUKS\xba\xbe", claim(false, Some(large)), large),
            (b"QFI\xfb\0\0\0\x03", claim(false, Some(large)), 8),
        ] {
            fs::write(&path, content).unwrap();
            let mut found = find(&layout, "vol", &claim).unwrap();
            follow(&mut found, &claim);
            let meta = fs::metadata(&path).unwrap();
            assert_eq!((found.size, meta.len()), (expected, expected), "{content:?} {claim:?}");
            assert!(meta.blocks() * 512 < 1 << 20, "{claim:?}");
            assert!(fs::read(&path).unwrap().starts_with(content), "{claim:?}");
        }
    }

    #[test]
    fn an_image_is_no_link() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "n", "v", "u");
        let path = layout.claim_image("vol");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        let refused = find(&layout, "vol", &claim(false, Some(1 << 20))).unwrap_err();
        assert!(matches!(refused, Error::Image { .. }), "{refused}");
    }
}
