//! Schemas of the built-in kinds as definitions that refer to each other, with how their lists and maps merge.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::schema::object_meta;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const CORE: &str = "io.k8s.api.core.v1.";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// Name of the definition of `metadata`.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Name of the definition of a list's `metadata`.
pub const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

enum Merge {
    /// `listType: map`; strategic merge patches use the first key.
    Map(&'static [&'static str]),
    /// `listType: set`, which strategic merge patches join.
    Set,
    /// A map that is one value.
    AtomicMap,
    /// One list for apply, merged by this key by strategic merge patches.
    PatchOnly(&'static str),
}

use Merge::{AtomicMap, Map as Keyed, PatchOnly, Set};

const PORTS: Merge = Keyed(&["containerPort", "protocol"]);
const CONDITIONS: (&str, Merge) = ("conditions", Keyed(&["type"]));

/// How fields of definitions merge, where it is not as one value (lists) or key by key (maps).
const CORE_MERGES: &[(&str, &[(&str, Merge)])] = &[
    ("Container", CONTAINER),
    ("EphemeralContainer", CONTAINER),
    (
        "ContainerStatus",
        &[
            ("allocatedResourcesStatus", NAMED),
            ("volumeMounts", Keyed(&["mountPath"])),
        ],
    ),
    ("NamespaceStatus", &[CONDITIONS]),
    ("NodeSpec", &[("podCIDRs", Set)]),
    ("NodeStatus", &[CONDITIONS, ("addresses", Keyed(&["type"]))]),
    ("PersistentVolumeClaimStatus", &[CONDITIONS]),
    (
        "PodSpec",
        &[
            ("containers", NAMED),
            ("ephemeralContainers", NAMED),
            ("hostAliases", Keyed(&["ip"])),
            ("imagePullSecrets", NAMED),
            ("initContainers", NAMED),
            ("nodeSelector", AtomicMap),
            ("resourceClaims", NAMED),
            ("schedulingGates", NAMED),
            (
                "topologySpreadConstraints",
                Keyed(&["topologyKey", "whenUnsatisfiable"]),
            ),
            ("volumes", NAMED),
        ],
    ),
    (
        "PodStatus",
        &[
            CONDITIONS,
            ("hostIPs", PatchOnly("ip")),
            ("podIPs", Keyed(&["ip"])),
            ("resourceClaimStatuses", NAMED),
        ],
    ),
    ("ResourceRequirements", &[("claims", NAMED)]),
    ("ResourceStatus", &[("resources", Keyed(&["resourceID"]))]),
    ("ServiceAccount", &[("secrets", NAMED)]),
    (
        "ServiceSpec",
        &[("ports", Keyed(&["port", "protocol"])), ("selector", AtomicMap)],
    ),
    ("ServiceStatus", &[CONDITIONS]),
];

const NAMED: Merge = Keyed(&["name"]);
const CONTAINER: &[(&str, Merge)] = &[
    ("env", NAMED),
    ("ports", PORTS),
    ("volumeDevices", Keyed(&["devicePath"])),
    ("volumeMounts", Keyed(&["mountPath"])),
];

const OTHER_MERGES: &[(&str, &[(&str, Merge)])] = &[
    (
        "io.k8s.api.admissionregistration.v1.MutatingWebhook",
        &[("matchConditions", NAMED)],
    ),
    (
        "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
        &[("webhooks", NAMED)],
    ),
    (
        "io.k8s.api.admissionregistration.v1.ValidatingWebhook",
        &[("matchConditions", NAMED)],
    ),
    (
        "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
        &[("webhooks", NAMED)],
    ),
    ("io.k8s.api.policy.v1.PodDisruptionBudgetStatus", &[CONDITIONS]),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus",
        &[CONDITIONS],
    ),
    (
        OBJECT_META,
        &[("finalizers", Set), ("ownerReferences", Keyed(&["uid"]))],
    ),
];

/// Definitions whose values have one owner as a whole.
const ATOMIC: &[&str] = &[
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Definitions that stand for any JSON, or for one of several forms.
fn is_opaque(name: &str) -> bool {
    let of = |prefix: &str, names: &[&str]| name.strip_prefix(prefix).is_some_and(|n| names.contains(&n));
    of(META, &["FieldsV1", "Patch"])
        || of(
            APIEXTENSIONS,
            &[
                "JSON",
                "JSONSchemaPropsOrArray",
                "JSONSchemaPropsOrBool",
                "JSONSchemaPropsOrStringArray",
            ],
        )
        || name == "io.k8s.apimachinery.pkg.runtime.RawExtension"
}

/// The definitions that these functions add, as Kubernetes publishes them, with extensions for merging.
#[must_use]
pub fn generate(add: &[fn(&mut SchemaGenerator)]) -> Map<String, Value> {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    for add in add {
        add(&mut generator);
    }
    let mut definitions = generator.take_definitions(false);
    for (name, fields) in CORE_MERGES {
        annotate(&mut definitions, &format!("{CORE}{name}"), fields);
    }
    for (name, fields) in OTHER_MERGES {
        annotate(&mut definitions, name, fields);
    }
    for name in ATOMIC {
        if let Some(definition) = definitions.get_mut(*name) {
            definition["x-kubernetes-map-type"] = "atomic".into();
        }
    }
    for name in ["ContainerPort", "ServicePort"] {
        if let Some(definition) = definitions.get_mut(&format!("{CORE}{name}")) {
            definition["properties"]["protocol"]["default"] = "TCP".into();
        }
    }
    definitions
}

fn annotate(definitions: &mut Map<String, Value>, name: &str, fields: &[(&str, Merge)]) {
    let Some(properties) = definitions.get_mut(name).and_then(|d| d["properties"].as_object_mut()) else {
        return;
    };
    for (field, merge) in fields {
        let Some(property) = properties.get_mut(*field).and_then(Value::as_object_mut) else {
            continue;
        };
        let mut set = |name: &str, value: Value| property.insert(format!("x-kubernetes-{name}"), value);
        match merge {
            Keyed(keys) => {
                set("list-type", "map".into());
                set("list-map-keys", json!(keys));
                set("patch-merge-key", keys[0].into());
                set(
                    "patch-strategy",
                    if *field == "volumes" {
                        "merge,retainKeys"
                    } else {
                        "merge"
                    }
                    .into(),
                );
            }
            Set => {
                set("list-type", "set".into());
                set("patch-strategy", "merge".into());
            }
            AtomicMap => {
                set("map-type", "atomic".into());
            }
            PatchOnly(key) => {
                set("list-type", "atomic".into());
                set("patch-merge-key", (*key).into());
                set("patch-strategy", "merge".into());
            }
        }
    }
}

/// The same definitions as the schema compiler wants them: opaque ones keep everything, quantities are scalars.
#[must_use]
pub(super) fn for_compiling(mut definitions: Map<String, Value>) -> Map<String, Value> {
    for (name, definition) in &mut definitions {
        if is_opaque(name) {
            *definition = json!({"x-kubernetes-preserve-unknown-fields": true});
        } else if name.ends_with(".resource.Quantity") {
            *definition = json!({"format": "quantity"});
        } else if name == OBJECT_META {
            *definition = object_meta();
        }
    }
    definitions
}
