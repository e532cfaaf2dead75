//! QEMU's capabilities, probed once per host instead of once per VM.
//!
//! libvirt probes a QEMU executable by running it, which takes seconds, and keeps what it learned in one XML file per
//! executable. It takes such a file over if it was written by the same libvirt build for the same executable (path
//! and change time), on the same kernel and CPU microcode, and if `/dev/kvm` is as usable as it was then; the user
//! does not matter. So this must run where `/dev/kvm` is visible (or not) exactly as it will be in VM pods.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrovirt_protocol::paths;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Uid, chown, geteuid};
use virt::connect::Connect;

use crate::children::Children;
use crate::layout::Layout;
use crate::libvirtd::{self, Libvirtd};

/// Probing takes about four seconds; this is for machines under load.
const LIMIT: Duration = Duration::from_secs(120);

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The throw-away libvirtd.
    #[error(transparent)]
    Libvirtd(#[from] libvirtd::Error),
    /// It could not be started.
    #[error("cannot run libvirtd to probe QEMU")]
    Run(#[source] io::Error),
    /// It could not probe.
    #[error("libvirtd cannot probe QEMU: {0}")]
    Probe(String),
    /// It ended.
    #[error("libvirtd ended with {0} before it had probed QEMU")]
    Ended(String),
    /// It took too long.
    #[error("probing QEMU took longer than {LIMIT:?}")]
    Slow,
    /// Nothing was written.
    #[error("libvirtd wrote no capabilities to {}", .0.display())]
    Nothing(PathBuf),
    /// A file.
    #[error("cannot store the capabilities in {}", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Makes `dir`, writable for the user the launcher will become. Called before it does.
pub fn make_dir(dir: &Path, user: u32) -> Result<(), Error> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        if geteuid().is_root() {
            chown(dir, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
        }
        Ok(())
    };
    make().map_err(|source| Error::Store {
        path: dir.to_owned(),
        source,
    })
}

/// Probes with a throw-away libvirtd below `layout`, and stores what it learned in `dir`, each file whole or not at all.
pub async fn prepare(layout: &Layout, dir: &Path) -> Result<(), Error> {
    let children = Children::default();
    let reaper = tokio::spawn(children.clone().reap());
    let daemon = Libvirtd::prepare(layout, children, false)?;
    let child = daemon.spawn()?;
    let uri = format!(
        "qemu+unix:///session?mode=direct&socket={}",
        layout.libvirt_socket().display()
    );
    virt::error::clear_error_callback();
    let probe = tokio::task::spawn_blocking(move || {
        let connection = Connect::open(Some(&uri)).map_err(|error| error.message().to_owned())?;
        let known = connection.domain_capabilities(None, None, None, None, 0);
        known.map_err(|error| error.message().to_owned())
    });
    let (pid, mut exit) = (child.pid, child.exit);
    let result = tokio::select! {
        result = tokio::time::timeout(LIMIT, probe) => result.map_err(|_| Error::Slow),
        exit = &mut exit => {
            return Err(Error::Ended(exit.map_or_else(|_| "no exit code".into(), |exit| exit.to_string())));
        }
    };
    let _ = kill(pid, Signal::SIGTERM);
    let _ = exit.await;
    reaper.abort();
    let description = result?
        .map_err(|error| Error::Run(io::Error::other(error)))?
        .map_err(Error::Probe)?;
    let path = dir.join(paths::DOMAIN_CAPABILITIES);
    fs::write(&path, description).map_err(|source| Error::Store { path, source })?;
    store(&layout.capability_cache(), dir)
}

fn store(cache: &Path, dir: &Path) -> Result<(), Error> {
    let copy = || -> io::Result<usize> {
        let mut files = 0;
        for entry in fs::read_dir(cache)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let staging = dir.join(format!(".{}.new", entry.file_name().to_string_lossy()));
                fs::copy(entry.path(), &staging)?;
                fs::set_permissions(&staging, Permissions::from_mode(0o644))?;
                fs::rename(staging, dir.join(entry.file_name()))?;
                files += 1;
            }
        }
        Ok(files)
    };
    match copy() {
        Ok(0) => Err(Error::Nothing(cache.to_owned())),
        Ok(_) => Ok(()),
        Err(source) => Err(Error::Store {
            path: dir.to_owned(),
            source,
        }),
    }
}
