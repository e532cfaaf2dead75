//! What KubeVirt's webhooks do: complete objects of `kubevirt.io` and refuse those that make no sense.
//!
//! The rules are functions of [`ferrovirt_core`]; here they are chosen by kind and operation, and their causes
//! become the answer that a webhook's client sees. Status writes and deletes pass: their writers are trusted, and
//! what exists may go.

mod denial;
mod object;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ferrovirt_api::v1::{
    KubeVirt, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration, VirtualMachineInstancePreset,
    VirtualMachineInstanceReplicaSet,
};
use ferrovirt_core::cause::{Cause, CauseReason};
use ferrovirt_core::config::{validate_configuration, without_effect};
use ferrovirt_core::{ClusterConfig, apply_presets, default_vm, default_vm_update, default_vmi};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::reflector::Store;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use crate::status::{self, Refusal};
use denial::Denial;

/// Group whose objects are judged.
const GROUP: &str = "kubevirt.io";
/// Label of a migration: its VMI.
const VMI_NAME_LABEL: &str = "kubevirt.io/vmi-name";
/// Finalizer of a migration.
const MIGRATION_FINALIZER: &str = "kubevirt.io/migrationJobFinalize";
/// Namespace of our own components, unless [`Admission::in_namespace`] says otherwise.
const NAMESPACE: &str = "kubevirt";
/// Service accounts of our own components: they write what users may not.
const OURS: [&str; 4] = [
    "kubevirt-apiserver",
    "kubevirt-controller",
    "kubevirt-handler",
    "kubevirt-operator",
];

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// An existing object is replaced, patched or applied to.
    Update,
    /// An object is deleted.
    Delete,
}

/// Who makes a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct User<'a> {
    /// For example `system:serviceaccount:kubevirt:kubevirt-controller`.
    pub username: &'a str,
    /// For example `system:masters`.
    pub groups: &'a [String],
}

impl User<'_> {
    /// Whether this is a component of ours that runs in `namespace`.
    fn is_ours(self, namespace: &str) -> bool {
        self.username
            .strip_prefix("system:serviceaccount:")
            .and_then(|account| account.split_once(':'))
            .is_some_and(|(of, name)| of == namespace && OURS.contains(&name))
    }
}

/// One write that is about to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What is done.
    pub operation: Operation,
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Plural resource name.
    pub resource: &'a str,
    /// `status`, `scale` …
    pub subresource: Option<&'a str>,
    /// Namespace, if the kind has one.
    pub namespace: Option<&'a str>,
    /// Object name; empty when the server still has to generate it.
    pub name: &'a str,
    /// The stored object, for updates and deletes.
    pub old: Option<&'a Value>,
    /// Who asks.
    pub user: User<'a>,
    /// Nothing is going to be stored.
    pub dry_run: bool,
}

/// Kinds with rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KubeVirt,
    Machine,
    Instance,
    Migration,
    Preset,
    ReplicaSet,
}

impl Kind {
    /// The kind whose rules a request has to follow, if there are any.
    fn of(request: &Request<'_>) -> Option<Self> {
        if request.group != GROUP || request.subresource.is_some() || request.operation == Operation::Delete {
            return None;
        }
        match request.resource {
            "kubevirts" => Some(Self::KubeVirt),
            "virtualmachines" => Some(Self::Machine),
            "virtualmachineinstances" => Some(Self::Instance),
            "virtualmachineinstancemigrations" => Some(Self::Migration),
            "virtualmachineinstancepresets" => Some(Self::Preset),
            "virtualmachineinstancereplicasets" => Some(Self::ReplicaSet),
            _ => None,
        }
    }

    /// The kind's name.
    fn name(self) -> &'static str {
        match self {
            Self::KubeVirt => "KubeVirt",
            Self::Machine => "VirtualMachine",
            Self::Instance => "VirtualMachineInstance",
            Self::Migration => "VirtualMachineInstanceMigration",
            Self::Preset => "VirtualMachineInstancePreset",
            Self::ReplicaSet => "VirtualMachineInstanceReplicaSet",
        }
    }
}

/// Judges and completes writes.
#[derive(Clone)]
pub struct Admission {
    client: kube::Client,
    config: watch::Receiver<Arc<ClusterConfig>>,
    presets: Option<Store<VirtualMachineInstancePreset>>,
    namespace: String,
}

/// A refusal as the API server passes it on when a webhook has answered it.
#[must_use]
pub fn as_passed_on(request: &Request<'_>, mut refusal: Box<Status>) -> Box<Status> {
    if let Some(kind) = Kind::of(request) {
        let name = denial::webhook(kind, request.operation);
        let why = refusal.message.take().unwrap_or_default();
        refusal.message = Some(format!("admission webhook \"{name}\" denied the request: {why}"));
    }
    refusal
}

impl Admission {
    /// Presets and existing `KubeVirt` objects are read through `client`; `config` is what the administrator decides.
    pub fn new(client: kube::Client, config: watch::Receiver<Arc<ClusterConfig>>) -> Self {
        Self {
            client,
            config,
            presets: None,
            namespace: NAMESPACE.to_owned(),
        }
    }

    /// Takes presets from a store that somebody keeps up to date, instead of asking for them with each VMI.
    #[must_use]
    pub fn with_presets(mut self, presets: Store<VirtualMachineInstancePreset>) -> Self {
        self.presets = Some(presets);
        self
    }

    /// Our own components run in this namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    fn config(&self) -> Arc<ClusterConfig> {
        self.config.borrow().clone()
    }

    /// Completes an object in place: a new one, or a VM that is changed. Returns warnings for the client.
    ///
    /// # Errors
    /// The request is refused with this `Status`: presets contradict each other.
    pub async fn mutate(&self, request: Request<'_>, object: &mut Value) -> Result<Vec<String>, Box<Status>> {
        let Some(kind) = Kind::of(&request) else {
            return Ok(Vec::new());
        };
        let denial = Denial::new(kind, &request, object);
        if request.operation == Operation::Update {
            let old = request.old.filter(|_| kind == Kind::Machine);
            return old.map_or(Ok(Vec::new()), |old| carry_over(object, old, &denial, &self.config()));
        }
        match kind {
            Kind::Machine => object::edit(object, &denial, |vm: &mut VirtualMachine| {
                default_vm(vm, &self.config(), Uuid::new_v4(), Uuid::new_v4());
                Ok(Vec::new())
            }),
            Kind::Instance => {
                let presets = self.presets(&request).await?;
                let config = self.config();
                object::edit(object, &denial, |vmi: &mut VirtualMachineInstance| {
                    if vmi.metadata.namespace.is_none() {
                        vmi.metadata.namespace = request.namespace.map(str::to_owned);
                    }
                    let applied = apply_presets(vmi, &presets)?;
                    default_vmi(vmi, &config, Uuid::new_v4());
                    Ok(applied.warnings)
                })
            }
            Kind::Migration => object::edit(object, &denial, |migration: &mut VirtualMachineInstanceMigration| {
                prepare(migration);
                Ok(Vec::new())
            }),
            Kind::KubeVirt | Kind::Preset | Kind::ReplicaSet => Ok(Vec::new()),
        }
    }

    /// Judges the final object (`None` for deletes). Returns warnings for the client.
    ///
    /// # Errors
    /// The request is refused with this `Status`: 422 with every cause and its field.
    pub async fn validate(&self, request: Request<'_>, object: Option<&Value>) -> Result<Vec<String>, Box<Status>> {
        let (Some(kind), Some(object)) = (Kind::of(&request), object) else {
            return Ok(Vec::new());
        };
        let denial = Denial::new(kind, &request, object);
        let ours = request.user.is_ours(&self.namespace);
        let mut causes = judge(kind, &request, object, &denial, &self.config(), ours)?;
        if kind == Kind::KubeVirt && request.operation == Operation::Create {
            causes.extend(self.other_kubevirt().await?);
        }
        denial.unless_empty(causes)?;
        Ok(warnings(kind, object))
    }

    async fn presets(&self, request: &Request<'_>) -> Result<Vec<VirtualMachineInstancePreset>, Refusal> {
        let namespace = request.namespace.unwrap_or("default");
        if let Some(store) = &self.presets {
            let all = store.state();
            let here = all
                .iter()
                .filter(|preset| preset.metadata.namespace.as_deref() == Some(namespace));
            return Ok(here.map(|preset| (**preset).clone()).collect());
        }
        let api: Api<VirtualMachineInstancePreset> = Api::namespaced(self.client.clone(), namespace);
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            // Without the kind there are no presets.
            Err(kube::Error::Api(refused)) if refused.code == 404 => Ok(Vec::new()),
            Err(error) => Err(status::from_client(error)),
        }
    }

    /// There is one configuration, so there is one `KubeVirt` object.
    async fn other_kubevirt(&self) -> Result<Option<Cause>, Refusal> {
        let api: Api<KubeVirt> = Api::all(self.client.clone());
        let list = api.list(&ListParams::default()).await.map_err(status::from_client)?;
        Ok(list.items.first().map(|other| Cause {
            reason: CauseReason::FieldValueDuplicate,
            field: "metadata.name".to_owned(),
            message: format!(
                "there is already a KubeVirt object, {}/{}: change that one",
                other.metadata.namespace.as_deref().unwrap_or_default(),
                other.metadata.name.as_deref().unwrap_or_default()
            ),
        }))
    }
}

/// Completes a VM that is changed.
fn carry_over(
    object: &mut Value,
    old: &Value,
    denial: &Denial,
    config: &ClusterConfig,
) -> Result<Vec<String>, Refusal> {
    // Without what was there, the rules have their say about what comes.
    let Ok(old) = VirtualMachine::deserialize(old) else {
        return Ok(Vec::new());
    };
    object::edit(object, denial, |vm: &mut VirtualMachine| {
        default_vm_update(vm, &old, config);
        Ok(Vec::new())
    })
}

/// All causes to refuse a write. Pure.
fn judge(
    kind: Kind,
    request: &Request<'_>,
    object: &Value,
    denial: &Denial,
    config: &ClusterConfig,
    ours: bool,
) -> Result<Vec<Cause>, Refusal> {
    let old = request.old.filter(|_| request.operation == Operation::Update);
    Ok(match kind {
        Kind::Machine => {
            let vm: VirtualMachine = object::read(object, denial)?;
            let old: Option<VirtualMachine> = old.map(|old| object::read(old, denial)).transpose()?;
            ferrovirt_core::validate_vm(&vm, old.as_ref(), config)
        }
        Kind::Instance => {
            let vmi: VirtualMachineInstance = object::read(object, denial)?;
            match old {
                Some(old) => ferrovirt_core::validate_vmi_update(&object::read(old, denial)?, &vmi, ours),
                None => ferrovirt_core::validate_vmi_create(&vmi, config, ours),
            }
        }
        Kind::Preset if old.is_some_and(|old| old["spec"] == object["spec"]) => Vec::new(),
        Kind::Preset => ferrovirt_core::validate_preset(&object::read(object, denial)?),
        Kind::ReplicaSet => replica_set(&object::read(object, denial)?, old.is_none()),
        Kind::Migration if old.is_some() => Vec::new(),
        Kind::Migration => vec![later("kind", "VirtualMachineInstanceMigration")],
        Kind::KubeVirt => {
            let configuration = |object| {
                let kubevirt: KubeVirt = object::read(object, denial)?;
                Ok::<_, Refusal>(kubevirt.spec.configuration.unwrap_or_default())
            };
            let old = old.map(configuration).transpose()?;
            // On a cluster it is virt-operator that judges it.
            validate_configuration(&configuration(object)?, old.as_ref(), &ClusterConfig::standalone())
        }
    })
}

/// A migration is found by its VMI, and does not go before its end is known.
fn prepare(migration: &mut VirtualMachineInstanceMigration) {
    if let Some(vmi) = &migration.spec.vmi_name {
        let labels = migration.metadata.labels.get_or_insert_default();
        labels.insert(VMI_NAME_LABEL.to_owned(), vmi.clone());
    }
    let finalizers = migration.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|name| name == MIGRATION_FINALIZER) {
        finalizers.push(MIGRATION_FINALIZER.to_owned());
    }
}

fn later(field: &str, what: &str) -> Cause {
    Cause {
        reason: CauseReason::FieldValueNotSupported,
        field: field.to_owned(),
        message: format!("not supported yet: {what}"),
    }
}

/// A replica set that exists may still be changed, for example to lose its finalizers.
fn replica_set(set: &VirtualMachineInstanceReplicaSet, new: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    let metadata = set.spec.template.metadata.as_ref();
    let labels = metadata
        .and_then(|metadata| metadata.labels.clone())
        .unwrap_or_default();
    if !ferrovirt_core::preset::selects(&set.spec.selector, &labels) {
        causes.push(Cause {
            reason: CauseReason::FieldValueInvalid,
            field: "spec.selector".to_owned(),
            message: "selector does not match labels.".to_owned(),
        });
    }
    if new {
        causes.push(later("kind", "VirtualMachineInstanceReplicaSet"));
    }
    causes
}

/// What works, but will not for ever.
fn warnings(kind: Kind, object: &Value) -> Vec<String> {
    if kind == Kind::KubeVirt {
        let configuration = object.pointer("/spec/configuration").cloned().unwrap_or_default();
        let configuration = serde_json::from_value(configuration).unwrap_or_default();
        return without_effect(&configuration, &ClusterConfig::standalone());
    }
    let running = object
        .pointer("/spec/running")
        .is_some_and(|running| !running.is_null());
    if kind == Kind::Machine && running {
        return vec!["spec.running is deprecated, please use spec.runStrategy instead.".to_owned()];
    }
    Vec::new()
}
