//! Guests of another architecture than the machine's: QEMU emulates them, where it is installed for that.
//!
//! In a cluster the node selector keeps them away from a node like this one, since another may fit. This machine is all
//! that there is.

use std::path::Path;

use ferrovirt_core::machine::Architecture;
use ferrovirt_core::names;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// Label that tells a node's architecture.
pub(super) const ARCH_LABEL: &str = "kubernetes.io/arch";

/// Whether a pod's guest is of the architecture of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// The pod has no guest, or its guest is of this architecture, or of one that is not emulated.
    Unneeded,
    /// What emulates the guest is installed.
    Works,
    /// Not so; this is in the way, and what to do about it.
    Lacks(String),
}

/// Looks at what is installed on this machine now.
pub(super) fn of(pod: &Pod) -> Emulation {
    decide(pod, Architecture::host(), Path::is_file)
}

fn decide(pod: &Pod, host: Architecture, installed: impl Fn(&Path) -> bool) -> Emulation {
    let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
    let wanted = selector.and_then(|selector| selector.get(ARCH_LABEL));
    let Some(guest) = wanted.and_then(|name| Architecture::from_name(name.as_str())) else {
        return Emulation::Unneeded;
    };
    let launcher = pod.labels().get(names::APP_LABEL).map(String::as_str) == Some(names::VIRT_LAUNCHER);
    let needed = needed(guest);
    if !launcher || guest == host || needed.is_empty() {
        return Emulation::Unneeded;
    }
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(file, _)| !installed(Path::new(file)))
        .map(|&(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Emulation::Works;
    }
    Emulation::Lacks(format!(
        "node(s) cannot emulate {} (apt install {})",
        guest.name(),
        missing.join(" ")
    ))
}

/// Files, and the Debian packages that they come from.
fn needed(guest: Architecture) -> &'static [(&'static str, &'static str)] {
    match guest {
        Architecture::Amd64 => &[
            ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
            ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
        ],
        Architecture::Arm64 => &[
            ("/usr/bin/qemu-system-aarch64", "qemu-system-arm"),
            ("/usr/share/AAVMF/AAVMF_CODE.fd", "qemu-efi-aarch64"),
        ],
        Architecture::S390x => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_named() {
        let lacks = |text: &str| Emulation::Lacks(text.to_owned());
        let qemu = "/usr/bin/qemu-system-aarch64";
        let firmware = "/usr/share/AAVMF/AAVMF_CODE.fd";
        for (app, arch, installed, expected) in [
            ("virt-launcher", "arm64", [qemu, firmware].as_slice(), Emulation::Works),
            (
                "virt-launcher",
                "arm64",
                &[qemu],
                lacks("node(s) cannot emulate arm64 (apt install qemu-efi-aarch64)"),
            ),
            (
                "virt-launcher",
                "arm64",
                &[],
                lacks("node(s) cannot emulate arm64 (apt install qemu-system-arm qemu-efi-aarch64)"),
            ),
            ("virt-launcher", "amd64", &[], Emulation::Unneeded),
            ("virt-launcher", "s390x", &[], Emulation::Unneeded),
            ("virt-launcher", "mips", &[], Emulation::Unneeded),
            ("other", "arm64", &[qemu, firmware], Emulation::Unneeded),
        ] {
            let pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "labels": {"kubevirt.io": app}},
                "spec": {"containers": [], "nodeSelector": {"kubernetes.io/arch": arch}},
            }))
            .unwrap();
            let there = |file: &Path| installed.iter().any(|known| Path::new(known) == file);
            assert_eq!(decide(&pod, Architecture::Amd64, there), expected, "{app} {arch}");
        }
    }
}
