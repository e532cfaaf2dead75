//! Defaults and validation of pods.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::Rules;
use super::rules::{each, or_set, sub};
use crate::schema::Cause;

pub(super) const RULES: Rules = Rules {
    create,
    default,
    validate,
};

fn create(pod: &mut Value) {
    let class = qos_class(&pod["spec"]);
    let status = sub(pod, "status");
    or_set(status, "phase", "Pending");
    or_set(status, "qosClass", class);
}

/// Guaranteed: every container has limits equal to its requests for cpu and memory; BestEffort: nobody asks for any.
fn qos_class(spec: &Value) -> &'static str {
    let containers = || {
        ["containers", "initContainers"]
            .into_iter()
            .flat_map(|f| spec[f].as_array())
            .flatten()
    };
    let named = |list: &Value, name: &str| list.get(name).is_some_and(|v| v != "0" && v != 0);
    let any = containers().any(|c| {
        ["requests", "limits"]
            .iter()
            .any(|l| ["cpu", "memory"].iter().any(|n| named(&c["resources"][*l], n)))
    });
    let all = containers().all(|c| {
        let (requests, limits) = (&c["resources"]["requests"], &c["resources"]["limits"]);
        ["cpu", "memory"]
            .iter()
            .all(|n| named(limits, n) && requests[*n] == limits[*n])
    });
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn default(pod: &mut Value) {
    let spec = sub(pod, "spec");
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("enableServiceLinks", json!(true)),
        ("securityContext", json!({})),
    ] {
        or_set(spec, field, value);
    }
    each(spec, "containers").for_each(default_container);
    each(spec, "initContainers").for_each(default_container);
    each(spec, "volumes").for_each(default_volume);
}

fn default_container(container: &mut Value) {
    let image = container["image"].as_str().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    for (field, value) in [
        ("imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" })),
        ("terminationMessagePath", json!("/dev/termination-log")),
        ("terminationMessagePolicy", json!("File")),
        ("resources", json!({})),
    ] {
        or_set(container, field, value);
    }
    if let Some(limits) = container["resources"]["limits"].as_object().cloned() {
        let requests = sub(&mut container["resources"], "requests");
        limits
            .into_iter()
            .for_each(|(name, quantity)| or_set(requests, &name, quantity));
    }
    for port in each(container, "ports") {
        or_set(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            or_set(field, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            default_probe(&mut container[probe]);
        }
    }
}

fn default_probe(probe: &mut Value) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        or_set(probe, field, value);
    }
    if probe["httpGet"].is_object() {
        or_set(&mut probe["httpGet"], "path", "/");
        or_set(&mut probe["httpGet"], "scheme", "HTTP");
    }
}

fn default_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|v| v.keys().all(|k| k == "name")) {
        or_set(volume, "emptyDir", Map::new());
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if volume[source].is_object() {
            or_set(&mut volume[source], "defaultMode", 0o644);
        }
    }
    if volume["hostPath"].is_object() {
        or_set(&mut volume["hostPath"], "type", "");
    }
    if volume["image"].is_object() {
        let reference = volume["image"]["reference"].as_str().unwrap_or_default();
        let name = reference.rsplit('/').next().unwrap_or_default();
        let latest = !reference.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest");
        or_set(
            &mut volume["image"],
            "pullPolicy",
            if latest { "Always" } else { "IfNotPresent" },
        );
    }
}

fn validate(pod: &Value, old: Option<&Value>) -> Vec<Cause> {
    if let Some(old) = old {
        return validate_update(&pod["spec"], &old["spec"]);
    }
    let spec = &pod["spec"];
    let mut causes = Vec::new();
    let volumes = volume_names(spec, &mut causes);
    let mut names = HashSet::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let path = format!("spec.{list}[{index}]");
            validate_container(container, &path, &volumes, &mut causes);
            let name = container["name"].as_str().unwrap_or_default();
            if !name.is_empty() && !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), &container["name"]));
            }
        }
    }
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required("spec.containers", ""));
    }
    one_of(spec, "restartPolicy", &["Always", "Never", "OnFailure"], &mut causes);
    one_of(
        spec,
        "dnsPolicy",
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        &mut causes,
    );
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        let detail = "must be greater than or equal to 0";
        let field = "spec.terminationGracePeriodSeconds";
        causes.push(Cause::invalid(field, &spec["terminationGracePeriodSeconds"], detail));
    }
    causes
}

fn one_of(spec: &Value, field: &str, allowed: &[&str], causes: &mut Vec<Cause>) {
    if !allowed.iter().any(|a| spec[field] == *a) {
        causes.push(Cause::unsupported(format!("spec.{field}"), &spec[field], allowed));
    }
}

fn volume_names<'a>(spec: &'a Value, causes: &mut Vec<Cause>) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let name = volume["name"].as_str().unwrap_or_default();
        let path = format!("spec.volumes[{index}]");
        label(&volume["name"], &format!("{path}.name"), causes);
        if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::duplicate(format!("{path}.name"), &volume["name"]));
        }
        if volume.as_object().is_some_and(|v| v.len() > 2) {
            causes.push(Cause::forbidden(path, "may not specify more than 1 volume type"));
        }
    }
    names
}

fn validate_container(container: &Value, path: &str, volumes: &HashSet<&str>, causes: &mut Vec<Cause>) {
    label(&container["name"], &format!("{path}.name"), causes);
    if container["image"].as_str().unwrap_or_default().is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    }
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let name = mount["name"].as_str().unwrap_or_default();
        if !volumes.contains(name) {
            let what = format!("Not found: {name:?}");
            causes.push(Cause::new(
                format!("{path}.volumeMounts[{index}].name"),
                "FieldValueNotFound",
                &what,
                "",
            ));
        }
    }
}

/// Whether `text` is a lower-case RFC 1123 label.
pub(super) fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn label(value: &Value, path: &str, causes: &mut Vec<Cause>) {
    match value.as_str().unwrap_or_default() {
        "" => causes.push(Cause::required(path, "")),
        text if !is_label(text) => {
            let detail = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                          start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                          validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
            causes.push(Cause::invalid(path, value, detail));
        }
        _ => {}
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<Cause> {
    let fixed = |spec: &Value| {
        let mut spec = spec.clone();
        for list in ["containers", "initContainers"] {
            for container in each(&mut spec, list) {
                container["image"] = Value::Null;
            }
        }
        if let Some(map) = spec.as_object_mut() {
            for field in [
                "activeDeadlineSeconds",
                "terminationGracePeriodSeconds",
                "tolerations",
                "schedulingGates",
            ] {
                map.remove(field);
            }
            // Binding sets the node, once.
            if old["nodeName"].as_str().unwrap_or_default().is_empty() {
                map.remove("nodeName");
            }
        }
        spec
    };
    if fixed(new) == fixed(old) {
        return Vec::new();
    }
    let detail = "pod updates may not change fields other than `spec.containers[*].image`,\
                  `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                  existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                  previously negative)";
    vec![Cause::forbidden("spec", detail)]
}
