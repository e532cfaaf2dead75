//! What a machine costs beside its guest's memory, and what its pod therefore requests.

use std::collections::BTreeMap;

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::VirtualMachineInstanceSpec;

use crate::config::{BindingPlugin, ClusterConfig};
use crate::defaults::binary;
use crate::machine::{Architecture, Binding, HostDevice, Interface, LaunchSecurity, Machine, Pinning};
use crate::names::VHOST_VSOCK_RESOURCE;

const MI: u64 = 1 << 20;
// What cannot be given up (anonymous memory) of each process as `cargo xtask bench cluster` and smaps see it, and room
// for what executables and libraries that all launchers of a node share cost the first of them. docs/performance.md has
// the measurement.
/// Our launcher: 2.5 MiB, and as much again while it prepares disks.
const LAUNCHER: u64 = 8 * MI;
/// Its libvirtd: 4.5 MiB.
const LIBVIRTD: u64 = 14 * MI;
/// QEMU without guest memory, threads and display: 24 MiB, some of it translated code where it emulates.
const QEMU: u64 = 36 * MI;
/// Stack and emulator state per vCPU.
const PER_VCPU: u64 = 4 * MI;
/// QEMU's I/O thread.
const IO_THREAD: u64 = 2 * MI;
/// QEMU's buffers and metadata caches per disk.
const PER_DISK: u64 = 2 * MI;
/// Video memory (16 MiB) and VNC's buffers.
const GRAPHICS: u64 = 18 * MI;
/// How much translated code QEMU keeps where it emulates. Not requested, as few guests fill it, but a limit has room for
/// it.
pub const TRANSLATIONS: u64 = 128 * MI;
/// Firmware flash and larger page tables of arm64 machines.
const ARM64: u64 = 128 * MI;
/// Bytes of guest memory per byte of page tables.
const PAGE_TABLES: u64 = 512;
/// One run of `virt-probe`. Measured: 4.2 MiB of its own; the rest of it is the executable, which all containers of the
/// image share. Nothing stays between runs.
const AGENT_PROBE: u64 = 5 * MI;
/// swtpm, which plays the TPM.
const TPM: u64 = 3 * MI;
/// Tables of the IOMMU, and registers that QEMU maps, of devices of the node. KubeVirt's figure: not measured, for want
/// of such devices.
const VFIO: u64 = 1024 * MI;
/// Buffers through which a guest with encrypted memory talks to its devices. KubeVirt's figure: not measured.
const ENCRYPTED: u64 = 256 * MI;
/// passt, and the kernel's memory for its sockets: one for each forwarded port. KubeVirt's figure.
const PASST: u64 = 250 * MI;
/// What QEMU and libvirtd need for moments, where nothing may be borrowed.
const GUARANTEED: u64 = 100 * MI;
/// Scratch files of every launcher.
const EPHEMERAL_STORAGE: i128 = 50_000_000;

/// Bytes that the compute container needs beside the guest's memory.
#[must_use]
pub fn memory_overhead(machine: &Machine, spec: &VirtualMachineInstanceSpec, config: &ClusterConfig) -> u64 {
    let mut bytes = LAUNCHER + LIBVIRTD + QEMU + IO_THREAD * u64::from(machine.io_threads.max(1));
    bytes = bytes.saturating_add(machine.memory.guest / PAGE_TABLES);
    bytes = bytes.saturating_add(PER_VCPU * u64::from(machine.cpu.vcpus()));
    bytes = bytes.saturating_add(PER_DISK.saturating_mul(machine.disks.len() as u64));
    if machine.graphics {
        bytes += GRAPHICS;
    }
    if machine.has_vfio() {
        bytes += VFIO;
    }
    if machine.launch_security.as_ref().is_some_and(LaunchSecurity::is_amd) {
        bytes += ENCRYPTED;
    }
    if machine.has_passt() {
        bytes += PASST;
    }
    if machine.tpm.is_some() {
        bytes += TPM;
    }
    if machine.guaranteed {
        bytes += GUARANTEED;
    }
    if machine.architecture == Architecture::Arm64 {
        bytes += ARM64;
    }
    let probes = [&spec.readiness_probe, &spec.liveness_probe].into_iter().flatten();
    // Both may run at the same time.
    for _ in probes.filter(|probe| probe.exec.is_some() || probe.guest_agent_ping.is_some()) {
        bytes = bytes.saturating_add(AGENT_PROBE);
    }
    let reserved = spec.domain.memory.as_ref().and_then(|m| m.reserved_overhead.as_ref());
    let added = reserved.and_then(|r| r.added_overhead.as_ref()?.bytes().ok());
    bytes = bytes.saturating_add(added.and_then(|b| u64::try_from(b).ok()).unwrap_or_default());
    let bytes = match config.overhead_ratio {
        None => bytes,
        Some(ratio) => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "a ratio of a few MiB; the cast saturates"
            )]
            let scaled = (bytes as f64 * ratio).ceil() as u64;
            scaled
        }
    };
    let plugins = plugins(machine, config).map(|plugin| amount(plugin.overhead.requests.get("memory")));
    plugins.fold(bytes, |sum, millis| sum.saturating_add(millis.div_ceil(1000)))
}

/// The plugins that bind a machine's NICs, each once.
fn plugins<'a>(machine: &Machine, config: &'a ClusterConfig) -> impl Iterator<Item = &'a BindingPlugin> {
    let names = machine.binding_plugins().into_iter();
    let registered: Vec<_> = names
        .filter_map(|name| config.binding_plugins.get(name)?.as_ref().ok())
        .collect();
    registered.into_iter()
}

/// Thousandths of what a quantity says.
fn amount(quantity: Option<&Quantity>) -> u64 {
    let millis = quantity.and_then(|quantity| quantity.millis().ok());
    millis.and_then(|millis| u64::try_from(millis).ok()).unwrap_or_default()
}

/// Adds what plugins need beside memory that is requested, which is overhead. Limits that there are grow by it; none are
/// made, as they would be the guest's.
fn add_plugins(
    requests: &mut BTreeMap<String, Quantity>,
    limits: &mut BTreeMap<String, Quantity>,
    machine: &Machine,
    config: &ClusterConfig,
) {
    for plugin in plugins(machine, config) {
        let asked = |side: &BTreeMap<String, Quantity>, name| amount(side.get(name));
        let (request, limit) = (&plugin.overhead.requests, &plugin.overhead.limits);
        let cpu = asked(request, "cpu");
        if cpu > 0 {
            let all = amount(requests.get("cpu")).saturating_add(cpu);
            requests.insert("cpu".to_owned(), Quantity(format!("{all}m")));
        }
        if limits.contains_key("cpu") {
            let more = cpu.max(asked(limit, "cpu"));
            let all = amount(limits.get("cpu")).saturating_add(more);
            if more > 0 {
                limits.insert("cpu".to_owned(), Quantity(format!("{all}m")));
            }
        }
        let more = asked(limit, "memory")
            .saturating_sub(asked(request, "memory"))
            .div_ceil(1000);
        if limits.contains_key("memory") && more > 0 {
            let all = (amount(limits.get("memory")) / 1000).saturating_add(more);
            limits.insert("memory".to_owned(), Quantity(all.to_string()));
        }
    }
}

/// Requests and limits of the compute container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodResources {
    /// Requests, without devices.
    pub requests: BTreeMap<String, Quantity>,
    /// Limits, without devices.
    pub limits: BTreeMap<String, Quantity>,
    /// Device plugin resources, to be put into both where device plugins exist.
    pub devices: BTreeMap<String, Quantity>,
    /// [`memory_overhead`].
    pub overhead: u64,
}

/// The resources of a machine's compute container. `machine` is `spec` parsed.
#[must_use]
pub fn pod_resources(machine: &Machine, spec: &VirtualMachineInstanceSpec, config: &ClusterConfig) -> PodResources {
    let overhead = memory_overhead(machine, spec, config);
    let wanted = spec.domain.resources.clone().unwrap_or_default();
    let uncounted = wanted.overcommit_guest_overhead == Some(true);
    let (mut requests, mut limits) = (wanted.requests, wanted.limits);
    add_memory(&mut requests, &mut limits, machine, (overhead, uncounted), config);

    let cpus = vcpus(machine, spec);
    requests.entry("cpu".to_owned()).or_insert_with(|| {
        let millis = cpus * 1000 / config.cpu_allocation_ratio.max(1);
        Quantity(format!("{}m", millis.max(1)))
    });

    add_plugins(&mut requests, &mut limits, machine, config);
    if let Some(pinning) = machine.cpu.pinning {
        let cpus = own_cpus(pinning, cpus);
        for side in [&mut requests, &mut limits] {
            side.insert("cpu".to_owned(), Quantity(cpus.to_string()));
        }
    }
    if machine.guaranteed {
        for name in ["cpu", "memory"] {
            let most = match (requests.get(name), limits.get(name)) {
                (Some(request), Some(limit)) if amount(Some(limit)) >= amount(Some(request)) => limit.clone(),
                (Some(request), _) => request.clone(),
                (None, _) => continue,
            };
            requests.insert(name.to_owned(), most.clone());
            limits.insert(name.to_owned(), most);
        }
    }

    let more = |quantity: Option<&Quantity>| {
        let bytes = quantity.and_then(|q| q.millis().ok()).unwrap_or_default() / 1000;
        Quantity((bytes + EPHEMERAL_STORAGE).to_string())
    };
    let storage = "ephemeral-storage";
    requests.insert(storage.to_owned(), more(requests.get(storage)));
    if limits.contains_key(storage) {
        limits.insert(storage.to_owned(), more(limits.get(storage)));
    }

    PodResources {
        requests,
        limits,
        devices: devices(machine, config),
        overhead,
    }
}

/// CPUs that a guest can use at once: its own, and those of threads that serve its disks beside them.
#[must_use]
pub fn vcpus(machine: &Machine, spec: &VirtualMachineInstanceSpec) -> u64 {
    let threads = spec.domain.io_threads.as_ref();
    let pool = threads.and_then(|threads| threads.supplemental_pool_thread_count);
    let pool = pool.and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
    u64::from(machine.cpu.vcpus()) + pool
}

/// Adds memory: the guest's and, unless the overhead is `uncounted`, what there is beside it.
fn add_memory(
    requests: &mut BTreeMap<String, Quantity>,
    limits: &mut BTreeMap<String, Quantity>,
    machine: &Machine,
    (overhead, uncounted): (u64, bool),
    config: &ClusterConfig,
) {
    // What is a guest's own is neither promised to others nor borrowed from them: with its own CPUs it may have no more
    // than it asks for, and huge pages are there or not.
    let own = machine.cpu.pinning.is_some() || machine.memory.huge_page.is_some();
    let percent = if own { 100 } else { config.memory_overcommit.max(1) };
    let guest = machine.memory.guest.saturating_mul(100) / percent;
    let asked = requests.get("memory").or(limits.get("memory"));
    let asked = asked.and_then(|m| m.bytes().ok()).and_then(|b| u64::try_from(b).ok());
    let counted = if uncounted && !own { 0 } else { overhead };
    let mut request = asked.unwrap_or(guest);
    if let Some(page) = machine.memory.huge_page {
        // The guest's memory is not ordinary memory.
        let held = machine.memory.guest;
        request = request.saturating_sub(held);
        let name = huge_page_resource(page);
        for side in [&mut *requests, &mut *limits] {
            side.insert(name.clone(), Quantity(held.to_string()));
        }
        if let Some(limit) = limits.get("memory").and_then(|m| m.bytes().ok()) {
            let rest = limit.saturating_sub(i64::try_from(held).unwrap_or(i64::MAX)).max(0);
            limits.insert("memory".to_owned(), Quantity(rest.to_string()));
        }
    }
    let request = request.saturating_add(counted);
    requests.insert("memory".to_owned(), Quantity(request.to_string()));
    if let Some(limit) = limits.get("memory").and_then(|m| m.bytes().ok()) {
        let translations = if config.use_emulation { TRANSLATIONS } else { 0 };
        let limit = u64::try_from(limit).unwrap_or_default();
        let limit = limit.saturating_add(overhead).saturating_add(translations);
        limits.insert("memory".to_owned(), Quantity(limit.to_string()));
    }
}

/// The kubelet gives whole CPUs: `cpus` of a guest, and those of its isolated emulator.
fn own_cpus(pinning: Pinning, cpus: u64) -> u64 {
    let Pinning {
        isolate_emulator,
        even,
        host_numa: _,
    } = pinning;
    match isolate_emulator {
        false => cpus,
        true if even && cpus.is_multiple_of(2) => cpus + 2,
        true => cpus + 1,
    }
}

/// The resource of nodes that huge pages of `page` bytes are, such as `hugepages-2Mi`.
#[must_use]
pub fn huge_page_resource(page: u64) -> String {
    format!("hugepages-{}", binary(i64::try_from(page).unwrap_or(i64::MAX)))
}

/// Device plugins' resources of a machine.
fn devices(machine: &Machine, config: &ClusterConfig) -> BTreeMap<String, Quantity> {
    // What a plugin's sidecar makes of a NIC is not known.
    let taps = |interface: &Interface| !matches!(interface.binding, Binding::Sriov | Binding::Passt);
    let mut devices = BTreeMap::new();
    let mut device = |name: &str| {
        devices.insert(format!("devices.kubevirt.io/{name}"), Quantity("1".to_owned()));
    };
    if !config.use_emulation {
        device("kvm");
        if machine.interfaces.iter().any(|i| taps(i) && i.model == "virtio") {
            device("vhost-net");
        }
    }
    if machine.interfaces.iter().any(taps) {
        device("tun");
    }
    if machine.launch_security.as_ref().is_some_and(LaunchSecurity::is_amd) {
        device("sev");
    }
    if machine.disks.iter().any(|disk| disk.reservation) {
        device("pr-helper");
    }
    if machine.vsock {
        devices.insert(VHOST_VSOCK_RESOURCE.to_owned(), Quantity("1".to_owned()));
    }
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    // What the pod gets by claims it asks for by their names.
    for resource in machine.host_devices.iter().filter_map(HostDevice::resource) {
        *counts.entry(resource).or_default() += 1;
    }
    let counts = counts
        .into_iter()
        .map(|(name, count)| (name.to_owned(), Quantity(count.to_string())));
    devices.extend(counts);
    devices
}

#[cfg(test)]
mod tests {
    use ferrovirt_api::v1::VirtualMachineInstance;
    use serde_json::{Value, json};

    use super::*;

    fn resources(domain: &str, config: &ClusterConfig) -> PodResources {
        let domain: Value = serde_yaml_ng::from_str(domain).unwrap();
        let vmi = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"}, "spec": {"domain": domain}});
        let mut vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
        crate::default_spec(&mut vmi.spec, config);
        let machine = Machine::parse(&vmi, config).unwrap();
        pod_resources(&machine, &vmi.spec, config)
    }

    fn bytes(quantity: Option<&Quantity>) -> u64 {
        u64::try_from(quantity.unwrap().bytes().unwrap()).unwrap()
    }

    /// Shows `spec.domain.memory.reservedOverhead.addedOverhead`.
    #[test]
    fn memory() {
        let config = ClusterConfig {
            architecture: Architecture::Amd64,
            ..ClusterConfig::default()
        };
        let gi = 1 << 30;
        let small = resources("{devices: {}, memory: {guest: 1Gi}}", &config);
        assert_eq!(bytes(small.requests.get("memory")), gi + small.overhead);
        assert!(!small.limits.contains_key("memory"));

        let more = resources("{devices: {}, memory: {guest: 1Gi}, cpu: {cores: 3}}", &config);
        assert_eq!(more.overhead - small.overhead, 2 * PER_VCPU);
        let blind = resources(
            "{devices: {autoattachGraphicsDevice: false}, memory: {guest: 1Gi}}",
            &config,
        );
        assert_eq!(small.overhead - blind.overhead, GRAPHICS);
        let added = "{devices: {}, memory: {guest: 1Gi, reservedOverhead: {addedOverhead: 5Mi}}}";
        assert_eq!(resources(added, &config).overhead - small.overhead, 5 * MI);

        let limited =
            "{devices: {}, memory: {guest: 1Gi}, resources: {requests: {memory: 512Mi}, limits: {memory: 2Gi}}}";
        let limited = resources(limited, &config);
        assert_eq!(bytes(limited.requests.get("memory")), gi / 2 + limited.overhead);
        assert_eq!(bytes(limited.limits.get("memory")), 2 * gi + limited.overhead);
        let uncounted = "{devices: {}, memory: {guest: 1Gi}, resources: {overcommitGuestOverhead: true}}";
        assert_eq!(bytes(resources(uncounted, &config).requests.get("memory")), gi);

        let emulated = ClusterConfig {
            use_emulation: true,
            ..config.clone()
        };
        let limits = "{devices: {}, memory: {guest: 1Gi}, resources: {limits: {memory: 2Gi}}}";
        let limits = resources(limits, &emulated);
        assert_eq!(
            bytes(limits.limits.get("memory")),
            2 * gi + limits.overhead + TRANSLATIONS
        );

        let generous = ClusterConfig {
            memory_overcommit: 200,
            overhead_ratio: Some(2.0),
            ..config
        };
        let doubled = resources("{devices: {}, memory: {guest: 1Gi}}", &generous);
        assert_eq!(doubled.overhead, 2 * small.overhead);
        assert_eq!(bytes(doubled.requests.get("memory")), gi / 2 + doubled.overhead);
    }

    #[test]
    fn what_is_a_guests_own_is_not_overcommitted() {
        let generous = ClusterConfig {
            architecture: Architecture::Amd64,
            memory_overcommit: 200,
            ..ClusterConfig::default()
        };
        let gi = 1 << 30;
        for (domain, held) in [
            ("cpu: {dedicatedCpuPlacement: true}, memory: {guest: 1Gi}", gi),
            (
                "cpu: {dedicatedCpuPlacement: true}, memory: {guest: 1Gi}, resources: {overcommitGuestOverhead: true}",
                gi,
            ),
            ("memory: {guest: 1Gi, hugepages: {pageSize: 2Mi}}", 0),
            (
                "memory: {guest: 1Gi, hugepages: {pageSize: 2Mi}}, resources: {overcommitGuestOverhead: true}",
                0,
            ),
            ("memory: {guest: 1Gi}", gi / 2),
        ] {
            let own = resources(&format!("{{devices: {{}}, {domain}}}"), &generous);
            assert_eq!(bytes(own.requests.get("memory")), held + own.overhead, "{domain}");
            if let Some(limit) = own.limits.get("memory") {
                assert_eq!(Some(limit), own.requests.get("memory"), "{domain}");
            }
        }
    }

    #[test]
    fn what_is_guaranteed_asks_for_all_that_it_may_have() {
        let config = ClusterConfig {
            architecture: Architecture::Amd64,
            use_emulation: true,
            ..ClusterConfig::default()
        };
        let gi = 1 << 30;
        let some = "{devices: {}, memory: {guest: 1Gi}, resources: {requests: {cpu: '2', memory: 1Gi}, limits: {cpu: '2', memory: 2Gi}}}";
        let some = resources(some, &config);
        for asked in [
            "requests: {cpu: '2', memory: 1Gi}, limits: {cpu: '2', memory: 1Gi}",
            "limits: {cpu: '2', memory: 1Gi}",
        ] {
            let all = resources(
                &format!("{{devices: {{}}, memory: {{guest: 1Gi}}, resources: {{{asked}}}}}"),
                &config,
            );
            assert_eq!(all.overhead - some.overhead, GUARANTEED);
            assert_eq!(bytes(all.requests.get("memory")), gi + all.overhead + TRANSLATIONS);
            for name in ["cpu", "memory"] {
                assert_eq!(all.requests[name], all.limits[name], "{asked}");
            }
        }
    }

    #[test]
    fn an_isolated_emulator_has_cpus_of_its_own() {
        for (isolate_emulator, even, cpus, all) in [
            (false, true, 2, 2),
            (true, false, 2, 3),
            (true, true, 2, 4),
            (true, true, 3, 4),
        ] {
            let pinning = Pinning {
                isolate_emulator,
                even,
                host_numa: false,
            };
            assert_eq!(own_cpus(pinning, cpus), all, "{pinning:?} {cpus}");
        }
    }

    #[test]
    fn probes_inside_the_guest_need_memory_of_the_pod() {
        let overhead = |probes: Value| {
            let mut spec = json!({"domain": {"devices": {}, "memory": {"guest": "1Gi"}}});
            for (name, probe) in probes.as_object().unwrap() {
                spec[name] = probe.clone();
            }
            let vmi = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"}, "spec": spec});
            let mut vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
            let config = ClusterConfig::standalone();
            crate::default_spec(&mut vmi.spec, &config);
            memory_overhead(&Machine::parse(&vmi, &config).unwrap(), &vmi.spec, &config)
        };
        let none = overhead(json!({}));
        let exec = json!({"exec": {"command": ["true"]}});
        let ping = json!({"guestAgentPing": {}});
        for (probes, count) in [
            (json!({"readinessProbe": {"tcpSocket": {"port": 22}}}), 0),
            (json!({"readinessProbe": exec}), 1),
            (json!({"livenessProbe": ping}), 1),
            (json!({"readinessProbe": exec, "livenessProbe": ping}), 2),
        ] {
            assert_eq!(overhead(probes.clone()) - none, count * AGENT_PROBE, "{probes}");
        }
    }

    #[test]
    fn cpu_storage_and_devices() {
        let config = ClusterConfig {
            architecture: Architecture::Amd64,
            ..ClusterConfig::default()
        };
        let default = resources("{devices: {}, memory: {guest: 1Gi}, cpu: {cores: 3}}", &config);
        assert_eq!(default.requests["cpu"].0, "300m");
        assert_eq!(default.requests["ephemeral-storage"].0, "50000000");
        let devices: Vec<&str> = default.devices.keys().map(String::as_str).collect();
        assert_eq!(
            devices,
            [
                "devices.kubevirt.io/kvm",
                "devices.kubevirt.io/tun",
                "devices.kubevirt.io/vhost-net"
            ]
        );

        let own = "{devices: {}, memory: {guest: 1Gi}, resources: {requests: {cpu: '2', example.com/x: '1'}, limits: {ephemeral-storage: 1G}}}";
        let own = resources(
            own,
            &ClusterConfig {
                use_emulation: true,
                ..config
            },
        );
        assert_eq!(
            (own.requests["cpu"].0.as_str(), own.requests["example.com/x"].0.as_str()),
            ("2", "1")
        );
        assert_eq!(own.limits["ephemeral-storage"].0, "1050000000");
        assert_eq!(own.devices.len(), 1);
    }
}
