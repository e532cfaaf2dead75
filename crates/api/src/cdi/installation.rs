//! The `CDI` object: how data are brought into volumes, in the whole cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1::{CertConfig, CustomizeComponentsPatch, NodePlacement};

/// Lifetimes of certificates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CDICertConfig {
    /// Of authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CertConfig>,
    /// Of clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<CertConfig>,
    /// Of servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<CertConfig>,
}

/// How imports, uploads and clones are done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CDIConfigSpec {
    /// How long a DataVolume stays after it has been filled; negative is for ever.
    #[serde(default, rename = "dataVolumeTTLSeconds", skip_serializing_if = "Option::is_none")]
    pub data_volume_ttl_seconds: Option<i32>,
    /// What is not on by default.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub feature_gates: Vec<String>,
    /// What file systems take of a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem_overhead: Option<FilesystemOverhead>,
    /// Credentials of registries.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Through what importers reach their sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import_proxy: Option<ImportProxy>,
    /// Registries whose certificates are not looked at.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub insecure_registries: Vec<String>,
    /// How much is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_verbosity: Option<i32>,
    /// Of importers and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_resource_requirements: Option<ResourceRequirements>,
    /// Write whole sizes instead of leaving holes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preallocation: Option<bool>,
    /// Storage class of intermediate volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_space_storage_class: Option<String>,
    /// TLS of our servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_security_profile: Option<TLSSecurityProfile>,
    /// Where clients upload to.
    #[serde(default, rename = "uploadProxyURLOverride", skip_serializing_if = "Option::is_none")]
    pub upload_proxy_url_override: Option<String>,
    /// Whether claims are completed from storage profiles at admission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_pvc_rendering: Option<String>,
}

/// What is to be installed, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "cdi.kubevirt.io",
    version = "v1beta1",
    kind = "CDI",
    plural = "cdis",
    singular = "cdi",
    shortname = "cdi",
    shortname = "cdis",
    category = "all",
    status = "CDIStatus",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct CDISpec {
    /// Lifetimes of certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_config: Option<CDICertConfig>,
    /// How clones are made, whatever storage profiles say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_strategy_override: Option<String>,
    /// How imports, uploads and clones are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<CDIConfigSpec>,
    /// Changes to the installed components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customize_components: Option<CustomizeComponents>,
    /// When images are pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub image_pull_policy: Option<String>,
    /// Nodes and number of the components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infra: Option<ComponentConfig>,
    /// Priority class of the components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class: Option<String>,
    /// What a removal does while there are DataVolumes: RemoveWorkloads or BlockUninstallIfWorkloadsExist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uninstall_strategy: Option<String>,
    /// Nodes of importers and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<NodePlacement>,
}

/// How far an installation is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CDIStatus {
    /// Available, Progressing and Degraded.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub conditions: Vec<Condition>,
    /// Version that is installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_version: Option<String>,
    /// Version of the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_version: Option<String>,
    /// One word for how far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Version that is being installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_version: Option<String>,
}

/// A condition, as operators of OpenShift have them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// When it was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<Time>,
    /// When the status last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// One word in CamelCase for why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// True, False or Unknown.
    pub status: String,
    /// Its name.
    pub r#type: String,
}

/// Nodes and number of the components.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentConfig {
    /// Rules for the choice of a node, as for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Replicas of the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_server_replicas: Option<i32>,
    /// Replicas of the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_replicas: Option<i32>,
    /// Labels that a node must have.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes to put up with.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tolerations: Vec<Toleration>,
    /// Replicas of the upload proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_proxy_replicas: Option<i32>,
}

/// Changes to the installed components.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomizeComponents {
    /// Their flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<Flags>,
    /// Patches of their manifests.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub patches: Vec<CustomizeComponentsPatch>,
}

/// Flags of the components.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Flags {
    /// The API server's.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub api: BTreeMap<String, String>,
    /// The controller's.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub controller: BTreeMap<String, String>,
    /// The upload proxy's.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub upload_proxy: BTreeMap<String, String>,
}

/// What file systems take of a volume, as shares between 0 and 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemOverhead {
    /// Where nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<String>,
    /// By storage class.
    #[serde(
        default,
        deserialize_with = "crate::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub storage_class: BTreeMap<String, String>,
}

/// Through what importers reach their sources.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportProxy {
    /// For http.
    #[serde(default, rename = "HTTPProxy", skip_serializing_if = "Option::is_none")]
    pub http_proxy: Option<String>,
    /// For https.
    #[serde(default, rename = "HTTPSProxy", skip_serializing_if = "Option::is_none")]
    pub https_proxy: Option<String>,
    /// Hosts that are reached directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_proxy: Option<String>,
    /// ConfigMap with the authorities of the proxy's certificate.
    #[serde(default, rename = "trustedCAProxy", skip_serializing_if = "Option::is_none")]
    pub trusted_ca_proxy: Option<String>,
}

/// Which TLS is spoken; one of the profiles of OpenShift.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TLSSecurityProfile {
    /// As listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomTLSProfile>,
    /// For most clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate: Option<IntermediateTLSProfile>,
    /// For the newest clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modern: Option<ModernTLSProfile>,
    /// For the oldest clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<OldTLSProfile>,
    /// Old, Intermediate, Modern or Custom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
}

/// A profile as listed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomTLSProfile {
    /// Cipher suites.
    #[serde(default, deserialize_with = "crate::null_default")]
    pub ciphers: Vec<String>,
    /// Oldest version, such as VersionTLS12.
    #[serde(rename = "minTLSVersion")]
    pub min_tls_version: String,
}

/// The profile for most clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IntermediateTLSProfile {}

/// The profile for the newest clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModernTLSProfile {}

/// The profile for the oldest clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OldTLSProfile {}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Each field once, as clients write them.
    fn filled() -> Value {
        let certificate = json!({"duration": "48h0m0s", "renewBefore": "24h0m0s"});
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "Exists"}]}]}}});
        let toleration = json!([{"key": "t", "operator": "Exists"}]);
        json!({
            "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "CDI", "metadata": {"name": "cdi"},
            "spec": {
                "certConfig": {"ca": certificate, "client": certificate, "server": certificate},
                "cloneStrategyOverride": "copy",
                "config": {
                    "dataVolumeTTLSeconds": -1, "featureGates": ["HonorWaitForFirstConsumer"],
                    "filesystemOverhead": {"global": "0.06", "storageClass": {"local": "0.1"}},
                    "imagePullSecrets": [{"name": "pull"}],
                    "importProxy": {"HTTPProxy": "a", "HTTPSProxy": "b", "noProxy": "c", "trustedCAProxy": "d"},
                    "insecureRegistries": ["registry.local:5000"], "logVerbosity": 3,
                    "podResourceRequirements": {"limits": {"cpu": "1"}, "requests": {"memory": "60M"}, "claims": [{"name": "c"}]},
                    "preallocation": true, "scratchSpaceStorageClass": "local",
                    "tlsSecurityProfile": {
                        "type": "Custom", "custom": {"ciphers": ["TLS_AES_128_GCM_SHA256"], "minTLSVersion": "VersionTLS13"},
                        "intermediate": {}, "modern": {}, "old": {},
                    },
                    "uploadProxyURLOverride": "https://upload.example", "webhookPvcRendering": "Enabled",
                },
                "customizeComponents": {
                    "flags": {"api": {"v": "5"}, "controller": {"v": "4"}, "uploadProxy": {"v": "3"}},
                    "patches": [{"resourceType": "Deployment", "resourceName": "cdi-deployment", "type": "merge", "patch": "{}"}],
                },
                "imagePullPolicy": "IfNotPresent",
                "infra": {
                    "affinity": affinity, "nodeSelector": {"a": "b"}, "tolerations": toleration,
                    "apiServerReplicas": 1, "deploymentReplicas": 2, "uploadProxyReplicas": 3,
                },
                "priorityClass": "kubevirt-cluster-critical",
                "uninstallStrategy": "BlockUninstallIfWorkloadsExist",
                "workload": {"affinity": affinity, "nodeSelector": {"a": "b"}, "tolerations": toleration},
            },
            "status": {
                "phase": "Error", "operatorVersion": "v1", "observedVersion": "v1", "targetVersion": "v1",
                "conditions": [{
                    "type": "Available", "status": "False", "reason": "R", "message": "m",
                    "lastHeartbeatTime": "2026-01-02T03:04:05Z", "lastTransitionTime": "2026-01-02T03:04:05Z",
                }],
            },
        })
    }

    #[test]
    fn no_field_is_lost_and_the_crd_knows_each() {
        let typed: CDI = serde_json::from_value(filled()).unwrap();
        assert_eq!(serde_json::to_value(&typed).unwrap(), filled());
        let crd = serde_json::to_value(crate::cdi_crd()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut queue = vec![(filled(), schema)];
        while let Some((value, schema)) = queue.pop() {
            match value {
                Value::Object(fields) => {
                    for (name, value) in fields {
                        let known = &schema["properties"][&name];
                        let known = if known.is_null() {
                            &schema["additionalProperties"]
                        } else {
                            known
                        };
                        if name != "metadata" {
                            assert!(known.is_object(), "the CRD has no {name}");
                            queue.push((value, known));
                        }
                    }
                }
                Value::Array(values) => queue.extend(values.into_iter().map(|value| (value, &schema["items"]))),
                scalar => {
                    let is_type = match &scalar {
                        Value::Bool(_) => schema["type"] == "boolean",
                        Value::Number(_) => schema["type"] == "integer",
                        _ => schema["type"] == "string" || schema["x-kubernetes-int-or-string"] == true,
                    };
                    assert!(is_type, "{scalar} is no {schema}");
                }
            }
        }
    }
}
