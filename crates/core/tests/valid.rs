//! What is accepted although it may not look so: each row was once refused, and must be what KubeVirt makes of it.

#![allow(clippy::unwrap_used, reason = "a test")]

use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance};
use ferrovirt_core::machine::{Architecture, Bus, Clock, CloudInitData, Machine, Source};
use ferrovirt_core::{Cause, ClusterConfig, default_vm, default_vmi, validate_vm, validate_vmi_create};
use serde_json::{Value, json};
use uuid::Uuid;

fn config() -> ClusterConfig {
    ClusterConfig {
        architecture: Architecture::Amd64,
        ..ClusterConfig::standalone()
    }
}

fn vmi(spec: &str) -> VirtualMachineInstance {
    let spec: Value = serde_yaml_ng::from_str(spec).unwrap();
    let vmi = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"}, "spec": spec,
    });
    serde_json::from_value(vmi).unwrap()
}

fn admit(spec: &str, config: &ClusterConfig) -> Result<Machine, Vec<Cause>> {
    let mut vmi = vmi(spec);
    default_vmi(&mut vmi, config, Uuid::nil());
    let causes = validate_vmi_create(&vmi, config, false);
    if causes.is_empty() {
        return Machine::parse(&vmi, config);
    }
    Err(causes)
}

fn machine(spec: &str) -> Machine {
    admit(spec, &config()).unwrap_or_else(|causes| panic!("{spec}: {causes:#?}"))
}

#[test]
fn amounts_of_nothing() {
    for resources in [
        "{requests: {memory: 0}}",
        "{requests: {memory: 64Mi}, limits: {memory: 0}}",
        "{requests: {cpu: 2}, limits: {cpu: 0}}",
        "{requests: {cpu: '0'}, limits: {cpu: '0'}}",
    ] {
        machine(&format!(
            "{{domain: {{devices: {{}}, memory: {{guest: 64Mi}}, resources: {resources}}}}}"
        ));
    }
    let of_the_limit = machine("{domain: {devices: {}, resources: {requests: {memory: 0}, limits: {memory: 96Mi}}}}");
    assert_eq!(of_the_limit.memory.guest, 96 << 20);
}

#[test]
fn drives_without_a_medium() {
    let spec = "{domain: {devices: {disks: [{name: a, disk: {bus: virtio}}, {name: cd, cdrom: {}, bootOrder: 1}]}, memory: {guest: 64Mi}},
        volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}";
    let machine = machine(spec);
    let disks: Vec<_> = machine
        .disks
        .iter()
        .map(|disk| (disk.name.as_str(), &disk.source))
        .collect();
    assert_eq!(
        disks,
        [("a", &Source::EmptyDisk { capacity: 1 << 30 }), ("cd", &Source::Empty)]
    );
    let disabled = json!({"developerConfiguration": {"disabledFeatureGates": ["DeclarativeHotplugVolumes"]}});
    let causes = admit(spec, &config().with(&serde_json::from_value(disabled).unwrap())).unwrap_err();
    assert_eq!(causes[0].field, "spec.domain.devices.disks[1].name");
}

#[test]
fn base64_of_many_lines_and_secrets_without_a_name() {
    for data in [
        "userDataBase64: \"eHh4\\neHh4\\n\"",
        "userDataBase64: \"eHh4\\r\\neHh4\", secretRef: {}",
        "userData: xxxxxx, secretRef: {name: ''}, networkDataSecretRef: {name: ''}",
    ] {
        let spec = format!(
            "{{domain: {{devices: {{}}, memory: {{guest: 64Mi}}}}, volumes: [{{name: a, cloudInitNoCloud: {{{data}}}}}]}}"
        );
        let machine = machine(&spec);
        let Source::CloudInit(init) = &machine.disks[0].source else {
            panic!("{:?}", machine.disks)
        };
        assert_eq!(
            init.user_data,
            Some(CloudInitData::Inline(b"xxxxxx".to_vec())),
            "{data}"
        );
        assert_eq!(init.network_data, None, "{data}");
    }
}

#[test]
fn what_is_left_to_defaults() {
    let lun = machine(
        "{domain: {devices: {disks: [{name: a, lun: {}}]}, memory: {guest: 64Mi}}, volumes: [{name: a, persistentVolumeClaim: {claimName: c}}]}",
    );
    assert_eq!(lun.disks[0].bus, Bus::Scsi);
    for (architecture, model) in [("amd64", "isa"), ("arm64", "pvpanic")] {
        let panics = machine(&format!(
            "{{architecture: {architecture}, domain: {{devices: {{panicDevices: [{{}}]}}, memory: {{guest: 64Mi}}}}}}"
        ));
        assert_eq!(panics.panic_devices, [model]);
    }
    let created = machine(
        "{domain: {devices: {}, memory: {guest: 64Mi}}, volumes: [{name: a, hostDisk: {path: /x.img, type: DiskOrCreate}}]}",
    );
    assert!(
        matches!(created.disks[0].source, Source::HostDisk { create: None, .. }),
        "it has to be there"
    );
    let threads = machine(
        "{domain: {ioThreadsPolicy: shared, ioThreads: {supplementalPoolThreadCount: 4}, devices: {disks: [{name: a, disk: {bus: virtio}}]}, memory: {guest: 64Mi}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}",
    );
    assert_eq!(threads.io_threads, 1);
    let none = machine("{domain: {ioThreads: {supplementalPoolThreadCount: 4}, devices: {}, memory: {guest: 64Mi}}}");
    assert_eq!(none.io_threads, 0);
    let zone = machine("{domain: {devices: {}, memory: {guest: 64Mi}, clock: {timezone: America/New York}}}");
    assert_eq!(zone.clock, Clock::Timezone("America/New_York".to_owned()));
    machine(
        "{domain: {devices: {disks: [{name: a, disk: {bus: sata}, blockSize: {custom: {logical: 512, physical: 4096}}}]}, memory: {guest: 64Mi}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}",
    );
}

/// A ceiling that the cluster offers to all is not what one of them asked for.
#[test]
fn ceilings_of_the_cluster_that_do_not_fit() {
    for (max, memory, expected) in [
        ("5Gi", "{guest: 1Gi}", Some(5 << 30)),
        ("5000000000", "{guest: 1Gi}", None),
        ("5121Mi", "{guest: 1Gi}", None),
        ("512Mi", "{guest: 1Gi}", None),
        ("5122Mi", "{guest: 1Gi, hugepages: {pageSize: 2Mi}}", Some(5122 << 20)),
        ("5122Mi", "{guest: 1Gi, hugepages: {pageSize: 1Gi}}", None),
    ] {
        let configuration = json!({"liveUpdateConfiguration": {"maxGuest": max}});
        let config = config().with(&serde_json::from_value(configuration).unwrap());
        let spec = format!("{{domain: {{devices: {{}}, memory: {memory}}}}}");
        let machine = admit(&spec, &config).unwrap_or_else(|causes| panic!("{max} {memory}: {causes:#?}"));
        assert_eq!(machine.memory.max_guest, expected, "{max} {memory}");
    }
}

/// Presets complete VMIs, and so may bring what a template lacks.
#[test]
fn templates_without_memory() {
    for memory in ["", ", memory: {}", ", resources: {requests: {cpu: 1}}"] {
        let spec = format!("{{runStrategy: Halted, template: {{spec: {{domain: {{devices: {{}}{memory}}}}}}}}}");
        let spec: Value = serde_yaml_ng::from_str(&spec).unwrap();
        let vm =
            json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "vm"}, "spec": spec});
        let mut vm: VirtualMachine = serde_json::from_value(vm).unwrap();
        default_vm(&mut vm, &config(), Uuid::nil(), Uuid::nil());
        assert_eq!(validate_vm(&vm, None, &config()), [], "{memory}");
    }
    let causes = admit("{domain: {devices: {}}}", &config()).unwrap_err();
    assert_eq!(causes[0].field, "spec.domain.memory.guest");
}
