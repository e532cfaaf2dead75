use std::io::Write;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::unpack::{self, Budget};
use super::*;

/// A layer from (name, content); a `None` content is a directory.
fn layer_of(entries: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        // Written by hand: tar::Builder refuses hostile names.
        header.as_gnu_mut().expect("a GNU header").name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o4777);
        header.set_uid(12345);
        header.set_entry_type(if content.is_some() {
            tar::EntryType::Regular
        } else {
            tar::EntryType::Directory
        });
        header.set_size(content.map_or(0, |c| c.len() as u64));
        header.set_cksum();
        builder
            .append(&header, content.unwrap_or_default())
            .expect("memory takes all");
    }
    builder.into_inner().expect("memory takes all")
}

fn blob(dir: &Path, bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    fs::create_dir_all(dir.join("blobs/sha256")).expect("temp dir is writable");
    fs::write(dir.join("blobs/sha256").join(&hex), bytes).expect("temp dir is writable");
    format!("sha256:{hex}")
}

/// An OCI layout with the given layers.
fn layout_of(dir: &Path, layers: &[Vec<u8>]) {
    let layers: Vec<_> = layers
        .iter()
        .map(|l| serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob(dir, l), "size": l.len()}))
        .collect();
    let config = blob(dir, b"{}");
    let manifest = serde_json::json!({"schemaVersion": 2, "layers": layers,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2}});
    let digest = blob(dir, manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}]});
    fs::write(dir.join("index.json"), index.to_string()).expect("temp dir is writable");
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("temp dir is writable");
}

fn no_progress(_: u64) {}

#[test]
fn an_imported_image_is_listed_found_under_every_policy_and_removed() {
    let temp = tempfile::tempdir().expect("a temp dir");
    let layout = temp.path().join("layout");
    layout_of(
        &layout,
        &[
            layer_of(&[("disk/", None), ("disk/old.img", Some(b"old"))]),
            layer_of(&[("disk/.wh.old.img", Some(b"")), ("disk/new.img", Some(b"new"))]),
        ],
    );
    let store = ImageStore::open(&temp.path().join("store")).expect("opens");
    let entry = store
        .import(&layout, "demo/tiny:latest", &no_progress)
        .expect("imports");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for policy in [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never] {
        let image = runtime
            .block_on(store.pull("demo/tiny", policy, &RegistryAuth::Anonymous))
            .expect("is here");
        assert_eq!(image.digest, entry.digest);
        assert_eq!(
            fs::read(image.rootfs.join("disk/new.img")).expect("was unpacked"),
            b"new"
        );
        assert!(!image.rootfs.join("disk/old.img").exists(), "the whiteout was ignored");
    }
    store
        .import(&layout, "demo/other:1", &no_progress)
        .expect("imports under a second name");
    store.remove("demo/tiny").expect("removes");
    let tree = store.tree(&entry.digest);
    assert!(tree.is_dir(), "the other name still stands for it");
    store.remove("demo/other:1").expect("removes");
    assert!(!tree.exists());
    assert!(
        store
            .remove("demo/other:1")
            .expect_err("is gone")
            .message
            .contains("no image")
    );
}

#[test]
fn a_tar_of_a_layout_is_imported() {
    let temp = tempfile::tempdir().expect("a temp dir");
    let layout = temp.path().join("layout");
    layout_of(&layout, &[layer_of(&[("disk/d.img", Some(b"x"))])]);
    let archive = temp.path().join("layout.tar");
    let mut builder = tar::Builder::new(File::create(&archive).expect("a file"));
    builder.append_dir_all(".", &layout).expect("is archived");
    builder.into_inner().and_then(|mut f| f.flush()).expect("is written");
    let store = ImageStore::open(&temp.path().join("store")).expect("opens");
    let entry = store.import(&archive, "a/b:1", &no_progress).expect("imports");
    assert_eq!(
        fs::read(store.tree(&entry.digest).join("disk/d.img")).expect("was unpacked"),
        b"x"
    );
}

#[test]
fn a_damaged_blob_is_refused_and_leaves_nothing() {
    let temp = tempfile::tempdir().expect("a temp dir");
    let layout = temp.path().join("layout");
    let layer = layer_of(&[("disk/d.img", Some(b"x"))]);
    layout_of(&layout, std::slice::from_ref(&layer));
    let hex: String = Sha256::digest(&layer).iter().map(|b| format!("{b:02x}")).collect();
    let mut damaged = layer;
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(layout.join("blobs/sha256").join(hex), damaged).expect("temp dir is writable");
    let store = ImageStore::open(&temp.path().join("store")).expect("opens");
    let error = store.import(&layout, "a/b:1", &no_progress).expect_err("is damaged");
    assert!(error.message.contains("damaged"), "{error}");
    assert!(store.list().expect("reads").is_empty());
    assert_eq!(
        fs::read_dir(temp.path().join("store/tmp")).expect("is there").count(),
        0
    );
}

#[test]
fn hostile_names_and_kinds_stay_inside() {
    for name in ["../escape", "disk/../../escape", "a/../../../tmp/escape"] {
        let temp = tempfile::tempdir().expect("a temp dir");
        let error = unpack::layer(
            temp.path(),
            &layer_of(&[(name, Some(b"x"))])[..],
            &mut Budget::default(),
        );
        assert!(error.is_err(), "{name} was accepted");
    }
    let temp = tempfile::tempdir().expect("a temp dir");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "disk", "/etc")
        .expect("memory takes all");
    let mut bytes = builder.into_inner().expect("memory takes all");
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(layer_of(&[("disk/passwd", Some(b"root")), ("/abs", Some(b"y"))]));
    unpack::layer(temp.path(), &bytes[..], &mut Budget::default()).expect("links are left out");
    assert_eq!(fs::read(temp.path().join("disk/passwd")).expect("is inside"), b"root");
    assert_eq!(fs::read(temp.path().join("abs")).expect("is inside"), b"y");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(temp.path().join("abs")).expect("is there").permissions(),
    );
    assert_eq!(mode & 0o7000, 0, "set-id bits survived");
}

#[test]
fn zeros_become_holes() {
    let temp = tempfile::tempdir().expect("a temp dir");
    let mut content = vec![0u8; 4 << 20];
    content[3 << 20] = 1;
    unpack::layer(
        temp.path(),
        &layer_of(&[("d", Some(&content))])[..],
        &mut Budget::default(),
    )
    .expect("unpacks");
    assert_eq!(fs::read(temp.path().join("d")).expect("is there"), content);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(temp.path().join("d")).expect("is there"));
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
}

#[test]
fn what_is_not_here_has_a_kubelets_reason() {
    let temp = tempfile::tempdir().expect("a temp dir");
    let store = ImageStore::open(temp.path()).expect("opens");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let pull = |name, policy| {
        runtime
            .block_on(store.pull(name, policy, &RegistryAuth::Anonymous))
            .expect_err("is not here")
    };
    assert_eq!(pull("a/b:1", PullPolicy::Never).reason, "ErrImageNeverPull");
    assert_eq!(pull("A B", PullPolicy::Always).reason, "InvalidImageName");
    // Port 9 of loopback: nobody listens.
    assert_eq!(
        pull("127.0.0.1:9/a/b:1", PullPolicy::IfNotPresent).reason,
        "ErrImagePull"
    );
}

#[test]
fn credentials_are_found_by_registry() {
    let config = br#"{"auths":{"https://r.example/v2/":{"username":"u","password":"p"},"docker.io":{"auth":"YTpi"}}}"#;
    assert_eq!(
        auth_for(config, "r.example"),
        Some(RegistryAuth::Basic("u".into(), "p".into()))
    );
    assert_eq!(
        auth_for(config, "docker.io"),
        Some(RegistryAuth::Basic("a".into(), "b".into()))
    );
    assert_eq!(auth_for(config, "other.example"), None);
    assert_eq!(auth_for(b"{", "r.example"), None);
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let temp = tempfile::tempdir().expect("a temp dir");
        let _ = unpack::layer(temp.path(), &bytes[..], &mut Budget::default());
    }
}
