//! Whatever a spec says, reading it does not panic; defaults settle at once; causes name fields; and what is accepted
//! has a domain.

#![allow(clippy::unwrap_used, reason = "a test")]

mod facts;

use std::process::Command;

use facts::facts;
use ferrovirt_api::v1::VirtualMachineInstance;
use ferrovirt_core::machine::Machine;
use ferrovirt_core::{ClusterConfig, default_vmi, pod_resources, validate_vmi_create};
use ferrovirt_domain::domain_xml;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use uuid::Uuid;

/// A spec that uses most of what is built.
fn seed() -> Value {
    serde_yaml_ng::from_str(
        "
        architecture: amd64
        hostname: host
        subdomain: sub
        startStrategy: Paused
        terminationGracePeriodSeconds: 5
        dnsPolicy: None
        dnsConfig: {nameservers: [1.1.1.1], searches: [a.b], options: [{name: ndots, value: '2'}]}
        readinessProbe: {tcpSocket: {port: 22}, periodSeconds: 3}
        domain:
          chassis: {asset: A}
          clock: {utc: {offsetSeconds: 3}, timer: {hpet: {present: false}, rtc: {tickPolicy: catchup}, hyperv: {}}}
          cpu: {sockets: 2, cores: 2, threads: 1, maxSockets: 4, model: EPYC, features: [{name: vmx, policy: disable}]}
          features:
            acpi: {}
            apic: {endOfInterrupt: true}
            smm: {}
            kvm: {hidden: true}
            hyperv:
              relaxed: {}
              spinlocks: {spinlocks: 8191}
              synictimer: {direct: {}}
              tlbflush: {direct: {}, extended: {enabled: false}}
              vendorid: {vendorid: KVM Hv}
          ioThreadsPolicy: supplementalPool
          ioThreads: {supplementalPoolThreadCount: 3}
          firmware: {serial: s, bootloader: {efi: {}}}
          machine: {type: q35}
          memory: {guest: 1Gi, maxGuest: 2Gi, hugepages: {pageSize: 2Mi}}
          resources: {requests: {cpu: 100m, memory: 1Gi}, limits: {memory: 2Gi}}
          devices:
            rng: {}
            blockMultiQueue: true
            networkInterfaceMultiqueue: true
            clientPassthrough: {}
            sound: {name: card, model: ac97}
            inputs: [{name: tablet, type: tablet, bus: usb}]
            video: {type: vga}
            watchdog: {name: dog, i6300esb: {action: reset}}
            panicDevices: [{model: isa}]
            disks:
            - {name: root, bootOrder: 1, serial: S, cache: none, io: native, disk: {bus: virtio, pciAddress: '0000:01:00.0'}}
            - {name: scratch, blockSize: {custom: {logical: 512, physical: 4096, discardGranularity: 4096}}, disk: {bus: scsi}}
            - {name: host, shareable: true, dedicatedIOThread: true, disk: {bus: virtio}}
            - {name: usb, blockSize: {matchVolume: {}}, disk: {bus: usb}}
            - {name: seed, cdrom: {bus: sata, tray: closed}}
            interfaces: [{name: default, masquerade: {}, bootOrder: 2, macAddress: '02:00:00:00:00:01', acpiIndex: 3, ports: [{name: ssh, port: 22}]}]
        networks: [{name: default, pod: {vmNetworkCIDR: 10.1.0.0/24}}]
        volumes:
        - {name: root, containerDisk: {image: 'r/i:1', path: /disk/x.img}}
        - {name: scratch, emptyDisk: {capacity: 1Gi}}
        - {name: host, hostDisk: {path: /data/x.img, type: DiskOrCreate, capacity: 1Gi}}
        - {name: usb, emptyDisk: {capacity: 1Gi}}
        - {name: seed, cloudInitNoCloud: {userData: x, networkDataBase64: eA==}}
        ",
    )
    .unwrap()
}

/// Values that programs stumble over.
fn pool() -> Vec<Value> {
    let strings = [
        "",
        " ",
        "x",
        "virtio",
        "0",
        "-1",
        "Ei",
        "16Ei",
        "1e400",
        "-9223372036854775808",
        "1.5Gi",
        "100m",
        "NaN",
        "../..",
        "/",
        "a:b:c",
        "0000:00:00.0",
        "\u{0}",
        "]]>",
        "<a b='\"&",
        "ä€𝄞",
        "\u{ffff}",
        "s390x",
        "arm64",
        "ff:ff:ff:ff:ff:ff",
        "10.0.0.0/33",
    ];
    let numbers = [
        0,
        1,
        -1,
        2,
        255,
        256,
        65535,
        65536,
        i64::from(i32::MAX),
        i64::from(u32::MAX),
        i64::MAX,
        i64::MIN,
    ];
    let mut pool: Vec<Value> = strings.iter().map(|s| json!(s)).collect();
    pool.extend(numbers.iter().map(|n| json!(n)));
    pool.extend([
        json!(true),
        json!(false),
        json!({}),
        json!([]),
        json!(["x"]),
        Value::Null,
    ]);
    pool.push(json!("x".repeat(300)));
    pool
}

/// Pointers to everything in `value`.
fn pointers(value: &Value, prefix: &str, out: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| (k.replace('~', "~0").replace('/', "~1"), v))
            .collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let pointer = format!("{prefix}/{key}");
        pointers(child, &pointer, out);
        out.push(pointer);
    }
}

#[derive(Clone, Debug)]
enum Mutation {
    /// Another value from the pool.
    Replace(usize, usize),
    /// Away with it.
    Remove(usize),
    /// What stands elsewhere.
    Copy(usize, usize),
    /// A list's first element once more.
    Double(usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let any = any::<usize>;
    prop_oneof![
        (any(), any()).prop_map(|(at, with)| Mutation::Replace(at, with)),
        any().prop_map(Mutation::Remove),
        (any(), any()).prop_map(|(at, from)| Mutation::Copy(at, from)),
        any().prop_map(Mutation::Double),
    ]
}

fn mutate(spec: &mut Value, mutation: &Mutation) {
    let mut all = Vec::new();
    pointers(spec, "", &mut all);
    if all.is_empty() {
        return;
    }
    let pool = pool();
    let at = |index: usize| all[index % all.len()].clone();
    match mutation {
        Mutation::Replace(index, with) => *spec.pointer_mut(&at(*index)).unwrap() = pool[with % pool.len()].clone(),
        Mutation::Copy(index, from) => {
            let value = spec.pointer(&at(*from)).unwrap().clone();
            *spec.pointer_mut(&at(*index)).unwrap() = value;
        }
        Mutation::Remove(index) => {
            let pointer = at(*index);
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match spec.pointer_mut(parent).unwrap() {
                Value::Object(map) => _ = map.remove(key),
                Value::Array(list) => _ = list.remove(key.parse().unwrap()),
                _ => {}
            }
        }
        Mutation::Double(index) => {
            if let Value::Array(list) = spec.pointer_mut(&at(*index)).unwrap()
                && let Some(first) = list.first().cloned()
            {
                list.push(first);
            }
        }
    }
}

fn read(spec: Value) -> Option<VirtualMachineInstance> {
    let vmi = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"}, "spec": spec});
    serde_json::from_value(vmi).ok()
}

#[test]
fn the_seed_is_accepted() {
    let vmi = read(seed()).unwrap();
    Machine::parse(&vmi, &ClusterConfig::standalone()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_spec_surprises(mutations in prop::collection::vec(mutation(), 1..6), kvm: bool, narrow: bool) {
        let mut spec = seed();
        for mutation in &mutations {
            mutate(&mut spec, mutation);
        }
        let Some(mut vmi) = read(spec) else { return Ok(()) };
        let config = if narrow { ClusterConfig::default() } else { ClusterConfig::standalone() };
        let undefaulted = Machine::parse(&vmi, &config);

        default_vmi(&mut vmi, &config, Uuid::nil());
        let once = vmi.clone();
        default_vmi(&mut vmi, &config, Uuid::max());
        prop_assert_eq!(&once, &vmi);

        let parsed = Machine::parse(&vmi, &config);
        prop_assert_eq!(undefaulted.is_ok(), parsed.is_ok());
        match parsed {
            Err(causes) => {
                prop_assert!(!causes.is_empty());
                for cause in &causes {
                    prop_assert!(cause.field.starts_with("spec.") && !cause.message.is_empty(), "{}", cause);
                }
                prop_assert!(!validate_vmi_create(&vmi, &config, true).is_empty());
            }
            Ok(machine) => {
                let resources = pod_resources(&machine, &vmi.spec, &config);
                prop_assert!(resources.requests["memory"].bytes().unwrap() > 0);
                let xml = domain_xml(&machine, &facts(&machine, kvm)).unwrap();
                let document = quick_xml::Reader::from_str(&xml).read_event();
                prop_assert!(document.is_ok());
                prop_assert!(xml.chars().all(|c| c == '\n' || !c.is_control()), "{}", xml);
            }
        }
    }
}

/// One run of the schema's reader for all of them: it takes longer to read the schema than a domain.
#[test]
fn libvirts_schema_accepts_what_we_accept() {
    let mut runner = TestRunner::deterministic();
    let strategy = prop::collection::vec(mutation(), 1..3);
    let directory = tempfile::tempdir().unwrap();
    let mut xmllint = Command::new("xmllint");
    xmllint.args(["--noout", "--relaxng", "/usr/share/libvirt/schemas/domain.rng"]);
    let mut accepted = 0;
    for i in 0..1000 {
        let mut spec = seed();
        for mutation in strategy.new_tree(&mut runner).unwrap().current() {
            mutate(&mut spec, &mutation);
        }
        let Some(vmi) = read(spec) else { continue };
        let Ok(machine) = Machine::parse(&vmi, &ClusterConfig::standalone()) else {
            continue;
        };
        let file = directory.path().join(format!("{i}.xml"));
        std::fs::write(&file, domain_xml(&machine, &facts(&machine, true)).unwrap()).unwrap();
        xmllint.arg(file);
        accepted += 1;
    }
    assert!(accepted > 200, "{accepted}");
    let output = xmllint
        .output()
        .expect("xmllint is installed (Debian package libxml2-utils)");
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = errors.lines().filter(|line| !line.ends_with(" validates")).collect();
    assert!(output.status.success() && errors.is_empty(), "{}", errors.join("\n"));
}
