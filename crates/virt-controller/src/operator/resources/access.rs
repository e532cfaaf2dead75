//! Who may do what: tables of rules, for users' roles and for our own processes.

use serde_json::{Map, Value, json};

use super::kinds::KINDS;

/// A rule of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    names: &'static [&'static str],
}

const fn rule(
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Rule {
    Rule {
        groups,
        resources,
        verbs,
        names: &[],
    }
}

/// Only for objects of these names.
const fn only(names: &'static [&'static str], rule: Rule) -> Rule {
    Rule { names, ..rule }
}

impl Rule {
    /// As in a role.
    #[must_use]
    pub fn to_json(self) -> Value {
        let mut rule = Map::new();
        rule.insert("apiGroups".to_owned(), json!(self.groups));
        rule.insert("resources".to_owned(), json!(self.resources));
        if !self.names.is_empty() {
            rule.insert("resourceNames".to_owned(), json!(self.names));
        }
        rule.insert("verbs".to_owned(), json!(self.verbs));
        rule.into()
    }
}

/// Rules as in a role.
pub fn rules(rules: &[Rule]) -> Value {
    rules.iter().map(|rule| rule.to_json()).collect()
}

const KUBEVIRT: &[&str] = &["kubevirt.io"];
const SUBRESOURCES: &[&str] = &["subresources.kubevirt.io"];
const READ: &[&str] = &["get", "list", "watch"];
const GET: &[&str] = &["get"];
const UPDATE: &[&str] = &["update"];
const WORKLOADS: &[&str] = &[
    "virtualmachines",
    "virtualmachineinstances",
    "virtualmachineinstancepresets",
    "virtualmachineinstancereplicasets",
];
const STREAMS: &[&str] = &[
    "virtualmachineinstances/console",
    "virtualmachineinstances/vnc",
    "virtualmachineinstances/vnc/screenshot",
    "virtualmachineinstances/portforward",
    "virtualmachineinstances/usbredir",
    "virtualmachineinstances/vsock",
    "virtualmachines/portforward",
];
const GUEST_INFO: &[&str] = &[
    "virtualmachineinstances/guestosinfo",
    "virtualmachineinstances/filesystemlist",
    "virtualmachineinstances/userlist",
    "virtualmachineinstances/objectgraph",
    // Of a longer path the API server asks for its first segment only.
    "virtualmachineinstances/sev",
    "virtualmachineinstances/sev/fetchcertchain",
    "virtualmachineinstances/sev/querylaunchmeasurement",
    "virtualmachines/expand-spec",
    "virtualmachines/objectgraph",
];
const ACTIONS: &[&str] = &[
    "virtualmachineinstances/pause",
    "virtualmachineinstances/unpause",
    "virtualmachineinstances/addvolume",
    "virtualmachineinstances/removevolume",
    "virtualmachineinstances/freeze",
    "virtualmachineinstances/unfreeze",
    "virtualmachineinstances/softreboot",
    "virtualmachineinstances/reset",
    "virtualmachineinstances/sev",
    "virtualmachineinstances/sev/setupsession",
    "virtualmachineinstances/sev/injectlaunchsecret",
    "virtualmachines/start",
    "virtualmachines/stop",
    "virtualmachines/restart",
    "virtualmachines/addvolume",
    "virtualmachines/removevolume",
    "virtualmachines/memorydump",
    "virtualmachines/removememorydump",
];
const MIGRATIONS: &[&str] = &["virtualmachineinstancemigrations"];
const EXPAND: Rule = rule(SUBRESOURCES, &["expand-vm-spec"], UPDATE);

/// `kubevirt.io:view`.
pub const VIEW: &[Rule] = &[
    rule(SUBRESOURCES, GUEST_INFO, GET),
    EXPAND,
    rule(KUBEVIRT, WORKLOADS, READ),
    rule(KUBEVIRT, MIGRATIONS, READ),
];

/// `kubevirt.io:edit`.
pub const EDIT: &[Rule] = &[
    rule(SUBRESOURCES, STREAMS, GET),
    rule(SUBRESOURCES, GUEST_INFO, GET),
    rule(SUBRESOURCES, ACTIONS, UPDATE),
    EXPAND,
    rule(
        KUBEVIRT,
        WORKLOADS,
        &["get", "list", "watch", "create", "update", "patch", "delete"],
    ),
    rule(KUBEVIRT, MIGRATIONS, READ),
    rule(KUBEVIRT, &["kubevirts"], &["get", "list"]),
];

/// `kubevirt.io:admin`.
pub const ADMIN: &[Rule] = &[
    rule(SUBRESOURCES, STREAMS, GET),
    rule(SUBRESOURCES, GUEST_INFO, GET),
    rule(SUBRESOURCES, ACTIONS, UPDATE),
    EXPAND,
    rule(KUBEVIRT, WORKLOADS, ALL),
    rule(KUBEVIRT, MIGRATIONS, READ),
    rule(KUBEVIRT, &["kubevirts"], &["get", "list"]),
];

/// `kubevirt.io:migrate`.
pub const MIGRATE: &[Rule] = &[
    rule(
        SUBRESOURCES,
        &[
            "virtualmachines/migrate",
            "virtualmachines/evacuate",
            "virtualmachines/evacuate/cancel",
            "virtualmachineinstances/evacuate",
            "virtualmachineinstances/evacuate/cancel",
        ],
        UPDATE,
    ),
    rule(KUBEVIRT, MIGRATIONS, ALL),
];

/// `kubevirt.io:default`, for everybody who is logged in.
pub const DEFAULT: &[Rule] = &[rule(SUBRESOURCES, &["version", "guestfs"], &["get", "list"])];

const ALL: &[&str] = &[
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];
const OWN_KINDS: &[&str] = &[
    "virtualmachines",
    "virtualmachineinstances",
    "virtualmachineinstancemigrations",
    "virtualmachineinstancepresets",
    "virtualmachineinstancereplicasets",
];
const EVENTS: Rule = rule(&["", "events.k8s.io"], &["events"], &["create", "patch"]);
const READ_CONFIGURATION: Rule = rule(KUBEVIRT, &["kubevirts"], READ);

/// virt-api: it changes VMs and VMIs where a user asked for an action, and asks whether the user may.
pub const API: &[Rule] = &[
    READ_CONFIGURATION,
    rule(KUBEVIRT, OWN_KINDS, READ),
    rule(
        KUBEVIRT,
        &["virtualmachines", "virtualmachines/status"],
        &["patch", "update"],
    ),
    rule(
        KUBEVIRT,
        &["virtualmachineinstances", "virtualmachineinstances/status"],
        &["delete", "patch", "update"],
    ),
    rule(KUBEVIRT, MIGRATIONS, &["create", "delete", "patch"]),
    rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
    // Whose certificate the API server shows when it passes on a user's request.
    only(
        &["extension-apiserver-authentication"],
        rule(&[""], &["configmaps"], READ),
    ),
    rule(&[""], &["pods"], READ),
    rule(&[""], &["nodes", "namespaces", "persistentvolumeclaims"], READ),
    EVENTS,
];

/// virt-controller, in the whole cluster.
pub const CONTROLLER: &[Rule] = &[
    READ_CONFIGURATION,
    rule(KUBEVIRT, &["kubevirts/status"], &["patch", "update"]),
    rule(
        KUBEVIRT,
        OWN_KINDS,
        &["get", "list", "watch", "create", "update", "patch", "delete"],
    ),
    rule(
        KUBEVIRT,
        &[
            "virtualmachines/status",
            "virtualmachines/finalizers",
            "virtualmachineinstances/status",
            "virtualmachineinstances/finalizers",
            "virtualmachineinstancemigrations/status",
            "virtualmachineinstancemigrations/finalizers",
            "virtualmachineinstancereplicasets/status",
            "virtualmachineinstancereplicasets/scale",
            "virtualmachineinstancereplicasets/finalizers",
        ],
        &["get", "patch", "update"],
    ),
    rule(
        &[""],
        &["pods"],
        &["get", "list", "watch", "create", "patch", "update", "delete"],
    ),
    rule(&[""], &["pods/status"], &["patch", "update"]),
    rule(&[""], &["pods/finalizers"], UPDATE),
    rule(&[""], &["pods/eviction"], &["create"]),
    rule(
        &[""],
        &["persistentvolumeclaims"],
        &["get", "list", "watch", "create", "patch", "update", "delete"],
    ),
    rule(&[""], &["nodes"], &["get", "list", "watch", "patch"]),
    rule(
        &[""],
        &["namespaces", "persistentvolumes", "resourcequotas", "limitranges"],
        READ,
    ),
    rule(
        &["apps"],
        &["controllerrevisions"],
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    rule(&["storage.k8s.io"], &["storageclasses"], READ),
    // Where the devices are that VMIs were given by resource claims.
    rule(&["resource.k8s.io"], &["resourceclaims"], &["get"]),
    rule(&["resource.k8s.io"], &["resourceslices"], &["list"]),
    rule(&["policy"], &["poddisruptionbudgets"], READ),
    rule(
        &["cdi.kubevirt.io"],
        &["datavolumes"],
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    rule(&["cdi.kubevirt.io"], &["datasources", "storageprofiles"], READ),
    rule(&["k8s.cni.cncf.io"], &["network-attachment-definitions"], READ),
    EVENTS,
];

/// virt-handler: which objects of these kinds it may change, an admission policy narrows to those of its node.
pub const HANDLER: &[Rule] = &[
    READ_CONFIGURATION,
    rule(KUBEVIRT, &["virtualmachineinstances"], READ),
    rule(KUBEVIRT, &["virtualmachineinstances/status"], &["patch", "update"]),
    rule(&[""], &["nodes"], &["get", "patch"]),
    rule(&[""], &["pods"], &["list", "watch"]),
    EVENTS,
];

/// virt-controller, in its own namespace.
pub const CONTROLLER_NAMESPACE: &[Rule] = &[
    rule(&["coordination.k8s.io"], &["leases"], &["create", "list", "watch"]),
    only(
        &["virt-controller"],
        rule(
            &["coordination.k8s.io"],
            &["leases"],
            &["get", "update", "patch", "delete"],
        ),
    ),
];

/// virt-operator beyond what it hands on to the roles that it makes, in the whole cluster.
const OPERATOR: &[Rule] = &[
    rule(KUBEVIRT, &["kubevirts"], &["get", "list", "watch", "patch", "update"]),
    rule(
        KUBEVIRT,
        &["kubevirts/status", "kubevirts/finalizers"],
        &["patch", "update"],
    ),
    rule(
        KUBEVIRT,
        &["virtualmachines", "virtualmachineinstances"],
        &["delete", "deletecollection"],
    ),
    rule(&["cdi.kubevirt.io"], &["cdis"], &["get", "list", "watch"]),
    rule(&["cdi.kubevirt.io"], &["cdis/status"], &["patch"]),
    rule(&[""], &["nodes"], &["get", "list", "watch", "patch"]),
];

const OPERATOR_NAMESPACE: &[Rule] = &[rule(
    &["coordination.k8s.io"],
    &["leases"],
    &["get", "list", "watch", "create", "update", "patch", "delete"],
)];

/// What the operator may do, in the whole cluster and in its namespace. It holds all that it grants, as nobody can grant
/// what he does not have.
#[must_use]
pub fn operator_rules() -> (Value, Value) {
    let mut wide: Vec<Value> = OPERATOR.iter().map(|r| r.to_json()).collect();
    let mut narrow: Vec<Value> = OPERATOR_NAMESPACE.iter().map(|r| r.to_json()).collect();
    for kind in &KINDS {
        let rule = json!({
            "apiGroups": [kind.group], "resources": [kind.plural],
            "verbs": ["get", "list", "watch", "create", "patch", "delete"],
        });
        // ServiceMonitors go to the namespace of the monitoring.
        let rules = if kind.namespaced && !kind.optional {
            &mut narrow
        } else {
            &mut wide
        };
        rules.push(rule);
    }
    let users = [VIEW, EDIT, ADMIN, MIGRATE, DEFAULT];
    let processes = [API, CONTROLLER, HANDLER];
    for granted in users.into_iter().chain(processes).flatten() {
        let granted = granted.to_json();
        if !wide.contains(&granted) {
            wide.push(granted);
        }
    }
    for granted in CONTROLLER_NAMESPACE {
        narrow.push(granted.to_json());
    }
    (wide.into(), narrow.into())
}
