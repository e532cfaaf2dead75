//! The images of one machine: pulled from registries or imported, unpacked once, shared read-only.
//!
//! On disk, below the store's directory:
//!
//! ```text
//! index.json               reference → digest, where it came from, when
//! trees/sha256-<hex>/      the unpacked image; never changed after it appeared
//! tmp/                     what is being unpacked; emptied when the store is opened
//! lock                     held while the index changes, by whichever process changes it
//! ```
//!
//! A tree appears by one rename, and the index is replaced by one rename, so a crash leaves nothing half-done.

mod cli;
mod layout;
mod registry;
mod unpack;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

pub use cli::{ImageCommand, run};
pub use oci_client::secrets::RegistryAuth;
pub use registry::auth_for;

/// When to ask the registry, as in `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Each time; what is here already is not fetched again.
    Always,
    /// Only when the reference is not here.
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// Reads the API's word; Kubernetes' default for what is absent or unknown is `IfNotPresent`.
    #[must_use]
    pub fn from_api(policy: Option<&str>) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            _ => Self::IfNotPresent,
        }
    }
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledImage {
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// Its files: directories 0555, files 0444; to be mounted read-only.
    pub rootfs: PathBuf,
}

/// Why an image is not here, in a kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    /// `ErrImagePull`, `ErrImageNeverPull` or `InvalidImageName`.
    pub reason: &'static str,
    /// For people: the reference, what went wrong, what to do.
    pub message: String,
}

impl ImageError {
    fn pull(reference: &str, why: impl std::fmt::Display) -> Self {
        Self {
            reason: "ErrImagePull",
            message: format!("cannot get image \"{reference}\": {why}"),
        }
    }
}

/// How an image came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// From its registry.
    Registry,
    /// By `ferrovirt image import`: the name means what was imported, whatever the pull policy says.
    Import,
}

/// One line of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// How it came here.
    pub origin: Origin,
    /// Bytes on disk, holes not counted.
    pub size: u64,
    /// When it came here.
    pub created: jiff::Timestamp,
}

/// The store. Cheap to clone; safe to use from several processes at once.
#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: Arc<PathBuf>,
    /// One fetch of a reference at a time; the second caller finds the first one's result.
    busy: Arc<Mutex<BTreeMap<String, Arc<Mutex<()>>>>>,
}

impl ImageStore {
    /// Opens or creates the store.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn open(dir: &Path) -> io::Result<Self> {
        for sub in ["trees", "tmp"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let store = Self {
            dir: Arc::new(dir.to_owned()),
            busy: Arc::default(),
        };
        // Left-overs of a crash; a living import in another process holds the lock shared.
        if let Ok(_lock) = store.try_lock_exclusive() {
            for entry in fs::read_dir(dir.join("tmp"))? {
                unpack::remove_tree(&entry?.path())?;
            }
        }
        Ok(store)
    }

    /// Makes `reference` available according to `policy`.
    ///
    /// Guarantees: on success `rootfs` is complete. Two callers fetch once. Cancel safe: a dropped call leaves
    /// only a directory in `tmp`.
    ///
    /// # Errors
    /// See [`ImageError::reason`].
    pub async fn pull(
        &self,
        reference: &str,
        policy: PullPolicy,
        auth: &RegistryAuth,
    ) -> Result<PulledImage, ImageError> {
        let parsed = registry::parse(reference)?;
        let key = parsed.whole();
        let lock = Arc::clone(self.busy.lock().await.entry(key.clone()).or_default());
        let _one = lock.lock().await;
        let known = self.entry(&key).map_err(|e| ImageError::pull(reference, e))?;
        match (known, policy) {
            (Some(entry), PullPolicy::IfNotPresent | PullPolicy::Never) => return Ok(self.image(&entry)),
            (Some(entry), _) if entry.origin == Origin::Import => return Ok(self.image(&entry)),
            (None, PullPolicy::Never) => {
                return Err(ImageError {
                    reason: "ErrImageNeverPull",
                    message: format!(
                        "image \"{reference}\" is not present and its pull policy is Never; \
                         import it with `ferrovirt image import FILE --name {reference}`"
                    ),
                });
            }
            _ => {}
        }
        let fetched = registry::fetch(self, &parsed, auth)
            .await
            .map_err(|e| ImageError::pull(reference, e))?;
        let entry = self
            .record(&key, fetched.digest, fetched.size, Origin::Registry)
            .map_err(|e| ImageError::pull(reference, e))?;
        Ok(self.image(&entry))
    }

    /// Brings an OCI layout (a directory, or a tar archive of one) in under `name`.
    ///
    /// # Errors
    /// The name or the layout is not well-formed, a digest does not match, or the disk is full.
    pub fn import(&self, path: &Path, name: &str, progress: &dyn Fn(u64)) -> Result<Entry, ImageError> {
        let key = registry::parse(name)?.whole();
        let fail = |e: io::Error| ImageError {
            reason: "ErrImagePull",
            message: format!("cannot import {}: {e}", path.display()),
        };
        let _shared = self.lock_shared().map_err(fail)?;
        let fetched = layout::import(self, path, progress).map_err(fail)?;
        drop(_shared);
        self.record(&key, fetched.digest, fetched.size, Origin::Import)
            .map_err(fail)
    }

    /// All references with what they stand for.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn list(&self) -> io::Result<BTreeMap<String, Entry>> {
        match fs::read(self.dir.join("index.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| io::Error::other(format!("{}: {e}", self.dir.join("index.json").display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e),
        }
    }

    /// Forgets a name, and deletes its files when no other name stands for them.
    ///
    /// # Errors
    /// No such name; or a running pod has the image mounted.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let key = registry::parse(name)?.whole();
        let fail = |why: String| ImageError {
            reason: "ErrImagePull",
            message: why,
        };
        let _lock = self.lock_exclusive().map_err(|e| fail(e.to_string()))?;
        let mut index = self.list().map_err(|e| fail(e.to_string()))?;
        let entry = index
            .remove(&key)
            .ok_or_else(|| fail(format!("there is no image \"{key}\"")))?;
        let tree = self.tree(&entry.digest);
        let orphan = index.values().all(|e| e.digest != entry.digest);
        if orphan && let Some(pid) = mounted_by(&tree) {
            return Err(fail(format!(
                "image \"{key}\" is in use by process {pid}; stop the VM that uses it first"
            )));
        }
        self.write_index(&index).map_err(|e| fail(e.to_string()))?;
        if orphan {
            unpack::remove_tree(&tree).map_err(|e| fail(format!("cannot delete {}: {e}", tree.display())))?;
        }
        Ok(())
    }

    fn entry(&self, key: &str) -> io::Result<Option<Entry>> {
        Ok(self.list()?.remove(key).filter(|e| self.tree(&e.digest).is_dir()))
    }

    fn image(&self, entry: &Entry) -> PulledImage {
        PulledImage {
            digest: entry.digest.clone(),
            rootfs: self.tree(&entry.digest),
        }
    }

    fn tree(&self, digest: &str) -> PathBuf {
        self.dir.join("trees").join(digest.replace(':', "-"))
    }

    fn tmp(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix("unpack-")
            .tempdir_in(self.dir.join("tmp"))
    }

    fn record(&self, key: &str, digest: String, size: u64, origin: Origin) -> io::Result<Entry> {
        let _lock = self.lock_exclusive()?;
        let mut index = self.list()?;
        if let Some(known) = index.get(key)
            && known.digest == digest
            && known.origin == origin
        {
            return Ok(known.clone());
        }
        let entry = Entry {
            digest,
            origin,
            size,
            created: jiff::Timestamp::now(),
        };
        index.insert(key.to_owned(), entry.clone());
        self.write_index(&index)?;
        Ok(entry)
    }

    fn write_index(&self, index: &BTreeMap<String, Entry>) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&*self.dir)?;
        serde_json::to_writer_pretty(&mut file, index)?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(self.dir.join("index.json")).map_err(|e| e.error)?;
        Ok(())
    }

    fn lock_file(&self) -> io::Result<File> {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join("lock"))
    }

    fn lock_exclusive(&self) -> io::Result<Flock<File>> {
        Flock::lock(self.lock_file()?, FlockArg::LockExclusive).map_err(|(_, e)| e.into())
    }

    fn try_lock_exclusive(&self) -> io::Result<Flock<File>> {
        Flock::lock(self.lock_file()?, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e.into())
    }

    fn lock_shared(&self) -> io::Result<Flock<File>> {
        Flock::lock(self.lock_file()?, FlockArg::LockShared).map_err(|(_, e)| e.into())
    }
}

/// What a fetch brought.
struct Fetched {
    digest: String,
    size: u64,
}

/// A process whose mount namespace has `tree` mounted. A bind mount shows the directory it came from as its root.
fn mounted_by(tree: &Path) -> Option<u32> {
    let name = tree.file_name()?.to_str()?;
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).ok()?;
        mounts
            .lines()
            .any(|line| line.split(' ').nth(3).is_some_and(|root| root.contains(name)))
            .then_some(pid)
    })
}

#[cfg(test)]
mod tests;
