//! Device plugins: pods of VMs get `/dev/kvm` and the like from the kubelet, without any privilege of their own.
//!
//! ```text
//!            device is there          socket bound, kubelet answered
//!  Waiting ─────────────────► Serving ──────────────────────────────► Registered
//!                                ▲                                       │
//!                                └── kubelet.sock is another one, or ────┘
//!                                    our socket is gone (the kubelet was started again)
//! ```
//!
//! A device that goes away later is reported as unhealthy; its plugin stays. One inotify instance wakes all plugins;
//! each then looks at what there is.

mod daemon;
mod plugin;
mod pool;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferrovirt_core::ClusterConfig;
use futures::StreamExt;
use futures::future::join_all;
use inotify::{Inotify, WatchMask};
use tokio::sync::watch;

use crate::kvm::Verdict;
use daemon::Daemon;
use pool::Pool;

/// Generated from `proto/deviceplugin.proto`.
#[allow(clippy::all, clippy::unwrap_used, clippy::too_many_lines, reason = "generated")]
mod api {
    tonic::include_proto!("v1beta1");
}

/// Every resource begins with it.
const RESOURCE_PREFIX: &str = "devices.kubevirt.io/";
/// The resource of `/dev/kvm`.
pub(crate) const KVM_RESOURCE: &str = "devices.kubevirt.io/kvm";
/// Pause before the node's devices are looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Pause before a directory that could not be watched is tried again.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// A device that pods can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Last part of the resource's name.
    pub(crate) name: &'static str,
    /// On the node and in the container.
    pub(crate) path: PathBuf,
}

impl Device {
    fn new(name: &'static str, path: &str) -> Self {
        Self {
            name,
            path: path.into(),
        }
    }

    /// What guests run with that are not emulated.
    pub(crate) fn kvm() -> Self {
        Self::new("kvm", "/dev/kvm")
    }

    /// The resource that containers request.
    pub(crate) fn resource(&self) -> String {
        format!("{RESOURCE_PREFIX}{}", self.name)
    }
}

/// What one plugin offers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Offer {
    /// A device that so many guests share. It is not used up.
    Shared(Device, u32),
    /// Devices that are one guest's each.
    Pool(Pool),
    /// A daemon of the node that so many guests share.
    Daemon(Daemon, u32),
}

impl Offer {
    /// Whether each of its devices is there.
    fn present(&self) -> Vec<bool> {
        match self {
            Self::Shared(device, _) => vec![device.path.exists()],
            Self::Pool(pool) => pool.present(),
            Self::Daemon(daemon, _) => vec![daemon.is_there()],
        }
    }

    fn resource(&self) -> String {
        match self {
            Self::Shared(device, _) => device.resource(),
            Self::Pool(pool) => pool.resource.clone(),
            Self::Daemon(daemon, _) => format!("{RESOURCE_PREFIX}{}", daemon.name),
        }
    }

    /// Name of its socket.
    fn socket(&self) -> String {
        let name = match self {
            Self::Shared(device, _) => device.name.to_owned(),
            Self::Pool(pool) => pool.resource.replace('/', "-"),
            Self::Daemon(daemon, _) => daemon.name.to_owned(),
        };
        format!("kubevirt-{name}.sock")
    }

    fn directories(&self) -> Vec<&Path> {
        match self {
            Self::Shared(device, _) => device.path.parent().into_iter().collect(),
            Self::Pool(pool) => pool.directories().collect(),
            Self::Daemon(daemon, _) => vec![&daemon.directory],
        }
    }
}

/// All that a node may offer. `/dev/kvm` is only offered where guests were seen to run with it.
pub(crate) fn known(kvm: &Verdict) -> Vec<Device> {
    let mut all = vec![
        Device::new("tun", "/dev/net/tun"),
        Device::new("vhost-net", "/dev/vhost-net"),
        Device::new("vhost-vsock", "/dev/vhost-vsock"),
        Device::new("sev", "/dev/sev"),
    ];
    if kvm.usable {
        all.push(Device::kvm());
    }
    all
}

/// Offers `devices` to the kubelet whose plugin directory is `directory`, for ever, to as many guests as the cluster's
/// configuration says. `registered` counts those that the kubelet has accepted at least once. Cancel safe; the sockets
/// go with it.
pub(crate) async fn run(
    directory: &Path,
    devices: Vec<Device>,
    mut config: watch::Receiver<Arc<ClusterConfig>>,
    registered: &watch::Sender<usize>,
) {
    loop {
        let guests = config.borrow_and_update().guests_per_node;
        let offers = devices.iter().map(|device| Offer::Shared(device.clone(), guests));
        tokio::select! {
            () = offer(directory, offers.collect(), registered) => {}
            () = unlike(&mut config, &guests, |config| config.guests_per_node) => {}
        }
    }
}

/// Returns when the configuration says something else than `said`.
async fn unlike<T: PartialEq>(
    config: &mut watch::Receiver<Arc<ClusterConfig>>,
    said: &T,
    read: impl Fn(&ClusterConfig) -> T,
) {
    if config.wait_for(|config| read(config) != *said).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Offers what the cluster's configuration selects of the node's devices, as [`run`] does.
pub(crate) async fn run_pools(directory: &Path, mut config: watch::Receiver<Arc<ClusterConfig>>) {
    let (registered, _) = watch::channel(0);
    loop {
        let pools = of_this_node(&mut config);
        let present = |pools: &[Pool]| pools.iter().map(Pool::present).collect::<Vec<_>>();
        let there = present(&pools);
        let offers = pools.iter().cloned().map(Offer::Pool).collect();
        let other = async {
            loop {
                tokio::select! {
                    Ok(()) = config.changed() => {}
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
                let now = of_this_node(&mut config);
                if now != pools || present(&now) != there {
                    return;
                }
            }
        };
        tokio::select! {
            () = offer(directory, offers, &registered) => {}
            () = other => {}
        }
    }
}

/// Offers the daemon that reserves LUNs while the cluster's configuration says that nodes have it, as [`run`] does.
pub(crate) async fn run_reservations(directory: &Path, mut config: watch::Receiver<Arc<ClusterConfig>>, user: u32) {
    let (registered, _) = watch::channel(0);
    let read = |config: &ClusterConfig| config.persistent_reservation.then_some(config.guests_per_node);
    loop {
        let guests = read(&config.borrow_and_update());
        let offers = guests.map(|guests| Offer::Daemon(Daemon::of_reservations(user), guests));
        tokio::select! {
            () = offer(directory, offers.into_iter().collect(), &registered) => {}
            () = unlike(&mut config, &guests, read) => {}
        }
    }
}

fn of_this_node(config: &mut watch::Receiver<Arc<ClusterConfig>>) -> Vec<Pool> {
    let config = Arc::clone(&config.borrow_and_update());
    pool::find(&config.device_selectors, Path::new("/sys"), Path::new("/dev"))
}

async fn offer(directory: &Path, offers: Vec<Offer>, registered: &watch::Sender<usize>) {
    let (changes, _) = watch::channel(());
    let directories: BTreeSet<PathBuf> = offers
        .iter()
        .flat_map(Offer::directories)
        .chain([directory])
        .map(Path::to_owned)
        .collect();
    let plugins = offers
        .into_iter()
        .map(|offer| plugin::run(directory, offer, changes.subscribe(), registered));
    tokio::join!(join_all(plugins), follow(&directories, &changes));
}

/// Tells of every change of the directories' entries.
async fn follow(directories: &BTreeSet<PathBuf>, changes: &watch::Sender<()>) {
    loop {
        if let Err(error) = follow_once(directories, changes).await {
            tracing::warn!(%error, "cannot watch for devices and the kubelet's socket");
        }
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

/// Until one of the directories is gone; those that are not there are left out.
async fn follow_once(directories: &BTreeSet<PathBuf>, changes: &watch::Sender<()>) -> io::Result<()> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
    for directory in directories {
        match inotify.watches().add(directory, mask) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    // What changed before the watches were there made no event.
    changes.send_replace(());
    let mut events = inotify.into_event_stream(vec![0; 4096])?;
    while let Some(event) = events.next().await {
        let gone = event?
            .mask
            .intersects(inotify::EventMask::IGNORED | inotify::EventMask::MOVE_SELF | inotify::EventMask::Q_OVERFLOW);
        changes.send_replace(());
        if gone {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
