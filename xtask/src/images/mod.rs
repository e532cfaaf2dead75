//! `cargo xtask images`: OCI images of Debian packages and this workspace's executables, without a daemon, a chroot or root.
//!
//! ```text
//! apt (own state) ─► packages ─► files that the tables name, with the libraries they need ─► layers ┐
//! cargo ─► executables, stripped ─► layers ─────────────────────────────────────────────────────────┼─► OCI layout ─► registry
//! cargo metadata, packages ─► SBOM of each image ─► its topmost layer ──────────────────────────────┘
//! ```
//!
//! The same packages and executables give the same bytes: entries are sorted, everything belongs to root, files have the
//! times they have in their packages, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

mod base;
mod contents;
mod debian;
mod elf;
mod executables;
mod guestfs;
mod oci;
mod passt;
mod sbom;
mod select;
mod tree;

use base::{Base, archive};
use contents::{IMAGES, Image, OWN_LAYERS};
use debian::Package;
use executables::Profile;
use sbom::{Crate, Workspace};
use tree::{Layer, Tree, made};

/// How many builds of the executables the cache keeps.
const KEEP: usize = 6;
/// Directories of the cache that have entries.
const KINDS: [&str; 7] = [
    "base",
    "container-disk",
    "ferrovirt",
    "guestfs-appliance",
    "passt",
    "sbom",
    "virt-launcher",
];
/// How the directory of an entry begins that is not whole.
const NEW: &str = "new-";

/// Arguments of `cargo xtask images`
#[derive(clap::Args)]
pub struct Images {
    /// Which images; all if none is named
    #[arg(value_name = "NAME", value_parser = IMAGES.iter().map(|image| image.name).collect::<Vec<_>>())]
    names: Vec<String>,
    /// Registry, with path, to push them to; one on this machine is spoken to without TLS
    #[arg(long)]
    push: Option<String>,
    /// Speak to the registry without TLS wherever it is
    #[arg(long)]
    plain_http: bool,
    /// Directory of the OCI layout and the SBOMs
    #[arg(long, value_name = "DIR", default_value = "target/images")]
    out: PathBuf,
    /// How the executables are built
    #[arg(long, default_value = "release")]
    profile: Profile,
    /// Directory of executables that are built already
    #[arg(long, value_name = "DIR", env = "FERROVIRT_BIN")]
    bin: Option<PathBuf>,
    /// Tag of the images; the manifests in deploy/ name the default
    #[arg(long, default_value = concat!("v", env!("CARGO_PKG_VERSION")))]
    tag: String,
    /// Directory of what need not be made again
    #[arg(
        long,
        value_name = "DIR",
        env = "FERROVIRT_CACHE",
        default_value = "/var/cache/ferrovirt"
    )]
    cache: PathBuf,
}

impl Images {
    /// Builds them, and pushes them if asked to.
    pub fn run(self) -> Result<()> {
        let wanted: Vec<&Image> = IMAGES
            .iter()
            .filter(|image| self.names.is_empty() || self.names.iter().any(|name| name == image.name))
            .collect();
        let workspace = Workspace::read()?;
        let bin = match &self.bin {
            Some(bin) => bin.clone(),
            None => executables::build(self.profile, Path::new(workspace.target()))?,
        };
        let cache = Cache::open(&self.cache.join("images"))?;
        let (base, base_dir) = base::build(&cache)?;
        let created = created()?;
        fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        let mut layout = oci::Layout::create(&self.out)?;
        let mut stored = Vec::new();
        let mut own = BTreeMap::new();
        for layer in OWN_LAYERS {
            if wanted.iter().any(|image| image.layers.contains(&layer.name)) {
                let packed = executables::layer(layer, &bin, Path::new(workspace.target()), &base, &cache)?;
                own.insert(layer.name, (packed, workspace.crates_of(layer.executable)?));
            }
        }
        if wanted.iter().any(|image| image.layers.contains(&passt::LAYER)) {
            own.insert(passt::LAYER, (passt::layer(&self.cache, &cache)?, BTreeSet::new()));
        }
        // Of layers that are not made of packages' files as they are: what is in them, for the SBOM.
        let mut inside = BTreeMap::from([(passt::LAYER, vec![passt::package()?])]);
        if wanted.iter().any(|image| image.layers.contains(&guestfs::LAYER)) {
            let built = guestfs::build(&self.cache)?;
            own.insert(guestfs::LAYER, (guestfs::layer(&built, &cache)?, BTreeSet::new()));
            inside.insert(guestfs::LAYER, guestfs::packages(&built)?);
        }
        for image in wanted {
            let mut layers = Vec::new();
            let mut crates = BTreeSet::new();
            for name in image.layers {
                if let Some(lower) = base.layers.iter().find(|lower| lower.layer.name == *name) {
                    layers.push((lower.layer.clone(), archive(&base_dir, &lower.layer)));
                } else {
                    let layer = own.get(name);
                    let ((layer, dir), used) = layer.with_context(|| format!("there is no layer {name}"))?;
                    layers.push((layer.clone(), archive(dir, layer)));
                    crates.extend(used.iter().cloned());
                }
            }
            let text = self.sbom(image, created.as_deref(), &base, &inside, &crates)?;
            let (layer, dir) = sbom_layer(image, &text, &cache)?;
            layers.push((layer.clone(), archive(&dir, &layer)));
            stored.push(layout.add(image, &self.tag, created.as_deref(), &layers)?);
        }
        layout.finish()?;
        for image in &stored {
            let (size, unpacked) = (megabytes(image.size), megabytes(image.unpacked));
            println!(
                "{:14} {size:>6} MB, unpacked {unpacked:>6} MB  {}",
                image.name, image.digest
            );
        }
        if let Some(registry) = &self.push {
            for image in &stored {
                say(&format!("pushing {}", image.name));
                println!(
                    "{}@{}",
                    oci::push(&self.out, image.name, registry, &self.tag, self.plain_http)?,
                    image.digest
                );
            }
        }
        Ok(())
    }

    fn sbom(
        &self,
        image: &Image,
        created: Option<&str>,
        base: &Base,
        inside: &BTreeMap<&str, Vec<Package>>,
        crates: &BTreeSet<Crate>,
    ) -> Result<String> {
        let layers = base
            .layers
            .iter()
            .filter(|lower| image.layers.contains(&lower.layer.name.as_str()));
        let mut packages: Vec<_> = layers.flat_map(|lower| &lower.packages).collect();
        packages.extend(image.layers.iter().filter_map(|layer| inside.get(layer)).flatten());
        packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        packages.dedup();
        let created = created.unwrap_or("1970-01-01T00:00:00Z");
        let text = sbom::document(image.name, &self.tag, created, &packages, crates)?;
        let path = self.out.join(format!("{}.spdx.json", image.name));
        fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(text)
    }
}

/// The SBOM travels with its image.
fn sbom_layer(image: &Image, text: &str, cache: &Cache) -> Result<(Layer, PathBuf)> {
    let path = format!("usr/share/sbom/{}.spdx.json", image.name);
    let key = sha256_text(&format!("{path}{text}{}", include_str!("tree.rs")))?;
    let tree = Tree::from([(path, made(text))]);
    cache.entry("sbom", &key, |dir| tree::store("sbom", &tree, dir))
}

/// The time that `SOURCE_DATE_EPOCH` says. Without it the images have none: a time of build would make equal ones differ.
fn created() -> Result<Option<String>> {
    let Ok(text) = std::env::var("SOURCE_DATE_EPOCH") else {
        return Ok(None);
    };
    let output = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"])
        .arg(format!("@{text}"))
        .output()
        .context("cannot run date")?;
    ensure!(
        output.status.success(),
        "SOURCE_DATE_EPOCH=\"{text}\" is not a number of seconds"
    );
    Ok(Some(String::from_utf8(output.stdout)?.trim().to_owned()))
}

/// What was made before.
pub struct Cache {
    dir: PathBuf,
    /// Held as long as this process builds.
    _lock: File,
}

impl Cache {
    fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make {}; name another directory by --cache", dir.display()))?;
        let path = dir.join("lock");
        let lock = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        if lock.try_lock().is_err() {
            say("waiting for another build of images");
            lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        // apt's configuration needs an absolute path.
        let dir = fs::canonicalize(dir)?;
        let cache = Self { dir, _lock: lock };
        cache.remove_halves()?;
        Ok(cache)
    }

    /// Removes what builds that were killed have left.
    fn remove_halves(&self) -> Result<()> {
        for kind in KINDS {
            for entry in fs::read_dir(self.dir(kind)?)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(NEW) {
                    let path = entry.path();
                    fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                }
            }
        }
        Ok(())
    }

    /// A directory of the cache.
    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// What `make` once said for this key, with the directory it made; only a whole one is kept.
    fn entry<T: Serialize + DeserializeOwned>(
        &self,
        kind: &str,
        key: &str,
        make: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<(T, PathBuf)> {
        let all = self.dir(kind)?;
        let dir = all.join(key);
        if let Ok(text) = fs::read(dir.join("entry.json"))
            && let Ok(entry) = serde_json::from_slice(&text)
        {
            // The newest are those used last.
            File::open(&dir).and_then(|dir| dir.set_modified(std::time::SystemTime::now()))?;
            return Ok((entry, dir));
        }
        let new = tempfile::Builder::new().prefix(NEW).tempdir_in(&all)?;
        let entry = make(new.path())?;
        fs::write(new.path().join("entry.json"), serde_json::to_vec(&entry)?)?;
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::rename(new.keep(), &dir).with_context(|| format!("cannot store {}", dir.display()))?;
        base::prune(&all, KEEP)?;
        Ok((entry, dir))
    }
}

fn say(text: &str) {
    eprintln!("images: {text}");
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// Runs a program; what it printed is shown only when it fails.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let inherits = program.ends_with("cargo");
    let command = command.stdin(Stdio::null());
    let (status, text) = if inherits {
        (command.status(), String::new())
    } else {
        match command.output() {
            Ok(output) => {
                let text = [output.stdout, output.stderr].concat();
                (Ok(output.status), String::from_utf8_lossy(&text).trim().to_owned())
            }
            Err(error) => (Err(error), String::new()),
        }
    };
    let status = status.with_context(|| format!("cannot run {program}; `scripts/packages --test` installs it"))?;
    if !status.success() {
        let arguments: Vec<_> = command
            .get_args()
            .map(|argument| argument.to_string_lossy())
            .take(6)
            .collect();
        bail!("{program} {} … failed: {text}", arguments.join(" "));
    }
    Ok(())
}

/// Coreutils' is quicker than any that a development build has.
fn sha256_file(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    sha256(file.into())
}

fn sha256_text(text: &str) -> Result<String> {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile()?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    sha256(file.into())
}

fn sha256(input: Stdio) -> Result<String> {
    let output = Command::new("sha256sum")
        .stdin(input)
        .output()
        .context("cannot run sha256sum")?;
    let text = String::from_utf8(output.stdout)?;
    let digest = text.split_whitespace().next().unwrap_or_default();
    ensure!(digest.len() == 64, "sha256sum said \"{}\"", text.trim());
    Ok(digest.to_owned())
}
