//! What stands between a request and the API server's storage: webhooks, the aggregated API, and the policies that hold
//! virt-handler to its own node.

use serde_json::{Value, json};

use super::roles::account;
use super::services::{API_SERVICE, OPERATOR_SERVICE};
use super::{Draft, OPERATOR_ACCOUNT, ca_bundle, list};
use crate::operator::Component;
use crate::operator::inputs::Inputs;

/// A webhook of virt-api.
struct Hook {
    name: &'static str,
    path: &'static str,
    operations: &'static [&'static str],
    resource: &'static str,
    calls: Calls,
}

/// Whose requests a webhook sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Calls {
    /// Everybody's: what it adds, nobody else adds.
    All,
    /// Only those that do not come from our own processes.
    Users,
    /// Evictions of launcher pods.
    Evictions,
}

const CREATE: &[&str] = &["CREATE"];
const UPDATE: &[&str] = &["UPDATE"];
const BOTH: &[&str] = &["CREATE", "UPDATE"];

const fn hook(
    name: &'static str,
    path: &'static str,
    operations: &'static [&'static str],
    resource: &'static str,
    calls: Calls,
) -> Hook {
    Hook {
        name,
        path,
        operations,
        resource,
        calls,
    }
}

const MUTATING: &[Hook] = &[
    hook(
        "virtualmachines-mutator.kubevirt.io",
        "/virtualmachines-mutate",
        BOTH,
        "virtualmachines",
        Calls::Users,
    ),
    hook(
        "virtualmachineinstances-mutator.kubevirt.io",
        "/virtualmachineinstances-mutate",
        CREATE,
        "virtualmachineinstances",
        Calls::All,
    ),
    hook(
        "migrations-mutator.kubevirt.io",
        "/migration-mutate-create",
        CREATE,
        "virtualmachineinstancemigrations",
        Calls::All,
    ),
];

const VALIDATING: &[Hook] = &[
    hook(
        "virtualmachine-validator.kubevirt.io",
        "/virtualmachines-validate",
        BOTH,
        "virtualmachines",
        Calls::Users,
    ),
    hook(
        "virtualmachineinstances-create-validator.kubevirt.io",
        "/virtualmachineinstances-validate-create",
        CREATE,
        "virtualmachineinstances",
        Calls::Users,
    ),
    hook(
        "virtualmachineinstances-update-validator.kubevirt.io",
        "/virtualmachineinstances-validate-update",
        UPDATE,
        "virtualmachineinstances",
        Calls::Users,
    ),
    hook(
        "virtualmachineinstancepreset-validator.kubevirt.io",
        "/vmipreset-validate",
        BOTH,
        "virtualmachineinstancepresets",
        Calls::Users,
    ),
    hook(
        "virtualmachineinstancereplicaset-validator.kubevirt.io",
        "/virtualmachinereplicaset-validate",
        BOTH,
        "virtualmachineinstancereplicasets",
        Calls::Users,
    ),
    hook(
        "migration-create-validator.kubevirt.io",
        "/migration-validate-create",
        CREATE,
        "virtualmachineinstancemigrations",
        Calls::Users,
    ),
    hook(
        "migration-update-validator.kubevirt.io",
        "/migration-validate-update",
        UPDATE,
        "virtualmachineinstancemigrations",
        Calls::Users,
    ),
    hook(
        "virt-launcher-eviction-interceptor.kubevirt.io",
        "/launcher-eviction-validate",
        CREATE,
        "pods/eviction",
        Calls::Evictions,
    ),
];

pub fn render(inputs: &Inputs) -> Vec<Draft> {
    let mut all = vec![
        Draft::base(
            "MutatingWebhookConfiguration",
            configuration(inputs, "virt-api-mutator", MUTATING),
        ),
        Draft::base(
            "ValidatingWebhookConfiguration",
            configuration(inputs, "virt-api-validator", VALIDATING),
        ),
    ];
    if inputs.operator_webhooks {
        all.push(Draft::base("ValidatingWebhookConfiguration", own_webhooks(inputs)));
    }
    for version in ["v1", "v1alpha3"] {
        all.push(Draft::base("APIService", api_service(inputs, version)));
    }
    all.extend(node_restriction(inputs));
    all
}

fn configuration(inputs: &Inputs, name: &str, hooks: &[Hook]) -> Value {
    let hooks: Vec<Value> = hooks.iter().map(|hook| webhook(inputs, hook)).collect();
    json!({
        "metadata": {"name": name, "labels": {"kubevirt.io": name}},
        "webhooks": hooks,
    })
}

fn webhook(inputs: &Inputs, hook: &Hook) -> Value {
    let (group, versions) = match hook.calls {
        Calls::Evictions => ("", list(&["*"])),
        Calls::All | Calls::Users => ("kubevirt.io", list(&["v1", "v1alpha3"])),
    };
    let mut conditions = Vec::new();
    match hook.calls {
        Calls::Users => conditions.push(json!({"name": "not-ours", "expression": not_ours(inputs)})),
        Calls::Evictions => conditions.push(json!({
            "name": "launchers", "expression": "request.name.startsWith('virt-launcher-')",
        })),
        Calls::All => {}
    }
    if hook.operations.contains(&"UPDATE") {
        // Finalizers must come off also when nobody answers any more.
        conditions.push(json!({
            "name": "not-being-deleted", "expression": "!has(object.metadata.deletionTimestamp)",
        }));
    }
    let mut body = json!({
        "name": hook.name,
        "admissionReviewVersions": ["v1"],
        "clientConfig": client(inputs, API_SERVICE, hook.path),
        "failurePolicy": "Fail",
        "matchPolicy": "Equivalent",
        "rules": [{
            "apiGroups": [group], "apiVersions": versions, "operations": hook.operations,
            "resources": [hook.resource], "scope": "Namespaced",
        }],
        "sideEffects": if hook.calls == Calls::Evictions { "NoneOnDryRun" } else { "None" },
        "timeoutSeconds": 10,
    });
    if !conditions.is_empty() {
        body["matchConditions"] = conditions.into();
    }
    body
}

fn client(inputs: &Inputs, service: &str, path: &str) -> Value {
    json!({
        "service": {"name": service, "namespace": inputs.namespace, "path": path, "port": 443},
        "caBundle": ca_bundle(inputs),
    })
}

/// CEL: the request does not come from one of our own processes.
fn not_ours(inputs: &Inputs) -> String {
    let accounts = Component::ALL.map(account).into_iter().chain([OPERATOR_ACCOUNT]);
    let ours: Vec<String> = accounts.map(|account| format!("'{}'", user(inputs, account))).collect();
    format!("!(request.userInfo.username in [{}])", ours.join(", "))
}

fn user(inputs: &Inputs, account: &str) -> String {
    format!("system:serviceaccount:{}:{account}", inputs.namespace)
}

/// The operator's own webhooks, on KubeVirt objects.
fn own_webhooks(inputs: &Inputs) -> Value {
    let hook = |operation: &str| {
        let word = operation.to_lowercase();
        json!({
            "name": format!("kubevirt-{word}-validator.kubevirt.io"),
            "admissionReviewVersions": ["v1"],
            "clientConfig": client(inputs, OPERATOR_SERVICE, &format!("/kubevirt-validate-{word}")),
            "failurePolicy": "Fail",
            "matchPolicy": "Equivalent",
            "matchConditions": [{"name": "not-ours", "expression": not_ours(inputs)}],
            "rules": [{
                "apiGroups": ["kubevirt.io"], "apiVersions": ["v1", "v1alpha3"], "operations": [operation],
                "resources": ["kubevirts"], "scope": "Namespaced",
            }],
            "sideEffects": "None",
            "timeoutSeconds": 10,
        })
    };
    let hooks = ["CREATE", "UPDATE", "DELETE"].map(hook);
    json!({
        "metadata": {"name": "virt-operator-validator", "labels": {"kubevirt.io": "virt-operator-validator"}},
        "webhooks": hooks,
    })
}

fn api_service(inputs: &Inputs, version: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("{version}.subresources.kubevirt.io"),
            "labels": {"kubevirt.io": "virt-api-aggregator"},
        },
        "spec": {
            "group": "subresources.kubevirt.io", "version": version,
            "groupPriorityMinimum": 1000, "versionPriority": 15,
            "service": {"name": API_SERVICE, "namespace": inputs.namespace, "port": 443},
            "caBundle": ca_bundle(inputs),
        },
    })
}

/// How keys of labels and annotations begin that are virt-handler's.
const HANDLER_KEYS: &str = "kubevirt.io/";
/// What is in keys whose domain ends so; a key has no second slash.
const HANDLER_DOMAINS: &str = ".node.kubevirt.io/";

/// The claim of a pod's token that says on which node the pod runs.
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// virt-handler has rights for all nodes and VMIs, as roles know no nodes; this leaves it those of its own.
fn node_restriction(inputs: &Inputs) -> Vec<Draft> {
    let rule = |group: &str, resources: &[&str]| json!([{"apiGroups": [group], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": resources, "scope": "*"}]);
    let kubevirt_only = |field: &str| {
        let (new, old) = (
            format!("object.metadata.{field}"),
            format!("oldObject.metadata.{field}"),
        );
        let untouched = |these: &str, others: &str| {
            format!(
                "(!has({these}) || {these}.all(k, k.startsWith('{HANDLER_KEYS}') || k.contains('{HANDLER_DOMAINS}') || (has({others}) && k in {others} && {others}[k] == {these}[k])))"
            )
        };
        json!({
            "expression": format!("{} && {}", untouched(&new, &old), untouched(&old, &new)),
            "message": format!("virt-handler may change only {field} of KubeVirt"),
        })
    };
    let is_node = |path: &str| {
        let parents = path.match_indices('.').map(|(at, _)| &path[..at]).skip(1);
        let all: Vec<String> = parents.chain([path]).map(|p| format!("has({p})")).collect();
        format!("({} && {path} == variables.node)", all.join(" && "))
    };
    let own_vmi = [
        "oldObject.status.nodeName",
        "oldObject.status.migrationState.targetNode",
        "oldObject.status.migrationState.sourceNode",
    ]
    .map(is_node)
    .join(" || ");
    let nodes = json!([
        {"expression": "object.metadata.name == variables.node", "message": "virt-handler may change only its own node"},
        {"expression": "object.spec == oldObject.spec", "message": "virt-handler may not change the spec of a node"},
        kubevirt_only("labels"),
        kubevirt_only("annotations"),
    ]);
    let vmis = json!([{"expression": own_vmi, "message": "virt-handler may change only VMIs of its own node"}]);
    let policies = [
        ("kubevirt-node-restriction", rule("", &["nodes", "nodes/status"]), nodes),
        (
            "kubevirt-vmi-restriction",
            rule(
                "kubevirt.io",
                &["virtualmachineinstances", "virtualmachineinstances/status"],
            ),
            vmis,
        ),
    ];
    let mut all = Vec::new();
    for (name, rules, validations) in policies {
        let policy = format!("{name}-policy");
        all.push(Draft::base(
            "ValidatingAdmissionPolicy",
            json!({
                "metadata": {"name": policy, "labels": {"kubevirt.io": ""}},
                "spec": {
                    "failurePolicy": "Fail",
                    "matchConstraints": {"resourceRules": rules},
                    "matchConditions": [{
                        "name": "virt-handler",
                        "expression": format!("request.userInfo.username == '{}'", user(inputs, account(Component::Handler))),
                    }],
                    "variables": [{
                        "name": "node",
                        "expression": format!("has(request.userInfo.extra) && '{NODE_CLAIM}' in request.userInfo.extra ? request.userInfo.extra['{NODE_CLAIM}'][0] : ''"),
                    }],
                    "validations": validations,
                },
            }),
        ));
        all.push(Draft::base(
            "ValidatingAdmissionPolicyBinding",
            json!({
                "metadata": {"name": format!("{name}-binding"), "labels": {"kubevirt.io": ""}},
                "spec": {"policyName": policy, "validationActions": ["Deny"]},
            }),
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// What the rendered expressions ask of a key.
    fn is_allowed(key: &str) -> bool {
        key.starts_with(HANDLER_KEYS) || key.contains(HANDLER_DOMAINS)
    }

    /// Domains of the keys that a source names, up to and with the slash.
    fn keys(source: &str) -> Vec<String> {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let texts = code.split('"').skip(1).step_by(2);
        texts
            .filter(|text| text.contains("kubevirt.io/"))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn virt_handler_may_write_its_own_keys_and_no_others() {
        for (key, allowed) in [
            ("kubevirt.io/schedulable", true),
            ("kubevirt.io/heartbeat", true),
            ("cpu-model.node.kubevirt.io/EPYC", true),
            ("ferrovirt.node.kubevirt.io/kvm", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("topology.kubernetes.io/zone", false),
            // The administrator's.
            ("node-labeller.kubevirt.io/skip-node", false),
            ("notkubevirt.io/x", false),
            ("kubevirt.io.example.com/x", false),
            ("x.node.kubevirt.io.example.com/x", false),
            ("x", false),
        ] {
            assert_eq!(is_allowed(key), allowed, "{key}");
        }
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut written = Vec::new();
        for file in fs::read_dir(crates.join("virt-handler/src/node")).unwrap() {
            written.extend(keys(&fs::read_to_string(file.unwrap().path()).unwrap()));
        }
        written.push(ferrovirt_core::names::SCHEDULABLE_LABEL.to_owned());
        assert!(written.len() > 8, "{written:?}");
        let refused: Vec<&String> = written.iter().filter(|key| !is_allowed(key)).collect();
        // It is only read.
        assert_eq!(refused, ["node-labeller.kubevirt.io/skip-node"]);
    }
}
