//! Cloud-init data as an ISO image, in the two layouts that guests look for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ferrovirt_core::machine::{CloudInit, CloudInitData, CloudInitFlavor, Machine};
use serde_json::{Value, json};

use super::iso;
use crate::children::Children;
use crate::credentials;
use crate::hooks::{self, Hooks, Seed};
use crate::layout::Layout;

/// Largest piece of user or network data from a Secret; Kubernetes allows 1 MiB per Secret.
const MAX_DATA: u64 = 1 << 20;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Secret without the key.
    #[error("Secret {secret:?} has none of the keys {keys}")]
    NoKey {
        /// Its name.
        secret: String,
        /// What was looked for.
        keys: &'static str,
    },
    /// A key with too much data.
    #[error("{} is larger than {MAX_DATA} bytes", path.display())]
    TooLarge {
        /// Where.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("cannot read or write {}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The keys of users.
    #[error(transparent)]
    Keys(#[from] credentials::Error),
    /// A hook sidecar.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// The tool failed.
    #[error(transparent)]
    Iso(#[from] iso::Error),
}

/// Files of the image and their content.
type Files = Vec<(&'static str, Vec<u8>)>;

/// Builds the image and returns its path; an older one is replaced only by a complete one. `devices`: what a config
/// drive says about tagged devices.
pub async fn build(
    layout: &Layout,
    children: &Children,
    hooks: &Hooks,
    machine: &Machine,
    volume: &str,
    data: &CloudInit,
    devices: &[Value],
) -> Result<PathBuf, Error> {
    let seed = hooks.cloud_init(seed(layout, machine, volume, data, devices)?).await?;
    let files = files(seed);
    let (name, label) = match data.flavor {
        CloudInitFlavor::NoCloud => ("noCloud.iso", "cidata"),
        CloudInitFlavor::ConfigDrive => ("configdrive.iso", "config-2"),
    };
    let dir = layout.cloud_init();
    let tree = dir.join("data");
    write_tree(&tree, &files)?;
    let (staging, image) = (dir.join(format!("{name}.new")), dir.join(name));
    iso::make(children, &tree, &staging, label).await?;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    fs::rename(&staging, &image).map_err(at(&image))?;
    // It holds secrets a second time.
    fs::remove_dir_all(&tree).map_err(at(&tree))?;
    Ok(image)
}

fn write_tree(tree: &Path, files: &Files) -> Result<(), Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    if tree.exists() {
        fs::remove_dir_all(tree).map_err(at(tree))?;
    }
    for (name, content) in files {
        let path = tree.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        fs::write(&path, content).map_err(at(&path))?;
    }
    Ok(())
}

/// All that the image says, before hook sidecars have their say.
fn seed(layout: &Layout, machine: &Machine, volume: &str, data: &CloudInit, devices: &[Value]) -> Result<Seed, Error> {
    let user_keys = ["userdata", "userData"];
    let network_keys = ["networkdata", "networkData"];
    let user = read(
        data.user_data.as_ref(),
        &layout.cloud_init_secret(volume, "udata"),
        user_keys,
    )?;
    let network = read(
        data.network_data.as_ref(),
        &layout.cloud_init_secret(volume, "ndata"),
        network_keys,
    )?;
    let instance = machine.uuid.to_string();
    let keys = credentials::seed_keys(layout, &machine.access_credentials, data.flavor)?;
    let keys: serde_json::Map<String, Value> = keys
        .into_iter()
        .enumerate()
        .map(|(i, key)| (i.to_string(), key.into()))
        .collect();
    let meta = match data.flavor {
        CloudInitFlavor::NoCloud => {
            let mut meta = json!({ "instance-id": instance, "local-hostname": machine.hostname });
            if !keys.is_empty() {
                meta["public-keys"] = Value::Object(keys);
            }
            meta
        }
        CloudInitFlavor::ConfigDrive => {
            let legacy = format!("{}.{}", layout.name(), layout.namespace());
            let mut meta = json!({ "instance_id": legacy, "hostname": machine.hostname, "uuid": instance });
            if !keys.is_empty() {
                meta["public_keys"] = Value::Object(keys);
            }
            if !devices.is_empty() {
                meta["devices"] = devices.into();
            }
            meta
        }
    };
    Ok(Seed {
        flavor: data.flavor,
        volume: volume.to_owned(),
        meta,
        user,
        network,
    })
}

fn files(seed: Seed) -> Files {
    let meta = seed.meta.to_string().into_bytes();
    match seed.flavor {
        CloudInitFlavor::NoCloud => {
            // Cloud-init ignores a seed without user-data.
            let mut files = vec![("meta-data", meta), ("user-data", seed.user.unwrap_or_default())];
            files.extend(seed.network.map(|content| ("network-config", content)));
            files
        }
        CloudInitFlavor::ConfigDrive => {
            let mut files = vec![("openstack/latest/meta_data.json", meta)];
            files.extend(seed.user.map(|content| ("openstack/latest/user_data", content)));
            files.extend(
                seed.network
                    .map(|content| ("openstack/latest/network_data.json", content)),
            );
            files
        }
    }
}

fn read(data: Option<&CloudInitData>, mounted: &Path, keys: [&'static str; 2]) -> Result<Option<Vec<u8>>, Error> {
    match data {
        None => Ok(None),
        Some(CloudInitData::Inline(content)) => Ok(Some(content.clone())),
        Some(CloudInitData::Secret(secret)) => {
            for key in keys {
                let path = mounted.join(key);
                match fs::metadata(&path) {
                    Ok(meta) if meta.len() > MAX_DATA => return Err(Error::TooLarge { path }),
                    Ok(_) => return fs::read(&path).map(Some).map_err(|source| Error::File { path, source }),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(Error::File { path, source }),
                }
            }
            let keys = if keys[0] == "userdata" {
                "userdata, userData"
            } else {
                "networkdata, networkData"
            };
            Err(Error::NoKey {
                secret: secret.clone(),
                keys,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_under_both_spellings() {
        let dir = tempfile::tempdir().unwrap();
        let secret = Some(CloudInitData::Secret("s".into()));
        let keys = ["userdata", "userData"];
        let error = read(secret.as_ref(), dir.path(), keys).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Secret \"s\" has none of the keys userdata, userData"
        );
        fs::write(dir.path().join("userData"), "b").unwrap();
        assert_eq!(read(secret.as_ref(), dir.path(), keys).unwrap().unwrap(), b"b");
        fs::write(dir.path().join("userdata"), "a").unwrap();
        assert_eq!(read(secret.as_ref(), dir.path(), keys).unwrap().unwrap(), b"a");
        fs::write(dir.path().join("userdata"), vec![0; 2 << 20]).unwrap();
        assert!(matches!(
            read(secret.as_ref(), dir.path(), keys),
            Err(Error::TooLarge { .. })
        ));
    }

    fn machine(source: &str) -> Machine {
        machine_with(source, json!([]))
    }

    fn machine_with(source: &str, credentials: Value) -> Machine {
        let vmi = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "namespace": "ns"},
            "spec": {
                "accessCredentials": credentials,
                "domain": {"memory": {"guest": "64Mi"}, "devices": {}},
                "volumes": [serde_json::from_str::<serde_json::Value>(source).unwrap()],
            },
        });
        let vmi = serde_json::from_value(vmi).unwrap();
        Machine::parse(&vmi, &ferrovirt_core::ClusterConfig::standalone()).unwrap()
    }

    /// Shows `spec.accessCredentials[].sshPublicKey.propagationMethod.noCloud`,
    /// `spec.accessCredentials[].sshPublicKey.propagationMethod.configDrive`.
    #[test]
    fn keys_of_users_reach_the_image() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "ns", "vm", "u");
        let mounted = layout.credential("s-access-cred");
        fs::create_dir_all(&mounted).unwrap();
        fs::write(mounted.join("alice"), "ssh-rsa A\nssh-rsa B\n").unwrap();
        for (volume, method, file, keys) in [
            ("cloudInitNoCloud", "noCloud", "meta-data", "public-keys"),
            (
                "cloudInitConfigDrive",
                "configDrive",
                "openstack/latest/meta_data.json",
                "public_keys",
            ),
        ] {
            let source = format!(r##"{{"name": "seed", "{volume}": {{"userData": "#cloud-config"}}}}"##);
            let credential = json!([{"sshPublicKey": {
                "source": {"secret": {"secretName": "s"}}, "propagationMethod": {method: {}},
            }}]);
            let meta = |machine: &Machine| -> Value {
                let ferrovirt_core::machine::Source::CloudInit(data) = &machine.disks[0].source else {
                    panic!("{:?}", machine.disks);
                };
                let files = files(seed(&layout, machine, "seed", data, &[]).unwrap());
                let (_, content) = files.iter().find(|(name, _)| *name == file).unwrap();
                serde_json::from_slice(content).unwrap()
            };
            let with = meta(&machine_with(&source, credential));
            assert_eq!(with[keys], json!({"0": "ssh-rsa A", "1": "ssh-rsa B"}), "{with}");
            assert_eq!(meta(&machine(&source)).get(keys), None);
        }
    }

    /// Shows `spec.volumes[].cloudInitNoCloud.userData`, `spec.volumes[].cloudInitNoCloud.userDataBase64`,
    /// `spec.volumes[].cloudInitNoCloud.secretRef.name`, `spec.volumes[].cloudInitNoCloud.networkData`,
    /// `spec.volumes[].cloudInitNoCloud.networkDataBase64`, `spec.volumes[].cloudInitNoCloud.networkDataSecretRef.name`,
    /// `spec.volumes[].cloudInitConfigDrive.userData`, `spec.volumes[].cloudInitConfigDrive.userDataBase64`,
    /// `spec.volumes[].cloudInitConfigDrive.secretRef.name`, `spec.volumes[].cloudInitConfigDrive.networkData`,
    /// `spec.volumes[].cloudInitConfigDrive.networkDataBase64`,
    /// `spec.volumes[].cloudInitConfigDrive.networkDataSecretRef.name`.
    #[test]
    fn every_spelling_reaches_the_image() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "ns", "vm", "u");
        for (mount, key, content) in [("udata", "userdata", "U"), ("ndata", "networkdata", "N")] {
            let dir = layout.cloud_init_secret("seed", mount);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(key), content).unwrap();
        }
        let users = [
            r#""userData": "U""#,
            r#""userDataBase64": "VQ==""#,
            r#""secretRef": {"name": "s"}"#,
        ];
        let networks = [
            r#""networkData": "N""#,
            r#""networkDataBase64": "Tg==""#,
            r#""networkDataSecretRef": {"name": "s"}"#,
        ];
        let flavors = [
            ("cloudInitNoCloud", "user-data", "network-config"),
            (
                "cloudInitConfigDrive",
                "openstack/latest/user_data",
                "openstack/latest/network_data.json",
            ),
        ];
        for (flavor, user_file, network_file) in flavors {
            for (user, network) in users.iter().zip(networks) {
                let machine = machine(&format!(r#"{{"name": "seed", "{flavor}": {{{user}, {network}}}}}"#));
                let ferrovirt_core::machine::Source::CloudInit(data) = &machine.disks[0].source else {
                    panic!("{:?}", machine.disks);
                };
                let files = files(seed(&layout, &machine, "seed", data, &[]).unwrap());
                let content = |name: &str| files.iter().find(|(n, _)| *n == name).map(|(_, c)| c.as_slice());
                assert_eq!(content(user_file), Some(b"U".as_slice()), "{flavor} {user}");
                assert_eq!(content(network_file), Some(b"N".as_slice()), "{flavor} {network}");
            }
        }
    }
}
