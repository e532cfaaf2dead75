//! Manifests of the tests: a small VM, changed by what each test is about.

use serde_json::{Value, json};

/// A VirtualMachineInstance spec that boots the tiny guest from a virtio disk.
pub fn spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "domain": {
            "cpu": {"cores": 1},
            "memory": {"guest": "128Mi"},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "masquerade": {}}],
                "rng": {}
            }
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "containerDisk": {"image": "test/tiny:1"}}]
    })
}

/// A VirtualMachineInstance of its own.
pub fn vmi(name: &str, spec: Value) -> String {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

/// A VirtualMachine with the given run strategy.
pub fn vm(name: &str, strategy: &str, spec: Value) -> String {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name},
        "spec": {"runStrategy": strategy, "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}
    })
    .to_string()
}

/// Adds a disk and the volume behind it.
pub fn add_disk(spec: &mut Value, disk: Value, volume: Value) {
    let push = |list: &mut Value, item: Value| {
        if let Some(list) = list.as_array_mut() {
            list.push(item);
        }
    };
    push(&mut spec["domain"]["devices"]["disks"], disk);
    push(&mut spec["volumes"], volume);
}

/// Adds a NoCloud seed whose user data is a shell script.
pub fn add_script(spec: &mut Value, script: &str) {
    add_disk(
        spec,
        json!({"name": "seed", "disk": {"bus": "virtio"}}),
        json!({"name": "seed", "cloudInitNoCloud": {"userData": format!("#!/bin/sh\n{script}\n")}}),
    );
}
