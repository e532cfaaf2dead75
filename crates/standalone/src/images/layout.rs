//! Import of an OCI image layout (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>):
//! a directory, or a tar archive of one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::unpack::{self, Budget};
use super::{Fetched, ImageStore};

/// JSON documents of a layout are small.
const MAX_JSON: u64 = 4 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

/// Unpacks the layout's image for this architecture into the store.
pub(super) fn import(store: &ImageStore, path: &Path, progress: &dyn Fn(u64)) -> io::Result<Fetched> {
    let scratch = store.tmp()?;
    let layout: PathBuf = if path.is_dir() {
        path.to_owned()
    } else {
        // Digests, not order, tie an archive together, so it is laid out first.
        let dir = scratch.path().join("layout");
        std::fs::create_dir(&dir)?;
        unpack::layer(
            &dir,
            Counted {
                inner: File::open(path)?,
                progress,
            },
            &mut Budget::default(),
        )?;
        dir
    };
    if !layout.join("oci-layout").is_file() {
        return Err(io::Error::other(
            "this is no OCI layout (it has no file oci-layout); make one with `skopeo copy SOURCE oci-archive:FILE`",
        ));
    }
    let descriptor = pick(&layout, read_json(&layout.join("index.json"))?)?;
    let digest = descriptor.digest.clone();
    let target = store.tree(&digest);
    if target.is_dir() {
        return Ok(Fetched { digest, size: 0 });
    }
    let manifest: Manifest = read_blob_json(&layout, &digest)?;
    let root = scratch.path().join("root");
    std::fs::create_dir(&root)?;
    let mut budget = Budget::default();
    for layer in &manifest.layers {
        let mut hashed = Hashed {
            inner: File::open(blob(&layout, &layer.digest)?)?,
            hash: Sha256::new(),
        };
        let counted = Counted {
            inner: &mut hashed,
            progress,
        };
        unpack::layer(&root, counted, &mut budget)?;
        hashed.finish(&layer.digest)?;
    }
    let size = unpack::seal(&root)?;
    std::fs::rename(&root, &target)?;
    Ok(Fetched { digest, size })
}

/// The manifest for this machine, through nested indexes.
fn pick(layout: &Path, index: Index) -> io::Result<Descriptor> {
    let fits = |d: &&Descriptor| {
        d.platform
            .as_ref()
            .is_none_or(|p| p.os == "linux" && p.architecture == super::registry::architecture())
    };
    let found = index.manifests.iter().find(fits).cloned();
    let found = found.ok_or_else(|| {
        io::Error::other(format!(
            "the layout has no image for linux/{}",
            super::registry::architecture()
        ))
    })?;
    if found.media_type.contains("image.index") || found.media_type.contains("manifest.list") {
        let inner: Index = read_blob_json(layout, &found.digest)?;
        if inner
            .manifests
            .iter()
            .any(|d| d.media_type.contains("index") || d.media_type.contains("list"))
        {
            return Err(io::Error::other("the layout nests image indexes more than once"));
        }
        return pick(layout, inner);
    }
    Ok(found)
}

fn blob(layout: &Path, digest: &str) -> io::Result<PathBuf> {
    let hex = digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .ok_or_else(|| io::Error::other(format!("\"{digest}\" is not a sha256 digest")))?;
    Ok(layout.join("blobs/sha256").join(hex))
}

fn read_blob_json<T: for<'a> Deserialize<'a>>(layout: &Path, digest: &str) -> io::Result<T> {
    let path = blob(layout, digest)?;
    let bytes = read_small(&path)?;
    check(&Sha256::digest(&bytes), digest)?;
    serde_json::from_slice(&bytes).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&read_small(path)?).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    File::open(path)
        .map_err(named)?
        .take(MAX_JSON)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Compares a hash with the digest that names the blob.
pub(super) fn check(hash: &[u8], digest: &str) -> io::Result<()> {
    let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    if digest.strip_prefix("sha256:") == Some(&hex) {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "the content of blob {digest} has digest sha256:{hex}: it is damaged"
        )))
    }
}

/// Hashes what is read.
pub(super) struct Hashed<R> {
    pub(super) inner: R,
    pub(super) hash: Sha256,
}

impl<R: Read> Hashed<R> {
    /// Reads what the consumer left (a tar stream may end before its blob does), then compares.
    pub(super) fn finish(mut self, digest: &str) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink())?;
        check(&self.hash.finalize(), digest)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

struct Counted<'a, R> {
    inner: R,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        (self.progress)(n as u64);
        Ok(n)
    }
}
