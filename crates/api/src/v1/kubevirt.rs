//! The `KubeVirt` object: what is installed.

use super::config::KubeVirtConfiguration;
use crate::Duration;
use k8s_openapi::api::core::v1::Affinity;
use k8s_openapi::api::core::v1::LocalObjectReference;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `v1.CertConfig` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertConfig {
    /// `duration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// `renewBefore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_before: Option<Duration>,
}

/// `v1.ComponentConfig` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentConfig {
    /// `nodePlacement`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_placement: Option<NodePlacement>,
    /// `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u8>,
}

/// `v1.CustomizeComponents` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomizeComponents {
    /// `flags`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<Flags>,
    /// `patches`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub patches: Vec<CustomizeComponentsPatch>,
}

/// `v1.CustomizeComponentsPatch` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomizeComponentsPatch {
    /// `patch`.
    pub patch: String,
    /// `resourceName`.
    pub resource_name: String,
    /// `resourceType`.
    pub resource_type: String,
    /// `type`.
    pub r#type: String,
}

/// `v1.Flags` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Flags {
    /// `api`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub api: BTreeMap<String, String>,
    /// `controller`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub controller: BTreeMap<String, String>,
    /// `handler`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub handler: BTreeMap<String, String>,
}

/// `v1.GenerationStatus` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GenerationStatus {
    /// `group`.
    pub group: String,
    /// `hash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// `lastGeneration`.
    pub last_generation: i64,
    /// `name`.
    pub name: String,
    /// `namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `resource`.
    pub resource: String,
}

/// `v1.KubeVirtCertificateRotateStrategy` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtCertificateRotateStrategy {
    /// `selfSigned`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_signed: Option<KubeVirtSelfSignConfiguration>,
}

/// `v1.KubeVirtCondition` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtCondition {
    /// `lastProbeTime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<Time>,
    /// `lastTransitionTime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
    /// `message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `status`.
    pub status: String,
    /// `type`.
    pub r#type: String,
}

/// `v1.KubeVirtSelfSignConfiguration` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtSelfSignConfiguration {
    /// `ca`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CertConfig>,
    /// `caOverlapInterval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_overlap_interval: Option<Duration>,
    /// `caRotateInterval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_rotate_interval: Option<Duration>,
    /// `certRotateInterval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_rotate_interval: Option<Duration>,
    /// `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<CertConfig>,
}

/// `v1.KubeVirtSpec` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "kubevirt.io",
    version = "v1",
    kind = "KubeVirt",
    namespaced,
    plural = "kubevirts",
    singular = "kubevirt",
    shortname = "kv",
    shortname = "kvs",
    category = "all",
    status = "KubeVirtStatus",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtSpec {
    /// `certificateRotateStrategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_rotate_strategy: Option<KubeVirtCertificateRotateStrategy>,
    /// `configuration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<KubeVirtConfiguration>,
    /// `customizeComponents`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customize_components: Option<CustomizeComponents>,
    /// `imagePullPolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub image_pull_policy: Option<String>,
    /// `imagePullSecrets`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// `imageRegistry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_registry: Option<String>,
    /// `imageTag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_tag: Option<String>,
    /// `infra`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infra: Option<ComponentConfig>,
    /// `monitorAccount`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor_account: Option<String>,
    /// `monitorNamespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor_namespace: Option<String>,
    /// `productComponent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_component: Option<String>,
    /// `productName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_name: Option<String>,
    /// `productVersion`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_version: Option<String>,
    /// `serviceMonitorNamespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_monitor_namespace: Option<String>,
    /// `synchronizationPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synchronization_port: Option<String>,
    /// `uninstallStrategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uninstall_strategy: Option<String>,
    /// `workloadUpdateStrategy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_update_strategy: Option<KubeVirtWorkloadUpdateStrategy>,
    /// `workloads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<ComponentConfig>,
}

/// `v1.KubeVirtStatus` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtStatus {
    /// `conditions`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub conditions: Vec<KubeVirtCondition>,
    /// `defaultArchitecture`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_architecture: Option<String>,
    /// `generations`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub generations: Vec<GenerationStatus>,
    /// `observedDeploymentConfig`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_deployment_config: Option<String>,
    /// `observedDeploymentID`.
    #[serde(default, rename = "observedDeploymentID", skip_serializing_if = "Option::is_none")]
    pub observed_deployment_id: Option<String>,
    /// `observedGeneration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `observedKubeVirtRegistry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_kube_virt_registry: Option<String>,
    /// `observedKubeVirtVersion`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_kube_virt_version: Option<String>,
    /// `operatorVersion`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_version: Option<String>,
    /// `outdatedVirtualMachineInstanceWorkloads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outdated_virtual_machine_instance_workloads: Option<i32>,
    /// `phase`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// `synchronizationAddresses`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub synchronization_addresses: Vec<String>,
    /// `targetDeploymentConfig`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_deployment_config: Option<String>,
    /// `targetDeploymentID`.
    #[serde(default, rename = "targetDeploymentID", skip_serializing_if = "Option::is_none")]
    pub target_deployment_id: Option<String>,
    /// `targetKubeVirtRegistry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_kube_virt_registry: Option<String>,
    /// `targetKubeVirtVersion`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_kube_virt_version: Option<String>,
}

/// `v1.KubeVirtWorkloadUpdateStrategy` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtWorkloadUpdateStrategy {
    /// `batchEvictionInterval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_eviction_interval: Option<Duration>,
    /// `batchEvictionSize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_eviction_size: Option<i32>,
    /// `workloadUpdateMethods`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub workload_update_methods: Vec<String>,
}

/// `v1.NodePlacement` of the wire API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePlacement {
    /// `affinity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// `nodeSelector`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub node_selector: BTreeMap<String, String>,
    /// `tolerations`.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tolerations: Vec<Toleration>,
}
