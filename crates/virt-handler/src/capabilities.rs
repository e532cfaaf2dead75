//! QEMU's capabilities for libvirt, probed once per node instead of once per VM.
//!
//! libvirt takes a prepared cache over only if it was made by the same libvirt and QEMU (by the times at which their
//! files were unpacked here), on the same kernel, with `/dev/kvm` as usable as it is now. The agent's image shares the
//! layers of libvirt and QEMU with the launcher's, so what the agent probes with its own copy holds for every
//! launcher. It is probed in the background when the agent starts, kept on the node, and laid into the volume
//! `private` of each new pod before its container starts. A launcher that finds nothing there probes by itself, which
//! takes some seconds; one that finds what does not hold is none the worse.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ferrovirt_core::ClusterConfig;
use ferrovirt_protocol::paths;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fchownat};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::sync::watch;

use crate::kvm::Verdict;
use crate::sockets;

/// What probes, and what libvirt looks at to see whether a cache holds.
const LAUNCHER: &str = "/usr/bin/virt-launcher";
const LIBVIRTD: &str = "/usr/sbin/libvirtd";
/// Probing takes four seconds; this is for machines under load.
const LIMIT: Duration = Duration::from_secs(150);
/// Pause before probing is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// What a kept cache was made for.
const SUBJECT: &str = "subject.json";
/// Staging name in a pod's volume.
const STAGING: &str = "capabilities.new";

/// The prepared caches of this node.
#[derive(Debug)]
pub(crate) struct Capabilities {
    directory: PathBuf,
    /// The one that new pods get.
    current: watch::Sender<Option<PathBuf>>,
}

/// Where the cache for pods with or without KVM is, below the directory of all.
fn variant(directory: &Path, kvm: bool) -> PathBuf {
    directory.join(if kvm { "kvm" } else { "tcg" })
}

/// libvirt's description of the guests that are possible here.
pub(crate) fn domain_capabilities(directory: &Path, kvm: bool) -> PathBuf {
    variant(directory, kvm).join(paths::DOMAIN_CAPABILITIES)
}

/// Of a cache. With anything else libvirt would not take it over.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    boot_id: String,
    files: Vec<(PathBuf, i64, i64)>,
}

impl Subject {
    fn now() -> io::Result<Self> {
        let qemu = PathBuf::from(format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH));
        let changed = |path: PathBuf| -> io::Result<_> {
            let metadata = fs::metadata(&path)?;
            Ok((path, metadata.ctime(), metadata.ctime_nsec()))
        };
        Ok(Self {
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            files: [qemu, LIBVIRTD.into(), LAUNCHER.into()]
                .into_iter()
                .map(changed)
                .collect::<io::Result<_>>()?,
        })
    }

    fn is_of(&self, directory: &Path) -> bool {
        let kept = fs::read(directory.join(SUBJECT)).ok();
        kept.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .as_ref()
            == Some(self)
    }
}

impl Capabilities {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            current: watch::channel(None).0,
        }
    }

    /// Keeps the cache that pods need now, for ever: pods have KVM where it works and the cluster wants it.
    pub(crate) async fn keep(
        &self,
        mut config: watch::Receiver<Arc<ClusterConfig>>,
        mut kvm: watch::Receiver<Option<Verdict>>,
    ) {
        loop {
            let works = kvm.borrow_and_update().as_ref().is_some_and(|verdict| verdict.usable);
            let with_kvm = works && !config.borrow_and_update().use_emulation;
            let directory = variant(&self.directory, with_kvm);
            let again = match ensure(&directory, with_kvm).await {
                Ok(()) => {
                    self.current.send_replace(Some(directory));
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot prepare QEMU's capabilities; guests start some seconds later");
                    self.current.send_replace(None);
                    Some(AGAIN)
                }
            };
            let wait = async {
                match again {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                Ok(()) = config.changed() => {}
                Ok(()) = kvm.changed() => {}
            }
        }
    }

    /// Where the cache is that new pods get, if there is one.
    pub(crate) fn current(&self) -> watch::Receiver<Option<PathBuf>> {
        self.current.subscribe()
    }

    /// Lays what is prepared into the volume of a pod that has not started yet. Does nothing when nothing is prepared.
    pub(crate) async fn deliver(&self, pods_dir: &Path, pod_uid: &str, user: u32) {
        let Some(source) = self.current.borrow().clone() else {
            return;
        };
        let volume = sockets::volume(pod_uid, paths::PRIVATE_VOLUME);
        let delivered = async {
            sockets::appeared(pods_dir, &volume).await?;
            let volume = sockets::open_beneath(pods_dir, &volume)?;
            lay(&source, &volume, user)
        };
        if let Err(error) = delivered.await {
            tracing::warn!(pod_uid, %error, "cannot give QEMU's capabilities to a launcher; it starts some seconds later");
        }
    }
}

async fn ensure(directory: &Path, kvm: bool) -> io::Result<()> {
    let subject = Subject::now()?;
    if subject.is_of(directory) {
        return Ok(());
    }
    let started = std::time::Instant::now();
    let staging = directory.with_extension("new");
    for old in [directory, &staging] {
        match fs::remove_dir_all(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::create_dir_all(&staging)?;
    let mut command = Command::new(LAUNCHER);
    command.arg("--prepare-capabilities").arg(&staging);
    if !kvm {
        command.arg("--without-kvm");
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().next_back().unwrap_or_default();
        return Err(io::Error::other(format!(
            "{LAUNCHER} ended with {}: {last}",
            output.status
        )));
    }
    fs::write(staging.join(SUBJECT), serde_json::to_vec(&subject)?)?;
    fs::rename(&staging, directory)?;
    tracing::info!(
        kvm,
        seconds = started.elapsed().as_secs_f32(),
        "QEMU's capabilities are prepared for all launchers"
    );
    Ok(())
}

/// Copies a cache into a volume, all or nothing. The volume is the launcher's: nothing that it may have put there is
/// followed or overwritten.
fn lay(source: &Path, volume: &File, user: u32) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
    if fs::symlink_metadata(format!("/proc/self/fd/{}/{}", volume.as_raw_fd(), paths::CAPABILITIES)).is_ok() {
        return Ok(());
    }
    match mkdirat(volume, STAGING, Mode::from_bits_truncate(0o700)) {
        // A former agent's, which died over it; or the launcher's own.
        Err(Errno::EEXIST) => return Err(io::ErrorKind::AlreadyExists.into()),
        result => result?,
    }
    let directory = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let staging: OwnedFd = openat(volume, STAGING, directory, Mode::empty())?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == SUBJECT || name == paths::DOMAIN_CAPABILITIES || !entry.file_type()?.is_file() {
            continue;
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(
            &staging,
            name.as_os_str(),
            flags,
            Mode::from_bits_truncate(0o600),
        )?);
        file.write_all(&fs::read(entry.path())?)?;
        fchown(&file, uid, gid)?;
    }
    fchownat(&staging, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    renameat2(
        volume,
        STAGING,
        volume,
        paths::CAPABILITIES,
        RenameFlags::RENAME_NOREPLACE,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared() -> (tempfile::TempDir, Capabilities) {
        let kept = tempfile::tempdir().unwrap();
        let directory = variant(kept.path(), false);
        fs::create_dir(&directory).unwrap();
        for (name, content) in [("a.xml", "<a/>"), (SUBJECT, "{}"), (paths::DOMAIN_CAPABILITIES, "<d/>")] {
            fs::write(directory.join(name), content).unwrap();
        }
        let capabilities = Capabilities::new(kept.path().to_owned());
        capabilities.current.send_replace(Some(directory));
        (kept, capabilities)
    }

    #[tokio::test]
    async fn a_cache_is_laid_into_a_new_pod_once() {
        let (_kept, capabilities) = prepared();
        let pods = tempfile::tempdir().unwrap();
        let volume = pods.path().join(sockets::volume("uid", "private"));
        let delivery = capabilities.deliver(pods.path(), "uid", 107);
        let kubelet = async { fs::create_dir_all(&volume).unwrap() };
        tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(delivery, kubelet) })
            .await
            .unwrap();
        let laid = volume.join(paths::CAPABILITIES);
        let names: Vec<_> = fs::read_dir(&laid)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["a.xml"]);
        assert_eq!(fs::metadata(&laid).unwrap().uid(), 107);
        assert_eq!(fs::metadata(laid.join("a.xml")).unwrap().uid(), 107);
        fs::write(laid.join("a.xml"), "changed").unwrap();
        capabilities.deliver(pods.path(), "uid", 107).await;
        assert_eq!(fs::read_to_string(laid.join("a.xml")).unwrap(), "changed");
    }

    #[test]
    fn what_a_launcher_put_there_is_not_followed() {
        let (kept, _) = prepared();
        let (volume, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), volume.path().join(STAGING)).unwrap();
        let opened = File::open(volume.path()).unwrap();
        assert!(lay(&variant(kept.path(), false), &opened, 107).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
