//! Accounts, roles and their bindings.

use serde_json::{Value, json};

use super::access::{self, Rule};
use super::{Draft, Stage};
use crate::operator::Component;
use crate::operator::inputs::Inputs;

/// virt-operator's service account.
pub const OPERATOR_ACCOUNT: &str = "kubevirt-operator";
/// Priority of our own processes; it comes with the operator.
pub const PRIORITY_CLASS: &str = "kubevirt-cluster-critical";

/// The service account of a component.
#[must_use]
pub fn account(component: Component) -> &'static str {
    match component {
        Component::Api => "kubevirt-apiserver",
        Component::Controller => "kubevirt-controller",
        Component::Handler => "kubevirt-handler",
    }
}

fn cluster_rules(component: Component) -> &'static [Rule] {
    match component {
        Component::Api => access::API,
        Component::Controller => access::CONTROLLER,
        Component::Handler => access::HANDLER,
    }
}

fn namespace_rules(component: Component) -> &'static [Rule] {
    match component {
        Component::Controller => access::CONTROLLER_NAMESPACE,
        Component::Api | Component::Handler => &[],
    }
}

pub fn render(inputs: &Inputs) -> Vec<Draft> {
    let mut all = Vec::new();
    for component in Component::ALL {
        component_access(inputs, component, &mut all);
    }
    all.extend(users_roles(inputs));
    all
}

fn component_access(inputs: &Inputs, component: Component, all: &mut Vec<Draft>) {
    let account = account(component);
    let labelled = json!({"name": account, "labels": {"kubevirt.io": ""}});
    all.push(Draft::base("ServiceAccount", json!({"metadata": labelled})));
    let rules = access::rules(cluster_rules(component));
    all.push(Draft::base(
        "ClusterRole",
        json!({"metadata": labelled, "rules": rules}),
    ));
    let bound = binding("ClusterRole", account, inputs, component);
    all.push(Draft::base("ClusterRoleBinding", named(bound, account)));
    let rules = namespace_rules(component);
    if !rules.is_empty() {
        let rules = access::rules(rules);
        all.push(Draft::base("Role", json!({"metadata": labelled, "rules": rules})));
        let bound = binding("Role", account, inputs, component);
        all.push(Draft::base("RoleBinding", named(bound, account)));
    }
}

fn binding(kind: &str, role: &str, inputs: &Inputs, component: Component) -> Value {
    json!({
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account(component), "namespace": inputs.namespace}],
    })
}

fn named(mut body: Value, name: &str) -> Value {
    body["metadata"] = json!({"name": name, "labels": {"kubevirt.io": ""}});
    body
}

fn users_roles(inputs: &Inputs) -> Vec<Draft> {
    let roles = [
        ("kubevirt.io:admin", access::ADMIN, Some("admin")),
        ("kubevirt.io:edit", access::EDIT, Some("edit")),
        ("kubevirt.io:view", access::VIEW, Some("view")),
        ("kubevirt.io:migrate", access::MIGRATE, None),
        ("kubevirt.io:default", access::DEFAULT, None),
    ];
    let mut all = Vec::new();
    for (name, rules, aggregated) in roles {
        let mut body = named(json!({"rules": access::rules(rules)}), name);
        if let Some(role) = aggregated.filter(|_| inputs.aggregate_roles) {
            let label = format!("rbac.authorization.k8s.io/aggregate-to-{role}");
            body["metadata"]["labels"][label] = "true".into();
        }
        all.push(Draft::new("ClusterRole", Stage::Base, body));
    }
    let everybody = json!({
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "kubevirt.io:default"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"}],
    });
    all.push(Draft::base(
        "ClusterRoleBinding",
        named(everybody, "kubevirt.io:default"),
    ));
    all
}
