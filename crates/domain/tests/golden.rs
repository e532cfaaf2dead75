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

/// One machine: a patch of [`base`]'s spec, its annotations and status, and where it runs.
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
    // Shared directories
    filesystem_config_map => "spec: {domain: {devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, configMap: {name: m}}]}"
    filesystems => "{config: {developerConfiguration: {featureGates: [EnableVirtioFsStorageVolumes, ContainerPathVolumes]}}, spec: {domain: {devices: {filesystems: [{name: c, virtiofs: {}}, {name: s, virtiofs: {}}, {name: p, virtiofs: {}}]}}, volumes: [{name: s, secret: {secretName: s}}, {name: c, persistentVolumeClaim: {claimName: c}}, {name: p, containerPath: {path: /x}}]}}"
    filesystem_and_hugepages => "spec: {domain: {memory: {hugepages: {pageSize: 2Mi}}, devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, secret: {secretName: s}}]}"
    filesystem_and_own_cpus => "spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true}, devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, secret: {secretName: s}}]}"
    filesystem_of_a_guaranteed_guest => "spec: {domain: {resources: {limits: {cpu: '1', memory: 128Mi}}, devices: {filesystems: [{name: a, virtiofs: {}}]}}, volumes: [{name: a, secret: {secretName: s}}]}"
    // Virtual functions of network cards
    plugin_tap => "{config: {network: {binding: {p: {domainAttachmentType: tap}}}}, spec: {networks: [{name: n, pod: {}}], domain: {devices: {interfaces: [{name: n, binding: {name: p}}]}}}}"
    plugin_managed_tap => "{config: {network: {binding: {p: {domainAttachmentType: managedTap}}}}, spec: {networks: [{name: n, pod: {}}], domain: {devices: {interfaces: [{name: n, binding: {name: p}}]}}}}"
    plugin_tap_details => "{config: {network: {binding: {p: {domainAttachmentType: tap}}}}, spec: {networks: [{name: n, multus: {networkName: net}}], domain: {cpu: {cores: 2}, devices: {networkInterfaceMultiqueue: true, interfaces: [{name: n, binding: {name: p}, model: virtio, macAddress: '02:00:00:00:00:05', bootOrder: 1, acpiIndex: 7, pciAddress: '0000:0b:00.0', state: down}]}}}}"
    plugin_of_a_sidecar => "{config: {network: {binding: {p: {sidecarImage: r/p}}}}, spec: {networks: [{name: n, pod: {}}], domain: {devices: {interfaces: [{name: n, binding: {name: p}}]}}}}"
    sriov => "spec: {networks: [{name: default, pod: {}}, {name: n, multus: {networkName: net}}], domain: {devices: {interfaces: [{name: default, masquerade: {}}, {name: n, sriov: {}}]}}}"
    sriov_place => "spec: {networks: [{name: default, pod: {}}, {name: n, multus: {networkName: net}}], domain: {devices: {interfaces: [{name: default, masquerade: {}}, {name: n, sriov: {}, bootOrder: 1, acpiIndex: 7, pciAddress: '0000:0b:00.0'}]}}}"
    sriov_by_claims => "{config: {developerConfiguration: {featureGates: [NetworkDevicesWithDRA]}}, spec: {resourceClaims: [{name: c, resourceClaimTemplateName: two}], networks: [{name: default, pod: {}}, {name: n, resourceClaim: {claimName: c, requestName: r}}, {name: m, resourceClaim: {claimName: c, requestName: s}}], domain: {devices: {interfaces: [{name: default, masquerade: {}}, {name: n, sriov: {}}, {name: m, sriov: {}, bootOrder: 1}]}}}}"
    sriov_alone => "spec: {networks: [{name: a, multus: {networkName: net, default: true}}, {name: b, multus: {networkName: net}}], domain: {devices: {networkInterfaceMultiqueue: true, interfaces: [{name: a, sriov: {}}, {name: b, sriov: {}}]}}}"
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
    cpu_feature_force => "spec: {domain: {cpu: {features: [{name: pcid, policy: force}]}}}"
    cpu_feature_require => "spec: {domain: {cpu: {features: [{name: pcid, policy: require}]}}}"
    cpu_feature_optional => "spec: {domain: {cpu: {features: [{name: pcid, policy: optional}]}}}"
    cpu_feature_disable => "spec: {domain: {cpu: {features: [{name: pcid, policy: disable}]}}}"
    cpu_feature_forbid => "spec: {domain: {cpu: {features: [{name: pcid, policy: forbid}]}}}"
    cpu_sockets => "spec: {domain: {cpu: {sockets: 3, maxSockets: 3}}}"
    cpu_cores => "spec: {domain: {cpu: {cores: 3}}}"
    cpu_threads => "spec: {domain: {cpu: {threads: 2}}}"
    cpu_hotplug_by_default => "spec: {domain: {cpu: {maxSockets: null}}}"
    cpu_hotplug_of_cores => "spec: {domain: {cpu: {sockets: 1, cores: 2, maxSockets: 2}}}"
    cpu_host_model_emulated => "{kvm: false, spec: {domain: {cpu: {model: host-model}}}}"
    cpu_host_passthrough_emulated => "{kvm: false, spec: {domain: {cpu: {model: host-passthrough}}}}"
    cpu_model_of_cluster => "config: {cpuModel: EPYC-Rome}"
    cpu_from_limits => "spec: {domain: {cpu: {sockets: null, maxSockets: null}, resources: {limits: {cpu: '2'}}}}"
    cpu_named_arm64 => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null, model: cortex-a57}}}"
    cpu_dedicated => "spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true}}}"
    cpu_dedicated_threads => "spec: {domain: {cpu: {cores: 2, threads: 2, dedicatedCpuPlacement: true}}}"
    cpu_dedicated_from_resources => "spec: {domain: {cpu: {sockets: null, maxSockets: null, dedicatedCpuPlacement: true}, resources: {requests: {cpu: '3'}, limits: {cpu: '3'}}}}"
    cpu_isolated_emulator => "spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true, isolateEmulatorThread: true}}}"
    cpu_dedicated_with_io_threads => "spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true, isolateEmulatorThread: true}, ioThreadsPolicy: shared, devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    cpu_dedicated_is_not_plugged_by_default => "spec: {domain: {cpu: {maxSockets: null, dedicatedCpuPlacement: true}}}"
    cpu_numa => "spec: {domain: {cpu: {cores: 4, dedicatedCpuPlacement: true, numa: {guestMappingPassthrough: {}}}, memory: {guest: 130Mi, hugepages: {pageSize: 2Mi}}}}"
    cpu_numa_of_one_node => "spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true, numa: {guestMappingPassthrough: {}}}, memory: {hugepages: {pageSize: 2Mi}}}}"
    cpu_hotplug_ceiling_of_cluster => "{config: {liveUpdateConfiguration: {maxCpuSockets: 3}}, spec: {domain: {cpu: {sockets: 1, maxSockets: null}}}}"
    cpu_is_not_plugged_where_updates_are_staged => "{config: {vmRolloutStrategy: Stage}, spec: {domain: {cpu: {sockets: 2, maxSockets: null}}}}"
    cpu_model_skylake_server => "spec: {domain: {cpu: {model: Skylake-Server}}}"
    cpu_model_epyc => "spec: {domain: {cpu: {model: EPYC}}}"
    cpu_model_qemu64 => "spec: {domain: {cpu: {model: qemu64}}}"
    cpu_isolated_emulator_of_threads => "spec: {domain: {cpu: {cores: 1, threads: 2, dedicatedCpuPlacement: true, isolateEmulatorThread: true}}}"
    cpu_numa_isolated => "spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true, isolateEmulatorThread: true, numa: {guestMappingPassthrough: {}}}, memory: {guest: 128Mi, hugepages: {pageSize: 2Mi}}}}"
    cpu_dedicated_and_plugged => "spec: {domain: {cpu: {sockets: 1, maxSockets: 2, dedicatedCpuPlacement: true}}}"
    cpu_realtime => "spec: {domain: {cpu: {cores: 4, dedicatedCpuPlacement: true, numa: {guestMappingPassthrough: {}}, realtime: {}}, memory: {hugepages: {pageSize: 2Mi}}}}"
    cpu_realtime_mask => "spec: {domain: {cpu: {cores: 4, dedicatedCpuPlacement: true, numa: {guestMappingPassthrough: {}}, realtime: {mask: '0-3,^1'}}, memory: {hugepages: {pageSize: 2Mi}}}}"
    // Memory
    memory_from_request => "spec: {domain: {memory: null, resources: {requests: {memory: 64M}}}}"
    memory_hotplug => "spec: {domain: {memory: {guest: 1Gi, maxGuest: 4Gi}}}"
    balloon_off => "spec: {domain: {devices: {autoattachMemBalloon: false}}}"
    balloon_without_statistics => "config: {memBalloonStatsPeriod: 0}"
    hugepages_2mi => "spec: {domain: {memory: {hugepages: {pageSize: 2Mi}}}}"
    hugepages_1gi_hotplug => "spec: {domain: {memory: {guest: 2Gi, maxGuest: 4Gi, hugepages: {pageSize: 1Gi}}}}"
    hugepages_64ki_arm64 => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, memory: {hugepages: {pageSize: 64Ki}}}}"
    memory_from_hugepage => "spec: {domain: {memory: {guest: null, maxGuest: 1Gi, hugepages: {pageSize: 1Gi}}}}"
    memory_from_limit => "spec: {domain: {memory: null, resources: {limits: {memory: 96Mi}}}}"
    memory_of_odd_size => "spec: {domain: {memory: {guest: 100M}}}"
    memory_hotplug_ceiling_of_cluster => "{config: {liveUpdateConfiguration: {maxGuest: 3Gi}}, spec: {domain: {memory: {guest: 1Gi}}}}"
    memory_hotplug_ratio_of_cluster => "{config: {liveUpdateConfiguration: {maxHotplugRatio: 2}}, spec: {domain: {memory: {guest: 1Gi}}}}"
    memory_hotplug_by_default => "spec: {domain: {memory: {guest: 1Gi}}}"
    memory_is_not_plugged_where_updates_are_staged => "{config: {vmRolloutStrategy: Stage}, spec: {domain: {memory: {guest: 1Gi}}}}"
    memory_hotplug_of_many_cpus => "spec: {domain: {cpu: {cores: 4}, memory: {guest: 1Gi, maxGuest: 2Gi}}}"
    hugepages_emulated => "{kvm: false, spec: {domain: {memory: {hugepages: {pageSize: 2Mi}}}}}"
    memory_in_bytes => "spec: {domain: {memory: {guest: '134217728'}}}"
    memory_overcommitted => "spec: {domain: {memory: {guest: 256Mi}, resources: {requests: {memory: 128Mi}}}}"
    balloon_statistics_of_cluster => "config: {memBalloonStatsPeriod: 5}"
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
    firmware_uuid => "spec: {domain: {firmware: {uuid: 5d307ca9-b3ef-428c-8861-06e72d69f223}}}"
    chassis_asset => "spec: {domain: {chassis: {asset: A1}}}"
    chassis_manufacturer => "spec: {domain: {chassis: {manufacturer: M}}}"
    chassis_serial => "spec: {domain: {chassis: {serial: S}}}"
    chassis_sku => "spec: {domain: {chassis: {sku: K}}}"
    chassis_version => "spec: {domain: {chassis: {version: V}}}"
    apic_eoi_off => "spec: {domain: {features: {apic: {endOfInterrupt: false}}}}"
    pv_spinlock_on => "spec: {domain: {features: {pvspinlock: {}}}}"
    kvm_not_hidden => "spec: {domain: {features: {kvm: {hidden: false}}}}"
    smm_off => "spec: {domain: {features: {smm: {enabled: false}}}}"
    clock_ahead => "spec: {domain: {clock: {utc: {offsetSeconds: 7}}}}"
    clock_utc => "spec: {domain: {clock: {utc: {}}}}"
    timer_hpet_on => "spec: {domain: {clock: {timer: {hpet: {}}}}}"
    timer_hpet_off => "spec: {domain: {clock: {timer: {hpet: {present: false}}}}}"
    timer_hpet_delay => "spec: {domain: {clock: {timer: {hpet: {tickPolicy: delay}}}}}"
    timer_pit_delay => "spec: {domain: {clock: {timer: {pit: {tickPolicy: delay}}}}}"
    timer_pit_discard => "spec: {domain: {clock: {timer: {pit: {tickPolicy: discard}}}}}"
    timer_pit_off => "spec: {domain: {clock: {timer: {pit: {present: false}}}}}"
    timer_rtc_catchup => "spec: {domain: {clock: {timer: {rtc: {tickPolicy: catchup}}}}}"
    timer_rtc_guest => "spec: {domain: {clock: {timer: {rtc: {track: guest}}}}}"
    timer_rtc_off => "spec: {domain: {clock: {timer: {rtc: {present: false}}}}}"
    timer_kvm_on => "spec: {domain: {clock: {timer: {kvm: {}}}}}"
    timer_kvm_off => "spec: {domain: {clock: {timer: {kvm: {present: false}}}}}"
    timer_hyperv_off => "spec: {domain: {clock: {timer: {hyperv: {present: false}}}}}"
    hyperv_relaxed => "spec: {domain: {features: {hyperv: {relaxed: {}}}}}"
    hyperv_relaxed_off => "spec: {domain: {features: {hyperv: {relaxed: {enabled: false}}}}}"
    hyperv_vapic => "spec: {domain: {features: {hyperv: {vapic: {enabled: true}}}}}"
    hyperv_spinlocks => "spec: {domain: {features: {hyperv: {spinlocks: {}}}}}"
    hyperv_spinlocks_retries => "spec: {domain: {features: {hyperv: {spinlocks: {spinlocks: 8191}}}}}"
    hyperv_spinlocks_off => "spec: {domain: {features: {hyperv: {spinlocks: {enabled: false}}}}}"
    hyperv_vpindex => "spec: {domain: {features: {hyperv: {vpindex: {}}}}}"
    hyperv_runtime => "spec: {domain: {features: {hyperv: {runtime: {enabled: true}}}}}"
    hyperv_synic => "spec: {domain: {features: {hyperv: {synic: {}}}}}"
    hyperv_reset => "spec: {domain: {features: {hyperv: {reset: {enabled: true}}}}}"
    hyperv_vendorid => "spec: {domain: {features: {hyperv: {vendorid: {vendorid: KVM Hv}}}}}"
    hyperv_frequencies => "spec: {domain: {features: {hyperv: {frequencies: {enabled: true}}}}}"
    hyperv_reenlightenment => "spec: {domain: {features: {hyperv: {reenlightenment: {enabled: true}}}}}"
    hyperv_tlbflush => "spec: {domain: {features: {hyperv: {tlbflush: {}}}}}"
    hyperv_tlbflush_parts => "spec: {domain: {features: {hyperv: {tlbflush: {direct: {enabled: true}, extended: {enabled: false}}}}}}"
    hyperv_ipi => "spec: {domain: {features: {hyperv: {ipi: {enabled: true}}}}}"
    hyperv_evmcs => "spec: {domain: {features: {hyperv: {evmcs: {}}}}}"
    hyperv_synictimer => "spec: {domain: {clock: {timer: {hyperv: {}}}, features: {hyperv: {synictimer: {}}}}}"
    hyperv_synictimer_direct => "spec: {domain: {clock: {timer: {hyperv: {}}}, features: {hyperv: {synictimer: {enabled: true, direct: {enabled: true}}}}}}"
    hyperv_passthrough => "spec: {domain: {features: {hypervPassthrough: {}}}}"
    hyperv_passthrough_off => "spec: {domain: {features: {hypervPassthrough: {enabled: false}}}}"
    hyperv_windows => "spec: {domain: {clock: {utc: {}, timer: {hpet: {present: false}, pit: {tickPolicy: delay}, rtc: {tickPolicy: catchup}, hyperv: {}}}, features: {acpi: {}, apic: {}, smm: {}, hyperv: {relaxed: {}, vapic: {}, spinlocks: {spinlocks: 8191}, vpindex: {}, runtime: {}, synic: {}, synictimer: {direct: {}}, frequencies: {}, reenlightenment: {}, tlbflush: {}, ipi: {}, reset: {}}}}}"
    hyperv_emulated => "{kvm: false, spec: {domain: {features: {hyperv: {relaxed: {}}}}}}"
    efi_with_graphics_off => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, devices: {autoattachGraphicsDevice: false}}}"
    efi_with_vga => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, devices: {video: {type: vga}}}}"
    efi_paused => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}}, startStrategy: Paused}"
    efi_secure_boot_with_tpm => "spec: {domain: {features: {smm: {}}, firmware: {bootloader: {efi: {secureBoot: true}}}, devices: {tpm: {}}}}"
    efi_emulated => "{kvm: false, spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}}}}"
    bios_said => "spec: {domain: {firmware: {bootloader: {bios: {}}}}}"
    bios_not_on_serial => "spec: {domain: {firmware: {bootloader: {bios: {useSerial: false}}}}}"
    bios_on_serial_that_is_off => "spec: {domain: {firmware: {bootloader: {bios: {useSerial: true}}}, devices: {autoattachSerialConsole: false}}}"
    machine_type_of_cluster => "config: {machineType: pc-q35-9.0}"
    acpi_said => "spec: {domain: {features: {acpi: {}}}}"
    kvm_hidden_emulated => "{kvm: false, spec: {domain: {features: {kvm: {hidden: true}}}}}"
    smbios_manufacturer_of_cluster => "config: {smbios: {manufacturer: Acme}}"
    smbios_version_of_cluster => "config: {smbios: {version: v9}}"
    smbios_sku_of_cluster => "config: {smbios: {sku: r1}}"
    reboot_said => "spec: {domain: {rebootPolicy: Reboot}}"
    grace_period_none => "spec: {terminationGracePeriodSeconds: 0}"
    hyperv_vendorid_off => "spec: {domain: {features: {hyperv: {vendorid: {enabled: false}}}}}"
    hyperv_synic_brings_vpindex_unless_it_is_there => "spec: {domain: {features: {hyperv: {synic: {}, vpindex: {enabled: true}}}}}"
    hyperv_dependencies_of_what_is_off => "spec: {domain: {features: {hyperv: {synic: {enabled: false}, tlbflush: {enabled: false}, evmcs: {enabled: false}}}}}"
    hyperv_evmcs_with_vmx => "spec: {domain: {cpu: {features: [{name: vmx, policy: force}]}, features: {hyperv: {evmcs: {}}}}}"
    hyperv_of_nothing => "spec: {domain: {features: {hyperv: {}}}}"
    acpi_slic => "spec: {domain: {firmware: {acpi: {slicNameRef: s}}}, volumes: [{name: s, secret: {secretName: win}}]}"
    acpi_msdm => "spec: {domain: {firmware: {acpi: {msdmNameRef: s}}}, volumes: [{name: s, secret: {secretName: win}}]}"
    acpi_slic_and_msdm => "spec: {domain: {firmware: {acpi: {slicNameRef: s, msdmNameRef: s}}}, volumes: [{name: s, secret: {secretName: win}}]}"
    // Disks
    disk_virtio_overlay => "spec: {domain: {devices: {disks: [{name: root, disk: {bus: virtio}}]}}, volumes: [{name: root, containerDisk: {image: 'r/i:1'}}]}"
    disk_sata_default => "spec: {volumes: [{name: root, containerDisk: {image: 'r/i:1'}}]}"
    disk_scsi => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: scsi}}, {name: b, disk: {bus: scsi, readonly: true}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    disk_usb => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: usb}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_order => "spec: {domain: {devices: {disks: [{name: b, disk: {bus: virtio}, bootOrder: 2}, {name: a, disk: {bus: virtio}, bootOrder: 1}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    disk_details => "spec: {domain: {devices: {blockMultiQueue: true, disks: [{name: a, serial: D23YZ9W6WA5DJ487, cache: none, io: native, errorPolicy: report, disk: {bus: virtio, readonly: true, pciAddress: '0000:01:00.0'}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    cdrom => "spec: {domain: {devices: {disks: [{name: cd, cdrom: {}}]}}, volumes: [{name: cd, containerDisk: {image: 'r/i:1'}}]}"
    cdrom_empty => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: sata}}, {name: cd, bootOrder: 1, cdrom: {}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    cdrom_empty_details => "spec: {domain: {devices: {disks: [{name: cd, serial: S, cache: none, blockSize: {matchVolume: {}}, cdrom: {bus: scsi, tray: open, readonly: false}}]}}}"
    panic_by_default => "spec: {domain: {devices: {panicDevices: [{}]}}}"
    panic_by_default_on_arm64 => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {panicDevices: [{}]}}}"
    gpu_mediated_beside_ramfb => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}]}}, spec: {domain: {devices: {video: {type: ramfb}, gpus: [{name: g, deviceName: ex.com/mdev}]}}}}"
    clock_timezone_of_two_words => "spec: {domain: {clock: {timezone: America/New York}}}"
    cdrom_open_on_scsi => "spec: {domain: {devices: {disks: [{name: cd, cdrom: {bus: scsi, tray: open}}]}}, volumes: [{name: cd, containerDisk: {image: 'r/i:1'}}]}"
    cloud_init => "spec: {volumes: [{name: seed, cloudInitNoCloud: {userData: '#cloud-config'}}]}"
    disk_cache_none => "spec: {domain: {devices: {disks: [{name: a, cache: none, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_cache_writethrough => "spec: {domain: {devices: {disks: [{name: a, cache: writethrough, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_cache_writeback => "spec: {domain: {devices: {disks: [{name: a, cache: writeback, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_io_threads => "spec: {domain: {devices: {disks: [{name: a, io: threads, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_io_native => "spec: {domain: {devices: {disks: [{name: a, io: native, cache: none, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_error_stop => "spec: {domain: {devices: {disks: [{name: a, errorPolicy: stop, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_error_ignore => "spec: {domain: {devices: {disks: [{name: a, errorPolicy: ignore, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_error_report => "spec: {domain: {devices: {disks: [{name: a, errorPolicy: report, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_error_enospace => "spec: {domain: {devices: {disks: [{name: a, errorPolicy: enospace, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_serial => "spec: {domain: {devices: {disks: [{name: a, serial: D23YZ9W6WA5DJ487, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_boot_order => "spec: {domain: {devices: {disks: [{name: a, bootOrder: 7, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_readonly => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio, readonly: true}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_pci_address => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio, pciAddress: '0000:01:0a.0'}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_block_size => "spec: {domain: {devices: {disks: [{name: a, blockSize: {custom: {logical: 4096, physical: 4096}}, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_block_size_of_512e => "spec: {domain: {devices: {disks: [{name: a, blockSize: {custom: {logical: 512, physical: 4096}}, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_block_size_discard => "spec: {domain: {devices: {disks: [{name: a, blockSize: {custom: {logical: 512, physical: 512, discardGranularity: 65536}}, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_block_size_of_volume => "spec: {domain: {devices: {disks: [{name: a, blockSize: {matchVolume: {}}, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_block_size_of_a_device => "spec: {domain: {devices: {disks: [{name: block, blockSize: {matchVolume: {}}, disk: {bus: virtio}}]}}, volumes: [{name: block, persistentVolumeClaim: {claimName: data}}]}"
    disk_block_size_not_of_volume => "spec: {domain: {devices: {disks: [{name: a, blockSize: {matchVolume: {enabled: false}}, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_shareable => "spec: {domain: {devices: {disks: [{name: a, shareable: true, disk: {bus: virtio}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    disk_not_shareable => "spec: {domain: {devices: {disks: [{name: a, shareable: false, disk: {bus: virtio}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    disk_multi_queue => "spec: {domain: {cpu: {cores: 4, maxSockets: 1}, devices: {blockMultiQueue: true, disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: sata}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    disk_claim => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: data}}]}"
    disk_claim_preallocated => "{status: {volumeStatus: [{name: a, target: '', persistentVolumeClaimInfo: {preallocated: true}}]}, spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: data}}]}}"
    disk_claim_not_preallocated => "{status: {volumeStatus: [{name: a, target: '', persistentVolumeClaimInfo: {preallocated: false}}]}, spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: data}}]}}"
    disk_claim_preallocated_below_an_overlay => "{status: {volumeStatus: [{name: a, target: '', persistentVolumeClaimInfo: {preallocated: true}}]}, spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, ephemeral: {persistentVolumeClaim: {claimName: data}}}]}}"
    disk_claim_read_only => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: data, readOnly: true}}]}"
    disk_claim_on_scsi => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: scsi}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: data}}]}"
    disk_claim_on_sata => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: sata}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: data}}]}"
    disk_claim_without_a_disk => "spec: {volumes: [{name: a, persistentVolumeClaim: {claimName: data}}]}"
    disk_claim_of_a_device => "spec: {domain: {devices: {disks: [{name: block, disk: {bus: virtio}}]}}, volumes: [{name: block, persistentVolumeClaim: {claimName: data}}]}"
    disk_lun => "spec: {domain: {devices: {disks: [{name: block, lun: {bus: scsi}}]}}, volumes: [{name: block, persistentVolumeClaim: {claimName: data}}]}"
    disk_lun_reservation => "{config: {persistentReservationConfiguration: {enabled: true}}, spec: {domain: {devices: {disks: [{name: block, lun: {bus: scsi, reservation: true}}]}}, volumes: [{name: block, persistentVolumeClaim: {claimName: data}}]}}"
    disk_lun_read_only => "spec: {domain: {devices: {disks: [{name: block, lun: {bus: scsi, readonly: true}}]}}, volumes: [{name: block, persistentVolumeClaim: {claimName: data}}]}"
    disk_claim_shareable => "spec: {domain: {devices: {disks: [{name: a, shareable: true, disk: {bus: virtio}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: data}}]}"
    disk_claim_as_cdrom => "spec: {domain: {devices: {disks: [{name: a, cdrom: {bus: sata}}]}}, volumes: [{name: a, persistentVolumeClaim: {claimName: data, readOnly: true}}]}"
    disk_ephemeral => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, ephemeral: {persistentVolumeClaim: {claimName: base}}}]}"
    disk_ephemeral_read_only => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, ephemeral: {persistentVolumeClaim: {claimName: base, readOnly: true}}}]}"
    disk_ephemeral_of_a_device => "spec: {domain: {devices: {disks: [{name: block, disk: {bus: virtio}}]}}, volumes: [{name: block, ephemeral: {persistentVolumeClaim: {claimName: base}}}]}"
    tpm_persistent => "spec: {domain: {devices: {tpm: {persistent: true}}}}"
    tpm_persistent_off => "spec: {domain: {devices: {tpm: {persistent: false}}}}"
    efi_persistent => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false, persistent: true}}}}}"
    efi_persistent_with_tpm => "spec: {domain: {features: {smm: {}}, firmware: {bootloader: {efi: {persistent: true}}}, devices: {tpm: {persistent: true}}}}"
    disk_host_created => "spec: {volumes: [{name: a, hostDisk: {path: /data/a.img, type: DiskOrCreate, capacity: 1Gi}}]}"
    cdrom_usb => "spec: {domain: {devices: {disks: [{name: a, cdrom: {bus: usb}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    cdrom_writable => "spec: {domain: {devices: {disks: [{name: a, cdrom: {bus: sata, readonly: false}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    cloud_init_config_drive => "spec: {volumes: [{name: seed, cloudInitConfigDrive: {userData: x}}]}"
    cloud_init_config_drive_of_secrets => "spec: {volumes: [{name: seed, cloudInitConfigDrive: {secretRef: {name: user}, networkDataSecretRef: {name: network}}}]}"
    disks_on_all_buses => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: scsi}}, {name: c, disk: {bus: usb}}, {name: d, disk: {bus: sata}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}, {name: c, emptyDisk: {capacity: 1Gi}}, {name: d, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_shared => "spec: {domain: {ioThreadsPolicy: shared, devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: virtio}}, {name: c, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}, {name: c, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_auto => "spec: {domain: {ioThreadsPolicy: auto, devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: virtio}}, {name: c, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}, {name: c, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_auto_of_an_isolated_emulator => "spec: {domain: {cpu: {cores: 2, dedicatedCpuPlacement: true, isolateEmulatorThread: true}, ioThreadsPolicy: auto, devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_auto_of_requested_cpus => "spec: {domain: {ioThreadsPolicy: auto, resources: {requests: {cpu: 1500m}}, devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: virtio}}, {name: c, disk: {bus: virtio}}, {name: d, disk: {bus: virtio}}, {name: e, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}, {name: c, emptyDisk: {capacity: 1Gi}}, {name: d, emptyDisk: {capacity: 1Gi}}, {name: e, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_auto_of_few_disks => "spec: {domain: {ioThreadsPolicy: auto, cpu: {cores: 4}, devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_pool => "spec: {domain: {ioThreadsPolicy: supplementalPool, ioThreads: {supplementalPoolThreadCount: 3}, devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_pool_of_one => "spec: {domain: {ioThreadsPolicy: supplementalPool, ioThreads: {supplementalPoolThreadCount: 1}, devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    io_thread_dedicated => "spec: {domain: {devices: {disks: [{name: a, dedicatedIOThread: true, disk: {bus: virtio}}, {name: b, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    io_thread_dedicated_beside_shared => "spec: {domain: {ioThreadsPolicy: shared, devices: {disks: [{name: a, dedicatedIOThread: true, disk: {bus: virtio}}, {name: b, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_of_scsi => "spec: {domain: {ioThreadsPolicy: auto, devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_without_disks => "spec: {domain: {ioThreadsPolicy: auto}}"
    io_threads_of_sata => "spec: {domain: {ioThreadsPolicy: shared, devices: {disks: [{name: a, disk: {bus: sata}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    image_on_virtio => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, containerDisk: {image: 'r/i:1'}}]}"
    host_disk_on_virtio => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    disk_serial_on_virtio => "spec: {domain: {devices: {disks: [{name: a, serial: S1, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    image_on_sata => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: sata}}]}}, volumes: [{name: a, containerDisk: {image: 'r/i:1'}}]}"
    host_disk_on_sata => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: sata}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    cloud_init_cdrom_on_sata => "spec: {domain: {devices: {disks: [{name: a, cdrom: {bus: sata}}]}}, volumes: [{name: a, cloudInitNoCloud: {userData: x}}]}"
    disk_serial_on_sata => "spec: {domain: {devices: {disks: [{name: a, serial: S1, disk: {bus: sata}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    image_on_scsi => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: scsi}}]}}, volumes: [{name: a, containerDisk: {image: 'r/i:1'}}]}"
    host_disk_on_scsi => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: scsi}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    cloud_init_cdrom_on_scsi => "spec: {domain: {devices: {disks: [{name: a, cdrom: {bus: scsi}}]}}, volumes: [{name: a, cloudInitNoCloud: {userData: x}}]}"
    disk_serial_on_scsi => "spec: {domain: {devices: {disks: [{name: a, serial: S1, disk: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    image_on_usb => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: usb}}]}}, volumes: [{name: a, containerDisk: {image: 'r/i:1'}}]}"
    host_disk_on_usb => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: usb}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    cloud_init_cdrom_on_usb => "spec: {domain: {devices: {disks: [{name: a, cdrom: {bus: usb}}]}}, volumes: [{name: a, cloudInitNoCloud: {userData: x}}]}"
    disk_serial_on_usb => "spec: {domain: {devices: {disks: [{name: a, serial: S1, disk: {bus: usb}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    cloud_init_on_virtio => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, cloudInitNoCloud: {userData: x}}]}"
    cdrom_boots_first => "spec: {domain: {devices: {disks: [{name: cd, bootOrder: 1, cdrom: {bus: sata}}, {name: a, bootOrder: 2, disk: {bus: virtio}}]}}, volumes: [{name: cd, emptyDisk: {capacity: 1Gi}}, {name: a, emptyDisk: {capacity: 1Gi}}]}"
    cdrom_closed => "spec: {domain: {devices: {disks: [{name: a, cdrom: {bus: sata, tray: closed}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disks_past_z => "spec: {domain: {devices: {disks: [{name: d0, disk: {bus: virtio}}, {name: d1, disk: {bus: virtio}}, {name: d2, disk: {bus: virtio}}, {name: d3, disk: {bus: virtio}}, {name: d4, disk: {bus: virtio}}, {name: d5, disk: {bus: virtio}}, {name: d6, disk: {bus: virtio}}, {name: d7, disk: {bus: virtio}}, {name: d8, disk: {bus: virtio}}, {name: d9, disk: {bus: virtio}}, {name: d10, disk: {bus: virtio}}, {name: d11, disk: {bus: virtio}}, {name: d12, disk: {bus: virtio}}, {name: d13, disk: {bus: virtio}}, {name: d14, disk: {bus: virtio}}, {name: d15, disk: {bus: virtio}}, {name: d16, disk: {bus: virtio}}, {name: d17, disk: {bus: virtio}}, {name: d18, disk: {bus: virtio}}, {name: d19, disk: {bus: virtio}}, {name: d20, disk: {bus: virtio}}, {name: d21, disk: {bus: virtio}}, {name: d22, disk: {bus: virtio}}, {name: d23, disk: {bus: virtio}}, {name: d24, disk: {bus: virtio}}, {name: d25, disk: {bus: virtio}}, {name: d26, disk: {bus: virtio}}, {name: d27, disk: {bus: virtio}}]}}, volumes: [{name: d0, emptyDisk: {capacity: 1Gi}}, {name: d1, emptyDisk: {capacity: 1Gi}}, {name: d2, emptyDisk: {capacity: 1Gi}}, {name: d3, emptyDisk: {capacity: 1Gi}}, {name: d4, emptyDisk: {capacity: 1Gi}}, {name: d5, emptyDisk: {capacity: 1Gi}}, {name: d6, emptyDisk: {capacity: 1Gi}}, {name: d7, emptyDisk: {capacity: 1Gi}}, {name: d8, emptyDisk: {capacity: 1Gi}}, {name: d9, emptyDisk: {capacity: 1Gi}}, {name: d10, emptyDisk: {capacity: 1Gi}}, {name: d11, emptyDisk: {capacity: 1Gi}}, {name: d12, emptyDisk: {capacity: 1Gi}}, {name: d13, emptyDisk: {capacity: 1Gi}}, {name: d14, emptyDisk: {capacity: 1Gi}}, {name: d15, emptyDisk: {capacity: 1Gi}}, {name: d16, emptyDisk: {capacity: 1Gi}}, {name: d17, emptyDisk: {capacity: 1Gi}}, {name: d18, emptyDisk: {capacity: 1Gi}}, {name: d19, emptyDisk: {capacity: 1Gi}}, {name: d20, emptyDisk: {capacity: 1Gi}}, {name: d21, emptyDisk: {capacity: 1Gi}}, {name: d22, emptyDisk: {capacity: 1Gi}}, {name: d23, emptyDisk: {capacity: 1Gi}}, {name: d24, emptyDisk: {capacity: 1Gi}}, {name: d25, emptyDisk: {capacity: 1Gi}}, {name: d26, emptyDisk: {capacity: 1Gi}}, {name: d27, emptyDisk: {capacity: 1Gi}}]}"
    disk_readonly_on_usb => "spec: {domain: {devices: {disks: [{name: a, disk: {bus: usb, readonly: true}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_block_size_on_scsi => "spec: {domain: {devices: {disks: [{name: a, blockSize: {custom: {logical: 4096, physical: 4096}}, disk: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_shareable_uncached => "spec: {domain: {devices: {disks: [{name: a, shareable: true, cache: none, disk: {bus: scsi}}]}}, volumes: [{name: a, hostDisk: {path: /data/a.img, type: Disk}}]}"
    disk_multi_queue_of_one_cpu => "spec: {domain: {devices: {blockMultiQueue: true, disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    disk_multi_queue_with_io_thread => "spec: {domain: {cpu: {cores: 2}, devices: {blockMultiQueue: true, disks: [{name: a, dedicatedIOThread: true, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_pool_beside_dedicated => "spec: {domain: {ioThreadsPolicy: supplementalPool, ioThreads: {supplementalPoolThreadCount: 2}, devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, dedicatedIOThread: true, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_auto_follow_cpus => "spec: {domain: {ioThreadsPolicy: auto, cpu: {cores: 2}, devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: virtio}}, {name: c, disk: {bus: virtio}}, {name: d, disk: {bus: virtio}}, {name: e, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}, {name: c, emptyDisk: {capacity: 1Gi}}, {name: d, emptyDisk: {capacity: 1Gi}}, {name: e, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_dedicated_use_up_auto => "spec: {domain: {ioThreadsPolicy: auto, devices: {disks: [{name: a, dedicatedIOThread: true, disk: {bus: virtio}}, {name: b, dedicatedIOThread: true, disk: {bus: virtio}}, {name: c, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}, {name: c, emptyDisk: {capacity: 1Gi}}]}"
    io_threads_shared_with_scsi => "spec: {domain: {ioThreadsPolicy: shared, devices: {disks: [{name: a, disk: {bus: virtio}}, {name: b, disk: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: b, emptyDisk: {capacity: 1Gi}}]}"
    // Network
    interface_masquerade => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, ports: [{port: 80}]}]}}, networks: [{name: default, pod: {}}]}"
    interface_bridge_e1000 => "spec: {domain: {devices: {interfaces: [{name: net_1, bridge: {}, model: e1000e, macAddress: DE-AD-00-00-BE-AF}]}}, networks: [{name: net_1, pod: {}}]}"
    interface_details => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, bootOrder: 1, acpiIndex: 101, state: down, pciAddress: '0000:02:00.0'}]}}, networks: [{name: default, pod: {}}]}"
    interface_e1000 => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, model: e1000}]}}, networks: [{name: default, pod: {}}]}"
    interface_igb => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, model: igb}]}}, networks: [{name: default, pod: {}}]}"
    interface_ne2k_pci => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, model: ne2k_pci}]}}, networks: [{name: default, pod: {}}]}"
    interface_pcnet => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, model: pcnet}]}}, networks: [{name: default, pod: {}}]}"
    interface_rtl8139 => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, model: rtl8139}]}}, networks: [{name: default, pod: {}}]}"
    interface_down => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, state: down}]}}, networks: [{name: default, pod: {}}]}"
    interface_up => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, state: up}]}}, networks: [{name: default, pod: {}}]}"
    interface_boot_order => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, bootOrder: 3}]}}, networks: [{name: default, pod: {}}]}"
    interface_acpi_index => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, acpiIndex: 7}]}}, networks: [{name: default, pod: {}}]}"
    interface_pci_address => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, pciAddress: '0000:03:00.0'}]}}, networks: [{name: default, pod: {}}]}"
    interface_mac => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, macAddress: '02:00:00:00:00:01'}]}}, networks: [{name: default, pod: {}}]}"
    interface_bridge => "spec: {domain: {devices: {interfaces: [{name: default, bridge: {}}]}}, networks: [{name: default, pod: {}}]}"
    interface_multi_queue => "spec: {domain: {cpu: {cores: 4}, devices: {networkInterfaceMultiqueue: true, interfaces: [{name: default, masquerade: {}}]}}, networks: [{name: default, pod: {}}]}"
    interface_multi_queue_of_e1000 => "spec: {domain: {cpu: {cores: 4}, devices: {networkInterfaceMultiqueue: true, interfaces: [{name: default, masquerade: {}, model: e1000}]}}, networks: [{name: default, pod: {}}]}"
    interface_multi_queue_of_one_cpu => "spec: {domain: {devices: {networkInterfaceMultiqueue: true, interfaces: [{name: default, masquerade: {}}]}}, networks: [{name: default, pod: {}}]}"
    interface_transitional => "spec: {domain: {devices: {useVirtioTransitional: true, interfaces: [{name: default, masquerade: {}}]}}, networks: [{name: default, pod: {}}]}"
    interface_by_default => "spec: {domain: {devices: {autoattachPodInterface: true}}}"
    interface_on_a_second_network => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}}, {name: red, bridge: {}}]}}, networks: [{name: default, pod: {}}, {name: red, multus: {networkName: nets/red}}]}"
    interface_on_another_default_network => "spec: {domain: {devices: {interfaces: [{name: red, bridge: {}}]}}, networks: [{name: red, multus: {networkName: red, default: true}}]}"
    interface_passt => "spec: {domain: {devices: {interfaces: [{name: default, passtBinding: {}}]}}, networks: [{name: default, pod: {}}]}"
    interface_passt_ports => "spec: {domain: {devices: {interfaces: [{name: default, passtBinding: {}, macAddress: '02:00:00:00:00:01', ports: [{port: 80}, {port: 443}, {port: 53, protocol: UDP}]}]}}, networks: [{name: default, pod: {}}]}"
    interface_passt_ports_of_tcp => "spec: {domain: {devices: {interfaces: [{name: default, passtBinding: {}, ports: [{port: 80}]}]}}, networks: [{name: default, pod: {}}]}"
    interface_passt_details => "spec: {domain: {cpu: {cores: 2}, memory: {hugepages: {pageSize: 2Mi}}, devices: {networkInterfaceMultiqueue: true, interfaces: [{name: default, passtBinding: {}, model: virtio, bootOrder: 1, acpiIndex: 101, state: down, pciAddress: '0000:02:00.0'}]}}, networks: [{name: default, pod: {}}]}"
    interface_absent => "spec: {domain: {devices: {interfaces: [{name: red, bridge: {}, state: absent}]}}, networks: [{name: red, multus: {networkName: red}}]}"
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
    sound_ich9 => "spec: {domain: {devices: {sound: {name: card, model: ich9}}}}"
    sound_ac97 => "spec: {domain: {devices: {sound: {name: card, model: ac97}}}}"
    sound_by_default => "spec: {domain: {devices: {sound: {name: card}}}}"
    usb_redirection => "spec: {domain: {devices: {clientPassthrough: {}}}}"
    video_vga => "spec: {domain: {devices: {video: {type: vga}}}}"
    video_cirrus => "spec: {domain: {devices: {video: {type: cirrus}}}}"
    video_ramfb => "spec: {domain: {devices: {video: {type: ramfb}}}}"
    video_bochs => "spec: {domain: {devices: {video: {type: bochs}}}}"
    watchdog_reset => "spec: {domain: {devices: {watchdog: {name: dog, i6300esb: {action: reset}}}}}"
    watchdog_shutdown => "spec: {domain: {devices: {watchdog: {name: dog, i6300esb: {action: shutdown}}}}}"
    watchdog_by_default => "spec: {domain: {devices: {watchdog: {name: dog}}}}"
    watchdog_s390x => "spec: {architecture: s390x, domain: {devices: {watchdog: {name: dog, diag288: {action: reset}}}}}"
    panic_hyperv => "spec: {domain: {devices: {panicDevices: [{model: hyperv}]}}}"
    serial_log_asked => "{config: {virtualMachineOptions: {disableSerialConsoleLog: {}}}, spec: {domain: {devices: {logSerialConsole: true}}}}"
    serial_log_off_in_cluster => "config: {virtualMachineOptions: {disableSerialConsoleLog: {}}}"
    balloon_transitional => "spec: {domain: {devices: {useVirtioTransitional: true}}}"
    graphics_off_arm64 => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {autoattachGraphicsDevice: false}}}"
    tablet_arm64 => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {inputs: [{name: t, type: tablet, bus: virtio}]}}}"
    tpm => "spec: {domain: {devices: {tpm: {}}}}"
    tpm_off => "spec: {domain: {devices: {tpm: {enabled: false}}}}"
    tpm_arm64 => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {tpm: {}}}}"
    rng_transitional => "spec: {domain: {devices: {useVirtioTransitional: true, rng: {}}}}"
    scsi_transitional => "spec: {domain: {devices: {useVirtioTransitional: true, disks: [{name: a, disk: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    two_tablets => "spec: {domain: {devices: {inputs: [{name: a, type: tablet, bus: usb}, {name: b, type: tablet, bus: virtio}]}}}"
    tablet_beside_usb_disk => "spec: {domain: {devices: {inputs: [{name: t, type: tablet, bus: usb}], disks: [{name: a, disk: {bus: usb}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    usb_redirection_beside_tablet => "spec: {domain: {devices: {clientPassthrough: {}, inputs: [{name: t, type: tablet, bus: usb}]}}}"
    panic_pvpanic => "spec: {domain: {devices: {panicDevices: [{model: pvpanic}]}}}"
    panic_isa => "spec: {domain: {devices: {panicDevices: [{model: isa}]}}}"
    serial_off_without_log => "spec: {domain: {devices: {autoattachSerialConsole: false, logSerialConsole: false}}}"
    tpm_emulated => "{kvm: false, spec: {domain: {devices: {tpm: {enabled: true}}}}}"
    interface_masquerade_of_cluster => "{config: {network: {defaultNetworkInterface: masquerade}}, spec: {domain: {devices: {autoattachPodInterface: true}}}}"
    interface_dhcp_options_are_not_the_domains => "spec: {domain: {devices: {interfaces: [{name: default, masquerade: {}, dhcpOptions: {bootFileName: pxe, tftpServerName: t, ntpServers: [10.0.0.1], privateOptions: [{option: 240, value: x}]}}]}}, networks: [{name: default, pod: {}}]}"
    interface_boots_after_disk => "spec: {domain: {devices: {disks: [{name: a, bootOrder: 1, disk: {bus: virtio}}], interfaces: [{name: default, masquerade: {}, bootOrder: 2}]}}, networks: [{name: default, pod: {}}], volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    hotplug_off => "spec: {domain: {devices: {disableHotplug: true}}}"
    // Devices of the node
    gpu_pci => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {gpus: [{name: g, deviceName: ex.com/pci}]}}}}"
    gpu_mediated => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {gpus: [{name: g, deviceName: ex.com/mdev}]}}}}"
    gpu_two_mediated => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {gpus: [{name: g, deviceName: ex.com/mdev}, {name: h, deviceName: ex.com/mdev}]}}}}"
    gpu_without_display => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {gpus: [{name: g, deviceName: ex.com/mdev, virtualGPUOptions: {display: {enabled: false}}}]}}}}"
    gpu_display => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {gpus: [{name: g, deviceName: ex.com/mdev}, {name: h, deviceName: ex.com/mdev, virtualGPUOptions: {display: {enabled: true}}}]}}}}"
    gpu_display_without_ramfb => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {gpus: [{name: g, deviceName: ex.com/mdev, virtualGPUOptions: {display: {ramFB: {enabled: false}}}}]}}}}"
    gpu_mediated_without_graphics => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {autoattachGraphicsDevice: false, gpus: [{name: g, deviceName: ex.com/mdev}]}}}}"
    host_device_pci => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {hostDevices: [{name: h, deviceName: ex.com/pci}]}}}}"
    host_device_mediated => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {hostDevices: [{name: h, deviceName: ex.com/mdev}]}}}}"
    host_device_usb => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {hostDevices: [{name: h, deviceName: ex.com/usb}]}}}}"
    host_devices_and_gpu => "{config: {developerConfiguration: {featureGates: [HostDevices]}, permittedHostDevices: {pciHostDevices: [{pciVendorSelector: '10de:1eb8', resourceName: ex.com/pci}], mediatedDevices: [{mdevNameSelector: T4-1Q, resourceName: ex.com/mdev}], usb: [{resourceName: ex.com/usb, selectors: [{vendor: '46f4', product: '0001'}]}]}}, spec: {domain: {devices: {gpus: [{name: x, deviceName: ex.com/pci}], hostDevices: [{name: x, deviceName: ex.com/pci}, {name: y, deviceName: ex.com/pci}]}}}}"
    gpu_pci_by_claim => "spec: {resourceClaims: [{name: c, resourceClaimName: big}], domain: {devices: {gpus: [{name: g, claimName: c, requestName: pci}]}}}"
    gpu_mediated_by_claim => "spec: {resourceClaims: [{name: c, resourceClaimTemplateName: part}], domain: {devices: {gpus: [{name: g, claimName: c, requestName: mdev}]}}}"
    host_devices_by_claims => "spec: {resourceClaims: [{name: c, resourceClaimTemplateName: two}], domain: {devices: {hostDevices: [{name: h, claimName: c, requestName: pci}, {name: i, claimName: c, requestName: mdev}]}}}"
    // Memory that the node cannot read
    sev => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, launchSecurity: {sev: {}}}}"
    sev_es => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, launchSecurity: {sev: {policy: {encryptedState: true}}}}}"
    sev_session => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, launchSecurity: {sev: {dhCert: QUFB, session: QkJC}}}}"
    sev_attested => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, launchSecurity: {sev: {attestation: {}, dhCert: QUFB, session: QkJC}}}}"
    sev_with_devices => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, launchSecurity: {sev: {}}, devices: {rng: {}, disks: [{name: a, disk: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    snp => "spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, launchSecurity: {snp: {}}}}"
    tdx => "{config: {developerConfiguration: {featureGates: [WorkloadEncryptionTDX]}}, spec: {domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, launchSecurity: {tdx: {}}}}}"
    secure_execution => "spec: {architecture: s390x, domain: {launchSecurity: {}}}"
    // Other architectures
    arm64 => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}}}"
    s390x => "{kvm: false, spec: {architecture: s390x, domain: {devices: {rng: {}}}}}"
    arm64_disk => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    s390x_disk => "spec: {architecture: s390x, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    s390x_interface => "spec: {architecture: s390x, domain: {devices: {interfaces: [{name: default, bridge: {}}]}}, networks: [{name: default, pod: {}}]}"
    arm64_rng => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {rng: {}}}}"
    arm64_balloon_off => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {autoattachMemBalloon: false}}}"
    arm64_serial_off => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {autoattachSerialConsole: false}}}"
    arm64_disk_scsi => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {disks: [{name: a, disk: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    arm64_cdrom_scsi => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {disks: [{name: a, cdrom: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    arm64_interface_masquerade => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {interfaces: [{name: default, masquerade: {}}]}}, networks: [{name: default, pod: {}}]}"
    arm64_io_threads => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, ioThreadsPolicy: shared, devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    arm64_firmware_serial => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, firmware: {serial: S1}}}"
    arm64_video_virtio => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {video: {type: virtio}}}}"
    arm64_own_tablet => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {inputs: [{name: t, type: tablet, bus: virtio}]}}}"
    arm64_transitional => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {useVirtioTransitional: true}}}"
    arm64_emulated => "{kvm: false, spec: {architecture: arm64, domain: {cpu: {maxSockets: null}}}}"
    s390x_rng => "spec: {architecture: s390x, domain: {devices: {rng: {}}}}"
    s390x_balloon_off => "spec: {architecture: s390x, domain: {devices: {autoattachMemBalloon: false}}}"
    s390x_serial_off => "spec: {architecture: s390x, domain: {devices: {autoattachSerialConsole: false}}}"
    s390x_disk_scsi => "spec: {architecture: s390x, domain: {devices: {disks: [{name: a, disk: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    s390x_cdrom_scsi => "spec: {architecture: s390x, domain: {devices: {disks: [{name: a, cdrom: {bus: scsi}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    s390x_interface_masquerade => "spec: {architecture: s390x, domain: {devices: {interfaces: [{name: default, masquerade: {}}]}}, networks: [{name: default, pod: {}}]}"
    s390x_io_threads => "spec: {architecture: s390x, domain: {ioThreadsPolicy: shared, devices: {disks: [{name: a, disk: {bus: virtio}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    s390x_firmware_serial => "spec: {architecture: s390x, domain: {firmware: {serial: S1}}}"
    s390x_tablet_virtio => "spec: {architecture: s390x, domain: {devices: {inputs: [{name: t, type: tablet, bus: virtio}]}}}"
    s390x_video_virtio => "spec: {architecture: s390x, domain: {devices: {video: {type: virtio}}}}"
    s390x_transitional => "spec: {architecture: s390x, domain: {devices: {useVirtioTransitional: true}}}"
    s390x_emulated => "{kvm: false, spec: {architecture: s390x}}"
    arm64_video_ramfb => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {video: {type: ramfb}}}}"
    arm64_disk_usb => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {disks: [{name: a, disk: {bus: usb}}]}}, volumes: [{name: a, emptyDisk: {capacity: 1Gi}}]}"
    arm64_sound => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {sound: {name: s, model: ich9}}}}"
    arm64_usb_redirection => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, devices: {clientPassthrough: {}}}}"
    arm64_efi_said => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, firmware: {bootloader: {efi: {secureBoot: false}}}}}"
    arm64_chassis => "spec: {architecture: arm64, domain: {cpu: {maxSockets: null}, chassis: {asset: A1}}}"
    s390x_graphics_off => "spec: {architecture: s390x, domain: {devices: {autoattachGraphicsDevice: false}}}"
    s390x_hugepages => "spec: {architecture: s390x, domain: {memory: {hugepages: {pageSize: 1Mi}}}}"
    s390x_cpu_hotplug => "spec: {architecture: s390x, domain: {cpu: {sockets: 1, maxSockets: 2}}}"
    s390x_multi_queue => "spec: {architecture: s390x, domain: {cpu: {cores: 2}, devices: {networkInterfaceMultiqueue: true, interfaces: [{name: default, bridge: {}}]}}, networks: [{name: default, pod: {}}]}"
    // Metrics for the guest
    vsock => "{config: {developerConfiguration: {featureGates: [VSOCK]}}, spec: {domain: {devices: {autoattachVSOCK: true}}}}"
    vsock_transitional => "{config: {developerConfiguration: {featureGates: [VSOCK]}}, spec: {domain: {devices: {autoattachVSOCK: true, useVirtioTransitional: true}}}}"
    downward_metrics_port => "{config: {developerConfiguration: {featureGates: [DownwardMetrics]}}, spec: {domain: {devices: {downwardMetrics: {}}}}}"
    downward_metrics_disk => "{config: {developerConfiguration: {featureGates: [DownwardMetrics]}}, spec: {domain: {devices: {disks: [{name: m, disk: {bus: virtio}}]}}, volumes: [{name: m, downwardMetrics: {}}]}}"
    downward_metrics_disk_without_a_disk => "{config: {developerConfiguration: {featureGates: [DownwardMetrics]}}, spec: {volumes: [{name: m, downwardMetrics: {}}]}}"
    downward_metrics_port_and_disk => "{config: {developerConfiguration: {featureGates: [DownwardMetrics]}}, spec: {domain: {devices: {downwardMetrics: {}, disks: [{name: m, disk: {bus: virtio}}]}}, volumes: [{name: m, downwardMetrics: {}}]}}"
    // What annotations ask for
    free_page_reporting_off => "annotations: {kubevirt.io/free-page-reporting-disabled: 'true'}"
    free_page_reporting_said => "annotations: {kubevirt.io/free-page-reporting-disabled: 'false'}"
    free_page_reporting_off_in_the_cluster => "config: {virtualMachineOptions: {disableFreePageReporting: {}}}"
    pci_hole64_off => "annotations: {kubevirt.io/disablePCIHole64: 'True'}"
    pci_hole64_said => "annotations: {kubevirt.io/disablePCIHole64: 'false'}"
    pci_hole64_off_of_i440fx => "{config: {emulatedMachines: ['pc*']}, annotations: {kubevirt.io/disablePCIHole64: 'true'}, spec: {domain: {machine: {type: pc}}}}"
    pci_hole64_off_on_arm64 => "{annotations: {kubevirt.io/disablePCIHole64: 'true'}, spec: {architecture: arm64, domain: {cpu: {maxSockets: null}}}}"
    ignition => "{annotations: {kubevirt.io/ignitiondata: '{}'}, config: {developerConfiguration: {featureGates: [ExperimentalIgnitionSupport]}}}"
    ignition_arm64 => "{kvm: false, annotations: {kubevirt.io/ignitiondata: '{}'}, config: {developerConfiguration: {featureGates: [ExperimentalIgnitionSupport]}}, spec: {architecture: arm64, domain: {cpu: {maxSockets: null}}}}"
    ignition_is_empty => "annotations: {kubevirt.io/ignitiondata: ''}"
    s390x_acpi_is_off_by_default => "{kvm: false, spec: {architecture: s390x}}"
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
    if let Some(status) = patch.get("status") {
        vmi["status"] = status.clone();
    }
    if let Some(annotations) = patch.get("annotations") {
        vmi["metadata"]["annotations"] = annotations.clone();
    }
    let vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
    let configuration = patch.get("config").cloned().unwrap_or_else(|| json!({}));
    let configuration: KubeVirtConfiguration = serde_json::from_value(configuration).unwrap();
    let config = ClusterConfig {
        architecture: Architecture::Amd64,
        dedicated_cpus: true,
        secondary_networks: true,
        hook_sidecars: true,
        reservation_daemons: true,
        resource_claims: true,
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

#[test]
fn there_are_hundreds_of_cases() {
    assert!(CASES.len() >= 300);
}

/// Cases that the libvirt which nodes have today does not define; nodes without a newer one are never chosen for them.
const OF_NEWER_LIBVIRT: [&str; 1] = ["tdx"];

/// The schema that `virt-xml-validate` uses (Debian: libvirt-common, libxml2-utils), once for all cases.
#[test]
fn libvirts_schema_accepts_every_case() {
    judge("/usr/share/libvirt/schemas/domain.rng", |name| {
        !OF_NEWER_LIBVIRT.contains(&name)
    });
}

/// The newer one, which `scripts/packages --test` unpacks.
#[test]
fn newer_libvirts_schema_accepts_every_case() {
    judge("/usr/local/share/ferrovirt/libvirt-schemas/domain.rng", |_| true);
}

fn judge(schema: &str, included: impl Fn(&str) -> bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut xmllint = Command::new("xmllint");
    xmllint.args(["--noout", "--relaxng", schema]);
    for case in CASES.iter().filter(|case| included(case.name)) {
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
        domain_xml(
            &machine,
            &Facts {
                firmware: None,
                ..all.clone()
            }
        ),
        Err(MissingFact::Firmware)
    );
    let machine = Machine {
        ignition: Some("{}".to_owned()),
        ..machine
    };
    assert_eq!(
        domain_xml(&machine, &Facts { ignition: None, ..all }),
        Err(MissingFact::Ignition)
    );
}

#[test]
fn too_few_cpus_are_an_error() {
    let mut vmi = base();
    let cpu = json!({"cores": 3, "dedicatedCpuPlacement": true, "isolateEmulatorThread": true});
    merge(&mut vmi["spec"], json!({"domain": {"cpu": cpu}}));
    let vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
    let machine = Machine::parse(&vmi, &ClusterConfig::default()).unwrap();
    for (given, wanted) in [(0, Some(3)), (2, Some(3)), (3, Some(4)), (4, None)] {
        let mut facts = facts(&machine, true);
        facts.cpus.truncate(given);
        let error = domain_xml(&machine, &facts).err();
        assert_eq!(error, wanted.map(|wanted| MissingFact::Cpus { wanted, given }));
    }
}
