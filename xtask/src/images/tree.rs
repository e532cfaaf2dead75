//! Files of a layer, and the layer as an archive that is always the same for the same files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{run, sha256_file};

/// A layer of QEMU and libvirt takes 9 s and 37 MB; the highest level takes 75 s and 33 MB.
const LEVEL: &str = "-12";

/// Where a file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Directory { mode: u32 },
    File { content: Content, mode: u32, modified: u64 },
    Link { target: String },
}

/// Paths without the first slash, each with what it is; everything belongs to root.
pub type Tree = BTreeMap<String, Node>;

/// A file made here. Its time is the epoch, so that equal content is an equal file.
pub fn made(bytes: impl Into<Vec<u8>>) -> Node {
    Node::File {
        content: Content::Bytes(bytes.into()),
        mode: 0o644,
        modified: 0,
    }
}

/// A layer as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub name: String,
    /// `sha256:…` of the compressed archive.
    pub digest: String,
    /// `sha256:…` of the archive itself.
    pub diff_id: String,
    /// Bytes of the compressed archive.
    pub size: u64,
    /// Bytes of the archive.
    pub unpacked: u64,
}

impl Layer {
    /// The file name of its archive.
    pub fn file(&self) -> &str {
        self.digest.trim_start_matches("sha256:")
    }
}

/// Stores `tree` in `dir` under its digest.
pub fn store(name: &str, tree: &Tree, dir: &Path) -> Result<Layer> {
    let archive = dir.join(format!("{name}.tar"));
    let compressed = dir.join(format!("{name}.tar.zst"));
    write(tree, &archive).with_context(|| format!("cannot write the archive of layer {name}"))?;
    // The same bytes whatever the number of threads, but not the same as with none.
    run(Command::new("zstd")
        .args(["-q", "-f", "-T0"])
        .arg(LEVEL)
        .arg(&archive)
        .arg("-o")
        .arg(&compressed))?;
    let length = |path: &Path| fs::metadata(path).map(|metadata| metadata.len());
    let layer = Layer {
        name: name.to_owned(),
        digest: format!("sha256:{}", sha256_file(&compressed)?),
        diff_id: format!("sha256:{}", sha256_file(&archive)?),
        size: length(&compressed)?,
        unpacked: length(&archive)?,
    };
    fs::remove_file(&archive)?;
    fs::rename(&compressed, dir.join(layer.file()))?;
    Ok(layer)
}

fn write(tree: &Tree, path: &Path) -> io::Result<()> {
    let mut archive = tar::Builder::new(BufWriter::new(File::create(path)?));
    for (path, node) in &with_parents(tree) {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        match node {
            Node::Directory { mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                archive.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Node::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                archive.append_link(&mut header, path, target)?;
            }
            Node::File {
                content,
                mode,
                modified,
            } => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                header.set_mtime(*modified);
                match content {
                    Content::Bytes(bytes) => {
                        header.set_size(bytes.len() as u64);
                        archive.append_data(&mut header, path, bytes.as_slice())?;
                    }
                    Content::Path(source) => {
                        let file = File::open(source)?;
                        header.set_size(file.metadata()?.len());
                        archive.append_data(&mut header, path, file)?;
                    }
                }
            }
        }
    }
    archive.into_inner()?.into_inner()?.sync_data()
}

/// The tree with every directory that its paths name.
fn with_parents(tree: &Tree) -> Tree {
    let mut all = tree.clone();
    for path in tree.keys() {
        for (at, _) in path.match_indices('/') {
            all.entry(path[..at].to_owned())
                .or_insert(Node::Directory { mode: 0o755 });
        }
    }
    all
}

/// The path with Debian's merged `/usr` applied and without the first slash.
pub fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if ["bin", "lib", "lib64", "sbin"].contains(&first) && path != first {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// Where a symbolic link at `path` leads.
pub fn follow(path: &str, target: &str) -> Result<String> {
    if target.starts_with('/') {
        return Ok(merged(target));
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." if parts.pop().is_none() => bail!("/{path} leads out of the root: {target}"),
            ".." => {}
            _ => parts.push(part),
        }
    }
    Ok(merged(&parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed() {
        for (path, target, to) in [
            ("usr/lib64/ld.so", "/lib/x/ld.so", "usr/lib/x/ld.so"),
            ("usr/lib/x/liba.so.1", "liba.so.1.2", "usr/lib/x/liba.so.1.2"),
            ("etc/os-release", "../usr/lib/os-release", "usr/lib/os-release"),
            ("usr/bin/nft", "../../sbin/nft", "usr/sbin/nft"),
        ] {
            assert_eq!(follow(path, target).unwrap(), to);
        }
        assert!(follow("a", "../b").is_err());
    }

    #[test]
    fn the_same_files_are_the_same_layer() {
        let long = format!(
            "usr/share/{}/x",
            "directory-with-a-long-name/".repeat(6).trim_end_matches('/')
        );
        let tree = Tree::from([
            ("tmp".to_owned(), Node::Directory { mode: 0o1777 }),
            ("usr/bin/a".to_owned(), made("a")),
            ("usr/bin/b".to_owned(), Node::Link { target: "a".to_owned() }),
            (long.clone(), made("x")),
        ]);
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let layer = store("l", &tree, one.path()).unwrap();
        assert_eq!(layer, store("l", &tree, two.path()).unwrap());
        assert_eq!(fs::metadata(one.path().join(layer.file())).unwrap().len(), layer.size);

        let archive = one.path().join("l.tar");
        write(&tree, &archive).unwrap();
        let mut entries = tar::Archive::new(File::open(archive).unwrap());
        let names: Vec<String> = entries
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(
            names.starts_with(&["tmp/".to_owned(), "usr/".to_owned(), "usr/bin/".to_owned()]),
            "{names:?}"
        );
        assert!(names.contains(&long), "{names:?}");
    }
}
