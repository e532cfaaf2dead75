//! The table of built-in kinds.

use std::sync::{Arc, LazyLock};

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, authentication::v1 as authentication,
    authorization::v1 as authorization, coordination::v1 as coordination, core::v1 as core, events::v1 as events,
    policy::v1 as policy, rbac::v1 as rbac, scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use schemars::{JsonSchema, SchemaGenerator};

use super::{
    ResourceInfo, Rules, STORED_VERBS, SchemaSource, Subresource, columns, definitions, pod_columns, pods, rules,
};
use crate::schema::{Arena, Schema, compile_definitions};
use crate::table::Column;

/// A row of the table, with what most kinds have in common filled in.
#[derive(Clone, Copy)]
struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    stored: bool,
    status: bool,
    subresources: &'static [Sub],
    columns: fn() -> Vec<Column>,
    selectable: &'static [&'static str],
    rules: Option<Rules>,
    definition: &'static str,
    add: fn(&mut SchemaGenerator),
    stored_as: Option<(&'static str, &'static str)>,
}

/// Name, kind, group, version, verbs.
type Sub = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    let _reference = generator.subschema_for::<T>();
}

const fn kind(
    api: (&'static str, &'static str),
    kind: &'static str,
    plural: &'static str,
    definition: &'static str,
    add: fn(&mut SchemaGenerator),
) -> Kind {
    Kind {
        group: api.0,
        version: api.1,
        kind,
        plural,
        short: &[],
        categories: &[],
        namespaced: true,
        stored: true,
        status: false,
        subresources: &[],
        columns: columns::plain,
        selectable: &[],
        rules: None,
        definition,
        add,
        stored_as: None,
    }
}

macro_rules! kinds {
    ($($module:ident :: $name:ident ($group:literal $version:literal $prefix:literal) $plural:literal {$($field:ident : $value:expr),* $(,)?})*) => {
        [$(Kind {
            $($field: $value,)*
            ..kind(($group, $version), stringify!($name), $plural, concat!($prefix, stringify!($name)), add::<$module::$name>)
        }),*]
    };
}

fn kinds() -> Vec<Kind> {
    [core_kinds(), other_kinds(), review_kinds()].concat()
}

const POD_SUBRESOURCES: &[Sub] = &[
    ("attach", "PodAttachOptions", "", "v1", &["create", "get"]),
    ("binding", "Binding", "", "v1", &["create"]),
    ("eviction", "Eviction", "policy", "v1", &["create"]),
    ("exec", "PodExecOptions", "", "v1", &["create", "get"]),
    ("log", "Pod", "", "v1", &["get"]),
    ("portforward", "PodPortForwardOptions", "", "v1", &["create", "get"]),
];
const POD_FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];
const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

fn core_kinds() -> Vec<Kind> {
    kinds! {
        core::Namespace("" "v1" "io.k8s.api.core.v1.") "namespaces" {
            short: &["ns"], namespaced: false, status: true, columns: columns::namespaces, selectable: &["status.phase"],
            subresources: &[("finalize", "Namespace", "", "v1", &["update"])], rules: Some(rules::NAMESPACE),
        }
        core::Pod("" "v1" "io.k8s.api.core.v1.") "pods" {
            short: &["po"], categories: &["all"], status: true, columns: pod_columns::pods, selectable: POD_FIELDS,
            subresources: POD_SUBRESOURCES, rules: Some(pods::RULES),
        }
        core::Node("" "v1" "io.k8s.api.core.v1.") "nodes" {
            short: &["no"], namespaced: false, status: true, columns: columns::nodes,
            selectable: &["spec.unschedulable"],
        }
        core::Event("" "v1" "io.k8s.api.core.v1.") "events" {
            short: &["ev"], columns: columns::events, selectable: EVENT_FIELDS,
        }
        core::Secret("" "v1" "io.k8s.api.core.v1.") "secrets" {
            columns: columns::secrets, selectable: &["type"], rules: Some(rules::SECRET),
        }
        core::ConfigMap("" "v1" "io.k8s.api.core.v1.") "configmaps" {
            short: &["cm"], columns: columns::config_maps, rules: Some(rules::CONFIG_MAP),
        }
        core::Service("" "v1" "io.k8s.api.core.v1.") "services" {
            short: &["svc"], categories: &["all"], status: true, columns: columns::services,
            selectable: &["spec.clusterIP", "spec.type"], rules: Some(rules::SERVICE),
        }
        core::Endpoints("" "v1" "io.k8s.api.core.v1.") "endpoints" { short: &["ep"], columns: columns::endpoints }
        core::ServiceAccount("" "v1" "io.k8s.api.core.v1.") "serviceaccounts" {
            short: &["sa"], columns: columns::service_accounts,
            subresources: &[("token", "TokenRequest", "authentication.k8s.io", "v1", &["create"])],
        }
        core::PersistentVolumeClaim("" "v1" "io.k8s.api.core.v1.") "persistentvolumeclaims" {
            short: &["pvc"], status: true, columns: columns::claims, rules: Some(rules::CLAIM),
        }
        core::PersistentVolume("" "v1" "io.k8s.api.core.v1.") "persistentvolumes" {
            short: &["pv"], namespaced: false, status: true, columns: columns::volumes, rules: Some(rules::VOLUME),
        }
        core::ResourceQuota("" "v1" "io.k8s.api.core.v1.") "resourcequotas" {
            short: &["quota"], status: true, columns: columns::quotas,
        }
        core::LimitRange("" "v1" "io.k8s.api.core.v1.") "limitranges" {
            short: &["limits"], columns: columns::created_at,
        }
    }
    .to_vec()
}

fn other_kinds() -> Vec<Kind> {
    kinds! {
        apps::ControllerRevision("apps" "v1" "io.k8s.api.apps.v1.") "controllerrevisions" {
            columns: columns::controller_revisions,
        }
        events::Event("events.k8s.io" "v1" "io.k8s.api.events.v1.") "events" {
            short: &["ev"], columns: columns::events, selectable: EVENT_FIELDS, stored_as: Some(("", "events")),
        }
        coordination::Lease("coordination.k8s.io" "v1" "io.k8s.api.coordination.v1.") "leases" {
            columns: columns::leases,
        }
        rbac::Role("rbac.authorization.k8s.io" "v1" "io.k8s.api.rbac.v1.") "roles" { columns: columns::created_at }
        rbac::RoleBinding("rbac.authorization.k8s.io" "v1" "io.k8s.api.rbac.v1.") "rolebindings" {
            columns: columns::role_bindings, rules: Some(rules::ROLE_BINDING),
        }
        rbac::ClusterRole("rbac.authorization.k8s.io" "v1" "io.k8s.api.rbac.v1.") "clusterroles" {
            namespaced: false, columns: columns::created_at,
        }
        rbac::ClusterRoleBinding("rbac.authorization.k8s.io" "v1" "io.k8s.api.rbac.v1.") "clusterrolebindings" {
            namespaced: false, columns: columns::role_bindings, rules: Some(rules::ROLE_BINDING),
        }
        apiextensions::CustomResourceDefinition("apiextensions.k8s.io" "v1" "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.") "customresourcedefinitions" {
            short: &["crd", "crds"], categories: &["api-extensions"], namespaced: false, status: true,
            columns: columns::created_at,
        }
        scheduling::PriorityClass("scheduling.k8s.io" "v1" "io.k8s.api.scheduling.v1.") "priorityclasses" {
            short: &["pc"], namespaced: false, columns: columns::priority_classes, rules: Some(rules::PRIORITY_CLASS),
        }
        policy::PodDisruptionBudget("policy" "v1" "io.k8s.api.policy.v1.") "poddisruptionbudgets" {
            short: &["pdb"], status: true, columns: columns::disruption_budgets,
        }
        storage::StorageClass("storage.k8s.io" "v1" "io.k8s.api.storage.v1.") "storageclasses" {
            short: &["sc"], namespaced: false, columns: columns::storage_classes, rules: Some(rules::STORAGE_CLASS),
        }
        admission::MutatingWebhookConfiguration("admissionregistration.k8s.io" "v1" "io.k8s.api.admissionregistration.v1.") "mutatingwebhookconfigurations" {
            categories: &["api-extensions"], namespaced: false, columns: columns::webhooks,
        }
        admission::ValidatingWebhookConfiguration("admissionregistration.k8s.io" "v1" "io.k8s.api.admissionregistration.v1.") "validatingwebhookconfigurations" {
            categories: &["api-extensions"], namespaced: false, columns: columns::webhooks,
        }
    }
    .to_vec()
}

fn review_kinds() -> Vec<Kind> {
    kinds! {
        authorization::SubjectAccessReview("authorization.k8s.io" "v1" "io.k8s.api.authorization.v1.") "subjectaccessreviews" {
            namespaced: false, stored: false,
        }
        authorization::SelfSubjectAccessReview("authorization.k8s.io" "v1" "io.k8s.api.authorization.v1.") "selfsubjectaccessreviews" {
            namespaced: false, stored: false,
        }
        authorization::SelfSubjectRulesReview("authorization.k8s.io" "v1" "io.k8s.api.authorization.v1.") "selfsubjectrulesreviews" {
            namespaced: false, stored: false,
        }
        authorization::LocalSubjectAccessReview("authorization.k8s.io" "v1" "io.k8s.api.authorization.v1.") "localsubjectaccessreviews" {
            stored: false,
        }
        authentication::TokenReview("authentication.k8s.io" "v1" "io.k8s.api.authentication.v1.") "tokenreviews" {
            namespaced: false, stored: false,
        }
        authentication::SelfSubjectReview("authentication.k8s.io" "v1" "io.k8s.api.authentication.v1.") "selfsubjectreviews" {
            namespaced: false, stored: false,
        }
    }
    .to_vec()
}

/// One arena for all built-in kinds. Compiled at first use.
static ARENA: LazyLock<Arc<Arena>> = LazyLock::new(|| {
    let add: Vec<fn(&mut SchemaGenerator)> = kinds().iter().map(|k| k.add).collect();
    Arc::new(compile_definitions(&definitions::for_compiling(definitions::generate(
        &add,
    ))))
});

/// Every resource that the server serves without any CRD.
#[must_use]
pub fn builtin_resources() -> Vec<ResourceInfo> {
    kinds().into_iter().map(|kind| kind.into_info(&ARENA)).collect()
}

impl Kind {
    fn into_info(self, arena: &Arc<Arena>) -> ResourceInfo {
        let texts = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        let status: Sub = (
            "status",
            self.kind,
            self.group,
            self.version,
            &["get", "patch", "update"],
        );
        let mut subresources: Vec<Subresource> = self
            .status
            .then_some(status)
            .iter()
            .chain(self.subresources)
            .map(|(name, kind, group, version, verbs)| Subresource {
                name: (*name).to_owned(),
                kind: (*kind).to_owned(),
                group: (*group).to_owned(),
                version: (*version).to_owned(),
                verbs: texts(verbs),
            })
            .collect();
        subresources.sort_by(|a, b| a.name.cmp(&b.name));
        ResourceInfo {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            kind: self.kind.to_owned(),
            list_kind: format!("{}List", self.kind),
            plural: self.plural.to_owned(),
            singular: self.kind.to_lowercase(),
            short_names: texts(self.short),
            categories: texts(self.categories),
            namespaced: self.namespaced,
            verbs: if self.stored {
                texts(&STORED_VERBS)
            } else {
                texts(&["create"])
            },
            subresources,
            scale: None,
            columns: (self.columns)().into(),
            selectable: texts(self.selectable),
            schema: Schema::in_arena(Arc::clone(arena), self.definition).unwrap_or_else(Schema::any),
            source: SchemaSource::Builtin {
                definition: self.definition,
                add: self.add,
            },
            rules: self.rules,
            stored_as: self.stored_as,
        }
    }
}
