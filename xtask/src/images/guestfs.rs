//! The appliance that libguestfs boots to work on disks, which `images/guests/build` makes of Debian packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::debian::{Package, stanzas};
use super::tree::{Content, Layer, Node, Tree, store};
use super::{Cache, sha256_file, sha256_text};

/// The layer's name.
pub const LAYER: &str = "guestfs-appliance";
/// Where `virtctl guestfs` has libguestfs look for it.
const DIRECTORY: &str = "usr/local/lib/guestfs/appliance";
/// Another program makes another layer of the same appliance.
const CODE: &str = concat!(include_str!("guestfs.rs"), include_str!("tree.rs"));

/// What `virtctl guestfs` runs.
const ENTRYPOINT: &str = r#"#!/usr/bin/bash
# A shell beside a claim of disks: its directory is /disk, or its device /dev/vda.
export LIBGUESTFS_BACKEND="${LIBGUESTFS_BACKEND:-direct}"
export LIBGUESTFS_PATH="${LIBGUESTFS_PATH:-/usr/local/lib/guestfs/appliance}"
export EDITOR="${EDITOR:-nano}"
export PS1='guestfs:\w\$ '
disk=/disk/disk.img
[ -e /dev/vda ] && disk=/dev/vda
echo "The tools of libguestfs are here. For example:"
echo "  virt-filesystems --long --all --add $disk"
echo "  guestfish --ro --add $disk --inspector"
exec /usr/bin/bash --norc
"#;

/// Builds the appliance or takes it from the cache in `all`, and returns its directory.
pub fn build(all: &Path) -> Result<PathBuf> {
    super::super::ci::guest_in(Some(all), "guestfs").map(PathBuf::from)
}

/// The appliance as a layer.
pub fn layer(built: &Path, cache: &Cache) -> Result<(Layer, PathBuf)> {
    let key = sha256_text(&format!("{}{CODE}", sha256_file(&built.join("root"))?))?;
    cache.entry(LAYER, &key, |dir| {
        super::say("packing layer guestfs-appliance (about 15 s, once)");
        let file = |content, mode| Node::File {
            content,
            mode,
            modified: 0,
        };
        let mut tree = Tree::from([(
            "entrypoint.sh".to_owned(),
            file(Content::Bytes(ENTRYPOINT.into()), 0o755),
        )]);
        for name in ["README.fixed", "initrd", "kernel", "root"] {
            tree.insert(
                format!("{DIRECTORY}/{name}"),
                file(Content::Path(built.join(name)), 0o644),
            );
        }
        store(LAYER, &tree, dir)
    })
}

/// The packages that it is made of.
pub fn packages(built: &Path) -> Result<Vec<Package>> {
    let path = built.join("stanzas");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(stanzas(&text)?.into_values().collect())
}
