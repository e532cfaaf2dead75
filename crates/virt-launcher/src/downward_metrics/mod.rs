//! Metrics of the machine and of its node for the guest, in the two ways of vhostmd: a port on which the guest asks, and
//! a disk that it reads. Tools for guests (`vm-dump-metrics`) know both.

mod disk;
mod port;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::machine::{Machine, Source};
use tokio::time::{MissedTickBehavior, interval};

use crate::hypervisor::Hypervisor;
use crate::layout::Layout;

pub use disk::{DISK_SIZE, create as create_disk};

/// How often the disk is written.
const REFRESH: Duration = Duration::from_secs(5);

/// Tells a guest about itself and its node.
pub struct Reporter {
    hypervisor: Hypervisor,
    node: String,
    port: Option<PathBuf>,
    disk: Option<PathBuf>,
}

impl Reporter {
    /// For a machine that has the port, the disk, or both.
    pub fn of(
        machine: &Machine,
        layout: &Layout,
        hypervisor: &Hypervisor,
        vmi: &VirtualMachineInstance,
    ) -> Option<Self> {
        let has_disk = machine.disks.iter().any(|disk| disk.source == Source::DownwardMetrics);
        let port = machine.downward_metrics.then(|| layout.downward_metrics_socket());
        let disk = has_disk.then(|| layout.downward_metrics_disk());
        if port.is_none() && disk.is_none() {
            return None;
        }
        let node = vmi.status.as_ref().and_then(|status| status.node_name.clone());
        Some(Self {
            hypervisor: hypervisor.clone(),
            node: node.unwrap_or_default(),
            port,
            disk,
        })
    }

    /// Reports until the guest is gone.
    pub async fn run(self) {
        let port = async {
            if let Some(socket) = &self.port
                && let Err(error) = port::serve(socket, || self.report()).await
            {
                tracing::warn!(%error, "the port for metrics is silent from now on");
            }
        };
        let disk = async {
            if let Some(image) = &self.disk {
                self.refresh(image).await;
            }
        };
        tokio::join!(port, disk);
    }

    async fn refresh(&self, image: &Path) {
        let mut ticks = interval(REFRESH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let report = self.report().await;
            if let Err(error) = disk::write(image, &report) {
                tracing::warn!(%error, "the disk with metrics is not up to date");
            }
        }
    }

    async fn report(&self) -> String {
        let stats = self.hypervisor.stats().await;
        let stats = stats.inspect_err(|error| tracing::debug!(%error, "no metrics of the guest"));
        let host = report::Host::read(Path::new("/proc"), Path::new("/sys"));
        report::report(&self.node, &host, &stats.unwrap_or_default())
    }
}
