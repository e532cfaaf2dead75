//! passt, which `scripts/passt` builds from Debian's source.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::Package;
use super::tree::{Content, Layer, Node, Tree, store};
use super::{Cache, sha256_file, sha256_text};

/// The layer's name.
pub const LAYER: &str = "passt";
const SCRIPT: &str = include_str!("../../../scripts/passt");
/// Another program makes another layer of the same executable.
const CODE: &str = concat!(include_str!("passt.rs"), include_str!("tree.rs"));

/// Builds it or takes it from the cache in `all`, and stores it as a layer.
pub fn layer(all: &Path, cache: &Cache) -> Result<(Layer, PathBuf)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/passt");
    let output = Command::new(&script)
        .env("FERROVIRT_CACHE", all)
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    let built = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    if !output.status.success() || !built.join("passt").is_file() {
        bail!("{} has built no passt", script.display());
    }
    let executable = built.join("passt");
    let key = sha256_text(&format!("{}{SCRIPT}{CODE}", sha256_file(&executable)?))?;
    cache.entry(LAYER, &key, |dir| {
        let file = |source: PathBuf, mode| Node::File {
            content: Content::Path(source),
            mode,
            modified: 0,
        };
        let tree = Tree::from([
            ("usr/bin/passt".to_owned(), file(executable, 0o755)),
            (
                "usr/share/doc/passt/copyright".to_owned(),
                file(built.join("copyright"), 0o644),
            ),
        ]);
        store(LAYER, &tree, dir)
    })
}

/// What the SBOM says of it.
pub fn package() -> Result<Package> {
    let value = |name: &str| {
        let line = SCRIPT
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.with_context(|| format!("scripts/passt has no {name}"))
    };
    let version = value("version")?;
    let upstream = version.split_once('-').map_or(version, |(upstream, _)| upstream);
    Ok(Package {
        name: "passt".to_owned(),
        version: version.to_owned(),
        architecture: "source".to_owned(),
        source: None,
        maintainer: "Stefano Brivio <sbrivio@redhat.com>".to_owned(),
        homepage: Some("https://passt.top/".to_owned()),
        file: format!("pool/main/p/passt/passt_{upstream}.orig.tar.xz"),
        sha256: value("upstream_sha256")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sbom_knows_what_the_script_builds() {
        let package = package().unwrap();
        assert!(package.version.contains("-2+deb13"), "{package:?}");
        assert!(
            package.file.ends_with(".orig.tar.xz") && package.sha256.len() == 64,
            "{package:?}"
        );
    }
}
