//! What the objects of an installation depend on: the KubeVirt object, the operator's release, and the cluster.

use std::collections::BTreeMap;

use ferrovirt_api::v1::{ComponentConfig, CustomizeComponents, KubeVirt, LogVerbosity, NodePlacement};
use k8s_openapi::api::core::v1::LocalObjectReference;
use serde::Serialize;
use sha1::{Digest, Sha1};

use super::Component;

/// Images and version that this operator installs unless the KubeVirt object says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Release {
    /// Version of what is installed
    #[arg(id = "kubevirt_version", long = "kubevirt-version", env = "KUBEVIRT_VERSION", default_value = concat!("v", env!("CARGO_PKG_VERSION")), value_name = "VERSION")]
    pub version: String,
    /// Image of virt-api
    #[arg(long, env = "VIRT_API_IMAGE", value_name = "IMAGE")]
    pub api_image: String,
    /// Image of virt-controller
    #[arg(long, env = "VIRT_CONTROLLER_IMAGE", value_name = "IMAGE")]
    pub controller_image: String,
    /// Image of virt-handler
    #[arg(long, env = "VIRT_HANDLER_IMAGE", value_name = "IMAGE")]
    pub handler_image: String,
    /// Image of virt-launcher
    #[arg(long, env = "VIRT_LAUNCHER_IMAGE", value_name = "IMAGE")]
    pub launcher_image: String,
    /// Image of `virtctl guestfs`
    #[arg(long, env = "GS_IMAGE", value_name = "IMAGE")]
    pub guestfs_image: String,
    /// Image of hook sidecars that name none
    #[arg(long, env = "SIDECAR_SHIM_IMAGE", value_name = "IMAGE")]
    pub sidecar_shim_image: String,
}

impl Release {
    /// With the images that `registry` and `tag` of a KubeVirt object ask for.
    fn with(&self, registry: Option<&str>, tag: Option<&str>) -> Self {
        let image = |image: &str| override_image(image, registry, tag);
        Self {
            version: tag.map_or_else(|| self.version.clone(), str::to_owned),
            api_image: image(&self.api_image),
            controller_image: image(&self.controller_image),
            handler_image: image(&self.handler_image),
            launcher_image: image(&self.launcher_image),
            guestfs_image: image(&self.guestfs_image),
            sidecar_shim_image: image(&self.sidecar_shim_image),
        }
    }

    /// Registry and path that virt-api's image is in.
    fn registry(&self) -> String {
        let (path, _) = split_image(&self.api_image);
        path.rsplit_once('/').map_or("", |(registry, _)| registry).to_owned()
    }
}

/// Repository, and `:tag` or `@digest`.
fn split_image(image: &str) -> (&str, &str) {
    let name_at = image.rfind('/').map_or(0, |at| at + 1);
    let end = image[name_at..].find([':', '@']).map_or(image.len(), |at| name_at + at);
    image.split_at(end)
}

fn override_image(image: &str, registry: Option<&str>, tag: Option<&str>) -> String {
    let (repository, version) = split_image(image);
    let name = repository.rsplit('/').next().unwrap_or_default();
    let repository = registry.map_or_else(
        || repository.to_owned(),
        |r| format!("{}/{name}", r.trim_end_matches('/')),
    );
    match tag {
        Some(tag) => format!("{repository}:{tag}"),
        None => format!("{repository}{version}"),
    }
}

/// What rendering depends on, and nothing else: equal inputs give equal objects.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inputs {
    /// Namespace of the KubeVirt object and of all that is installed.
    pub namespace: String,
    /// Version of what is installed.
    pub version: String,
    /// Registry and path of the images.
    pub registry: String,
    /// virt-api's image.
    pub api_image: String,
    /// virt-controller's image.
    pub controller_image: String,
    /// virt-handler's image.
    pub handler_image: String,
    /// virt-launcher's image.
    pub launcher_image: String,
    /// Image of `virtctl guestfs`.
    pub guestfs_image: String,
    /// Image of hook sidecars that name none.
    pub sidecar_shim_image: String,
    /// When images are pulled.
    pub image_pull_policy: String,
    /// Credentials of the registry.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Replicas of virt-api and virt-controller, if the KubeVirt object says.
    pub replicas: Option<u8>,
    /// Nodes of virt-api and virt-controller.
    pub infra: NodePlacement,
    /// Nodes of virt-handler, and thereby of VMs.
    pub workloads: NodePlacement,
    /// Patches and flags.
    pub customize: CustomizeComponents,
    /// Log levels of the components.
    pub log_verbosity: BTreeMap<Component, i32>,
    /// Labels of the product that this installation is part of.
    pub product_labels: BTreeMap<String, String>,
    /// Nodes have a daemon by which guests reserve LUNs for themselves.
    pub persistent_reservation: bool,
    /// Users' roles become part of Kubernetes' own `admin`, `edit` and `view`.
    pub aggregate_roles: bool,
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Kinds of Prometheus' operator exist, and this is where its objects go.
    pub monitoring: Option<Monitoring>,
    /// The operator can be reached by the API server through its Service.
    pub operator_webhooks: bool,
    /// Authorities that sign our certificates, in PEM.
    pub ca_bundle: String,
}

/// Where objects for Prometheus go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Monitoring {
    /// Namespace of the ServiceMonitor.
    pub namespace: String,
}

/// What the cluster is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Number of nodes.
    pub nodes: u64,
    /// ServiceMonitors exist as a kind.
    pub monitoring: bool,
    /// The operator runs in a pod behind its Service.
    pub operator_webhooks: bool,
}

impl Inputs {
    /// Reads a KubeVirt object.
    #[must_use]
    pub fn new(kubevirt: &KubeVirt, release: &Release, cluster: &Cluster, ca_bundle: &str) -> Self {
        let spec = &kubevirt.spec;
        let release = release.with(
            non_empty(spec.image_registry.as_deref()),
            non_empty(spec.image_tag.as_deref()),
        );
        let registry = release.registry();
        let namespace = kubevirt.metadata.namespace.clone().unwrap_or_default();
        let configuration = spec.configuration.clone().unwrap_or_default();
        let developer = configuration.developer_configuration.unwrap_or_default();
        let product = [
            ("app.kubernetes.io/part-of", &spec.product_name),
            ("app.kubernetes.io/version", &spec.product_version),
            ("app.kubernetes.io/component", &spec.product_component),
        ];
        let product = product.into_iter().filter_map(|(key, value)| {
            let value = non_empty(value.as_deref())?;
            Some((key.to_owned(), value.to_owned()))
        });
        let monitor_namespace = non_empty(spec.service_monitor_namespace.as_deref()).unwrap_or(&namespace);
        Self {
            version: release.version,
            registry,
            api_image: release.api_image,
            controller_image: release.controller_image,
            handler_image: release.handler_image,
            launcher_image: release.launcher_image,
            guestfs_image: release.guestfs_image,
            sidecar_shim_image: release.sidecar_shim_image,
            image_pull_policy: non_empty(spec.image_pull_policy.as_deref())
                .unwrap_or("IfNotPresent")
                .to_owned(),
            image_pull_secrets: spec.image_pull_secrets.clone(),
            replicas: spec.infra.as_ref().and_then(|infra| infra.replicas),
            infra: placement(spec.infra.as_ref()),
            workloads: placement(spec.workloads.as_ref()),
            customize: spec.customize_components.clone().unwrap_or_default(),
            log_verbosity: verbosity(developer.log_verbosity.as_ref()),
            product_labels: product.collect(),
            persistent_reservation: configuration
                .persistent_reservation_configuration
                .is_some_and(|reservation| reservation.enabled == Some(true)),
            aggregate_roles: configuration.role_aggregation_strategy.as_deref() != Some("Manual"),
            nodes: cluster.nodes,
            monitoring: cluster.monitoring.then(|| Monitoring {
                namespace: monitor_namespace.to_owned(),
            }),
            operator_webhooks: cluster.operator_webhooks,
            ca_bundle: ca_bundle.to_owned(),
            namespace,
        }
    }

    /// Replicas of virt-api and virt-controller: one on a single node, where a second is of no use, else two.
    #[must_use]
    pub fn infra_replicas(&self) -> i32 {
        let by_size = if self.nodes > 1 { 2 } else { 1 };
        self.replicas.filter(|&r| r > 0).map_or(by_size, i32::from)
    }

    /// Names what is installed: differs when version or images do.
    #[must_use]
    pub fn deployment_id(&self) -> String {
        let images = [
            &self.api_image,
            &self.controller_image,
            &self.handler_image,
            &self.launcher_image,
            &self.guestfs_image,
            &self.sidecar_shim_image,
        ];
        let mut hash = Sha1::new();
        for part in [&self.namespace, &self.version].into_iter().chain(images) {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hex(&hash.finalize())
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn non_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn placement(component: Option<&ComponentConfig>) -> NodePlacement {
    component.and_then(|c| c.node_placement.clone()).unwrap_or_default()
}

fn verbosity(verbosity: Option<&LogVerbosity>) -> BTreeMap<Component, i32> {
    let Some(verbosity) = verbosity else {
        return BTreeMap::new();
    };
    let all = [
        (Component::Api, verbosity.virt_api),
        (Component::Controller, verbosity.virt_controller),
        (Component::Handler, verbosity.virt_handler),
    ];
    all.into_iter()
        .filter_map(|(component, level)| Some((component, level.filter(|l| *l > 0)?)))
        .collect()
}

/// Log level of the operator itself, if the KubeVirt object says.
#[must_use]
pub fn own_verbosity(kubevirt: &KubeVirt) -> Option<u8> {
    let developer = kubevirt.spec.configuration.as_ref()?.developer_configuration.as_ref()?;
    let level = developer.log_verbosity.as_ref()?.virt_operator?;
    u8::try_from(level).ok().filter(|level| *level > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_own_verbosity() {
        for (level, expected) in [(None, None), (Some(0), None), (Some(5), Some(5)), (Some(1000), None)] {
            let mut kubevirt = KubeVirt::default();
            let configuration =
                serde_json::json!({"developerConfiguration": {"logVerbosity": {"virtOperator": level}}});
            kubevirt.spec.configuration = serde_json::from_value(configuration).unwrap();
            assert_eq!(own_verbosity(&kubevirt), expected, "{level:?}");
        }
    }

    #[test]
    fn registry_and_tag_replace_parts_of_an_image() {
        for (image, registry, tag, expected) in [
            ("r.example/a/virt-api:v1", None, None, "r.example/a/virt-api:v1"),
            ("r.example/a/virt-api:v1", Some("q/b/"), None, "q/b/virt-api:v1"),
            ("r:5000/a/virt-api", None, Some("v2"), "r:5000/a/virt-api:v2"),
            ("r/a/virt-api@sha256:0", Some("q"), Some("v2"), "q/virt-api:v2"),
            ("virt-api:v1", Some("q:80"), None, "q:80/virt-api:v1"),
        ] {
            assert_eq!(override_image(image, registry, tag), expected, "{image}");
        }
    }
}
