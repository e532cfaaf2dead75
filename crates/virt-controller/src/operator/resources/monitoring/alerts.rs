//! Alerts. What to do about each is in `docs/monitoring.md`.

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// For whoever is alerted.
    pub severity: &'static str,
    /// What it says of the health of KubeVirt itself, rather than of one VM.
    pub impact: &'static str,
}

const CRITICAL: Level = Level {
    severity: "critical",
    impact: "critical",
};
const WARNING: Level = Level {
    severity: "warning",
    impact: "warning",
};
/// There is no place for VMs, whatever our processes do.
const NO_PLACE: Level = Level {
    severity: "warning",
    impact: "critical",
};
const VM: Level = Level {
    severity: "warning",
    impact: "none",
};
const VM_INFO: Level = Level {
    severity: "info",
    impact: "none",
};

/// An alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// KubeVirt's name of it.
    pub name: String,
    /// It is on while this has a value.
    pub expression: String,
    /// How long the expression must have had one.
    pub pending: &'static str,
    /// How bad.
    pub level: Level,
    /// What it means.
    pub summary: String,
    /// Which object it is about, as a template of Prometheus'.
    pub description: Option<String>,
}

fn alert(name: &str, level: Level, pending: &'static str, expression: &str, summary: &str) -> Alert {
    Alert {
        name: name.to_owned(),
        expression: expression.to_owned(),
        pending,
        level,
        summary: summary.to_owned(),
        description: None,
    }
}

impl Alert {
    fn described(self, description: &str) -> Self {
        Self {
            description: Some(description.to_owned()),
            ..self
        }
    }
}

/// All of them, where virt-api and virt-controller have so many replicas.
pub fn all(replicas: i32) -> Vec<Alert> {
    let mut all = down().to_vec();
    all.extend(readiness());
    all.extend(counts(replicas));
    all.extend(["api", "controller", "handler", "operator"].map(request_errors));
    all.extend(nodes());
    all.extend(launchers());
    all.extend(machines());
    all.extend(guest_memory());
    all
}

fn down() -> [Alert; 4] {
    let rule = |name: &str, process: &str, summary: &str| {
        let expression = format!("cluster:kubevirt_virt_{process}_up:sum == 0");
        alert(name, CRITICAL, "10m", &expression, summary)
    };
    [
        rule(
            "VirtAPIDown",
            "api",
            "No virt-api answers: VMs cannot be created, changed, started or stopped.",
        ),
        rule(
            "VirtControllerDown",
            "controller",
            "No virt-controller runs: what VMs should do is not done.",
        ),
        rule(
            "VirtHandlerDown",
            "handler",
            "No virt-handler runs: nothing is known of guests, and none can be started or stopped.",
        ),
        rule(
            "VirtOperatorDown",
            "operator",
            "No virt-operator runs: certificates are not renewed.",
        ),
    ]
}

fn readiness() -> Vec<Alert> {
    let none = |name: &str, process: &str| {
        // That none runs at all is another alert.
        let expression = format!(
            "cluster:kubevirt_virt_{process}_ready:sum == 0 and cluster:kubevirt_virt_{process}_pods_running:count > 0"
        );
        let summary = format!("virt-{process} runs, but none of its pods is ready.");
        alert(name, CRITICAL, "10m", &expression, &summary)
    };
    let some = |name: &str, process: &str| {
        let expression =
            format!("cluster:kubevirt_virt_{process}_ready:sum < cluster:kubevirt_virt_{process}_pods_running:count");
        let summary = format!("Some pods of virt-{process} run but are not ready.");
        alert(name, WARNING, "10m", &expression, &summary)
    };
    vec![
        none("NoReadyVirtAPI", "api"),
        none("NoReadyVirtController", "controller"),
        none("NoReadyVirtHandler", "handler"),
        none("NoReadyVirtOperator", "operator"),
        alert(
            "NoLeadingVirtOperator",
            CRITICAL,
            "10m",
            "cluster:kubevirt_virt_operator_leading:sum == 0",
            "No virt-operator leads: certificates are not renewed.",
        ),
        some("LowReadyVirtAPICount", "api"),
        some("LowReadyVirtControllersCount", "controller"),
        some("LowReadyVirtHandlerCount", "handler"),
        some("LowReadyVirtOperatorsCount", "operator"),
    ]
}

fn counts(replicas: i32) -> Vec<Alert> {
    let low = |name: &str, process: &str, what: &str| {
        let expression =
            format!("cluster:kubevirt_allocatable_nodes:count > 1 and cluster:kubevirt_virt_{process}_{what}:sum < 2");
        let summary =
            format!("There is one virt-{process} or none; where there are nodes for two, one should stand by.");
        alert(name, WARNING, "60m", &expression, &summary)
    };
    let mut all = vec![low("LowVirtOperatorCount", "operator", "up")];
    // Whoever asks for one replica gets what he asked for.
    if replicas > 1 {
        all.push(low("LowVirtAPICount", "api", "up"));
        all.push(low("LowVirtControllersCount", "controller", "ready"));
    }
    all
}

fn request_errors(process: &str) -> Alert {
    let word = match process {
        "api" => "Api",
        "controller" => "Controller",
        "handler" => "Handler",
        _ => "Operator",
    };
    let pods = format!("namespace='$NS', pod=~'virt-{process}-.*'");
    // What was never answered counts as well.
    let expression = format!(
        "sum(rate(rest_client_requests_total{{{pods}, code=~'(4|5)[0-9][0-9]|<error>'}}[5m])) / sum(rate(rest_client_requests_total{{{pods}}}[5m])) >= 0.8"
    );
    let summary = format!("Four of five requests of virt-{process} to the API server have failed for five minutes.");
    alert(
        &format!("Virt{word}RESTErrorsBurst"),
        CRITICAL,
        "5m",
        &expression,
        &summary,
    )
}

fn nodes() -> [Alert; 3] {
    [
        alert(
            "LowKVMNodesCount",
            WARNING,
            "5m",
            "cluster:kubevirt_allocatable_nodes:count > 1 and cluster:kubevirt_nodes_with_kvm:count < 2",
            "Fewer than two nodes run guests with KVM: VMs cannot move to another one.",
        ),
        // Where virt-handler runs, a node offers this device, with KVM and without.
        alert(
            "KubeVirtNoAvailableNodesToRunVMs",
            NO_PLACE,
            "5m",
            "cluster:kubevirt_allocatable_nodes:count > 0 unless on () (count((kube_node_status_allocatable{resource='devices_kubevirt_io_tun'} > 0) unless on (node) (kube_node_spec_unschedulable == 1)) > 0)",
            "No node may run VMs.",
        ),
        alert(
            "VirtHandlerDaemonSetRolloutFailing",
            WARNING,
            "15m",
            "kube_daemonset_status_number_ready{namespace='$NS', daemonset='virt-handler'} != kube_daemonset_status_desired_number_scheduled{namespace='$NS', daemonset='virt-handler'}",
            "virt-handler is not ready on all nodes it should run on.",
        ),
    ]
}

fn launchers() -> [Alert; 2] {
    [
        alert(
            "VirtLauncherPodsStuckFailed",
            CRITICAL,
            "10m",
            "sum by (namespace) (kube_pod_status_phase{phase='Failed', pod=~'virt-launcher-.*'}) >= 200",
            "Two hundred failed virt-launcher pods or more are not removed.",
        ),
        alert(
            "OrphanedVirtualMachineInstances",
            WARNING,
            "10m",
            "count by (node) (kube_pod_info{pod=~'virt-launcher-.*', node!=''} and on (pod, namespace) (kube_pod_status_phase{pod=~'virt-launcher-.*', phase='Running'} == 1)) unless on (node) (kube_pod_info{namespace='$NS', pod=~'virt-handler-.*', node!=''} and on (pod, namespace) (kube_pod_status_ready{namespace='$NS', pod=~'virt-handler-.*', condition='true'} == 1))",
            "A node has guests, but no virt-handler that is ready.",
        )
        .described("Nobody looks after the guests of node {{ $labels.node }}."),
    ]
}

/// Statuses of a VM that does not work.
macro_rules! failing {
    () => {
        "crashloopbackoff|unknown|errorunschedulable|errimagepull|imagepullbackoff|errorpvcnotfound|datavolumeerror"
    };
}

fn machines() -> [Alert; 2] {
    [
        alert(
            "VirtualMachineStuckInUnhealthyState",
            VM,
            "10m",
            concat!(
                "max by (name, namespace, status) (kubevirt_vm_info{status=~'provisioning|starting|terminating|",
                failing!(),
                "'}) unless on (name, namespace) kubevirt_vmi_info"
            ),
            "A VM has been in a state for ten minutes that should pass, and has no instance.",
        )
        .described("VM {{ $labels.namespace }}/{{ $labels.name }} is {{ $labels.status }}."),
        alert(
            "VirtualMachineStuckOnNode",
            VM,
            "5m",
            concat!(
                "max by (name, namespace, status) (kubevirt_vm_info{status=~'starting|stopping|terminating|",
                failing!(),
                "'}) * on (name, namespace) group_left (node) topk by (name, namespace) (1, kubevirt_vmi_info{phase=~'scheduled|running'})"
            ),
            "A VM that has a node has been in a state for five minutes that should pass.",
        )
        .described("VM {{ $labels.namespace }}/{{ $labels.name }} on node {{ $labels.node }} is {{ $labels.status }}."),
    ]
}

fn guest_memory() -> [Alert; 2] {
    let running = "and on (name, namespace) kubevirt_vmi_info{phase='running'}";
    [
        alert(
            "KubeVirtVMGuestMemoryPressure",
            VM,
            "5m",
            &format!(
                "vmi:kubevirt_vmi_memory_headroom_ratio:sum < 0.05 and (vmi:kubevirt_vmi_pgmajfaults:rate5m > 5 or vmi:kubevirt_vmi_swap_traffic_bytes:rate5m > 1048576) {running}"
            ),
            "A guest has hardly any memory left and reads from its disk what it had in memory.",
        )
        .described("VM {{ $labels.namespace }}/{{ $labels.name }} needs more memory, or less work."),
        alert(
            "KubeVirtVMGuestMemoryAvailableLow",
            VM_INFO,
            "30m",
            &format!(
                "vmi:kubevirt_vmi_memory_headroom_ratio:sum < 0.03 and vmi:kubevirt_vmi_pgmajfaults:rate30m < 1 and vmi:kubevirt_vmi_swap_traffic_bytes:rate30m < 2048 {running}"
            ),
            "A guest has hardly any memory left, and no swap to go to.",
        )
        .described("VM {{ $labels.namespace }}/{{ $labels.name }} has less than 3% of its memory left."),
    ]
}
