//! `cargo xtask compat`: docs/compat.md, every field of a VMI's spec with its effect and the tests that show it.
//!
//! Nothing is claimed here: which fields have an effect and which are refused is what the test `every_field` of
//! ferrovirt-core found out; what shows the effect is found in the tests themselves:
//!
//! - the patches of the `goldens!` of ferrovirt-domain (the domain's XML) and of virt-controller (the launcher's pod) say
//!   which fields they set; so do the VMIs in virt-controller's `testdata/pods`;
//! - any other test names its fields in its documentation: "Shows `spec.hostname`, `spec.subdomain`."

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_yaml_ng::Value;

const DOCUMENT: &str = "docs/compat.md";
/// What the test found out: one line `path: outcome` for each field, after a header that ends with `---`.
const FOUND: &str = "crates/core/tests/snapshots/every_field__fields.snap";
/// How many tests are named for a field.
const NAMED: usize = 3;

/// Options of `cargo xtask compat`.
#[derive(Args)]
pub struct Compat {
    /// Write nothing; fail if docs/compat.md is not as it would be written
    #[arg(long)]
    check: bool,
}

impl Compat {
    /// Writes or checks the document.
    pub fn run(&self) -> Result<()> {
        run(self.check)
    }
}

/// Writes docs/compat.md, or with `check` fails if it is stale or a field's effect is shown by no test.
pub fn run(check: bool) -> Result<()> {
    let fields = fields(Path::new(FOUND))?;
    let tests = tests()?;
    let text = document(&fields, &tests);
    let unshown: Vec<&str> = fields
        .iter()
        .filter(|(field, outcome)| outcome.is_effective() && shown(&tests, field).is_empty())
        .map(|(field, _)| field.as_str())
        .collect();
    if !check {
        fs::write(DOCUMENT, text).with_context(|| format!("cannot write {DOCUMENT}"))?;
        for field in &unshown {
            println!("compat: no test shows {field}");
        }
        println!("compat: {DOCUMENT} written: {} fields", fields.len());
        return Ok(());
    }
    if !unshown.is_empty() {
        bail!(
            "no test shows what these fields do (see the beginning of xtask/src/compat.rs): {}",
            unshown.join(", ")
        );
    }
    let there = fs::read_to_string(DOCUMENT).with_context(|| format!("cannot read {DOCUMENT}"))?;
    if there != text {
        bail!("{DOCUMENT} is stale: run cargo xtask compat");
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Machine,
    Elsewhere,
    /// Asks for what every machine does.
    Always,
    Refused,
}

impl Outcome {
    /// A test must show it.
    fn is_effective(self) -> bool {
        matches!(self, Self::Machine | Self::Elsewhere)
    }
}

fn fields(path: &Path) -> Result<BTreeMap<String, Outcome>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.rsplit("---\n").next().unwrap_or_default().lines();
    lines
        .map(|line| {
            let (field, outcome) = line.rsplit_once(": ").with_context(|| format!("not a field: {line}"))?;
            let outcome = match outcome {
                "machine" => Outcome::Machine,
                "elsewhere" => Outcome::Elsewhere,
                "always" => Outcome::Always,
                "refused" => Outcome::Refused,
                other => bail!("{field} is {other}"),
            };
            Ok((field.to_owned(), outcome))
        })
        .collect()
}

/// A test and where its effect is seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    by: By,
    test: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Xml,
    Pod,
    Guest,
    Unit,
}

impl By {
    fn effect(self) -> &'static str {
        match self {
            Self::Xml => "domain XML",
            Self::Pod => "pod",
            Self::Guest => "guest",
            Self::Unit => "behaviour",
        }
    }
}

/// By field, without `spec.`.
type Tests = BTreeMap<String, BTreeSet<Shown>>;

fn tests() -> Result<Tests> {
    let mut tests = Tests::new();
    for (directory, by) in [
        ("crates/domain/tests", By::Xml),
        ("crates/virt-controller/src/vmi/pod", By::Pod),
    ] {
        for file in files(Path::new(directory), "rs")? {
            goldens(&fs::read_to_string(&file)?, &file, by, &mut tests)?;
        }
    }
    for file in files(Path::new("crates/virt-controller/testdata/pods"), "yaml")? {
        let vmi: Value = serde_yaml_ng::from_str(&fs::read_to_string(&file)?)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        add(&mut tests, &vmi["spec"], By::Pod, &format!("pods/{name}"));
    }
    for root in ["crates", "tests"] {
        for file in files(Path::new(root), "rs")? {
            annotations(&fs::read_to_string(&file)?, &file, &mut tests);
        }
    }
    Ok(tests)
}

fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Cases of a `goldens!`: a line each, `name => "patch"`.
fn goldens(text: &str, file: &Path, by: By, tests: &mut Tests) -> Result<()> {
    for line in text.lines().map(str::trim) {
        let Some((name, patch)) = line.split_once(" => ") else {
            continue;
        };
        let patch = match patch.strip_prefix("r#\"") {
            Some(raw) => raw.trim_end_matches("\"#").to_owned(),
            None => patch.trim_matches('"').replace("\\\"", "\""),
        };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || !patch.contains("spec:") {
            continue;
        }
        let patch: Value =
            serde_yaml_ng::from_str(&patch).with_context(|| format!("{}: case {name}", file.display()))?;
        add(tests, &patch["spec"], by, &format!("golden::{name}"));
    }
    Ok(())
}

/// Documentation of tests that says "Shows `spec.…`".
fn annotations(text: &str, file: &Path, tests: &mut Tests) {
    let by = if file.starts_with("tests/e2e") || file.ends_with("virt-launcher/tests/guest.rs") {
        By::Guest
    } else {
        By::Unit
    };
    let mut named: Vec<String> = Vec::new();
    let mut shows = false;
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            shows |= comment.contains("Shows `spec.");
            if shows {
                named.extend(
                    comment
                        .split('`')
                        .filter_map(|word| word.strip_prefix("spec."))
                        .map(ToOwned::to_owned),
                );
            }
            continue;
        }
        let function = line.split_once("fn ").map(|(_, rest)| rest);
        if let Some(function) = function {
            let name: String = function
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            for field in named.drain(..) {
                let test = Shown { by, test: name.clone() };
                tests.entry(field.replace("[]", "[0]")).or_default().insert(test);
            }
            shows = false;
        }
    }
}

/// Adds every field that `spec` sets.
fn add(tests: &mut Tests, spec: &Value, by: By, test: &str) {
    let mut paths = BTreeSet::new();
    leaves(spec, "", &mut paths);
    for path in paths {
        let test = Shown {
            by,
            test: test.to_owned(),
        };
        tests.entry(path).or_default().insert(test);
    }
}

fn leaves(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Null => {}
        Value::Mapping(fields) => {
            if !path.is_empty() {
                out.insert(path.to_owned());
            }
            for (name, value) in fields {
                let name = name.as_str().unwrap_or_default();
                let path = if path.is_empty() {
                    name.to_owned()
                } else {
                    format!("{path}.{name}")
                };
                leaves(value, &path, out);
            }
        }
        Value::Sequence(items) => {
            for item in items {
                leaves(item, &format!("{path}[0]"), out);
            }
        }
        _ => {
            out.insert(path.to_owned());
        }
    }
}

/// The tests that set `field` or something in it.
fn shown<'a>(tests: &'a Tests, field: &str) -> BTreeSet<&'a Shown> {
    let within = |path: &str| {
        path.strip_prefix(field)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    tests
        .iter()
        .filter(|(path, _)| within(path))
        .flat_map(|(_, shown)| shown)
        .collect()
}

fn document(fields: &BTreeMap<String, Outcome>, tests: &Tests) -> String {
    let mut text = String::from(
        "# Fields of a VirtualMachineInstance's spec\n\n\
         Written by `cargo xtask compat` from what the tests set and find; the gate fails where it is stale, or where a field\n\
         is accepted and no test shows what it does. *Refused* means: admission answers `not supported yet: <field>`; nothing\n\
         is accepted and ignored. *Shown by* names at most three tests: `golden::…` in `crates/domain/tests` and\n\
         `crates/virt-controller/src/vmi/pod/tests`, `pods/…` in `crates/virt-controller/testdata`, others by their function's\n\
         name.\n\n",
    );
    let refused = fields.values().filter(|o| **o == Outcome::Refused).count();
    text += &format!(
        "{} fields: {} have an effect, {refused} are refused.\n\n| Field | Effect | Shown by |\n|---|---|---|\n",
        fields.len(),
        fields.len() - refused,
    );
    for (field, outcome) in fields {
        let name = field.replace("[0]", "[]");
        let fixed = match outcome {
            Outcome::Refused => Some("refused"),
            Outcome::Always => Some("always so: nothing is plugged into a running machine yet"),
            Outcome::Machine | Outcome::Elsewhere => None,
        };
        if let Some(fixed) = fixed {
            text += &format!("| `{name}` | {fixed} | |\n");
            continue;
        }
        let shown = shown(tests, field);
        let effects: BTreeSet<By> = shown.iter().map(|s| s.by).collect();
        let effects: Vec<&str> = effects.into_iter().map(By::effect).collect();
        let mut names: Vec<&str> = Vec::new();
        // One of each kind first.
        for by in [By::Guest, By::Xml, By::Pod, By::Unit] {
            names.extend(shown.iter().find(|s| s.by == by).map(|s| s.test.as_str()));
        }
        for test in shown.iter().map(|s| s.test.as_str()) {
            if !names.contains(&test) {
                names.push(test);
            }
        }
        names.truncate(NAMED);
        let names: Vec<String> = names.into_iter().map(|n| format!("`{n}`")).collect();
        text += &format!("| `{name}` | {} | {} |\n", effects.join(", "), names.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_patches_and_documentation() {
        let mut tests = Tests::new();
        let text = "goldens! {\n  cpu => \"{kvm: false, spec: {domain: {cpu: {cores: 2, features: [{name: x}], model: null}}}}\"\n}";
        goldens(text, Path::new("golden.rs"), By::Xml, &mut tests).expect("a patch");
        annotations(
            "/// Boots.\n///\n/// Shows `spec.hostname`,\n/// `spec.volumes[].name`.\n#[test]\nfn boots() {}\n/// `spec.subdomain`\nfn other() {}",
            Path::new("tests/e2e/x.rs"),
            &mut tests,
        );
        let names: Vec<&str> = tests.keys().map(String::as_str).collect();
        let all = [
            "domain",
            "domain.cpu",
            "domain.cpu.cores",
            "domain.cpu.features[0]",
            "domain.cpu.features[0].name",
            "hostname",
            "volumes[0].name",
        ];
        assert_eq!(names, all);
        assert_eq!(shown(&tests, "domain.cpu.features").len(), 1);
        assert!(shown(&tests, "domain.cpu.feat").is_empty());
        let mut fields = BTreeMap::from([("hostname".to_owned(), Outcome::Machine)]);
        fields.insert("subdomain".to_owned(), Outcome::Refused);
        let text = document(&fields, &tests);
        assert!(text.contains("| `hostname` | guest | `boots` |"), "{text}");
        assert!(text.contains("2 fields: 1 have an effect, 1 are refused."), "{text}");
    }
}
