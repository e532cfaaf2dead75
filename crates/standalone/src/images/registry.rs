//! Pulls over the OCI distribution protocol.

use std::io;

use base64::Engine;
use futures::TryStreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde::Deserialize;
use sha2::Sha256;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::layout::Hashed;
use super::unpack::{self, Budget};
use super::{Fetched, ImageError, ImageStore};

/// Reads a reference; `docker.io/library/` and `:latest` are filled in as users of registries expect.
pub(super) fn parse(reference: &str) -> Result<Reference, ImageError> {
    reference.parse().map_err(|e| ImageError {
        reason: "InvalidImageName",
        message: format!("\"{reference}\" is not an image reference such as registry.example/name:tag ({e})"),
    })
}

/// This machine in the registry's words.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Credentials for `registry` in the content of a `kubernetes.io/dockerconfigjson` secret.
#[must_use]
pub fn auth_for(docker_config: &[u8], registry: &str) -> Option<RegistryAuth> {
    #[derive(Deserialize)]
    struct Config {
        auths: std::collections::BTreeMap<String, Auth>,
    }
    #[derive(Deserialize)]
    struct Auth {
        username: Option<String>,
        password: Option<String>,
        auth: Option<String>,
    }
    let config: Config = serde_json::from_slice(docker_config).ok()?;
    let host = |key: &str| -> String {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        key.split('/').next().unwrap_or_default().to_owned()
    };
    let same = |key: &str| host(key) == registry || (registry == "docker.io" && host(key) == "index.docker.io");
    let (_, auth) = config.auths.into_iter().find(|(key, _)| same(key))?;
    if let (Some(user), Some(password)) = (auth.username, auth.password) {
        return Some(RegistryAuth::Basic(user, password));
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth?).ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

/// Fetches the image for this architecture into the store, unless its tree is here already.
pub(super) async fn fetch(
    store: &ImageStore,
    reference: &Reference,
    auth: &RegistryAuth,
) -> Result<Fetched, Box<dyn std::error::Error + Send + Sync>> {
    // TLS goes through ring; whoever installed a provider before may keep it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = reference.registry();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let client = Client::new(ClientConfig {
        protocol: if loopback {
            ClientProtocol::HttpsExcept(vec![registry.to_owned()])
        } else {
            ClientProtocol::Https
        },
        connect_timeout: Some(std::time::Duration::from_secs(10)),
        read_timeout: Some(std::time::Duration::from_secs(60)),
        ..ClientConfig::default()
    });
    let (manifest, digest) = client.pull_image_manifest(reference, auth).await?;
    let target = store.tree(&digest);
    if target.is_dir() {
        return Ok(Fetched { digest, size: 0 });
    }
    let scratch = store.tmp()?;
    let root = scratch.path().join("root");
    std::fs::create_dir(&root)?;
    let mut budget = Budget::default();
    for layer in &manifest.layers {
        let blob = client.pull_blob_stream(reference, layer).await?;
        let reader = StreamReader::new(blob.stream.map_err(io::Error::other));
        let bridge = SyncIoBridge::new(Box::pin(reader));
        let (root, digest) = (root.clone(), layer.digest.clone());
        budget = tokio::task::spawn_blocking(move || -> io::Result<Budget> {
            let mut hashed = Hashed {
                inner: bridge,
                hash: <Sha256 as sha2::Digest>::new(),
            };
            unpack::layer(&root, &mut hashed, &mut budget)?;
            hashed.finish(&digest)?;
            Ok(budget)
        })
        .await??;
    }
    let size = tokio::task::spawn_blocking({
        let root = root.clone();
        move || unpack::seal(&root)
    })
    .await??;
    std::fs::rename(&root, &target)?;
    Ok(Fetched { digest, size })
}
