//! Which of libvirt's statistics is which of KubeVirt's metrics.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One metric. The name of a counter is without `_total`, which the format adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    /// libvirt's name; of a device, what follows its number.
    pub(super) stat: &'static str,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    /// The metric's unit in units of libvirt's: multiply by this.
    pub(super) factor: f64,
}

const NANOSECONDS: f64 = 1e-9;
const KIBIBYTES: f64 = 1024.0;

const fn counter(stat: &'static str, name: &'static str, help: &'static str, factor: f64) -> Metric {
    Metric {
        stat,
        name,
        help,
        kind: Kind::Counter,
        factor,
    }
}

const fn memory(stat: &'static str, name: &'static str, help: &'static str) -> Metric {
    Metric {
        stat,
        name,
        help,
        kind: Kind::Gauge,
        factor: KIBIBYTES,
    }
}

/// Of the whole guest.
pub(super) const GUEST: [Metric; 15] = [
    counter(
        "cpu.time",
        "kubevirt_vmi_cpu_usage_seconds",
        "CPU time of the VMI's domain.",
        NANOSECONDS,
    ),
    counter(
        "cpu.user",
        "kubevirt_vmi_cpu_user_usage_seconds",
        "CPU time spent in user mode.",
        NANOSECONDS,
    ),
    counter(
        "cpu.system",
        "kubevirt_vmi_cpu_system_usage_seconds",
        "CPU time spent in the kernel.",
        NANOSECONDS,
    ),
    memory(
        "balloon.current",
        "kubevirt_vmi_memory_actual_balloon_bytes",
        "Memory that the balloon leaves the guest.",
    ),
    memory(
        "balloon.maximum",
        "kubevirt_vmi_memory_domain_bytes",
        "Memory that the domain was given.",
    ),
    memory(
        "balloon.available",
        "kubevirt_vmi_memory_available_bytes",
        "Memory as the guest sees it.",
    ),
    memory(
        "balloon.unused",
        "kubevirt_vmi_memory_unused_bytes",
        "Memory that the guest does not use at all.",
    ),
    memory(
        "balloon.usable",
        "kubevirt_vmi_memory_usable_bytes",
        "Memory that could be reclaimed without swapping.",
    ),
    memory(
        "balloon.disk_caches",
        "kubevirt_vmi_memory_cached_bytes",
        "Memory that caches the guest's files.",
    ),
    memory(
        "balloon.rss",
        "kubevirt_vmi_memory_resident_bytes",
        "Resident memory of the QEMU process.",
    ),
    memory(
        "balloon.swap_in",
        "kubevirt_vmi_memory_swap_in_traffic_bytes",
        "Bytes that the guest read from swap.",
    ),
    memory(
        "balloon.swap_out",
        "kubevirt_vmi_memory_swap_out_traffic_bytes",
        "Bytes that the guest wrote to swap.",
    ),
    counter(
        "balloon.major_fault",
        "kubevirt_vmi_memory_pgmajfault",
        "Page faults that needed the disk.",
        1.0,
    ),
    counter(
        "balloon.minor_fault",
        "kubevirt_vmi_memory_pgminfault",
        "Page faults that did not.",
        1.0,
    ),
    Metric {
        stat: "balloon.last-update",
        name: "kubevirt_vmi_memory_balloon_last_update_timestamp_seconds",
        help: "When the guest's balloon last reported, since 1970.",
        kind: Kind::Gauge,
        factor: 1.0,
    },
];

/// Of a vCPU.
pub(super) const VCPU: [Metric; 3] = [
    counter(
        "time",
        "kubevirt_vmi_vcpu_seconds",
        "Time that the vCPU ran.",
        NANOSECONDS,
    ),
    counter(
        "wait",
        "kubevirt_vmi_vcpu_wait_seconds",
        "Time that the vCPU waited for I/O.",
        NANOSECONDS,
    ),
    counter(
        "delay",
        "kubevirt_vmi_vcpu_delay_seconds",
        "Time that the vCPU waited for a CPU of the node.",
        NANOSECONDS,
    ),
];

/// Of a NIC. What it receives is what the guest receives.
pub(super) const NETWORK: [Metric; 8] = [
    counter("rx.bytes", "kubevirt_vmi_network_receive_bytes", "Bytes received.", 1.0),
    counter("tx.bytes", "kubevirt_vmi_network_transmit_bytes", "Bytes sent.", 1.0),
    counter(
        "rx.pkts",
        "kubevirt_vmi_network_receive_packets",
        "Packets received.",
        1.0,
    ),
    counter("tx.pkts", "kubevirt_vmi_network_transmit_packets", "Packets sent.", 1.0),
    counter(
        "rx.errs",
        "kubevirt_vmi_network_receive_errors",
        "Errors while receiving.",
        1.0,
    ),
    counter(
        "tx.errs",
        "kubevirt_vmi_network_transmit_errors",
        "Errors while sending.",
        1.0,
    ),
    counter(
        "rx.drop",
        "kubevirt_vmi_network_receive_packets_dropped",
        "Packets dropped on their way in.",
        1.0,
    ),
    counter(
        "tx.drop",
        "kubevirt_vmi_network_transmit_packets_dropped",
        "Packets dropped on their way out.",
        1.0,
    ),
];

/// Of a disk.
pub(super) const STORAGE: [Metric; 8] = [
    counter("rd.reqs", "kubevirt_vmi_storage_iops_read", "Read operations.", 1.0),
    counter("wr.reqs", "kubevirt_vmi_storage_iops_write", "Write operations.", 1.0),
    counter(
        "rd.bytes",
        "kubevirt_vmi_storage_read_traffic_bytes",
        "Bytes read.",
        1.0,
    ),
    counter(
        "wr.bytes",
        "kubevirt_vmi_storage_write_traffic_bytes",
        "Bytes written.",
        1.0,
    ),
    counter(
        "rd.times",
        "kubevirt_vmi_storage_read_times_seconds",
        "Time spent on reads.",
        NANOSECONDS,
    ),
    counter(
        "wr.times",
        "kubevirt_vmi_storage_write_times_seconds",
        "Time spent on writes.",
        NANOSECONDS,
    ),
    counter("fl.reqs", "kubevirt_vmi_storage_flush_requests", "Flushes.", 1.0),
    counter(
        "fl.times",
        "kubevirt_vmi_storage_flush_times_seconds",
        "Time spent on flushes.",
        NANOSECONDS,
    ),
];
