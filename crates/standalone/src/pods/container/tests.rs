use super::*;
use crate::paths::DataDir;
use crate::pods::network::NetworkConfig;
use serde_json::json;

fn config() -> RunnerConfig {
    RunnerConfig {
        node: "node01".into(),
        host_ip: "10.0.0.1".parse().unwrap(),
        image: "ferrovirt/virt-launcher".into(),
        executable: "/opt/bin/ferrovirt".into(),
        launcher: "/opt/bin/virt-launcher".into(),
        data: DataDir::new("/data"),
        network: NetworkConfig {
            bridge: "b".into(),
            subnet: "10.88.0.0/16".into(),
            directory: "/data/cni".into(),
            netns: "/run/netns".into(),
        },
        kvm: tokio::sync::watch::channel(Some(false)).1,
    }
}

fn pod(change: impl FnOnce(&mut serde_json::Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "1"}},
        "spec": {
            "subdomain": "sub",
            "securityContext": {"runAsUser": 107, "runAsGroup": 107, "fsGroup": 107, "runAsNonRoot": true},
            "initContainers": [{
                "name": "guest-console-log", "image": "ferrovirt/virt-launcher:0.1.0", "restartPolicy": "Always",
                "command": ["/usr/bin/virt-tail", "--logfile", "/x"],
            }],
            "containers": [{
                "name": "compute", "image": "ferrovirt/virt-launcher:0.1.0",
                "command": ["/usr/bin/virt-launcher"], "args": ["--name", "$(POD_NAME)", "$$(X)", "$(UNKNOWN)"],
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
                "volumeMounts": [{"name": "private", "mountPath": "/var/run/kubevirt-private"}],
            }],
            "volumes": [{"name": "private", "emptyDir": {}}],
        },
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn describe_compute(pod: &Pod) -> Result<ContainerSpec, Refusal> {
    let volumes = Volumes {
        sources: [(
            "private".to_owned(),
            super::super::volumes::Source {
                path: "/data/private".into(),
                read_only: false,
            },
        )]
        .into(),
        ..Volumes::default()
    };
    let config = config();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let around = Surroundings {
        config: &config,
        volumes: &volumes,
        ips: &["10.88.0.2".parse().unwrap()],
        cgroups: Vec::new(),
        log: "/log".into(),
        resolv_conf: "nameserver 10.0.0.53\n".into(),
    };
    describe(pod, container, around)
}

#[test]
fn a_launcher_pod_is_described_completely() {
    let spec = describe_compute(&pod(|_| {})).unwrap();
    assert_eq!(
        spec.command,
        ["/usr/bin/virt-launcher", "--name", "p", "$(X)", "$(UNKNOWN)"]
    );
    assert_eq!((spec.user.uid, spec.user.gid), (107, 107));
    assert_eq!(spec.user.groups, [107]);
    assert_eq!(spec.user.capabilities, ["CAP_NET_BIND_SERVICE"]);
    assert_eq!(spec.netns, Path::new("/run/netns/u"));
    assert!(spec.etc["hosts"].contains("10.88.0.2\tp.sub p\n"));
    assert_eq!(spec.etc["resolv.conf"], "nameserver 10.0.0.53\n");
    assert!(spec.etc["passwd"].contains("qemu:x:107:107:"));
    assert!(
        spec.mounts
            .iter()
            .any(|mount| mount.target == Path::new("/var/run/kubevirt-private") && !mount.read_only)
    );
}

#[test]
fn a_device_that_not_all_have_is_asked_for() {
    for (limits, expected) in [
        (json!({}), false),
        (json!({"devices.kubevirt.io/tun": "1"}), false),
        (json!({"devices.kubevirt.io/vhost-vsock": "1"}), true),
    ] {
        let pod = pod(|p| p["spec"]["containers"][0]["resources"] = json!({"limits": limits}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(wants(container, VHOST_VSOCK_RESOURCE), expected, "{limits}");
    }
}

#[test]
fn sidecars_come_before_the_main_containers() {
    let pod = pod(|_| {});
    let order: Vec<_> = in_start_order(pod.spec.as_ref().unwrap())
        .map(|(role, c)| (role, c.name.as_str()))
        .collect();
    assert_eq!(order, [(Role::Sidecar, "guest-console-log"), (Role::Main, "compute")]);
}

#[test]
fn only_our_own_pods_are_run() {
    assert_eq!(refuse(&pod(|_| {}), &config()), None);
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 7] = [
        (
            |p| p["spec"]["containers"][0]["image"] = "nginx".into(),
            "wants image \"nginx\"",
        ),
        (
            |p| p["spec"]["containers"][0]["image"] = "ferrovirt/virt-launcher-evil:1".into(),
            "wants image",
        ),
        (|p| p["spec"]["hostNetwork"] = true.into(), "spec.hostNetwork"),
        (
            |p| p["spec"]["containers"][0]["securityContext"]["privileged"] = true.into(),
            "privileged",
        ),
        (
            |p| p["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = "x".into(),
            "subPath",
        ),
        (
            |p| p["spec"]["containers"][0]["volumeDevices"] = json!([{"name": "d", "devicePath": "/dev/d"}]),
            "volumeDevices",
        ),
        (
            |p| p["spec"]["volumes"][0] = json!({"name": "d", "nfs": {"server": "s", "path": "/"}}),
            "volume \"d\"",
        ),
    ];
    for (change, expected) in cases {
        let refusal = refuse(&pod(change), &config()).unwrap();
        assert!(refusal.message.contains(expected), "{refusal}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 5] = [
        (|p| p["spec"]["securityContext"]["runAsUser"] = 0.into(), "runAsNonRoot"),
        (|p| p["spec"]["containers"][0]["command"] = json!([]), ""),
        (
            |p| p["spec"]["containers"][0]["volumeMounts"][0]["name"] = "other".into(),
            "mounts volume \"other\"",
        ),
        (
            |p| p["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = "/a/../..".into(),
            "mountPath",
        ),
        (
            |p| p["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["FLY"]),
            "unknown capability CAP_FLY",
        ),
    ];
    for (change, expected) in cases {
        match describe_compute(&pod(change)) {
            Ok(spec) => assert!(expected.is_empty(), "{expected}: {:?}", spec.command),
            Err(refusal) => assert!(!expected.is_empty() && refusal.message.contains(expected), "{refusal}"),
        }
    }
}

#[test]
fn dns_none_takes_only_what_the_pod_says() {
    let pod = pod(|p| {
        p["spec"]["dnsPolicy"] = "None".into();
        p["spec"]["dnsConfig"] =
            json!({"nameservers": ["1.2.3.4"], "searches": ["a.b", "c"], "options": [{"name": "ndots", "value": "2"}]});
    });
    let spec = describe_compute(&pod).unwrap();
    assert_eq!(
        spec.etc["resolv.conf"],
        "nameserver 1.2.3.4\nsearch a.b c\noptions ndots:2\n"
    );
}
