//! Images: into the cluster's registry, and the two small ones that every cluster has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::fetch::Programs;
use super::layout::{CONTROL, REGISTRY};
use super::run::output;

/// Builds and pushes `pause` (each pod's sandbox) and `busybox`.
///
/// # Errors
/// umoci or skopeo fails.
pub fn push_own(cache: &Path, programs: &Programs) -> Result<()> {
    for (name, tag) in [("pause", "1"), ("busybox", "latest")] {
        let layout = build(cache, programs, name)?;
        push(&format!("oci:{}:{tag}", layout.display()), &format!("{name}:{tag}"))?;
    }
    Ok(())
}

/// Pushes an archive (`docker save`, `skopeo`, `buildah`, `umoci` make them) or an OCI layout's directory. Without a name
/// it gets the one in the archive, without its registry.
///
/// # Errors
/// It is no image, has no name, or the registry does not run.
pub fn load(image: &Path, name: Option<&str>) -> Result<String> {
    let path = fs::canonicalize(image).with_context(|| format!("cannot read {}", image.display()))?;
    let path = path.display().to_string();
    let (source, index) = if image.is_dir() {
        (
            format!("oci:{path}"),
            fs::read_to_string(image.join("index.json")).with_context(|| format!("{path} is no OCI layout"))?,
        )
    } else {
        let names = output("tar", &["-tf", &path])?;
        let has = |wanted: &str| names.lines().find(|name| name.trim_start_matches("./") == wanted);
        if let Some(index) = has("index.json") {
            (format!("oci-archive:{path}"), output("tar", &["-xOf", &path, index])?)
        } else if let Some(manifest) = has("manifest.json") {
            (
                format!("docker-archive:{path}"),
                output("tar", &["-xOf", &path, manifest])?,
            )
        } else {
            bail!("{path} is neither an OCI nor a Docker archive: it has no index.json and no manifest.json");
        }
    };
    let found = reference(&serde_json::from_str(&index).with_context(|| format!("{path} is damaged"))?);
    let target = match (name, &found) {
        (Some(name), _) => target(name),
        (None, Some(found)) if found.contains(['/', ':']) => target(found),
        _ => bail!("the image in {path} has no name; give it one: cargo xtask cluster load {path} --name NAME:TAG"),
    };
    push(&source, &target)?;
    Ok(format!("{REGISTRY}/{target}"))
}

fn push(source: &str, target: &str) -> Result<()> {
    output(
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-tls-verify=false",
            source,
            &format!("docker://{CONTROL}:5000/{target}"),
        ],
    )?;
    Ok(())
}

/// The name of the first image of an OCI index or of a Docker archive's manifest.
fn reference(index: &Value) -> Option<String> {
    let oci = || {
        let annotations = &index["manifests"][0]["annotations"];
        // containerd keeps the whole name in its own annotation, and only the tag in the standard one.
        ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
            .into_iter()
            .find_map(|key| annotations[key].as_str())
    };
    index[0]["RepoTags"][0].as_str().or_else(oci).map(str::to_owned)
}

/// The repository and tag in our registry for a reference in any.
fn target(reference: &str) -> String {
    let name = match reference.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => rest,
        _ => reference,
    };
    let name = name.split('@').next().unwrap_or(name);
    if name.contains(':') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

/// An OCI layout with one of our images, made once.
fn build(cache: &Path, programs: &Programs, name: &str) -> Result<PathBuf> {
    let version = match name {
        "pause" => programs.pause.parent().and_then(Path::file_name),
        _ => None,
    };
    let version = version.unwrap_or("1".as_ref()).to_string_lossy().into_owned();
    let layout = cache.join("images").join(format!("{name}-{version}"));
    if layout.exists() {
        return Ok(layout);
    }
    let part = layout.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    let root = part.join("root");
    fs::create_dir_all(root.join("bin"))?;
    let (tag, entry) = if name == "pause" {
        fs::copy(&programs.pause, root.join("bin/pause"))?;
        ("1", ["--config.entrypoint", "/bin/pause"])
    } else {
        fs::create_dir_all(root.join("etc"))?;
        fs::create_dir_all(root.join("tmp"))?;
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "root:x:0:\n")?;
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for applet in output("/bin/busybox", &["--list"])?
            .lines()
            .filter(|name| *name != "busybox")
        {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
        ("latest", ["--config.cmd", "sh"])
    };
    let directory = part.join("oci").display().to_string();
    let image = format!("{directory}:{tag}");
    output("umoci", &["init", "--layout", &directory])?;
    output("umoci", &["new", "--image", &image])?;
    output(
        "umoci",
        &["insert", "--image", &image, &root.display().to_string(), "/"],
    )?;
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    output(
        "umoci",
        &["config", "--image", &image, "--config.env", path, entry[0], entry[1]],
    )?;
    fs::rename(part.join("oci"), &layout).with_context(|| format!("cannot make {}", layout.display()))?;
    fs::remove_dir_all(&part)?;
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets() {
        for (reference, expected) in [
            ("busybox", "busybox:latest"),
            ("busybox:1.36", "busybox:1.36"),
            ("ferrovirt/virt-api", "ferrovirt/virt-api:latest"),
            ("quay.io/kubevirt/virt-api:v1", "kubevirt/virt-api:v1"),
            ("localhost:5000/a/b:c", "a/b:c"),
            ("localhost/a", "a:latest"),
            ("registry.local:5000/a@sha256:00", "a:latest"),
        ] {
            assert_eq!(target(reference), expected, "{reference}");
        }
    }

    #[test]
    fn names_in_archives() {
        for (index, expected) in [
            (json!([{"RepoTags": ["a:1", "b:2"]}]), Some("a:1")),
            (
                json!({"manifests": [{"annotations": {"org.opencontainers.image.ref.name": "x/y:1"}}]}),
                Some("x/y:1"),
            ),
            (
                json!({"manifests": [{"annotations": {
                    "org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "r.io/y:1"}}]}),
                Some("r.io/y:1"),
            ),
            (json!({"manifests": [{}]}), None),
            (json!([]), None),
        ] {
            assert_eq!(reference(&index).as_deref(), expected, "{index}");
        }
    }
}
