//! The host's processor: its vendor, and the model that libvirt knows it by.

use std::collections::BTreeSet;
use std::path::Path;

use ferrovirt_core::machine::hyperv_name;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Longest description that is looked at.
const MAX_XML: usize = 4 << 20;
/// Intel's; its label and libvirt's name of it.
const TDX: &str = "tdx";

/// How guests' memory can be protected, by what the kernel says below its root of `/sys`. Not all of libvirt's versions know
/// TDX (11.7 is the first), so `capabilities`, libvirt's own description of what guests can have, must tell of it, too.
pub(crate) fn protections(sys: &Path, capabilities: Option<&Path>) -> Vec<&'static str> {
    let on = |file: &str| {
        let said = std::fs::read_to_string(sys.join(file));
        said.is_ok_and(|said| matches!(said.trim(), "Y" | "y" | "1"))
    };
    [
        ("sev", "module/kvm_amd/parameters/sev"),
        ("sev-es", "module/kvm_amd/parameters/sev_es"),
        ("sev-snp", "module/kvm_amd/parameters/sev_snp"),
        (TDX, "module/kvm_intel/parameters/tdx"),
        ("s390-pv", "firmware/uv/prot_virt_host"),
    ]
    .into_iter()
    .filter(|(_, file)| on(file))
    .filter(|(label, _)| *label != TDX || capabilities.and_then(read).is_some_and(|xml| protects(&xml, TDX)))
    .map(|(label, _)| label)
    .collect()
}

/// Whether libvirt's domain capabilities name `kind` among the values of `launchSecurity`.
fn protects(xml: &str, kind: &str) -> bool {
    let mut reader = Reader::from_str(xml);
    let mut inside = false;
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) if tag.name().as_ref() == b"launchSecurity" => inside = true,
            Ok(Event::End(tag)) if tag.name().as_ref() == b"launchSecurity" => return false,
            Ok(Event::Text(text)) if inside && text.decode().is_ok_and(|text| text.trim() == kind) => return true,
            Ok(Event::Eof) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

/// What Windows finds in its hypervisor here, in the API's words, by a file of libvirt's domain capabilities.
pub(crate) fn hyperv(path: &Path) -> BTreeSet<String> {
    read(path).map(|xml| enlightenments(&xml)).unwrap_or_default()
}

/// The values of `hyperv`, which are its features, in the API's words.
fn enlightenments(xml: &str) -> BTreeSet<String> {
    let mut reader = Reader::from_str(xml);
    let (mut inside, mut features, mut found) = (false, false, BTreeSet::new());
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) if tag.name().as_ref() == b"hyperv" => {
                inside = attribute(&tag, "supported").is_some_and(|supported| supported == "yes");
            }
            Ok(Event::Start(tag)) if tag.name().as_ref() == b"enum" => {
                features = inside && attribute(&tag, "name").is_some_and(|name| name == "features");
            }
            Ok(Event::End(tag)) if tag.name().as_ref() == b"enum" => features = false,
            Ok(Event::End(tag)) if tag.name().as_ref() == b"hyperv" => return found,
            Ok(Event::Text(text)) if features => {
                let name = text.decode().map(|text| text.trim().to_owned()).unwrap_or_default();
                found.extend(Some(hyperv_name(&name).to_owned()).filter(|name| !name.is_empty()));
            }
            Ok(Event::Eof) | Err(_) => return BTreeSet::new(),
            Ok(_) => {}
        }
    }
}

/// A file of libvirt's domain capabilities, if it is not too long.
fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok();
    text.filter(|text| text.len() <= MAX_XML)
}

/// Whether real-time threads are never stopped for the others' sake. `limit` is `sched_rt_runtime_us` of the kernel.
pub(crate) fn realtime(limit: &Path) -> bool {
    std::fs::read_to_string(limit).is_ok_and(|limit| limit.trim() == "-1")
}

/// Whether the kubelet's policy gives CPUs to one container alone, by its own state.
pub(crate) fn cpu_manager(state: &Path) -> bool {
    let state = std::fs::read(state).ok();
    let state = state.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    state.is_some_and(|state| state["policyName"] == "static")
}

/// A vendor by the name that node labels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuVendor(pub(crate) &'static str);

impl CpuVendor {
    /// As the kernel tells it.
    pub(crate) fn of_this_host() -> Option<Self> {
        Self::of_cpuinfo(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
    }

    fn of_cpuinfo(text: &str) -> Option<Self> {
        let line = text.lines().find(|line| line.starts_with("vendor_id"))?;
        match line.split_once(':')?.1.trim() {
            "GenuineIntel" => Some(Self("Intel")),
            "AuthenticAMD" => Some(Self("AMD")),
            "HygonGenuine" => Some(Self("Hygon")),
            _ => None,
        }
    }
}

/// What a guest with the CPU mode `host-model` gets here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostModel {
    pub(crate) name: String,
    /// Features that it has beyond its name.
    pub(crate) features: BTreeSet<String>,
}

impl HostModel {
    /// From a file of libvirt's domain capabilities.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        Self::of_domain_capabilities(&read(path)?)
    }

    fn of_domain_capabilities(xml: &str) -> Option<Self> {
        let mut reader = Reader::from_str(xml);
        let (mut inside, mut naming) = (false, false);
        let mut found = Self::default();
        loop {
            match reader.read_event().ok()? {
                Event::Start(tag) if tag.name().as_ref() == b"mode" => {
                    inside = attribute(&tag, "name").is_some_and(|name| name == "host-model");
                }
                Event::End(tag) if tag.name().as_ref() == b"mode" && inside => {
                    return Some(found).filter(|found| !found.name.is_empty());
                }
                Event::Start(tag) if inside && tag.name().as_ref() == b"model" => naming = true,
                Event::Text(text) if naming => {
                    found.name = text.decode().ok()?.trim().to_owned();
                    naming = false;
                }
                Event::Empty(tag) if inside && tag.name().as_ref() == b"feature" && is_required(&tag) => {
                    found.features.extend(attribute(&tag, "name"));
                }
                Event::Eof => return None,
                _ => {}
            }
        }
    }
}

fn is_required(feature: &BytesStart<'_>) -> bool {
    attribute(feature, "policy").is_some_and(|policy| policy == "require")
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = tag.try_get_attribute(name).ok()??;
    Some(String::from_utf8_lossy(&attribute.value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors() {
        for (text, vendor) in [
            ("processor : 0\nvendor_id\t: GenuineIntel\n", Some("Intel")),
            ("vendor_id : AuthenticAMD", Some("AMD")),
            ("vendor_id : Unheard", None),
            ("", None),
        ] {
            assert_eq!(CpuVendor::of_cpuinfo(text).map(|vendor| vendor.0), vendor);
        }
    }

    #[test]
    fn the_host_model() {
        let xml = "<domainCapabilities><cpu>
            <mode name='host-passthrough' supported='yes'/>
            <mode name='host-model' supported='yes'>
              <model fallback='forbid'>EPYC-Rome</model>
              <vendor>AMD</vendor>
              <feature policy='require' name='ibpb'/>
              <feature policy='disable' name='svm'/>
            </mode>
            <mode name='custom' supported='yes'><model usable='yes'>486</model></mode>
            </cpu></domainCapabilities>";
        let model = HostModel::of_domain_capabilities(xml).unwrap();
        assert_eq!(model.name, "EPYC-Rome");
        assert_eq!(model.features, BTreeSet::from(["ibpb".to_owned()]));
        for none in [
            "",
            "<cpu><mode name='host-model' supported='no'/></cpu>",
            "<cpu><mode name='host-model'>",
            "no XML",
        ] {
            assert_eq!(HostModel::of_domain_capabilities(none), None, "{none}");
        }
    }

    #[test]
    fn libvirt_says_what_windows_finds() {
        let xml = "<domainCapabilities><os><enum name='firmware'><value>efi</value></enum></os><features>
            <hyperv supported='yes'>
              <enum name='features'>
                <value>relaxed</value>
                <value>stimer</value>
                <value>vendor_id</value>
              </enum>
              <defaults><spinlocks>4095</spinlocks></defaults>
            </hyperv>
            <launchSecurity supported='no'><enum name='sectype'><value>sev</value></enum></launchSecurity>
            </features></domainCapabilities>";
        let all: Vec<String> = enlightenments(xml).into_iter().collect();
        assert_eq!(all, ["relaxed", "synictimer", "vendorid"]);
        for none in [
            "",
            "no XML",
            "<features><hyperv supported='no'><enum name='features'><value>ipi</value></enum></hyperv></features>",
            "<features><hyperv supported='yes'><enum name='features'><value>ipi</value>",
            "<features><enum name='features'><value>ipi</value></enum></features>",
        ] {
            assert_eq!(enlightenments(none), BTreeSet::new(), "{none}");
        }
    }

    #[test]
    fn the_kubelets_state_tells_its_policy() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, given) in [
            (r#"{"policyName":"static","defaultCpuSet":"0-3","checksum":1}"#, true),
            (r#"{"policyName":"none","defaultCpuSet":"","checksum":2}"#, false),
            ("torn", false),
        ] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(cpu_manager(file.path()), given, "{text}");
        }
        assert!(!cpu_manager(Path::new("/nowhere")));
    }

    #[test]
    fn the_kernel_says_how_memory_is_protected() {
        let sys = tempfile::tempdir().unwrap();
        let parameters = sys.path().join("module/kvm_amd/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        for (name, value) in [("sev", "Y\n"), ("sev_es", "1\n"), ("sev_snp", "N\n")] {
            std::fs::write(parameters.join(name), value).unwrap();
        }
        assert_eq!(protections(sys.path(), None), ["sev", "sev-es"]);
        assert_eq!(protections(Path::new("/nowhere"), None), [""; 0]);
    }

    #[test]
    fn tdx_needs_a_kernel_and_a_libvirt_that_know_it() {
        let directory = tempfile::tempdir().unwrap();
        let parameters = directory.path().join("module/kvm_intel/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        let xml = directory.path().join("capabilities.xml");
        let with = |kinds: &str| {
            format!(
                "<domainCapabilities><features><sev supported='no'/><launchSecurity supported='yes'>
                 <enum name='sectype'>{kinds}</enum></launchSecurity><other><value>tdx</value></other>
                 </features></domainCapabilities>"
            )
        };
        let (sev, both) = (with("<value>sev</value>"), with("<value>sev</value><value>tdx</value>"));
        for (kernel, libvirt, expected) in [
            ("Y", both.as_str(), true),
            ("N", &both, false),
            ("Y", &sev, false),
            ("Y", "<domainCapabilities/>", false),
            ("Y", "no XML", false),
        ] {
            std::fs::write(parameters.join("tdx"), kernel).unwrap();
            std::fs::write(&xml, libvirt).unwrap();
            let found = protections(directory.path(), Some(&xml));
            assert_eq!(found.contains(&"tdx"), expected, "{kernel} {libvirt}");
        }
        assert_eq!(protections(directory.path(), None), [""; 0]);
    }

    #[test]
    fn a_kernel_without_a_limit_is_real_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, unlimited) in [("-1\n", true), ("950000\n", false), ("", false)] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(realtime(file.path()), unlimited, "{text}");
        }
    }
}
