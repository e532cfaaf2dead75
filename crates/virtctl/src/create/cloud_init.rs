//! The volume with cloud-init's data.

use anyhow::bail;
use serde_json::{Map, Value, json};

use crate::cli::{CloudInit, CreateVm};

const CLEAR_TEXT: &str = "the password is stored in clear text in the manifest";
const NO_PLACE: &str = "--cloud-init=none leaves no place for a user, a password, keys or data of cloud-init: they are \
                        left out";

/// Its source, if there are any data, and what the user should know.
pub(super) fn volume(
    arguments: &CreateVm,
    password: Option<&str>,
    credentials: &[Value],
) -> anyhow::Result<(Option<Value>, Vec<&'static str>)> {
    // A propagation method needs its volume, even if there is nothing else to say.
    let carries = |method: &str| {
        credentials
            .iter()
            .any(|credential| !credential["sshPublicKey"]["propagationMethod"][method].is_null())
    };
    let carried = match (carries("noCloud"), carries("configDrive")) {
        (true, true) => bail!("--access-cred: all of method:nocloud or all of method:configdrive"),
        (true, false) => Some(CloudInit::NoCloud),
        (false, true) => Some(CloudInit::ConfigDrive),
        (false, false) => None,
    };
    let kind = match (arguments.cloud_init, carried) {
        (Some(CloudInit::None), Some(_)) => {
            bail!("--cloud-init=none leaves no place for --access-cred: use method:ga")
        }
        (Some(given), Some(carried)) if given != carried => {
            bail!("--access-cred: its method and --cloud-init must be the same")
        }
        (given, carried) => given.or(carried).unwrap_or(CloudInit::NoCloud),
    };
    let manage = arguments.ga_manage_ssh.unwrap_or_else(|| {
        let by_agent =
            |credential: &Value| !credential["sshPublicKey"]["propagationMethod"]["qemuGuestAgent"].is_null();
        credentials.iter().any(by_agent)
    });
    let field = match kind {
        CloudInit::NoCloud => "cloudInitNoCloud",
        CloudInit::ConfigDrive => "cloudInitConfigDrive",
        CloudInit::None => {
            // What only follows from --access-cred was not asked for.
            let asked = arguments.cloud_init_user_data.is_some()
                || arguments.cloud_init_network_data.is_some()
                || !config(arguments, password, arguments.ga_manage_ssh == Some(true)).is_empty();
            return Ok((None, if asked { vec![NO_PLACE] } else { Vec::new() }));
        }
    };
    let mut source = Map::new();
    match &arguments.cloud_init_user_data {
        Some(given) => source.insert("userDataBase64".to_owned(), given.as_str().into()),
        None => {
            let text = text(&config(arguments, password, manage));
            text.and_then(|text| source.insert("userData".to_owned(), text.into()))
        }
    };
    if let Some(data) = &arguments.cloud_init_network_data {
        source.insert("networkDataBase64".to_owned(), data.as_str().into());
    }
    if source.is_empty() && carried.is_some() {
        source.insert("userData".to_owned(), "#cloud-config\n".into());
    }
    let warnings = password.map(|_| CLEAR_TEXT).into_iter().collect();
    Ok(((!source.is_empty()).then(|| json!({ field: source })), warnings))
}

/// cloud-config of the flags.
fn config(arguments: &CreateVm, password: Option<&str>, manage_ssh: bool) -> Map<String, Value> {
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
    if manage_ssh {
        let allow = json!([["setsebool", "-P", "virt_qemu_ga_manage_ssh", "on"]]);
        config.insert("runcmd".to_owned(), allow);
    }
    config
}

fn text(config: &Map<String, Value>) -> Option<String> {
    if config.is_empty() {
        return None;
    }
    // JSON is YAML, but people read this.
    let text = serde_yaml_ng::to_string(config).unwrap_or_default();
    Some(format!("#cloud-config\n{text}"))
}
