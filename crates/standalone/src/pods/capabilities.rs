//! QEMU's capabilities, prepared once for all launchers.
//!
//! libvirt takes a prepared cache over only if it was made with the same QEMU, libvirt, kernel and usability of KVM. So it
//! is made in a container exactly like a launcher's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use ferrovirt_protocol::paths::CAPABILITY_CACHE_DIR;
use nix::unistd::{Gid, Uid, chown};
use tracing::{info, warn};

use super::config::RunnerConfig;
use super::container::{DEFAULT_PATH, DEFAULT_USER, devices};
use super::process::{Exit, Process};
use super::spec::{ContainerSpec, Mount, User};

/// It takes four seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(180);
const LIBVIRTD: [&str; 2] = ["/usr/sbin/libvirtd", "/usr/bin/libvirtd"];

/// Makes the cache, unless it was made for what there is now. Only logs when that fails: guests start without, but slower.
pub(super) async fn prepare(config: &RunnerConfig) {
    let kvm = config.kvm_works().await;
    let directory = config.data.capability_cache();
    let stamp_file = config.data.path().join("cache/libvirt-qemu.stamp");
    let stamp = stamp(kvm);
    if fs::read_to_string(&stamp_file).is_ok_and(|made| made == stamp) {
        return;
    }
    let log = config.data.path().join("logs/prepare-capabilities.log");
    match run(config, &directory, &log).await {
        Ok(Exit::Code(0)) => {
            info!("QEMU's capabilities are prepared for all guests");
            if let Err(error) = fs::write(&stamp_file, stamp) {
                warn!(%error, "QEMU's capabilities will be prepared again next time");
            }
        }
        Ok(exit) => {
            warn!(?exit, log = %log.display(), "cannot prepare QEMU's capabilities; guests start some seconds later");
        }
        Err(error) => warn!(%error, "cannot prepare QEMU's capabilities; guests start some seconds later"),
    }
}

/// Changes whenever libvirt would not take the cache over.
fn stamp(kvm: bool) -> String {
    let modified = |path: &Path| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        modified
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |age| age.as_nanos())
    };
    let qemu = fs::read_dir("/usr/bin")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let qemu = qemu.filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("qemu-system-"))
    });
    let mut executables: Vec<PathBuf> = qemu.chain(LIBVIRTD.map(PathBuf::from)).collect();
    executables.sort();
    let executables: Vec<String> = executables
        .iter()
        .map(|path| format!("{} {}\n", path.display(), modified(path)))
        .collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/version").unwrap_or_default();
    format!("{kernel}kvm {kvm}\n{}", executables.concat())
}

async fn run(config: &RunnerConfig, directory: &Path, log: &Path) -> io::Result<Exit> {
    fs::create_dir_all(directory)?;
    chown(
        directory,
        Some(Uid::from_raw(DEFAULT_USER)),
        Some(Gid::from_raw(DEFAULT_USER)),
    )?;
    let _ = fs::remove_file(log);
    let runtime = config.data.runtime();
    let spec = ContainerSpec {
        mount_point: runtime.join("root"),
        skeleton: runtime.join("usr"),
        executables: config.executables(),
        etc: super::container::accounts(DEFAULT_USER, DEFAULT_USER),
        mounts: vec![Mount {
            source: directory.to_owned(),
            target: CAPABILITY_CACHE_DIR.into(),
            read_only: false,
        }],
        devices: devices(config, DEFAULT_USER, false),
        // It needs no network, and gets that of the machine, without any right to change it.
        netns: "/proc/self/ns/net".into(),
        cgroups: Vec::new(),
        hostname: "capabilities".into(),
        log: log.to_owned(),
        user: User {
            uid: DEFAULT_USER,
            gid: DEFAULT_USER,
            groups: vec![DEFAULT_USER],
            capabilities: Vec::new(),
        },
        command: ["/usr/bin/virt-launcher", "--prepare-capabilities", CAPABILITY_CACHE_DIR]
            .map(str::to_owned)
            .into(),
        env: BTreeMap::from([
            ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
            ("HOME".to_owned(), "/tmp".to_owned()),
        ]),
        cwd: "/".into(),
    };
    let started = Process::start(&config.executable, &spec, async |_| Ok(())).await;
    let process = started.map_err(io::Error::other)?;
    match tokio::time::timeout(LIMIT, process.exited()).await {
        Ok(exit) => Ok(exit),
        Err(_) => {
            process.signal(rustix::process::Signal::KILL);
            Ok(process.exited().await)
        }
    }
}
