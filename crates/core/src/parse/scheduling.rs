//! Where the pod may run. The API server would refuse a pod with mistakes in it when it is too late to tell the VMI's author.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{Cx, is_dns_subdomain};
use crate::cause::FieldPath;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
const NODE_OPERATORS: [&str; 6] = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

impl Cx<'_> {
    pub(super) fn node_selector(&mut self, selector: &BTreeMap<String, String>, path: &FieldPath) {
        let path = path.child("nodeSelector");
        for (key, value) in selector {
            self.label_of(key, Some(value), &path.key(key));
        }
    }

    /// A label's name and value.
    fn label_of(&mut self, key: &str, value: Option<&String>, field: &FieldPath) {
        if !is_label_name(key) {
            self.causes
                .invalid(field, format!("\"{key}\" is not the name of a label"));
        }
        if let Some(value) = value.filter(|value| !is_label_value(value)) {
            self.causes
                .invalid(field, format!("\"{value}\" is not the value of a label"));
        }
    }

    pub(super) fn class_names(&mut self, priority: Option<&str>, scheduler: Option<&str>, path: &FieldPath) {
        for (name, value) in [("priorityClassName", priority), ("schedulerName", scheduler)] {
            if let Some(value) = value.filter(|v| !v.is_empty()) {
                self.object_name(value, &path.child(name));
            }
        }
    }

    pub(super) fn tolerations(&mut self, tolerations: &[Toleration], path: &FieldPath) {
        for (i, toleration) in tolerations.iter().enumerate() {
            let path = path.child("tolerations").index(i);
            let Toleration {
                effect,
                key,
                operator,
                toleration_seconds,
                value,
            } = toleration;
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let (effect, key, operator, value) = (text(effect), text(key), text(operator), text(value));
            if !operator.is_empty() {
                self.causes
                    .one_of(&path.child("operator"), &operator, &["Equal", "Exists"]);
            }
            if !effect.is_empty() {
                self.causes.one_of(&path.child("effect"), &effect, &EFFECTS);
            }
            if key.is_empty() && operator != "Exists" {
                self.causes
                    .invalid(&path.child("operator"), "without a key, the operator is Exists");
            }
            if !key.is_empty() && !is_label_name(&key) {
                self.causes
                    .invalid(&path.child("key"), format!("\"{key}\" is not the name of a taint"));
            }
            if operator == "Exists" && !value.is_empty() {
                self.causes
                    .invalid(&path.child("value"), "with the operator Exists there is no value");
            } else if !is_label_value(&value) {
                self.causes
                    .invalid(&path.child("value"), format!("\"{value}\" is not the value of a taint"));
            }
            if toleration_seconds.is_some() && effect != "NoExecute" {
                self.causes.invalid(
                    &path.child("effect"),
                    "tolerationSeconds is for the effect NoExecute only",
                );
            }
        }
    }

    pub(super) fn affinity(&mut self, affinity: Option<&Affinity>, path: &FieldPath) {
        let Some(Affinity {
            node_affinity,
            pod_affinity,
            pod_anti_affinity,
        }) = affinity
        else {
            return;
        };
        let path = path.child("affinity");
        if let Some(nodes) = node_affinity {
            self.node_affinity(nodes, &path.child("nodeAffinity"));
        }
        if let Some(pods) = pod_affinity {
            let required = pods.required_during_scheduling_ignored_during_execution.as_deref();
            let preferred = pods.preferred_during_scheduling_ignored_during_execution.as_deref();
            self.pod_terms(required, preferred, &path.child("podAffinity"));
        }
        if let Some(pods) = pod_anti_affinity {
            let required = pods.required_during_scheduling_ignored_during_execution.as_deref();
            let preferred = pods.preferred_during_scheduling_ignored_during_execution.as_deref();
            self.pod_terms(required, preferred, &path.child("podAntiAffinity"));
        }
    }

    fn node_affinity(&mut self, nodes: &NodeAffinity, path: &FieldPath) {
        if let Some(required) = &nodes.required_during_scheduling_ignored_during_execution {
            let path = path.child("requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
            if required.node_selector_terms.is_empty() {
                self.causes.required(&path, "at least one term is needed");
            }
            for (i, term) in required.node_selector_terms.iter().enumerate() {
                self.node_term(term, &path.index(i));
            }
        }
        let preferred = nodes
            .preferred_during_scheduling_ignored_during_execution
            .iter()
            .flatten();
        let path = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in preferred.enumerate() {
            let path = path.index(i);
            self.weight(term.weight, &path);
            self.node_term(&term.preference, &path.child("preference"));
        }
    }

    fn node_term(&mut self, term: &NodeSelectorTerm, path: &FieldPath) {
        for (name, list) in [
            ("matchExpressions", &term.match_expressions),
            ("matchFields", &term.match_fields),
        ] {
            for (i, requirement) in list.iter().flatten().enumerate() {
                let path = path.child(name).index(i);
                let NodeSelectorRequirement { key, operator, values } = requirement;
                let values = values.as_deref().unwrap_or_default();
                if !is_label_name(key) {
                    self.causes
                        .invalid(&path.child("key"), format!("\"{key}\" is not the name of a label"));
                }
                if !self.causes.one_of(&path.child("operator"), operator, &NODE_OPERATORS) {
                    continue;
                }
                let field = path.child("values");
                let numbers = values.len() == 1 && values[0].parse::<i64>().is_ok();
                match operator.as_str() {
                    "In" | "NotIn" if values.is_empty() => {
                        self.causes.required(&field, format!("{operator} needs values"));
                    }
                    "Exists" | "DoesNotExist" if !values.is_empty() => {
                        self.causes.invalid(&field, format!("{operator} has no values"));
                    }
                    "Gt" | "Lt" if !numbers => {
                        self.causes
                            .invalid(&field, format!("{operator} has one value, a number"));
                    }
                    _ => {}
                }
            }
        }
    }

    fn weight(&mut self, weight: i32, path: &FieldPath) {
        if !(1..=100).contains(&weight) {
            self.causes
                .invalid(&path.child("weight"), format!("{weight} is not between 1 and 100"));
        }
    }

    fn pod_terms(
        &mut self,
        required: Option<&[PodAffinityTerm]>,
        preferred: Option<&[WeightedPodAffinityTerm]>,
        path: &FieldPath,
    ) {
        let field = path.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in required.iter().copied().flatten().enumerate() {
            self.pod_term(term, &field.index(i));
        }
        let field = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in preferred.iter().copied().flatten().enumerate() {
            let path = field.index(i);
            self.weight(term.weight, &path);
            self.pod_term(&term.pod_affinity_term, &path.child("podAffinityTerm"));
        }
    }

    fn pod_term(&mut self, term: &PodAffinityTerm, path: &FieldPath) {
        if term.topology_key.is_empty() {
            self.causes
                .required(&path.child("topologyKey"), "a label of nodes is needed");
        }
        self.label_selector(term.label_selector.as_ref(), &path.child("labelSelector"));
    }

    fn label_selector(&mut self, selector: Option<&LabelSelector>, path: &FieldPath) {
        let Some(selector) = selector else { return };
        for (key, value) in selector.match_labels.iter().flatten() {
            self.label_of(key, Some(value), &path.child("matchLabels").key(key));
        }
        for (i, requirement) in selector.match_expressions.iter().flatten().enumerate() {
            let path = path.child("matchExpressions").index(i);
            self.label_of(&requirement.key, None, &path.child("key"));
            let field = path.child("operator");
            if !self.causes.one_of(&field, &requirement.operator, &OPERATORS) {
                continue;
            }
            let listing = matches!(requirement.operator.as_str(), "In" | "NotIn");
            let given = requirement.values.as_ref().is_some_and(|values| !values.is_empty());
            let operator = &requirement.operator;
            if listing && !given {
                self.causes
                    .required(&path.child("values"), format!("{operator} needs values"));
            } else if !listing && given {
                self.causes
                    .invalid(&path.child("values"), format!("{operator} has no values"));
            }
        }
    }

    pub(super) fn topology_spread(&mut self, constraints: &[TopologySpreadConstraint], path: &FieldPath) {
        for (i, constraint) in constraints.iter().enumerate() {
            let path = path.child("topologySpreadConstraints").index(i);
            if constraint.max_skew < 1 {
                let message = format!("{} is less than 1", constraint.max_skew);
                self.causes.invalid(&path.child("maxSkew"), message);
            }
            if constraint.topology_key.is_empty() {
                self.causes
                    .required(&path.child("topologyKey"), "a label of nodes is needed");
            }
            let field = path.child("whenUnsatisfiable");
            self.causes.one_of(
                &field,
                &constraint.when_unsatisfiable,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
            if constraint.min_domains.is_some_and(|least| least < 1) {
                self.causes.invalid(&path.child("minDomains"), "is less than 1");
            }
            self.label_selector(constraint.label_selector.as_ref(), &path.child("labelSelector"));
        }
    }
}

/// `prefix/name`: an optional DNS subdomain, and at most 63 of `[A-Za-z0-9_.-]`, alphanumeric at both ends.
fn is_label_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && !name.is_empty() && is_label_value(name),
        None => !text.is_empty() && is_label_value(text),
    }
}

/// Nothing, or at most 63 of `[A-Za-z0-9_.-]`, alphanumeric at both ends.
fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let outer = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && outer(bytes.first())
        && outer(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for (text, name, value) in [
            ("", false, true),
            ("a", true, true),
            ("A_b.c-1", true, true),
            ("-a", false, false),
            ("kubernetes.io/arch", true, false),
            ("kubernetes.io/", false, false),
            ("/a", false, false),
            ("Upper.io/a", false, false),
            ("a b", false, false),
        ] {
            assert_eq!((is_label_name(text), is_label_value(text)), (name, value), "{text}");
        }
        assert!(!is_label_value(&"a".repeat(64)));
    }
}
