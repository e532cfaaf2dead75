//! Which resources are served: the built-in kinds and those of the CRDs in the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::builtin::{ResourceInfo, builtin_resources};

/// One resource in one version.
#[derive(Clone)]
pub struct Served {
    /// Names, columns and schema.
    pub info: ResourceInfo,
    /// `GROUP/PLURAL`: the key of its objects in the store.
    pub storage: Arc<str>,
    /// The `apiVersion` of stored objects.
    pub storage_version: String,
    /// The name of the CRD that defines it.
    pub crd: Option<Arc<str>>,
    /// Whether status is written through `/status` only.
    pub status: bool,
    /// Whether `metadata.generation` counts changes of the spec.
    pub generation: bool,
    /// Its CRD is being deleted.
    pub terminating: bool,
    /// What a client of a deprecated version is told.
    pub warning: Option<String>,
}

impl Served {
    /// `group/version`, or `v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.info.group, &self.info.version)
    }

    /// Whether there is such a subresource.
    pub fn has_subresource(&self, name: &str) -> bool {
        self.info.subresource(name).is_some()
    }
}

/// `group/version`, or the version alone for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Built-in kinds whose objects carry a generation.
fn has_generation(info: &ResourceInfo) -> bool {
    match info.group.as_str() {
        "" => matches!(info.plural.as_str(), "pods" | "replicationcontrollers"),
        "apps" | "batch" | "policy" | "networking.k8s.io" | "apiextensions.k8s.io" | "admissionregistration.k8s.io" => {
            true
        }
        _ => false,
    }
}

type Versions = Vec<Arc<Served>>;

/// An immutable table of everything served; a change of a CRD makes a new one.
#[derive(Clone, Default)]
pub struct Registry {
    /// By group, then plural; the preferred version first.
    groups: BTreeMap<String, BTreeMap<String, Versions>>,
}

impl Registry {
    /// The built-in kinds.
    pub fn builtin() -> Self {
        let mut registry = Self::default();
        for info in builtin_resources() {
            registry.insert(Arc::new(builtin(info)));
        }
        registry
    }

    fn insert(&mut self, served: Arc<Served>) {
        let group = self.groups.entry(served.info.group.clone()).or_default();
        group.entry(served.info.plural.clone()).or_default().push(served);
    }

    /// The same table with these versions for a CRD (none: the CRD is gone).
    pub fn with_crd(&self, crd: &str, versions: Vec<Served>) -> Self {
        let mut next = self.clone();
        for group in next.groups.values_mut() {
            for served in group.values_mut() {
                served.retain(|served| served.crd.as_deref() != Some(crd));
            }
            group.retain(|_, served| !served.is_empty());
        }
        next.groups.retain(|_, group| !group.is_empty());
        for served in versions {
            next.insert(Arc::new(served));
        }
        next
    }

    /// One resource.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        self.groups
            .get(group)?
            .get(plural)?
            .iter()
            .find(|served| served.info.version == version)
            .cloned()
    }

    /// The preferred version of a resource by its storage key.
    pub fn stored(&self, storage: &str) -> Option<Arc<Served>> {
        let (group, plural) = storage.split_once('/')?;
        self.groups.get(group)?.get(plural)?.first().cloned()
    }

    /// Whether the resource is defined by something else than the CRD.
    pub fn taken(&self, group: &str, plural: &str, crd: &str) -> bool {
        self.groups
            .get(group)
            .and_then(|group| group.get(plural))
            .is_some_and(|served| served.iter().any(|s| s.crd.as_deref() != Some(crd)))
    }

    /// Everything, one group after the other.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.groups.values().flat_map(BTreeMap::values).flatten()
    }

    /// One entry per resource that is stored, in its preferred version.
    pub fn storages(&self) -> impl Iterator<Item = &Arc<Served>> {
        let preferred = self
            .groups
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|versions| versions.first());
        preferred.filter(|served| served.info.is_stored() && served.info.stored_as.is_none())
    }

    /// The groups with their versions, the preferred first; the core group first.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups = Vec::new();
        for (name, resources) in &self.groups {
            let mut versions: Vec<String> = resources
                .values()
                .flatten()
                .map(|served| served.info.version.clone())
                .collect();
            versions.sort_by(|a, b| version_rank(b).cmp(&version_rank(a)).then_with(|| a.cmp(b)));
            versions.dedup();
            groups.push((name.clone(), versions));
        }
        groups
    }
}

/// Kubernetes' order of versions: v2 > v1 > v1beta2 > v1beta1 > v1alpha1 > others.
pub fn version_rank(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u32 = rest[..digits].parse().ok()?;
        match &rest[digits..] {
            "" => Some((3, major, 0)),
            stage => {
                let (rank, minor) = match (stage.strip_prefix("beta"), stage.strip_prefix("alpha")) {
                    (Some(minor), _) => (2, minor),
                    (_, Some(minor)) => (1, minor),
                    _ => return None,
                };
                Some((rank, major, minor.parse().ok()?))
            }
        }
    };
    parse().unwrap_or((0, 0, 0))
}

fn builtin(info: ResourceInfo) -> Served {
    let (group, plural) = info.stored_as.unwrap_or((&info.group, &info.plural));
    let storage = format!("{group}/{plural}");
    let storage_version = api_version(group, &info.version);
    Served {
        storage: storage.into(),
        storage_version,
        crd: None,
        status: info.subresource("status").is_some(),
        generation: has_generation(&info),
        terminating: false,
        warning: None,
        info,
    }
}

/// The value at a dotted path such as `.spec.replicas`.
pub fn at_path<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.')
        .filter(|part| !part.is_empty())
        .fold(object, |value, part| &value[part])
}
