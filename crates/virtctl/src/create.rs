//! `virtctl create vm`: a manifest from flags. Pure, but for a password's file.

mod parameters;
mod volumes;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::cli::{CloudInit, Create, CreateVm, Format};
use crate::target::is_name;
use parameters::Parameters;
use volumes::Volumes;

/// Memory of a machine of which nothing is said.
const MEMORY: &str = "512Mi";
/// Name of the volume with cloud-init's data.
const CLOUD_INIT_DISK: &str = "cloudinitdisk";

/// Prints the manifest.
pub(crate) fn run(arguments: &Create) -> anyhow::Result<()> {
    let Create::Vm(arguments) = arguments;
    let password = match &arguments.password_file {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let random = || format!("vm-{}", &uuid::Uuid::new_v4().simple().to_string()[..5]);
    let name = arguments.name.clone().unwrap_or_else(random);
    crate::expand::print(&machine(arguments, &name, password.as_deref())?, Format::Yaml)
}

/// The VirtualMachine.
fn machine(arguments: &CreateVm, name: &str, password: Option<&str>) -> anyhow::Result<Value> {
    if name.is_empty() || !is_name(name) {
        bail!("--name: {name:?} is no name of a Kubernetes object");
    }
    let mut volumes = Volumes::of(arguments, name)?;
    let credentials = credentials(arguments)?;
    if let Some(cloud_init) = cloud_init(arguments, password, &credentials)? {
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
    Ok(json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": spec,
    }))
}

fn set(object: &mut Value, field: &str, list: Vec<Value>) {
    if !list.is_empty() {
        object[field] = list.into();
    }
}

/// The volume source of cloud-init's data, if there are any.
fn cloud_init(arguments: &CreateVm, password: Option<&str>, credentials: &[Value]) -> anyhow::Result<Option<Value>> {
    let user_data = match &arguments.cloud_init_user_data {
        Some(given) => Some(("userDataBase64", Value::from(given.as_str()))),
        None => generated(arguments, password).map(|text| ("userData", Value::from(text))),
    };
    // A propagation method needs its volume, even if there is nothing else to say.
    let carries = |method: &str| {
        credentials
            .iter()
            .any(|credential| !credential["sshPublicKey"]["propagationMethod"][method].is_null())
    };
    let (field, carried, other) = match arguments.cloud_init {
        CloudInit::NoCloud => ("cloudInitNoCloud", carries("noCloud"), carries("configDrive")),
        CloudInit::ConfigDrive => ("cloudInitConfigDrive", carries("configDrive"), carries("noCloud")),
        CloudInit::None => {
            if user_data.is_some() || arguments.cloud_init_network_data.is_some() {
                bail!("--cloud-init=none leaves no place for a user, a password, keys or data of cloud-init");
            }
            if carries("noCloud") || carries("configDrive") {
                bail!("--cloud-init=none leaves no place for --access-cred: use method:ga");
            }
            return Ok(None);
        }
    };
    if other {
        bail!("--access-cred: its method and --cloud-init must be the same");
    }
    let mut source = Map::new();
    source.extend(user_data.map(|(key, value)| (key.to_owned(), value)));
    if let Some(data) = &arguments.cloud_init_network_data {
        source.insert("networkDataBase64".to_owned(), data.as_str().into());
    }
    if source.is_empty() && carried {
        source.insert("userData".to_owned(), "#cloud-config\n".into());
    }
    Ok((!source.is_empty()).then(|| json!({ field: source })))
}

/// cloud-config of the flags.
fn generated(arguments: &CreateVm, password: Option<&str>) -> Option<String> {
    let mut config = Map::new();
    if let Some(user) = &arguments.user {
        config.insert("user".to_owned(), user.as_str().into());
    }
    if let Some(password) = password {
        config.insert("password".to_owned(), password.into());
        config.insert("chpasswd".to_owned(), json!({"expire": false}));
    }
    if !arguments.ssh_key.is_empty() {
        config.insert("ssh_authorized_keys".to_owned(), json!(arguments.ssh_key));
    }
    if arguments.ga_manage_ssh {
        let allow = json!([["setsebool", "-P", "virt_qemu_ga_manage_ssh", "on"]]);
        config.insert("runcmd".to_owned(), allow);
    }
    if config.is_empty() {
        return None;
    }
    // JSON is YAML, but people read this.
    let text = serde_yaml_ng::to_string(&config).unwrap_or_default();
    Some(format!("#cloud-config\n{text}"))
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
