//! Volumes of a pod, as directories of the host that are bound into its containers.
//!
//! The layout is a kubelet's: `PODS/<uid>/volumes/kubernetes.io~<kind>/<volume>`. Preparing is idempotent: what is
//! there already (after a restart of the pod runner) is kept.

mod claims;
pub(super) mod current;
mod projected;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use futures::future::try_join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, HostPathVolumeSource, ImageVolumeSource, KeyToPath, Pod, Secret, Volume,
};
use kube::{Api, Client, ResourceExt};
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use crate::images::{ImageError, ImageStore, PullPolicy, RegistryAuth, auth_for};

/// A volume as containers mount it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Source {
    /// Directory or file on the host.
    pub path: PathBuf,
    /// No container may write to it.
    pub read_only: bool,
}

/// All volumes of a pod, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volumes {
    pub sources: BTreeMap<String, Source>,
    /// Digests of the image volumes, by volume name.
    pub images: BTreeMap<String, String>,
}

/// Why a volume is not there (yet).
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    /// May work later.
    #[error("MountVolume.SetUp failed for volume \"{volume}\": {message}")]
    Mount { volume: String, message: String },
    /// An image could not be had.
    #[error(transparent)]
    Image(ImageError),
}

/// Kind of a volume that this machine has, or the reason why it has not.
pub(super) fn unsupported(volume: &Volume) -> Option<String> {
    let known = volume.empty_dir.is_some()
        || volume.secret.is_some()
        || volume.config_map.is_some()
        || volume.host_path.is_some()
        || volume.image.is_some()
        || volume.downward_api.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.projected.is_some();
    if known {
        return None;
    }
    let name = &volume.name;
    Some(format!(
        "volume \"{name}\": only emptyDir, secret, configMap, downwardAPI, projected, hostPath, image and \
         persistentVolumeClaim volumes are supported on one machine"
    ))
}

/// What preparing volumes needs.
pub(super) struct Preparation<'a> {
    pub client: &'a Client,
    pub images: &'a ImageStore,
    pub pod: &'a Pod,
    /// The pod's directory.
    pub directory: &'a Path,
    /// Group that owns what the pod may write.
    pub group: u32,
}

impl Preparation<'_> {
    /// Makes all volumes available; images are pulled at the same time.
    ///
    /// # Errors
    /// The first volume that is not there. Cancel safe.
    pub(super) async fn run(&self) -> Result<Volumes, VolumeError> {
        let volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let prepared = try_join_all(volumes.map(|volume| self.volume(volume))).await?;
        let mut all = Volumes::default();
        for (name, source, digest) in prepared {
            all.images.extend(digest.map(|digest| (name.clone(), digest)));
            all.sources.insert(name, source);
        }
        Ok(all)
    }

    async fn volume(&self, volume: &Volume) -> Result<(String, Source, Option<String>), VolumeError> {
        let name = volume.name.clone();
        if let Some(image) = &volume.image {
            let pulled = self.pull(image).await?;
            return Ok((
                name,
                Source {
                    path: pulled.0,
                    read_only: true,
                },
                Some(pulled.1),
            ));
        }
        let source = self.plain(volume).await;
        let source = source.map_err(|message| VolumeError::Mount {
            volume: name.clone(),
            message,
        })?;
        Ok((name, source, None))
    }

    /// Everything but images; the error is the kubelet event's text.
    async fn plain(&self, volume: &Volume) -> Result<Source, String> {
        let name = &volume.name;
        if let Some(host) = &volume.host_path {
            return host_path(host).map(|path| Source { path, read_only: false });
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            return self.claim(claim).await;
        }
        if let Some(empty) = &volume.empty_dir {
            let path = self.directory_of("empty-dir", name)?;
            let memory = empty.medium.as_deref() == Some("Memory");
            let size = empty.size_limit.as_ref().and_then(crate::quantity::bytes);
            empty_dir(&path, self.group, memory.then_some(size)).map_err(|error| error.to_string())?;
            return Ok(Source { path, read_only: false });
        }
        let (kind, files) = if let Some(secret) = &volume.secret {
            let wanted = secret.secret_name.clone().unwrap_or_default();
            let data = self.secret(&wanted, secret.optional == Some(true)).await?;
            let mode = secret.default_mode;
            ("secret", select(data, secret.items.as_deref(), mode, &wanted)?)
        } else if let Some(map) = &volume.config_map {
            let data = self.config_map(&map.name, map.optional == Some(true)).await?;
            (
                "configmap",
                select(data, map.items.as_deref(), map.default_mode, &map.name)?,
            )
        } else if let Some(downward) = &volume.downward_api {
            let items = downward.items.iter().flatten();
            let files = items.map(|item| downward_file(self.pod, item, downward.default_mode));
            ("downward-api", files.collect::<Result<_, _>>()?)
        } else if let Some(projected) = &volume.projected {
            ("projected", self.projected(projected).await?)
        } else {
            return Err(unsupported(volume).unwrap_or_else(|| "the volume has no source".to_owned()));
        };
        let path = self.directory_of(kind, name)?;
        write_files(&path, self.group, &files).map_err(|error| error.to_string())?;
        Ok(Source { path, read_only: true })
    }

    fn directory_of(&self, kind: &str, volume: &str) -> Result<PathBuf, String> {
        let path = self
            .directory
            .join("volumes")
            .join(format!("kubernetes.io~{kind}"))
            .join(volume);
        fs::create_dir_all(&path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        Ok(path)
    }

    fn namespace(&self) -> String {
        self.pod.namespace().unwrap_or_default()
    }

    async fn secret(&self, name: &str, optional: bool) -> Result<Data, String> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace());
        match api.get_opt(name).await {
            Ok(Some(secret)) => {
                let data = secret.data.unwrap_or_default();
                Ok(data.into_iter().map(|(key, ByteString(value))| (key, value)).collect())
            }
            Ok(None) if optional => Ok(Data::new()),
            Ok(None) => Err(format!("secret \"{name}\" not found")),
            Err(error) => Err(format!("cannot read secret \"{name}\": {error}")),
        }
    }

    async fn config_map(&self, name: &str, optional: bool) -> Result<Data, String> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace());
        match api.get_opt(name).await {
            Ok(Some(map)) => {
                let text = map
                    .data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, value)| (key, value.into_bytes()));
                let binary = map
                    .binary_data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, ByteString(value))| (key, value));
                Ok(text.chain(binary).collect())
            }
            Ok(None) if optional => Ok(Data::new()),
            Ok(None) => Err(format!("configmap \"{name}\" not found")),
            Err(error) => Err(format!("cannot read configmap \"{name}\": {error}")),
        }
    }

    async fn pull(&self, image: &ImageVolumeSource) -> Result<(PathBuf, String), VolumeError> {
        let reference = image.reference.clone().unwrap_or_default();
        let policy = policy(&reference, image.pull_policy.as_deref());
        let auth = match policy {
            PullPolicy::Never => RegistryAuth::Anonymous,
            _ => self.credentials(&reference).await,
        };
        let pulled = self
            .images
            .pull(&reference, policy, &auth)
            .await
            .map_err(VolumeError::Image)?;
        Ok((pulled.rootfs, pulled.digest))
    }

    /// The first of the pod's pull secrets that knows the image's registry.
    async fn credentials(&self, reference: &str) -> RegistryAuth {
        let Ok(parsed) = reference.parse::<oci_client::Reference>() else {
            return RegistryAuth::Anonymous;
        };
        let secrets = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        for secret in secrets {
            // As with a kubelet, a pull secret that is not there only matters if the pull fails without it.
            let Ok(data) = self.secret(&secret.name, true).await else {
                continue;
            };
            let config = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg"));
            if let Some(auth) = config.and_then(|config| auth_for(config, parsed.registry())) {
                return auth;
            }
        }
        RegistryAuth::Anonymous
    }
}

type Data = BTreeMap<String, Vec<u8>>;

/// Kubernetes' default: `Always` for `:latest` and no tag, else `IfNotPresent`.
fn policy(reference: &str, wanted: Option<&str>) -> PullPolicy {
    let wanted = wanted.filter(|word| !word.is_empty());
    let last = reference.rsplit('/').next().unwrap_or(reference);
    let floating = !last.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
    PullPolicy::from_api(wanted.or(floating.then_some("Always")))
}

/// A file of a volume.
#[derive(Debug, PartialEq, Eq)]
struct VolumeFile {
    path: PathBuf,
    content: Vec<u8>,
    mode: u32,
}

fn mode(item: Option<i32>, default: Option<i32>) -> u32 {
    // The owning group must be able to read it: a kubelet adds that, too, when there is an fsGroup.
    item.or(default)
        .and_then(|mode| u32::try_from(mode).ok())
        .unwrap_or(0o440)
        | 0o440
}

fn select(
    data: Data,
    items: Option<&[KeyToPath]>,
    default: Option<i32>,
    name: &str,
) -> Result<Vec<VolumeFile>, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let files = data.into_iter();
        return Ok(files
            .map(|(key, content)| VolumeFile {
                path: key.into(),
                content,
                mode: mode(None, default),
            })
            .collect());
    };
    let file = |item: &KeyToPath| {
        let content = data
            .get(&item.key)
            .ok_or_else(|| format!("\"{name}\" has no key \"{}\"", item.key))?;
        Ok(VolumeFile {
            path: inner(&item.path)?,
            content: content.clone(),
            mode: mode(item.mode, default),
        })
    };
    items.iter().map(file).collect()
}

/// A path that stays inside its volume.
fn inner(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    let inside = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if inside && path.components().next().is_some() {
        Ok(path)
    } else {
        Err(format!("path \"{}\" leaves the volume", path.display()))
    }
}

fn downward_file(pod: &Pod, item: &DownwardAPIVolumeFile, default: Option<i32>) -> Result<VolumeFile, String> {
    let content = match (&item.field_ref, &item.resource_field_ref) {
        (Some(field), _) => field_value(pod, &field.field_path)?,
        (None, Some(resource)) => projected::resource_value(pod, resource)?,
        (None, None) => {
            return Err(format!(
                "file \"{}\" has neither fieldRef nor resourceFieldRef",
                item.path
            ));
        }
    };
    Ok(VolumeFile {
        path: inner(&item.path)?,
        content: content.into_bytes(),
        mode: mode(item.mode, default),
    })
}

/// A pod's field as the downward API gives it.
pub(super) fn field_value(pod: &Pod, path: &str) -> Result<String, String> {
    let lines = |map: &BTreeMap<String, String>| {
        let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        lines.join("\n")
    };
    let entry = |map: &BTreeMap<String, String>, rest: &str| {
        let key = rest.trim_start_matches("['").trim_end_matches("']");
        map.get(key).cloned().unwrap_or_default()
    };
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "metadata.labels" => lines(pod.labels()),
        "metadata.annotations" => lines(pod.annotations()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_default(),
        "status.podIP" | "status.podIPs" => pod
            .status
            .as_ref()
            .and_then(|status| status.pod_ip.clone())
            .unwrap_or_default(),
        _ => match (
            path.strip_prefix("metadata.labels"),
            path.strip_prefix("metadata.annotations"),
        ) {
            (Some(rest), _) => entry(pod.labels(), rest),
            (_, Some(rest)) => entry(pod.annotations(), rest),
            _ => return Err(format!("field {path} is not available to containers")),
        },
    })
}

fn write_files(directory: &Path, group: u32, files: &[VolumeFile]) -> io::Result<()> {
    chown(directory, Some(0), Some(group))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o750))?;
    let kept: BTreeSet<&OsStr> = files.iter().filter_map(|file| file.path.iter().next()).collect();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if kept.contains(entry.file_name().as_os_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    for file in files {
        let path = directory.join(&file.path);
        if fs::read(&path).is_ok_and(|content| content == file.content) {
            continue;
        }
        if let Some(parent) = path.parent().filter(|parent| *parent != directory) {
            fs::create_dir_all(parent)?;
            chown(parent, Some(0), Some(group))?;
        }
        let temporary = directory.join(".new");
        fs::write(&temporary, &file.content)?;
        chown(&temporary, Some(0), Some(group))?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(file.mode))?;
        fs::rename(&temporary, &path)?;
    }
    Ok(())
}

/// `memory`: on a tmpfs of this size.
fn empty_dir(path: &Path, group: u32, memory: Option<Option<u64>>) -> io::Result<()> {
    if let Some(size) = memory
        && !is_mount_point(path)?
    {
        let options = size.map_or_else(String::new, |bytes| format!("size={bytes}"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))?;
    }
    chown(path, Some(0), Some(group))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o2777))
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().map(fs::metadata).transpose()?;
    Ok(parent.is_none_or(|parent| fs::metadata(path).is_ok_and(|here| here.dev() != parent.dev())))
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    if !path.is_absolute() || path.components().any(|component| component == Component::ParentDir) {
        return Err(format!(
            "hostPath \"{}\" must be absolute and without \"..\"",
            source.path
        ));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    let created = match kind {
        "DirectoryOrCreate" => fs::create_dir_all(&path),
        "FileOrCreate" if !path.exists() => fs::File::create(&path).map(drop),
        _ => Ok(()),
    };
    created.map_err(|error| format!("cannot create hostPath {}: {error}", path.display()))?;
    let found = fs::metadata(&path).map_err(|error| format!("hostPath {}: {error}", path.display()))?;
    let file_type = found.file_type();
    let fits = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => file_type.is_dir(),
        "File" | "FileOrCreate" => file_type.is_file(),
        "Socket" => file_type.is_socket(),
        "CharDevice" => file_type.is_char_device(),
        "BlockDevice" => file_type.is_block_device(),
        other => return Err(format!("hostPath type \"{other}\" is unknown")),
    };
    if fits {
        Ok(path)
    } else {
        Err(format!(
            "hostPath type check failed: {} is not a {kind}",
            path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floating_tags_are_pulled_always() {
        for (reference, wanted, expected) in [
            ("demo/tiny", None, PullPolicy::Always),
            ("localhost:5000/demo/tiny", Some(""), PullPolicy::Always),
            ("demo/tiny:latest", None, PullPolicy::Always),
            ("demo/tiny:1", None, PullPolicy::IfNotPresent),
            ("demo/tiny@sha256:00", None, PullPolicy::IfNotPresent),
            ("demo/tiny", Some("Never"), PullPolicy::Never),
        ] {
            assert_eq!(policy(reference, wanted), expected, "{reference}");
        }
    }

    #[test]
    fn keys_are_selected_and_cannot_leave_the_volume() {
        let data: Data = [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())].into();
        assert_eq!(select(data.clone(), None, None, "s").unwrap().len(), 2);
        let item = |key: &str, path: &str| {
            [KeyToPath {
                key: key.into(),
                mode: Some(0o400),
                path: path.into(),
            }]
        };
        let files = select(data.clone(), Some(&item("b", "x/y")), None, "s").unwrap();
        assert_eq!(
            files,
            [VolumeFile {
                path: "x/y".into(),
                content: b"2".to_vec(),
                mode: 0o440
            }]
        );
        assert!(
            select(data.clone(), Some(&item("c", "x")), None, "s")
                .unwrap_err()
                .contains("no key \"c\"")
        );
        for path in ["../x", "/x", "", "a/../../x"] {
            assert!(
                select(data.clone(), Some(&item("a", path)), None, "s").is_err(),
                "{path}"
            );
        }
    }

    #[test]
    fn files_of_a_volume_are_those_of_its_object() {
        let directory = tempfile::tempdir().unwrap();
        let group = fs::metadata(directory.path()).unwrap().gid();
        let files = |names: &[(&str, &str)]| -> Vec<VolumeFile> {
            let file = |(path, content): &(&str, &str)| VolumeFile {
                path: path.into(),
                content: content.as_bytes().to_vec(),
                mode: 0o440,
            };
            names.iter().map(file).collect()
        };
        let names = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        write_files(directory.path(), group, &files(&[("a", "1"), ("d/b", "2")])).unwrap();
        assert_eq!(names(), ["a", "d"]);
        write_files(directory.path(), group, &files(&[("a", "changed"), ("c", "3")])).unwrap();
        assert_eq!(names(), ["a", "c"]);
        assert_eq!(fs::read(directory.path().join("a")).unwrap(), b"changed");
    }

    #[test]
    fn host_paths_are_what_they_say() {
        let directory = tempfile::tempdir().unwrap();
        let source = |name: &str, kind: &str| HostPathVolumeSource {
            path: directory.path().join(name).to_string_lossy().into_owned(),
            type_: Some(kind.into()),
        };
        assert!(host_path(&source("d", "Directory")).is_err());
        host_path(&source("d", "DirectoryOrCreate")).unwrap();
        host_path(&source("d", "Directory")).unwrap();
        assert!(host_path(&source("d", "File")).unwrap_err().contains("is not a File"));
        host_path(&source("f", "FileOrCreate")).unwrap();
        assert!(
            host_path(&HostPathVolumeSource {
                path: "/a/../etc".into(),
                type_: None
            })
            .is_err()
        );
    }
}
