//! `virtctl credentials`: SSH keys and passwords in the Secrets that a machine's `accessCredentials` name. A guest agent
//! brings them into the guest.

mod plan;

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cli::{Credentials, Goal, Key, Way};
use crate::connection::Connection;
use crate::target::Kind;
use crate::{note, say};
use plan::{Carried, Step};

/// Does what the flags say.
pub(crate) async fn run(connection: &Connection, arguments: &Credentials) -> anyhow::Result<()> {
    match arguments {
        Credentials::AddSshKey(arguments) => {
            let key = key(&arguments.key)?;
            let entry = format!("ssh-key-{}", random());
            let machine = Machine::find(connection, &arguments.goal, Carried::SshKey).await?;
            machine.put(&arguments.way, &entry, &key).await
        }
        Credentials::RemoveSshKey(arguments) => {
            let key = key(&arguments.key)?;
            let machine = Machine::find(connection, &arguments.goal, Carried::SshKey).await?;
            machine.remove(&key).await
        }
        Credentials::SetPassword(arguments) => {
            let machine = Machine::find(connection, &arguments.goal, Carried::Password).await?;
            let user = &arguments.goal.user;
            machine.put(&arguments.way, user, &arguments.password).await
        }
    }
}

fn random() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..5].to_owned()
}

fn key(given: &Key) -> anyhow::Result<String> {
    let text = match (&given.value, &given.file) {
        (Some(value), _) => value.clone(),
        (None, Some(file)) => crate::expand::read(file)?,
        (None, None) => String::new(),
    };
    let text = text.trim();
    if text.is_empty() || text.contains("PRIVATE KEY") {
        bail!("that is no public SSH key, such as 'ssh-ed25519 AAAA… comment'");
    }
    Ok(text.to_owned())
}

/// A machine whose credentials are changed.
struct Machine<'a> {
    vm: DynamicObject,
    goal: &'a Goal,
    carried: Carried,
    vms: Api<DynamicObject>,
    secrets: Api<Secret>,
}

impl<'a> Machine<'a> {
    async fn find(connection: &Connection, goal: &'a Goal, carried: Carried) -> anyhow::Result<Self> {
        let vms = connection.objects(Kind::Vm);
        let vm = vms.get(&goal.vm).await;
        Ok(Self {
            vm: vm.with_context(|| format!("cannot get VirtualMachine {}", goal.vm))?,
            goal,
            carried,
            vms,
            secrets: Api::namespaced(connection.client.clone(), &connection.namespace),
        })
    }

    /// Whether the Secret was made for this machine.
    fn owns(&self, secret: &Secret) -> bool {
        let uid = self.vm.metadata.uid.as_deref().unwrap_or_default();
        secret.owner_references().iter().any(|owner| owner.uid == uid)
    }

    fn own(&self, secret: &Secret) -> anyhow::Result<()> {
        if self.owns(secret) || self.goal.force {
            return Ok(());
        }
        bail!(
            "Secret {} does not belong to VirtualMachine {}, and others may use it: change it with --force, or make \
             another one with --create-secret",
            secret.name_any(),
            self.goal.vm
        )
    }

    async fn put(&self, way: &Way, entry: &str, value: &str) -> anyhow::Result<()> {
        let used = plan::used(&self.vm.data, self.carried, &self.goal.user);
        let mut known = Vec::new();
        for name in used {
            let found = self.secrets.get_opt(&name).await;
            let found = found.with_context(|| format!("cannot get Secret {name}"))?;
            known.extend(found.map(|secret| (name, self.owns(&secret))));
        }
        let user = &self.goal.user;
        match plan::step(way, self.goal, &known).map_err(anyhow::Error::msg)? {
            Step::Update(name) => {
                let secret = self.secrets.get(&name).await;
                let secret = secret.with_context(|| format!("cannot get Secret {name}"))?;
                self.own(&secret)?;
                if self.carried == Carried::SshKey && plan::holds(&plan::text(&secret), value) {
                    return say(format_args!("Secret {name} has this key of user {user} already"));
                }
                let patch = json!({"data": {entry: ByteString(value.as_bytes().to_vec())}});
                self.patch(&name, &patch).await?;
                say(format_args!(
                    "Secret {name} has the new {} of user {user}",
                    self.carried.noun()
                ))
            }
            Step::Create(name) => {
                let name = name.unwrap_or_else(|| format!("{}-{}-{}", self.goal.vm, self.carried.suffix(), random()));
                self.create(&name, entry, value).await?;
                say(format_args!(
                    "Secret {name} was created with the {} of user {user}",
                    self.carried.noun()
                ))?;
                note(format_args!(
                    "VirtualMachine {} uses it from its next start on: if it runs, restart it with virtctl restart {0}",
                    self.goal.vm
                ));
                Ok(())
            }
        }
    }

    async fn create(&self, name: &str, entry: &str, value: &str) -> anyhow::Result<()> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "kubevirt.io/v1".to_owned(),
                    kind: "VirtualMachine".to_owned(),
                    name: self.goal.vm.clone(),
                    uid: self.vm.metadata.uid.clone().unwrap_or_default(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(
                entry.to_owned(),
                ByteString(value.as_bytes().to_vec()),
            )])),
            ..Secret::default()
        };
        let created = self.secrets.create(&PostParams::default(), &secret).await;
        created.with_context(|| format!("cannot create Secret {name}"))?;
        let credentials = plan::with(&self.vm.data, self.carried, &self.goal.user, name);
        // Somebody else's change in between is not undone.
        let patch = json!({
            "metadata": {"resourceVersion": self.vm.metadata.resource_version},
            "spec": {"template": {"spec": {"accessCredentials": credentials}}},
        });
        let patched = self
            .vms
            .patch(&self.goal.vm, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        patched
            .map(drop)
            .with_context(|| format!("cannot let VirtualMachine {} use Secret {name}", self.goal.vm))
    }

    async fn patch(&self, name: &str, patch: &Value) -> anyhow::Result<()> {
        let patched = self
            .secrets
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched
            .map(drop)
            .with_context(|| format!("cannot change Secret {name}"))
    }

    async fn remove(&self, key: &str) -> anyhow::Result<()> {
        let used = plan::used(&self.vm.data, self.carried, &self.goal.user);
        let names = match &self.goal.secret {
            Some(name) => vec![name.clone()],
            None => used,
        };
        let mut found = false;
        for name in &names {
            let secret = self.secrets.get(name).await;
            let secret = secret.with_context(|| format!("cannot get Secret {name}"))?;
            let text = plan::text(&secret);
            if !plan::holds(&text, key) {
                continue;
            }
            self.own(&secret)?;
            self.patch(name, &json!({"data": plan::without(&text, key)})).await?;
            found = true;
            let user = &self.goal.user;
            say(format_args!("Secret {name} has this key of user {user} no more"))?;
        }
        if !found {
            bail!(
                "VirtualMachine {} takes no such key of user {} from a Secret",
                self.goal.vm,
                self.goal.user
            );
        }
        Ok(())
    }
}
