//! A Grafana dashboard: what VMs do and use, and how the processes are that look after them.
//!
//! It asks for what our processes export, not for what rules record, so that it also works where there is a Prometheus
//! without its operator.

use serde_json::{Value, json};

/// How a panel shows its values.
#[derive(Clone, Copy)]
enum Look {
    /// Lines over time.
    Lines,
    /// Areas on top of each other, over time.
    Stack,
    /// One number.
    Number,
    /// The newest values, one bar each.
    Bars,
}

/// A panel: title, unit, look, and expressions with what their values are called.
struct Panel {
    title: &'static str,
    unit: &'static str,
    look: Look,
    queries: &'static [(&'static str, &'static str)],
}

const fn panel(
    title: &'static str,
    unit: &'static str,
    look: Look,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel {
        title,
        unit,
        look,
        queries,
    }
}

const VMI: &str = "{{namespace}}/{{name}}";

const ROWS: &[(&str, &[Panel])] = &[
    (
        "Virtual machines",
        &[
            panel(
                "VMs",
                "short",
                Look::Number,
                &[(
                    "sum(max by (namespace) (kubevirt_number_of_vms{namespace=~\"$namespace\"})) or vector(0)",
                    "VMs",
                )],
            ),
            panel(
                "Running",
                "short",
                Look::Number,
                &[(
                    "count(count by (namespace, name) (kubevirt_vmi_info{namespace=~\"$namespace\", phase=\"running\"})) or vector(0)",
                    "running",
                )],
            ),
            panel(
                "Statuses of VMs",
                "short",
                Look::Bars,
                &[(
                    "count by (status) (max by (namespace, name, status) (kubevirt_vm_info{namespace=~\"$namespace\"}))",
                    "{{status}}",
                )],
            ),
            panel(
                "Phases of VMIs",
                "short",
                Look::Stack,
                &[(
                    "sum by (phase) (max by (node, phase) (kubevirt_vmi_phase_count))",
                    "{{phase}}",
                )],
            ),
            panel(
                "Running VMIs of nodes",
                "short",
                Look::Stack,
                &[(
                    "sum by (node) (max by (node, phase) (kubevirt_vmi_phase_count{phase=\"running\"}))",
                    "{{node}}",
                )],
            ),
        ],
    ),
    (
        "CPU",
        &[
            panel(
                "CPU of VMs",
                "short",
                Look::Lines,
                &[(
                    "rate(kubevirt_vmi_cpu_usage_seconds_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval])",
                    VMI,
                )],
            ),
            panel(
                "Waiting for a CPU of the node",
                "percentunit",
                Look::Lines,
                &[(
                    "sum by (namespace, name) (rate(kubevirt_vmi_vcpu_delay_seconds_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                    VMI,
                )],
            ),
        ],
    ),
    (
        "Memory",
        &[
            panel(
                "Used in the guest",
                "bytes",
                Look::Lines,
                &[(
                    "kubevirt_vmi_memory_available_bytes{namespace=~\"$namespace\", name=~\"$vm\"} - kubevirt_vmi_memory_usable_bytes",
                    VMI,
                )],
            ),
            panel(
                "Resident, of QEMU",
                "bytes",
                Look::Lines,
                &[(
                    "kubevirt_vmi_memory_resident_bytes{namespace=~\"$namespace\", name=~\"$vm\"}",
                    VMI,
                )],
            ),
            panel(
                "Swapping in guests",
                "Bps",
                Look::Lines,
                &[
                    (
                        "rate(kubevirt_vmi_memory_swap_in_traffic_bytes{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval])",
                        "{{namespace}}/{{name}} in",
                    ),
                    (
                        "rate(kubevirt_vmi_memory_swap_out_traffic_bytes{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval])",
                        "{{namespace}}/{{name}} out",
                    ),
                ],
            ),
        ],
    ),
    (
        "Network",
        &[
            panel(
                "Received",
                "Bps",
                Look::Lines,
                &[(
                    "sum by (namespace, name) (rate(kubevirt_vmi_network_receive_bytes_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                    VMI,
                )],
            ),
            panel(
                "Sent",
                "Bps",
                Look::Lines,
                &[(
                    "sum by (namespace, name) (rate(kubevirt_vmi_network_transmit_bytes_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                    VMI,
                )],
            ),
            panel(
                "Packets dropped",
                "pps",
                Look::Lines,
                &[
                    (
                        "sum by (namespace, name) (rate(kubevirt_vmi_network_receive_packets_dropped_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                        "{{namespace}}/{{name}} in",
                    ),
                    (
                        "sum by (namespace, name) (rate(kubevirt_vmi_network_transmit_packets_dropped_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                        "{{namespace}}/{{name}} out",
                    ),
                ],
            ),
        ],
    ),
    (
        "Storage",
        &[
            panel(
                "Read and written",
                "Bps",
                Look::Lines,
                &[
                    (
                        "sum by (namespace, name) (rate(kubevirt_vmi_storage_read_traffic_bytes_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                        "{{namespace}}/{{name}} read",
                    ),
                    (
                        "sum by (namespace, name) (rate(kubevirt_vmi_storage_write_traffic_bytes_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                        "{{namespace}}/{{name}} written",
                    ),
                ],
            ),
            panel(
                "Operations",
                "iops",
                Look::Lines,
                &[
                    (
                        "sum by (namespace, name) (rate(kubevirt_vmi_storage_iops_read_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                        "{{namespace}}/{{name}} reads",
                    ),
                    (
                        "sum by (namespace, name) (rate(kubevirt_vmi_storage_iops_write_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]))",
                        "{{namespace}}/{{name}} writes",
                    ),
                ],
            ),
            panel(
                "Time of an operation",
                "s",
                Look::Lines,
                &[
                    (
                        "rate(kubevirt_vmi_storage_read_times_seconds_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]) / rate(kubevirt_vmi_storage_iops_read_total[$__rate_interval])",
                        "{{namespace}}/{{name}} {{drive}} read",
                    ),
                    (
                        "rate(kubevirt_vmi_storage_write_times_seconds_total{namespace=~\"$namespace\", name=~\"$vm\"}[$__rate_interval]) / rate(kubevirt_vmi_storage_iops_write_total[$__rate_interval])",
                        "{{namespace}}/{{name}} {{drive}} write",
                    ),
                ],
            ),
        ],
    ),
    (
        "Control plane",
        &[
            panel(
                "Processes that answer",
                "short",
                Look::Bars,
                &[(
                    "sum by (pod) (up{pod=~\"virt-(api|controller|handler|operator)-.*\"})",
                    "{{pod}}",
                )],
            ),
            panel(
                "Leading",
                "short",
                Look::Lines,
                &[
                    ("kubevirt_virt_controller_leading_status", "{{pod}}"),
                    ("kubevirt_virt_operator_leading_status", "{{pod}}"),
                ],
            ),
            panel(
                "Resident memory",
                "bytes",
                Look::Stack,
                &[(
                    "process_resident_memory_bytes{pod=~\"virt-(api|controller|handler|operator)-.*\"}",
                    "{{pod}}",
                )],
            ),
            panel(
                "CPU",
                "short",
                Look::Stack,
                &[(
                    "rate(process_cpu_seconds_total{pod=~\"virt-(api|controller|handler|operator)-.*\"}[$__rate_interval])",
                    "{{pod}}",
                )],
            ),
            panel(
                "Requests to the API server",
                "reqps",
                Look::Lines,
                &[(
                    "sum by (pod, method) (rate(rest_client_requests_total{pod=~\"virt-(api|controller|handler|operator)-.*\"}[$__rate_interval]))",
                    "{{pod}} {{method}}",
                )],
            ),
            panel(
                "Requests that failed",
                "reqps",
                Look::Lines,
                &[(
                    "sum by (pod, code) (rate(rest_client_requests_total{pod=~\"virt-(api|controller|handler|operator)-.*\", code!~\"[23]..\"}[$__rate_interval]))",
                    "{{pod}} {{code}}",
                )],
            ),
            panel(
                "Open streams",
                "short",
                Look::Stack,
                &[
                    ("sum(kubevirt_console_active_connections)", "consoles"),
                    ("sum(kubevirt_vnc_active_connections)", "displays"),
                    ("sum(kubevirt_portforward_active_tunnels)", "forwarded ports"),
                ],
            ),
        ],
    ),
];

/// Of a row of Grafana's grid.
const WIDTH: usize = 24;
const HEIGHT: usize = 8;

/// The dashboard, as Grafana imports it.
#[must_use]
pub fn dashboard() -> Value {
    let mut panels = Vec::new();
    let mut y = 0;
    for (title, row) in ROWS {
        panels.push(json!({
            "id": panels.len() + 1, "type": "row", "title": title, "collapsed": false, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
        }));
        y += 1;
        for line in row.chunks(4) {
            let width = WIDTH / line.len();
            for (at, panel) in line.iter().enumerate() {
                panels.push(panel.render(panels.len() + 1, [at * width, y, width]));
            }
            y += HEIGHT;
        }
    }
    json!({
        "uid": "ferrovirt", "title": "Ferrovirt", "tags": ["kubevirt"], "editable": true, "graphTooltip": 1,
        "schemaVersion": 39, "version": 1, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []}, "links": [],
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
            variable("namespace", "Namespace", "label_values(kubevirt_vm_info, namespace)"),
            variable("vm", "VM", "label_values(kubevirt_vm_info{namespace=~\"$namespace\"}, name)"),
        ]},
        "panels": panels,
    })
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn variable(name: &str, label: &str, query: &str) -> Value {
    json!({
        "name": name, "label": label, "type": "query", "datasource": source(),
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1,
        "includeAll": true, "multi": true, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
    })
}

impl Panel {
    fn render(&self, id: usize, [x, y, width]: [usize; 3]) -> Value {
        let queries = self.queries.iter().zip('A'..).map(|((expression, legend), letter)| {
            json!({
                "refId": letter.to_string(), "datasource": source(), "expr": expression, "legendFormat": legend,
                "instant": matches!(self.look, Look::Bars), "range": !matches!(self.look, Look::Bars),
            })
        });
        let (kind, options, custom) = self.look.options();
        json!({
            "id": id, "type": kind, "title": self.title, "datasource": source(),
            "gridPos": {"x": x, "y": y, "w": width, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0, "custom": custom}, "overrides": []},
            "options": options,
            "targets": queries.collect::<Vec<_>>(),
        })
    }
}

impl Look {
    /// Type of panel, its options, and how values are drawn.
    fn options(self) -> (&'static str, Value, Value) {
        let newest = json!({"calcs": ["lastNotNull"], "fields": "", "values": false});
        let over_time = json!({
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
            "tooltip": {"mode": "multi", "sort": "desc"},
        });
        match self {
            Self::Lines => ("timeseries", over_time, json!({"lineWidth": 1, "fillOpacity": 0})),
            Self::Stack => (
                "timeseries",
                over_time,
                json!({"lineWidth": 1, "fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}}),
            ),
            Self::Number => ("stat", json!({"reduceOptions": newest, "graphMode": "area"}), json!({})),
            Self::Bars => (
                "bargauge",
                json!({"reduceOptions": newest, "orientation": "horizontal", "displayMode": "basic"}),
                json!({}),
            ),
        }
    }
}

#[cfg(test)]
/// Every expression.
pub fn expressions() -> impl Iterator<Item = &'static str> {
    let panels = ROWS.iter().flat_map(|(_, row)| row.iter());
    panels.flat_map(|panel| panel.queries.iter().map(|(expression, _)| *expression))
}
