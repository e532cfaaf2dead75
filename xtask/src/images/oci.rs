//! Images as an OCI image layout, and their way to a registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::contents::Image;
use super::tree::Layer;
use super::{run, sha256_file};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A directory that holds images.
pub struct Layout {
    dir: PathBuf,
    manifests: Vec<Value>,
}

/// What became of an image.
pub struct Stored {
    pub name: &'static str,
    pub digest: String,
    /// Bytes that a node without any of its layers fetches.
    pub size: u64,
    /// Bytes that its files take.
    pub unpacked: u64,
}

impl Layout {
    /// Begins one anew in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        let blobs = dir.join("blobs");
        if blobs.exists() {
            ensure!(
                dir.join("oci-layout").exists(),
                "{} exists and is no OCI layout; name another directory by --out",
                dir.display()
            );
            fs::remove_dir_all(&blobs).with_context(|| format!("cannot remove {}", blobs.display()))?;
        }
        let blobs = blobs.join("sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        let version = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        fs::write(dir.join("oci-layout"), version).context("cannot write oci-layout")?;
        Ok(Self {
            dir: dir.to_owned(),
            manifests: Vec::new(),
        })
    }

    /// Adds an image of the layers, each with its archive.
    pub fn add(
        &mut self,
        image: &Image,
        version: &str,
        created: Option<&str>,
        layers: &[(Layer, PathBuf)],
    ) -> Result<Stored> {
        for (layer, archive) in layers {
            let blob = self.blob(layer.file());
            if !blob.exists() {
                // The cache may be on another file system.
                fs::hard_link(archive, &blob)
                    .or_else(|_| fs::copy(archive, &blob).map(drop))
                    .with_context(|| format!("cannot write {}", blob.display()))?;
            }
        }
        let config = config(image, version, created, layers);
        let config = self.write(&config, CONFIG)?;
        let archives: Vec<Value> = layers
            .iter()
            .map(|(layer, _)| json!({"mediaType": LAYER, "digest": layer.digest, "size": layer.size}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": archives,
            "annotations": annotations(image, version),
        });
        let mut descriptor = self.write(&manifest, MANIFEST)?;
        let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": image.name});
        descriptor["platform"] = json!({"architecture": "amd64", "os": "linux"});
        self.manifests.push(descriptor);
        Ok(Stored {
            name: image.name,
            digest,
            size: layers.iter().map(|(layer, _)| layer.size).sum(),
            unpacked: layers.iter().map(|(layer, _)| layer.unpacked).sum(),
        })
    }

    /// Ends it: from now on it names its images.
    pub fn finish(self) -> Result<()> {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests});
        let path = self.dir.join("index.json");
        fs::write(&path, index.to_string()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(name)
    }

    fn write(&self, document: &Value, media_type: &str) -> Result<Value> {
        let path = self.blob("new");
        let text = document.to_string();
        fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        let digest = sha256_file(&path)?;
        fs::rename(&path, self.blob(&digest))?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len()}))
    }
}

fn config(image: &Image, version: &str, created: Option<&str>, layers: &[(Layer, PathBuf)]) -> Value {
    let diff_ids: Vec<&str> = layers.iter().map(|(layer, _)| layer.diff_id.as_str()).collect();
    let history: Vec<Value> = layers
        .iter()
        .map(|(layer, _)| json!({"created_by": format!("cargo xtask images: {}", layer.name)}))
        .collect();
    let mut config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": image.user,
            "Entrypoint": image.entrypoint,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
            "Labels": annotations(image, version),
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    });
    if let Some(created) = created {
        config["created"] = json!(created);
    }
    config
}

fn annotations(image: &Image, version: &str) -> Value {
    json!({
        "org.opencontainers.image.title": image.name,
        "org.opencontainers.image.description": image.title,
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
    })
}

/// Sends an image of the layout in `dir` to a registry; returns its name there.
pub fn push(dir: &Path, name: &str, registry: &str, tag: &str, plain: bool) -> Result<String> {
    let reference = format!("{}/{name}:{tag}", registry.trim_end_matches('/'));
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "-q", "--preserve-digests"]);
    if plain || is_loopback(registry) {
        command.arg("--dest-tls-verify=false");
    }
    run(command
        .arg(format!("oci:{}:{name}", dir.display()))
        .arg(format!("docker://{reference}")))?;
    Ok(reference)
}

/// Whether it is on this machine, where no TLS is needed.
fn is_loopback(registry: &str) -> bool {
    let host = registry.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_trusted_without_tls() {
        for (registry, expected) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000/ferrovirt", true),
            ("127.7.0.1", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.example.com", false),
            ("registry.example.com/ferrovirt", false),
        ] {
            assert_eq!(is_loopback(registry), expected, "{registry}");
        }
    }
}
