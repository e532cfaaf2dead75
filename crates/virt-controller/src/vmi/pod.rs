//! The launcher pod of a VMI. Pure: the same VMI, configuration and options always give the same pod, its name
//! included, so that creating it twice is impossible.

use std::collections::BTreeMap;

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::{Probe, VirtualMachineInstance, VirtualMachineInstanceSpec};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::cause::{self, Cause, CauseReason};
use ferrovirt_core::machine::{
    ClaimSource, Disk, DiskDevice, Filesystem, FilesystemSource, HostDeviceSource, Interface, Machine, NicNetwork,
    ResourceClaim, Source,
};
use ferrovirt_core::names;
use ferrovirt_core::overhead::{PodResources, pod_resources};
use ferrovirt_protocol::paths;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, ExecAction, ObjectFieldSelector, Pod,
    PodReadinessGate, PodResourceClaim, PodSecurityContext, PodSpec, Probe as PodProbe,
    ResourceClaim as RequestedClaim, ResourceRequirements, SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::claims::Claims;
use super::networks::qualified;
use crate::image_volumes::ContainerDisks;
use crate::{Home, Options};
use storage::{Storage, mount};

mod backup;
mod container_disk;
mod filesystem;
mod hook_sidecar;
mod scheduling;
mod storage;
mod support;
#[cfg(test)]
mod tests;

/// Seconds that a pod lives longer than its guest's grace period, so that the pod never stops QEMU first.
pub const GRACE_MARGIN: i64 = 15;
/// Grace period of a guest whose VMI names none.
const DEFAULT_GRACE: i64 = 30;
/// Seconds that probes wait beyond what the VMI asks for: QEMU has to start first.
const PROBE_DELAY: i32 = 10;
/// Seconds that the command which asks the guest agent has beyond what the guest has.
const PROBE_MARGIN: i32 = 1;
/// Names of pods end in letters and digits that spell no words.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// What Kubernetes leaves of a `generateName`.
const MAX_NAME_BASE: usize = 58;
/// Annotations of a VMI that its pod does not get.
const PRIVATE_ANNOTATIONS: [&str; 6] = [
    // What CNI plugins write, and the launcher believes.
    names::NETWORK_STATUS_ANNOTATION,
    // What we write, and sidecars and virt-handler believe.
    names::NETWORK_INFO_ANNOTATION,
    names::ATTACHMENTS_ANNOTATION,
    "kubectl.kubernetes.io",
    names::LATEST_API_VERSION_ANNOTATION,
    names::STORAGE_API_VERSION_ANNOTATION,
];

/// Why there is no pod for a VMI.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The spec cannot be read. Admission refuses such VMIs, but a cluster's configuration may have changed since.
    #[error("the VMI's spec is not valid: {}", cause::summary(.0))]
    Invalid(Vec<Cause>),
}

/// Seconds between asking a VMI's guest to stop and the end of its pod.
#[must_use]
pub fn grace_seconds(spec: &VirtualMachineInstanceSpec) -> i64 {
    spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE).max(0) + GRACE_MARGIN
}

/// Bytes that a VMI's pod requests beside its guest's memory.
#[must_use]
pub fn overhead(vmi: &VirtualMachineInstance, config: &ClusterConfig) -> Option<u64> {
    let machine = Machine::parse(vmi, config).ok()?;
    Some(pod_resources(&machine, &vmi.spec, config).overhead)
}

/// Name of the pod of a VMI: `virt-launcher-<vmi>-` and five characters made from its UID.
#[must_use]
pub fn name(vmi: &VirtualMachineInstance) -> String {
    let base = name_base(vmi);
    let base = base.get(..MAX_NAME_BASE).unwrap_or(&base);
    format!("{base}{}", suffix(vmi.metadata.uid.as_deref().unwrap_or_default()))
}

/// Five characters that follow from a UID.
pub(super) fn suffix(uid: &str) -> String {
    let digest = Sha1::digest(uid.as_bytes());
    let letter = |byte: &u8| char::from(SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()]);
    digest.iter().take(5).map(letter).collect()
}

fn name_base(vmi: &VirtualMachineInstance) -> String {
    format!("virt-launcher-{}-", vmi.metadata.name.as_deref().unwrap_or_default())
}

/// The pod of a VMI, with its containerDisks by one way or the other.
///
/// # Errors
/// The VMI asks for something that no pod can give.
pub fn render(
    vmi: &VirtualMachineInstance,
    config: &ClusterConfig,
    options: &Options,
    container_disks: ContainerDisks,
    claims: &Claims,
) -> Result<Pod, RenderError> {
    let machine = Machine::parse(vmi, config).map_err(RenderError::Invalid)?;
    if let Some(cause) = shared_device(&machine, claims).or_else(|| lun_of_files(&machine, claims)) {
        return Err(RenderError::Invalid(vec![cause]));
    }
    let resources = pod_resources(&machine, &vmi.spec, config);
    let storage = Storage::of(vmi, &machine, container_disks, options.home, claims);
    let account = machine.service_account.as_ref();
    let spec = &vmi.spec;
    let mut helpers = container_disk::containers(&storage.held, config, options);
    helpers.extend(filesystem::containers(&storage.shared, &machine, config, options));
    if machine.serial_console && machine.log_serial_console {
        helpers.push(console_log(vmi, config, options));
    }
    helpers.extend(hook_sidecar::containers(&machine, options).map_err(|cause| RenderError::Invalid(vec![cause]))?);
    for helper in &mut helpers {
        support::supply(helper, config);
        if machine.guaranteed {
            support::guarantee(helper);
        }
    }
    Ok(Pod {
        metadata: metadata(vmi, &machine, config, &resources),
        spec: Some(PodSpec {
            affinity: scheduling::affinity(vmi, &machine, options),
            // Istio's proxy shows by it who it is.
            automount_service_account_token: Some(account.is_some_and(|account| account.token) || has_proxy(vmi)),
            containers: vec![compute(vmi, &machine, config, options, &resources, &storage)],
            dns_config: spec.dns_config.clone(),
            dns_policy: spec.dns_policy.clone(),
            enable_service_links: Some(false),
            hostname: Some(machine.hostname.clone()),
            image_pull_secrets: storage.pull_secrets,
            init_containers: (!helpers.is_empty()).then_some(helpers),
            node_selector: Some(scheduling::node_selector(vmi, &machine, config, options)),
            priority_class_name: spec.priority_class_name.clone(),
            readiness_gates: (options.home == Home::Cluster).then(|| {
                vec![PodReadinessGate {
                    condition_type: names::UNPAUSED_GATE.to_owned(),
                }]
            }),
            resource_claims: (!machine.resource_claims.is_empty())
                .then(|| machine.resource_claims.iter().map(resource_claim).collect()),
            restart_policy: Some("Never".to_owned()),
            runtime_class_name: config.default_runtime_class.clone(),
            scheduler_name: spec.scheduler_name.clone(),
            security_context: Some(PodSecurityContext {
                fs_group: Some(names::RUNTIME_USER),
                run_as_group: Some(names::RUNTIME_USER),
                run_as_non_root: Some(true),
                run_as_user: Some(names::RUNTIME_USER),
                seccomp_profile: Some(seccomp(config)),
                ..PodSecurityContext::default()
            }),
            service_account_name: account.map(|account| account.name.clone()),
            subdomain: spec.subdomain.clone(),
            termination_grace_period_seconds: Some(grace_seconds(spec)),
            tolerations: (!spec.tolerations.is_empty()).then(|| spec.tolerations.clone()),
            topology_spread_constraints: (!spec.topology_spread_constraints.is_empty())
                .then(|| spec.topology_spread_constraints.clone()),
            volumes: Some(storage.volumes),
            ..PodSpec::default()
        }),
        status: None,
    })
}

/// A claim that is to be shared as a directory and is a block device.
fn shared_device(machine: &Machine, claims: &Claims) -> Option<Cause> {
    let device = |share: &Filesystem| match &share.source {
        FilesystemSource::Claim(claim) => claims.is_block(&claim.name),
        FilesystemSource::Files(_) | FilesystemSource::ContainerPath(_) => false,
    };
    let share = machine.filesystems.iter().find(|share| device(share))?;
    Some(Cause {
        reason: CauseReason::FieldValueInvalid,
        field: format!("spec.volumes[{}].persistentVolumeClaim.claimName", share.volume_index),
        message: format!(
            "the claim of volume \"{}\" is a block device; only one with volumeMode Filesystem can be shared",
            share.name
        ),
    })
}

/// A lun whose claim is a directory.
fn lun_of_files(machine: &Machine, claims: &Claims) -> Option<Cause> {
    let of_files = |disk: &&Disk| match &disk.source {
        Source::Claim(claim) => disk.device == DiskDevice::Lun && !claims.is_block(&claim.name),
        _ => false,
    };
    let disk = machine.disks.iter().find(of_files)?;
    Some(Cause {
        reason: CauseReason::FieldValueInvalid,
        field: format!("spec.volumes[{}].persistentVolumeClaim.claimName", disk.volume_index),
        message: format!(
            "the claim of volume \"{}\" is a directory; only one with volumeMode Block can be a lun",
            disk.name
        ),
    })
}

fn metadata(
    vmi: &VirtualMachineInstance,
    machine: &Machine,
    config: &ClusterConfig,
    resources: &PodResources,
) -> ObjectMeta {
    let meta = &vmi.metadata;
    let vmi_name = meta.name.clone().unwrap_or_default();
    let uid = meta.uid.clone().unwrap_or_default();
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.remove(names::NODE_NAME_LABEL);
    labels.extend([
        (names::APP_LABEL.to_owned(), names::VIRT_LAUNCHER.to_owned()),
        (names::CREATED_BY_LABEL.to_owned(), uid.clone()),
        (names::VM_NAME_LABEL.to_owned(), machine.hostname.clone()),
        (names::VMI_ID_LABEL.to_owned(), label_of(&vmi_name)),
    ]);
    // Istio looks at labels of pods only.
    labels.extend(proxy(vmi).map(|inject| (names::ISTIO_INJECT.to_owned(), inject.clone())));
    let public = |key: &String| !PRIVATE_ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix));
    let mut annotations: BTreeMap<String, String> = meta
        .annotations
        .clone()
        .unwrap_or_default()
        .into_iter()
        .filter(|(key, _)| public(key))
        .collect();
    annotations.extend([
        (names::DOMAIN_ANNOTATION.to_owned(), vmi_name.clone()),
        (
            "kubectl.kubernetes.io/default-container".to_owned(),
            "compute".to_owned(),
        ),
        (names::MIGRATION_TRANSPORT_UNIX_ANNOTATION.to_owned(), "true".to_owned()),
        (
            names::MEMORY_OVERHEAD_ANNOTATION.to_owned(),
            resources.overhead.to_string(),
        ),
        (
            "descheduler.alpha.kubernetes.io/request-evict-only".to_owned(),
            String::new(),
        ),
    ]);
    backup::hooks(
        meta.namespace.as_deref().unwrap_or_default(),
        &vmi_name,
        config.skip_backup_hooks,
        &mut annotations,
    );
    annotations.extend(attachments(machine));
    annotations.extend(networks(machine, meta.namespace.as_deref().unwrap_or_default()));
    ObjectMeta {
        annotations: Some(annotations),
        generate_name: Some(name_base(vmi)),
        labels: Some(labels),
        name: Some(name(vmi)),
        namespace: meta.namespace.clone(),
        owner_references: Some(vec![owner(vmi)]),
        ..ObjectMeta::default()
    }
}

/// What a VMI's annotation says of Istio's proxy.
fn proxy(vmi: &VirtualMachineInstance) -> Option<&String> {
    vmi.metadata.annotations.as_ref()?.get(names::ISTIO_INJECT)
}

fn has_proxy(vmi: &VirtualMachineInstance) -> bool {
    proxy(vmi).is_some_and(|inject| inject.eq_ignore_ascii_case("true"))
}

/// What makes a VMI the owner of an object.
pub(super) fn owner(vmi: &VirtualMachineInstance) -> OwnerReference {
    OwnerReference {
        api_version: VirtualMachineInstance::api_version(&()).into_owned(),
        block_owner_deletion: Some(true),
        controller: Some(true),
        kind: VirtualMachineInstance::kind(&()).into_owned(),
        name: vmi.metadata.name.clone().unwrap_or_default(),
        uid: vmi.metadata.uid.clone().unwrap_or_default(),
    }
}

/// What Multus is asked for: networks beside the one that all pods have, or instead of it.
fn networks(machine: &Machine, namespace: &str) -> Vec<(String, String)> {
    let (mut more, mut annotations) = (Vec::new(), Vec::new());
    for interface in &machine.interfaces {
        let NicNetwork::Multus { definition, default } = &interface.network else {
            continue;
        };
        let Some(device) = interface.pod_interface().filter(|_| !default) else {
            annotations.push((names::DEFAULT_NETWORK_ANNOTATION.to_owned(), definition.clone()));
            continue;
        };
        let (namespace, name) = qualified(definition, namespace);
        let mut entry = json!({"name": name, "namespace": namespace, "interface": device});
        if let Some(mac) = &interface.mac {
            entry["mac"] = mac.as_str().into();
        }
        more.push(entry);
    }
    let plugins = machine.interfaces.iter().filter_map(|nic| Some((nic, nic.plugin()?)));
    more.extend(plugins.filter_map(|(interface, plugin)| {
        let (namespace, name) = qualified(plugin.definition.as_deref()?, namespace);
        let args = json!({"logicNetworkName": interface.name});
        Some(json!({"name": name, "namespace": namespace, "cni-args": args}))
    }));
    if !more.is_empty() {
        annotations.push((names::NETWORKS_ANNOTATION.to_owned(), Value::Array(more).to_string()));
    }
    annotations
}

/// What virt-handler does for network binding plugins: what it is now, and stays for the pod's life.
fn attachments(machine: &Machine) -> Option<(String, String)> {
    let plugins = machine.interfaces.iter().filter_map(Interface::plugin);
    let named: BTreeMap<&str, &str> = plugins.map(|p| (p.name.as_str(), p.attachment.name())).collect();
    (!named.is_empty()).then(|| (names::ATTACHMENTS_ANNOTATION.to_owned(), json!(named).to_string()))
}

/// A name as the value of a label: what is too long is cut and made unique again.
pub(super) fn label_of(name: &str) -> String {
    if name.len() <= 63 {
        return name.to_owned();
    }
    let digest = Sha1::digest(name.as_bytes());
    let hash: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("{}-{hash}", name.get(..54).unwrap_or(name))
}

fn compute(
    vmi: &VirtualMachineInstance,
    machine: &Machine,
    config: &ClusterConfig,
    options: &Options,
    resources: &PodResources,
    storage: &Storage,
) -> Container {
    let meta = &vmi.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut command = vec![
        "/usr/bin/virt-launcher".to_owned(),
        "--name".to_owned(),
        text(&meta.name),
        "--namespace".to_owned(),
        text(&meta.namespace),
        "--uid".to_owned(),
        text(&meta.uid),
        "--grace-period-seconds".to_owned(),
        grace_seconds(&vmi.spec).to_string(),
    ];
    let sidecars = machine.hook_sidecars.len();
    if sidecars > 0 {
        command.extend(["--hook-sidecars".to_owned(), sidecars.to_string()]);
    }
    // Nobody would cut a log off that nobody reads.
    if config.disable_serial_console_log {
        command.extend(["--console-log".to_owned(), "false".to_owned()]);
    }
    let (mut requests, mut limits) = (wire(&resources.requests), wire(&resources.limits));
    let mut devices = wire(&resources.devices);
    if options.home == Home::Standalone {
        // One machine has no device plugins: what every guest may use is there unasked.
        devices.retain(|name, _| name == names::VHOST_VSOCK_RESOURCE);
    }
    requests.extend(devices.clone());
    limits.extend(devices);
    Container {
        command: Some(command),
        env: Some(environment(vmi, config)),
        image: Some(options.launcher_image.clone()),
        image_pull_policy: Some(config.image_pull_policy.clone()),
        liveness_probe: vmi.spec.liveness_probe.as_ref().map(|p| probe(p, meta)),
        name: "compute".to_owned(),
        ports: ports(machine),
        readiness_probe: vmi.spec.readiness_probe.as_ref().map(|p| probe(p, meta)),
        resources: Some(ResourceRequirements {
            claims: requested(machine),
            limits: (!limits.is_empty()).then_some(limits),
            requests: Some(requests),
        }),
        security_context: Some(security(&["NET_BIND_SERVICE"])),
        volume_devices: (!storage.devices.is_empty()).then(|| storage.devices.clone()),
        volume_mounts: Some(storage.mounts.clone()),
        ..Container::default()
    }
}

fn resource_claim(claim: &ResourceClaim) -> PodResourceClaim {
    let (object, template) = match &claim.source {
        ClaimSource::Claim(name) => (Some(name.clone()), None),
        ClaimSource::Template(name) => (None, Some(name.clone())),
    };
    PodResourceClaim {
        name: claim.name.clone(),
        resource_claim_name: object,
        resource_claim_template_name: template,
    }
}

/// The requests of resource claims that are the guest's devices.
fn requested(machine: &Machine) -> Option<Vec<RequestedClaim>> {
    let devices = machine.host_devices.iter().filter_map(|device| match &device.source {
        HostDeviceSource::Resource(_) => None,
        HostDeviceSource::Claim { claim, request } => Some((claim, request)),
    });
    let networks = machine.interfaces.iter().filter_map(|nic| match &nic.network {
        NicNetwork::Pod | NicNetwork::Multus { .. } => None,
        NicNetwork::Claim { claim, request } => Some((claim, request)),
    });
    let requests: Vec<RequestedClaim> = devices
        .chain(networks)
        .map(|(claim, request)| RequestedClaim {
            name: claim.clone(),
            request: Some(request.clone()),
        })
        .collect();
    (!requests.is_empty()).then_some(requests)
}

fn wire(quantities: &BTreeMap<String, Quantity>) -> BTreeMap<String, K8sQuantity> {
    quantities
        .iter()
        .map(|(name, quantity)| (name.clone(), quantity.clone().into()))
        .collect()
}

/// The administrator's own profile, or the container runtime's.
fn seccomp(config: &ClusterConfig) -> SeccompProfile {
    let own = config.seccomp_profile.clone();
    SeccompProfile {
        type_: if own.is_some() { "Localhost" } else { "RuntimeDefault" }.to_owned(),
        localhost_profile: own,
    }
}

/// Nothing but the volumes can be written.
fn security(capabilities: &[&str]) -> SecurityContext {
    let add: Vec<String> = capabilities.iter().map(|&c| c.to_owned()).collect();
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: (!add.is_empty()).then_some(add),
            drop: Some(vec!["ALL".to_owned()]),
        }),
        read_only_root_filesystem: Some(true),
        run_as_group: Some(names::RUNTIME_USER),
        run_as_non_root: Some(true),
        run_as_user: Some(names::RUNTIME_USER),
        ..SecurityContext::default()
    }
}

fn environment(vmi: &VirtualMachineInstance, config: &ClusterConfig) -> Vec<EnvVar> {
    let value = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    };
    let mut all = vec![
        value("XDG_CACHE_HOME", paths::PRIVATE_DIR),
        value("XDG_CONFIG_HOME", paths::PRIVATE_DIR),
        value("XDG_RUNTIME_DIR", "/var/run"),
        EnvVar {
            name: "POD_NAME".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: None,
                    field_path: "metadata.name".to_owned(),
                }),
                ..EnvVarSource::default()
            }),
        },
    ];
    let labels = vmi.metadata.labels.as_ref();
    let own = labels.and_then(|l| l.get("logVerbosity")).cloned();
    if let Some(verbosity) = own.or_else(|| config.launcher_verbosity.map(|level| level.to_string())) {
        all.push(value("VIRT_LAUNCHER_LOG_VERBOSITY", &verbosity));
    }
    if labels.and_then(|l| l.get("debugLogs")).is_some_and(|v| v == "true") {
        all.push(value("LIBVIRT_DEBUG_LOGS", "1"));
    }
    all
}

fn ports(machine: &Machine) -> Option<Vec<ContainerPort>> {
    let ports: Vec<ContainerPort> = machine
        .interfaces
        .iter()
        .flat_map(|interface| &interface.ports)
        .map(|port| ContainerPort {
            container_port: port.port.into(),
            name: (!port.name.is_empty()).then(|| port.name.clone()),
            protocol: Some(if port.udp { "UDP" } else { "TCP" }.to_owned()),
            ..ContainerPort::default()
        })
        .collect();
    (!ports.is_empty()).then_some(ports)
}

fn probe(probe: &Probe, meta: &ObjectMeta) -> PodProbe {
    let inside = in_guest(probe, meta);
    let timeout = match &inside {
        Some(_) => Some(timeout(probe).saturating_add(PROBE_MARGIN)),
        None => probe.timeout_seconds,
    };
    PodProbe {
        exec: inside.map(|command| ExecAction { command: Some(command) }),
        failure_threshold: probe.failure_threshold,
        http_get: probe.http_get.clone(),
        initial_delay_seconds: Some(probe.initial_delay_seconds.unwrap_or(0).saturating_add(PROBE_DELAY)),
        period_seconds: probe.period_seconds,
        success_threshold: probe.success_threshold,
        tcp_socket: probe.tcp_socket.clone(),
        timeout_seconds: timeout,
        ..PodProbe::default()
    }
}

/// Seconds that a check inside the guest may take.
fn timeout(probe: &Probe) -> i32 {
    probe.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(1)
}

/// The command that asks the guest agent, for probes that do.
fn in_guest(probe: &Probe, meta: &ObjectMeta) -> Option<Vec<String>> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut command = vec![
        "/usr/bin/virt-probe".to_owned(),
        "--domainName".to_owned(),
        format!("{}_{}", text(&meta.namespace), text(&meta.name)),
        "--timeoutSeconds".to_owned(),
        timeout(probe).to_string(),
    ];
    if probe.guest_agent_ping.is_some() {
        command.push("--guestAgentPing".to_owned());
        return Some(command);
    }
    let (program, arguments) = probe.exec.as_ref()?.command.as_deref()?.split_first()?;
    command.extend(["--command".to_owned(), program.clone(), "--".to_owned()]);
    command.extend_from_slice(arguments);
    Some(command)
}

/// The sidecar whose output is the guest's serial console, for `kubectl logs`.
fn console_log(vmi: &VirtualMachineInstance, config: &ClusterConfig, options: &Options) -> Container {
    let uid = vmi.metadata.uid.as_deref().unwrap_or_default();
    let log = format!("{}/{uid}/{}", paths::PRIVATE_DIR, paths::SERIAL_LOG);
    let quantities = |cpu, memory| Some(quantities(&[("cpu", cpu), ("memory", memory)]));
    Container {
        command: Some(vec!["/usr/bin/virt-tail".to_owned(), "--logfile".to_owned(), log]),
        image: Some(options.launcher_image.clone()),
        image_pull_policy: Some(config.image_pull_policy.clone()),
        name: "guest-console-log".to_owned(),
        resources: Some(ResourceRequirements {
            claims: None,
            // A runtime applies seccomp with the container's own CPU time: with as little as it needs later, every guest
            // started more than a second late.
            limits: quantities("250m", "60M"),
            // On one machine it costs what it uses: 20 guests of a tenth of a CPU fit on two CPUs.
            requests: match options.home {
                Home::Standalone => quantities("0", "8M"),
                Home::Cluster => quantities("5m", "10M"),
            },
        }),
        restart_policy: Some("Always".to_owned()),
        security_context: Some(security(&[])),
        // Writable: what was copied is cut off, or the log of a guest that talks without end filled the node's disk.
        volume_mounts: Some(vec![mount(paths::PRIVATE_VOLUME, paths::PRIVATE_DIR)]),
        ..Container::default()
    }
}

fn quantities(pairs: &[(&str, &str)]) -> BTreeMap<String, K8sQuantity> {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), K8sQuantity(value.to_owned())))
        .collect()
}
