#![doc = env!("CARGO_PKG_DESCRIPTION")]

pub mod node;
pub mod streams;

/// Handler ⇄ launcher, generated from `proto/launcher.proto`.
#[allow(clippy::all, clippy::unwrap_used, clippy::too_many_lines, reason = "generated")]
pub mod launcher {
    tonic::include_proto!("ferrovirt.launcher.v1");
}

#[allow(clippy::all, clippy::unwrap_used, clippy::too_many_lines, reason = "generated")]
pub mod hooks {
    //! Launcher ⇄ hook sidecars of VMIs, generated from `proto/hooks_*.proto`: KubeVirt's contract, to the byte.

    pub mod info {
        //! What a sidecar says about itself.
        tonic::include_proto!("kubevirt.hooks.info");
    }
    pub mod v1alpha2 {
        //! Callbacks; their messages are those of the next version.
        tonic::include_proto!("kubevirt.hooks.v1alpha2");
    }
    pub mod v1alpha3 {
        //! Callbacks.
        tonic::include_proto!("kubevirt.hooks.v1alpha3");
    }
}

pub mod paths {
    //! Paths inside a launcher pod that more than one process knows, and the pod volumes behind them.
    //! On the host a volume is `PODS/<pod uid>/volumes/kubernetes.io~empty-dir/<volume>`, where PODS is the
    //! kubelet's pods directory (the embedded pod runner uses the same layout).

    /// Volume `sockets`.
    pub const SOCKETS_VOLUME: &str = "sockets";
    /// Where the launcher listens, below [`SOCKETS_VOLUME`].
    pub const LAUNCHER_SOCKET: &str = "launcher-sock";
    /// What the launcher's exit code will be, in decimal, below [`SOCKETS_VOLUME`]: for a pod runner that was not there to
    /// see it. It is the launcher's own word, and a guest's author may have made it up.
    pub const EXIT_CODE: &str = "exit-code";
    /// Mount path of [`SOCKETS_VOLUME`].
    pub const SOCKETS_DIR: &str = "/var/run/kubevirt/sockets";
    /// Volume `private`; holds `<vmi uid>/virt-serial0`, `virt-serial0-log`, `virt-vnc`.
    pub const PRIVATE_VOLUME: &str = "private";
    /// Mount path of [`PRIVATE_VOLUME`].
    pub const PRIVATE_DIR: &str = "/var/run/kubevirt-private";
    /// Serial console socket, below `<PRIVATE_DIR>/<vmi uid>/`.
    pub const SERIAL_SOCKET: &str = "virt-serial0";
    /// Serial console log, below `<PRIVATE_DIR>/<vmi uid>/`.
    pub const SERIAL_LOG: &str = "virt-serial0-log";
    /// VNC socket, below `<PRIVATE_DIR>/<vmi uid>/`.
    pub const VNC_SOCKET: &str = "virt-vnc";
    /// Sockets of clients' USB devices, `<this><0..4>` below `<PRIVATE_DIR>/<vmi uid>/`.
    pub const USB_REDIRECTION_SOCKET: &str = "virt-usbredir-";
    /// containerDisk image volumes are mounted at `disk_<index of the volume in spec.volumes>` below this.
    pub const IMAGE_VOLUME_DIR: &str = "/var/run/kubevirt-image-volume";
    /// Where a cluster has no image volumes: the volume whose `disk_<index>` virt-handler mounts the containerDisks
    /// on, and in which the containers that hold them listen on `disk_<index>.sock`. The launcher has it, read-only, as
    /// [`IMAGE_VOLUME_DIR`].
    pub const CONTAINER_DISKS_VOLUME: &str = "container-disks";
    /// Mount path of [`CONTAINER_DISKS_VOLUME`] in those containers.
    pub const CONTAINER_DISKS_DIR: &str = "/var/run/kubevirt/container-disks";
    /// The image of a kernel, where `disk_<index>` would be for a containerDisk.
    pub const KERNEL_BOOT: &str = "kernel-boot";
    /// Volume with the sockets of hook sidecars, each in the directory `<HOOK_SIDECAR><index>`.
    pub const HOOKS_VOLUME: &str = "hook-sidecar-sockets";
    /// Mount path of [`HOOKS_VOLUME`]; a sidecar has only its own directory there.
    pub const HOOKS_DIR: &str = "/var/run/kubevirt-hooks";
    /// Name of a hook sidecar's container, before its index.
    pub const HOOK_SIDECAR: &str = "hook-sidecar-";
    /// Volume `ephemeral-disks`.
    pub const EPHEMERAL_DIR: &str = "/var/run/kubevirt-ephemeral-disks";
    /// Volume `libvirt-runtime`.
    pub const LIBVIRT_RUNTIME_DIR: &str = "/var/run/libvirt";
    /// Prepared QEMU capability cache, mounted read-only; copied into libvirtd's cache directory.
    pub const CAPABILITY_CACHE_DIR: &str = "/var/cache/ferrovirt/libvirt-qemu";
    /// The same cache as virt-handler lays it into [`PRIVATE_VOLUME`] before the launcher starts.
    pub const CAPABILITIES: &str = "capabilities";
    /// Beside a prepared cache: libvirt's description of the guests that are possible with it.
    pub const DOMAIN_CAPABILITIES: &str = "domain-capabilities";
    /// Volume with the sockets of those who serve shared directories: `<file system>.sock`.
    pub const VIRTIOFS_VOLUME: &str = "virtiofs-containers";
    /// Mount path of [`VIRTIOFS_VOLUME`].
    pub const VIRTIOFS_DIR: &str = "/var/run/kubevirt/virtiofs-containers";
    /// User secrets: `<SECRET_DIR>/<volume>/…`; cloud-init secrets are volumes `<volume>-udata`, `<volume>-ndata` here.
    pub const SECRET_DIR: &str = "/var/run/kubevirt-private/secret";
    /// ConfigMaps of volumes: `<CONFIG_MAP_DIR>/<volume>/<key>`.
    pub const CONFIG_MAP_DIR: &str = "/var/run/kubevirt-private/config-map";
    /// Facts about the pod for volumes: `<DOWNWARD_API_DIR>/<volume>/<path>`.
    pub const DOWNWARD_API_DIR: &str = "/var/run/kubevirt-private/downwardapi";
    /// Windows answer files for volumes: `<SYSPREP_DIR>/<volume>/<key>`.
    pub const SYSPREP_DIR: &str = "/var/run/kubevirt-private/sysprep";
    /// Token, `ca.crt` and `namespace` of the pod's service account, where Kubernetes puts them.
    pub const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    /// Directory of the daemon that reserves LUNs for guests, on the node and in the pods that may ask it.
    pub const RESERVATION_DIR: &str = "/var/run/kubevirt/daemons/pr";
    /// Its socket, below [`RESERVATION_DIR`].
    pub const RESERVATION_SOCKET: &str = "pr-helper.sock";
    /// Image in a claim that is a file system, which is mounted as a hostDisk's directory.
    pub const CLAIM_IMAGE: &str = "disk.img";
    /// What the pod is told of itself, as a volume.
    pub const POD_INFO_VOLUME: &str = "podinfo";
    /// Where that is.
    pub const POD_INFO_DIR: &str = "/etc/podinfo";
    /// The annotation with the pod's interfaces, below [`POD_INFO_DIR`].
    pub const NETWORK_STATUS: &str = "network-status";
    /// What the sidecars of network bindings are told of the pod, as a volume, at [`POD_INFO_DIR`].
    pub const NETWORK_INFO_VOLUME: &str = "network-info";
    /// The annotation with the devices behind the VMI's networks, below [`POD_INFO_DIR`].
    pub const NETWORK_INFO: &str = "network-info";
    /// The claim with what of a guest's firmware and TPM outlives its pod.
    pub const STATE_DIR: &str = "/var/run/kubevirt-private/vm-state";
    /// UEFI variables, below [`STATE_DIR`].
    pub const STATE_NVRAM: &str = "nvram";
    /// State of TPMs, below [`STATE_DIR`].
    pub const STATE_TPM: &str = "swtpm";
    /// hostDisk directories: `<HOST_DISK_DIR>/<volume>/<file name of hostDisk.path>`.
    pub const HOST_DISK_DIR: &str = "/var/run/kubevirt-private/vmi-disks";
}
