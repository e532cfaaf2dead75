//! The kinds that the operator installs.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

use kube::core::{ApiResource, GroupVersionKind};

/// A kind of object.
#[derive(Debug)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Name.
    pub kind: &'static str,
    /// Name in URLs.
    pub plural: &'static str,
    /// Its objects live in namespaces.
    pub namespaced: bool,
    /// Their `metadata.generation` counts changes of what users write, not of status.
    pub generation: bool,
    /// Only where Prometheus' operator is.
    pub optional: bool,
}

const fn kind(api: (&'static str, &'static str), names: (&'static str, &'static str), generation: bool) -> Kind {
    Kind {
        group: api.0,
        version: api.1,
        kind: names.0,
        plural: names.1,
        namespaced: true,
        generation,
        optional: false,
    }
}

const fn cluster(kind: Kind) -> Kind {
    Kind {
        namespaced: false,
        ..kind
    }
}

const CORE: (&str, &str) = ("", "v1");
const APPS: (&str, &str) = ("apps", "v1");
const RBAC: (&str, &str) = ("rbac.authorization.k8s.io", "v1");
const ADMISSION: (&str, &str) = ("admissionregistration.k8s.io", "v1");
const MONITORING: (&str, &str) = ("monitoring.coreos.com", "v1");

/// All kinds, in the order in which their objects are installed. They are removed in the opposite order.
pub static KINDS: [Kind; 19] = [
    cluster(kind(
        ("apiextensions.k8s.io", "v1"),
        ("CustomResourceDefinition", "customresourcedefinitions"),
        true,
    )),
    kind(CORE, ("ServiceAccount", "serviceaccounts"), false),
    cluster(kind(RBAC, ("ClusterRole", "clusterroles"), false)),
    cluster(kind(RBAC, ("ClusterRoleBinding", "clusterrolebindings"), false)),
    kind(RBAC, ("Role", "roles"), false),
    kind(RBAC, ("RoleBinding", "rolebindings"), false),
    kind(CORE, ("Secret", "secrets"), false),
    kind(CORE, ("ConfigMap", "configmaps"), false),
    kind(CORE, ("Service", "services"), false),
    kind(("policy", "v1"), ("PodDisruptionBudget", "poddisruptionbudgets"), true),
    Kind {
        optional: true,
        ..kind(MONITORING, ("ServiceMonitor", "servicemonitors"), true)
    },
    Kind {
        optional: true,
        ..kind(MONITORING, ("PrometheusRule", "prometheusrules"), true)
    },
    kind(APPS, ("DaemonSet", "daemonsets"), true),
    kind(APPS, ("Deployment", "deployments"), true),
    cluster(kind(
        ADMISSION,
        ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
        true,
    )),
    cluster(kind(
        ADMISSION,
        ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
        true,
    )),
    cluster(kind(
        ("apiregistration.k8s.io", "v1"),
        ("APIService", "apiservices"),
        false,
    )),
    cluster(kind(
        ADMISSION,
        ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        true,
    )),
    cluster(kind(
        ADMISSION,
        ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
        true,
    )),
];

impl Kind {
    /// The kind of this name, which must be one of [`KINDS`].
    #[must_use]
    pub fn named(name: &str) -> &'static Self {
        KINDS.iter().find(|k| k.kind == name).expect("a kind of the table")
    }

    /// Its place in [`KINDS`].
    #[must_use]
    pub fn index(&self) -> usize {
        KINDS.iter().position(|k| k == self).unwrap_or_default()
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// For a dynamic client.
    #[must_use]
    pub fn api_resource(&self) -> ApiResource {
        let named = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&named, self.plural)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.kind) == (other.group, other.kind)
    }
}

impl Eq for Kind {}

impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> Ordering {
        self.index().cmp(&other.index())
    }
}
