use ferrovirt_api::v1::{KubeVirtConfiguration, VirtualMachine};
use serde_json::{Value, json};

use super::*;

fn config() -> ClusterConfig {
    ClusterConfig {
        architecture: Architecture::Amd64,
        ..ClusterConfig::default()
    }
}

fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap()
}

/// The VMI that creating `spec` leaves behind, as JSON.
fn created(spec: &str, config: &ClusterConfig) -> Value {
    let vmi = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"}, "spec": yaml(spec)});
    let mut vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
    default_vmi(&mut vmi, config, Uuid::max());
    let once = vmi.clone();
    default_vmi(&mut vmi, config, Uuid::nil());
    assert_eq!(once, vmi, "a second time changes nothing");
    serde_json::to_value(vmi).unwrap()
}

/// Shows `spec.domain.devices.autoattachPodInterface`.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn vmi_fields() {
    // spec, pointer into the VMI, value there
    for (spec, pointer, value) in [
        (
            "{domain: {devices: {}}}",
            "/metadata/finalizers",
            json!([VMI_FINALIZER]),
        ),
        // An API server drops what admission says of it.
        ("{domain: {devices: {}}}", "/status", Value::Null),
        ("{domain: {devices: {}}}", "/spec/architecture", json!("amd64")),
        ("{domain: {devices: {}}}", "/spec/domain/machine/type", json!("q35")),
        (
            "{architecture: arm64, domain: {devices: {}}}",
            "/spec/domain/machine/type",
            json!("virt"),
        ),
        ("{domain: {devices: {}}}", "/spec/evictionStrategy", json!("None")),
        (
            "{domain: {devices: {}}}",
            "/spec/terminationGracePeriodSeconds",
            Value::Null,
        ),
        (
            "{domain: {devices: {}}}",
            "/spec/domain/firmware/uuid",
            json!(Uuid::max().to_string()),
        ),
        (
            "{domain: {devices: {}, firmware: {uuid: a}}}",
            "/spec/domain/firmware/uuid",
            json!("a"),
        ),
        (
            "{domain: {devices: {}}}",
            "/spec/domain/features/acpi",
            json!({"enabled": true}),
        ),
        (
            "{domain: {devices: {}, features: {smm: {}}}}",
            "/spec/domain/features/smm",
            json!({"enabled": true}),
        ),
        (
            "{domain: {devices: {}, features: {smm: {enabled: false}}}}",
            "/spec/domain/features/smm",
            json!({"enabled": false}),
        ),
        // Memory and CPU
        (
            "{domain: {devices: {}, resources: {requests: {memory: 64M}}}}",
            "/spec/domain/memory/guest",
            json!("64M"),
        ),
        (
            "{domain: {devices: {}, resources: {limits: {memory: 65M}}}}",
            "/spec/domain/memory/guest",
            json!("65M"),
        ),
        (
            "{domain: {devices: {}, resources: {requests: {memory: 0, cpu: '0'}, limits: {memory: 65M, cpu: 0}}}}",
            "/spec/domain/resources",
            json!({"limits": {"memory": "65M"}}),
        ),
        (
            "{domain: {devices: {}, memory: {guest: 3Gi}}}",
            "/spec/domain/memory/maxGuest",
            json!("12Gi"),
        ),
        (
            "{domain: {devices: {}, memory: {guest: 512Mi}}}",
            "/spec/domain/memory/maxGuest",
            Value::Null,
        ),
        (
            "{architecture: arm64, domain: {devices: {}, memory: {guest: 3Gi}}}",
            "/spec/domain/memory/maxGuest",
            Value::Null,
        ),
        (
            "{domain: {devices: {}, resources: {limits: {cpu: 1500m}}}}",
            "/spec/domain/resources/requests/cpu",
            json!("1500m"),
        ),
        (
            "{domain: {devices: {}, resources: {limits: {cpu: 1500m}}}}",
            "/spec/domain/cpu/sockets",
            json!(2),
        ),
        (
            "{domain: {devices: {}}}",
            "/spec/domain/cpu",
            json!({"sockets": 1, "cores": 1, "threads": 1, "maxSockets": 4, "model": "host-model"}),
        ),
        (
            "{domain: {devices: {}, cpu: {cores: 200}}}",
            "/spec/domain/cpu/maxSockets",
            json!(2),
        ),
        (
            "{architecture: arm64, domain: {devices: {}}}",
            "/spec/domain/cpu/model",
            json!("host-passthrough"),
        ),
        // Network
        (
            "{domain: {devices: {}}}",
            "/spec/networks",
            json!([{"name": "default", "pod": {}}]),
        ),
        (
            "{domain: {devices: {}}}",
            "/spec/domain/devices/interfaces",
            json!([{"name": "default", "bridge": {}}]),
        ),
        (
            "{domain: {devices: {autoattachPodInterface: false}}}",
            "/spec/networks",
            Value::Null,
        ),
        (
            "{networks: [{name: a, pod: {}}], domain: {devices: {}}}",
            "/spec/domain/devices/interfaces",
            Value::Null,
        ),
        // Disks
        (
            "{volumes: [{name: a}], domain: {devices: {}}}",
            "/spec/domain/devices/disks",
            json!([{"name": "a", "disk": {"bus": "sata"}}]),
        ),
        (
            "{volumes: [{name: a}], domain: {devices: {disks: [{name: a}]}}}",
            "/spec/domain/devices/disks",
            json!([{"name": "a", "disk": {"bus": "sata"}}]),
        ),
        (
            "{domain: {devices: {disks: [{name: a, lun: {}}]}}}",
            "/spec/domain/devices/disks/0/lun/bus",
            json!("scsi"),
        ),
        (
            "{architecture: arm64, volumes: [{name: a}], domain: {devices: {}}}",
            "/spec/domain/devices/disks/0/disk/bus",
            json!("virtio"),
        ),
        (
            "{domain: {devices: {disks: [{name: a, cdrom: {}}]}}}",
            "/spec/domain/devices/disks/0/cdrom",
            json!({"bus": "sata", "readonly": true, "tray": "closed"}),
        ),
        (
            "{volumes: [{name: a, containerDisk: {image: i}}], domain: {devices: {}}}",
            "/spec/volumes/0/containerDisk/imagePullPolicy",
            json!("Always"),
        ),
        // Other devices
        (
            "{domain: {devices: {inputs: [{name: a, type: ''}]}}}",
            "/spec/domain/devices/inputs/0",
            json!({"name": "a", "type": "tablet", "bus": "usb"}),
        ),
        (
            "{domain: {devices: {autoattachInputDevice: true}}}",
            "/spec/domain/devices/inputs/0/name",
            json!("default-0"),
        ),
        (
            "{domain: {devices: {watchdog: {name: w}}}}",
            "/spec/domain/devices/watchdog",
            json!({"name": "w", "i6300esb": {"action": "reset"}}),
        ),
        (
            "{architecture: s390x, domain: {devices: {watchdog: {name: w}}}}",
            "/spec/domain/devices/watchdog",
            json!({"name": "w", "diag288": {"action": "reset"}}),
        ),
        (
            "{architecture: s390x, domain: {devices: {}}}",
            "/spec/domain/features/acpi",
            json!({"enabled": false}),
        ),
        (
            "{architecture: arm64, domain: {devices: {}}}",
            "/spec/domain/firmware/bootloader",
            json!({"efi": {"secureBoot": false}}),
        ),
        (
            "{readinessProbe: {tcpSocket: {port: 1}, periodSeconds: 2}, domain: {devices: {}}}",
            "/spec/readinessProbe",
            json!({"tcpSocket": {"port": 1}, "timeoutSeconds": 1, "periodSeconds": 2, "successThreshold": 1, "failureThreshold": 3}),
        ),
    ] {
        let vmi = created(spec, &config());
        assert_eq!(
            vmi.pointer(pointer).unwrap_or(&Value::Null),
            &value,
            "{pointer} of {spec}"
        );
    }
}

#[test]
fn vmi_fields_that_the_cluster_decides() {
    for (configuration, pointer, value) in [
        (
            json!({"machineType": "pc-q35-9.0"}),
            "/spec/domain/machine/type",
            json!("pc-q35-9.0"),
        ),
        (json!({"cpuModel": "EPYC"}), "/spec/domain/cpu/model", json!("EPYC")),
        (
            json!({"cpuRequest": "300m"}),
            "/spec/domain/resources/requests/cpu",
            json!("300m"),
        ),
        (
            json!({"cpuRequest": "100m"}),
            "/spec/domain/resources/requests/cpu",
            Value::Null,
        ),
        (
            json!({"evictionStrategy": "LiveMigrate"}),
            "/spec/evictionStrategy",
            json!("LiveMigrate"),
        ),
        (
            json!({"network": {"defaultNetworkInterface": "masquerade"}}),
            "/spec/domain/devices/interfaces/0",
            json!({"name": "default", "masquerade": {}}),
        ),
        (
            json!({"vmRolloutStrategy": "Stage"}),
            "/spec/domain/cpu/maxSockets",
            Value::Null,
        ),
        (
            json!({"vmRolloutStrategy": "Stage"}),
            "/spec/domain/memory/maxGuest",
            Value::Null,
        ),
        (
            json!({"liveUpdateConfiguration": {"maxCpuSockets": 9}}),
            "/spec/domain/cpu/maxSockets",
            json!(9),
        ),
        (
            json!({"liveUpdateConfiguration": {"maxGuest": "5Gi"}}),
            "/spec/domain/memory/maxGuest",
            json!("5Gi"),
        ),
        (
            json!({"liveUpdateConfiguration": {"maxHotplugRatio": 2}}),
            "/spec/domain/memory/maxGuest",
            json!("2Gi"),
        ),
    ] {
        let parsed: KubeVirtConfiguration = serde_json::from_value(configuration.clone()).unwrap();
        let vmi = created("{domain: {devices: {}, memory: {guest: 1Gi}}}", &config().with(&parsed));
        assert_eq!(
            vmi.pointer(pointer).unwrap_or(&Value::Null),
            &value,
            "{pointer} under {configuration}"
        );
    }
}

#[test]
fn pull_policies() {
    for (image, policy) in [
        ("debian", "Always"),
        ("debian:latest", "Always"),
        ("debian:12", "IfNotPresent"),
        ("localhost:5000/debian", "Always"),
        ("localhost:5000/debian:12", "IfNotPresent"),
        ("debian@sha256:0123", "IfNotPresent"),
        ("debian:latest@sha256:0123", "IfNotPresent"),
    ] {
        assert_eq!(pull_policy(image), policy, "{image}");
    }
}

#[test]
fn vm_keeps_only_what_must_not_change() {
    let vm = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "vm"},
        "spec": {"runStrategy": "Always", "template": {"spec": {"domain": {"devices": {}, "memory": {"guest": "1Gi"}}}}}
    });
    let mut vm: VirtualMachine = serde_json::from_value(vm).unwrap();
    default_vm(&mut vm, &config(), Uuid::max(), Uuid::nil());
    let once = vm.clone();
    default_vm(&mut vm, &config(), Uuid::nil(), Uuid::max());
    assert_eq!(once, vm);
    let template = serde_json::to_value(&vm.spec.template).unwrap();
    assert_eq!(
        template,
        json!({
            "metadata": {"annotations": {PCI_TOPOLOGY_ANNOTATION: "v3"}},
            "spec": {
                "architecture": "amd64",
                "domain": {
                    "devices": {},
                    "memory": {"guest": "1Gi"},
                    "machine": {"type": "q35"},
                    "firmware": {"uuid": Uuid::max().to_string(), "serial": Uuid::nil().to_string()}
                }
            }
        })
    );
    let mut empty = VirtualMachine::default();
    default_vm(&mut empty, &config(), Uuid::max(), Uuid::nil());
    let observed = empty.metadata.annotations.take().unwrap_or_default();
    let keys: Vec<&str> = observed.keys().map(String::as_str).collect();
    assert_eq!(keys, [LATEST_API_VERSION_ANNOTATION, STORAGE_API_VERSION_ANNOTATION]);
    assert_eq!(empty, VirtualMachine::default(), "validation says what is missing");
}

/// Who replaces a VM with the manifest that it was made from gets the hardware that it has had.
#[test]
fn changed_vms_keep_what_they_were_given() {
    let vm = |template: Value| -> VirtualMachine {
        let vm = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "vm"},
            "spec": {"runStrategy": "Always", "template": template},
        });
        serde_json::from_value(vm).unwrap()
    };
    let domain = |domain: Value| json!({"spec": {"domain": domain}});
    let manifest = domain(json!({"devices": {}, "memory": {"guest": "1Gi"}}));
    let mut old = vm(manifest.clone());
    default_vm(&mut old, &config(), Uuid::max(), Uuid::nil());
    let updated = |template: &Value, old: &VirtualMachine, config: &ClusterConfig| {
        let mut new = vm(template.clone());
        default_vm_update(&mut new, old, config);
        let once = new.clone();
        default_vm_update(&mut new, old, config);
        assert_eq!(once, new, "a second time changes nothing");
        new
    };
    let newer = config().with(&serde_json::from_value(json!({"machineType": "pc-q35-9.0"})).unwrap());
    assert_eq!(updated(&manifest, &old, &newer), old);

    // What the new one says, it means.
    let said = json!({
        "metadata": {"annotations": {PCI_TOPOLOGY_ANNOTATION: "v2"}},
        "spec": {"architecture": "amd64", "domain": {
            "devices": {}, "machine": {"type": "pc-q35-8.0"}, "firmware": {"uuid": "u", "serial": "s"},
        }},
    });
    assert_eq!(updated(&said, &old, &newer).spec, vm(said).spec);
    let arm = json!({"spec": {"architecture": "arm64", "domain": {"devices": {}}}});
    let machine = |vm: VirtualMachine| vm.spec.template.spec.unwrap().domain.machine.unwrap().r#type.unwrap();
    assert_eq!(machine(updated(&arm, &old, &newer)), "virt");

    // Stored before anything was written into VMs: it has been started without.
    let bare = vm(manifest.clone());
    assert_eq!(
        updated(&manifest, &bare, &newer).spec,
        bare.spec,
        "nothing of it is changed"
    );
    let larger = domain(json!({"devices": {}, "memory": {"guest": "2Gi"}}));
    let bare = updated(&larger, &bare, &newer);
    assert_eq!(
        serde_json::to_value(&bare.spec.template).unwrap(),
        json!({"spec": {
            "architecture": "amd64",
            "domain": {"devices": {}, "memory": {"guest": "2Gi"}, "machine": {"type": "pc-q35-9.0"}},
        }})
    );
    let nothing = updated(&json!({}), &old, &newer);
    assert_eq!(nothing.spec, vm(json!({})).spec, "validation says what is missing");
}
