//! No field of a VMI's spec is ignored: each one that the API's schema knows is set, alone, to a valid value, and then
//! either the machine is another one, or the field is refused as not supported yet, or it is known to work elsewhere.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use ferrovirt_api::v1::{VirtualMachineInstance, VirtualMachineInstanceSpec};
use ferrovirt_core::machine::{Architecture, Machine};
use ferrovirt_core::{Cause, ClusterConfig};
use serde_json::{Map, Value, json};

/// Fields that another program reads from the VMI: the pod is made of them, or the API server's defaults use them up.
const ELSEWHERE: &[&str] = &[
    "affinity",
    "dnsConfig",
    "dnsPolicy",
    "domain.devices.autoattachPodInterface",
    // There is one, which is also the default.
    "domain.devices.disks[0].lun.bus",
    "domain.memory.reservedOverhead.addedOverhead",
    "domain.resources",
    "evictionStrategy",
    "livenessProbe",
    "nodeSelector",
    "priorityClassName",
    "readinessProbe",
    "schedulerName",
    "tolerations",
    "topologySpreadConstraints",
    "volumes[0].containerDisk.imagePullPolicy",
    "volumes[0].containerDisk.imagePullSecret",
    "volumes[0].downwardAPI.fields",
    "domain.firmware.kernelBoot.container.imagePullPolicy",
    "domain.firmware.kernelBoot.container.imagePullSecret",
];

/// Fields that ask for what every machine does.
const ALWAYS: &[&str] = &["domain.devices.disableHotplug"];

/// Names by which parts of the spec find each other: another one there must be another one here.
const JOINS: &[&str] = &[
    "domain.devices.disks[0].name",
    "domain.devices.interfaces[0].name",
    "networks[0].name",
    "volumes[0].name",
];

/// Valid values, where any string or number would not do.
const VALID: &[(&str, &str)] = &[
    ("architecture", "arm64"),
    ("domain.clock.timer.hpet.tickPolicy", "delay"),
    ("domain.clock.timer.pit.tickPolicy", "discard"),
    ("domain.clock.timer.rtc.tickPolicy", "catchup"),
    ("domain.clock.timer.rtc.track", "wall"),
    ("domain.cpu.features[0].policy", "disable"),
    ("domain.cpu.realtime.mask", "'0'"),
    ("domain.devices.disks[0].blockSize.custom.discardGranularity", "8192"),
    ("domain.devices.disks[0].blockSize.custom.logical", "4096"),
    ("domain.devices.disks[0].blockSize.custom.physical", "8192"),
    ("domain.devices.disks[0].cache", "writeback"),
    ("domain.devices.disks[0].cdrom.bus", "scsi"),
    ("domain.devices.disks[0].lun.bus", "scsi"),
    ("domain.devices.disks[0].cdrom.tray", "open"),
    ("domain.devices.disks[0].disk.bus", "scsi"),
    ("domain.devices.disks[0].disk.pciAddress", "0000:01:00.0"),
    ("domain.devices.disks[0].errorPolicy", "ignore"),
    ("domain.devices.disks[0].io", "threads"),
    ("domain.devices.gpus[0].deviceName", "ex.com/a"),
    ("domain.devices.hostDevices[0].deviceName", "ex.com/a"),
    ("domain.devices.inputs[0].bus", "virtio"),
    ("domain.devices.inputs[0].type", "tablet"),
    ("domain.devices.interfaces[0].dhcpOptions.ntpServers[0]", "10.0.0.1"),
    (
        "domain.devices.interfaces[0].dhcpOptions.privateOptions[0].option",
        "240",
    ),
    ("domain.devices.interfaces[0].macAddress", "02:00:00:00:00:01"),
    ("domain.devices.interfaces[0].model", "e1000"),
    ("domain.devices.interfaces[0].pciAddress", "0000:01:00.0"),
    ("domain.devices.interfaces[0].portRanges[0].protocol", "UDP"),
    ("domain.devices.interfaces[0].ports[0].protocol", "UDP"),
    ("domain.devices.interfaces[0].state", "down"),
    ("domain.devices.panicDevices[0].model", "pvpanic"),
    ("domain.devices.sound.model", "ac97"),
    ("domain.devices.video.type", "virtio"),
    ("domain.devices.watchdog.diag288.action", "poweroff"),
    ("domain.devices.watchdog.i6300esb.action", "poweroff"),
    ("domain.features.hyperv.spinlocks.spinlocks", "8191"),
    ("domain.firmware.kernelBoot.container.initrdPath", "/initrd"),
    ("domain.firmware.kernelBoot.container.kernelPath", "/vmlinuz"),
    ("domain.firmware.uuid", "5d307ca9-b3ef-428c-8861-06e72d69f223"),
    ("domain.ioThreadsPolicy", "shared"),
    ("domain.launchSecurity.sev.dhCert", "QUFB"),
    ("domain.launchSecurity.sev.session", "QUFB"),
    ("domain.machine.type", "pc-q35-8.0"),
    ("domain.memory.guest", "256Mi"),
    ("domain.memory.hugepages.pageSize", "2Mi"),
    ("domain.memory.maxGuest", "2Gi"),
    ("domain.memory.reservedOverhead.memLock", "Required"),
    ("domain.rebootPolicy", "Terminate"),
    ("networks[0].pod.vmIPv6NetworkCIDR", "fd00::/120"),
    ("networks[0].pod.vmNetworkCIDR", "10.1.0.0/24"),
    ("startStrategy", "Paused"),
    ("volumes[0].cloudInitConfigDrive.networkDataBase64", "eA=="),
    ("volumes[0].cloudInitConfigDrive.userDataBase64", "eA=="),
    ("volumes[0].cloudInitNoCloud.networkDataBase64", "eA=="),
    ("volumes[0].cloudInitNoCloud.userDataBase64", "eA=="),
    ("volumes[0].containerDisk.path", "/disk/x.img"),
    ("volumes[0].containerPath.path", "/x"),
    ("volumes[0].hostDisk.capacity", "1Gi"),
    ("volumes[0].hostDisk.path", "/x.img"),
    ("volumes[0].hostDisk.type", "DiskOrCreate"),
];

/// What must be there for a field to make sense, by the beginning of its path.
const CONTEXT: &[(&str, &str)] = &[
    (
        "domain.cpu.isolateEmulatorThread",
        "{domain: {cpu: {dedicatedCpuPlacement: true}}}",
    ),
    (
        "domain.cpu.numa",
        "{domain: {cpu: {dedicatedCpuPlacement: true}, memory: {hugepages: {pageSize: 2Mi}}}}",
    ),
    (
        "domain.cpu.realtime",
        "{domain: {cpu: {cores: 2, dedicatedCpuPlacement: true, numa: {guestMappingPassthrough: {}}, realtime: {}}, memory: {hugepages: {pageSize: 2Mi}}}}",
    ),
    (
        "domain.devices.interfaces[0].portRanges",
        "{domain: {devices: {interfaces: [{name: n, masquerade: {}, portRanges: [{start: 5, end: 9, protocol: TCP}]}]}}}",
    ),
    (
        "domain.devices.gpus[0].virtualGPUOptions.display",
        "{domain: {devices: {gpus: [{name: y, deviceName: ex.com/b, virtualGPUOptions: {display: {}}}]}}}",
    ),
    (
        "domain.devices.gpus[0].claimName",
        "{resourceClaims: [{name: x, resourceClaimName: a}, {name: y, resourceClaimName: b}], domain: {devices: {gpus: [{name: y, claimName: y, requestName: r}]}}}",
    ),
    (
        "domain.devices.gpus[0].requestName",
        "{resourceClaims: [{name: y, resourceClaimName: b}], domain: {devices: {gpus: [{name: y, claimName: y, requestName: r}]}}}",
    ),
    (
        "domain.devices.hostDevices[0].claimName",
        "{resourceClaims: [{name: x, resourceClaimName: a}, {name: y, resourceClaimName: b}], domain: {devices: {hostDevices: [{name: y, claimName: y, requestName: r}]}}}",
    ),
    (
        "domain.devices.hostDevices[0].requestName",
        "{resourceClaims: [{name: y, resourceClaimName: b}], domain: {devices: {hostDevices: [{name: y, claimName: y, requestName: r}]}}}",
    ),
    (
        "networks[0].resourceClaim",
        "{resourceClaims: [{name: x, resourceClaimName: a}, {name: y, resourceClaimName: b}], networks: [{name: n, resourceClaim: {claimName: y, requestName: r}}], domain: {devices: {interfaces: [{name: n, sriov: {}}]}}}",
    ),
    ("resourceClaims", "{resourceClaims: [{name: y, resourceClaimName: b}]}"),
    (
        "domain.devices.gpus",
        "{domain: {devices: {gpus: [{name: y, deviceName: ex.com/b}]}}}",
    ),
    (
        "domain.devices.hostDevices",
        "{domain: {devices: {hostDevices: [{name: y, deviceName: ex.com/b}]}}}",
    ),
    (
        "domain.launchSecurity.sev",
        "{domain: {firmware: {bootloader: {efi: {secureBoot: false}}}, launchSecurity: {sev: {}}}}",
    ),
    (
        "domain.launchSecurity",
        "{domain: {firmware: {bootloader: {efi: {secureBoot: false}}}}}",
    ),
    (
        "networks[0].multus",
        "{domain: {devices: {interfaces: [{name: n, bridge: {}}]}}, networks: [{name: n, multus: {networkName: y}}]}",
    ),
    (
        "domain.devices.interfaces[0].sriov",
        "{networks: [{name: n, multus: {networkName: y}}]}",
    ),
    ("domain.cpu.sockets", "{domain: {cpu: {maxSockets: 8}}}"),
    (
        "domain.devices.disks[0].blockSize.custom",
        "{domain: {devices: {disks: [{name: v, disk: {bus: virtio}, blockSize: {custom: {logical: 512, physical: 4096}}}]}}}",
    ),
    (
        "domain.devices.disks[0].lun",
        "{domain: {devices: {disks: [{name: v, lun: {bus: scsi}}]}}, volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]}",
    ),
    (
        "domain.devices.disks[0].shareable",
        "{volumes: [{name: v, hostDisk: {type: Disk, path: /y.img}}]}",
    ),
    (
        "domain.features.hyperv.synictimer",
        "{domain: {clock: {timer: {hyperv: {}}}}}",
    ),
    (
        "domain.features.hyperv.vendorid.enabled",
        "{domain: {features: {hyperv: {vendorid: {vendorid: y}}}}}",
    ),
    (
        "domain.ioThreads.",
        "{domain: {ioThreadsPolicy: supplementalPool, ioThreads: {supplementalPoolThreadCount: 2}}}",
    ),
    ("domain.devices.watchdog.diag288", "{architecture: s390x}"),
    (
        "domain.firmware.acpi.",
        "{volumes: [{name: v, emptyDisk: {capacity: 1Gi}}, {name: x, secret: {secretName: s}}]}",
    ),
    ("domain.firmware.bootloader.efi", "{domain: {features: {smm: {}}}}"),
    (
        "domain.devices.watchdog.name",
        "{domain: {devices: {watchdog: {i6300esb: {}}}}}",
    ),
    (
        "domain.devices.inputs[0].name",
        "{domain: {devices: {inputs: [{type: tablet}]}}}",
    ),
    (
        "domain.devices.inputs[0].bus",
        "{domain: {devices: {inputs: [{name: x, type: tablet}]}}}",
    ),
    (
        "domain.devices.panicDevices[0].model",
        "{domain: {devices: {panicDevices: []}}}",
    ),
    (
        "domain.memory.maxGuest",
        "{domain: {memory: {guest: 1Gi, maxGuest: 1Gi}}}",
    ),
    (
        "volumes[0].hostDisk.capacity",
        "{volumes: [{name: v, hostDisk: {type: DiskOrCreate, path: /x.img}}]}",
    ),
    (
        "volumes[0].hostDisk.type",
        "{volumes: [{name: v, hostDisk: {type: Disk, path: /x.img, capacity: 1Gi}}]}",
    ),
    (
        "volumes[0].hostDisk",
        "{volumes: [{name: v, hostDisk: {type: Disk, path: /y.img}}]}",
    ),
    (
        "domain.firmware.kernelBoot",
        "{domain: {firmware: {kernelBoot: {container: {image: r/k, kernelPath: /k, initrdPath: /i}}}}}",
    ),
    (
        "accessCredentials[0].sshPublicKey.propagationMethod.noCloud",
        "{accessCredentials: [{sshPublicKey: {source: {secret: {secretName: s}}, propagationMethod: {}}}], volumes: [{name: v, cloudInitNoCloud: {userData: x}}]}",
    ),
    (
        "accessCredentials[0].sshPublicKey.propagationMethod.configDrive",
        "{accessCredentials: [{sshPublicKey: {source: {secret: {secretName: s}}, propagationMethod: {}}}], volumes: [{name: v, cloudInitConfigDrive: {userData: x}}]}",
    ),
    (
        "accessCredentials[0].sshPublicKey",
        "{accessCredentials: [{sshPublicKey: {source: {secret: {secretName: s}}, propagationMethod: {qemuGuestAgent: {users: [root]}}}}]}",
    ),
    (
        "accessCredentials[0].userPassword",
        "{accessCredentials: [{userPassword: {source: {secret: {secretName: s}}, propagationMethod: {qemuGuestAgent: {}}}}]}",
    ),
    (
        "domain.devices.filesystems",
        "{domain: {devices: {filesystems: [{name: y, virtiofs: {}}]}}, volumes: [{name: v, emptyDisk: {capacity: 1Gi}}, {name: x, configMap: {name: m}}, {name: y, configMap: {name: m}}]}",
    ),
    (
        "volumes[0].containerPath",
        "{domain: {devices: {disks: [], filesystems: [{name: v, virtiofs: {}}]}}, volumes: [{name: v, containerPath: {path: /y}}]}",
    ),
    ("volumes[0].configMap", "{volumes: [{name: v, configMap: {name: m}}]}"),
    ("volumes[0].secret", "{volumes: [{name: v, secret: {secretName: s}}]}"),
    (
        "volumes[0].cloudInitNoCloud.userData",
        "{volumes: [{name: v, cloudInitNoCloud: {networkData: x}}]}",
    ),
    (
        "volumes[0].cloudInitConfigDrive.userData",
        "{volumes: [{name: v, cloudInitConfigDrive: {networkData: x}}]}",
    ),
    (
        "volumes[0].cloudInitNoCloud.secretRef",
        "{volumes: [{name: v, cloudInitNoCloud: {networkData: x}}]}",
    ),
    (
        "volumes[0].cloudInitConfigDrive.secretRef",
        "{volumes: [{name: v, cloudInitConfigDrive: {networkData: x}}]}",
    ),
    (
        "volumes[0].cloudInitNoCloud.networkData",
        "{volumes: [{name: v, cloudInitNoCloud: {userData: x}}]}",
    ),
    (
        "volumes[0].cloudInitConfigDrive.networkData",
        "{volumes: [{name: v, cloudInitConfigDrive: {userData: x}}]}",
    ),
];

/// Of these, one at a time.
const ALTERNATIVES: &[(&str, &[&str])] = &[
    ("domain.devices.disks[0]", &["disk", "cdrom", "lun"]),
    (
        "domain.devices.interfaces[0]",
        &[
            "masquerade",
            "bridge",
            "macvtap",
            "passt",
            "passtBinding",
            "slirp",
            "sriov",
            "binding",
        ],
    ),
    ("networks[0]", &["pod", "multus", "resourceClaim"]),
    ("resourceClaims[0]", &["resourceClaimName", "resourceClaimTemplateName"]),
];

fn base() -> Value {
    serde_yaml_ng::from_str(
        "{architecture: amd64, domain: {memory: {guest: 128Mi}, cpu: {sockets: 1, maxSockets: 1}, devices: {
           disks: [{name: v, disk: {bus: virtio}}], interfaces: [{name: n, masquerade: {}}]}},
          networks: [{name: n, pod: {}}], volumes: [{name: v, emptyDisk: {capacity: 1Gi}}]}",
    )
    .unwrap()
}

/// One step into a spec.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    First,
}

fn text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => text.push_str(&format!(".{name}")),
            Step::First => text.push_str("[0]"),
        }
    }
    text
}

/// A schema with its definitions.
struct Schemas {
    definitions: Map<String, Value>,
}

impl Schemas {
    /// Follows references and takes the branch that is not null.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        if let Some(reference) = schema["$ref"].as_str() {
            return self.resolve(&self.definitions[reference.rsplit('/').next().unwrap()]);
        }
        for key in ["anyOf", "allOf", "oneOf"] {
            if let Some(branches) = schema[key].as_array() {
                let branch = branches.iter().find(|b| b["type"] != "null").unwrap();
                if branch["type"] != "integer" {
                    return self.resolve(branch);
                }
            }
        }
        schema
    }

    fn is(&self, schema: &Value, kind: &str) -> bool {
        let types = &schema["type"];
        types == kind || types.as_array().is_some_and(|types| types.iter().any(|t| t == kind))
    }

    /// The least valid value.
    fn least(&self, schema: &Value, path: &str) -> Value {
        let schema = self.resolve(schema);
        if let Some((_, value)) = VALID.iter().find(|(p, _)| *p == path) {
            return serde_yaml_ng::from_str(value).unwrap();
        }
        if let Some(value) = schema["enum"].as_array().and_then(|values| values.first()) {
            return value.clone();
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return json!("3Gi");
        }
        if self.is(schema, "array") {
            return json!([self.least(&schema["items"], &format!("{path}[0]"))]);
        }
        if self.is(schema, "string") {
            return json!("x");
        }
        if self.is(schema, "integer") || self.is(schema, "number") {
            return json!(7);
        }
        if self.is(schema, "boolean") {
            return json!(true);
        }
        let mut object = Map::new();
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().unwrap();
            let value = self.least(&schema["properties"][name], &format!("{path}.{name}"));
            object.insert(name.to_owned(), value);
        }
        if object.is_empty() && schema.get("additionalProperties").is_some_and(|a| a != false) {
            object.insert("x".to_owned(), self.least(&schema["additionalProperties"], ""));
        }
        Value::Object(object)
    }

    /// All fields below `schema` that have no fields themselves.
    fn walk(&self, schema: &Value, path: &mut Vec<Step>, out: &mut Vec<(Vec<Step>, Value)>) {
        let schema = self.resolve(schema);
        if ELSEWHERE.contains(&text(path).as_str()) {
            return;
        }
        if let Some(properties) = schema["properties"].as_object() {
            for (name, field) in properties {
                path.push(Step::Field(name.clone()));
                let before = out.len();
                self.walk(field, path, out);
                if out.len() == before {
                    out.push((path.clone(), field.clone()));
                }
                path.pop();
            }
        } else if self.is(schema, "array") {
            path.push(Step::First);
            self.walk(&schema["items"], path, out);
            path.pop();
        }
    }

    /// Sets `path` to `value`, making on its way what is missing.
    fn set(&self, root: &mut Value, schema: &Value, path: &[Step], value: Option<Value>) {
        let (mut at, mut schema) = (root, self.resolve(schema));
        for (i, step) in path.iter().enumerate() {
            let here = text(&path[..=i]);
            let last = i + 1 == path.len();
            schema = self.resolve(match step {
                Step::Field(name) => &schema["properties"][name],
                Step::First => &schema["items"],
            });
            match step {
                Step::Field(name) => {
                    let parent = text(&path[..i]);
                    let object = at.as_object_mut().unwrap_or_else(|| panic!("{here}"));
                    for (_, others) in ALTERNATIVES
                        .iter()
                        .filter(|(p, all)| *p == parent && all.contains(&name.as_str()))
                    {
                        object.retain(|key, _| key == name || !others.contains(&key.as_str()));
                    }
                    if parent == "volumes[0]" && name != "name" {
                        object.retain(|key, _| key == name || key == "name");
                    }
                    if last {
                        match &value {
                            Some(value) => object.insert(name.clone(), value.clone()),
                            None => object.remove(name),
                        };
                        return;
                    }
                    at = object.entry(name.clone()).or_insert_with(|| self.least(schema, &here));
                }
                Step::First => {
                    let list = at.as_array_mut().unwrap();
                    if list.is_empty() {
                        list.push(self.least(schema, &here));
                    }
                    at = &mut list[0];
                }
            }
        }
    }
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn parse(spec: &Value) -> Result<Result<Machine, Vec<Cause>>, serde_json::Error> {
    let spec: VirtualMachineInstanceSpec = serde_json::from_value(spec.clone())?;
    let mut vmi = VirtualMachineInstance {
        spec,
        ..VirtualMachineInstance::default()
    };
    vmi.metadata.name = Some("vm".to_owned());
    let config = ClusterConfig {
        architecture: Architecture::Amd64,
        ..ClusterConfig::permissive()
    };
    Ok(Machine::parse(&vmi, &config))
}

/// What a field does; or why it is neither effective nor refused.
fn check(schemas: &Schemas, root: &Value, path: &[Step], field: &Value) -> Result<&'static str, String> {
    let name = text(path);
    let mut without = base();
    if let Some((_, context)) = CONTEXT.iter().find(|(p, _)| name.starts_with(p)) {
        merge(&mut without, &serde_yaml_ng::from_str(context).unwrap());
    }
    let mut candidates = vec![schemas.least(field, &name)];
    if schemas.is(schemas.resolve(field), "boolean") {
        candidates.push(json!(false));
    }
    let mut with = without.clone();
    let before = without.clone();
    schemas.set(&mut without, root, path, None);
    let mut found = Vec::new();
    for candidate in candidates {
        with.clone_from(&before);
        schemas.set(&mut with, root, path, Some(candidate));
        let after = match parse(&with) {
            Ok(after) => after,
            Err(error) => return Err(format!("{name}: {error} in {with}")),
        };
        match after {
            Ok(machine) => {
                if !parse(&without).is_ok_and(|m| m.as_ref() == Ok(&machine)) {
                    return Ok("machine");
                }
                found.push(format!("no effect in {with}"));
            }
            Err(causes) => {
                let path = format!("spec.{name}");
                let refuses = |c: &Cause| {
                    (c.message.starts_with("not supported yet") || c.message.ends_with("discontinued"))
                        && (path == c.field
                            || path.starts_with(&format!("{}.", c.field))
                            || path.starts_with(&format!("{}[", c.field)))
                };
                if causes.iter().any(refuses) {
                    return Ok("refused");
                }
                found.push(format!("{causes:?}"));
            }
        }
    }
    Err(format!("{name}: {}", found.join("; ")))
}

#[test]
fn each_field_is_effective_or_refused() {
    let root = serde_json::to_value(schemars::schema_for!(VirtualMachineInstanceSpec)).unwrap();
    let definitions = root["$defs"].as_object().unwrap().clone();
    let schemas = Schemas { definitions };
    let mut fields = Vec::new();
    schemas.walk(&root, &mut Vec::new(), &mut fields);
    assert!(fields.len() > 200, "{} fields", fields.len());
    let elsewhere = ELSEWHERE.iter().chain(JOINS);
    let mut outcomes: BTreeMap<String, &str> = elsewhere.map(|name| ((*name).to_owned(), "elsewhere")).collect();
    outcomes.extend(ALWAYS.iter().map(|name| ((*name).to_owned(), "always")));
    let mut ignored = Vec::new();
    for (path, field) in &fields {
        let name = text(path);
        if outcomes.contains_key(&name) {
            continue;
        }
        match check(&schemas, &root, path, field) {
            Ok(outcome) => drop(outcomes.insert(name, outcome)),
            Err(why) => ignored.push(why),
        }
    }
    assert!(
        ignored.is_empty(),
        "{} fields are ignored:\n{}",
        ignored.len(),
        ignored.join("\n")
    );
    // `cargo xtask compat` makes docs/compat.md of it.
    let outcomes: Vec<String> = outcomes
        .iter()
        .map(|(name, outcome)| format!("{name}: {outcome}"))
        .collect();
    insta::assert_snapshot!("fields", outcomes.join("\n"));
}
