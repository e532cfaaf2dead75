//! What each concern of a VMI changes in its pod: the fields of the pod that differ from the pod of a small VMI on a
//! cluster with KVM, one line each. A case may patch the VMI's `metadata` and `spec`, the `KubeVirt` object's `config`,
//! run on one machine (`standalone: true`), or without image volumes (`helper: true`), and have `claims`.

use ferrovirt_api::v1::KubeVirtConfiguration;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Value, json};

use super::*;

struct Case {
    name: &'static str,
    yaml: &'static str,
}

macro_rules! goldens {
    ($($name:ident => $yaml:literal)*) => {
        const CASES: &[Case] = &[$(Case { name: stringify!($name), yaml: $yaml }),*];
        mod golden {
            $(#[test] fn $name() { super::check(stringify!($name)); })*
        }
    };
}

goldens! {
    nothing => "{}"
    standalone => "standalone: true"
    // Shared directories
    filesystem_config_map => "spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, configMap: {name: m, optional: true}}]}"
    filesystem_secret_standalone => "{standalone: true, spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, secret: {secretName: s}}]}}"
    filesystem_downward_api => "spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, downwardAPI: {fields: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]}"
    filesystem_service_account => "spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, serviceAccount: {serviceAccountName: robot}}]}"
    filesystem_service_account_standalone => "{standalone: true, spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}, {name: b, virtiofs: {}}]}}, volumes: [{name: a, serviceAccount: {serviceAccountName: robot}}, {name: b, containerPath: {path: /var/run/secrets/kubernetes.io/serviceaccount}}]}}"
    filesystem_claim => "{config: {developerConfiguration: {featureGates: [EnableVirtioFsStorageVolumes, ContainerPathVolumes]}}, spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: c}}]}}"
    filesystem_read_only_claim => "{config: {developerConfiguration: {featureGates: [EnableVirtioFsStorageVolumes, ContainerPathVolumes]}}, spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: c, readOnly: true}}]}}"
    filesystem_container_path => "{config: {developerConfiguration: {featureGates: [EnableVirtioFsStorageVolumes, ContainerPathVolumes]}}, spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, containerPath: {path: /var/run/secrets/cloud}}]}}"
    filesystem_writable_container_path => "{config: {developerConfiguration: {featureGates: [EnableVirtioFsStorageVolumes, ContainerPathVolumes]}}, spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, containerPath: {path: /scratch, readOnly: false}}]}}"
    filesystem_and_own_cpus => "spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true}, devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, secret: {secretName: s}}]}"
    filesystem_resources => "{config: {supportContainerResources: [{type: virtiofs, resources: {limits: {cpu: '2', memory: 4M}, requests: {cpu: 500m}}}]}, spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, secret: {secretName: s}}]}}"
    // Names, labels, annotations
    labels => "metadata: {labels: {app: web, tier: back}}"
    node_name_label_is_not_copied => "metadata: {labels: {kubevirt.io/nodeName: elsewhere}}"
    annotations => "metadata: {annotations: {example.org/note: kept}}"
    private_annotations_are_not_copied => "metadata: {annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}', kubevirt.io/storage-observed-api-version: v1, kubevirt.io/network-info: '{}', kubevirt.io/network-binding-attachments: '{}'}}"
    hostname => "spec: {hostname: web}"
    subdomain => "spec: {hostname: web, subdomain: backend}"
    log_verbosity => "metadata: {labels: {logVerbosity: '5'}}"
    log_verbosity_of_the_cluster => "config: {developerConfiguration: {logVerbosity: {virtLauncher: 7}}}"
    debug_logs => "metadata: {labels: {debugLogs: 'true'}}"
    // Scheduling
    node_selector => "spec: {nodeSelector: {disk: fast}}"
    cluster_node_selectors => "config: {developerConfiguration: {nodeSelectors: {pool: virt}}}"
    node_affinity => "spec: {affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}]}]}}}}"
    pod_anti_affinity => "spec: {affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{labelSelector: {matchLabels: {app: web}}, topologyKey: kubernetes.io/hostname}]}}}"
    tolerations => "spec: {tolerations: [{key: dedicated, operator: Exists, effect: NoSchedule}]}"
    topology_spread => "spec: {topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]}"
    priority_class => "spec: {priorityClassName: high}"
    scheduler => "spec: {schedulerName: other}"
    architecture_arm64 => "spec: {architecture: arm64}"
    architecture_s390x => "spec: {architecture: s390x}"
    machine_type => "spec: {domain: {machine: {type: pc-q35-8.2}}}"
    cpu_model => "spec: {domain: {cpu: {model: Skylake-Client}}}"
    cpu_host_passthrough => "spec: {domain: {cpu: {model: host-passthrough}}}"
    cpu_features => "spec: {domain: {cpu: {features: [{name: vmx, policy: require}, {name: pcid, policy: optional}, {name: svm, policy: disable}, {name: apic}]}}}"
    cpu_features_forbidden => "spec: {domain: {cpu: {model: EPYC, features: [{name: vmx, policy: forbid}, {name: svm, policy: disable}]}}}"
    cpu_features_forbidden_beside_affinity => "spec: {affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}]}, {matchFields: [{key: metadata.name, operator: In, values: [n]}]}]}}}, domain: {cpu: {features: [{name: vmx, policy: forbid}]}}}"
    cpu_features_forbidden_on_one_machine => "{standalone: true, spec: {domain: {cpu: {features: [{name: vmx, policy: forbid}]}}}}"
    hyperv_unchecked => "spec: {domain: {features: {hyperv: {vpindex: {}, synic: {}}}}}"
    hyperv_checked => "{config: {developerConfiguration: {featureGates: [HypervStrictCheck]}}, spec: {domain: {clock: {timer: {hyperv: {}}}, features: {hyperv: {relaxed: {}, vapic: {}, vpindex: {}, runtime: {enabled: true}, synic: {}, synictimer: {direct: {}}, frequencies: {enabled: false}, vendorid: {vendorid: x}, evmcs: {}}}}}}"
    istio => "metadata: {annotations: {sidecar.istio.io/inject: 'true'}}"
    istio_not => "metadata: {annotations: {sidecar.istio.io/inject: 'false'}}"
    // DNS
    dns_policy => "spec: {dnsPolicy: Default}"
    dns_config => "spec: {dnsPolicy: None, dnsConfig: {nameservers: [10.0.0.1], searches: [example.org], options: [{name: ndots, value: '2'}]}}"
    // Lifetime
    grace_period => "spec: {terminationGracePeriodSeconds: 180}"
    grace_period_zero => "spec: {terminationGracePeriodSeconds: 0}"
    // Probes
    readiness_http => "spec: {readinessProbe: {httpGet: {path: /ready, port: 80}, initialDelaySeconds: 5, periodSeconds: 3}}"
    readiness_tcp => "spec: {readinessProbe: {tcpSocket: {port: 22}, successThreshold: 2, timeoutSeconds: 2}}"
    readiness_exec => "spec: {readinessProbe: {exec: {command: [cat, /run/ready]}, timeoutSeconds: 4}}"
    readiness_agent => "spec: {readinessProbe: {guestAgentPing: {}, failureThreshold: 9}}"
    liveness_http => "spec: {livenessProbe: {httpGet: {path: /live, port: web, scheme: HTTPS}}}"
    liveness_exec => "spec: {livenessProbe: {exec: {command: [systemctl, is-active, app]}}}"
    // Plugins of network bindings
    plugin_managed_tap_standalone => "{standalone: true, config: {network: {binding: {p: {domainAttachmentType: managedTap}}}}, spec: {domain: {devices: {interfaces: [{name: default, binding: {name: p}}]}}}}"
    plugin_tap => "{config: {network: {binding: {p: {domainAttachmentType: tap, networkAttachmentDefinition: p-net}}}}, spec: {domain: {devices: {interfaces: [{name: default, binding: {name: p}}]}}}}"
    plugin_definitions_follow_networks => "{config: {network: {binding: {p: {sidecarImage: 'r/p:1', networkAttachmentDefinition: kube-system/p-net}, q: {domainAttachmentType: tap}}}}, spec: {networks: [{name: default, pod: {}}, {name: red, multus: {networkName: red-net}}, {name: blue, multus: {networkName: blue-net}}], domain: {devices: {interfaces: [{name: default, binding: {name: p}}, {name: red, binding: {name: p}, macAddress: '02:00:00:00:00:05'}, {name: blue, binding: {name: q}}]}}}}"
    plugin_sidecar_after_others => "{metadata: {annotations: {hooks.kubevirt.io/hookSidecars: '[{\"image\": \"r/hook\"}]'}}, config: {developerConfiguration: {featureGates: [Sidecar]}, network: {binding: {p: {sidecarImage: 'r/p:1', downwardAPI: device-info}}}}, spec: {domain: {devices: {interfaces: [{name: default, binding: {name: p}}]}}}}"
    passt => "spec: {networks: [{name: default, pod: {}}], domain: {devices: {interfaces: [{name: default, passtBinding: {}, ports: [{port: 80}]}]}}}"
    plugin_overhead => "{config: {network: {binding: {p: {domainAttachmentType: managedTap, computeResourceOverhead: {requests: {memory: 250Mi, cpu: 20m}, limits: {memory: 300Mi, cpu: 50m}}}}}}, spec: {networks: [{name: default, pod: {}}, {name: red, multus: {networkName: red-net}}], domain: {resources: {limits: {cpu: '2', memory: 1Gi}}, devices: {interfaces: [{name: default, binding: {name: p}}, {name: red, binding: {name: p}}]}}}}"
    plugin_overhead_makes_no_limit => "{config: {network: {binding: {p: {domainAttachmentType: managedTap, computeResourceOverhead: {requests: {memory: 250Mi}, limits: {memory: 300Mi, cpu: 50m}}}}}}, spec: {domain: {devices: {interfaces: [{name: default, binding: {name: p}}]}}}}"
    // Ports
    port_tcp => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, ports: [{name: http, port: 80}]}]}}}"
    port_udp => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, ports: [{port: 53, protocol: UDP}]}]}}}"
    // Resources
    memory_guest => "spec: {domain: {memory: {guest: 1Gi}}}"
    memory_request => "spec: {domain: {memory: null, resources: {requests: {memory: 64M}}}}"
    memory_limit => "spec: {domain: {resources: {limits: {memory: 512Mi}}}}"
    memory_overcommit => "config: {developerConfiguration: {memoryOvercommit: 150}}"
    overhead_not_requested => "spec: {domain: {resources: {overcommitGuestOverhead: true}}}"
    memory_overcommit_not_of_own_cpus => "{config: {developerConfiguration: {memoryOvercommit: 150}}, spec: {domain: {cpu: {dedicatedCpuPlacement: true}, resources: {overcommitGuestOverhead: true}}}}"
    memory_overcommit_not_of_huge_pages => "{config: {developerConfiguration: {memoryOvercommit: 150}}, spec: {domain: {memory: {hugepages: {pageSize: 2Mi}}, resources: {overcommitGuestOverhead: true}}}}"
    guaranteed => "spec: {domain: {resources: {requests: {cpu: '1', memory: 128Mi}, limits: {cpu: '1', memory: 128Mi}}}}"
    guaranteed_with_helpers => "{helper: true, metadata: {annotations: {hooks.kubevirt.io/hookSidecars: '[{\"image\": \"r/hook\"}]'}}, config: {developerConfiguration: {featureGates: [Sidecar]}}, spec: {domain: {resources: {limits: {cpu: '1', memory: 128Mi}}, devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, secret: {secretName: s}}, {name: root, containerDisk: {image: 'r/guest:1'}}]}}"
    even_cpus => "{metadata: {annotations: {alpha.kubevirt.io/EmulatorThreadCompleteToEvenParity: ''}}, spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true, isolateEmulatorThread: true}}}}"
    even_cpus_of_odd_ones => "{metadata: {annotations: {alpha.kubevirt.io/EmulatorThreadCompleteToEvenParity: ''}}, spec: {domain: {cpu: {cores: 3, dedicatedCpuPlacement: true, isolateEmulatorThread: true}}}}"
    overhead_ratio => "config: {additionalGuestMemoryOverheadRatio: '2.0'}"
    overhead_reserved => "spec: {domain: {memory: {reservedOverhead: {addedOverhead: 100Mi}}}}"
    overhead_without_graphics => "spec: {domain: {devices: {autoattachGraphicsDevice: false}}}"
    vcpus => "spec: {domain: {cpu: {sockets: 2, cores: 2, threads: 2}}}"
    cpu_allocation_ratio => "{config: {developerConfiguration: {cpuAllocationRatio: 1}}, spec: {domain: {cpu: {sockets: 4}}}}"
    cpu_request => "spec: {domain: {resources: {requests: {cpu: 1500m}}}}"
    cpu_limit => "spec: {domain: {resources: {limits: {cpu: '2'}}}}"
    ephemeral_storage => "spec: {domain: {resources: {requests: {ephemeral-storage: 1Gi}, limits: {ephemeral-storage: 2Gi}}}}"
    emulation_allowed => "config: {developerConfiguration: {useEmulation: true}}"
    without_network => "spec: {domain: {devices: {autoattachPodInterface: false, interfaces: null}}, networks: null}"
    interface_e1000 => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, model: e1000}]}}}"
    // Resource claims
    claim_of_a_gpu => "spec: {resourceClaims: [{name: c, resourceClaimName: big}], domain: {devices: {gpus: [{name: g, claimName: c, requestName: r}]}}}"
    claims_of_devices => "spec: {resourceClaims: [{name: c, resourceClaimTemplateName: two}, {name: d, resourceClaimName: one}, {name: e, resourceClaimName: unused}], domain: {devices: {hostDevices: [{name: h, claimName: c, requestName: r}, {name: i, claimName: c, requestName: s}, {name: j, claimName: d, requestName: r}]}}}"
    claims_of_networks => "{config: {developerConfiguration: {featureGates: [NetworkDevicesWithDRA]}}, spec: {resourceClaims: [{name: c, resourceClaimTemplateName: two}], networks: [{name: default, pod: {}}, {name: n, resourceClaim: {claimName: c, requestName: r}}], domain: {devices: {hostDevices: [{name: h, claimName: c, requestName: s}], interfaces: [{name: default, masquerade: {}}, {name: n, sriov: {}}]}}}}"
    claim_beside_a_resource => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}]}}, spec: {resourceClaims: [{name: c, resourceClaimName: one}], domain: {devices: {hostDevices: [{name: h, claimName: c, requestName: r}, {name: i, deviceName: ex.com/pci}]}}}}"
    // Helpers
    serial_console_off => "spec: {domain: {devices: {autoattachSerialConsole: false}}}"
    serial_log_off => "spec: {domain: {devices: {logSerialConsole: false}}}"
    serial_log_off_in_the_cluster => "config: {virtualMachineOptions: {disableSerialConsoleLog: {}}}"
    image_pull_policy => "config: {imagePullPolicy: Always}"
    seccomp_profile => "config: {seccompConfiguration: {virtualMachineInstanceProfile: {customProfile: {localhostProfile: profiles/vm.json}}}}"
    runtime_class => "config: {defaultRuntimeClass: kata}"
    helper_resources => "{config: {supportContainerResources: [{type: guest-console-log, resources: {limits: {memory: 90M}}}]}, spec: {}}"
    // Volumes
    container_disk => "spec: {volumes: [{name: root, containerDisk: {image: 'r/guest:1'}}]}"
    container_disk_helper => "{helper: true, spec: {volumes: [{name: root, containerDisk: {image: 'r/guest:1'}}]}}"
    container_disk_pull_secret => "spec: {volumes: [{name: root, containerDisk: {image: 'r/guest:1', imagePullPolicy: Always, imagePullSecret: key}}]}"
    empty_disk => "spec: {volumes: [{name: scratch, emptyDisk: {capacity: 2Gi}}]}"
    host_disk => "{config: {developerConfiguration: {featureGates: [HostDisk]}}, spec: {volumes: [{name: data, hostDisk: {path: /srv/data.img, type: Disk}}]}}"
    host_disk_created => "{config: {developerConfiguration: {featureGates: [HostDisk]}}, spec: {volumes: [{name: data, hostDisk: {path: /data.img, type: DiskOrCreate, capacity: 1Gi}}]}}"
    claim => "spec: {volumes: [{name: data, persistentVolumeClaim: {claimName: c}}]}"
    claim_of_a_file_system => "{claims: {c: Filesystem}, spec: {volumes: [{name: data, persistentVolumeClaim: {claimName: c}}]}}"
    claim_of_a_block_device => "{claims: {c: Block}, spec: {volumes: [{name: data, persistentVolumeClaim: {claimName: c}}]}}"
    claim_read_only => "spec: {domain: {devices: {disks: [{name: data, disk: {bus: virtio}}]}}, volumes: [{name: data, persistentVolumeClaim: {claimName: c, readOnly: true}}]}"
    lun_reservation => "{config: {persistentReservationConfiguration: {enabled: true}}, claims: {c: Block}, spec: {domain: {devices: {disks: [{name: data, lun: {bus: scsi, reservation: true}}]}}, volumes: [{name: data, persistentVolumeClaim: {claimName: c}}]}}"
    lun => "{claims: {c: Block}, spec: {domain: {devices: {disks: [{name: data, lun: {bus: scsi}}]}}, volumes: [{name: data, persistentVolumeClaim: {claimName: c}}]}}"
    vsock => "{config: {developerConfiguration: {featureGates: [VSOCK]}}, spec: {domain: {devices: {autoattachVSOCK: true}}}}"
    claims_of_both_kinds => "{claims: {c: Block, d: Filesystem}, spec: {volumes: [{name: a, persistentVolumeClaim: {claimName: c}}, {name: b, persistentVolumeClaim: {claimName: d}}]}}"
    claim_ephemeral => "spec: {volumes: [{name: data, ephemeral: {persistentVolumeClaim: {claimName: c}}}]}"
    claim_ephemeral_read_only => "spec: {volumes: [{name: data, ephemeral: {persistentVolumeClaim: {claimName: c, readOnly: true}}}]}"
    claim_ephemeral_of_a_block_device => "{claims: {c: Block}, spec: {volumes: [{name: data, ephemeral: {persistentVolumeClaim: {claimName: c}}}]}}"
    tpm_persistent => "{claims: {state: Filesystem}, spec: {domain: {devices: {tpm: {persistent: true}}}}}"
    efi_persistent => "{claims: {state: Filesystem}, spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false, persistent: true}}}}}}"
    cloud_init_inline => "spec: {volumes: [{name: seed, cloudInitNoCloud: {userData: '#cloud-config'}}]}"
    cloud_init_secrets => "spec: {volumes: [{name: seed, cloudInitNoCloud: {secretRef: {name: user}, networkDataSecretRef: {name: net}}}]}"
    config_drive_secret => "spec: {volumes: [{name: seed, cloudInitConfigDrive: {secretRef: {name: user}}}]}"
    config_map => "spec: {volumes: [{name: conf, configMap: {name: web}}]}"
    config_map_optional => "spec: {volumes: [{name: conf, configMap: {name: web, optional: true, volumeLabel: conf}}]}"
    secret => "spec: {volumes: [{name: keys, secret: {secretName: web}}]}"
    secret_optional => "spec: {volumes: [{name: keys, secret: {secretName: web, optional: true}}]}"
    service_account_volume => "spec: {volumes: [{name: account, serviceAccount: {serviceAccountName: robot}}]}"
    service_account_volume_on_one_machine => "{standalone: true, spec: {volumes: [{name: account, serviceAccount: {serviceAccountName: robot}}]}}"
    service_account_of_the_pod => "spec: {serviceAccountName: robot}"
    downward_api => "spec: {volumes: [{name: facts, downwardAPI: {fields: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, mode: 256, resourceFieldRef: {containerName: compute, resource: requests.cpu, divisor: 1m}}]}}]}"
    sysprep_config_map => "spec: {volumes: [{name: answers, sysprep: {configMap: {name: windows}}}]}"
    kernel_boot => "spec: {domain: {firmware: {kernelBoot: {container: {image: 'r/kernel:1', kernelPath: /vmlinuz, imagePullSecret: key}, kernelArgs: quiet}}}}"
    kernel_boot_helper => "{helper: true, spec: {domain: {firmware: {kernelBoot: {container: {image: 'r/kernel:1', kernelPath: /vmlinuz, imagePullPolicy: Always}}}}}}"
    ssh_keys_by_agent => "spec: {accessCredentials: [{sshPublicKey: {source: {secret: {secretName: keys}}, propagationMethod: {qemuGuestAgent: {users: [root]}}}}]}"
    credentials_of_one_secret => "spec: {accessCredentials: [{userPassword: {source: {secret: {secretName: a.b}}, propagationMethod: {qemuGuestAgent: {}}}}, {sshPublicKey: {source: {secret: {secretName: a.b}}, propagationMethod: {qemuGuestAgent: {users: [root]}}}}]}"
    sysprep_secret => "spec: {volumes: [{name: answers, sysprep: {secret: {name: windows}}}]}"
}

fn base() -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "ns", "uid": "8f37b1a5-7b0a-4ac9-a28e-0ab2ddd20ac1"},
        "spec": {
            "architecture": "amd64",
            "domain": {
                "cpu": {"sockets": 1},
                "memory": {"guest": "128Mi"},
                "devices": {"interfaces": [{"name": "default", "masquerade": {}}]},
            },
            "networks": [{"name": "default", "pod": {}}],
        }
    })
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (into, patch) => into.clone_from(patch),
    }
}

/// The pod as paths of fields with their values. Items of lists go by what makes them unique.
fn fields(case: &Case) -> BTreeMap<String, String> {
    let patch: Value = serde_yaml_ng::from_str(case.yaml).unwrap();
    let mut vmi = base();
    for part in ["metadata", "spec"] {
        merge(&mut vmi[part], patch.get(part).unwrap_or(&json!({})));
    }
    let vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
    let configuration = patch.get("config").cloned().unwrap_or_else(|| json!({}));
    let configuration: KubeVirtConfiguration = serde_json::from_value(configuration).unwrap();
    let asks = |what: &str| patch.get(what).is_some_and(|asked| asked == true);
    let (config, home) = if asks("standalone") {
        (ClusterConfig::standalone(), Home::Standalone)
    } else {
        (ClusterConfig::default(), Home::Cluster)
    };
    let way = if asks("helper") {
        ContainerDisks::Helper
    } else {
        ContainerDisks::ImageVolumes
    };
    let claims = claims(&patch["claims"]);
    let pod = render(&vmi, &config.with(&configuration), &options(home), way, &claims).unwrap();
    let mut all = BTreeMap::new();
    flatten(String::new(), &serde_json::to_value(pod).unwrap(), &mut all);
    all
}

/// `claims: {name: volumeMode}`; the one named `state` is for the guest's state.
fn claims(modes: &Value) -> Claims {
    let claim = |(name, mode): (&String, &Value)| {
        let claim = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"volumeMode": mode}});
        serde_json::from_value(claim).unwrap()
    };
    let all: Vec<PersistentVolumeClaim> = modes.as_object().into_iter().flatten().map(claim).collect();
    let (state, named) = all
        .into_iter()
        .partition(|claim| claim.metadata.name.as_deref() == Some("state"));
    let state: Vec<_> = state;
    Claims::new(named, state.into_iter().next())
}

fn flatten(path: String, value: &Value, all: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let separator = if path.is_empty() { "" } else { "." };
                flatten(format!("{path}{separator}{key}"), value, all);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                let name = ["mountPath", "name"].iter().find_map(|key| item[*key].as_str());
                let name = name.map_or_else(|| i.to_string(), str::to_owned);
                // A container may have several requests of one claim.
                let name = item["request"]
                    .as_str()
                    .map_or(name.clone(), |request| format!("{name}/{request}"));
                flatten(format!("{path}[{name}]"), item, all);
            }
        }
        leaf => {
            let twice = all.insert(path.clone(), leaf.to_string());
            assert_eq!(twice, None, "{path} is there twice");
        }
    }
}

/// What only the claims tell.
#[test]
fn volume_modes_that_do_not_fit_say_so() {
    for (mode, domain, expected) in [
        (
            "Filesystem",
            json!({"disks": [{"name": "a", "lun": {"bus": "scsi"}}]}),
            Some("only one with volumeMode Block can be a lun"),
        ),
        ("Block", json!({"disks": [{"name": "a", "lun": {"bus": "scsi"}}]}), None),
        (
            "Block",
            json!({"filesystems": [{"name": "a", "virtiofs": {}}]}),
            Some("only one with volumeMode Filesystem can be shared"),
        ),
        (
            "Filesystem",
            json!({"filesystems": [{"name": "a", "virtiofs": {}}]}),
            None,
        ),
    ] {
        let mut vmi = base();
        let volumes = json!([{"name": "a", "persistentVolumeClaim": {"claimName": "c"}}]);
        merge(
            &mut vmi["spec"],
            &json!({"domain": {"devices": domain}, "volumes": volumes}),
        );
        let vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
        let claims = claims(&json!({"c": mode}));
        let (config, options) = (cluster(), options(Home::Cluster));
        let pod = render(&vmi, &config, &options, ContainerDisks::ImageVolumes, &claims);
        let error = pod.err().map(|error| error.to_string());
        match (&error, expected) {
            (None, None) => {}
            (Some(error), Some(expected)) => {
                assert!(
                    error.contains("spec.volumes[0].persistentVolumeClaim.claimName"),
                    "{error}"
                );
                assert!(error.contains(expected), "{error}");
            }
            _ => panic!("{mode} {domain}: {error:?}, expected {expected:?}"),
        }
    }
}

fn check(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    // What one machine changes has a case of its own.
    let standalone = name != "standalone" && case.yaml.contains("standalone: true");
    let other = CASES.iter().find(|case| case.name == "standalone").unwrap();
    let (mut before, after) = (fields(if standalone { other } else { &CASES[0] }), fields(case));
    if name == "nothing" {
        before.clear();
    }
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut lines = Vec::new();
    for path in paths {
        match (before.get(path), after.get(path)) {
            (Some(old), Some(new)) if old != new => lines.push(format!("~ {path}: {old} -> {new}")),
            (Some(old), None) => lines.push(format!("- {path}: {old}")),
            (None, Some(new)) => lines.push(format!("+ {path}: {new}")),
            _ => {}
        }
    }
    insta::with_settings!({
        snapshot_path => "../../../../testdata/pods/golden",
        prepend_module_to_snapshot => false,
        description => case.yaml,
        omit_expression => true,
    }, {
        insta::assert_snapshot!(name, lines.join("\n"));
    });
}

/// A case that changes nothing shows nothing, except where that is its point.
#[test]
fn every_case_shows_something() {
    assert!(CASES.len() >= 60);
    let base = fields(&CASES[0]);
    let same: Vec<&str> = CASES[1..]
        .iter()
        .filter(|c| fields(c) == base)
        .map(|c| c.name)
        .collect();
    let meant = [
        "node_name_label_is_not_copied",
        "private_annotations_are_not_copied",
        "hyperv_unchecked",
    ];
    assert_eq!(same, meant);
}
