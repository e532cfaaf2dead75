use ferrovirt_api::v1::VirtualMachine;
use serde_json::{Value, json};

use super::*;
use crate::cause::CauseReason;

fn vmi(spec: &str) -> VirtualMachineInstance {
    let spec: Value = serde_yaml_ng::from_str(spec).unwrap();
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"}, "spec": spec
    }))
    .unwrap()
}

fn vm(spec: &str, status: &str) -> VirtualMachine {
    let (spec, status): (Value, Value) = (
        serde_yaml_ng::from_str(spec).unwrap(),
        serde_yaml_ng::from_str(status).unwrap(),
    );
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "vm"}, "spec": spec, "status": status
    }))
    .unwrap()
}

fn fields(causes: &[Cause]) -> Vec<&str> {
    causes.iter().map(|cause| cause.field.as_str()).collect()
}

const SMALL: &str = "{domain: {devices: {}, memory: {guest: 64Mi}}}";

#[test]
fn what_the_administrator_forbids() {
    let host_disk =
        "{domain: {devices: {}, memory: {guest: 64Mi}}, volumes: [{name: a, hostDisk: {path: /a.img, type: Disk}}]}";
    assert_eq!(
        fields(&validate_vmi_create(&vmi(host_disk), &ClusterConfig::default(), false)),
        ["spec.volumes[0].hostDisk"]
    );
    assert!(validate_vmi_create(&vmi(host_disk), &ClusterConfig::standalone(), false).is_empty());

    let config = ClusterConfig {
        permit_bridge_on_pod_network: false,
        ..ClusterConfig::default()
    };
    assert_eq!(
        fields(&validate_vmi_create(&vmi(SMALL), &config, false)),
        ["spec.domain.devices.interfaces[0].bridge"]
    );
    let above = "{domain: {devices: {}, memory: {guest: 64Mi}, resources: {limits: {memory: 32Mi}}}}";
    assert!(validate_vmi_create(&vmi(above), &ClusterConfig::default(), false).is_empty());
    let config = ClusterConfig {
        live_update: false,
        ..ClusterConfig::default()
    };
    assert_eq!(
        fields(&validate_vmi_create(&vmi(above), &config, false)),
        ["spec.domain.memory.guest"]
    );
}

#[test]
fn only_our_components_change_a_vmi() {
    let old = vmi(SMALL);
    let mut new = vmi("{hostname: other, domain: {devices: {}, memory: {guest: 64Mi}}}");
    let label = ("kubevirt.io/nodeName".to_owned(), "n1".to_owned());
    new.metadata.labels = Some([label].into());
    let causes = validate_vmi_update(&old, &new, false);
    assert_eq!(fields(&causes), ["spec", "metadata.labels[kubevirt.io/nodeName]"]);
    assert_eq!(causes[0].message, "update of VMI object is restricted");
    assert_eq!(causes[0].reason, CauseReason::FieldValueNotSupported);
    assert!(validate_vmi_update(&old, &new, true).is_empty());
    let mut labelled = old.clone();
    labelled.metadata.labels = Some([("mine".to_owned(), "1".to_owned())].into());
    assert!(validate_vmi_update(&old, &labelled, false).is_empty());
    let mut created = old;
    created.metadata.labels = new.metadata.labels;
    assert!(!validate_vmi_create(&created, &ClusterConfig::default(), false).is_empty());
    assert!(validate_vmi_create(&created, &ClusterConfig::default(), true).is_empty());
}

#[test]
fn a_change_is_judged_by_what_it_changes() {
    let config = ClusterConfig::default();
    let stored = "{runStrategy: Halted, template: {spec: {hostname: Not_Valid_Any_More, domain: {devices: {}, memory: {guest: 64Mi}}}}}";
    let started = stored.replace("Halted", "Always");
    let edited = stored.replace("64Mi", "65Mi");
    let old = vm(stored, "{}");
    assert!(validate_vm(&old, Some(&old), &config).is_empty());
    assert!(validate_vm(&vm(&started, "{}"), Some(&old), &config).is_empty());
    let causes = validate_vm(&vm(&edited, "{}"), Some(&old), &config);
    assert_eq!(fields(&causes), ["spec.template.spec.hostname"]);
    assert_eq!(
        fields(&validate_vm(&old, None, &config)),
        ["spec.template.spec.hostname"]
    );
}

/// Each part on its own: what was stored by an earlier release does not stop another part's change.
#[test]
fn a_part_that_stays_is_not_judged_again() {
    let config = ClusterConfig::default();
    let spec = |parts: &str, guest: &str| {
        format!("{{{parts}, template: {{spec: {{domain: {{devices: {{}}, memory: {{guest: {guest}}}}}}}}}}}")
    };
    for (part, field) in [
        ("running: true, runStrategy: Always", "spec.running"),
        ("runStrategy: Sometimes", "spec.runStrategy"),
        ("updateVolumesStrategy: Replacement", "spec.runStrategy"),
        ("runStrategy: Halted, instancetype: {name: small}", "spec.instancetype"),
        ("runStrategy: Halted, preference: {name: linux}", "spec.preference"),
        (
            "runStrategy: Halted, updateVolumesStrategy: Migration",
            "spec.updateVolumesStrategy",
        ),
        (
            "runStrategy: Halted, dataVolumeTemplates: [{metadata: {name: ''}, spec: {}}]",
            "spec.dataVolumeTemplates",
        ),
    ] {
        let stored = vm(&spec(part, "64Mi"), "{}");
        let found = validate_vm(&stored, None, &config);
        assert_eq!(fields(&found)[0], field, "{part}");
        assert_eq!(
            validate_vm(&vm(&spec(part, "65Mi"), "{}"), Some(&stored), &config),
            [],
            "{part}"
        );
        // It came with this change.
        let good = vm(&spec("runStrategy: Once", "64Mi"), "{}");
        assert_eq!(validate_vm(&stored, Some(&good), &config), found, "{part}");
    }
    let stored = "{runStrategy: Always, instancetype: {name: small}, template: {spec: {domain: {devices: {}}}}}";
    let stopped = vm(&stored.replace("Always", "Halted"), "{}");
    assert_eq!(validate_vm(&stopped, Some(&vm(stored, "{}")), &config), []);
    // Volumes that go away leave templates that nobody uses.
    let joined = "{runStrategy: Halted, dataVolumeTemplates: [{metadata: {name: a}, spec: {pvc: {}}}], template: {spec: {domain: {devices: {}}, volumes: [{name: a, dataVolume: {name: a}}]}}}";
    let alone = joined.replace("volumes: [{name: a, dataVolume: {name: a}}]", "volumes: []");
    let causes = validate_vm(&vm(&alone, "{}"), Some(&vm(joined, "{}")), &config);
    assert!(
        fields(&causes)
            .iter()
            .all(|field| field.starts_with("spec.dataVolumeTemplates[0]"))
            && !causes.is_empty(),
        "{causes:?}"
    );
}

#[test]
fn nothing_changes_under_a_snapshot_or_restore() {
    let config = ClusterConfig::default();
    let spec = "{runStrategy: Halted, template: {spec: {domain: {devices: {}, memory: {guest: 64Mi}}}}}";
    let started = spec.replace("Halted", "Always");
    let disk = spec.replace(
        "spec: {domain",
        "spec: {volumes: [{name: a, emptyDisk: {capacity: 1Gi}}], domain",
    );
    for (status, new, refused) in [
        ("{}", &started, &[] as &[&str]),
        ("{snapshotInProgress: s}", &started, &["spec.runStrategy"]),
        ("{snapshotInProgress: s}", &disk, &["spec.template.spec.volumes"]),
        ("{restoreInProgress: r}", &started, &["spec.runStrategy"]),
        ("{restoreInProgress: r}", &disk, &[]),
    ] {
        let (old, new) = (vm(spec, status), vm(new, status));
        assert_eq!(fields(&validate_vm(&new, Some(&old), &config)), refused, "{status}");
    }
}

#[test]
fn run_strategies() {
    let config = ClusterConfig::default();
    let template = "template: {spec: {domain: {devices: {}, memory: {guest: 64Mi}}}}";
    for (run, refused) in [
        ("running: true", false),
        ("running: false", false),
        ("runStrategy: Manual", false),
        ("runStrategy: Once", false),
        ("runStrategy: RerunOnFailure", false),
        ("runStrategy: always", true),
        ("runStrategy: ''", true),
        ("running: true, runStrategy: Always", true),
    ] {
        let causes = validate_vm(&vm(&format!("{{{run}, {template}}}"), "{}"), None, &config);
        assert_eq!(!causes.is_empty(), refused, "{run}: {causes:?}");
    }
}

#[test]
fn preset_selectors() {
    let preset = |expression: Value| -> VirtualMachineInstancePreset {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstancePreset", "metadata": {"name": "p"},
            "spec": {"selector": {"matchExpressions": [expression]}, "domain": {"devices": {}}}
        }))
        .unwrap()
    };
    assert!(validate_preset(&preset(json!({"key": "a", "operator": "In", "values": ["b"]}))).is_empty());
    let causes = validate_preset(&preset(json!({"key": "a", "operator": "In"})));
    assert_eq!(causes[0].reason, CauseReason::FieldValueRequired);
    let causes = validate_preset(&preset(json!({"key": "a", "operator": "Near"})));
    assert_eq!(causes[0].field, "spec.selector.matchExpressions[0].operator");
}

#[test]
fn presets_by_what_they_bring() {
    for (domain, expected) in [
        ("null", &["spec.domain"] as &[&str]),
        ("{devices: {}}", &[]),
        // Whatever a VMI has to bring for it.
        (
            "{devices: {disks: [{name: a, disk: {}}, {name: b, lun: {}}, {name: c, cdrom: {}}]}}",
            &[],
        ),
        ("{devices: {}, firmware: {bootloader: {efi: {}}}}", &[]),
        ("{devices: {}, cpu: {cores: 2}, features: {smm: {}}}", &[]),
        (
            "{devices: {disks: [{name: a, disk: {bus: ide}}, {name: a, cache: fast, bootOrder: 0}]}}",
            &[
                "spec.domain.devices.disks[0].disk.bus",
                "spec.domain.devices.disks[1].name",
                "spec.domain.devices.disks[1].cache",
                "spec.domain.devices.disks[1].bootOrder",
            ],
        ),
        (
            "{devices: {}, firmware: {bootloader: {efi: {}, bios: {}}, kernelBoot: {kernelArgs: x, container: {image: i}}}}",
            &[
                "spec.domain.firmware.bootloader",
                "spec.domain.firmware.kernelBoot.kernelArgs",
                "spec.domain.firmware.kernelBoot.container",
            ],
        ),
    ] {
        let domain: Value = serde_yaml_ng::from_str(domain).unwrap();
        let preset = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstancePreset", "metadata": {"name": "p"},
            "spec": {"selector": {}, "domain": domain}
        });
        let causes = validate_preset(&serde_json::from_value(preset).unwrap());
        assert_eq!(fields(&causes), expected, "{domain}");
        if domain.is_null() {
            assert_eq!(causes[0].reason, CauseReason::FieldValueRequired);
        }
    }
}
