//! Role-based access: roles and bindings of the store, compiled when they change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::hooks::UserInfo;
use crate::store::{Page, Store};

const GROUP: &str = "rbac.authorization.k8s.io";

/// What somebody wants to do.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    /// `get`, `list` …
    pub verb: &'a str,
    /// Group.
    pub group: &'a str,
    /// `pods`, `pods/log`; empty for paths that are no resources.
    pub resource: &'a str,
    /// Namespace.
    pub namespace: Option<&'a str>,
    /// Name.
    pub name: Option<&'a str>,
    /// Path, if it is no resource.
    pub path: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    /// Of a request to a resource.
    pub fn resource(
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        namespace: Option<&'a str>,
        name: Option<&'a str>,
    ) -> Self {
        Self {
            verb,
            group,
            resource,
            namespace,
            name,
            path: None,
        }
    }
}

/// One rule of a role.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// Groups.
    pub groups: Vec<String>,
    /// Resources.
    pub resources: Vec<String>,
    /// Names; empty is all.
    pub names: Vec<String>,
    /// Paths that are no resources.
    pub paths: Vec<String>,
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let texts = |field: &str| {
            rule[field]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        Self {
            verbs: texts("verbs"),
            groups: texts("apiGroups"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            paths: texts("nonResourceURLs"),
        }
    }

    fn allows(&self, wanted: &Attributes<'_>) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|entry| entry == "*" || entry == value);
        if !has(&self.verbs, wanted.verb) {
            return false;
        }
        if let Some(path) = wanted.path {
            return self
                .paths
                .iter()
                .any(|entry| entry == path || entry.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix)));
        }
        let of_any = wanted
            .resource
            .split_once('/')
            .map(|(_, subresource)| format!("*/{subresource}"));
        has(&self.groups, wanted.group)
            && (has(&self.resources, wanted.resource) || of_any.is_some_and(|any| self.resources.contains(&any)))
            && (self.names.is_empty()
                || wanted
                    .name
                    .is_some_and(|name| self.names.iter().any(|entry| entry == name)))
    }
}

struct Binding {
    /// Empty: everywhere.
    namespace: Option<String>,
    subjects: Vec<Value>,
    rules: Arc<Vec<Rule>>,
}

impl Binding {
    fn names(&self, user: &UserInfo) -> bool {
        self.subjects.iter().any(|subject| match subject["kind"].as_str() {
            Some("User") => subject["name"] == user.username,
            Some("Group") => subject["name"].as_str().is_some_and(|name| user.is_in(name)),
            Some("ServiceAccount") => {
                let text = |field: &str| subject[field].as_str().unwrap_or_default();
                let namespace = if text("namespace").is_empty() {
                    self.namespace.as_deref().unwrap_or_default()
                } else {
                    text("namespace")
                };
                user.username == format!("system:serviceaccount:{namespace}:{}", text("name"))
            }
            _ => false,
        })
    }
}

#[derive(Default)]
struct Policy {
    /// The newest change of roles and bindings that is in here.
    version: Vec<u64>,
    bindings: Vec<Binding>,
}

const KINDS: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

impl Policy {
    fn version(store: &Store) -> Vec<u64> {
        KINDS
            .iter()
            .map(|kind| *store.changes(&format!("{GROUP}/{kind}").into()).borrow())
            .collect()
    }

    fn compile(store: &Store, version: Vec<u64>) -> Self {
        let list = |kind: &str| {
            store
                .list(&format!("{GROUP}/{kind}"), None, None, Page::default())
                .map(|list| list.objects)
                .unwrap_or_default()
        };
        let mut roles: HashMap<String, Arc<Vec<Rule>>> = HashMap::new();
        let mut cluster_roles = Vec::new();
        for kind in ["clusterroles", "roles"] {
            for stored in list(kind) {
                let role = stored.value();
                let rules = role["rules"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(Rule::parse)
                    .collect();
                roles.insert(stored.key.path.to_string(), Arc::new(rules));
                if kind == "clusterroles" {
                    cluster_roles.push((stored.key.path.to_string(), role));
                }
            }
        }
        aggregate(&mut roles, &cluster_roles);
        let mut bindings = Vec::new();
        for kind in ["clusterrolebindings", "rolebindings"] {
            for stored in list(kind) {
                let binding = stored.value();
                let namespace = (kind == "rolebindings").then(|| stored.key.namespace().to_owned());
                let of = if binding["roleRef"]["kind"] == "Role" {
                    namespace.clone().unwrap_or_default()
                } else {
                    String::new()
                };
                let Some(rules) = roles.get(&format!(
                    "{of}/{}",
                    binding["roleRef"]["name"].as_str().unwrap_or_default()
                )) else {
                    continue;
                };
                let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
                bindings.push(Binding {
                    namespace,
                    subjects,
                    rules: rules.clone(),
                });
            }
        }
        Self { version, bindings }
    }

    fn rules_of<'a>(&'a self, user: &'a UserInfo, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Rule> {
        self.bindings
            .iter()
            .filter(move |binding| {
                binding.namespace.as_deref().is_none_or(|of| namespace == Some(of)) && binding.names(user)
            })
            .flat_map(|binding| binding.rules.iter())
    }
}

/// Roles with an `aggregationRule` have the rules of those that it selects.
fn aggregate(roles: &mut HashMap<String, Arc<Vec<Rule>>>, cluster_roles: &[(String, Value)]) {
    for (path, role) in cluster_roles {
        let Some(selectors) = role["aggregationRule"]["clusterRoleSelectors"].as_array() else {
            continue;
        };
        let mut rules = Vec::new();
        for (other, candidate) in cluster_roles.iter().filter(|(other, _)| other != path) {
            let labels = &candidate["metadata"]["labels"];
            let selected = selectors.iter().any(|selector| {
                let wanted = selector["matchLabels"].as_object();
                wanted
                    .is_some_and(|wanted| !wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value))
            });
            if selected && let Some(found) = roles.get(other) {
                rules.extend(found.iter().cloned());
            }
        }
        roles.insert(path.clone(), Arc::new(rules));
    }
}

/// Decides by the roles in the store. Members of `system:masters` may do everything.
#[derive(Default)]
pub struct Authorizer {
    policy: Mutex<Arc<Policy>>,
}

impl Authorizer {
    fn policy(&self, store: &Store) -> Arc<Policy> {
        let version = Policy::version(store);
        let mut policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        if policy.version != version {
            *policy = Arc::new(Policy::compile(store, version));
        }
        policy.clone()
    }

    /// Whether the user may do it.
    pub fn allows(&self, store: &Store, user: &UserInfo, wanted: &Attributes<'_>) -> bool {
        user.is_in("system:masters")
            || self
                .policy(store)
                .rules_of(user, wanted.namespace)
                .any(|rule| rule.allows(wanted))
    }

    /// Everything the user may do in a namespace.
    pub fn rules(&self, store: &Store, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut rules: Vec<Rule> = self.policy(store).rules_of(user, Some(namespace)).cloned().collect();
        if user.is_in("system:masters") {
            let all = || vec!["*".to_owned()];
            rules.push(Rule {
                verbs: all(),
                groups: all(),
                resources: all(),
                ..Rule::default()
            });
            rules.push(Rule {
                verbs: all(),
                paths: all(),
                ..Rule::default()
            });
        }
        rules
    }
}

/// The roles and bindings that every cluster has.
pub fn defaults() -> Vec<(&'static str, &'static str, Value)> {
    let role = |name: &'static str, rules: Value| {
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole",
            "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}, "rules": rules});
        ("clusterroles", name, object)
    };
    let aggregated = |name: &'static str| {
        let label = format!("{GROUP}/aggregate-to-{name}");
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole",
            "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}});
        ("clusterroles", name, object)
    };
    let binding = |name: &'static str, role: &str, group: &str| {
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": group}]});
        ("clusterrolebindings", name, object)
    };
    let all = ["*"];
    let paths = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    vec![
        role(
            "cluster-admin",
            json!([{"apiGroups": all, "resources": all, "verbs": all}, {"nonResourceURLs": all, "verbs": all}]),
        ),
        role(
            "system:discovery",
            json!([{"nonResourceURLs": paths, "verbs": ["get"]}]),
        ),
        role(
            "system:basic-user",
            json!([{"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"], "verbs": ["create"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]}]),
        ),
        aggregated("admin"),
        aggregated("edit"),
        aggregated("view"),
        binding("cluster-admin", "cluster-admin", "system:masters"),
        binding("system:discovery", "system:discovery", "system:authenticated"),
        binding("system:basic-user", "system:basic-user", "system:authenticated"),
    ]
}
