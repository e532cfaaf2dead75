//! What each concern of a spec changes in the domain, as a diff to the domain of a small machine; and libvirt's
//! own schema accepts all of them.

#![allow(clippy::unwrap_used, reason = "a test")]

mod facts;

use std::collections::BTreeMap;
use std::process::Command;

use facts::facts;
use ferrovirt_api::v1::{KubeVirtConfiguration, VirtualMachineInstance};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::machine::{Architecture, Machine};
use ferrovirt_domain::{Facts, MissingFact, domain_xml};
use serde_json::{Value, json};

/// One machine: a patch of [`base`]'s spec, and where it runs.
struct Case {
    name: &'static str,
    yaml: &'static str,
}

macro_rules! goldens {
    ($($name:ident => $yaml:literal)*) => {
        const CASES: &[Case] = &[$(Case { name: stringify!($name), yaml: $yaml }),*];
        mod golden {
            $(#[test] fn $name() { super::check(stringify!($name)); })*
        }
    };
}

goldens! {
    nothing => "{}"
    // Processor
    cpu_topology => "spec: {domain: {cpu: {sockets: 2, cores: 3, threads: 2, maxSockets: 2}}}"
    cpu_hotplug => "spec: {domain: {cpu: {sockets: 2, cores: 1, maxSockets: 4}}}"
    cpu_from_resources => "spec: {domain: {cpu: {sockets: null, maxSockets: null}, resources: {requests: {cpu: 1500m}}}}"
    cpu_host_model => "spec: {domain: {cpu: {model: host-model}}}"
    cpu_host_passthrough => "spec: {domain: {cpu: {model: host-passthrough}}}"
    cpu_named => "spec: {domain: {cpu: {model: EPYC-Rome}}}"
    cpu_named_emulated => "{kvm: false, spec: {domain: {cpu: {model: Nehalem}}}}"
    cpu_features => "spec: {domain: {cpu: {features: [{name: vmx, policy: disable}, {name: apic}, {name: pcid, policy: optional}]}}}"
    emulated => "kvm: false"
    // Memory
    memory_from_request => "spec: {domain: {memory: null, resources: {requests: {memory: 64M}}}}"
    memory_hotplug => "spec: {domain: {memory: {guest: 1Gi, maxGuest: 4Gi}}}"
    balloon_off => "spec: {domain: {devices: {autoattachMemBalloon: false}}}"
    balloon_without_statistics => "config: {memBalloonStatsPeriod: 0}"
    // Firmware
    machine_type => "spec: {domain: {machine: {type: pc-q35-8.2}}}"
    efi => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}}}"
    efi_secure_boot => "spec: {domain: {features: {smm: {}}, firmware: {bootloader: {efi: {}}}}}"
    bios_on_serial => "spec: {domain: {firmware: {bootloader: {bios: {useSerial: true}}}}}"
    firmware_serial => "spec: {domain: {firmware: {serial: e4686d2c-6e8d-4335-b8fd-81bee22f4814}}}"
    start_paused => "spec: {startStrategy: Paused}"
    chassis => "spec: {domain: {chassis: {asset: A1, manufacturer: 'Smith & Sons', serial: S1, sku: K, version: '1.0'}}}"
    cluster_smbios => "config: {smbios: {manufacturer: Acme, product: Rocket, family: Road, sku: r1, version: v9}}"
    kernel_boot => "spec: {domain: {firmware: {kernelBoot: {container: {image: 'r/k:1', kernelPath: /boot/vmlinuz, initrdPath: /boot/initrd}, kernelArgs: 'console=ttyS0 quiet <&>'}}}}"
    kernel_boot_without_initrd => "spec: {domain: {firmware: {kernelBoot: {container: {image: 'r/k:1', kernelPath: /vmlinuz}}}}}"
    kernel_boot_from_efi => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}, kernelBoot: {container: {image: 'r/k:1', kernelPath: /vmlinuz}}}}}"
    // Volumes of files
    files => "spec: {domain: {devices: {disks: [{name: conf, disk: {bus: virtio}}]}}, volumes: [{name: conf, configMap: {name: m}}]}"
    files_by_default_on_sata => "spec: {volumes: [{name: keys, secret: {secretName: s}}]}"
    files_as_cdrom => "spec: {domain: {devices: {disks: [{name: answers, cdrom: {bus: sata}}]}}, volumes: [{name: answers, sysprep: {configMap: {name: m}}}]}"
    // Features and clock
    acpi_off => "spec: {domain: {features: {acpi: {enabled: false}}}}"
    apic_off => "spec: {domain: {features: {apic: {enabled: false}}}}"
    apic_eoi => "spec: {domain: {features: {apic: {endOfInterrupt: true}}}}"
    smm => "spec: {domain: {features: {smm: {}}}}"
    kvm_hidden => "spec: {domain: {features: {kvm: {hidden: true}}}}"
    pv_spinlock_off => "spec: {domain: {features: {pvspinlock: {enabled: false}}}}"
    clock_offset => "spec: {domain: {clock: {utc: {offsetSeconds: -3600}}}}"
    clock_timezone => "spec: {domain: {clock: {timezone: Europe/Berlin}}}"
    timers => "spec: {domain: {clock: {utc: {}, timer: {hpet: {present: false}, pit: {tickPolicy: delay}, rtc: {tickPolicy: catchup, track: wall}, kvm: {}, hyperv: {}}}}}"
    reboot_terminates => "spec: {domain: {rebootPolicy: Terminate}}"
    grace_period => "spec: {terminationGracePeriodSeconds: 180}"
    // Disks
    disk_virtio_overlay => "spec: {domain: {devices: {disks: [{name: root, disk: {bus: virtio}}]}}, volumes: [{name: root, containerDisk: {image: 'r/i:1'}}]}"
    disk_sata_default => "spec: {volumes: [{name: root, containerDisk: {image: 'r/i:1'}}]}"
    disk_scsi => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: scsi}}, {name: b, disk: {bus: scsi, readonly: true}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    disk_usb => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: usb}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_order => "spec: {domain: {devices: {disks: [{name: b, disk: {bus: virtio}, bootOrder: 2}, {name: a, disk: {bus: virtio}, bootOrder: 1}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    disk_details => "spec: {domain: {devices: {blockMultiQueue: true, disks: [{name: a, serial: D23YZ9W6WA5DJ487, cache: none, io: native, errorPolicy: report, disk: {bus: virtio, readonly: true, pciAddress: '0000:01:00.0'}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    cdrom => "spec: {domain: {devices: {disks: [{name: cd, cdrom: {}}]}}, volumes: [{name: cd, containerDisk: {image: 'r/i:1'}}]}"
    cdrom_open_on_scsi => "spec: {domain: {devices: {disks: [{name: cd, cdrom: {bus: scsi, tray: open}}]}}, volumes: [{name: cd, containerDisk: {image: 'r/i:1'}}]}"
    cloud_init => "spec: {volumes: [{name: seed, cloudInitNoCloud: {userData: '#cloud-config'}}]}"
    // Network
    interface_masquerade => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, ports: [{port: 80}]}]}}, networks: [{name: default, pod: {}}]}"
    interface_bridge_e1000 => "spec: {domain: {devices: {interfaces: [{name: net_1, bridge: {}, model: e1000e, macAddress: DE-AD-00-00-BE-AF}]}}, networks: [{name: net_1, pod: {}}]}"
    interface_details => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, bootOrder: 1, acpiIndex: 101, state: down, pciAddress: '0000:02:00.0'}]}}, networks: [{name: default, pod: {}}]}"
    // Consoles and other devices
    serial_off => "spec: {domain: {devices: {autoattachSerialConsole: false}}}"
    serial_without_log => "spec: {domain: {devices: {logSerialConsole: false}}}"
    graphics_off => "spec: {domain: {devices: {autoattachGraphicsDevice: false}}}"
    video_virtio => "spec: {domain: {devices: {video: {type: virtio}}}}"
    tablet_usb => "spec: {domain: {devices: {inputs: [{name: tablet1, type: tablet, bus: usb}]}}}"
    tablet_virtio => "spec: {domain: {devices: {inputs: [{name: tablet1, type: tablet, bus: virtio}]}}}"
    tablet_by_default => "spec: {domain: {devices: {autoattachInputDevice: true}}}"
    rng => "spec: {domain: {devices: {rng: {}}}}"
    watchdog => "spec: {domain: {devices: {watchdog: {name: dog, i6300esb: {action: poweroff}}}}}"
    panic_devices => "spec: {domain: {devices: {panicDevices: [{model: isa}, {model: pvpanic}]}}}"
    virtio_transitional => "spec: {domain: {devices: {useVirtioTransitional: true, rng: {}, disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    // Other architectures
    arm64 => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}}}"
    s390x => "{kvm: false, spec: {architecture: s390x, domain: {devices: {rng: {}}}}}"
}

fn base() -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "ns", "uid": "8f37b1a5-7b0a-4ac9-a28e-0ab2ddd20ac1"},
        "spec": {
            "architecture": "amd64",
            "domain": {
                "cpu": {"sockets": 1, "maxSockets": 1},
                "memory": {"guest": "128Mi"},
                "devices": {"autoattachPodInterface": false}
            }
        }
    })
}

/// RFC 7386.
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, patch) => *into = patch,
    }
}

fn render(case: &Case) -> String {
    let patch: Value = serde_yaml_ng::from_str(case.yaml).unwrap();
    let mut vmi = base();
    merge(
        &mut vmi["spec"],
        patch.get("spec").cloned().unwrap_or_else(|| json!({})),
    );
    let vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
    let configuration = patch.get("config").cloned().unwrap_or_else(|| json!({}));
    let configuration: KubeVirtConfiguration = serde_json::from_value(configuration).unwrap();
    let config = ClusterConfig {
        architecture: Architecture::Amd64,
        ..ClusterConfig::standalone()
    };
    let machine = Machine::parse(&vmi, &config.with(&configuration)).unwrap();
    let kvm = patch.get("kvm").is_none_or(|kvm| kvm == true);
    domain_xml(&machine, &facts(&machine, kvm)).unwrap()
}

fn check(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let xml = render(case);
    let text = if name == "nothing" {
        xml
    } else {
        diff(&render(&CASES[0]), &xml)
    };
    insta::with_settings!({description => case.yaml, omit_expression => true}, {
        insta::assert_snapshot!(name, text);
    });
}

/// Lines that went and came, in order, by their longest common subsequence.
fn diff(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let mut common = vec![vec![0; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            text += &format!("-{}\n", old[i]);
            i += 1;
        } else {
            text += &format!("+{}\n", new[j]);
            j += 1;
        }
    }
    text
}

/// The schema that `virt-xml-validate` uses (Debian: libvirt-common, libxml2-utils), once for all cases.
#[test]
fn libvirts_schema_accepts_every_case() {
    let directory = tempfile::tempdir().unwrap();
    let mut xmllint = Command::new("xmllint");
    xmllint.args(["--noout", "--relaxng", "/usr/share/libvirt/schemas/domain.rng"]);
    for case in CASES {
        let file = directory.path().join(format!("{}.xml", case.name));
        std::fs::write(&file, render(case)).unwrap();
        xmllint.arg(file);
    }
    let output = xmllint
        .output()
        .expect("xmllint is installed (Debian package libxml2-utils)");
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = errors.lines().filter(|line| !line.ends_with(" validates")).collect();
    assert!(output.status.success() && errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn missing_facts_are_errors() {
    let patch = "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, devices: {interfaces: [{name: default, masquerade: {}}]}}, networks: [{name: default, pod: {}}], volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}";
    let patch: Value = serde_yaml_ng::from_str(patch).unwrap();
    let mut vmi = base();
    merge(&mut vmi["spec"], patch["spec"].clone());
    let vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
    let machine = Machine::parse(&vmi, &ClusterConfig::standalone()).unwrap();
    let all = facts(&machine, true);
    assert_eq!(
        domain_xml(
            &machine,
            &Facts {
                disks: BTreeMap::new(),
                ..all.clone()
            }
        ),
        Err(MissingFact::Disk("a".to_owned()))
    );
    assert_eq!(
        domain_xml(
            &machine,
            &Facts {
                nics: BTreeMap::new(),
                ..all.clone()
            }
        ),
        Err(MissingFact::Nic("default".to_owned()))
    );
    assert_eq!(
        domain_xml(&machine, &Facts { firmware: None, ..all }),
        Err(MissingFact::Firmware)
    );
}
