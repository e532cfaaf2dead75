//! The layers of Debian packages: built once for the versions that Debian has, then taken from the cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::contents::{DEBIAN_LAYERS, DIRECTORIES, GROUP, LINKS, NSSWITCH, PASSWD, SOURCES_OF_GENERATED};
use super::debian::{Apt, Package, unpack};
use super::select::{Selection, Unpacked};
use super::tree::{Content, Layer, Node, Tree, made, store};
use super::{Cache, elf, say, sha256_text};

/// A layer of Debian packages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BaseLayer {
    pub layer: Layer,
    /// Those that its files are from.
    pub packages: Vec<Package>,
    /// File names of its shared libraries.
    pub libraries: Vec<String>,
}

/// All of them, from the lowest to the highest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Base {
    pub layers: Vec<BaseLayer>,
    /// Version of glibc in them.
    pub glibc: Option<(u32, u32)>,
}

/// Builds the layers or takes them from the cache; also says where their archives are.
pub fn build(cache: &Cache) -> Result<(Base, PathBuf)> {
    let apt = Apt::open(&cache.dir("apt")?)?;
    let mut wanted: Vec<&str> = DEBIAN_LAYERS
        .iter()
        .flat_map(|layer| layer.files)
        .map(|files| files.package)
        .chain(SOURCES_OF_GENERATED.iter().copied())
        .collect();
    wanted.sort_unstable();
    let packages = apt.resolve(&wanted)?;
    let key = sha256_text(&format!("{}{CODE}", serde_json::to_string(&packages)?))?;
    cache.entry("base", &key, |dir| make(&apt, &packages, dir))
}

/// Another program makes other layers of the same packages.
const CODE: &str = concat!(
    include_str!("base.rs"),
    include_str!("contents.rs"),
    include_str!("elf.rs"),
    include_str!("select.rs"),
    include_str!("tree.rs"),
);

fn make(apt: &Apt, packages: &[Package], dir: &Path) -> Result<Base> {
    say(&format!(
        "fetching {} Debian packages (about 110 MB, once)",
        packages.len()
    ));
    let archives = apt.download(packages)?;
    say("unpacking them (about 20 s)");
    let mut unpacked = Unpacked::default();
    let scratch = tempfile::tempdir_in(dir).context("cannot make a directory to unpack packages in")?;
    for (package, archive) in packages.iter().zip(&archives) {
        let root = scratch.path().join(&package.name);
        unpack(archive, &root)?;
        unpacked.add(&package.name, &root)?;
    }
    let by_name: BTreeMap<&str, &Package> = packages
        .iter()
        .map(|package| (package.name.as_str(), package))
        .collect();
    let mut selections: Vec<Selection> = Vec::new();
    for layer in DEBIAN_LAYERS {
        let below = DEBIAN_LAYERS.iter().zip(&selections);
        let lower: Vec<&Tree> = below
            .filter(|(below, _)| layer.upon.contains(&below.name))
            .map(|(_, selection)| &selection.tree)
            .collect();
        let mut selection = unpacked.select(layer, &lower)?;
        if selections.is_empty() {
            skeleton(&mut selection, &unpacked)?;
        }
        unpacked.document(&mut selection, &by_name)?;
        selections.push(selection);
    }
    let mut base = Base {
        layers: Vec::new(),
        glibc: None,
    };
    for (layer, selection) in DEBIAN_LAYERS.iter().zip(&selections) {
        say(&format!("packing layer {} (some seconds)", layer.name));
        base.glibc = base.glibc.max(glibc(&selection.tree)?);
        base.layers.push(BaseLayer {
            layer: store(layer.name, &selection.tree, dir)?,
            packages: packages
                .iter()
                .filter(|package| selection.packages.contains(&package.name))
                .cloned()
                .collect(),
            libraries: selection.tree.keys().filter_map(|path| library(path)).collect(),
        });
    }
    Ok(base)
}

fn library(path: &str) -> Option<String> {
    let name = Path::new(path).file_name()?.to_str()?;
    name.contains(".so").then(|| name.to_owned())
}

fn glibc(tree: &Tree) -> Result<Option<(u32, u32)>> {
    match tree.get("usr/lib/x86_64-linux-gnu/libc.so.6") {
        Some(Node::File {
            content: Content::Path(source),
            ..
        }) => Ok(elf::read(&[source])?.first().and_then(|elf| elf.glibc)),
        _ => Ok(None),
    }
}

/// What no package has as a file: directories, accounts, the bundle of certificates.
fn skeleton(selection: &mut Selection, unpacked: &Unpacked) -> Result<()> {
    let tree = &mut selection.tree;
    for (path, mode) in DIRECTORIES {
        tree.insert((*path).to_owned(), Node::Directory { mode: *mode });
    }
    for (path, target) in LINKS {
        let target = (*target).to_owned();
        tree.insert((*path).to_owned(), Node::Link { target });
    }
    let mut bundle = Vec::new();
    for path in unpacked.matching("ca-certificates", "usr/share/ca-certificates/mozilla/*.crt") {
        bundle.extend(unpacked.read(path)?);
        bundle.push(b'\n');
    }
    anyhow::ensure!(!bundle.is_empty(), "package ca-certificates has no certificates");
    tree.insert("etc/ssl/certs/ca-certificates.crt".to_owned(), made(bundle));
    for (path, text) in [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/nsswitch.conf", NSSWITCH),
    ] {
        tree.insert(path.to_owned(), made(text));
    }
    selection.packages.insert("ca-certificates".to_owned());
    Ok(())
}

/// The archive of a layer.
pub fn archive(dir: &Path, layer: &Layer) -> PathBuf {
    dir.join(layer.file())
}

/// Removes all but the newest `keep` entries below `dir`.
pub fn prune(dir: &Path, keep: usize) -> Result<()> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        entries.push((entry.metadata()?.modified()?, entry.path()));
    }
    entries.sort();
    let old = entries.len().saturating_sub(keep);
    for (_, path) in &entries[..old] {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
