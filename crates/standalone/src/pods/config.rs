//! What the pod runner is told once.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::network::NetworkConfig;
use crate::paths::DataDir;

/// Configuration of the pod runner.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Name of this node.
    pub node: String,
    /// The node's address.
    pub host_ip: IpAddr,
    /// Repository of our image, without a tag.
    pub image: String,
    /// The multi-call executable; started as `container-init`, and mounted as `virt-tail`, `virt-probe` and
    /// `virt-freezer`.
    pub executable: PathBuf,
    /// The launcher's executable; mounted as `virtiofs-server`, too.
    pub launcher: PathBuf,
    /// All durable state.
    pub data: DataDir,
    /// Pod network.
    pub network: NetworkConfig,
    /// Whether KVM works; no container is started before that is known.
    pub kvm: watch::Receiver<Option<bool>>,
}

impl RunnerConfig {
    /// Whether an image reference means our image.
    #[must_use]
    pub fn is_ours(&self, image: &str) -> bool {
        image
            .strip_prefix(&self.image)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
    }

    /// Waits until it is known whether KVM works, and says so.
    pub(super) async fn kvm_works(&self) -> bool {
        let mut kvm = self.kvm.clone();
        kvm.wait_for(Option::is_some).await.is_ok_and(|kvm| *kvm == Some(true))
    }

    /// What is laid over `/usr` of the host: file on the host, path in the container.
    pub(super) fn executables(&self) -> Vec<(PathBuf, PathBuf)> {
        vec![
            (self.launcher.clone(), "/usr/bin/virt-launcher".into()),
            (self.launcher.clone(), "/usr/bin/virtiofs-server".into()),
            (self.executable.clone(), "/usr/bin/virt-tail".into()),
            (self.executable.clone(), "/usr/bin/virt-probe".into()),
            (self.executable.clone(), "/usr/bin/virt-freezer".into()),
        ]
    }

    /// Makes the directories that containers are built from.
    ///
    /// # Errors
    /// The data directory cannot be written.
    pub(super) fn prepare(&self) -> std::io::Result<()> {
        let runtime = self.data.runtime();
        for directory in [
            self.data.pods(),
            self.data.pod_logs(),
            self.data.capability_cache(),
            runtime.join("root"),
        ] {
            std::fs::create_dir_all(directory)?;
        }
        for (_, path) in self.executables() {
            let relative = path.strip_prefix("/usr").unwrap_or(Path::new("bin/unknown"));
            let placeholder = runtime.join("usr").join(relative);
            if let Some(parent) = placeholder.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::File::create(placeholder)?;
        }
        Ok(())
    }
}
