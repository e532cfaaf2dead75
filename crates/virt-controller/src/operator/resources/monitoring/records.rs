//! Recording rules.

/// The processes that are counted.
const PROCESSES: [&str; 4] = ["api", "controller", "handler", "operator"];

/// Name and expression, in the order in which they are evaluated: none uses one that comes later.
pub fn all() -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = PROCESSES.iter().flat_map(|process| of_process(process)).collect();
    let rest = NODES.iter().chain(GUESTS).chain(MARGINS);
    all.extend(rest.map(|(name, expression)| ((*name).to_owned(), (*expression).to_owned())));
    all.extend(ALIASES.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())));
    all
}

fn of_process(process: &str) -> Vec<(String, String)> {
    let pods = format!("namespace='$NS', pod=~'virt-{process}-.*'");
    let ready = match process {
        // They say so themselves.
        "controller" | "operator" => {
            format!("sum(kubevirt_virt_{process}_ready_status{{namespace='$NS'}}) or vector(0)")
        }
        // Without kube-state-metrics nothing is recorded, rather than that none is ready.
        _ => format!("sum(kube_pod_status_ready{{{pods}, condition='true'}})"),
    };
    let name = |what: &str| format!("cluster:kubevirt_virt_{process}_{what}");
    let mut rules = vec![
        (name("up:sum"), format!("sum(up{{{pods}}}) or vector(0)")),
        (
            name("pods_running:count"),
            format!("count(kube_pod_status_phase{{{pods}, phase='Running'}} == 1)"),
        ),
        (name("ready:sum"), ready),
    ];
    if process == "operator" {
        rules.push((
            name("leading:sum"),
            "sum(kubevirt_virt_operator_leading_status{namespace='$NS'}) or vector(0)".to_owned(),
        ));
    }
    rules
}

const NODES: &[(&str, &str)] = &[
    (
        "cluster:kubevirt_allocatable_nodes:count",
        "count(count by (node) (kube_node_status_allocatable))",
    ),
    // A node with KVM offers it as a device; one whose KVM does not run guests does not.
    (
        "cluster:kubevirt_nodes_with_kvm:count",
        "count(kube_node_status_allocatable{resource='devices_kubevirt_io_kvm'} > 0) or vector(0)",
    ),
];

const GUESTS: &[(&str, &str)] = &[
    // Two virt-controllers may tell the same for a moment, when one takes over from the other.
    (
        "namespace:kubevirt_vm:sum",
        "max by (namespace) (kubevirt_number_of_vms)",
    ),
    (
        "node:kubevirt_vmi_phase:sum",
        "max by (node, phase) (kubevirt_vmi_phase_count)",
    ),
    (
        "vmi:kubevirt_vmi_vcpu:count",
        "count by (namespace, name, node) (count by (namespace, name, node, id) (kubevirt_vmi_vcpu_seconds_total))",
    ),
    (
        "vmi:kubevirt_vmi_memory_used_bytes:sum",
        "kubevirt_vmi_memory_available_bytes - kubevirt_vmi_memory_usable_bytes",
    ),
    (
        "vmi:kubevirt_vmi_memory_available_bytes:sum",
        "sum by (name, namespace) (kubevirt_vmi_memory_available_bytes)",
    ),
    (
        "vmi:kubevirt_vmi_memory_headroom_ratio:sum",
        "sum by (name, namespace) (kubevirt_vmi_memory_usable_bytes) / vmi:kubevirt_vmi_memory_available_bytes:sum",
    ),
    (
        "vmi:kubevirt_vmi_pgmajfaults:rate5m",
        "sum by (name, namespace) (rate(kubevirt_vmi_memory_pgmajfault_total[5m]))",
    ),
    (
        "vmi:kubevirt_vmi_pgmajfaults:rate30m",
        "sum by (name, namespace) (rate(kubevirt_vmi_memory_pgmajfault_total[30m]))",
    ),
    (
        "vmi:kubevirt_vmi_swap_traffic_bytes:rate5m",
        "sum by (name, namespace) (rate(kubevirt_vmi_memory_swap_in_traffic_bytes[5m]) + rate(kubevirt_vmi_memory_swap_out_traffic_bytes[5m]))",
    ),
    (
        "vmi:kubevirt_vmi_swap_traffic_bytes:rate30m",
        "sum by (name, namespace) (rate(kubevirt_vmi_memory_swap_in_traffic_bytes[30m]) + rate(kubevirt_vmi_memory_swap_out_traffic_bytes[30m]))",
    ),
];

/// What launchers and our processes were promised, and what they use.
const MARGINS: &[(&str, &str)] = &[
    (
        "pod_container:kubevirt_vm_memory_request_margin_based_on_working_set_bytes:sum",
        "sum by (pod, container, namespace) (kube_pod_container_resource_requests{pod=~'virt-launcher-.*', container='compute', resource='memory'} - on (pod, container, namespace) max by (pod, container, namespace) (container_memory_working_set_bytes{pod=~'virt-launcher-.*', container='compute'}))",
    ),
    (
        "pod_container:kubevirt_vm_memory_request_margin_based_on_rss_bytes:sum",
        "sum by (pod, container, namespace) (kube_pod_container_resource_requests{pod=~'virt-launcher-.*', container='compute', resource='memory'} - on (pod, container, namespace) max by (pod, container, namespace) (container_memory_rss{pod=~'virt-launcher-.*', container='compute'}))",
    ),
    (
        "kubevirt_memory_working_set_to_requested_diff_bytes",
        "max by (container, namespace) (max by (pod, container, namespace) (container_memory_working_set_bytes{namespace='$NS', container=~'virt-(api|controller|handler|operator)'}) - on (pod, container, namespace) max by (pod, container, namespace) (kube_pod_container_resource_requests{namespace='$NS', resource='memory'}))",
    ),
    (
        "kubevirt_memory_rss_to_requested_diff_bytes",
        "max by (container, namespace) (max by (pod, container, namespace) (container_memory_rss{namespace='$NS', container=~'virt-(api|controller|handler|operator)'}) - on (pod, container, namespace) max by (pod, container, namespace) (kube_pod_container_resource_requests{namespace='$NS', resource='memory'}))",
    ),
];

/// Names of older releases, which dashboards ask for, and what they are called now.
const ALIASES: &[(&str, &str)] = &[
    ("kubevirt_virt_api_up", "cluster:kubevirt_virt_api_up:sum"),
    ("kubevirt_virt_controller_up", "cluster:kubevirt_virt_controller_up:sum"),
    ("kubevirt_virt_handler_up", "cluster:kubevirt_virt_handler_up:sum"),
    ("kubevirt_virt_operator_up", "cluster:kubevirt_virt_operator_up:sum"),
    (
        "kubevirt_virt_controller_ready",
        "cluster:kubevirt_virt_controller_ready:sum",
    ),
    (
        "kubevirt_virt_operator_ready",
        "cluster:kubevirt_virt_operator_ready:sum",
    ),
    (
        "kubevirt_virt_operator_leading",
        "cluster:kubevirt_virt_operator_leading:sum",
    ),
    ("kubevirt_allocatable_nodes", "cluster:kubevirt_allocatable_nodes:count"),
    ("kubevirt_nodes_with_kvm", "cluster:kubevirt_nodes_with_kvm:count"),
    (
        "kubevirt_vmi_memory_used_bytes",
        "vmi:kubevirt_vmi_memory_used_bytes:sum",
    ),
    (
        "kubevirt_vm_container_memory_request_margin_based_on_working_set_bytes",
        "pod_container:kubevirt_vm_memory_request_margin_based_on_working_set_bytes:sum",
    ),
    (
        "kubevirt_vm_container_memory_request_margin_based_on_rss_bytes",
        "pod_container:kubevirt_vm_memory_request_margin_based_on_rss_bytes:sum",
    ),
];
