//! Defaults and validation of built-in kinds but pods.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::Rules;
use crate::schema::Cause;

pub(super) fn nothing(_: &mut Value) {}

fn accepts(_: &Value, _: Option<&Value>) -> Vec<Cause> {
    Vec::new()
}

/// Sets a field that is missing.
pub(super) fn or_set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(field).is_none_or(Value::is_null)
    {
        map.insert(field.to_owned(), value.into());
    }
}

/// The object in a field, created if missing.
pub(super) fn sub<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    or_set(object, field, Map::new());
    &mut object[field]
}

/// The elements of a list field; none if it is missing.
pub(super) fn each<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// The cause if a field may not change and did.
pub(super) fn immutable(field: &str, new: &Value, old: &Value) -> Option<Cause> {
    (new != old).then(|| Cause::invalid(field, new, "field is immutable"))
}

pub(super) const NAMESPACE: Rules = Rules {
    create: |namespace| {
        let finalizers = sub(namespace, "spec");
        or_set(finalizers, "finalizers", json!(["kubernetes"]));
        or_set(sub(namespace, "status"), "phase", "Active");
    },
    default: |namespace| {
        let name = namespace["metadata"]["name"].clone();
        if name.is_string() {
            sub(sub(namespace, "metadata"), "labels")["kubernetes.io/metadata.name"] = name;
        }
    },
    validate: accepts,
};

pub(super) const SECRET: Rules = Rules {
    create: nothing,
    default: |secret| {
        or_set(secret, "type", "Opaque");
        let plain = secret.as_object_mut().and_then(|s| s.remove("stringData"));
        if let Some(Value::Object(plain)) = plain {
            let data = sub(secret, "data");
            for (key, value) in plain {
                data[key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
            }
        }
    },
    validate: |secret, old| {
        let mut causes = data_keys(secret, &["data"]);
        if let Some(old) = old {
            causes.extend(immutable("type", &secret["type"], &old["type"]));
            causes.extend(frozen(secret, old, &["data"]));
        }
        let needs = match secret["type"].as_str() {
            Some("kubernetes.io/tls") => &["tls.crt", "tls.key"][..],
            Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
            Some("kubernetes.io/ssh-auth") => &["ssh-privatekey"],
            _ => &[],
        };
        let missing = needs.iter().filter(|key| secret["data"].get(**key).is_none());
        causes.extend(missing.map(|key| Cause::required(format!("data[{key}]"), "")));
        causes
    },
};

pub(super) const CONFIG_MAP: Rules = Rules {
    create: nothing,
    default: nothing,
    validate: |map, old| {
        let mut causes = data_keys(map, &["data", "binaryData"]);
        causes.extend(
            old.into_iter()
                .flat_map(|old| frozen(map, old, &["data", "binaryData"])),
        );
        causes
    },
};

/// Keys become file names, so they may not be paths.
fn data_keys(object: &Value, fields: &[&str]) -> Vec<Cause> {
    let valid = |key: &str| {
        let chars = key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        chars && (1..=253).contains(&key.len()) && key != "." && !key.starts_with("..")
    };
    let mut causes = Vec::new();
    for field in fields {
        for key in object[*field]
            .as_object()
            .into_iter()
            .flat_map(Map::keys)
            .filter(|key| !valid(key))
        {
            let detail = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name', \
                          or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
            causes.push(Cause::invalid(format!("{field}[{key}]"), &json!(key), detail));
        }
    }
    causes
}

/// What `immutable: true` of the stored object forbids.
fn frozen(new: &Value, old: &Value, fields: &[&str]) -> Vec<Cause> {
    if old["immutable"] != true {
        return Vec::new();
    }
    let detail = "field is immutable when `immutable` is set";
    let mut causes = Vec::new();
    if new["immutable"] != true {
        causes.push(Cause::forbidden("immutable", detail));
    }
    causes.extend(
        fields
            .iter()
            .filter(|f| new[**f] != old[**f])
            .map(|f| Cause::forbidden(*f, detail)),
    );
    causes
}

pub(super) const SERVICE: Rules = Rules {
    create: |service| {
        or_set(service, "status", json!({"loadBalancer": {}}));
    },
    default: |service| {
        let spec = sub(service, "spec");
        or_set(spec, "type", "ClusterIP");
        or_set(spec, "sessionAffinity", "None");
        let kind = spec["type"].as_str().unwrap_or_default().to_owned();
        if kind != "ExternalName" {
            or_set(spec, "internalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            or_set(spec, "externalTrafficPolicy", "Cluster");
        }
        for port in each(spec, "ports") {
            or_set(port, "protocol", "TCP");
            let number = port["port"].clone();
            or_set(port, "targetPort", number);
        }
    },
    validate: |service, _| {
        let spec = &service["spec"];
        let mut causes = Vec::new();
        let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        if !types.iter().any(|t| spec["type"] == *t) {
            causes.push(Cause::unsupported("spec.type", &spec["type"], &types));
        }
        let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        if ports.is_empty() && spec["type"] != "ExternalName" && spec["clusterIP"] != "None" {
            causes.push(Cause::required("spec.ports", ""));
        }
        for (index, port) in ports.iter().enumerate() {
            let field = |name: &str| format!("spec.ports[{index}].{name}");
            if !port["port"].as_i64().is_some_and(|p| (1..=65535).contains(&p)) {
                let detail = "must be between 1 and 65535, inclusive";
                causes.push(Cause::invalid(field("port"), &port["port"], detail));
            }
            if ports.len() > 1 && port["name"].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required(field("name"), ""));
            }
            let protocols = ["SCTP", "TCP", "UDP"];
            if !protocols.iter().any(|p| port["protocol"] == *p) {
                causes.push(Cause::unsupported(field("protocol"), &port["protocol"], &protocols));
            }
        }
        causes
    },
};

pub(super) const CLAIM: Rules = Rules {
    create: |claim| or_set(sub(claim, "status"), "phase", "Pending"),
    default: |claim| or_set(sub(claim, "spec"), "volumeMode", "Filesystem"),
    validate: |claim, old| {
        let spec = &claim["spec"];
        let mut causes = Vec::new();
        if spec["accessModes"].as_array().is_none_or(Vec::is_empty) {
            causes.push(Cause::required(
                "spec.accessModes",
                "at least 1 access mode is required",
            ));
        }
        if spec["resources"]["requests"].get("storage").is_none() {
            causes.push(Cause::required("spec.resources[storage]", ""));
        }
        if let Some(old) = old.map(|o| &o["spec"]) {
            let rest = |spec: &Value| {
                let mut spec = spec.clone();
                if let Some(map) = spec.as_object_mut() {
                    // A claim may grow, be bound, and get the default class; all else stays.
                    for name in [
                        "resources",
                        "volumeName",
                        "volumeAttributesClassName",
                        "storageClassName",
                    ] {
                        map.remove(name);
                    }
                }
                spec
            };
            let changed = |name: &str| !old[name].is_null() && old[name] != spec[name];
            if rest(old) != rest(spec) || changed("volumeName") || changed("storageClassName") {
                let detail = "spec is immutable after creation except resources.requests and \
                              volumeAttributesClassName for bound claims";
                causes.push(Cause::forbidden("spec", detail));
            }
        }
        causes
    },
};

pub(super) const VOLUME: Rules = Rules {
    create: |volume| or_set(sub(volume, "status"), "phase", "Pending"),
    default: |volume| {
        let spec = sub(volume, "spec");
        or_set(spec, "volumeMode", "Filesystem");
        or_set(spec, "persistentVolumeReclaimPolicy", "Retain");
    },
    validate: |volume, _| {
        let spec = &volume["spec"];
        let mut causes = Vec::new();
        if spec["accessModes"].as_array().is_none_or(Vec::is_empty) {
            causes.push(Cause::required("spec.accessModes", ""));
        }
        if spec["capacity"].get("storage").is_none() {
            causes.push(Cause::required("spec.capacity", ""));
        }
        causes
    },
};

pub(super) const ROLE_BINDING: Rules = Rules {
    create: nothing,
    default: |binding| {
        let group = "rbac.authorization.k8s.io";
        if binding["roleRef"].is_object() {
            or_set(&mut binding["roleRef"], "apiGroup", group);
        }
        for subject in each(binding, "subjects") {
            if subject["kind"] == "User" || subject["kind"] == "Group" {
                or_set(subject, "apiGroup", group);
            }
        }
    },
    validate: |binding, old| {
        let changed = old.filter(|old| old["roleRef"] != binding["roleRef"]);
        let cause = changed.map(|_| Cause::invalid("roleRef", &binding["roleRef"], "cannot change roleRef"));
        cause.into_iter().collect()
    },
};

pub(super) const PRIORITY_CLASS: Rules = Rules {
    create: nothing,
    default: |class| or_set(class, "preemptionPolicy", "PreemptLowerPriority"),
    validate: |class, old| {
        let changed = old.filter(|old| old["value"] != class["value"]);
        changed
            .map(|_| Cause::forbidden("value", "may not be changed in an update."))
            .into_iter()
            .collect()
    },
};

pub(super) const STORAGE_CLASS: Rules = Rules {
    create: nothing,
    default: |class| {
        or_set(class, "reclaimPolicy", "Delete");
        or_set(class, "volumeBindingMode", "Immediate");
    },
    validate: |class, old| {
        let fields = ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"];
        let changed = fields.iter().filter(|f| old.is_some_and(|old| old[**f] != class[**f]));
        changed
            .map(|f| Cause::forbidden(*f, "updates to this field are forbidden."))
            .collect()
    },
};
