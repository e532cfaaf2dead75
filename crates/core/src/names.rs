//! Labels, annotations, finalizers and fixed names of KubeVirt that more than one process knows.

use sha2::{Digest, Sha256};

/// Label of every object that belongs to the system; pods of VMs carry [`VIRT_LAUNCHER`].
pub const APP_LABEL: &str = "kubevirt.io";
/// Value of [`APP_LABEL`] on pods of VMs.
pub const VIRT_LAUNCHER: &str = "virt-launcher";
/// Label of a pod: UID of its VMI.
pub const CREATED_BY_LABEL: &str = "kubevirt.io/created-by";
/// Label of a VMI and its pod: the node it runs on.
pub const NODE_NAME_LABEL: &str = "kubevirt.io/nodeName";
/// Label of a pod: hostname of its VMI.
pub const VM_NAME_LABEL: &str = "vm.kubevirt.io/name";
/// Label of a pod: name of its VMI, shortened to a label's length.
pub const VMI_ID_LABEL: &str = "vmi.kubevirt.io/id";
/// Resource of nodes whose kernel has sockets between guests and their host (vsock(7)).
pub const VHOST_VSOCK_RESOURCE: &str = "devices.kubevirt.io/vhost-vsock";
/// Label of nodes that may run VMs.
pub const SCHEDULABLE_LABEL: &str = "kubevirt.io/schedulable";
/// Label of nodes whose kernel lets real-time threads run for as long as they like.
pub const REALTIME_LABEL: &str = "kubevirt.io/realtime";
/// Label of nodes whose kubelet can give CPUs to one container alone.
pub const CPU_MANAGER_LABEL: &str = "kubevirt.io/cpumanager";
/// Prefix of labels of nodes by what Windows finds in its hypervisor there, in the API's words.
pub const HYPERV_PREFIX: &str = "hyperv.node.kubevirt.io/";
/// Prefix of labels of nodes by the features that CPUs of guests can have there.
pub const CPU_FEATURE_PREFIX: &str = "cpu-feature.node.kubevirt.io/";
/// Prefix of a label of nodes by the vendor of their CPUs.
pub const CPU_VENDOR_PREFIX: &str = "cpu-vendor.node.kubevirt.io/";
/// Label of nodes whose own CPU model is obsolete.
pub const OBSOLETE_HOST_MODEL_LABEL: &str = "node-labeller.kubevirt.io/obsolete-host-model";
/// Label of a namespace: how many times the memory that they request pods may have there.
pub const MEMORY_LIMIT_RATIO_LABEL: &str = "alpha.kubevirt.io/auto-memory-limits-ratio";
/// Label of a pod, and annotation of its VMI: whether Istio adds its proxy.
pub const ISTIO_INJECT: &str = "sidecar.istio.io/inject";
/// Annotation of nodes: when the node agent was alive, as RFC 3339.
pub const HEARTBEAT_ANNOTATION: &str = "kubevirt.io/heartbeat";
/// Annotation of a pod: name of its VMI.
pub const DOMAIN_ANNOTATION: &str = "kubevirt.io/domain";
/// Annotation of a pod: bytes that are reserved beside the guest's memory.
pub const MEMORY_OVERHEAD_ANNOTATION: &str = "kubevirt.io/memory-overhead-bytes";
/// Annotation of a pod: migrations go through unix sockets.
pub const MIGRATION_TRANSPORT_UNIX_ANNOTATION: &str = "kubevirt.io/migrationTransportUnix";
/// Annotation of a pod: the networks that Multus attaches it to, beside the one that all pods have.
pub const NETWORKS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";
/// Annotation of a pod: the network that Multus attaches it to instead of the one that all pods have.
pub const DEFAULT_NETWORK_ANNOTATION: &str = "v1.multus-cni.io/default-network";
/// Annotation of a pod: its interfaces and the devices behind them, written by Multus.
pub const NETWORK_STATUS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/network-status";
/// Annotation of a pod: the devices behind its VMI's networks, for the sidecars of network bindings; written by
/// virt-controller.
pub const NETWORK_INFO_ANNOTATION: &str = "kubevirt.io/network-info";
/// Annotation of a pod: what each network binding plugin of its VMI left to virt-handler when the pod was made, as JSON.
pub const ATTACHMENTS_ANNOTATION: &str = "kubevirt.io/network-binding-attachments";
/// Annotation of a NetworkAttachmentDefinition: the resource of nodes whose devices the network is made of.
pub const NETWORK_RESOURCE_ANNOTATION: &str = "k8s.v1.cni.cncf.io/resourceName";
/// Annotation of a VMI, of its VM and of the KubeVirt object, in this order: pods have no hooks for programs that make
/// backups.
pub const SKIP_BACKUP_HOOKS_ANNOTATION: &str = "kubevirt.io/skip-backup-hooks";
/// Annotation of a VMI: generation of the VM it was created from.
pub const VM_GENERATION_ANNOTATION: &str = "kubevirt.io/vm-generation";
/// Annotation that the controllers stamp: newest API version that they have seen.
pub const LATEST_API_VERSION_ANNOTATION: &str = "kubevirt.io/latest-observed-api-version";
/// Annotation that the controllers stamp: API version that objects are stored in.
pub const STORAGE_API_VERSION_ANNOTATION: &str = "kubevirt.io/storage-observed-api-version";
/// Finalizer of the VM controller, on VMs and on the VMIs that it creates.
pub const VM_FINALIZER: &str = "kubevirt.io/virtualMachineControllerFinalize";
/// Finalizer of the VMI controller.
pub const VMI_FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
/// Older spelling of [`VMI_FINALIZER`].
pub const VMI_FINALIZER_OLD: &str = "foregroundDeleteVirtualMachine";
/// Readiness gate of a launcher pod.
pub const UNPAUSED_GATE: &str = "kubevirt.io/virtual-machine-unpaused";
/// Namespace UUID of firmware UUIDs that are made from a VM's name.
pub const FIRMWARE_UUID_NAMESPACE: uuid::Uuid = uuid::Uuid::from_u128(0x6a1a_24a1_4061_4607_8bf4_a396_3d0c_5895);
/// User and group that launchers and QEMU run as.
pub const RUNTIME_USER: i64 = 107;

/// The firmware UUID of a VM whose template has none: the same VM always shows its guest the same one.
#[must_use]
pub fn firmware_uuid(vm_name: &str) -> uuid::Uuid {
    uuid::Uuid::new_v5(&FIRMWARE_UUID_NAMESPACE, vm_name.as_bytes())
}

/// Name of the ControllerRevision that keeps the spec a VM was started with.
#[must_use]
pub fn start_revision(vm_uid: &str, generation: i64) -> String {
    format!("revision-start-vm-{vm_uid}-{generation}")
}

/// Name of a pod's interface on the network that a VMI calls `network`, beside the one that all pods have.
#[must_use]
pub fn pod_interface(network: &str) -> String {
    let digest = Sha256::digest(network.as_bytes());
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("pod{}", &hex[..11])
}

/// A boolean value of an annotation, as Kubernetes' components read it.
#[must_use]
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn pod_interfaces_fit_the_kernel() {
        assert_eq!(super::pod_interface("red"), "podb1f51a511f1");
        assert_eq!(super::pod_interface(&"x".repeat(300)).len(), 14);
    }
}
