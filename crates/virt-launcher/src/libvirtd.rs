//! The private libvirtd: configuration, start, and start again.
//!
//! The launcher owns the listening socket and hands it over by systemd's socket-activation protocol. A client can
//! therefore connect at any time, also while libvirtd is being started again: the kernel queues the connection.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ferrovirt_protocol::launcher::GuestState;
use ferrovirt_protocol::paths;
use nix::sys::signal::{Signal, kill};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::appeared::appeared;
use crate::children::{Child, Children, Exit};
use crate::driver::has_guest;
use crate::layout::Layout;

const LIBVIRTD: &str = "/usr/sbin/libvirtd";
/// Hands the socket (its standard input) over as descriptor 3; only the new process knows its own pid.
const TRAMPOLINE: &str = r#"LISTEN_PID=$$; export LISTEN_PID; exec "$@" 3<&0 </dev/null"#;
/// Directory of programs that libvirtd finds before all others.
const PROGRAMS: &str = "libvirt/bin";
/// An end this soon after the start is the configuration's or the system's fault, not an accident.
const QUICK: Duration = Duration::from_secs(2);
/// So many of them in a row are enough, where no guest would be lost with the launcher.
const MAX_QUICK_ENDS: u32 = 6;
/// Wait after the first of them; doubled with each.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long virt-handler may take to deliver QEMU's capabilities.
const DELIVERY: Duration = Duration::from_secs(1);

/// Why libvirtd cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory it needs.
    #[error("cannot prepare {} for libvirtd", path.display())]
    Prepare {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process itself.
    #[error("cannot start {LIBVIRTD}; is the package libvirt-daemon installed?")]
    Spawn(#[source] io::Error),
    /// It does not stay.
    #[error("{LIBVIRTD} ended {MAX_QUICK_ENDS} times right after its start, at last with {0}")]
    KeepsEnding(Exit),
}

/// Configuration and socket of one private libvirtd.
pub struct Libvirtd {
    children: Children,
    socket: UnixListener,
    config: PathBuf,
    pid_file: PathBuf,
    runtime: PathBuf,
    private: PathBuf,
}

impl Libvirtd {
    /// Writes the configuration, takes over the prepared capability cache, and opens the socket.
    /// `verbose`: it logs every step.
    pub fn prepare(layout: &Layout, children: Children, verbose: bool) -> Result<Self, Error> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Prepare { path, source }
        };
        for dir in [
            layout.libvirt_runtime(),
            layout.private().join("libvirt"),
            layout.private().join("libvirt/qemu/log"),
            layout.private().join(PROGRAMS),
        ] {
            fs::create_dir_all(&dir).map_err(at(&dir))?;
        }
        let config = layout.private().join("libvirt/libvirtd.conf");
        let logs = if verbose { VERBOSE_LOGS } else { LOGS };
        fs::write(&config, format!("{LIBVIRTD_CONF}{logs}")).map_err(at(&config))?;
        let qemu = layout.private().join("libvirt/qemu.conf");
        fs::write(&qemu, QEMU_CONF).map_err(at(&qemu))?;
        let passt = layout.private().join(PROGRAMS).join(crate::passt::NAME);
        let _ = fs::remove_file(&passt);
        let launcher = std::env::current_exe().map_err(at(&passt))?;
        symlink(launcher, &passt).map_err(at(&passt))?;
        adopt_capabilities(layout);

        let path = layout.libvirt_socket();
        let _ = fs::remove_file(&path);
        let socket = UnixListener::bind(&path).map_err(at(&path))?;
        Ok(Self {
            children,
            socket,
            config,
            pid_file: layout.libvirt_runtime().join("libvirtd.pid"),
            runtime: layout.xdg_runtime(),
            private: layout.private(),
        })
    }

    /// Starts it once.
    pub fn spawn(&self) -> Result<Child, Error> {
        let socket: OwnedFd = self.socket.try_clone().map_err(Error::Spawn)?.into();
        let mut path = self.private.join(PROGRAMS).into_os_string();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", TRAMPOLINE, "sh", LIBVIRTD, "--config"])
            .arg(&self.config)
            .arg("--pid-file")
            .arg(&self.pid_file)
            .env_clear()
            .env("PATH", path)
            .env("HOME", &self.private)
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .env("XDG_CACHE_HOME", &self.private)
            .env("XDG_CONFIG_HOME", &self.private)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "libvirtd.socket")
            // The set-up of a TPM has temporary files, and the root directory is read-only.
            .env("TMPDIR", &self.private)
            // One arena and early trimming: libvirtd's heap is small, its threads are many.
            .env("MALLOC_ARENA_MAX", "1")
            .env("MALLOC_TRIM_THRESHOLD_", "65536")
            .stdin(Stdio::from(socket));
        self.children.spawn(&mut command).map_err(Error::Spawn)
    }

    /// Keeps it running until `stop`, then ends it. Guests are not touched by libvirtd's death: while `published` tells
    /// of one, libvirtd is started again however often it ends; else a few quick ends in a row are an error.
    pub async fn supervise(self, published: watch::Receiver<GuestState>, stop: CancellationToken) -> Result<(), Error> {
        let mut quick_ends: u32 = 0;
        loop {
            let started = Instant::now();
            let (failure, quick) = match self.spawn() {
                Ok(mut child) => {
                    let exit = tokio::select! {
                        exit = &mut child.exit => exit.unwrap_or(Exit::Code(-1)),
                        () = stop.cancelled() => {
                            let _ = kill(child.pid, Signal::SIGTERM);
                            if tokio::time::timeout(QUICK, child.exit).await.is_err() {
                                let _ = kill(child.pid, Signal::SIGKILL);
                            }
                            return Ok(());
                        }
                    };
                    tracing::warn!(%exit, "libvirtd ended; starting it again");
                    (Error::KeepsEnding(exit), started.elapsed() < QUICK)
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "trying again");
                    (error, true)
                }
            };
            quick_ends = if quick { quick_ends.saturating_add(1) } else { 0 };
            let guest = has_guest(&published.borrow());
            let Some(wait) = pause(quick_ends, guest) else {
                return Err(failure);
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

/// The wait after so many quick ends in a row; `None` if they are enough.
fn pause(quick_ends: u32, guest: bool) -> Option<Duration> {
    match quick_ends {
        0 => Some(Duration::ZERO),
        MAX_QUICK_ENDS.. if !guest => None,
        _ => Some((FIRST_WAIT * 2u32.saturating_pow(quick_ends - 1)).min(LONGEST_WAIT)),
    }
}

/// Takes a prepared cache over: the one that is mounted for all launchers, or else the one that virt-handler lays into
/// the pod's volume. Without one libvirtd probes QEMU itself, which takes seconds but is right.
fn adopt_capabilities(layout: &Layout) {
    let (mounted, delivered) = (layout.prepared_capabilities(), layout.delivered_capabilities());
    let cache = layout.capability_cache();
    let adopted = if mounted.exists() {
        copy(&mounted, &cache)
    } else {
        // virt-handler is told of the pod when the kubelet is, and is faster. Outside a pod nobody delivers.
        let patience = if std::process::id() == 1 {
            DELIVERY
        } else {
            Duration::ZERO
        };
        appeared(&delivered, patience).and_then(|()| {
            cache.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::rename(&delivered, &cache)
        })
    };
    match adopted {
        Ok(()) => tracing::debug!("took over the prepared QEMU capabilities"),
        Err(error) => {
            tracing::info!(%error, "no prepared QEMU capabilities; libvirtd probes QEMU, which takes some seconds");
        }
    }
}

fn copy(prepared: &Path, cache: &Path) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    for entry in fs::read_dir(prepared)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name() != paths::DOMAIN_CAPABILITIES {
            fs::write(cache.join(entry.file_name()), fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// Lean: one client, few threads. Three workers let one agent call hang while lifecycle calls go on.
const LIBVIRTD_CONF: &str = r#"auth_unix_ro = "none"
auth_unix_rw = "none"
min_workers = 1
max_workers = 4
prio_workers = 1
max_clients = 8
max_queued_clients = 8
max_anonymous_clients = 8
admin_min_workers = 1
admin_max_workers = 1
audit_level = 0
"#;

/// Warnings and errors.
const LOGS: &str = r#"log_level = 3
log_outputs = "3:stderr"
"#;

/// Everything but the noise of its own transport.
const VERBOSE_LOGS: &str = r#"log_filters = "4:event 3:remote 3:rpc 3:access 3:util.object 3:util.json 1:*"
log_outputs = "1:stderr"
"#;

/// No virtlogd: QEMU's output goes to a file libvirt opens. Dropping `cpu-unavailable-features` makes libvirt read
/// the guest CPU from two QOM properties instead of one call per known feature (460 calls, most of a VM's start).
const QEMU_CONF: &str = r#"stdio_handler = "file"
security_driver = "none"
capability_filters = [ "cpu-unavailable-features" ]
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirtd_is_given_up_only_where_no_guest_would_be_lost() {
        for (quick_ends, guest, expected) in [
            (0, false, Some(0)),
            (1, false, Some(50)),
            (5, false, Some(800)),
            (6, false, None),
            (7, false, None),
            (0, true, Some(0)),
            (1, true, Some(50)),
            (6, true, Some(1600)),
            (10, true, Some(25_600)),
            (11, true, Some(30_000)),
            (u32::MAX, true, Some(30_000)),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(pause(quick_ends, guest), expected, "{quick_ends} {guest}");
        }
    }
}
