//! ISO 9660 images of directories.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::children::Children;

/// Longest time the tool may take.
const LIMIT: Duration = Duration::from_secs(30);

/// No image was made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the ISO image")]
pub struct Error(#[source] io::Error);

/// Writes everything below `tree` to the new image `output`, with exact names.
pub async fn make(children: &Children, tree: &Path, output: &Path, label: &str) -> Result<(), Error> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for tool in ["genisoimage", "xorrisofs"] {
        let mut command = Command::new(tool);
        command
            .args(["-quiet", "-joliet", "-joliet-long", "-rock", "-volid", label, "-output"])
            .arg(output)
            .arg(tree);
        // It looks for settings in the home directory, which must not matter.
        command
            .env("HOME", "/nonexistent")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        match children.run(&mut command, LIMIT).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
            Err(error) => return Err(Error(error)),
        }
    }
    Err(Error(io::Error::new(
        last.kind(),
        "neither genisoimage nor xorrisofs is installed",
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn the_image_has_the_label_and_exact_names() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("data");
        fs::create_dir_all(tree.join("openstack/latest")).unwrap();
        fs::write(tree.join("meta-data"), "{}").unwrap();
        fs::write(tree.join("openstack/latest/user_data"), "hello").unwrap();
        let children = Children::default();
        let reaper = tokio::spawn(children.clone().reap());
        let image = dir.path().join("x.iso");
        make(&children, &tree, &image, "config-2").await.unwrap();
        reaper.abort();
        let raw = fs::read(&image).unwrap();
        assert_eq!(&raw[0x8028..0x8030], b"config-2");
        let listing = std::process::Command::new("xorriso")
            .args(["-indev", image.to_str().unwrap(), "-find", "/", "-exec", "lsdl"])
            .output();
        let listing = String::from_utf8(listing.unwrap().stdout).unwrap();
        assert!(
            listing.contains("'/meta-data'") && listing.contains("'/openstack/latest/user_data'"),
            "{listing}"
        );
    }
}
