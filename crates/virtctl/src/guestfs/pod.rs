//! The pod with libguestfs' tools. Pure.

use serde_json::{Map, Value, json};

use crate::cli::Guestfs;

/// The container with the shell.
pub(super) const CONTAINER: &str = "libguestfs";
/// What nodes with virtualization have.
pub(super) const KVM: &str = "devices.kubevirt.io/kvm";
/// Who owns the disks of machines.
const DISK_USER: i64 = 107;

/// Who the tools run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    user: i64,
    group: Option<i64>,
    fs_group: Option<i64>,
}

impl Identity {
    /// # Errors
    /// The flags do not fit together.
    pub(super) fn of(arguments: &Guestfs) -> Result<Self, &'static str> {
        let Guestfs {
            root,
            uid,
            gid,
            fs_group,
            ..
        } = *arguments;
        match (root, uid, gid, fs_group) {
            (true, None, None, None) => Ok(Self {
                user: 0,
                group: None,
                fs_group: None,
            }),
            (true, ..) => Err("--root cannot be used with --uid, --gid or --fsGroup"),
            (false, None, Some(_), _) => Err("--gid needs --uid"),
            (false, Some(0), ..) => Err("user 0 is root: use --root"),
            (false, Some(user), group, fs_group) => Ok(Self { user, group, fs_group }),
            (false, None, None, fs_group) => Ok(Self {
                user: DISK_USER,
                group: Some(DISK_USER),
                fs_group: fs_group.or(Some(DISK_USER)),
            }),
        }
    }
}

/// The image, of what the server knows of the installation.
pub(super) fn image(answer: &Value) -> Option<String> {
    let field = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    let own = field("gsImage");
    if !own.is_empty() {
        return Some(own.to_owned());
    }
    let (registry, prefix, digest, tag) = (field("registry"), field("imagePrefix"), field("digest"), field("tag"));
    let version = match (digest, tag) {
        ("", "") => return None,
        ("", tag) => format!(":{tag}"),
        (digest, _) => format!("@{digest}"),
    };
    let registry = match registry {
        "" => String::new(),
        registry => format!("{registry}/"),
    };
    Some(format!("{registry}{prefix}libguestfs-tools{version}"))
}

/// Name of a claim's pod: two of them would be in each other's way.
pub(super) fn name(claim: &str) -> String {
    format!("libguestfs-tools-{claim}")
}

/// The pod; `vm` is the machine of `--vm`.
pub(super) fn render(arguments: &Guestfs, image: &str, identity: Identity, block: bool, vm: Option<&Value>) -> Value {
    let mut metadata = json!({"name": name(&arguments.claim)});
    let mut spec = json!({
        "containers": [container(arguments, image, block)],
        "restartPolicy": "Never",
        "securityContext": security(identity),
        "volumes": [
            {"name": "claim", "persistentVolumeClaim": {"claimName": arguments.claim}},
            {"name": "guestfs", "emptyDir": {}},
            {"name": "home", "emptyDir": {}},
        ],
    });
    let template = vm.and_then(|vm| vm.pointer("/spec/template")).unwrap_or(&Value::Null);
    for field in ["affinity", "nodeSelector", "tolerations"] {
        if let Some(value) = template["spec"].get(field).filter(|value| !value.is_null()) {
            spec[field] = value.clone();
        }
    }
    if let Some(labels) = template["metadata"].get("labels").filter(|labels| !labels.is_null()) {
        metadata["labels"] = labels.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

fn security(identity: Identity) -> Value {
    let mut context = json!({
        "runAsNonRoot": identity.user != 0,
        "runAsUser": identity.user,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    for (field, value) in [("runAsGroup", identity.group), ("fsGroup", identity.fs_group)] {
        if let Some(value) = value {
            context[field] = value.into();
        }
    }
    context
}

fn container(arguments: &Guestfs, image: &str, block: bool) -> Value {
    let mut env = vec![
        json!({"name": "LIBGUESTFS_BACKEND", "value": "direct"}),
        json!({"name": "LIBGUESTFS_PATH", "value": "/usr/local/lib/guestfs/appliance"}),
        json!({"name": "LIBGUESTFS_TMPDIR", "value": "/tmp/guestfs"}),
        json!({"name": "HOME", "value": "/home/guestfs"}),
    ];
    let mut limits = Map::new();
    if arguments.kvm {
        limits.insert(KVM.to_owned(), "1".into());
    } else {
        env.push(json!({"name": "LIBGUESTFS_BACKEND_SETTINGS", "value": "force_tcg"}));
    }
    let mut mounts = vec![
        json!({"name": "guestfs", "mountPath": "/tmp/guestfs"}),
        json!({"name": "home", "mountPath": "/home/guestfs"}),
    ];
    let mut container = json!({
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": format!("{:?}", arguments.pull_policy),
        "command": ["/entrypoint.sh"],
        "env": env,
        "stdin": true,
        "tty": true,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
        },
    });
    if block {
        container["volumeDevices"] = json!([{"name": "claim", "devicePath": "/dev/vda"}]);
    } else {
        mounts.insert(0, json!({"name": "claim", "mountPath": "/disk"}));
        container["workingDir"] = "/disk".into();
    }
    container["volumeMounts"] = mounts.into();
    if !limits.is_empty() {
        container["resources"] = json!({"limits": limits});
    }
    container
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::cli::{Cli, Command, command};

    fn parsed(line: &str) -> Guestfs {
        let words = ["virtctl", "guestfs"].into_iter().chain(line.split_whitespace());
        let found = command("virtctl").try_get_matches_from(words).unwrap();
        let Command::Guestfs(arguments) = Cli::from_arg_matches(&found).unwrap().command else {
            panic!("{line} is no guestfs");
        };
        arguments
    }

    fn rendered(line: &str, block: bool, vm: Option<&Value>) -> Value {
        let arguments = parsed(line);
        let pod = render(&arguments, "image", Identity::of(&arguments).unwrap(), block, vm);
        // Nothing of it is misspelt.
        let read: Pod = serde_json::from_value(pod.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), pod);
        pod
    }

    #[test]
    fn the_pod() {
        let expected = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "libguestfs-tools-disk"},
            "spec": {
                "restartPolicy": "Never",
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 107, "runAsGroup": 107, "fsGroup": 107,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "volumes": [
                    {"name": "claim", "persistentVolumeClaim": {"claimName": "disk"}},
                    {"name": "guestfs", "emptyDir": {}},
                    {"name": "home", "emptyDir": {}},
                ],
                "containers": [{
                    "name": "libguestfs",
                    "image": "image",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/entrypoint.sh"],
                    "stdin": true,
                    "tty": true,
                    "workingDir": "/disk",
                    "env": [
                        {"name": "LIBGUESTFS_BACKEND", "value": "direct"},
                        {"name": "LIBGUESTFS_PATH", "value": "/usr/local/lib/guestfs/appliance"},
                        {"name": "LIBGUESTFS_TMPDIR", "value": "/tmp/guestfs"},
                        {"name": "HOME", "value": "/home/guestfs"},
                    ],
                    "resources": {"limits": {"devices.kubevirt.io/kvm": "1"}},
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [
                        {"name": "claim", "mountPath": "/disk"},
                        {"name": "guestfs", "mountPath": "/tmp/guestfs"},
                        {"name": "home", "mountPath": "/home/guestfs"},
                    ],
                }],
            },
        });
        assert_eq!(rendered("disk", false, None), expected);
    }

    #[test]
    fn what_flags_do() {
        let seccomp = json!({"type": "RuntimeDefault"});
        let user = "/spec/securityContext";
        for (line, block, pointer, expected) in [
            (
                "disk",
                true,
                "/spec/containers/0/volumeDevices",
                json!([{"name": "claim", "devicePath": "/dev/vda"}]),
            ),
            ("disk", true, "/spec/containers/0/volumeMounts/0/name", json!("guestfs")),
            (
                "disk --pull-policy=always",
                false,
                "/spec/containers/0/imagePullPolicy",
                json!("Always"),
            ),
            (
                "disk --kvm=false",
                false,
                "/spec/containers/0/env/4",
                json!({"name": "LIBGUESTFS_BACKEND_SETTINGS", "value": "force_tcg"}),
            ),
            (
                "disk --root",
                false,
                user,
                json!({"runAsNonRoot": false, "runAsUser": 0, "seccompProfile": seccomp}),
            ),
            (
                "disk --uid=5",
                false,
                user,
                json!({"runAsNonRoot": true, "runAsUser": 5, "seccompProfile": seccomp}),
            ),
            (
                "disk --uid=5 --gid=6 --fsGroup=7",
                false,
                user,
                json!({"runAsNonRoot": true, "runAsUser": 5, "runAsGroup": 6, "fsGroup": 7, "seccompProfile": seccomp}),
            ),
            (
                "disk --fsGroup=7",
                false,
                user,
                json!({"runAsNonRoot": true, "runAsUser": 107, "runAsGroup": 107, "fsGroup": 7,
                    "seccompProfile": seccomp}),
            ),
        ] {
            let found = rendered(line, block, None);
            assert_eq!(found.pointer(pointer), Some(&expected), "{line}: {found}");
        }
        assert!(
            rendered("disk --kvm=false", false, None)
                .pointer("/spec/containers/0/resources")
                .is_none()
        );
        assert!(
            rendered("disk", true, None)
                .pointer("/spec/containers/0/workingDir")
                .is_none()
        );
        for line in [
            "disk --root --uid=1",
            "disk --root --fsGroup=1",
            "disk --gid=1",
            "disk --uid=0",
        ] {
            assert!(Identity::of(&parsed(line)).is_err(), "{line}");
        }
    }

    #[test]
    fn where_the_machine_may_run() {
        let tolerations = json!([{"key": "a", "operator": "Exists"}]);
        let vm = json!({"spec": {"template": {
            "metadata": {"labels": {"app": "a"}},
            "spec": {"tolerations": tolerations, "nodeSelector": {"disk": "ssd"}, "domain": {}},
        }}});
        let pod = rendered("disk --vm=a", false, Some(&vm));
        assert_eq!(pod["metadata"]["labels"], json!({"app": "a"}));
        assert_eq!(pod["spec"]["tolerations"], tolerations);
        assert_eq!(pod["spec"]["nodeSelector"], json!({"disk": "ssd"}));
        assert!(pod["spec"].get("affinity").is_none());
    }

    #[test]
    fn images() {
        for (answer, expected) in [
            (
                json!({"registry": "r/x", "tag": "v1", "digest": "", "imagePrefix": "", "gsImage": ""}),
                Some("r/x/libguestfs-tools:v1"),
            ),
            (
                json!({"registry": "r", "tag": "v1", "digest": "sha256:a", "imagePrefix": "p-"}),
                Some("r/p-libguestfs-tools@sha256:a"),
            ),
            (json!({"registry": "r", "tag": "v1", "gsImage": "own:1"}), Some("own:1")),
            (json!({"tag": "v1"}), Some("libguestfs-tools:v1")),
            (json!({}), None),
        ] {
            assert_eq!(image(&answer).as_deref(), expected, "{answer}");
        }
    }
}
