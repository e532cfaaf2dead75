//! The CustomResourceDefinitions of our kinds, made from the wire types.
//!
//! Names, versions, columns and subresources are KubeVirt's, with one deliberate difference:
//! VirtualMachineInstance has `/status`, so that a status write never touches the spec and runs no webhook.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionVersion,
    CustomResourceSubresourceScale, CustomResourceSubresourceStatus, CustomResourceSubresources, JSON, JSONSchemaProps,
    JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

use crate::{cdi, v1};

/// All CRDs of `kubevirt.io`, ready to be applied. Structural, as `apiextensions.k8s.io/v1` demands.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        with_v1alpha3(v1::VirtualMachine::crd(), &Shape::VM),
        with_v1alpha3(v1::VirtualMachineInstance::crd(), &Shape::VMI),
        with_v1alpha3(v1::VirtualMachineInstanceMigration::crd(), &Shape::VMIM),
        with_v1alpha3(v1::VirtualMachineInstancePreset::crd(), &Shape::PRESET),
        with_v1alpha3(v1::VirtualMachineInstanceReplicaSet::crd(), &Shape::VMIRS),
        with_v1alpha3(v1::KubeVirt::crd(), &Shape::KUBEVIRT),
    ]
}

/// The CRD of `cdi.kubevirt.io` CDI. Only virt-operator answers its objects, so it belongs to clusters.
#[must_use]
pub fn cdi_crd() -> CustomResourceDefinition {
    let mut crd = cdi::CDI::crd();
    crd.spec
        .versions
        .iter_mut()
        .for_each(|version| finish(version, &Shape::CDI));
    crd
}

/// What the types do not say about a kind.
struct Shape {
    status: bool,
    scale: bool,
    storage: &'static str,
    /// Name, type, JSON path, priority.
    columns: &'static [(&'static str, &'static str, &'static str, i32)],
}

const AGE: (&str, &str, &str, i32) = ("Age", "date", ".metadata.creationTimestamp", 0);
const READY: &str = ".status.conditions[?(@.type=='Ready')].status";

impl Shape {
    const VM: Self = Self {
        status: true,
        scale: false,
        storage: "v1",
        columns: &[
            AGE,
            ("Status", "string", ".status.printableStatus", 0),
            ("Ready", "string", READY, 0),
        ],
    };
    const VMI: Self = Self {
        status: true,
        scale: false,
        storage: "v1",
        columns: &[
            AGE,
            ("Phase", "string", ".status.phase", 0),
            ("IP", "string", ".status.interfaces[0].ipAddress", 0),
            ("NodeName", "string", ".status.nodeName", 0),
            ("Ready", "string", READY, 0),
            (
                "Live-Migratable",
                "string",
                ".status.conditions[?(@.type=='LiveMigratable')].status",
                1,
            ),
            ("Paused", "string", ".status.conditions[?(@.type=='Paused')].status", 1),
        ],
    };
    const VMIM: Self = Self {
        status: true,
        scale: false,
        storage: "v1",
        columns: &[
            ("Phase", "string", ".status.phase", 0),
            ("VMI", "string", ".spec.vmiName", 0),
        ],
    };
    const PRESET: Self = Self {
        status: false,
        scale: false,
        storage: "v1alpha3",
        columns: &[],
    };
    const VMIRS: Self = Self {
        status: true,
        scale: true,
        storage: "v1",
        columns: &[
            ("Desired", "integer", ".spec.replicas", 0),
            ("Current", "integer", ".status.replicas", 0),
            ("Ready", "integer", ".status.readyReplicas", 0),
            AGE,
        ],
    };
    const KUBEVIRT: Self = Self {
        status: true,
        scale: false,
        storage: "v1",
        columns: &[AGE, ("Phase", "string", ".status.phase", 0)],
    };
    const CDI: Self = Self {
        status: true,
        scale: false,
        storage: "v1beta1",
        columns: &[AGE, ("Phase", "string", ".status.phase", 0)],
    };
}

/// The only version of a kind, with what the types do not say.
fn finish(version: &mut CustomResourceDefinitionVersion, shape: &Shape) {
    version.additional_printer_columns = (!shape.columns.is_empty()).then(|| {
        shape
            .columns
            .iter()
            .map(|&(name, type_, path, priority)| CustomResourceColumnDefinition {
                name: name.to_owned(),
                type_: type_.to_owned(),
                json_path: path.to_owned(),
                priority: (priority != 0).then_some(priority),
                ..CustomResourceColumnDefinition::default()
            })
            .collect()
    });
    version.subresources = (shape.status || shape.scale).then(|| CustomResourceSubresources {
        status: shape
            .status
            .then(|| CustomResourceSubresourceStatus(serde_json::json!({}))),
        scale: shape.scale.then(|| CustomResourceSubresourceScale {
            spec_replicas_path: ".spec.replicas".to_owned(),
            status_replicas_path: ".status.replicas".to_owned(),
            label_selector_path: Some(".status.labelSelector".to_owned()),
        }),
    });
    if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
        tidy(schema, false);
        let properties = schema.properties.get_or_insert_default();
        properties.insert("apiVersion".to_owned(), of_type("string"));
        properties.insert("kind".to_owned(), of_type("string"));
        properties.insert("metadata".to_owned(), of_type("object"));
    }
}

/// A kind that is also served in its old version.
fn with_v1alpha3(mut crd: CustomResourceDefinition, shape: &Shape) -> CustomResourceDefinition {
    let mut version = crd.spec.versions.remove(0);
    finish(&mut version, shape);
    let old = CustomResourceDefinitionVersion {
        name: "v1alpha3".to_owned(),
        storage: shape.storage == "v1alpha3",
        deprecated: Some(true),
        deprecation_warning: Some(format!(
            "kubevirt.io/v1alpha3 {} is deprecated; use kubevirt.io/v1",
            crd.spec.names.kind
        )),
        ..version.clone()
    };
    version.storage = shape.storage == "v1";
    crd.spec.versions = vec![version, old];
    crd
}

/// Makes a schema what the API server's structural rules and users' manifests need.
fn tidy(schema: &mut JSONSchemaProps, embedded: bool) {
    // Go's clients write `creationTimestamp: null` into embedded metadata; its other fields are the API server's business.
    let is_metadata = schema
        .properties
        .as_ref()
        .is_some_and(|p| p.contains_key("managedFields"));
    if is_metadata && embedded {
        *schema = JSONSchemaProps {
            description: schema.description.take(),
            type_: Some("object".to_owned()),
            nullable: Some(true),
            x_kubernetes_preserve_unknown_fields: Some(true),
            ..JSONSchemaProps::default()
        };
        return;
    }
    if schema.x_kubernetes_int_or_string == Some(true) {
        schema.any_of = Some(["integer", "string"].map(of_type).into());
    }
    // Rust's name of the format that OpenAPI calls a byte.
    if schema.format.as_deref() == Some("uint8") {
        schema.format = Some("byte".to_owned());
    }
    // An optional field may be left out; only times are also written as null by Go's clients.
    if schema.format.as_deref() != Some("date-time") {
        schema.nullable = None;
    }
    // An absent value and an empty one are the same on the wire.
    if schema.default == Some(JSON(serde_json::Value::Null)) {
        schema.default = None;
    }
    for child in schema.properties.iter_mut().flat_map(|p| p.values_mut()) {
        tidy(child, true);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items, true);
    }
    if let Some(k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrBool::Schema(
        values,
    )) = &mut schema.additional_properties
    {
        tidy(values, true);
    }
}

fn of_type(name: &str) -> JSONSchemaProps {
    JSONSchemaProps {
        type_: Some(name.to_owned()),
        ..JSONSchemaProps::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_names_versions_and_one_storage_version() {
        let all = crds();
        let names: Vec<_> = all
            .iter()
            .map(|c| c.metadata.name.clone().unwrap_or_default())
            .collect();
        assert_eq!(
            names,
            [
                "virtualmachines.kubevirt.io",
                "virtualmachineinstances.kubevirt.io",
                "virtualmachineinstancemigrations.kubevirt.io",
                "virtualmachineinstancepresets.kubevirt.io",
                "virtualmachineinstancereplicasets.kubevirt.io",
                "kubevirts.kubevirt.io"
            ]
        );
        for crd in &all {
            assert_eq!(
                crd.spec.versions.iter().filter(|v| v.storage).count(),
                1,
                "{:?}",
                crd.metadata.name
            );
            assert_eq!(crd.spec.names.categories.as_deref(), Some(&["all".to_owned()][..]));
        }
        let cdi = serde_json::to_value(cdi_crd()).unwrap();
        assert_eq!(cdi["metadata"]["name"], "cdis.cdi.kubevirt.io");
        assert_eq!(cdi["spec"]["scope"], "Cluster");
        assert_eq!(cdi["spec"]["names"]["shortNames"], serde_json::json!(["cdi", "cdis"]));
        let version = &cdi["spec"]["versions"][0];
        assert_eq!(
            (&version["name"], &version["storage"]),
            (&"v1beta1".into(), &true.into())
        );
        assert!(version["subresources"]["status"].is_object());
        let columns = version["additionalPrinterColumns"].as_array().unwrap();
        assert_eq!(columns.iter().map(|c| &c["name"]).collect::<Vec<_>>(), ["Age", "Phase"]);
    }
}
