//! What a machine gets from objects of the cluster: files on an image, a kernel, credentials.

use super::CloudInitFlavor;

/// The content of an ISO image: the files of one object, as the pod mounts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Where the files come from.
    pub origin: FilesOrigin,
    /// Label of the file system, if chosen.
    pub label: Option<String>,
}

/// Where the files of a volume come from. All objects are in the VMI's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesOrigin {
    /// The keys of a ConfigMap.
    ConfigMap(ObjectRef),
    /// The keys of a Secret.
    Secret(ObjectRef),
    /// Token, certificate and namespace of the machine's service account.
    ServiceAccount,
    /// Facts about the pod; which ones, only the pod's volume says.
    DownwardApi,
    /// Windows answer files in a ConfigMap.
    SysprepConfigMap(String),
    /// Windows answer files in a Secret.
    SysprepSecret(String),
}

/// A ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// Its name.
    pub name: String,
    /// The machine also starts without it, with no files.
    pub optional: bool,
}

/// A kernel that is started without firmware's help, from a container image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelBoot {
    /// Image reference.
    pub image: String,
    /// Path of the kernel in the image.
    pub kernel: Option<String>,
    /// Path of the initial RAM disk in the image.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub args: Option<String>,
}

/// Keys or passwords of the guest's users, from a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessCredential {
    /// The Secret.
    pub secret: String,
    /// The pod's volume with it. Credentials from the same Secret share it.
    pub volume: String,
    /// What they are, and how they get into the guest.
    pub method: CredentialMethod,
}

/// How credentials get into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialMethod {
    /// SSH keys, on the cloud-init disk of this format: they are there at the boot, and never change.
    KeysOnSeed(CloudInitFlavor),
    /// SSH keys of these users, by the guest agent, again when the Secret changes.
    KeysByAgent(Vec<String>),
    /// Passwords, by the guest agent, again when the Secret changes: the Secret's keys are the users' names.
    PasswordsByAgent,
}

/// A PersistentVolumeClaim, in the VMI's namespace: a disk image in its file system, or all of its block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Nobody writes to it.
    pub read_only: bool,
    /// What the guest writes is gone with the pod.
    pub ephemeral: bool,
    /// Bytes that an image gets that is not there yet, if the VMI's status tells of the claim.
    pub size: Option<u64>,
}

/// A directory that the guest mounts by virtiofs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// Name of file system and volume, and the tag that the guest mounts.
    pub name: String,
    /// Index of the volume in `spec.volumes`.
    pub volume_index: usize,
    /// The guest cannot write.
    pub read_only: bool,
    /// What the directory is.
    pub source: FilesystemSource,
}

/// What a shared directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesystemSource {
    /// The file system of a claim.
    Claim(Claim),
    /// Files of an object of the cluster. The guest sees how they change.
    Files(FilesOrigin),
    /// A directory of the launcher's container.
    ContainerPath(String),
}

/// A trusted platform module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tpm {
    /// Its state outlives the machine's stop; otherwise it is new at each start.
    pub persistent: bool,
}

/// The account that the machine's pod runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its name.
    pub name: String,
    /// A volume gives its token to the guest, so the pod needs it.
    pub token: bool,
}

/// A container beside the guest that is asked before the guest is defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSidecar {
    /// Image reference; `None`: the one that comes with the installation, and serves hook points with programs.
    pub image: Option<String>,
    /// When it is pulled; `None`: as Kubernetes does.
    pub pull_policy: Option<String>,
    /// Instead of the image's entry point, if there are any.
    pub command: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// A script in a ConfigMap.
    pub script: Option<HookScript>,
    /// It is told which devices are behind the machine's networks.
    pub device_info: bool,
    /// A claim.
    pub claim: Option<HookClaim>,
}

/// A key of a ConfigMap as a file of a hook sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookScript {
    /// The ConfigMap.
    pub config_map: String,
    /// Its key.
    pub key: String,
    /// Path of the file in the sidecar.
    pub path: String,
}

/// A claim of a hook sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookClaim {
    /// The claim.
    pub name: String,
    /// Where the sidecar has it.
    pub path: String,
    /// Where the guest's container has it, too.
    pub shared_path: Option<String>,
}
