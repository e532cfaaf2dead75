use serde_json::json;

use super::*;

fn vmi(phase: &str) -> VirtualMachineInstance {
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "ns", "uid": "u", "resourceVersion": "7"},
        "spec": {
            "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "containerDisk": {"image": "x"}}],
        },
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "False"}],
            "phaseTransitionTimestamps": [{"phase": "Pending", "phaseTransitionTimestamp": "2026-01-01T00:00:00Z"}]},
    }))
    .unwrap()
}

fn nic() -> Nic {
    Nic {
        network: "default".into(),
        mac: "52:54:00:01:02:03".into(),
        pod_ips: vec!["10.88.0.7".into()],
        pod_interface: "eth0".into(),
        dhcp: Some(ferrovirt_protocol::launcher::Dhcp {
            client_ip: "10.0.2.2".into(),
            ..Default::default()
        }),
        ..Nic::default()
    }
}

fn guest(lifecycle: Lifecycle, reason: &str) -> GuestState {
    GuestState {
        lifecycle: lifecycle.into(),
        reason: reason.into(),
        message: "because".into(),
        domain_type: "qemu".into(),
        machine_type: "pc-q35-10.0".into(),
        volumes: serde_json::to_vec(&json!([{"name": "root", "target": "vda", "size": 5}, {"name": "strange"}]))
            .unwrap(),
        ..GuestState::default()
    }
}

fn now() -> Timestamp {
    "2026-02-02T02:02:02Z".parse().unwrap()
}

fn condition<'a>(change: &'a Change, kind: &str) -> Option<&'a VirtualMachineInstanceCondition> {
    conditions::find(&change.status.conditions, kind)
}

#[test]
fn how_a_guest_ends_decides_the_phase() {
    use Lifecycle::{Crashed, Failed, Paused, Preparing, Running, ShutOff, ShuttingDown, Waiting};
    for (lifecycle, reason, expected) in [
        (Waiting, "", None),
        (Preparing, "", None),
        (Running, "Booted", Some("Running")),
        (Paused, "User", Some("Running")),
        (ShuttingDown, "", Some("Running")),
        (ShutOff, "Shutdown", Some("Succeeded")),
        (ShutOff, "Saved", Some("Succeeded")),
        (ShutOff, "Destroyed", Some("Failed")),
        (ShutOff, "Crashed", Some("Failed")),
        (ShutOff, "Migrated", None),
        (Crashed, "Panicked", Some("Failed")),
        (Failed, "", Some("Failed")),
    ] {
        let guest = guest(lifecycle, reason);
        let view = View {
            guest: Some(&guest),
            ..View::default()
        };
        let got = change(&vmi("Scheduled"), &view, now()).and_then(|change| change.status.phase);
        assert_eq!(
            got.as_deref().filter(|phase| *phase != "Scheduled"),
            expected,
            "{lifecycle:?} {reason}"
        );
        assert_eq!(change(&vmi("Scheduling"), &view, now()), None, "not ours yet");
        assert_eq!(change(&vmi("Failed"), &view, now()), None, "nobody's any more");
    }
}

#[test]
fn how_a_guest_ended_is_told() {
    for (reason, message, warning, told) in [
        ("Shutdown", "", false, "The VirtualMachineInstance was shut down."),
        (
            "Destroyed",
            "",
            true,
            "The VirtualMachineInstance was stopped without a shutdown of its guest.",
        ),
        ("Crashed", "", true, "The VirtualMachineInstance failed (GuestCrashed)"),
        (
            "Crashed",
            "QEMU was killed",
            true,
            "The VirtualMachineInstance failed (GuestCrashed): QEMU was killed",
        ),
    ] {
        let mut guest = guest(Lifecycle::ShutOff, reason);
        guest.message = message.to_owned();
        let view = View {
            guest: Some(&guest),
            ..View::default()
        };
        let change = change(&vmi("Running"), &view, now()).unwrap();
        let note = change.notes.last().unwrap();
        assert_eq!((note.warning, note.message.as_str()), (warning, told), "{reason}");
    }
}

#[test]
fn without_acpi_destroying_is_the_way_to_stop() {
    let mut vmi = vmi("Running");
    vmi.spec.domain.features = serde_json::from_value(json!({"acpi": {"enabled": false}})).unwrap();
    let guest = guest(Lifecycle::ShutOff, "Destroyed");
    let change = change(
        &vmi,
        &View {
            guest: Some(&guest),
            ..View::default()
        },
        now(),
    )
    .unwrap();
    assert_eq!(change.status.phase.as_deref(), Some("Succeeded"));
}

#[test]
fn one_write_makes_it_running_and_the_next_look_finds_nothing_to_do() {
    let mut vmi = vmi("Scheduled");
    let guest = guest(Lifecycle::Running, "Booted");
    let nics = [nic()];
    let view = View {
        guest: Some(&guest),
        nics: Some(&nics),
        ..View::default()
    };
    let change = change(&vmi, &view, now()).unwrap();
    assert!(change.urgent);
    let status = &change.status;
    assert_eq!(status.phase_transition_timestamps.len(), 2);
    assert_eq!(status.machine.as_ref().unwrap().r#type.as_deref(), Some("pc-q35-10.0"));
    assert_eq!(status.migration_method.as_deref(), Some("BlockMigration"));
    assert_eq!(status.volume_status.len(), 1);
    assert_eq!(
        (status.volume_status[0].target.as_str(), status.volume_status[0].size),
        ("vda", Some(5))
    );
    let interface = &status.interfaces[0];
    assert_eq!(interface.ip_address.as_deref(), Some("10.88.0.7"));
    assert_eq!(
        (interface.info_source.as_deref(), interface.queue_count),
        (Some("domain"), Some(1))
    );
    assert_eq!(condition(&change, "SoftwareEmulation").unwrap().status, "True");
    assert_eq!(condition(&change, "LiveMigratable").unwrap().status, "True");
    assert_eq!(condition(&change, "StorageLiveMigratable").unwrap().status, "True");
    assert!(
        condition(&change, "Ready").is_some(),
        "another writer's condition is kept"
    );
    assert_eq!(change.notes.len(), 1);
    assert!(change.notes[0].message.contains("TCG"));

    vmi.status = Some(change.status);
    assert_eq!(super::change(&vmi, &view, now()), None);
    let unknown = View { nics: None, ..view };
    assert_eq!(
        super::change(&vmi, &unknown, now()),
        None,
        "before the network was looked at, nothing is taken back"
    );
}

/// Shows `spec.domain.devices.interfaces[].sriov`, `spec.domain.devices.interfaces[].binding.name`.
#[test]
fn nics_that_only_the_guest_sees_are_found_by_their_address() {
    let mut vmi = vmi("Running");
    vmi.spec.domain.devices.interfaces = serde_json::from_value(json!([
        {"name": "default", "binding": {"name": "managed"}},
        {"name": "red", "sriov": {}, "macAddress": "02-00-00-00-00-0A"},
        {"name": "blue", "binding": {"name": "sidecar"}, "macAddress": "02:00:00:00:00:0b"},
    ]))
    .unwrap();
    let nics = [nic()];
    let mut guest = guest(Lifecycle::Running, "Booted");
    guest.agent_connected = true;
    guest.guest_info = serde_json::to_vec(&json!({"interfaces": [
        {"interfaceName": "eth9", "mac": "02:00:00:00:00:09", "ipAddresses": ["10.0.0.9"]},
        {"interfaceName": "eth1", "mac": "02:00:00:00:00:0a", "ipAddresses": ["10.1.0.5"]},
        {"interfaceName": "eth2", "mac": "02:00:00:00:00:0b", "ipAddresses": ["10.1.0.6"]},
    ]}))
    .unwrap();
    let view = View {
        guest: Some(&guest),
        nics: Some(&nics),
        ..View::default()
    };
    let interfaces = change(&vmi, &view, now()).unwrap().status.interfaces;
    let told = |i: usize| {
        let interface = &interfaces[i];
        let (name, device) = (interface.name.as_deref(), interface.interface_name.as_deref());
        (name, device, interface.info_source.as_deref().unwrap())
    };
    assert_eq!(interfaces.len(), 4);
    assert_eq!(told(0), (Some("default"), None, "domain"));
    assert_eq!(told(1), (Some("red"), Some("eth1"), "domain, guest-agent"));
    assert_eq!(interfaces[1].ip_address.as_deref(), Some("10.1.0.5"));
    assert_eq!(told(2), (Some("blue"), Some("eth2"), "domain, guest-agent"));
    assert_eq!(told(3), (None, Some("eth9"), "guest-agent"));
}

#[test]
fn the_agent_adds_but_does_not_choose_the_address() {
    let mut vmi = vmi("Scheduled");
    let nics = [nic()];
    let mut guest = guest(Lifecycle::Running, "Booted");
    guest.domain_type = "kvm".into();
    let view = View {
        guest: Some(&guest),
        nics: Some(&nics),
        ..View::default()
    };
    vmi.status = Some(change(&vmi, &view, now()).unwrap().status);
    guest.agent_connected = true;
    guest.guest_info = serde_json::to_vec(&json!({
        "os": {"id": "debian", "prettyName": "Debian"}, "fsFreezeStatus": "thawed",
        "interfaces": [
            {"interfaceName": "lo", "ipAddresses": ["127.0.0.1"]},
            {"interfaceName": "enp1s0", "mac": "52:54:00:01:02:03", "ipAddresses": ["10.0.2.2", "fe80::1", "10.96.0.1"]},
            {"interfaceName": "docker0", "mac": "02:42:00:00:00:01", "ipAddress": "172.17.0.1", "ipAddresses": ["172.17.0.1"]},
        ],
    }))
    .unwrap();
    let view = View {
        guest: Some(&guest),
        nics: Some(&nics),
        ..View::default()
    };
    let change = change(&vmi, &view, now()).unwrap();
    assert!(!change.urgent);
    assert!(change.notes.is_empty());
    let interfaces = &change.status.interfaces;
    assert_eq!(interfaces.len(), 2);
    assert_eq!(interfaces[0].ip_address.as_deref(), Some("10.88.0.7"));
    assert_eq!(interfaces[0].ip_addresses, ["10.88.0.7"], "nobody reaches the others");
    assert_eq!(interfaces[0].interface_name.as_deref(), Some("enp1s0"));
    assert_eq!(interfaces[0].info_source.as_deref(), Some("domain, guest-agent"));
    assert_eq!(
        (interfaces[1].name.as_deref(), interfaces[1].interface_name.as_deref()),
        (None, Some("docker0"))
    );
    assert_eq!(
        change.status.guest_os_info.as_ref().unwrap().id.as_deref(),
        Some("debian")
    );
    assert_eq!(condition(&change, "AgentConnected").unwrap().status, "True");
    assert!(condition(&change, "SoftwareEmulation").is_none());
}

#[test]
fn an_interface_is_told_of_as_it_is() {
    let mut vmi = vmi("Running");
    let mut nics = [nic()];
    let mut guest = guest(Lifecycle::Running, "Booted");
    guest.agent_connected = true;
    let told = ["fe80::1", "10.0.0.9", "169.254.1.1", "2001:db8::9"];
    let info = json!({"interfaces": [
        {"interfaceName": "eth0", "mac": "52:54:00:01:02:03", "ipAddresses": told},
        {"interfaceName": "dummy0", "mac": "02:00:00:00:00:01", "ipAddresses": told},
    ]});
    guest.guest_info = serde_json::to_vec(&info).unwrap();
    let guest = report::bounded(guest);
    let names = BTreeSet::from(["eth0".to_owned()]);
    for (binding, pod_ips, multiqueue, state, multus, expected) in [
        (
            "masquerade",
            &["10.88.0.7"][..],
            false,
            None,
            false,
            "10.88.0.7 up 1 domain, guest-agent",
        ),
        ("masquerade", &[], false, Some("up"), false, " up 1 domain, guest-agent"),
        (
            "bridge",
            &["10.88.0.7"],
            true,
            Some("down"),
            true,
            "10.88.0.7,10.0.0.9,2001:db8::9 down 4 domain, guest-agent, multus-status",
        ),
        (
            "bridge",
            &[],
            false,
            None,
            true,
            "10.0.0.9,2001:db8::9 up 1 domain, guest-agent, multus-status",
        ),
    ] {
        vmi.spec.domain = serde_json::from_value(json!({
            "cpu": {"cores": 4}, "memory": {"guest": "128Mi"},
            "devices": {
                "networkInterfaceMultiqueue": multiqueue,
                "interfaces": [{"name": "default", binding: {}, "state": state}],
            },
        }))
        .unwrap();
        nics[0].pod_ips = pod_ips.iter().map(|&ip| ip.to_owned()).collect();
        let view = View {
            guest: Some(&guest),
            nics: Some(&nics),
            multus: multus.then_some(&names),
            ..View::default()
        };
        let status = change(&vmi, &view, now()).unwrap().status;
        let [interface, own] = &status.interfaces[..] else {
            panic!("{:?}", status.interfaces)
        };
        let got = format!(
            "{} {} {} {}",
            interface.ip_addresses.join(","),
            interface.link_state.as_deref().unwrap(),
            interface.queue_count.unwrap(),
            interface.info_source.as_deref().unwrap()
        );
        assert_eq!(got, expected, "{binding} {pod_ips:?}");
        assert_eq!(interface.ip_address.as_ref(), interface.ip_addresses.first());
        assert_eq!(own.ip_address.as_deref(), Some("10.0.0.9"));
        assert_eq!(own.ip_addresses, ["10.0.0.9", "2001:db8::9", "169.254.1.1", "fe80::1"]);
    }
}

#[test]
fn an_agent_that_can_do_too_little_is_told_of_while_it_is_connected() {
    const KIND: &str = "AgentVersionNotSupported";
    let mut vmi = vmi("Running");
    let all = [
        "guest-ping",
        "guest-get-time",
        "guest-info",
        "guest-shutdown",
        "guest-network-get-interfaces",
        "guest-get-fsinfo",
        "guest-get-host-name",
        "guest-get-users",
        "guest-get-timezone",
        "guest-get-osinfo",
    ];
    let info = |disabled: &str| {
        let list = all.map(|name| json!({"name": name, "enabled": name != disabled}));
        json!({"supportedCommands": list})
    };
    let basic = Some("This guest agent doesn't support required basic commands");
    for (connected, info, expected) in [
        (true, json!({}), None),
        (true, info("guest-get-users"), basic),
        (true, json!({}), basic),
        (true, info(""), None),
        (true, info("guest-ping"), basic),
        (false, json!({}), None),
    ] {
        let mut guest = guest(Lifecycle::Running, "Booted");
        guest.agent_connected = connected;
        guest.guest_info = serde_json::to_vec(&info).unwrap();
        let guest = report::bounded(guest);
        let view = View {
            guest: Some(&guest),
            ..View::default()
        };
        if let Some(change) = change(&vmi, &view, now()) {
            vmi.status = Some(change.status);
        }
        let list = &vmi.status.as_ref().unwrap().conditions;
        let got = conditions::find(list, KIND).and_then(|c| c.reason.as_deref());
        assert_eq!(got, expected, "{connected} {info}");
    }
}

#[test]
fn credentials_are_told_when_they_change() {
    let mut vmi = vmi("Running");
    for (credentials, status, told) in [
        (None, None, None),
        (
            Some((false, "Guest agent is offline")),
            Some("False"),
            Some("AccessCredentialsSyncFailed"),
        ),
        (Some((true, "")), Some("True"), Some("AccessCredentialsSyncSuccess")),
        (Some((true, "")), Some("True"), None),
        (
            Some((false, "user \"x\": no")),
            Some("False"),
            Some("AccessCredentialsSyncFailed"),
        ),
    ] {
        let mut guest = guest(Lifecycle::Running, "Booted");
        guest.access_credentials = credentials.map(|(synchronized, message)| AccessCredentials {
            synchronized,
            message: message.to_owned(),
        });
        let view = View {
            guest: Some(&guest),
            ..View::default()
        };
        let changed = change(&vmi, &view, now());
        let notes = changed.as_ref().map(|change| change.notes.clone()).unwrap_or_default();
        assert_eq!(notes.first().map(|note| note.reason), told, "{credentials:?}");
        if let Some(changed) = changed {
            vmi.status = Some(changed.status);
        }
        let list = &vmi.status.as_ref().unwrap().conditions;
        let found = conditions::find(list, "AccessCredentialsSynchronized");
        assert_eq!(found.map(|c| c.status.as_str()), status, "{credentials:?}");
    }
}

#[test]
fn pauses_come_and_go() {
    let mut vmi = vmi("Running");
    for (lifecycle, reason, expected, told) in [
        (Lifecycle::Paused, "User", Some("PausedByUser"), None),
        (Lifecycle::Paused, "IOError", Some("PausedIOError"), None),
        (Lifecycle::Running, "Unpaused", None, Some("Resumed")),
        (Lifecycle::Paused, "User", Some("PausedByUser"), None),
        (Lifecycle::ShuttingDown, "", None, None),
    ] {
        let guest = guest(lifecycle, reason);
        let change = change(
            &vmi,
            &View {
                guest: Some(&guest),
                ..View::default()
            },
            now(),
        )
        .unwrap();
        assert!(change.urgent);
        assert_eq!(condition(&change, "Paused").and_then(|c| c.reason.as_deref()), expected);
        assert_eq!(change.notes.first().map(|note| note.reason), told, "{lifecycle:?}");
        vmi.status = Some(change.status);
    }
}

#[test]
fn a_claim_of_one_node_keeps_a_guest_where_it_is() {
    let mut vmi = vmi("Scheduled");
    let volumes = json!([{"name": "root", "persistentVolumeClaim": {"claimName": "disk"}}]);
    vmi.spec.volumes = serde_json::from_value(volumes).unwrap();
    let guest = guest(Lifecycle::Running, "Booted");
    let view = View {
        guest: Some(&guest),
        ..View::default()
    };
    let change = change(&vmi, &view, now()).unwrap();
    let told = |kind| {
        let condition = condition(&change, kind).unwrap();
        (condition.status.as_str(), condition.reason.as_deref().unwrap())
    };
    assert_eq!(told("LiveMigratable"), ("False", "DisksNotLiveMigratable"));
    let storage = condition(&change, "StorageLiveMigratable").unwrap();
    assert_eq!(storage.status, "True", "its disk could be copied to another");
}

#[test]
fn a_dead_launcher_fails_its_vmi_unless_the_end_was_reported() {
    let running = guest(Lifecycle::Running, "Booted");
    let ended = guest(Lifecycle::ShutOff, "Shutdown");
    for (guest, gone, phase, reason) in [
        (Some(&running), Gone::Dead, "Failed", Some("LauncherDied")),
        (None, Gone::Dead, "Failed", Some("LauncherDied")),
        (Some(&ended), Gone::Dead, "Succeeded", None),
        (None, Gone::Clean, "Succeeded", None),
    ] {
        let view = View {
            guest,
            gone: Some(gone),
            ..View::default()
        };
        let change = change(&vmi("Running"), &view, now()).unwrap();
        assert_eq!(
            (change.status.phase.as_deref(), change.status.reason.as_deref()),
            (Some(phase), reason)
        );
        assert_eq!(change.notes[0].warning, phase == "Failed");
    }
}

#[test]
fn trouble_is_shown_and_taken_back_but_not_the_controllers() {
    let mut vmi = vmi("Scheduled");
    let change = change(
        &vmi,
        &View {
            trouble: Some("no tap"),
            ..View::default()
        },
        now(),
    )
    .unwrap();
    let shown = condition(&change, "Synchronized").unwrap();
    assert_eq!(
        (shown.status.as_str(), shown.message.as_deref()),
        ("False", Some("no tap"))
    );
    assert!(change.urgent);
    vmi.status = Some(change.status);
    let change = super::change(&vmi, &View::default(), now()).unwrap();
    assert!(condition(&change, "Synchronized").is_none());
    let status = vmi.status.as_mut().unwrap();
    let controllers = Desired::new("Synchronized", false, "ErrImagePull", "m");
    conditions::set(&mut status.conditions, &controllers, now());
    assert_eq!(super::change(&vmi, &View::default(), now()), None);
}

#[test]
fn a_patch_tests_what_two_programs_write() {
    let vmi = vmi("Scheduled");
    let guest = guest(Lifecycle::Running, "Booted");
    let change = change(
        &vmi,
        &View {
            guest: Some(&guest),
            ..View::default()
        },
        now(),
    )
    .unwrap();
    let operations = |guard| {
        let patch = patch(&vmi, &change.status, guard).unwrap();
        let list = patch.as_array().unwrap().clone();
        list.iter()
            .map(|o| format!("{} {}", o["op"].as_str().unwrap(), o["path"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        operations(Guard::Fields),
        [
            "test /metadata/uid",
            "test /status/conditions",
            "test /status/phase",
            "replace /status/conditions",
            "add /status/machine",
            "add /status/migrationMethod",
            "replace /status/phase",
            "replace /status/phaseTransitionTimestamps",
            "add /status/volumeStatus",
        ]
    );
    assert_eq!(
        operations(Guard::Version)[..2],
        ["test /metadata/uid", "test /metadata/resourceVersion"]
    );
    let mut bare = vmi.clone();
    bare.status = None;
    let patch = patch(&bare, &change.status, Guard::Fields).unwrap();
    assert_eq!(
        (patch[1]["path"].as_str(), patch[2]["path"].as_str()),
        (Some("/metadata/resourceVersion"), Some("/status"))
    );
}

#[test]
fn the_status_of_the_worst_launcher_is_small() {
    let long = "\"".repeat(100_000);
    let addresses: Vec<String> = (0..1000)
        .map(|n| format!("2001:db8:1111:2222:3333:4444:5555:{n:x}"))
        .collect();
    let interfaces: Vec<_> = (0..1000)
        .map(|_| json!({"interfaceName": long, "mac": "aa:".repeat(19), "ipAddresses": addresses}))
        .collect();
    let os = json!({"id": long, "name": long, "prettyName": long, "version": long, "versionId": long,
        "kernelRelease": long, "kernelVersion": long, "machine": long});
    let worst = report::bounded(GuestState {
        agent_connected: true,
        reason: long.clone(),
        message: long.clone(),
        domain_type: long.clone(),
        machine_type: long.clone(),
        guest_info: serde_json::to_vec(&json!({"os": os, "fsFreezeStatus": long, "interfaces": interfaces})).unwrap(),
        volumes: serde_json::to_vec(&json!([{"name": "root", "target": long}])).unwrap(),
        ..guest(Lifecycle::Paused, "")
    });
    let nics = [nic()];
    let trouble = report::text(long, report::MAX_MESSAGE);
    let view = View {
        guest: Some(&worst),
        nics: Some(&nics),
        trouble: Some(&trouble),
        ..View::default()
    };
    let change = change(&vmi("Running"), &view, now()).unwrap();
    let size = serde_json::to_vec(&change.status).unwrap().len();
    assert!(size > 8 << 10 && size < 48 << 10, "{size}");
}
