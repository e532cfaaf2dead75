//! Pods of the VMIs in `testdata/pods`, compared with the checked-in ones beside them. Inputs that end in `-cluster` or
//! `-helper` are rendered for a Kubernetes cluster with KVM, the latter for one without image volumes; the others for one
//! machine that may emulate.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

mod golden;

fn inputs() -> Vec<(String, VirtualMachineInstance)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/pods");
    let mut all: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            (name, serde_yaml_ng::from_str(&text).unwrap())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn options(home: Home) -> Options {
    Options {
        launcher_image: "ferrovirt/virt-launcher:1.2.3".to_owned(),
        sidecar_shim_image: Some("ferrovirt/sidecar-shim:1.2.3".to_owned()),
        home,
    }
}

/// The defaults, with all that an administrator may allow.
fn cluster() -> ClusterConfig {
    ClusterConfig {
        feature_gates: ClusterConfig::permissive().feature_gates,
        permitted_devices: None,
        ..ClusterConfig::default()
    }
}

/// One machine with every gate open.
fn one_machine() -> ClusterConfig {
    ClusterConfig {
        feature_gates: ClusterConfig::permissive().feature_gates,
        ..ClusterConfig::standalone()
    }
}

#[test]
fn pods_are_as_checked_in() {
    let inputs = inputs();
    assert!(inputs.len() >= 15);
    for (name, vmi) in inputs {
        let (config, home) = if name.ends_with("-cluster") || name.ends_with("-helper") {
            (cluster(), Home::Cluster)
        } else {
            (one_machine(), Home::Standalone)
        };
        let way = if name.ends_with("-helper") {
            ContainerDisks::Helper
        } else {
            ContainerDisks::ImageVolumes
        };
        let render = || render(&vmi, &config, &options(home), way, &Claims::default());
        let pod = render().unwrap_or_else(|e| panic!("{name}: {e}"));
        insta::with_settings!({snapshot_path => "../../../testdata/pods", prepend_module_to_snapshot => false}, {
            insta::assert_yaml_snapshot!(name.as_str(), pod);
        });
        assert_eq!(render().unwrap(), pod);
        let names: Vec<String> = pod
            .spec
            .unwrap()
            .volumes
            .unwrap()
            .into_iter()
            .map(|volume| volume.name)
            .collect();
        let unique: BTreeSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "{name}");
    }
}

#[test]
fn what_cannot_be_rendered_says_why() {
    let (_, mut vmi) = inputs().into_iter().find(|(name, _)| name == "tiny").unwrap();
    vmi.spec.domain.memory = None;
    let (config, options) = (ClusterConfig::standalone(), options(Home::Standalone));
    let error = render(
        &vmi,
        &config,
        &options,
        ContainerDisks::ImageVolumes,
        &Claims::default(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
}

#[test]
fn names_are_short_enough_and_differ_by_uid() {
    let (_, mut vmi) = inputs().into_iter().find(|(name, _)| name == "long-name").unwrap();
    let first = name(&vmi);
    assert_eq!(first.len(), 63);
    vmi.metadata.uid = Some("another".to_owned());
    assert_ne!(name(&vmi), first);
}

#[test]
fn the_administrators_seccomp_profile_is_used() {
    let (_, vmi) = inputs().into_iter().find(|(name, _)| name == "tiny").unwrap();
    let mut config = ClusterConfig::default();
    for (own, kind) in [(None, "RuntimeDefault"), (Some("profiles/vm.json"), "Localhost")] {
        config.seccomp_profile = own.map(str::to_owned);
        let (options, claims) = (options(Home::Cluster), Claims::default());
        let pod = render(&vmi, &config, &options, ContainerDisks::ImageVolumes, &claims).unwrap();
        let profile = pod.spec.unwrap().security_context.unwrap().seccomp_profile.unwrap();
        assert_eq!(
            (profile.type_.as_str(), profile.localhost_profile.as_deref()),
            (kind, own)
        );
    }
}
