//! Volumes, the disks that are more than their volume, and what is imported.

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::parameters::Parameters;
use crate::cli::CreateVm;

/// A volume of the machine.
struct Volume {
    name: String,
    source: Value,
    boot_order: Option<u32>,
}

/// The volumes of a machine, in the order of the flags.
#[derive(Default)]
pub(super) struct Volumes {
    all: Vec<Volume>,
    templates: Vec<Value>,
}

impl Volumes {
    /// Those that the flags ask for.
    pub(super) fn of(arguments: &CreateVm, machine: &str) -> anyhow::Result<Self> {
        let mut volumes = Self::default();
        for (index, text) in arguments.volume_containerdisk.iter().enumerate() {
            let name = format!("{machine}-containerdisk-{index}");
            volumes
                .container_disk(text, name)
                .with_context(|| format!("--volume-containerdisk={text}"))?;
        }
        for text in &arguments.volume_pvc {
            volumes.claim(text).with_context(|| format!("--volume-pvc={text}"))?;
        }
        let imports = [
            ("volume-import", None, &arguments.volume_import),
            ("volume-datasource", Some("ds"), &arguments.volume_datasource),
            ("volume-clone-pvc", Some("pvc"), &arguments.volume_clone_pvc),
            ("volume-blank", Some("blank"), &arguments.volume_blank),
        ];
        for (flag, kind, texts) in imports {
            for text in texts {
                let name = format!("{machine}-imported-{}", volumes.templates.len());
                volumes
                    .import(text, kind, name)
                    .with_context(|| format!("--{flag}={text}"))?;
            }
        }
        if let Some(text) = &arguments.volume_sysprep {
            volumes
                .sysprep(text)
                .with_context(|| format!("--volume-sysprep={text}"))?;
        }
        Ok(volumes)
    }

    fn container_disk(&mut self, text: &str, default_name: String) -> anyhow::Result<()> {
        let mut parameters = Parameters::parse(text)?;
        let image = parameters.required("src")?;
        let name = parameters.take("name").unwrap_or(default_name);
        let boot_order = parameters.boot_order()?;
        parameters.done()?;
        self.push(&name, json!({"containerDisk": {"image": image}}), boot_order)
    }

    fn claim(&mut self, text: &str) -> anyhow::Result<()> {
        let mut parameters = Parameters::parse(text)?;
        let claim = parameters.required("src")?;
        if claim.contains('/') {
            bail!("a machine can only use claims of its own namespace: src:NAME");
        }
        let name = parameters.take("name").unwrap_or_else(|| claim.clone());
        let boot_order = parameters.boot_order()?;
        parameters.done()?;
        self.push(
            &name,
            json!({"persistentVolumeClaim": {"claimName": claim}}),
            boot_order,
        )
    }

    fn sysprep(&mut self, text: &str) -> anyhow::Result<()> {
        let mut parameters = Parameters::parse(text)?;
        let source = parameters.required("src")?;
        let kind = parameters.take("type");
        parameters.done()?;
        if source.contains('/') {
            bail!("a machine can only use objects of its own namespace: src:NAME");
        }
        let source = match kind.as_deref().map(str::to_lowercase).as_deref() {
            None | Some("configmap") => json!({"configMap": {"name": source}}),
            Some("secret") => json!({"secret": {"name": source}}),
            Some(other) => bail!("type:{other} is neither configmap nor secret"),
        };
        self.push("sysprepdisk", json!({"sysprep": source}), None)
    }

    fn import(&mut self, text: &str, kind: Option<&str>, default_name: String) -> anyhow::Result<()> {
        let mut parameters = Parameters::parse(text)?;
        let kind = match kind {
            Some(kind) => kind.to_owned(),
            None => parameters.required("type")?,
        };
        let name = parameters.take("name").unwrap_or(default_name);
        let boot_order = parameters.boot_order()?;
        let size = parameters.take("size");
        let mut storage = json!({});
        match size {
            Some(size) => storage["resources"] = json!({"requests": {"storage": size}}),
            None if !matches!(kind.as_str(), "ds" | "pvc" | "snapshot") => bail!("size:QUANTITY is missing"),
            None => {}
        }
        let mut spec = json!({"storage": storage});
        let (field, value) = source(&kind, &mut parameters)?;
        spec[field] = value;
        parameters.done()?;
        self.templates.push(json!({"metadata": {"name": name}, "spec": spec}));
        self.push(&name, json!({"dataVolume": {"name": name}}), boot_order)
    }

    /// Adds a volume.
    ///
    /// # Errors
    /// Its name or its place in the boot order is taken.
    pub(super) fn push(&mut self, name: &str, source: Value, boot_order: Option<u32>) -> anyhow::Result<()> {
        if self.all.iter().any(|other| other.name == name) {
            bail!("there is a volume {name:?} already: give it another name");
        }
        if let Some(order) = boot_order.filter(|order| self.all.iter().any(|other| other.boot_order == Some(*order))) {
            bail!("bootorder {order} was specified multiple times");
        }
        self.all.push(Volume {
            name: name.to_owned(),
            source,
            boot_order,
        });
        Ok(())
    }

    /// Only of those that boot in an order: the others get a disk by themselves.
    pub(super) fn disks(&self) -> Vec<Value> {
        let disk = |volume: &Volume| {
            let order = volume.boot_order?;
            Some(json!({"name": volume.name, "disk": {"bus": "virtio"}, "bootOrder": order}))
        };
        self.all.iter().filter_map(disk).collect()
    }

    pub(super) fn volumes(&self) -> Vec<Value> {
        let volume = |volume: &Volume| {
            let mut one = volume.source.clone();
            one["name"] = volume.name.as_str().into();
            one
        };
        self.all.iter().map(volume).collect()
    }

    pub(super) fn templates(&self) -> Vec<Value> {
        self.templates.clone()
    }

    /// The name of a volume that is there.
    pub(super) fn known<'a>(&self, name: &'a str) -> anyhow::Result<&'a str> {
        if self.all.iter().any(|volume| volume.name == name) {
            return Ok(name);
        }
        bail!("there is no volume {name:?} to infer it from")
    }

    /// The volume that the machine boots from.
    pub(super) fn boot(&self) -> anyhow::Result<&str> {
        let first = self
            .all
            .iter()
            .min_by_key(|volume| volume.boot_order.unwrap_or(u32::MAX));
        let first = first.context("there is no volume to infer it from")?;
        Ok(&first.name)
    }
}

/// The field of a DataVolume's spec that says where data come from.
fn source(kind: &str, parameters: &mut Parameters) -> anyhow::Result<(&'static str, Value)> {
    // Names of parameters, and of their fields; the first is required.
    let fields: &[(&str, &str)] = match kind {
        "blank" => return Ok(("source", json!({"blank": {}}))),
        "ds" => {
            let mut reference = named(&parameters.required("src")?);
            reference.insert("kind".to_owned(), "DataSource".into());
            return Ok(("sourceRef", reference.into()));
        }
        "pvc" | "snapshot" => return Ok(("source", json!({kind: named(&parameters.required("src")?)}))),
        "gcs" => &[("url", "url"), ("secretref", "secretRef")],
        "http" => &[
            ("url", "url"),
            ("secretref", "secretRef"),
            ("certconfigmap", "certConfigMap"),
        ],
        "imageio" => &[
            ("url", "url"),
            ("diskid", "diskId"),
            ("secretref", "secretRef"),
            ("certconfigmap", "certConfigMap"),
        ],
        "registry" => return registry(parameters),
        "s3" => &[
            ("url", "url"),
            ("secretref", "secretRef"),
            ("certconfigmap", "certConfigMap"),
        ],
        "vddk" => &[
            ("url", "url"),
            ("backingfile", "backingFile"),
            ("initimageurl", "initImageURL"),
            ("uuid", "uuid"),
            ("thumbprint", "thumbprint"),
            ("secretref", "secretRef"),
        ],
        other => bail!("type:{other} is no way to import"),
    };
    let mut found = Map::new();
    for (index, (parameter, field)) in fields.iter().enumerate() {
        let value = if index == 0 {
            Some(parameters.required(parameter)?)
        } else {
            parameters.take(parameter)
        };
        found.extend(value.map(|value| ((*field).to_owned(), value.into())));
    }
    if kind == "http" {
        for (parameter, field) in [
            ("extraheaders", "extraHeaders"),
            ("secretextraheaders", "secretExtraHeaders"),
        ] {
            let list = parameters.take(parameter);
            found.extend(list.map(|list| (field.to_owned(), list.split(';').collect())));
        }
    }
    Ok(("source", json!({kind: found})))
}

/// By its address, or by an ImageStream that is pulled on the node.
fn registry(parameters: &mut Parameters) -> anyhow::Result<(&'static str, Value)> {
    let mut found = Map::new();
    match (parameters.take("url"), parameters.take("imagestream")) {
        (Some(url), None) => found.insert("url".to_owned(), url.into()),
        (None, Some(stream)) => found.insert("imageStream".to_owned(), stream.into()),
        _ => bail!("exactly one of url:URL and imagestream:NAME has to be given"),
    };
    for (parameter, field) in [
        ("pullmethod", "pullMethod"),
        ("secretref", "secretRef"),
        ("certconfigmap", "certConfigMap"),
    ] {
        found.extend(parameters.take(parameter).map(|value| (field.to_owned(), value.into())));
    }
    Ok(("source", json!({"registry": found})))
}

/// `[NAMESPACE/]NAME`.
fn named(text: &str) -> Map<String, Value> {
    let mut found = Map::new();
    match text.split_once('/') {
        Some((namespace, name)) => {
            found.insert("namespace".to_owned(), namespace.into());
            found.insert("name".to_owned(), name.into());
        }
        None => {
            found.insert("name".to_owned(), text.into());
        }
    }
    found
}
