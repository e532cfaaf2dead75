//! What of a reference of the wire API is covered by the types and by the CRDs.
//!
//! A reference is a JSON file `{"definitions": {"v1.CPU": {"fields": {"cores": "integer(int64)", …}, "required": […]}, …}}`.
//! A type is `string`, `boolean`, `integer(FORMAT)`, `number(FORMAT)`, `object`, another definition's name, `[]T`,
//! `map[string]T`, a list of alternatives, or an object with `type` and `enum`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use crate::{cdi, v1};

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// One line for each field that is missing or of another type, e.g. `v1.CPU.cores: missing in the wire type`.
    pub gaps: Vec<String>,
    /// Fields that are there and of the right type.
    pub covered: usize,
    /// Fields of the definitions that were compared.
    pub total: usize,
}

/// Why a reference cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceError(String);

impl std::fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ReferenceError {}

macro_rules! wire_types {
    ($($version:literal $module:ident { $($name:ident)* })*) => {
        /// Definition name → JSON schema of the wire type; references are `#/$defs/NAME`.
        fn wire_types() -> BTreeMap<&'static str, Value> {
            BTreeMap::from([$($((
                concat!($version, ".", stringify!($name)),
                schemars::schema_for!($module::$name).to_value(),
            ),)*)*])
        }
    };
}

wire_types! {
    "v1" v1 {
        KubeVirt VirtualMachine VirtualMachineInstance VirtualMachineInstanceMigration
        VirtualMachineInstancePreset VirtualMachineInstanceReplicaSet
        ACPI AccessCredential AccessCredentialSecretSource AddVolumeOptions ArchConfiguration ArchSpecificConfiguration
        BIOS BlockSize Bootloader CDRomTarget CPU CPUFeature
        CPUTopology CertConfig ChangedBlockTrackingSelectors ChangedBlockTrackingStatus Chassis ClaimRequest
        ClientPassthroughDevices Clock ClockOffsetUTC CloudInitConfigDriveSource CloudInitNoCloudSource CommonInstancetypesDeployment
        ComponentConfig ConfidentialComputeConfiguration ConfigDriveSSHPublicKeyAccessCredentialPropagation ConfigMapVolumeSource ContainerDiskInfo ContainerDiskSource
        ContainerPathVolumeSource ControllerRevisionRef CustomBlockSize CustomProfile CustomizeComponents CustomizeComponentsPatch
        DHCPOptions DHCPPrivateOptions DataVolumeSource DataVolumeTemplateDummyStatus DataVolumeTemplateSpec DeprecatedInterfaceMacvtap
        DeprecatedInterfacePasst DeprecatedInterfaceSlirp DeveloperConfiguration Devices Diag288Watchdog DisableFreePageReporting
        DisableSerialConsoleLog Disk DiskIOThreads DiskTarget DiskVerification DomainMemoryDumpInfo
        DomainSpec DowntimeTuningOptions DownwardAPIVolumeSource DownwardMetrics DownwardMetricsVolumeSource EFI
        EmptyDiskSource EphemeralVolumeSource EvacuateCancelOptions ExperimentalMigrationOptions FeatureAPIC FeatureHyperv
        FeatureKVM FeatureSpinlocks FeatureState FeatureVendorID Features Filesystem
        FilesystemVirtiofs Firmware Flags FreezeUnfreezeTimeout GPU GenerationStatus
        GuestAgentCommandInfo GuestAgentPing HPETTimer HostDevice HostDisk HotplugVolumeSource
        HotplugVolumeStatus Hugepages HyperVPassthrough HypervTimer HypervisorConfiguration I6300ESBWatchdog
        InitrdInfo Input InstancetypeConfiguration InstancetypeMatcher InstancetypeStatusRef Interface
        InterfaceBindingMigration InterfaceBindingPlugin InterfaceBridge InterfaceMasquerade InterfacePasstBinding InterfaceSRIOV
        KSMConfiguration KVMTimer KernelBoot KernelBootContainer KernelBootStatus KernelInfo
        KubeVirtCertificateRotateStrategy KubeVirtCondition KubeVirtConfiguration KubeVirtSelfSignConfiguration KubeVirtSpec KubeVirtStatus
        KubeVirtWorkloadUpdateStrategy LaunchSecurity LiveUpdateConfiguration LogVerbosity LunTarget Machine
        MediatedDevicesConfiguration MediatedHostDevice Memory MemoryDumpVolumeSource MemoryStatus MigrateOptions
        MigrationConfiguration MultusNetwork NUMA NUMAGuestMappingPassthrough Network NetworkConfiguration
        NoCloudSSHPublicKeyAccessCredentialPropagation NodeMediatedDeviceTypesConfig NodePlacement ObjectGraphNode ObjectGraphOptions PITTimer
        PanicDevice PauseOptions PciHostDevice PermittedHostDevices PersistentReservationConfiguration PersistentVolumeClaimInfo
        PersistentVolumeClaimVolumeSource PluginBinding PodNetwork Port PortRange PreferenceMatcher
        Probe QemuGuestAgentSSHPublicKeyAccessCredentialPropagation QemuGuestAgentUserPasswordAccessCredentialPropagation RESTClientConfiguration RTCTimer RateLimiter
        Realtime ReloadableComponentConfiguration RemoveVolumeOptions ReservedOverhead ResourceRequirements ResourceRequirementsWithoutClaims
        RestartOptions Rng SEV SEVAttestation SEVMeasurementInfo SEVPlatformInfo
        SEVPolicy SEVSNP SEVSecretOptions SEVSessionOptions SMBiosConfiguration SSHPublicKeyAccessCredential
        SSHPublicKeyAccessCredentialPropagationMethod SSHPublicKeyAccessCredentialSource SeccompConfiguration SecretVolumeSource ServiceAccountVolumeSource SoundDevice
        StallDetectorOptions StartOptions StopOptions StorageMigratedVolumeInfo SupportContainerResources SyNICTimer
        SysprepSource TDX TDXAttestationConfiguration TDXConfiguration TLBFlush TLSConfiguration
        TPMDevice Timer TokenBucketRateLimiter TopologyHints USBHostDevice USBSelector
        UnpauseOptions UserPasswordAccessCredential UserPasswordAccessCredentialPropagationMethod UserPasswordAccessCredentialSource UtilityVolume VGPUDisplayOptions
        VGPUOptions VMIMConfigurationOptions VideoDevice VirtTemplateDeployment VirtualMachineCondition VirtualMachineInstanceBackupStatus
        VirtualMachineInstanceBackupVolumeInfo VirtualMachineInstanceCondition VirtualMachineInstanceFileSystem VirtualMachineInstanceFileSystemDisk VirtualMachineInstanceFileSystemInfo VirtualMachineInstanceFileSystemList
        VirtualMachineInstanceGuestAgentInfo VirtualMachineInstanceGuestOSInfo VirtualMachineInstanceGuestOSUser VirtualMachineInstanceGuestOSUserList VirtualMachineInstanceMigrationCondition VirtualMachineInstanceMigrationPhaseTransitionTimestamp
        VirtualMachineInstanceMigrationSource VirtualMachineInstanceMigrationSourceState VirtualMachineInstanceMigrationSpec VirtualMachineInstanceMigrationState VirtualMachineInstanceMigrationStatus VirtualMachineInstanceMigrationTarget
        VirtualMachineInstanceMigrationTargetState VirtualMachineInstanceNetworkInterface VirtualMachineInstancePhaseTransitionTimestamp VirtualMachineInstancePresetSpec VirtualMachineInstanceProfile VirtualMachineInstanceReplicaSetCondition
        VirtualMachineInstanceReplicaSetSpec VirtualMachineInstanceReplicaSetStatus VirtualMachineInstanceResourceClaim VirtualMachineInstanceSpec VirtualMachineInstanceStatus VirtualMachineInstanceTemplateSpec
        VirtualMachineMemoryDumpRequest VirtualMachineOptions VirtualMachineSpec VirtualMachineStartFailure VirtualMachineStateChangeRequest VirtualMachineStatus
        VirtualMachineVolumeRequest Volume VolumeMigrationState VolumeSnapshotStatus VolumeStatus VolumeUpdateState
        Watchdog
    }
    "v1beta1" cdi {
        DataVolumeBlankImage DataVolumeCheckpoint DataVolumeSource DataVolumeSourceGCS DataVolumeSourceHTTP DataVolumeSourceImageIO
        DataVolumeSourcePVC DataVolumeSourceRef DataVolumeSourceRegistry DataVolumeSourceS3 DataVolumeSourceSnapshot DataVolumeSourceUpload
        DataVolumeSourceVDDK DataVolumeSpec PlatformOptions StorageSpec
        CDI CDICertConfig CDIConfigSpec CDISpec CDIStatus ComponentConfig CustomTLSProfile CustomizeComponents
        FilesystemOverhead Flags ImportProxy IntermediateTLSProfile ModernTLSProfile OldTLSProfile TLSSecurityProfile
    }
    "v1beta1" v1 { CertConfig CustomizeComponentsPatch }
    "v1" cdi { Condition }
    "api" v1 { NodePlacement }
}

/// Compares the wire types and CRD schemas with `reference`.
///
/// With `roots`, only definitions that they reach are compared; otherwise all.
///
/// # Errors
/// The reference has no `definitions`, or a root is not among them.
pub fn coverage(
    reference: &Value,
    roots: Option<&[String]>,
    crds: &[CustomResourceDefinition],
) -> Result<Coverage, ReferenceError> {
    let definitions = reference
        .get("definitions")
        .and_then(Value::as_object)
        .ok_or_else(|| ReferenceError("the reference has no object \"definitions\"".to_owned()))?;
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    match roots {
        None => wanted.extend(definitions.keys().map(String::as_str)),
        Some(roots) => {
            let mut queue: Vec<&str> = roots.iter().map(String::as_str).collect();
            while let Some(name) = queue.pop() {
                if roots.iter().any(|r| r == name) && !definitions.contains_key(name) {
                    return Err(ReferenceError(format!("the reference has no definition \"{name}\"")));
                }
                let Some(definition) = definitions.get(name) else {
                    continue;
                };
                if wanted.insert(name) {
                    queue.extend(fields(definition).filter_map(|(_, t)| t.as_str()).map(element));
                }
            }
        }
    }
    let wire = wire_types();
    let mut in_crds = BTreeMap::new();
    for crd in crds {
        let version = crd.spec.versions.first();
        let name = format!(
            "{}.{}",
            version.map_or("", |version| version.name.as_str()),
            crd.spec.names.kind
        );
        let schema = version.and_then(|v| v.schema.as_ref()?.open_api_v3_schema.as_ref());
        let schema = schema.and_then(|s| serde_json::to_value(s).ok()).unwrap_or_default();
        if definitions.contains_key(&name) {
            walk(definitions, &name, &schema, &mut in_crds);
        }
    }
    let mut result = Coverage::default();
    wanted.retain(|name| !is_kubernetes(name, &definitions[*name]));
    for name in wanted {
        for (field, kind) in fields(&definitions[name]) {
            result.total += 1;
            let gap = match wire.get(name) {
                None => Some("missing: there is no such wire type".to_owned()),
                Some(schema) => compare(definitions, kind, property(schema, field), &schema["$defs"])
                    .map(|gap| format!("{gap} in the wire type")),
            };
            let gap = gap.or_else(|| in_crds.get(&(name.to_owned(), field.to_owned())).cloned());
            match gap {
                None => result.covered += 1,
                Some(gap) => result.gaps.push(format!("{name}.{field}: {gap}")),
            }
        }
    }
    Ok(result)
}

fn fields(definition: &Value) -> impl Iterator<Item = (&str, &Value)> {
    definition
        .get("fields")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v))
}

/// What a definition without fields of its own stands for, such as a duration for a string.
fn scalar<'a>(definitions: &'a serde_json::Map<String, Value>, kind: &str) -> Option<&'a Value> {
    let definition = definitions.get(kind)?;
    let plain = definition.get("fields").is_none() && definition.get("enum").is_none();
    definition
        .get("type")
        .filter(|kind| plain && kind.as_str() != Some("object"))
}

/// Definitions that are Kubernetes' own and come with its types. KubeVirt has another definition of one of these names.
fn is_kubernetes(name: &str, definition: &Value) -> bool {
    const NAMES: &[&str] = &[
        "resource.Quantity",
        "v1.Affinity",
        "v1.Duration",
        "v1.FieldsV1",
        "v1.LabelSelector",
        "v1.LabelSelectorRequirement",
        "v1.LocalObjectReference",
        "v1.ManagedFieldsEntry",
        "v1.NodeAffinity",
        "v1.NodeSelector",
        "v1.NodeSelectorRequirement",
        "v1.NodeSelectorTerm",
        "v1.ObjectMeta",
        "v1.OwnerReference",
        "v1.PodAffinity",
        "v1.PodAffinityTerm",
        "v1.PodAntiAffinity",
        "v1.PreferredSchedulingTerm",
        "v1.ResourceClaim",
        "v1.Time",
        "v1.Toleration",
        "v1.WeightedPodAffinityTerm",
    ];
    NAMES.contains(&name) || (name == "v1.ResourceRequirements" && !definition["fields"]["claims"].is_null())
}

/// The innermost type of lists and maps.
fn element(mut kind: &str) -> &str {
    while let Some(inner) = kind.strip_prefix("[]").or_else(|| kind.strip_prefix("map[string]")) {
        kind = inner;
    }
    kind
}

fn property<'a>(schema: &'a Value, field: &str) -> Option<&'a Value> {
    let is_kind = schema.pointer("/properties/spec").is_some() && matches!(field, "apiVersion" | "kind" | "metadata");
    schema.get("properties")?.get(field).or(is_kind.then_some(&Value::Null))
}

/// Follows a definition through a CRD's inlined schema and notes each gap.
fn walk(
    definitions: &serde_json::Map<String, Value>,
    name: &str,
    schema: &Value,
    gaps: &mut BTreeMap<(String, String), String>,
) {
    for (field, kind) in fields(&definitions[name]) {
        let found = property(schema, field);
        if let Some(gap) = compare(definitions, kind, found, &Value::Null) {
            gaps.insert((name.to_owned(), field.to_owned()), format!("{gap} in a CRD"));
            continue;
        }
        let (Some(mut inner), Some(mut kind)) = (found, kind.as_str()) else {
            continue;
        };
        loop {
            if let Some(rest) = kind.strip_prefix("[]") {
                (inner, kind) = (&inner["items"], rest);
            } else if let Some(rest) = kind.strip_prefix("map[string]") {
                (inner, kind) = (&inner["additionalProperties"], rest);
            } else {
                break;
            }
        }
        if definitions.contains_key(kind) {
            walk(definitions, kind, inner, gaps);
        }
    }
}

/// `None` if `found` is what `kind` asks for.
fn compare(
    definitions: &serde_json::Map<String, Value>,
    kind: &Value,
    found: Option<&Value>,
    defs: &Value,
) -> Option<String> {
    let Some(found) = found else {
        return Some("missing".to_owned());
    };
    let found = resolve(found, defs);
    if found.is_null() {
        return None; // what every root type has by its derive
    }
    let is = |name: &str| match &found["type"] {
        Value::String(t) => t == name,
        Value::Array(all) => all.iter().any(|t| t == name),
        _ => false,
    };
    let wrong = |want: &str| Some(format!("is {} instead of {want}", found["type"]));
    match kind {
        Value::Array(alternatives) => {
            let ok = alternatives.iter().filter_map(Value::as_str).any(&is);
            if ok { None } else { wrong(&kind.to_string()) }
        }
        Value::Object(object) => {
            let same = |want: &Value| {
                let set = |v: &Value| -> BTreeSet<String> {
                    v.as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|v| v.as_str().map(str::to_owned))
                        .collect()
                };
                set(want) == set(&found["enum"])
            };
            if !object.get("type").and_then(Value::as_str).is_none_or(is) {
                return wrong(&kind.to_string());
            }
            match object.get("enum") {
                Some(values) if !same(values) => Some(format!("has enum {} instead of {values}", found["enum"])),
                _ => None,
            }
        }
        Value::String(kind) => {
            if let Some(inner) = kind.strip_prefix("[]") {
                if !is("array") {
                    return wrong("array");
                }
                return compare(definitions, &Value::from(inner), found.get("items"), defs);
            }
            if let Some(inner) = kind.strip_prefix("map[string]") {
                if !is("object") {
                    return wrong("object");
                }
                return compare(
                    definitions,
                    &Value::from(inner),
                    found.get("additionalProperties"),
                    defs,
                );
            }
            compare_named(definitions, kind, found, &is)
        }
        other => Some(format!("has a type that is not understood: {other}")),
    }
}

/// Compares with one named type: a scalar, one of Kubernetes' types, or a definition.
fn compare_named(
    definitions: &serde_json::Map<String, Value>,
    kind: &str,
    found: &Value,
    is: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let wrong = |want: &str| Some(format!("is {} instead of {want}", found["type"]));
    if kind.ends_with(".Quantity") || kind.ends_with(".IntOrString") {
        let ok = found["x-kubernetes-int-or-string"] == true;
        return if ok { None } else { wrong("a quantity (int-or-string)") };
    }
    if let Some(scalar) = scalar(definitions, kind) {
        return compare(definitions, scalar, Some(found), &Value::Null);
    }
    if kind.ends_with("meta.v1.Time") || kind.ends_with("meta.v1.MicroTime") {
        let ok = is("string") && found["format"] == "date-time";
        return if ok { None } else { wrong("string (date-time)") };
    }
    if kind.ends_with("meta.v1.Duration") {
        return if is("string") { None } else { wrong("string (duration)") };
    }
    if definitions.contains_key(kind) || kind.starts_with("k8s.io.") || kind == "object" {
        return if is("object") { None } else { wrong("object") };
    }
    let (name, format) = kind.split_once('(').unwrap_or((kind, ""));
    if !is(name) {
        return wrong(kind);
    }
    let format = format.trim_end_matches(')');
    let rust = match format {
        "byte" => "uint8",
        other => other,
    };
    let ok = format.is_empty() || found["format"] == format || found["format"] == rust;
    if ok {
        None
    } else {
        Some(format!("has format {} instead of {format}", found["format"]))
    }
}

/// Follows `$ref` and the `anyOf [T, null]` of optional fields.
fn resolve<'a>(schema: &'a Value, defs: &'a Value) -> &'a Value {
    if let Some(name) = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| r.strip_prefix("#/$defs/"))
    {
        return resolve(&defs[name], defs);
    }
    if schema.get("x-kubernetes-int-or-string").is_none()
        && let Some(all) = schema.get("anyOf").and_then(Value::as_array)
        && let Some(one) = all.iter().find(|s| s["type"] != "null")
    {
        return resolve(one, defs);
    }
    schema
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn gaps_name_the_field_and_what_is_wrong() {
        let reference = json!({"definitions": {
            "v1.VirtualMachine": {"fields": {"apiVersion": "string", "spec": "v1.VirtualMachineSpec"}},
            "v1.VirtualMachineSpec": {"fields": {
                "running": "string", "runStrategy": "string", "invented": "boolean",
                "template": "v1.VirtualMachineInstanceTemplateSpec", "dataVolumeTemplates": "[]object"
            }},
            "v1.VirtualMachineInstanceTemplateSpec": {"fields": {"spec": "object"}},
            "v1.Unreached": {"fields": {"x": "string"}}
        }});
        let roots = ["v1.VirtualMachine".to_owned()];
        let result = coverage(&reference, Some(&roots), &crate::crds()).expect("the reference is well-formed");
        assert_eq!((result.covered, result.total), (6, 8));
        assert_eq!(
            result.gaps,
            [
                "v1.VirtualMachineSpec.invented: missing in the wire type",
                "v1.VirtualMachineSpec.running: is [\"boolean\",\"null\"] instead of string in the wire type"
            ]
        );
        let all = coverage(&reference, None, &crate::crds()).expect("the reference is well-formed");
        assert_eq!(all.gaps.len(), 3);
    }

    #[test]
    fn definitions_of_kubernetes_are_not_ours_to_cover() {
        let reference = json!({"definitions": {
            "v1beta1.CDI": {"fields": {"spec": "v1beta1.CDISpec"}},
            "v1beta1.CDISpec": {"fields": {"workload": "api.NodePlacement", "certConfig": "v1beta1.CDICertConfig"}},
            "v1beta1.CDICertConfig": {"fields": {"ca": "v1beta1.CertConfig"}},
            "v1beta1.CertConfig": {"fields": {"duration": "v1.Duration", "renewBefore": "v1.Time"}},
            "api.NodePlacement": {"fields": {"tolerations": "[]v1.Toleration"}},
            "v1.Duration": {"type": "string"},
            "v1.Time": {"type": "string(date-time)"},
            "v1.Toleration": {"fields": {"key": "string"}},
        }});
        let found = coverage(&reference, None, &[crate::cdi_crd()]).expect("the reference is well-formed");
        assert_eq!((found.covered, found.total), (6, 7));
        assert!(
            found.gaps[0].starts_with("v1beta1.CertConfig.renewBefore: has format"),
            "{:?}",
            found.gaps
        );
    }

    #[test]
    fn a_gap_in_a_crd_alone_is_found() {
        let reference = json!({"definitions": {"v1.VirtualMachine": {"fields": {"status": "object"}}}});
        let mut crds = crate::crds();
        for version in &mut crds[0].spec.versions {
            let schema = version
                .schema
                .as_mut()
                .and_then(|s| s.open_api_v3_schema.as_mut())
                .expect("CRDs have schemas");
            schema
                .properties
                .as_mut()
                .expect("kinds have properties")
                .remove("status");
        }
        let result = coverage(&reference, None, &crds).expect("the reference is well-formed");
        assert_eq!(result.gaps, ["v1.VirtualMachine.status: missing in a CRD"]);
    }

    #[test]
    fn a_root_that_is_not_there_is_an_error() {
        let reference = json!({"definitions": {}});
        assert!(coverage(&reference, Some(&["v1.Nothing".to_owned()]), &[]).is_err());
    }
}
