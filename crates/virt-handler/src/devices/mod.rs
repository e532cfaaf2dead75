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

mod plugin;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use inotify::{Inotify, WatchMask};
use tokio::sync::watch;

use crate::kvm::Verdict;

/// Generated from `proto/deviceplugin.proto`.
#[allow(clippy::all, clippy::unwrap_used, clippy::too_many_lines, reason = "generated")]
mod api {
    tonic::include_proto!("v1beta1");
}

/// Every resource begins with it.
const RESOURCE_PREFIX: &str = "devices.kubevirt.io/";
/// The resource of `/dev/kvm`.
pub(crate) const KVM_RESOURCE: &str = "devices.kubevirt.io/kvm";
/// As many guests may share a device; it is not used up.
pub(crate) const COUNT: usize = 1000;
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

    /// The resource that containers request.
    pub(crate) fn resource(&self) -> String {
        format!("{RESOURCE_PREFIX}{}", self.name)
    }
}

/// All that a node may offer. `/dev/kvm` is only offered where guests were seen to run with it.
pub(crate) fn known(kvm: &Verdict) -> Vec<Device> {
    let mut all = vec![
        Device::new("tun", "/dev/net/tun"),
        Device::new("vhost-net", "/dev/vhost-net"),
        Device::new("vhost-vsock", "/dev/vhost-vsock"),
    ];
    if kvm.usable {
        all.push(Device::new("kvm", "/dev/kvm"));
    }
    all
}

/// Offers `devices` to the kubelet whose plugin directory is `directory`, for ever. `registered` counts those that the
/// kubelet has accepted at least once. Cancel safe; the sockets go with it.
pub(crate) async fn run(directory: &Path, devices: Vec<Device>, registered: &watch::Sender<usize>) {
    let (changes, _) = watch::channel(());
    let directories: BTreeSet<PathBuf> = devices
        .iter()
        .filter_map(|device| device.path.parent())
        .chain([directory])
        .map(Path::to_owned)
        .collect();
    let plugins = devices
        .into_iter()
        .map(|device| plugin::run(directory, device, changes.subscribe(), registered));
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
