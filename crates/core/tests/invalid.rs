//! The table of invalid manifests in `tests/invalid`, asked as admission asks: defaults, then rules.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::Path;

use ferrovirt_api::v1::{KubeVirtConfiguration, VirtualMachine, VirtualMachineInstance};
use ferrovirt_core::config::validate_configuration;
use ferrovirt_core::machine::Architecture;
use ferrovirt_core::{Cause, ClusterConfig, default_vm, default_vmi, validate_vm, validate_vmi_create};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    by: By,
    field: String,
    reason: String,
    message: String,
    manifest: Value,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum By {
    Rules,
    Schema,
}

fn cases() -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/invalid");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            for document in serde_yaml_ng::Deserializer::from_str(&text) {
                cases.push(Case::deserialize(document).unwrap());
            }
        }
    }
    cases
}

/// What admission answers; `None`: the manifest cannot even be read.
fn judge(manifest: &Value) -> Option<Vec<Cause>> {
    let config = ClusterConfig {
        architecture: Architecture::Amd64,
        ..ClusterConfig::standalone()
    };
    match manifest["kind"].as_str().unwrap() {
        "VirtualMachineInstance" => {
            let mut vmi: VirtualMachineInstance = serde_json::from_value(manifest.clone()).ok()?;
            default_vmi(&mut vmi, &config, Uuid::nil());
            Some(validate_vmi_create(&vmi, &config, false))
        }
        "VirtualMachine" => {
            let mut vm: VirtualMachine = serde_json::from_value(manifest.clone()).ok()?;
            default_vm(&mut vm, &config, Uuid::nil(), Uuid::nil());
            Some(validate_vm(&vm, None, &config))
        }
        other => panic!("{other} is no kind of this table"),
    }
}

#[test]
fn every_manifest_is_refused_for_its_reason() {
    let mut wrong = Vec::new();
    for Case {
        name,
        by,
        field,
        reason,
        message,
        manifest,
    } in cases()
    {
        let causes = match (by, judge(&manifest)) {
            (By::Rules, None) => {
                wrong.push(format!("{name}: cannot be read"));
                continue;
            }
            (By::Schema, None) => continue,
            (_, Some(causes)) => causes,
        };
        let expected = |c: &Cause| c.field == field && c.reason.as_str() == reason && c.message.contains(&message);
        // What the schema refuses and the types can hold is refused here, too, in our own words.
        let refused = match by {
            By::Rules => causes.iter().any(expected),
            By::Schema => causes.iter().any(|c| c.field == field),
        };
        if !refused {
            wrong.push(format!("{name}: {field} {reason} {message:?} is not among {causes:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// On a cluster the kubelet gives containers CPUs of their own; the table is asked there, too.
#[test]
fn one_machine_gives_no_cpus_away() {
    let vmi = |cpu: &Value| {
        serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
            "spec": {"domain": {"devices": {}, "memory": {"guest": "64Mi"}, "cpu": cpu}},
        })
    };
    let causes = judge(&vmi(&serde_json::json!({"dedicatedCpuPlacement": true}))).unwrap();
    let expected = |c: &Cause| {
        c.field == "spec.domain.cpu.dedicatedCpuPlacement"
            && c.reason.as_str() == "FieldValueNotSupported"
            && c.message.contains("share its CPUs")
    };
    assert!(causes.iter().any(expected), "{causes:#?}");
    assert_eq!(judge(&vmi(&serde_json::json!({"cores": 2}))), Some(Vec::new()));
}

/// On a cluster Multus may be there; the table is asked there, too.
#[test]
fn one_machine_has_no_secondary_networks() {
    let vmi = |network: &Value| {
        serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
            "spec": {
                "domain": {
                    "devices": {"interfaces": [{"name": "n", "bridge": {}}]}, "memory": {"guest": "64Mi"},
                },
                "networks": [network],
            },
        })
    };
    let causes = judge(&vmi(&serde_json::json!({"name": "n", "multus": {"networkName": "n"}}))).unwrap();
    let expected = |c: &Cause| {
        c.field == "spec.networks[0].multus"
            && c.reason.as_str() == "FieldValueNotSupported"
            && c.message.contains("pod network only")
    };
    assert!(causes.iter().any(expected), "{causes:#?}");
    assert_eq!(
        judge(&vmi(&serde_json::json!({"name": "n", "pod": {}}))),
        Some(Vec::new())
    );
}

/// Which plugins bind NICs is the administrator's choice, and what they need is not on one machine; the table is asked
/// in both.
#[test]
fn plugins_of_network_bindings() {
    let vmi: VirtualMachineInstance = serde_json::from_value(serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
        "spec": {
            "domain": {
                "devices": {"interfaces": [{"name": "n", "binding": {"name": "p"}}]}, "memory": {"guest": "64Mi"},
            },
            "networks": [{"name": "n", "pod": {}}],
        },
    }))
    .unwrap();
    let (none, only_cluster) = ("", "FieldValueNotSupported");
    for (plugin, on_a_cluster, on_one_machine, message) in [
        ("{domainAttachmentType: managedTap}", none, none, ""),
        (
            "{domainAttachmentType: managedTap, migration: {method: link-refresh}}",
            none,
            none,
            "",
        ),
        (
            "{domainAttachmentType: tap}",
            none,
            only_cluster,
            "comes from a CNI plugin",
        ),
        ("{}", none, only_cluster, "a sidecar would have to attach"),
        ("{sidecarImage: r/p}", none, only_cluster, "has a sidecar"),
        (
            "{domainAttachmentType: managedTap, sidecarImage: r/p}",
            none,
            only_cluster,
            "has a sidecar",
        ),
        (
            "{domainAttachmentType: managedTap, networkAttachmentDefinition: ns/p}",
            none,
            only_cluster,
            "has a networkAttachmentDefinition",
        ),
        (
            "{domainAttachmentType: vhostuser}",
            "FieldValueInvalid",
            "FieldValueInvalid",
            "binding[p].domainAttachmentType: \"vhostuser\" is not one of tap, managedTap",
        ),
    ] {
        let plugin: Value = serde_yaml_ng::from_str(plugin).unwrap();
        let configuration = serde_json::json!({"network": {"binding": {"p": plugin}}});
        let configuration = serde_json::from_value(configuration).unwrap();
        for (config, reason) in [
            (ClusterConfig::default(), on_a_cluster),
            (ClusterConfig::standalone(), on_one_machine),
        ] {
            let config = ClusterConfig {
                architecture: Architecture::Amd64,
                ..config.with(&configuration)
            };
            let causes = validate_vmi_create(&vmi, &config, false);
            let told = |c: &Cause| {
                c.field == "spec.domain.devices.interfaces[0].binding.name"
                    && c.reason.as_str() == reason
                    && c.message.contains(message)
            };
            assert_eq!(causes.len(), usize::from(!reason.is_empty()), "{plugin}: {causes:#?}");
            assert!(causes.iter().all(told), "{plugin}: {causes:#?}");
        }
    }
}

/// What an administrator registers can be used; what is there already does not stop other changes.
#[test]
fn configurations_register_plugins_that_can_be_used() {
    let configuration = |plugin: Value| -> KubeVirtConfiguration {
        serde_json::from_value(serde_json::json!({"network": {"binding": {"p": plugin}}})).unwrap()
    };
    let judge = |new, old| validate_configuration(new, old, &ClusterConfig::default());
    let good = configuration(serde_json::json!({"domainAttachmentType": "tap"}));
    let bad = configuration(serde_json::json!({"domainAttachmentType": "vhostuser", "downwardAPI": "x"}));
    assert_eq!(judge(&good, None), []);
    assert_eq!(judge(&good, Some(&bad)), []);
    assert_eq!(judge(&bad, Some(&bad)), []);
    for old in [None, Some(&good)] {
        let causes = judge(&bad, old);
        let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        let path = "spec.configuration.network.binding[p]";
        assert_eq!(
            fields,
            [format!("{path}.domainAttachmentType"), format!("{path}.downwardAPI")]
        );
    }
}

/// On a cluster an administrator says whether nodes have that daemon, which one machine never has; the table is asked in
/// both.
#[test]
fn reservations_need_their_daemon() {
    let vmi = |reservation: bool| -> VirtualMachineInstance {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
            "spec": {
                "domain": {
                    "devices": {"disks": [{"name": "a", "lun": {"bus": "scsi", "reservation": reservation}}]},
                    "memory": {"guest": "64Mi"},
                },
                "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "c"}}],
            },
        }))
        .unwrap()
    };
    let enabled = serde_json::json!({"persistentReservationConfiguration": {"enabled": true}});
    let enabled = serde_json::from_value(enabled).unwrap();
    let cluster = ClusterConfig::default;
    for (config, reason, message) in [
        (
            cluster(),
            "FieldValueInvalid",
            "persistentReservationConfiguration.enabled is not set",
        ),
        (cluster().with(&enabled), "", ""),
        (
            ClusterConfig::standalone().with(&enabled),
            "FieldValueNotSupported",
            "one machine has no daemon",
        ),
    ] {
        let config = ClusterConfig {
            architecture: Architecture::Amd64,
            ..config
        };
        let causes = validate_vmi_create(&vmi(true), &config, false);
        let told = |c: &Cause| {
            c.field == "spec.domain.devices.disks[0].lun.reservation"
                && c.reason.as_str() == reason
                && c.message.contains(message)
        };
        assert_eq!(causes.len(), usize::from(!reason.is_empty()), "{causes:#?}");
        assert!(causes.iter().all(told), "{causes:#?}");
        assert!(validate_vmi_create(&vmi(false), &config, false).is_empty());
    }
}

/// On a cluster there may be drivers for resource claims. Their gates are on until an administrator disables them.
#[test]
fn devices_by_resource_claims_are_for_clusters_and_behind_gates() {
    let vmi: VirtualMachineInstance = serde_json::from_value(serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
        "spec": {
            "resourceClaims": [{"name": "c", "resourceClaimName": "a"}],
            "domain": {
                "devices": {
                    "gpus": [{"name": "g", "claimName": "c", "requestName": "r"}],
                    "hostDevices": [{"name": "h", "claimName": "c", "requestName": "s"}],
                },
                "memory": {"guest": "64Mi"},
            },
        },
    }))
    .unwrap();
    let refused = |config: ClusterConfig, disabled: &[&str]| {
        let mut vmi = vmi.clone();
        let configuration = serde_json::json!({"developerConfiguration": {"disabledFeatureGates": disabled}});
        let config = ClusterConfig {
            architecture: Architecture::Amd64,
            ..config.with(&serde_json::from_value(configuration).unwrap())
        };
        default_vmi(&mut vmi, &config, Uuid::nil());
        let causes = validate_vmi_create(&vmi, &config, false);
        assert!(
            causes.iter().all(|c| c.reason.as_str() == "FieldValueNotSupported"),
            "{causes:#?}"
        );
        causes.into_iter().map(|cause| cause.field).collect::<Vec<_>>()
    };
    let (gpu, host_device) = (
        "spec.domain.devices.gpus[0].claimName",
        "spec.domain.devices.hostDevices[0].claimName",
    );
    let (gpus, host_devices) = ("GPUsWithDRA", "HostDevicesWithDRA");
    for (config, disabled, fields) in [
        (ClusterConfig::default(), vec![], vec![]),
        (ClusterConfig::default(), vec![gpus], vec![gpu]),
        (ClusterConfig::default(), vec![host_devices], vec![host_device]),
        (
            ClusterConfig::default(),
            vec![gpus, host_devices],
            vec!["spec.resourceClaims", gpu, host_device],
        ),
        (ClusterConfig::standalone(), vec![], vec!["spec.resourceClaims"]),
    ] {
        assert_eq!(refused(config, &disabled), fields, "{disabled:?}");
    }
}

/// Networks by resource claims are younger than other devices: their gate is off until an administrator enables it.
#[test]
fn networks_by_resource_claims_are_behind_their_gate() {
    let judge = |configuration: Value| {
        let mut vmi: VirtualMachineInstance = serde_json::from_value(serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
            "spec": {
                "resourceClaims": [{"name": "c", "resourceClaimName": "a"}],
                "networks": [{"name": "n", "resourceClaim": {"claimName": "c", "requestName": "r"}}],
                "domain": {"devices": {"interfaces": [{"name": "n", "sriov": {}}]}, "memory": {"guest": "64Mi"}},
            },
        }))
        .unwrap();
        let config = ClusterConfig {
            architecture: Architecture::Amd64,
            ..ClusterConfig::default().with(&serde_json::from_value(configuration).unwrap())
        };
        default_vmi(&mut vmi, &config, Uuid::nil());
        let causes = validate_vmi_create(&vmi, &config, false);
        causes.into_iter().map(|cause| cause.field).collect::<Vec<_>>()
    };
    let field = "spec.networks[0].resourceClaim.claimName";
    assert_eq!(judge(serde_json::json!({})), [field]);
    let (network, others) = ("NetworkDevicesWithDRA", ["GPUsWithDRA", "HostDevicesWithDRA"]);
    for gates in [
        serde_json::json!({"featureGates": [network]}),
        serde_json::json!({"featureGates": [network], "disabledFeatureGates": others}),
    ] {
        let configuration = serde_json::json!({"developerConfiguration": gates});
        assert_eq!(judge(configuration), [""; 0]);
    }
}

/// An administrator's gates, which are on where the user owns the machine.
#[test]
fn shared_claims_and_container_paths_are_behind_gates() {
    let judge = |config: ClusterConfig, volume: Value| {
        let mut vmi: VirtualMachineInstance = serde_json::from_value(serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
            "spec": {
                "domain": {
                    "devices": {"filesystems": [{"name": "a", "virtiofs": {}}]}, "memory": {"guest": "64Mi"},
                },
                "volumes": [volume],
            },
        }))
        .unwrap();
        let config = ClusterConfig {
            architecture: Architecture::Amd64,
            ..config
        };
        default_vmi(&mut vmi, &config, Uuid::nil());
        validate_vmi_create(&vmi, &config, false)
    };
    let claim = serde_json::json!({"name": "a", "persistentVolumeClaim": {"claimName": "c"}});
    let path = serde_json::json!({"name": "a", "containerPath": {"path": "/var/run/secrets/cloud"}});
    let map = serde_json::json!({"name": "a", "configMap": {"name": "c"}});
    for (volume, field, gate) in [
        (
            &claim,
            "spec.domain.devices.filesystems[0]",
            "EnableVirtioFsStorageVolumes",
        ),
        (&path, "spec.volumes[0].containerPath", "ContainerPathVolumes"),
    ] {
        let causes = judge(ClusterConfig::default(), volume.clone());
        let [cause] = causes.as_slice() else {
            panic!("{causes:#?}")
        };
        assert_eq!(
            (cause.field.as_str(), cause.reason.as_str()),
            (field, "FieldValueNotSupported")
        );
        assert!(cause.message.contains(gate), "{cause}");
        assert_eq!(judge(ClusterConfig::standalone(), volume.clone()), []);
    }
    // Files of objects are behind none.
    assert_eq!(judge(ClusterConfig::default(), map), []);
}

#[test]
fn the_table_is_large_and_its_names_are_unique() {
    let cases = cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() >= 400, "{} cases", cases.len());
    for case in &cases {
        assert_eq!(case.manifest["metadata"]["name"], case.name.as_str());
        assert!(case.by == By::Schema || !case.message.is_empty(), "{}", case.name);
    }
}
