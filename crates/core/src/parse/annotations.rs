//! What a VMI asks for by annotations.

use std::path::{Component, Path};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::cause::{Causes, FieldPath};
use crate::config::{ClusterConfig, GATE_IGNITION, GATE_SIDECAR};
use crate::machine::{Architecture, HookClaim, HookScript, HookSidecar};

use super::is_dns_subdomain;
use super::volumes::PULL_POLICIES;

/// Configuration that Ignition finds in the guest's firmware.
const IGNITION: &str = "kubevirt.io/ignitiondata";

/// With an isolated emulator, CPUs in pairs; whatever its value.
const EVEN_CPUS: &str = "alpha.kubevirt.io/EmulatorThreadCompleteToEvenParity";
/// Memory that the guest frees stays its own.
const NO_FREE_PAGE_REPORTING: &str = "kubevirt.io/free-page-reporting-disabled";
/// All PCI devices below 4 GiB, for guests that know no more.
const NO_PCI_HOLE64: &str = "kubevirt.io/disablePCIHole64";
/// Hook sidecars, as JSON.
const SIDECARS: &str = "hooks.kubevirt.io/hookSidecars";
/// Each one delays the start of the guest.
const MAX_SIDECARS: usize = 16;

/// A hook sidecar on the wire.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WireSidecar {
    #[serde(default)]
    image: String,
    #[serde(default)]
    image_pull_policy: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    config_map: Option<WireScript>,
    pvc: Option<WireClaim>,
    #[serde(rename = "downwardAPI")]
    downward_api: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[derive(Default)]
struct WireScript {
    name: String,
    key: String,
    hook_path: String,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[derive(Default)]
struct WireClaim {
    name: String,
    volume_path: String,
    shared_compute_path: String,
}

/// What they ask for.
#[derive(Debug, Default)]
pub(crate) struct Annotations {
    pub(crate) even_cpus: bool,
    pub(crate) ignition: Option<String>,
    pub(crate) no_free_page_reporting: bool,
    pub(crate) no_pci_hole64: bool,
    pub(crate) sidecars: Vec<HookSidecar>,
}

/// Reads the annotations of `metadata`, which is at `path`; an empty one asks for nothing.
pub(crate) fn annotations(
    metadata: &ObjectMeta,
    path: &FieldPath,
    architecture: Architecture,
    config: &ClusterConfig,
    causes: &mut Causes,
) -> Annotations {
    let path = path.child("annotations");
    let asked = |name: &str| {
        let value = metadata.annotations.as_ref()?.get(name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    };
    let ignition = asked(IGNITION).map(|data| {
        let field = path.key(IGNITION);
        gate(GATE_IGNITION, &field, config, causes);
        if architecture == Architecture::S390x {
            causes.not_supported(&field, "s390x has no firmware configuration device to put it in");
        }
        data.to_owned()
    });
    let sidecars = asked(SIDECARS).map(|list| {
        let field = path.key(SIDECARS);
        gate(GATE_SIDECAR, &field, config, causes);
        if config.gate(GATE_SIDECAR) && !config.hook_sidecars {
            causes.not_supported(&field, "this machine runs no containers of other images; clusters do");
        }
        sidecars(list, &field, causes)
    });
    let all = metadata.annotations.as_ref();
    Annotations {
        even_cpus: all.is_some_and(|all| all.contains_key(EVEN_CPUS)),
        ignition,
        no_free_page_reporting: asked(NO_FREE_PAGE_REPORTING) == Some("true"),
        no_pci_hole64: asked(NO_PCI_HOLE64).is_some_and(|value| value.eq_ignore_ascii_case("true")),
        sidecars: sidecars.unwrap_or_default(),
    }
}

fn sidecars(list: &str, path: &FieldPath, causes: &mut Causes) -> Vec<HookSidecar> {
    let list: Vec<WireSidecar> = match serde_json::from_str(list) {
        Ok(list) => list,
        Err(error) => {
            causes.invalid(path, format!("is not a list of hook sidecars: {error}"));
            return Vec::new();
        }
    };
    if list.len() > MAX_SIDECARS {
        causes.invalid(
            path,
            format!("{} hook sidecars are more than {MAX_SIDECARS}", list.len()),
        );
    }
    let sidecars = list.into_iter().enumerate();
    sidecars
        .map(|(i, wire)| sidecar(wire, &path.index(i), causes))
        .collect()
}

fn sidecar(wire: WireSidecar, path: &FieldPath, causes: &mut Causes) -> HookSidecar {
    let WireSidecar {
        image,
        image_pull_policy,
        command,
        args,
        config_map,
        pvc,
        downward_api,
    } = wire;
    if image.contains(char::is_whitespace) || image.contains(char::is_control) {
        causes.invalid(&path.child("image"), "an image reference has no white space");
    }
    if !image_pull_policy.is_empty() {
        causes.one_of(&path.child("imagePullPolicy"), &image_pull_policy, &PULL_POLICIES);
    }
    causes.none_of(path, &[("downwardAPI", downward_api.is_some())]);
    let script = config_map.map(|WireScript { name, key, hook_path }| {
        let path = path.child("configMap");
        object(&name, &path.child("name"), causes);
        if key.is_empty() || key.contains('/') {
            causes.invalid(&path.child("key"), format!("\"{key}\" is no key of a ConfigMap"));
        }
        absolute(&hook_path, &path.child("hookPath"), causes);
        HookScript {
            config_map: name,
            key,
            path: hook_path,
        }
    });
    let claim = pvc.map(|wire| {
        let path = path.child("pvc");
        object(&wire.name, &path.child("name"), causes);
        absolute(&wire.volume_path, &path.child("volumePath"), causes);
        let shared_path = Some(wire.shared_compute_path).filter(|path| !path.is_empty());
        if let Some(shared) = &shared_path {
            absolute(shared, &path.child("sharedComputePath"), causes);
        }
        HookClaim {
            name: wire.name,
            path: wire.volume_path,
            shared_path,
        }
    });
    HookSidecar {
        image: Some(image).filter(|image| !image.is_empty()),
        pull_policy: Some(image_pull_policy).filter(|policy| !policy.is_empty()),
        command,
        args,
        script,
        device_info: false,
        claim,
    }
}

fn object(name: &str, field: &FieldPath, causes: &mut Causes) {
    if name.is_empty() {
        causes.required(field, "a name is needed");
    } else if !is_dns_subdomain(name) {
        causes.invalid(field, format!("\"{name}\" is not the name of an object"));
    }
}

fn absolute(path: &str, field: &FieldPath, causes: &mut Causes) {
    let mut parts = Path::new(path).components();
    let rooted = parts.next() == Some(Component::RootDir);
    let mut parts = parts.peekable();
    if !rooted
        || parts.peek().is_none()
        || !parts.all(|part| matches!(part, Component::Normal(_)))
        || path.contains(':')
    {
        causes.invalid(field, format!("\"{path}\" is not an absolute path without .. and :"));
    }
}

fn gate(name: &str, field: &FieldPath, config: &ClusterConfig, causes: &mut Causes) {
    if !config.gate(name) {
        causes.not_supported(field, format!("feature gate {name} is not enabled"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::Cause;

    fn read(name: &str, value: &str, architecture: Architecture, config: &ClusterConfig) -> (Annotations, Vec<Cause>) {
        let metadata = ObjectMeta {
            annotations: Some([(name.to_owned(), value.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let mut causes = Causes::default();
        let path = FieldPath::root("metadata");
        let found = annotations(&metadata, &path, architecture, config, &mut causes);
        (found, causes.into_vec())
    }

    #[test]
    fn sidecars_are_read() {
        let list = r#"[{"args": ["--version", "v1alpha2"], "image": "r/hook:1", "imagePullPolicy": "Always"},
            {"image": "r/shim", "command": ["/shim"], "configMap": {"name": "m", "key": "k.sh", "hookPath": "/usr/bin/onDefineDomain"},
             "pvc": {"name": "c", "volumePath": "/data", "sharedComputePath": "/shared"}},
            {"configMap": {"name": "m", "key": "k.sh", "hookPath": "/usr/bin/preCloudInitIso"}}]"#;
        let (found, causes) = read(SIDECARS, list, Architecture::Amd64, &ClusterConfig::permissive());
        assert!(causes.is_empty(), "{causes:?}");
        let [first, second, third] = found.sidecars.as_slice() else {
            panic!("{:?}", found.sidecars)
        };
        assert_eq!(
            (first.image.as_deref(), third.image.as_deref()),
            (Some("r/hook:1"), None)
        );
        assert_eq!(first.args, ["--version", "v1alpha2"]);
        assert_eq!(first.pull_policy.as_deref(), Some("Always"));
        assert_eq!(second.command, ["/shim"]);
        assert_eq!(second.script.as_ref().unwrap().path, "/usr/bin/onDefineDomain");
        assert_eq!(second.claim.as_ref().unwrap().shared_path.as_deref(), Some("/shared"));
    }

    #[test]
    fn wrong_sidecars_are_refused_with_their_fields() {
        let many = format!("[{}]", [r#"{"image": "x"}"#; 17].join(","));
        for (list, field, part) in [
            ("x", "", "is not a list"),
            (r#"{"image": "x"}"#, "", "is not a list"),
            (r#"[{"image": "x", "colour": 1}]"#, "", "unknown field `colour`"),
            (many.as_str(), "", "17 hook sidecars"),
            (r#"[{"image": " "}]"#, "[0].image", "white space"),
            (r#"[{"image": "x"}, {"image": "a b"}]"#, "[1].image", "white space"),
            (
                r#"[{"image": "x", "imagePullPolicy": "Often"}]"#,
                "[0].imagePullPolicy",
                "Often",
            ),
            (
                r#"[{"image": "x", "downwardAPI": "device-info"}]"#,
                "[0].downwardAPI",
                "not supported yet",
            ),
            (
                r#"[{"image": "x", "configMap": {"key": "k", "hookPath": "/p"}}]"#,
                "[0].configMap.name",
                "name is needed",
            ),
            (
                r#"[{"image": "x", "configMap": {"name": "N", "key": "k", "hookPath": "/p"}}]"#,
                "[0].configMap.name",
                "not the name",
            ),
            (
                r#"[{"image": "x", "configMap": {"name": "m", "key": "../k", "hookPath": "/p"}}]"#,
                "[0].configMap.key",
                "no key",
            ),
            (
                r#"[{"image": "x", "configMap": {"name": "m", "key": "k", "hookPath": "p"}}]"#,
                "[0].configMap.hookPath",
                "absolute",
            ),
            (
                r#"[{"image": "x", "pvc": {"volumePath": "/p"}}]"#,
                "[0].pvc.name",
                "name is needed",
            ),
            (
                r#"[{"image": "x", "pvc": {"name": "c", "volumePath": "/"}}]"#,
                "[0].pvc.volumePath",
                "absolute",
            ),
            (
                r#"[{"image": "x", "pvc": {"name": "c", "volumePath": "/p", "sharedComputePath": "/a/../b"}}]"#,
                "[0].pvc.sharedComputePath",
                "absolute",
            ),
        ] {
            let (_, causes) = read(SIDECARS, list, Architecture::Amd64, &ClusterConfig::permissive());
            let [cause] = causes.as_slice() else {
                panic!("{list}: {causes:?}")
            };
            assert_eq!(
                cause.field,
                format!("metadata.annotations[{SIDECARS}]{field}"),
                "{list}"
            );
            assert!(cause.message.contains(part), "{list}: {}", cause.message);
        }
    }

    #[test]
    fn sidecars_need_their_gate_and_a_cluster() {
        let mut one_machine = ClusterConfig::standalone();
        one_machine.feature_gates.insert(GATE_SIDECAR.to_owned());
        for (config, part) in [
            (ClusterConfig::default(), "feature gate Sidecar is not enabled"),
            (one_machine, "runs no containers of other images"),
        ] {
            let (_, causes) = read(SIDECARS, r#"[{"image": "x"}]"#, Architecture::Amd64, &config);
            assert_eq!(causes.len(), 1, "{causes:?}");
            assert!(causes[0].message.contains(part), "{causes:?}");
        }
    }

    #[test]
    fn ignition_needs_its_gate_and_a_machine_that_has_a_place_for_it() {
        let (on, off) = (ClusterConfig::permissive(), ClusterConfig::default());
        for (value, architecture, config, found, cause) in [
            ("{}", Architecture::Amd64, &on, Some("{}"), None),
            ("{}", Architecture::Arm64, &on, Some("{}"), None),
            ("", Architecture::Amd64, &off, None, None),
            (
                "{}",
                Architecture::S390x,
                &on,
                Some("{}"),
                Some("s390x has no firmware"),
            ),
            (
                "{}",
                Architecture::Amd64,
                &off,
                Some("{}"),
                Some("ExperimentalIgnitionSupport"),
            ),
        ] {
            let (asked, causes) = read(IGNITION, value, architecture, config);
            assert_eq!(asked.ignition.as_deref(), found);
            assert_eq!(causes.len(), usize::from(cause.is_some()), "{causes:?}");
            if let Some(part) = cause {
                assert_eq!(causes[0].field, "metadata.annotations[kubevirt.io/ignitiondata]");
                assert!(causes[0].message.contains(part), "{causes:?}");
            }
        }
    }
}
