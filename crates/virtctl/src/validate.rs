//! `virtctl validate`: what admission would say of a file, without a cluster, and on which line.
//!
//! The rules are admission's own. What needs a cluster is not judged: whether claims, Secrets and networks exist, and
//! what an administrator allows beyond the gates that are named.

mod fields;
mod lines;

use std::path::Path;

use anyhow::{Context, bail};
use ferrovirt_api::v1::{VirtualMachine, VirtualMachineInstance, VirtualMachineInstancePreset};
use ferrovirt_core::ClusterConfig;
use ferrovirt_core::machine::Architecture;
use ferrovirt_core::{default_vm, default_vmi, validate_preset, validate_vm, validate_vmi_create};
use serde_json::Value;
use uuid::Uuid;

use crate::cli;
use crate::{note, say};
use fields::typed;
use lines::Node;

/// Group of the objects that are judged.
const API_VERSIONS: [&str; 2] = ["kubevirt.io/v1", "kubevirt.io/v1alpha3"];

/// A complaint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    line: usize,
    /// Empty for the whole text.
    field: String,
    message: String,
}

/// What was found in a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    findings: Vec<Finding>,
    /// Objects without a complaint, as `KIND NAME`.
    valid: Vec<String>,
    /// Objects that nothing is known about.
    passed_over: Vec<String>,
}

/// Prints every complaint about each file.
///
/// # Errors
/// There is one, or a file cannot be read.
pub(crate) fn run(arguments: &cli::Validate) -> anyhow::Result<()> {
    let architecture = Architecture::from_name(&arguments.architecture);
    let architecture = architecture.with_context(|| format!("{} is no architecture", arguments.architecture))?;
    let config = cluster(architecture, &arguments.feature_gates);
    let mut count = 0;
    for file in &arguments.files {
        let report = judge(&crate::expand::read(file)?, &config);
        count += report.findings.len();
        print(file, &report)?;
    }
    match count {
        0 => Ok(()),
        1 => bail!("1 mistake was found"),
        _ => bail!("{count} mistakes were found"),
    }
}

/// A cluster of which not much is known: its administrator may have permitted all that can be permitted.
fn cluster(architecture: Architecture, feature_gates: &[String]) -> ClusterConfig {
    let mut config = ClusterConfig {
        any_binding_plugin: true,
        permitted_devices: None,
        persistent_reservation: true,
        ..ClusterConfig::default()
    };
    config.architecture = architecture;
    // Beside those that are on by themselves.
    config.feature_gates.extend(feature_gates.iter().cloned());
    config
}

fn print(file: &Path, report: &Report) -> anyhow::Result<()> {
    let file = file.display();
    for Finding { line, field, message } in &report.findings {
        if field.is_empty() {
            say(format_args!("{file}:{line}: {message}"))?;
        } else {
            say(format_args!("{file}:{line}: {field}: {message}"))?;
        }
    }
    for object in &report.valid {
        say(format_args!("{file}: {object} is valid"))?;
    }
    for object in &report.passed_over {
        note(format_args!("{file}: {object} is no machine and was not looked at"));
    }
    Ok(())
}

/// Judges all objects of a text.
fn judge(text: &str, config: &ClusterConfig) -> Report {
    let mut report = Report::default();
    let whole = |line, message: String| Finding {
        line,
        field: String::new(),
        message,
    };
    let nodes = match lines::documents(text) {
        Ok(nodes) => nodes,
        Err((line, message)) => {
            report.findings.push(whole(line, message));
            return report;
        }
    };
    for (node, document) in nodes.iter().zip(serde_yaml_ng::Deserializer::from_str(text)) {
        if node.is_empty() {
            continue;
        }
        match <Value as serde::Deserialize>::deserialize(document) {
            Ok(object) => object_or_list(&object, node, config, &mut report),
            Err(error) => {
                let line = error.location().map_or_else(|| node.line_of(""), |at| at.line());
                report.findings.push(whole(line, error.to_string()));
            }
        }
    }
    if report == Report::default() {
        report.findings.push(whole(1, "there is no object in it".to_owned()));
    }
    report.findings.sort_by_key(|finding| finding.line);
    report
}

fn object_or_list(object: &Value, node: &Node, config: &ClusterConfig, report: &mut Report) {
    if object["kind"] == "List" {
        for (index, item) in object["items"].as_array().into_iter().flatten().enumerate() {
            one(item, node, &format!("items[{index}]."), config, report);
        }
    } else {
        one(object, node, "", config, report);
    }
}

/// Judges one object; its fields are below `prefix` in the document.
fn one(object: &Value, node: &Node, prefix: &str, config: &ClusterConfig, report: &mut Report) {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (kind, version) = (text("kind"), text("apiVersion"));
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().or(metadata["generateName"].as_str());
    let what = format!("{kind} {}", name.unwrap_or_default());
    let mut causes = match kind {
        "VirtualMachine" | "VirtualMachineInstance" | "VirtualMachineInstancePreset"
            if !API_VERSIONS.contains(&version) =>
        {
            let why = format!("{version:?} has no {kind}: use {}", API_VERSIONS[0]);
            vec![("apiVersion".to_owned(), why)]
        }
        "VirtualMachine" => typed(object, |mut vm: VirtualMachine| {
            default_vm(&mut vm, config, Uuid::nil(), Uuid::nil());
            validate_vm(&vm, None, config)
        }),
        "VirtualMachineInstance" => typed(object, |mut vmi: VirtualMachineInstance| {
            default_vmi(&mut vmi, config, Uuid::nil());
            validate_vmi_create(&vmi, config, false)
        }),
        "VirtualMachineInstancePreset" => {
            typed(object, |preset: VirtualMachineInstancePreset| validate_preset(&preset))
        }
        "" => vec![("kind".to_owned(), "it is missing".to_owned())],
        _ => {
            report.passed_over.push(what.trim_end().to_owned());
            return;
        }
    };
    if name.is_none_or(|name| name.is_empty() || !crate::target::is_name(name.trim_end_matches('-'))) {
        let why = "a name of lower case letters, digits, '-' and '.' is required";
        causes.push(("metadata.name".to_owned(), why.to_owned()));
    }
    if causes.is_empty() {
        report.valid.push(what);
    }
    report.findings.extend(causes.into_iter().map(|(field, message)| {
        let field = format!("{prefix}{field}");
        Finding {
            line: node.line_of(&field),
            field,
            message,
        }
    }));
}

/// All that is said of a text.
#[cfg(test)]
pub(crate) fn complaints(text: &str) -> String {
    let report = judge(text, &ClusterConfig::default());
    let all = report.findings.iter();
    all.map(|finding| format!("{}: {}\n", finding.field, finding.message))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn lines(text: &str) -> String {
        lines_with(text, &ClusterConfig::default())
    }

    fn lines_with(text: &str, config: &ClusterConfig) -> String {
        let report = judge(text, config);
        let mut said = String::new();
        for Finding { line, field, message } in report.findings {
            writeln!(said, "{line}: {field}: {message}").unwrap();
        }
        for object in report.valid {
            writeln!(said, "{object} is valid").unwrap();
        }
        for object in report.passed_over {
            writeln!(said, "{object} passed over").unwrap();
        }
        said
    }

    const GOOD: &str = "apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: good
spec:
  runStrategy: Always
  template:
    spec:
      domain:
        memory:
          guest: 128Mi
        devices:
          disks:
          - name: root
            disk: {bus: virtio}
      volumes:
      - name: root
        containerDisk:
          image: registry/image:1
";

    #[test]
    fn examples_are_valid() {
        assert_eq!(lines(GOOD), "VirtualMachine good is valid\n");
        for example in ["vm-demo.yaml", "vm-debian.yaml"] {
            let text = std::fs::read_to_string(format!("../../examples/{example}")).unwrap();
            let said = lines(&text);
            assert!(said.contains("is valid") && !said.contains(": "), "{example}: {said}");
        }
    }

    #[test]
    fn mistakes_have_lines() {
        for (from, to, said) in [
            (
                "virtio}",
                "floppy}",
                "15: spec.template.spec.domain.devices.disks[0].disk.bus: ",
            ),
            (
                "- name: root\n        containerDisk",
                "- name: other\n        containerDisk",
                "14: ",
            ),
            ("128Mi", "much", "11: spec.template.spec.domain.memory.guest: "),
            ("128Mi", "{}", "11: spec.template.spec.domain.memory.guest: "),
            (
                "memory:",
                "memmory:",
                "10: spec.template.spec.domain.memmory: unknown field",
            ),
            ("domain:", "domian:", "9: spec.template.spec.domian: unknown field"),
            ("domain:", "domian:", "8: spec.template.spec: missing field `domain`"),
            ("name: good", "name: Not Good", "4: metadata.name: "),
            ("metadata:\n  name: good\n", "", "1: metadata.name: "),
            ("Always", "Sometimes", "6: spec.runStrategy: "),
            ("kubevirt.io/v1", "kubevirt.io/v7", "1: apiVersion: "),
            ("kind: VirtualMachine\n", "", "1: kind: it is missing"),
            ("spec:\n  run", "spec: [\n  run", ""),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let found = lines(&text);
            assert!(found.lines().any(|line| line.starts_with(said)), "{to}: {found}");
            assert!(!found.contains("is valid"), "{to}: {found}");
        }
    }

    #[test]
    fn what_an_administrator_may_permit_is_not_refused() {
        let devices = "devices:
          gpus: [{name: g, deviceName: example.com/gpu}]
          hostDevices: [{name: h, deviceName: example.com/nic}]";
        let text = GOOD
            .replace("devices:", devices)
            .replace("disk: {bus: virtio}", "lun: {bus: scsi, reservation: true}")
            .replace("image: registry/image:1", "claimName: c")
            .replace("containerDisk:", "persistentVolumeClaim:")
            .replace("domain:", "domain:\n        machine: {type: q35}");
        let found = |architecture| lines_with(&text, &cluster(architecture, &["HostDevices".to_owned()]));
        assert_eq!(found(Architecture::Amd64), "VirtualMachine good is valid\n");
        let arm = found(Architecture::Arm64);
        assert!(arm.contains("machine.type"), "{arm}");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let text = GOOD
            .replace("Always", "Sometimes")
            .replace("virtio", "floppy")
            .replace("128Mi", "much");
        let found = lines(&text);
        for start in ["6: spec.runStrategy", "11: spec.template", "15: spec.template"] {
            assert!(found.lines().any(|line| line.starts_with(start)), "{start}: {found}");
        }

        // Of what has no meaning at all, too; what such fields would have meant is not guessed.
        let text = GOOD
            .replace("Always", "[]")
            .replace("guest: 128Mi", "guest: {}")
            .replace("- name: root\n        containerDisk", "- containerDisk")
            .replace("image:", "picture:");
        assert_eq!(
            lines(&text),
            "6: spec.runStrategy: invalid type: sequence, expected a string
11: spec.template.spec.domain.memory.guest: invalid type: map, expected a quantity: a string or a number
17: spec.template.spec.volumes[0].containerDisk: missing field `image`
17: spec.template.spec.volumes[0]: missing field `name`
18: spec.template.spec.volumes[0].containerDisk.picture: unknown field
"
        );
        let text = GOOD
            .replace("- name: root\n            disk: {bus: virtio}", "- disk\n          - 7")
            .replace(
                "- name: root\n        containerDisk",
                "- name: {}\n        containerDisk",
            )
            .replace(
                "      volumes:",
                "      readinessProbe: {exec: {command: [a, {}, [b]]}}\n      volumes:",
            );
        let found = lines(&text);
        let fields: Vec<&str> = found.lines().filter_map(|line| line.split(": ").nth(1)).collect();
        assert_eq!(
            fields,
            [
                "spec.template.spec.domain.devices.disks[0]",
                "spec.template.spec.domain.devices.disks[1]",
                "spec.template.spec.readinessProbe.exec.command[1]",
                "spec.template.spec.readinessProbe.exec.command[2]",
                "spec.template.spec.volumes[0].name",
            ],
            "{found}"
        );
    }

    #[test]
    fn files_hold_many_objects() {
        let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\n---\n---\n";
        let text = format!("{secret}{GOOD}---\n{}", GOOD.replace("Always", "Never"));
        let found = lines(&text);
        assert!(
            found.contains("VirtualMachine good is valid\nSecret s passed over\n"),
            "{found}"
        );
        assert!(found.starts_with("32: spec.runStrategy: "), "{found}");

        let item = GOOD.replace('\n', "\n    ").replace("Always", "Never");
        let list = format!("apiVersion: v1\nkind: List\nitems:\n  - {item}\n");
        let found = lines(&list);
        assert!(found.starts_with("9: items[0].spec.runStrategy: "), "{found}");
        assert!(lines("").starts_with("1: : there is no object"), "{}", lines(""));
    }

    /// The table that the API is tested with: what admission refuses is found here, too.
    #[test]
    fn what_admission_refuses_is_found() {
        let mut rows = 0;
        for file in std::fs::read_dir("../core/tests/invalid").unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for document in serde_yaml_ng::Deserializer::from_str(&text) {
                let row = <Value as serde::Deserialize>::deserialize(document).unwrap();
                // A schema's rules of its own are the API server's.
                if row.is_null() || row["by"] == "schema" {
                    continue;
                }
                let manifest = serde_yaml_ng::to_string(&row["manifest"]).unwrap();
                let found = lines_with(&manifest, &ClusterConfig::standalone());
                let field = row["field"].as_str().unwrap();
                assert!(found.contains(field), "{}: {found}", row["name"]);
                rows += 1;
            }
        }
        assert!(rows >= 150, "{rows}");
    }
}
