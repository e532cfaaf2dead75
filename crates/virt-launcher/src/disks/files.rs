//! Files of ConfigMaps, Secrets, the service account and the downward API as an ISO image.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ferrovirt_core::machine::{Files, FilesOrigin};

use super::iso;
use crate::children::Children;
use crate::layout::Layout;

/// Label of an image that chooses none.
const LABEL: &str = "cfgdata";
/// Label by which people find the answer files.
const SYSPREP_LABEL: &str = "unattendCfg";
/// What Windows looks for, in any case.
const ANSWER_FILES: [&str; 2] = ["autounattend.xml", "unattend.xml"];
/// Most bytes of all files; an object has 1 MiB at most.
const MAX_BYTES: u64 = 16 << 20;
/// Most directories below each other.
const MAX_DEPTH: usize = 16;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than objects of a cluster have.
    #[error("the files in {} have more than {MAX_BYTES} bytes or {MAX_DEPTH} levels of directories", path.display())]
    TooLarge {
        /// Where.
        path: PathBuf,
    },
    /// Windows would not find anything.
    #[error("a sysprep volume needs the key autounattend.xml or unattend.xml; {} has neither", path.display())]
    NoAnswerFile {
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
    /// The tool failed.
    #[error(transparent)]
    Iso(#[from] iso::Error),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

/// Builds the image and returns its path; an older one is replaced only by a complete one.
pub async fn build(layout: &Layout, children: &Children, volume: &str, files: &Files) -> Result<PathBuf, Error> {
    let mounted = layout.volume_files(volume, &files.origin);
    let image = layout.files_image(volume);
    let (tree, staging) = (image.with_extension("data"), image.with_extension("new"));
    if tree.exists() {
        fs::remove_dir_all(&tree).map_err(at(&tree))?;
    }
    fs::create_dir_all(&tree).map_err(at(&tree))?;
    copy(&mounted, &tree, MAX_DEPTH, &mut MAX_BYTES.clone())?;
    let sysprep = matches!(
        files.origin,
        FilesOrigin::SysprepConfigMap(_) | FilesOrigin::SysprepSecret(_)
    );
    if sysprep && !has_answer_file(&tree)? {
        return Err(Error::NoAnswerFile { path: mounted });
    }
    let default = if sysprep { SYSPREP_LABEL } else { LABEL };
    iso::make(children, &tree, &staging, files.label.as_deref().unwrap_or(default)).await?;
    fs::rename(&staging, &image).map_err(at(&image))?;
    // It holds secrets a second time.
    fs::remove_dir_all(&tree).map_err(at(&tree))?;
    Ok(image)
}

/// Copies what a kubelet has laid out: names that begin with `..` are its own, and the rest are links to them.
fn copy(from: &Path, to: &Path, depth: usize, budget: &mut u64) -> Result<(), Error> {
    let too_large = || Error::TooLarge { path: from.to_owned() };
    let depth = depth.checked_sub(1).ok_or_else(too_large)?;
    for entry in fs::read_dir(from).map_err(at(from))? {
        let name = entry.map_err(at(from))?.file_name();
        if name.as_encoded_bytes().starts_with(b"..") {
            continue;
        }
        let (source, target) = (from.join(&name), to.join(&name));
        let meta = fs::metadata(&source).map_err(at(&source))?;
        if meta.is_dir() {
            fs::create_dir(&target).map_err(at(&target))?;
            copy(&source, &target, depth, budget)?;
            continue;
        }
        *budget = budget.checked_sub(meta.len()).ok_or_else(too_large)?;
        let content = fs::read(&source).map_err(at(&source))?;
        fs::write(&target, content).map_err(at(&target))?;
    }
    Ok(())
}

fn has_answer_file(tree: &Path) -> Result<bool, Error> {
    let names = fs::read_dir(tree).map_err(at(tree))?;
    let mut names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.any(|name| ANSWER_FILES.contains(&name.to_lowercase().as_str())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use ferrovirt_core::machine::ObjectRef;

    use super::*;

    /// A layout below a directory of its own, and the mounted files of the volume `v`.
    fn mounted(origin: &FilesOrigin, files: &[(&str, &str)]) -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), "ns", "vm", "uid");
        let at = layout.volume_files("v", origin);
        // As a kubelet does it: a directory that can be swapped, and links to its files.
        let data = at.join("..2026_11_22");
        fs::create_dir_all(&data).unwrap();
        symlink("..2026_11_22", at.join("..data")).unwrap();
        for (name, content) in files {
            let path = data.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            let top = Path::new(name).iter().next().unwrap();
            let _ = symlink(Path::new("..data").join(top), at.join(top));
        }
        (dir, layout)
    }

    async fn image(
        origin: FilesOrigin,
        label: Option<&str>,
        files: &[(&str, &str)],
    ) -> Result<(String, String), Error> {
        let (_dir, layout) = mounted(&origin, files);
        let children = Children::default();
        let reaper = tokio::spawn(children.clone().reap());
        let label = label.map(str::to_owned);
        let built = build(&layout, &children, "v", &Files { origin, label }).await;
        reaper.abort();
        let image = built?;
        let raw = fs::read(&image).unwrap();
        let listing = std::process::Command::new("xorriso")
            .args(["-indev", image.to_str().unwrap(), "-find", "/", "-type", "f"])
            .output();
        assert!(!image.with_extension("data").exists());
        Ok((
            String::from_utf8_lossy(&raw[0x8028..0x8048]).trim_end().to_owned(),
            String::from_utf8(listing.unwrap().stdout).unwrap(),
        ))
    }

    /// Shows `spec.volumes[].configMap.volumeLabel`, `spec.volumes[].secret.volumeLabel`,
    /// `spec.volumes[].downwardAPI.volumeLabel`.
    #[tokio::test]
    async fn files_are_found_below_their_names_only() {
        let map = FilesOrigin::ConfigMap(ObjectRef {
            name: "m".into(),
            optional: false,
        });
        let (label, listing) = image(map.clone(), None, &[("motd", "hi"), ("a/b.conf", "x")])
            .await
            .unwrap();
        assert_eq!(label, "cfgdata");
        let mut lines: Vec<&str> = listing.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["'/a/b.conf'", "'/motd'"]);
        let (label, listing) = image(map, Some("My Config"), &[]).await.unwrap();
        assert_eq!((label.as_str(), listing.trim()), ("My Config", ""));
    }

    #[tokio::test]
    async fn sysprep_needs_its_answer_file_in_any_case() {
        let sysprep = || FilesOrigin::SysprepSecret("s".into());
        let found = image(sysprep(), None, &[("Autounattend.xml", "<a/>")]).await.unwrap();
        assert_eq!(
            (found.0.as_str(), found.1.trim()),
            ("unattendCfg", "'/Autounattend.xml'")
        );
        let error = image(sysprep(), None, &[("answer.xml", "<a/>")]).await.unwrap_err();
        assert!(matches!(error, Error::NoAnswerFile { .. }), "{error}");
    }

    #[tokio::test]
    async fn too_much_is_refused() {
        let secret = FilesOrigin::Secret(ObjectRef {
            name: "s".into(),
            optional: true,
        });
        let (_dir, layout) = mounted(&secret, &[("big", "")]);
        let big = layout.volume_files("v", &secret).join("big");
        fs::File::options()
            .write(true)
            .open(big)
            .unwrap()
            .set_len(MAX_BYTES + 1)
            .unwrap();
        let files = Files {
            origin: secret,
            label: None,
        };
        let error = build(&layout, &Children::default(), "v", &files).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
}
