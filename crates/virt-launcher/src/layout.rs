//! Where things are: the pod's paths, below a root that is `/` in a pod.

use std::path::{Path, PathBuf};

use ferrovirt_core::machine::FilesOrigin;
use ferrovirt_protocol::paths;

/// Every path the launcher uses, derived from one root, one namespace, one name and one UID.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    namespace: String,
    name: String,
    uid: String,
}

impl Layout {
    /// Paths of the VMI `namespace/name` with `uid`, below `root`.
    pub fn new(root: &Path, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            root: root.to_owned(),
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
        }
    }

    fn below(&self, pod_path: &str) -> PathBuf {
        self.root.join(pod_path.trim_start_matches('/'))
    }

    /// The socket virt-handler calls.
    pub fn launcher_socket(&self) -> PathBuf {
        self.below(paths::SOCKETS_DIR).join(paths::LAUNCHER_SOCKET)
    }

    /// See [`paths::EXIT_CODE`].
    pub fn exit_code(&self) -> PathBuf {
        self.below(paths::SOCKETS_DIR).join(paths::EXIT_CODE)
    }

    /// The volume `private`: also `XDG_CACHE_HOME`, `XDG_CONFIG_HOME` and `HOME` of libvirtd.
    pub fn private(&self) -> PathBuf {
        self.below(paths::PRIVATE_DIR)
    }

    /// Console and VNC sockets of this VMI.
    pub fn guest_sockets(&self) -> PathBuf {
        self.private().join(&self.uid)
    }

    /// `XDG_RUNTIME_DIR` of libvirtd, whose own directory is `libvirt` below it.
    pub fn xdg_runtime(&self) -> PathBuf {
        self.below("/var/run")
    }

    /// The volume `libvirt-runtime`.
    pub fn libvirt_runtime(&self) -> PathBuf {
        self.below(paths::LIBVIRT_RUNTIME_DIR)
    }

    /// libvirtd's socket.
    pub fn libvirt_socket(&self) -> PathBuf {
        self.libvirt_runtime().join("libvirt-sock")
    }

    /// libvirt's cache of what the QEMU executables can do.
    pub fn capability_cache(&self) -> PathBuf {
        self.private().join("libvirt/qemu/cache/capabilities")
    }

    /// The cache prepared once per host.
    pub fn prepared_capabilities(&self) -> PathBuf {
        self.below(paths::CAPABILITY_CACHE_DIR)
    }

    /// The cache that virt-handler lays into the pod's volume.
    pub fn delivered_capabilities(&self) -> PathBuf {
        self.private().join(paths::CAPABILITIES)
    }

    /// Root of the image volume of `spec.volumes[index]`.
    pub fn image_volume(&self, index: usize) -> PathBuf {
        self.below(paths::IMAGE_VOLUME_DIR).join(format!("disk_{index}"))
    }

    /// Root of the image with the kernel.
    pub fn kernel_boot(&self) -> PathBuf {
        self.below(paths::IMAGE_VOLUME_DIR).join(paths::KERNEL_BOOT)
    }

    /// Overlay over a containerDisk.
    pub fn overlay(&self, volume: &str) -> PathBuf {
        self.below(paths::EPHEMERAL_DIR)
            .join("disk-data")
            .join(volume)
            .join("disk.qcow2")
    }

    /// An emptyDisk.
    pub fn empty_disk(&self, volume: &str) -> PathBuf {
        self.libvirt_runtime()
            .join("empty-disks")
            .join(format!("{volume}.qcow2"))
    }

    /// Directory of the cloud-init image.
    pub fn cloud_init(&self) -> PathBuf {
        self.libvirt_runtime()
            .join("cloud-init-dir")
            .join(&self.namespace)
            .join(&self.name)
    }

    /// Directories of the hook sidecars.
    pub fn hooks(&self) -> PathBuf {
        self.below(paths::HOOKS_DIR)
    }

    /// File with Ignition's configuration.
    pub fn ignition(&self) -> PathBuf {
        self.libvirt_runtime()
            .join("ignition-dir")
            .join(&self.namespace)
            .join(&self.name)
            .join("data.ign")
    }

    /// Where the pod mounts a Secret for a cloud-init volume; `kind` is `udata` or `ndata`.
    pub fn cloud_init_secret(&self, volume: &str, kind: &str) -> PathBuf {
        self.below(paths::SECRET_DIR).join(format!("{volume}-{kind}"))
    }

    /// Where the pod mounts the Secret of an access credential.
    pub fn credential(&self, volume: &str) -> PathBuf {
        self.below(paths::SECRET_DIR).join(volume)
    }

    /// Where the pod mounts the files of a volume.
    pub fn volume_files(&self, volume: &str, origin: &FilesOrigin) -> PathBuf {
        let parent = match origin {
            FilesOrigin::ConfigMap(_) => paths::CONFIG_MAP_DIR,
            FilesOrigin::Secret(_) => paths::SECRET_DIR,
            FilesOrigin::DownwardApi => paths::DOWNWARD_API_DIR,
            FilesOrigin::SysprepConfigMap(_) | FilesOrigin::SysprepSecret(_) => paths::SYSPREP_DIR,
            FilesOrigin::ServiceAccount => return self.below(paths::SERVICE_ACCOUNT_DIR),
        };
        self.below(parent).join(volume)
    }

    /// What the pod's interfaces are, as the CNI plugins told.
    pub fn network_status(&self) -> PathBuf {
        self.below(paths::POD_INFO_DIR).join(paths::NETWORK_STATUS)
    }

    /// The image made of them.
    pub fn files_image(&self, volume: &str) -> PathBuf {
        self.private().join("file-disks").join(format!("{volume}.iso"))
    }

    /// A hostDisk's file, by the file name of its path on the node.
    pub fn host_disk(&self, volume: &str, file_name: &str) -> PathBuf {
        self.below(paths::HOST_DISK_DIR).join(volume).join(file_name)
    }

    /// The image in the file system of a claim.
    pub fn claim_image(&self, volume: &str) -> PathBuf {
        self.host_disk(volume, paths::CLAIM_IMAGE)
    }

    /// The block device of a claim.
    pub fn claim_device(&self, volume: &str) -> PathBuf {
        self.below("/dev").join(volume)
    }

    /// UEFI variables that outlive the pod.
    pub fn kept_nvram(&self) -> PathBuf {
        self.below(paths::STATE_DIR)
            .join(paths::STATE_NVRAM)
            .join(format!("{}_VARS.fd", self.name))
    }

    /// State of a TPM that outlives the pod.
    pub fn kept_tpm(&self, machine: &str) -> PathBuf {
        self.below(paths::STATE_DIR)
            .join(paths::STATE_TPM)
            .join(machine)
            .join("tpm2")
    }

    /// Where the kubelet reads why a container ended.
    pub fn termination_log(&self) -> PathBuf {
        self.below("/dev/termination-log")
    }

    /// An ACPI table in the Secret of a volume.
    pub fn acpi_table(&self, volume: &str, kind: &str) -> PathBuf {
        self.below(paths::SECRET_DIR).join(volume).join(format!("{kind}.bin"))
    }

    /// Unix socket of who serves a shared directory.
    pub fn filesystem_socket(&self, name: &str) -> PathBuf {
        self.below(paths::VIRTIOFS_DIR).join(format!("{name}.sock"))
    }

    /// Unix socket of serial0.
    pub fn serial_socket(&self) -> PathBuf {
        self.guest_sockets().join(paths::SERIAL_SOCKET)
    }

    /// What serial0 said.
    pub fn serial_log(&self) -> PathBuf {
        self.guest_sockets().join(paths::SERIAL_LOG)
    }

    /// Unix socket of VNC.
    pub fn vnc_socket(&self) -> PathBuf {
        self.guest_sockets().join(paths::VNC_SOCKET)
    }

    /// Unix socket of the node's daemon that reserves devices.
    pub fn reservation_socket(&self) -> PathBuf {
        self.below(paths::RESERVATION_DIR).join(paths::RESERVATION_SOCKET)
    }

    /// Unix sockets of clients' USB devices: as many as a guest has ports for them.
    pub fn usb_redirection_sockets(&self) -> Vec<PathBuf> {
        let socket = |i| {
            self.guest_sockets()
                .join(format!("{}{i}", paths::USB_REDIRECTION_SOCKET))
        };
        (0..4).map(socket).collect()
    }

    /// Unix socket of the guest agent's channel; only libvirtd uses it.
    pub fn agent_socket(&self) -> PathBuf {
        self.libvirt_runtime().join("guest-agent")
    }

    /// Unix socket of the port for metrics.
    pub fn downward_metrics_socket(&self) -> PathBuf {
        self.libvirt_runtime().join("downward-metrics")
    }

    /// Image of the disk with metrics.
    pub fn downward_metrics_disk(&self) -> PathBuf {
        self.private().join("downwardapi-disks").join("vhostmd0")
    }

    /// UEFI variables of the guest.
    pub fn nvram(&self) -> PathBuf {
        self.libvirt_runtime().join("nvram.fd")
    }

    /// Namespace of the VMI.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// UID of the VMI.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Name of the VMI.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directories that must exist and belong to the launcher; pod volumes mount most of them.
    pub fn own_dirs(&self) -> Vec<PathBuf> {
        vec![
            self.below(paths::SOCKETS_DIR),
            self.private(),
            self.guest_sockets(),
            self.libvirt_runtime(),
            self.below(paths::EPHEMERAL_DIR),
        ]
    }
}
