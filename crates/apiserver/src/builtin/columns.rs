//! Columns of the built-in kinds, as kubectl users know them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::table::{Column, age_column, age_of, name_column};

const NONE: &str = "<none>";
const UNSET: &str = "<unset>";

type Cell = fn(&Value, Timestamp) -> Value;

/// Columns between the name and the age, the latter at position `age`.
fn with_age(columns: &[(&str, i32, Cell)], age: usize) -> Vec<Column> {
    let mut all: Vec<Column> = columns
        .iter()
        .map(|(name, wide, cell)| Column::computed(name, *wide, *cell))
        .collect();
    all.insert(age, age_column());
    all.insert(0, name_column());
    all
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn or_none(value: &Value) -> Value {
    match value {
        Value::Null => NONE.into(),
        Value::String(s) if s.is_empty() => NONE.into(),
        other => other.clone(),
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let parts: Vec<&str> = parts.collect();
    if parts.is_empty() {
        NONE.to_owned()
    } else {
        parts.join(",")
    }
}

fn count(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

/// Name and age.
pub(super) fn plain() -> Vec<Column> {
    with_age(&[], 0)
}

/// Name and time of creation.
pub(super) fn created_at() -> Vec<Column> {
    vec![
        name_column(),
        Column::computed("Created At", 0, |o, _| o["metadata"]["creationTimestamp"].clone()),
    ]
}

pub(super) fn namespaces() -> Vec<Column> {
    with_age(&[("Status", 0, |o, _| o["status"]["phase"].clone())], 1)
}

pub(super) fn secrets() -> Vec<Column> {
    with_age(
        &[
            ("Type", 0, |o, _| o["type"].clone()),
            ("Data", 0, |o, _| count(&o["data"]).into()),
        ],
        2,
    )
}

pub(super) fn config_maps() -> Vec<Column> {
    with_age(
        &[("Data", 0, |o, _| (count(&o["data"]) + count(&o["binaryData"])).into())],
        1,
    )
}

pub(super) fn service_accounts() -> Vec<Column> {
    with_age(&[("Secrets", 0, |o, _| items(&o["secrets"]).count().into())], 1)
}

pub(super) fn nodes() -> Vec<Column> {
    fn address_of(o: &Value, kind: &str) -> Value {
        let found = items(&o["status"]["addresses"]).find(|a| a["type"] == kind);
        found.map_or_else(|| NONE.into(), |a| a["address"].clone())
    }
    with_age(
        &[
            ("Status", 0, |o, _| node_status(o).into()),
            ("Roles", 0, |o, _| node_roles(o).into()),
            ("Version", 0, |o, _| o["status"]["nodeInfo"]["kubeletVersion"].clone()),
            ("Internal-IP", 1, |o, _| address_of(o, "InternalIP")),
            ("External-IP", 1, |o, _| address_of(o, "ExternalIP")),
            ("OS-Image", 1, |o, _| o["status"]["nodeInfo"]["osImage"].clone()),
            ("Kernel-Version", 1, |o, _| {
                o["status"]["nodeInfo"]["kernelVersion"].clone()
            }),
            ("Container-Runtime", 1, |o, _| {
                o["status"]["nodeInfo"]["containerRuntimeVersion"].clone()
            }),
        ],
        2,
    )
}

fn node_status(node: &Value) -> String {
    let ready = items(&node["status"]["conditions"]).find(|c| c["type"] == "Ready");
    let status = match ready.map(|c| text(&c["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let unschedulable = node["spec"]["unschedulable"] == true;
    if unschedulable {
        format!("{status},SchedulingDisabled")
    } else {
        status.to_owned()
    }
}

fn node_roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object();
    let roles: BTreeSet<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| text(value)),
        })
        .filter(|role| !role.is_empty())
        .collect();
    joined(roles.into_iter())
}

pub(super) fn events() -> Vec<Column> {
    let source: Cell = |o, _| {
        let component = match text(&o["source"]["component"]) {
            "" => text(&o["reportingComponent"]),
            component => component,
        };
        let parts = [component, text(&o["source"]["host"])];
        parts
            .iter()
            .filter(|p| !p.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join(", ")
            .into()
    };
    let columns: [(&str, i32, Cell); 10] = [
        ("Last Seen", 0, |o, now| last_seen(o, now).into()),
        ("Type", 0, |o, _| o["type"].clone()),
        ("Reason", 0, |o, _| o["reason"].clone()),
        ("Object", 0, |o, _| involved(&o["involvedObject"]).into()),
        ("Subobject", 1, |o, _| text(&o["involvedObject"]["fieldPath"]).into()),
        ("Source", 1, source),
        ("Message", 0, |o, _| text(&o["message"]).trim().into()),
        ("First Seen", 1, |o, now| first_seen(o, now).into()),
        ("Count", 1, |o, _| {
            let series = o["series"]["count"].as_i64();
            series
                .or(o["count"].as_i64())
                .filter(|count| *count > 0)
                .unwrap_or(1)
                .into()
        }),
        ("Name", 1, |o, _| o["metadata"]["name"].clone()),
    ];
    columns
        .into_iter()
        .map(|(name, wide, cell)| Column::computed(name, wide, cell))
        .collect()
}

fn involved(object: &Value) -> String {
    let kind = text(&object["kind"]).to_lowercase();
    match text(&object["name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn first_seen(event: &Value, now: Timestamp) -> String {
    let first = if event["firstTimestamp"].is_null() {
        &event["eventTime"]
    } else {
        &event["firstTimestamp"]
    };
    age_of(first, now)
}

fn last_seen(event: &Value, now: Timestamp) -> String {
    let times = [&event["series"]["lastObservedTime"], &event["lastTimestamp"]];
    match times.into_iter().find(|t| !t.is_null()) {
        Some(time) => age_of(time, now),
        None => first_seen(event, now),
    }
}

pub(super) fn services() -> Vec<Column> {
    with_age(
        &[
            ("Type", 0, |o, _| o["spec"]["type"].clone()),
            ("Cluster-IP", 0, |o, _| or_none(&o["spec"]["clusterIP"])),
            ("External-IP", 0, |o, _| external_ips(o).into()),
            ("Port(s)", 0, |o, _| service_ports(o).into()),
            ("Selector", 1, |o, _| selector(&o["spec"]["selector"]).into()),
        ],
        4,
    )
}

fn external_ips(service: &Value) -> String {
    let spec = &service["spec"];
    match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            let ingress = items(&service["status"]["loadBalancer"]["ingress"]).map(|i| match text(&i["ip"]) {
                "" => text(&i["hostname"]),
                ip => ip,
            });
            match joined(ingress.chain(items(&spec["externalIPs"]).map(text))) {
                none if none == NONE => "<pending>".to_owned(),
                some => some,
            }
        }
        _ => joined(items(&spec["externalIPs"]).map(text)),
    }
}

fn service_ports(service: &Value) -> String {
    let ports: Vec<String> = items(&service["spec"]["ports"])
        .map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_i64().filter(|p| *p > 0) {
                Some(node) => format!("{}:{node}/{protocol}", port["port"]),
                None => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    joined(ports.iter().map(String::as_str))
}

fn selector(labels: &Value) -> String {
    let pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", text(v)))
        .collect();
    joined(pairs.iter().map(String::as_str))
}

pub(super) fn endpoints() -> Vec<Column> {
    with_age(&[("Endpoints", 0, |o, _| endpoint_list(o).into())], 1)
}

fn endpoint_list(endpoints: &Value) -> String {
    let mut all = Vec::new();
    for subset in items(&endpoints["subsets"]) {
        for address in items(&subset["addresses"]) {
            let ip = text(&address["ip"]);
            let host = if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            };
            let ports: Vec<&Value> = items(&subset["ports"]).collect();
            if ports.is_empty() {
                all.push(host.clone());
            }
            all.extend(ports.iter().map(|p| format!("{host}:{}", p["port"])));
        }
    }
    let more = all.len().saturating_sub(3);
    let shown = joined(all.iter().take(3).map(String::as_str));
    if more > 0 {
        format!("{shown} + {more} more...")
    } else {
        shown
    }
}

fn access_modes(modes: &Value) -> String {
    let short = items(modes).map(|mode| match text(mode) {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    });
    short.collect::<Vec<_>>().join(",")
}

fn or_unset(value: &Value) -> Value {
    if value.is_null() { UNSET.into() } else { value.clone() }
}

pub(super) fn claims() -> Vec<Column> {
    let status: Cell = |o, _| {
        if o["metadata"]["deletionTimestamp"].is_null() {
            o["status"]["phase"].clone()
        } else {
            "Terminating".into()
        }
    };
    with_age(
        &[
            ("Status", 0, status),
            ("Volume", 0, |o, _| text(&o["spec"]["volumeName"]).into()),
            ("Capacity", 0, |o, _| text(&o["status"]["capacity"]["storage"]).into()),
            ("Access Modes", 0, |o, _| {
                access_modes(&o["status"]["accessModes"]).into()
            }),
            ("StorageClass", 0, |o, _| text(&o["spec"]["storageClassName"]).into()),
            ("VolumeAttributesClass", 0, |o, _| {
                or_unset(&o["spec"]["volumeAttributesClassName"])
            }),
            ("VolumeMode", 1, |o, _| or_unset(&o["spec"]["volumeMode"])),
        ],
        6,
    )
}

pub(super) fn volumes() -> Vec<Column> {
    let claim: Cell = |o, _| {
        let claim = &o["spec"]["claimRef"];
        if claim.is_null() {
            "".into()
        } else {
            format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])).into()
        }
    };
    with_age(
        &[
            ("Capacity", 0, |o, _| text(&o["spec"]["capacity"]["storage"]).into()),
            ("Access Modes", 0, |o, _| access_modes(&o["spec"]["accessModes"]).into()),
            ("Reclaim Policy", 0, |o, _| {
                o["spec"]["persistentVolumeReclaimPolicy"].clone()
            }),
            ("Status", 0, |o, _| {
                let terminating = !o["metadata"]["deletionTimestamp"].is_null();
                if terminating {
                    "Terminating".into()
                } else {
                    o["status"]["phase"].clone()
                }
            }),
            ("Claim", 0, claim),
            ("StorageClass", 0, |o, _| text(&o["spec"]["storageClassName"]).into()),
            ("VolumeAttributesClass", 0, |o, _| {
                or_unset(&o["spec"]["volumeAttributesClassName"])
            }),
            ("Reason", 0, |o, _| text(&o["status"]["reason"]).into()),
            ("VolumeMode", 1, |o, _| or_unset(&o["spec"]["volumeMode"])),
        ],
        8,
    )
}

pub(super) fn quotas() -> Vec<Column> {
    fn usage(quota: &Value, limits: bool) -> String {
        let hard = quota["status"]["hard"]
            .as_object()
            .or(quota["spec"]["hard"].as_object());
        let used = &quota["status"]["used"];
        let pairs = hard
            .into_iter()
            .flatten()
            .filter(|(name, _)| name.starts_with("limits.") == limits);
        let shown = |name: &str, hard: &Value| format!("{name}: {}/{}", used[name].as_str().unwrap_or("0"), text(hard));
        pairs
            .map(|(name, hard)| shown(name, hard))
            .collect::<Vec<_>>()
            .join(", ")
    }
    with_age(
        &[
            ("Request", 0, |o, _| usage(o, false).into()),
            ("Limit", 0, |o, _| usage(o, true).into()),
        ],
        2,
    )
}

pub(super) fn controller_revisions() -> Vec<Column> {
    let controller: Cell = |o, _| {
        let owner = items(&o["metadata"]["ownerReferences"]).find(|r| r["controller"] == true);
        owner.map_or_else(
            || NONE.into(),
            |owner| {
                let group = text(&owner["apiVersion"])
                    .rsplit_once('/')
                    .map(|(group, _)| format!(".{group}"));
                let kind = text(&owner["kind"]).to_lowercase();
                format!("{kind}{}/{}", group.unwrap_or_default(), text(&owner["name"])).into()
            },
        )
    };
    with_age(
        &[
            ("Controller", 0, controller),
            ("Revision", 0, |o, _| o["revision"].clone()),
        ],
        2,
    )
}

pub(super) fn leases() -> Vec<Column> {
    with_age(&[("Holder", 0, |o, _| text(&o["spec"]["holderIdentity"]).into())], 1)
}

pub(super) fn role_bindings() -> Vec<Column> {
    fn subjects(binding: &Value, kind: &str) -> String {
        let named = items(&binding["subjects"])
            .filter(|s| s["kind"] == kind)
            .map(|s| match text(&s["namespace"]) {
                "" => text(&s["name"]).to_owned(),
                namespace => format!("{namespace}/{}", text(&s["name"])),
            });
        named.collect::<Vec<_>>().join(", ")
    }
    with_age(
        &[
            ("Role", 0, |o, _| {
                format!("{}/{}", text(&o["roleRef"]["kind"]), text(&o["roleRef"]["name"])).into()
            }),
            ("Users", 1, |o, _| subjects(o, "User").into()),
            ("Groups", 1, |o, _| subjects(o, "Group").into()),
            ("ServiceAccounts", 1, |o, _| subjects(o, "ServiceAccount").into()),
        ],
        1,
    )
}

pub(super) fn priority_classes() -> Vec<Column> {
    with_age(
        &[
            ("Value", 0, |o, _| o["value"].clone()),
            ("Global-Default", 0, |o, _| (o["globalDefault"] == true).into()),
            ("PreemptionPolicy", 0, |o, _| o["preemptionPolicy"].clone()),
        ],
        2,
    )
}

pub(super) fn disruption_budgets() -> Vec<Column> {
    fn or_na(value: &Value) -> Value {
        match value {
            Value::Null => "N/A".into(),
            Value::String(text) => text.as_str().into(),
            other => other.to_string().into(),
        }
    }
    with_age(
        &[
            ("Min Available", 0, |o, _| or_na(&o["spec"]["minAvailable"])),
            ("Max Unavailable", 0, |o, _| or_na(&o["spec"]["maxUnavailable"])),
            ("Allowed Disruptions", 0, |o, _| {
                o["status"]["disruptionsAllowed"].as_i64().unwrap_or(0).into()
            }),
        ],
        3,
    )
}

pub(super) fn storage_classes() -> Vec<Column> {
    let mut columns = with_age(
        &[
            ("Provisioner", 0, |o, _| o["provisioner"].clone()),
            ("ReclaimPolicy", 0, |o, _| {
                o["reclaimPolicy"].as_str().unwrap_or("Delete").into()
            }),
            ("VolumeBindingMode", 0, |o, _| {
                o["volumeBindingMode"].as_str().unwrap_or("Immediate").into()
            }),
            ("AllowVolumeExpansion", 0, |o, _| {
                (o["allowVolumeExpansion"] == true).into()
            }),
        ],
        4,
    );
    let name: Cell = |o, _| {
        let annotations = &o["metadata"]["annotations"];
        let is_default = annotations["storageclass.kubernetes.io/is-default-class"] == "true";
        format!(
            "{}{}",
            text(&o["metadata"]["name"]),
            if is_default { " (default)" } else { "" }
        )
        .into()
    };
    columns[0] = Column {
        source: crate::table::Source::Computed(name),
        ..name_column()
    };
    columns
}

pub(super) fn webhooks() -> Vec<Column> {
    with_age(&[("Webhooks", 0, |o, _| items(&o["webhooks"]).count().into())], 1)
}
