//! Which files of the unpacked packages go into the layers: those that the tables name, the shared libraries that these
//! need, and the copyright notices of the packages they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::contents::DebianLayer;
use super::debian::Package;
use super::elf::{self, Elf};
use super::tree::{Content, Node, Tree, follow, made, merged};

/// Where the dynamic loader looks without being told.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// What the packages hold, by path.
#[derive(Default)]
pub struct Unpacked {
    files: BTreeMap<String, (String, Node)>,
}

/// A layer before it is stored.
pub struct Selection {
    pub tree: Tree,
    /// Names of the packages that its files are from.
    pub packages: BTreeSet<String>,
}

impl Unpacked {
    /// Takes in the files of one package.
    pub fn add(&mut self, package: &str, root: &Path) -> Result<()> {
        self.walk(package, root, "")
    }

    fn walk(&mut self, package: &str, root: &Path, below: &str) -> Result<()> {
        let dir = root.join(below);
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name
                .to_str()
                .with_context(|| format!("{package} has a file whose name is not UTF-8"))?;
            let path = if below.is_empty() {
                name.to_owned()
            } else {
                format!("{below}/{name}")
            };
            let metadata = entry.metadata()?;
            let node = if metadata.is_dir() {
                self.walk(package, root, &path)?;
                continue;
            } else if metadata.is_symlink() {
                let target = fs::read_link(entry.path())?;
                let target = target
                    .to_str()
                    .with_context(|| format!("/{path} leads to a path that is not UTF-8"))?;
                Node::Link {
                    target: target.to_owned(),
                }
            } else {
                Node::File {
                    content: Content::Path(entry.path()),
                    // No image needs a program that raises its rights.
                    mode: metadata.mode() & 0o755,
                    modified: u64::try_from(metadata.mtime()).unwrap_or(0),
                }
            };
            self.files.insert(merged(&path), (package.to_owned(), node));
        }
        Ok(())
    }

    /// Bytes of a file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        match self.files.get(path) {
            Some((
                _,
                Node::File {
                    content: Content::Path(source),
                    ..
                },
            )) => fs::read(source).with_context(|| format!("cannot read {}", source.display())),
            _ => bail!("no package has the file /{path}"),
        }
    }

    /// Paths of a package's files that match.
    pub fn matching<'a>(&'a self, package: &'a str, pattern: &'a str) -> impl Iterator<Item = &'a str> {
        self.files
            .iter()
            .filter(move |(path, (owner, _))| owner == package && matches(pattern, path))
            .map(|(path, _)| path.as_str())
    }

    /// The files of `layer` that are not in `lower` layers.
    pub fn select(&self, layer: &DebianLayer, lower: &[&Tree]) -> Result<Selection> {
        let mut wanted = BTreeSet::new();
        for files in layer.files {
            for pattern in files.keep {
                if let Some(pattern) = pattern.strip_prefix('!') {
                    wanted.retain(|path: &String| !matches(pattern, path));
                    continue;
                }
                let before = wanted.len();
                wanted.extend(self.matching(files.package, pattern).map(str::to_owned));
                if wanted.len() == before {
                    bail!("package {} has no file {pattern} (layer {})", files.package, layer.name);
                }
            }
        }
        let mut selection = Selection {
            tree: Tree::new(),
            packages: BTreeSet::new(),
        };
        let mut batch: Vec<String> = wanted.into_iter().collect();
        while !batch.is_empty() {
            batch = self.take(batch, lower, &mut selection)?;
        }
        for (path, target) in layer.links {
            let target = (*target).to_owned();
            selection.tree.insert((*path).to_owned(), Node::Link { target });
        }
        Ok(selection)
    }

    /// Puts the paths into the selection and returns what they lead to.
    fn take(&self, batch: Vec<String>, lower: &[&Tree], selection: &mut Selection) -> Result<Vec<String>> {
        let mut next = Vec::new();
        let mut elves = Vec::new();
        for path in batch {
            if selection.tree.contains_key(&path) || lower.iter().any(|tree| tree.contains_key(&path)) {
                continue;
            }
            let Some((package, node)) = self.files.get(&path) else {
                bail!("no package has the file /{path}, to which another leads");
            };
            match node {
                Node::Link { target } => next.push(follow(&path, target)?),
                Node::File {
                    content: Content::Path(source),
                    ..
                } if elf::is_elf(source)? => {
                    elves.push((path.clone(), source.clone()));
                }
                Node::File { .. } | Node::Directory { .. } => {}
            }
            selection.packages.insert(package.clone());
            selection.tree.insert(path, node.clone());
        }
        let sources: Vec<&Path> = elves.iter().map(|(_, source)| source.as_path()).collect();
        for ((path, _), elf) in elves.iter().zip(elf::read(&sources)?) {
            for name in &elf.needed {
                let found = self.provider(&elf, name);
                next.push(found.with_context(|| format!("/{path} needs {name}, which no package has"))?);
            }
        }
        Ok(next)
    }

    fn provider(&self, elf: &Elf, name: &str) -> Option<String> {
        let own = elf.run_path.iter().map(|dir| merged(dir));
        let mut candidates = own
            .chain([LIBRARIES.to_owned(), "usr/lib64".to_owned()])
            .map(|dir| format!("{dir}/{name}"));
        candidates.find(|path| self.files.contains_key(path))
    }

    /// Adds what says whose files these are, under which terms, and in which version: the copyright notices, and a
    /// stanza for each package where scanners of images look for one.
    pub fn document(&self, selection: &mut Selection, packages: &BTreeMap<&str, &Package>) -> Result<()> {
        for name in &selection.packages {
            let notice = self.copyright(name)?;
            selection
                .tree
                .insert(format!("usr/share/doc/{name}/copyright"), made(notice));
            let package = packages
                .get(name.as_str())
                .with_context(|| format!("package {name} was unpacked but not resolved"))?;
            let mut stanza = format!(
                "Package: {name}\nStatus: install ok unpacked\nVersion: {}\nArchitecture: {}\nMaintainer: {}\n",
                package.version, package.architecture, package.maintainer
            );
            if let Some(source) = &package.source {
                stanza.push_str(&format!("Source: {source}\n"));
            }
            selection
                .tree
                .insert(format!("var/lib/dpkg/status.d/{name}"), made(stanza));
        }
        Ok(())
    }

    /// Some packages have only a link to another one's documentation.
    fn copyright(&self, package: &str) -> Result<Vec<u8>> {
        let mut dir = format!("usr/share/doc/{package}");
        for _ in 0..4 {
            let path = format!("{dir}/copyright");
            match (self.files.get(&path), self.files.get(&dir)) {
                (Some((_, Node::Link { target })), _) => return self.read(&follow(&path, target)?),
                (Some(_), _) => return self.read(&path),
                (None, Some((_, Node::Link { target }))) => dir = follow(&dir, target)?,
                (None, _) => break,
            }
        }
        bail!("package {package} has no copyright notice")
    }
}

/// Whether `path` is what `pattern` means.
fn matches(pattern: &str, path: &str) -> bool {
    if let Some(tree) = pattern.strip_suffix("**") {
        return path.starts_with(tree);
    }
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) if name_matches(pattern, name) => {}
            _ => return false,
        }
    }
}

fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::contents::Files;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("usr/bin/a", "usr/bin/a", true),
            ("usr/bin/a", "usr/bin/ab", false),
            ("usr/bin/a", "usr/bin/a/b", false),
            ("usr/lib/efi-*.rom", "usr/lib/efi-x.rom", true),
            ("usr/lib/efi-*.rom", "usr/lib/efi-x.bin", false),
            ("usr/lib/aba*ba", "usr/lib/aba", false),
            ("usr/*/a", "usr/b/c/a", false),
            ("usr/share/zoneinfo/**", "usr/share/zoneinfo/Europe/Rome", true),
            ("usr/share/zoneinfo/**", "usr/share/zone", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    fn layer(keep: &'static [&'static str]) -> DebianLayer {
        DebianLayer {
            name: "l",
            upon: &[],
            files: Box::leak(Box::new([Files { package: "p", keep }])),
            links: &[],
        }
    }

    #[test]
    fn links_bring_what_they_lead_to_and_lower_layers_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("bin")).unwrap();
        fs::create_dir_all(at("usr/share/doc/p")).unwrap();
        fs::write(at("usr/share/doc/p/copyright"), "free").unwrap();
        fs::write(at("bin/dash"), "#!").unwrap();
        fs::write(at("bin/other"), "#!").unwrap();
        std::os::unix::fs::symlink("dash", at("bin/sh")).unwrap();
        let mut unpacked = Unpacked::default();
        unpacked.add("p", root.path()).unwrap();

        let one = unpacked.select(&layer(&["usr/bin/sh"]), &[]).unwrap();
        assert_eq!(one.tree.keys().collect::<Vec<_>>(), ["usr/bin/dash", "usr/bin/sh"]);
        let two = unpacked.select(&layer(&["usr/bin/*"]), &[&one.tree]).unwrap();
        assert_eq!(two.tree.keys().collect::<Vec<_>>(), ["usr/bin/other"]);
        let error = unpacked.select(&layer(&["usr/bin/none"]), &[]).err().unwrap();
        assert!(error.to_string().contains("usr/bin/none"), "{error}");
    }
}
