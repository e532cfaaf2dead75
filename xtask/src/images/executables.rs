//! Our own executables: built, judged against the libraries of the layers below, and stored as layers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::base::Base;
use super::contents::OwnLayer;
use super::tree::{Content, Layer, Node, Tree, store};
use super::{Cache, elf, run, say, sha256_file, sha256_text};

/// How the executables are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// As users get them
    Release,
    /// As tests have them: built sooner, larger, slower
    Dev,
}

/// Builds them, and returns the directory they are in.
pub fn build(profile: Profile, target: &Path) -> Result<PathBuf> {
    say("building the executables (cargo)");
    let mut cargo = crate::cargo::cargo();
    cargo.args(["build", "--locked"]);
    let (arguments, dir): (&[&str], _) = match profile {
        Profile::Release => (
            &["--release", "-p", "ferrovirt", "-p", "virt-launcher", "-p", "virtctl"],
            "release",
        ),
        // The selection that tests are built with, so that nothing is built twice.
        Profile::Dev => (&["--workspace"], "debug"),
    };
    run(cargo.args(arguments))?;
    Ok(target.join(dir))
}

/// Builds an executable that needs no library, and returns the directory it is in. It has a target directory of its
/// own, because what it is built from is built otherwise there.
fn build_static(name: &str, target: &Path) -> Result<PathBuf> {
    let target = target.join("static");
    let mut cargo = crate::cargo::cargo();
    cargo.args(["rustc", "--quiet", "--locked", "--release", "-p", name, "--bin", name]);
    cargo.arg("--target-dir").arg(&target);
    run(cargo.args(["--", "-C", "target-feature=+crt-static"]))?;
    Ok(target.join("release"))
}

/// Stores the executable of `own`, found in `dir` or built below `target`, as a layer, without its symbols.
pub fn layer(own: &OwnLayer, dir: &Path, target: &Path, base: &Base, cache: &Cache) -> Result<(Layer, PathBuf)> {
    let executable = if own.upon.is_empty() {
        build_static(own.executable, target)?.join(own.executable)
    } else {
        dir.join(own.executable)
    };
    if !executable.exists() {
        bail!(
            "there is no {}; build it, or name another directory by --bin",
            executable.display()
        );
    }
    fits(own, &executable, base)?;
    let links = format!("{:?}", own.links);
    let key = sha256_text(&format!("{}{links}{CODE}", sha256_file(&executable)?))?;
    cache.entry(own.name, &key, |dir| make(own, &executable, dir))
}

/// Another program makes another layer of the same executable.
const CODE: &str = concat!(include_str!("executables.rs"), include_str!("tree.rs"));

fn make(own: &OwnLayer, executable: &Path, dir: &Path) -> Result<Layer> {
    say(&format!("packing {}", own.executable));
    let stripped = dir.join(own.executable);
    run(Command::new("strip").arg("-s").arg("-o").arg(&stripped).arg(executable))?;
    fs::set_permissions(&stripped, fs::Permissions::from_mode(0o755))?;
    let mut tree = Tree::from([(
        format!("usr/bin/{}", own.executable),
        Node::File {
            content: Content::Path(stripped.clone()),
            mode: 0o755,
            modified: 0,
        },
    )]);
    for (path, target) in own.links {
        let target = (*target).to_owned();
        tree.insert((*path).to_owned(), Node::Link { target });
    }
    let layer = store(own.name, &tree, dir)?;
    fs::remove_file(&stripped)?;
    Ok(layer)
}

/// Whether the layers below have all libraries that the executable needs, in versions that are new enough.
fn fits(own: &OwnLayer, executable: &Path, base: &Base) -> Result<()> {
    let needs = elf::read(&[executable])?;
    let needs = needs.first().context("readelf read nothing")?;
    let below = |name: &String| {
        base.layers
            .iter()
            .filter(|lower| own.upon.contains(&lower.layer.name.as_str()))
            .any(|lower| lower.libraries.contains(name))
    };
    if let Some(missing) = needs.needed.iter().find(|name| !below(name)) {
        bail!(
            "{} needs {missing}, which its image does not have",
            executable.display()
        );
    }
    if needs.glibc > base.glibc {
        let text = |version: Option<(u32, u32)>| version.map_or("none".to_owned(), |(a, b)| format!("{a}.{b}"));
        bail!(
            "{} was linked against glibc {}, but the images have {}; build it on Debian 12",
            executable.display(),
            text(needs.glibc),
            text(base.glibc)
        );
    }
    Ok(())
}
