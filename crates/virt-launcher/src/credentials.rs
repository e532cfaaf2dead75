//! Keys and passwords of the guest's users, from Secrets that the pod mounts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ferrovirt_core::machine::{AccessCredential, CloudInitFlavor, CredentialMethod};
use serde_json::{Value, json};

use crate::layout::Layout;

/// Most bytes of a Secret; Kubernetes allows no more.
const MAX_BYTES: u64 = 1 << 20;

/// A Secret that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the access credentials in {}", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// One command for the guest agent. Its text is secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Order {
    /// These, and only these, keys for a user.
    Keys {
        /// Name of the user.
        user: String,
        /// Lines of `authorized_keys`.
        keys: Vec<String>,
    },
    /// A user's password.
    Password {
        /// Name of the user.
        user: String,
        /// In clear.
        password: String,
    },
}

impl Order {
    /// Whose credentials they are.
    pub fn user(&self) -> &str {
        match self {
            Self::Keys { user, .. } | Self::Password { user, .. } => user,
        }
    }

    /// In the agent's words.
    pub fn command(&self) -> Value {
        match self {
            Self::Keys { user, keys } => json!({
                "execute": "guest-ssh-add-authorized-keys",
                "arguments": {"username": user, "keys": keys, "reset": true},
            }),
            Self::Password { user, password } => json!({
                "execute": "guest-set-user-password",
                "arguments": {"username": user, "password": STANDARD.encode(password), "crypted": false},
            }),
        }
    }
}

/// Whether the agent has anything to do with a credential.
pub fn by_agent(credential: &AccessCredential) -> bool {
    match credential.method {
        CredentialMethod::KeysByAgent(_) | CredentialMethod::PasswordsByAgent => true,
        CredentialMethod::KeysOnSeed(_) => false,
    }
}

/// All that the agent is to do, by what the Secrets say now. A user's keys are those of all Secrets.
pub fn orders(layout: &Layout, credentials: &[AccessCredential]) -> Result<Vec<Order>, Error> {
    let mut keys: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut passwords = BTreeMap::new();
    for credential in credentials {
        match &credential.method {
            CredentialMethod::KeysOnSeed(_) => {}
            CredentialMethod::KeysByAgent(users) => {
                let lines = lines(&read(&layout.credential(&credential.volume))?);
                for user in users {
                    let list = keys.entry(user).or_default();
                    list.extend(
                        lines
                            .iter()
                            .filter(|line| !list.contains(line))
                            .cloned()
                            .collect::<Vec<_>>(),
                    );
                }
            }
            CredentialMethod::PasswordsByAgent => {
                for (user, content) in read(&layout.credential(&credential.volume))? {
                    let password = String::from_utf8_lossy(&content).trim().to_owned();
                    if !password.is_empty() {
                        passwords.insert(user, password);
                    }
                }
            }
        }
    }
    let keys = keys.into_iter().map(|(user, keys)| Order::Keys {
        user: user.to_owned(),
        keys,
    });
    let passwords = passwords
        .into_iter()
        .map(|(user, password)| Order::Password { user, password });
    Ok(keys.chain(passwords).collect())
}

/// The keys that a cloud-init disk is to have.
pub fn seed_keys(
    layout: &Layout,
    credentials: &[AccessCredential],
    flavor: CloudInitFlavor,
) -> Result<Vec<String>, Error> {
    let mut keys = Vec::new();
    for credential in credentials {
        if credential.method == CredentialMethod::KeysOnSeed(flavor) {
            keys.extend(lines(&read(&layout.credential(&credential.volume))?));
        }
    }
    Ok(keys)
}

/// The keys in files of the format `authorized_keys`. QEMU's agent takes none of them if there is a comment among them.
fn lines(files: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let text = files.values().map(|content| String::from_utf8_lossy(content));
    text.flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// The keys of a mounted Secret; what begins with a dot is the kubelet's.
fn read(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error { path, source }
    };
    let (mut files, mut left) = (BTreeMap::new(), MAX_BYTES);
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let name = entry.map_err(at(directory))?.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let path = directory.join(name);
        let meta = fs::metadata(&path).map_err(at(&path))?;
        let fits = left.checked_sub(meta.len()).filter(|_| meta.is_file());
        left = fits.ok_or_else(|| at(&path)(io::Error::from(io::ErrorKind::InvalidData)))?;
        files.insert(name.to_owned(), fs::read(&path).map_err(at(&path))?);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(volume: &str, method: CredentialMethod) -> AccessCredential {
        AccessCredential {
            secret: volume.to_owned(),
            volume: volume.to_owned(),
            method,
        }
    }

    #[test]
    fn secrets_become_orders_and_seed_keys() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), "ns", "vm", "uid");
        for (volume, file, content) in [
            ("a", "key1", "ssh-rsa A one\n\n  ssh-rsa B two \n"),
            ("a", "..data", "not a key"),
            ("b", "key", "# keys\nssh-rsa B two\n #ssh-rsa D\nssh-rsa C three #1"),
            ("p", "root", "s3cret\n"),
            ("p", "nobody", "  "),
        ] {
            let directory = layout.credential(volume);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(file), content).unwrap();
        }
        let users = |names: &[&str]| CredentialMethod::KeysByAgent(names.iter().map(|&n| n.to_owned()).collect());
        let all = [
            credential("a", users(&["root", "fedora"])),
            credential("b", users(&["root"])),
            credential("p", CredentialMethod::PasswordsByAgent),
            credential("b", CredentialMethod::KeysOnSeed(CloudInitFlavor::NoCloud)),
        ];
        let commands: Vec<String> = orders(&layout, &all)
            .unwrap()
            .iter()
            .map(|order| order.command().to_string())
            .collect();
        assert_eq!(
            commands,
            [
                r#"{"arguments":{"keys":["ssh-rsa A one","ssh-rsa B two"],"reset":true,"username":"fedora"},"execute":"guest-ssh-add-authorized-keys"}"#,
                r#"{"arguments":{"keys":["ssh-rsa A one","ssh-rsa B two","ssh-rsa C three #1"],"reset":true,"username":"root"},"execute":"guest-ssh-add-authorized-keys"}"#,
                r#"{"arguments":{"crypted":false,"password":"czNjcmV0","username":"root"},"execute":"guest-set-user-password"}"#,
            ]
        );
        assert_eq!(
            seed_keys(&layout, &all, CloudInitFlavor::NoCloud).unwrap(),
            ["ssh-rsa B two", "ssh-rsa C three #1"]
        );
        assert!(
            seed_keys(&layout, &all, CloudInitFlavor::ConfigDrive)
                .unwrap()
                .is_empty()
        );
        let missing = [credential("missing", CredentialMethod::PasswordsByAgent)];
        assert!(orders(&layout, &missing).is_err());
    }
}
