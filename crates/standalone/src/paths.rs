//! Where things are on this machine.

use std::path::{Path, PathBuf};

/// Default of `--data-dir`.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/ferrovirt";

/// The one directory that holds all durable state.
///
/// ```text
/// lock                      held by the running `ferrovirt up`; says its pid and URL
/// kubeconfig                for kubectl and virtctl
/// node.json                 name of the node
/// apiserver/                the API's store and certificates
/// images/                   pulled and imported images
/// volumes/PV/               one directory per PersistentVolume of the storage class `local`
/// kubelet/pods/UID/         one directory per pod: state.json, volumes/
/// logs/pods/NS_POD_UID/     container logs
/// cni/                      network configuration and address reservations
/// cache/                    what can be made again
/// runtime/                  mount points of container root file systems
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// The directory at `path`, which need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Held while a control plane runs here.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Client configuration of the administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// The name of the node, which pods and volumes are bound to.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        self.0.join("node.json")
    }

    /// The API server's own directory.
    #[must_use]
    pub fn apiserver(&self) -> PathBuf {
        self.0.join("apiserver")
    }

    /// The image store's own directory.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// The kubelet layout's `pods` directory.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.0.join("kubelet/pods")
    }

    /// Where container logs are.
    #[must_use]
    pub fn pod_logs(&self) -> PathBuf {
        self.0.join("logs/pods")
    }

    /// Log of a control plane that runs in the background.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("logs/ferrovirt.log")
    }

    /// Volumes of the storage class `local`.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// CNI configuration and state.
    #[must_use]
    pub fn cni(&self) -> PathBuf {
        self.0.join("cni")
    }

    /// QEMU's capabilities as libvirt knows them.
    #[must_use]
    pub fn capability_cache(&self) -> PathBuf {
        self.0.join("cache/libvirt-qemu")
    }

    /// Mount points for container root file systems.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.0.join("runtime")
    }
}
