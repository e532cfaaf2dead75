use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// What kube-state-metrics, the kubelet and Prometheus itself export and rules of ours use.
const OTHERS: &[&str] = &[
    "container_memory_rss",
    "container_memory_working_set_bytes",
    "kube_daemonset_status_desired_number_scheduled",
    "kube_daemonset_status_number_ready",
    "kube_node_spec_unschedulable",
    "kube_node_status_allocatable",
    "kube_pod_container_resource_requests",
    "kube_pod_info",
    "kube_pod_status_phase",
    "kube_pod_status_ready",
    "up",
];

/// Words of PromQL that are no metrics.
const OPERATORS: &[&str] = &["and", "offset", "or", "unless"];
/// Those that labels in parentheses follow.
const GROUPINGS: &[&str] = &["by", "group_left", "group_right", "ignoring", "on", "without"];

/// Names of the metrics in an expression.
fn metrics(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut rest = expression;
    let mut previous = "";
    while let Some(first) = rest.chars().next() {
        let skip = |close: char| rest[1..].find(close).map_or(rest.len(), |at| at + 2);
        let taken = match first {
            '\'' | '"' => skip(first),
            '[' => skip(']'),
            // Values of labels have no braces.
            '{' => skip('}'),
            '(' if GROUPINGS.contains(&previous) => skip(')'),
            c if c.is_ascii_alphabetic() || c == '_' || c == ':' => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                let function = after.trim_start().starts_with('(') || after.trim_start().starts_with("by (");
                if !function && !OPERATORS.contains(&name) && !GROUPINGS.contains(&name) {
                    names.insert(name.to_owned());
                }
                previous = name;
                end
            }
            c if c.is_ascii_digit() => rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        if !matches!(first, ' ') && !first.is_ascii_alphabetic() {
            previous = "";
        }
        rest = &rest[taken..];
    }
    names
}

#[test]
fn metrics_of_expressions() {
    for (expression, expected) in [
        ("sum(a_total{b='c', d=~\"e(f)\"}) or vector(0)", "a_total"),
        ("sum by (x, y) (rate(a:b_c:sum[5m])) / 3.5 > 2", "a:b_c:sum"),
        ("a * on (n, m) group_left (node) topk by (n) (1, b)", "a b"),
        ("a unless on () (count(b == 1) > 0)", "a b"),
        ("a and (b or c{d='1'}) and on (n) e", "a b c e"),
    ] {
        let found: Vec<String> = metrics(expression).into_iter().collect();
        assert_eq!(found.join(" "), expected, "{expression}");
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Metrics that the sources of our processes name where they register them. Those of counters get their `_total`.
fn exported() -> BTreeSet<String> {
    let mut files = Vec::new();
    let mut folders = vec![workspace().join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("operator/resources") && !path.ends_with("tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                files.push(path);
            }
        }
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for prefix in ["\"kubevirt_", "\"process_", "\"rest_client_"] {
            for (at, _) in code.match_indices(prefix) {
                let name = code[at + 1..].split('"').next().unwrap_or_default();
                if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                    names.insert(format!("{name}{}", suffix(&code[..at], &code[at..])));
                }
            }
        }
    }
    names
}

/// Whether a counter is named between these two pieces of a source.
fn suffix(before: &str, after: &str) -> &'static str {
    let call = before.rfind('(').unwrap_or_default();
    if before[call..].contains(')') {
        return "";
    }
    let function = before[..call].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
    let arguments = after.split(';').next().unwrap_or_default();
    match function {
        Some("counter") => "_total",
        // A family or a constant.
        Some("register") if arguments.contains("requests") => "_total",
        Some("encode_descriptor") if arguments.contains("cpu.metric_type") => "_total",
        _ => "",
    }
}

/// The recording rules, or the alerts.
fn group(replicas: i32, group: usize) -> Vec<Value> {
    rules("kubevirt", replicas)["groups"][group]["rules"]
        .as_array()
        .unwrap()
        .clone()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

#[test]
fn everything_that_is_asked_for_exists() {
    let exported = exported();
    for name in [
        "kubevirt_vmi_cpu_usage_seconds_total",
        "kubevirt_vmi_memory_resident_bytes",
        "kubevirt_vm_info",
        "kubevirt_virt_operator_leading_status",
        "kubevirt_console_active_connections",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "rest_client_requests_total",
    ] {
        assert!(exported.contains(name), "{name} is not found in the sources");
    }
    let mut known: BTreeSet<String> = exported;
    known.extend(OTHERS.iter().map(|name| (*name).to_owned()));
    for expression in dashboard::expressions() {
        let unknown: Vec<_> = metrics(expression).difference(&known).cloned().collect();
        assert!(
            unknown.is_empty(),
            "nothing exports {unknown:?} of the dashboard's {expression}"
        );
    }
    for rule in group(2, 0) {
        let (name, expression) = (text(&rule, "record"), text(&rule, "expr"));
        let unknown: Vec<_> = metrics(expression).difference(&known).cloned().collect();
        assert!(
            unknown.is_empty(),
            "nothing exports {unknown:?} of {name}, or only later"
        );
        assert!(known.insert(name.to_owned()), "{name} exists twice");
    }
    for rule in group(2, 1) {
        let unknown: Vec<_> = metrics(text(&rule, "expr")).difference(&known).cloned().collect();
        assert!(
            unknown.is_empty(),
            "nothing exports {unknown:?} of {}",
            text(&rule, "alert")
        );
    }
}

#[test]
fn alerts_say_what_they_mean_and_are_documented() {
    let documentation = fs::read_to_string(workspace().join("docs/monitoring.md")).unwrap();
    let alerts = group(2, 1);
    let mut names: Vec<&str> = alerts.iter().map(|rule| text(rule, "alert")).collect();
    for rule in &alerts {
        let name = text(rule, "alert");
        assert!(
            documentation.contains(&format!("`{name}`")),
            "docs/monitoring.md has no {name}"
        );
        assert!(!text(&rule["annotations"], "summary").is_empty(), "{name}");
        assert!(!rule.to_string().contains(NAMESPACE), "{rule}");
        let labels = &rule["labels"];
        assert!(
            ["critical", "warning", "info"].contains(&text(labels, "severity")),
            "{name}"
        );
        assert!(
            ["critical", "warning", "none"].contains(&text(labels, "operator_health_impact")),
            "{name}"
        );
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), alerts.len());
}

#[test]
fn one_replica_is_no_reason_to_alert_where_one_was_asked_for() {
    for (replicas, expected) in [(1, false), (2, true)] {
        let alerts = group(replicas, 1);
        for name in ["LowVirtAPICount", "LowVirtControllersCount"] {
            let found = alerts.iter().any(|rule| text(rule, "alert") == name);
            assert_eq!(found, expected, "{name} with {replicas}");
        }
    }
}

#[test]
fn panels_of_the_dashboard_do_not_overlap() {
    let dashboard = dashboard::dashboard();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let place = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && taken.insert((x, y)), "{panel}");
            }
        }
    }
}
