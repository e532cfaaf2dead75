//! `virtctl create vm`: a manifest from flags. Pure, but for a password's file.

mod cloud_init;
mod parameters;
mod volumes;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cli::{Create, CreateVm, Format};
use crate::note;
use crate::target::is_name;
use parameters::Parameters;
use volumes::Volumes;

/// Memory of a machine of which nothing is said.
const MEMORY: &str = "512Mi";
/// Name of the volume with cloud-init's data.
const CLOUD_INIT_DISK: &str = "cloudinitdisk";

/// Prints the manifest.
pub(crate) fn run(arguments: &Create, namespace: Option<&str>) -> anyhow::Result<()> {
    let Create::Vm(arguments) = arguments;
    let password = match &arguments.password_file {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Some(text.trim().to_owned())
        }
    };
    let random = || format!("vm-{}", &uuid::Uuid::new_v4().simple().to_string()[..5]);
    let name = arguments.name.clone().unwrap_or_else(random);
    let (machine, warnings) = machine(arguments, &name, namespace, password.as_deref())?;
    for warning in warnings {
        note(format_args!("Warning: {warning}"));
    }
    crate::expand::print(&machine, Format::Yaml)
}

/// The VirtualMachine, and what the user should know of it.
fn machine(
    arguments: &CreateVm,
    name: &str,
    namespace: Option<&str>,
    password: Option<&str>,
) -> anyhow::Result<(Value, Vec<&'static str>)> {
    if name.is_empty() || !is_name(name) {
        bail!("--name: {name:?} is no name of a Kubernetes object");
    }
    let mut volumes = Volumes::of(arguments, name)?;
    let credentials = credentials(arguments)?;
    let (cloud_init, warnings) = cloud_init::volume(arguments, password, &credentials)?;
    if let Some(cloud_init) = cloud_init {
        volumes.push(CLOUD_INIT_DISK, cloud_init, None)?;
    }
    let mut domain = json!({"devices": {}, "resources": {}});
    let disks = volumes.disks();
    if !disks.is_empty() {
        domain["devices"]["disks"] = disks.into();
    }
    let matcher = |given: Option<&str>, inferred: bool, from: Option<&str>| -> anyhow::Result<Option<Value>> {
        Ok(match (given, from) {
            (Some(given), _) => Some(match given.split_once('/') {
                Some((kind, name)) => json!({"kind": kind, "name": name}),
                None => json!({"name": given}),
            }),
            (None, Some(volume)) => Some(json!({"inferFromVolume": volumes.known(volume)?})),
            (None, None) if inferred => Some(json!({"inferFromVolume": volumes.boot()?})),
            (None, None) => None,
        })
    };
    let instancetype = matcher(
        arguments.instancetype.as_deref(),
        arguments.infer_instancetype,
        arguments.infer_instancetype_from.as_deref(),
    )
    .context("the instancetype")?;
    let preference = matcher(
        arguments.preference.as_deref(),
        arguments.infer_preference,
        arguments.infer_preference_from.as_deref(),
    )
    .context("the preference")?;
    if instancetype.is_none() {
        domain["memory"] = json!({"guest": arguments.memory.as_deref().unwrap_or(MEMORY)});
    }
    let mut template = json!({
        "domain": domain,
        "terminationGracePeriodSeconds": arguments.termination_grace_period,
    });
    set(&mut template, "volumes", volumes.volumes());
    set(&mut template, "accessCredentials", credentials);
    let mut spec = json!({"runStrategy": arguments.run_strategy, "template": {"spec": template}});
    set(&mut spec, "dataVolumeTemplates", volumes.templates());
    for (field, value) in [("instancetype", instancetype), ("preference", preference)] {
        if let Some(value) = value {
            spec[field] = value;
        }
    }
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    let made = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": metadata,
        "spec": spec,
    });
    Ok((made, warnings))
}

fn set(object: &mut Value, field: &str, list: Vec<Value>) {
    if !list.is_empty() {
        object[field] = list.into();
    }
}

fn credentials(arguments: &CreateVm) -> anyhow::Result<Vec<Value>> {
    let read =
        |text: &String| credential(text, arguments.user.as_deref()).with_context(|| format!("--access-cred={text}"));
    arguments.access_cred.iter().map(read).collect()
}

fn credential(text: &str, default_user: Option<&str>) -> anyhow::Result<Value> {
    let mut parameters = Parameters::parse(text)?;
    let secret = parameters.required("src")?;
    let kind = parameters.take("type").unwrap_or_else(|| "ssh".to_owned());
    let method = parameters.take("method").unwrap_or_else(|| "ga".to_owned());
    let user = parameters.take("user").or(default_user.map(str::to_owned));
    parameters.done()?;
    let source = json!({"secret": {"secretName": secret}});
    match (kind.as_str(), method.as_str()) {
        ("ssh", "ga") => {
            let user = user.context("the guest agent has to know whose key it is: add user:NAME or --user")?;
            let method = json!({"qemuGuestAgent": {"users": [user]}});
            Ok(json!({"sshPublicKey": {"source": source, "propagationMethod": method}}))
        }
        ("ssh", "nocloud") => Ok(json!({"sshPublicKey": {"source": source, "propagationMethod": {"noCloud": {}}}})),
        ("ssh", "configdrive") => {
            Ok(json!({"sshPublicKey": {"source": source, "propagationMethod": {"configDrive": {}}}}))
        }
        ("password", "ga") => {
            Ok(json!({"userPassword": {"source": source, "propagationMethod": {"qemuGuestAgent": {}}}}))
        }
        ("password", _) => bail!("method:{method} cannot carry a password: use method:ga"),
        ("ssh", _) => bail!("method:{method} is neither ga nor nocloud nor configdrive"),
        _ => bail!("type:{kind} is neither ssh nor password"),
    }
}

#[cfg(test)]
mod tests;
