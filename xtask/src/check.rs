//! House rules that a program can check.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Crate → the crates of ours that it may use. What is not listed is refused.
const MAY_USE: &[(&str, &[&str])] = &[
    ("container-disk", &[]),
    ("ferrovirt-api", &[]),
    ("ferrovirt-apiserver", &[]),
    ("ferrovirt-core", &["ferrovirt-api"]),
    ("ferrovirt-domain", &["ferrovirt-api", "ferrovirt-core"]),
    ("ferrovirt-protocol", &["ferrovirt-api"]),
    ("ferrovirt-runtime", &["ferrovirt-api", "ferrovirt-core"]),
    (
        "virt-api",
        &[
            "ferrovirt-api",
            "ferrovirt-core",
            "ferrovirt-protocol",
            "ferrovirt-runtime",
        ],
    ),
    (
        "virt-controller",
        &[
            "ferrovirt-api",
            "ferrovirt-core",
            "ferrovirt-protocol",
            "ferrovirt-runtime",
        ],
    ),
    (
        "virt-handler",
        &[
            "ferrovirt-api",
            "ferrovirt-core",
            "ferrovirt-protocol",
            "ferrovirt-runtime",
        ],
    ),
    (
        "virt-launcher",
        &[
            "ferrovirt-api",
            "ferrovirt-core",
            "ferrovirt-domain",
            "ferrovirt-protocol",
            "ferrovirt-runtime",
            "virtiofs-server",
        ],
    ),
    ("virtctl", &["ferrovirt-api", "ferrovirt-core"]),
    ("virtiofs-server", &[]),
    (
        "ferrovirt-standalone",
        &[
            "ferrovirt-api",
            "ferrovirt-apiserver",
            "ferrovirt-core",
            "ferrovirt-protocol",
            "ferrovirt-runtime",
            "virt-api",
            "virt-controller",
            "virt-handler",
        ],
    ),
    (
        "ferrovirt",
        &[
            "ferrovirt-api",
            "ferrovirt-protocol",
            "ferrovirt-runtime",
            "ferrovirt-standalone",
            "virt-api",
            "virt-controller",
            "virt-handler",
        ],
    ),
    ("ferrovirt-e2e", &["ferrovirt-api"]),
    ("xtask", &[]),
];

/// Crates that stay free of I/O.
const PURE: &[&str] = &["ferrovirt-api", "ferrovirt-core", "ferrovirt-domain"];
const IMPURE_DEPENDENCIES: &[&str] = &["tokio", "hyper", "reqwest", "rusqlite", "nix", "virt"];

/// Lines of code (tests, blank lines and comments not counted) that a file may have at most.
const MAX_CODE_LINES: usize = 800;

/// Runs all checks and lists every failure.
pub fn run() -> Result<()> {
    let mut failures = Vec::new();
    dependencies(&mut failures)?;
    sources(&mut failures)?;
    if failures.is_empty() {
        println!("check: dependencies, file sizes and manifests are in order");
        return Ok(());
    }
    for failure in &failures {
        eprintln!("check: {failure}");
    }
    bail!("{} house rules are broken", failures.len())
}

fn dependencies(failures: &mut Vec<String>) -> Result<()> {
    let output = super::cargo::cargo()
        .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let allowed: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(may_use) = allowed.get(name) else {
            failures.push(format!("crate {name} is not in the table of xtask/src/check.rs"));
            continue;
        };
        let mut last = String::new();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            if !dependency["kind"].is_null() {
                continue;
            }
            if allowed.contains_key(used) && !may_use.contains(&used) {
                failures.push(format!("crate {name} must not depend on {used}"));
            }
            if PURE.contains(&name) && IMPURE_DEPENDENCIES.contains(&used) {
                failures.push(format!("crate {name} is pure and must not depend on {used}"));
            }
            last = last.max(used.to_owned());
        }
    }
    Ok(())
}

fn sources(failures: &mut Vec<String>) -> Result<()> {
    let output = Command::new("git")
        .args(["ls-files", "*.rs"])
        .output()
        .context("cannot run git ls-files")?;
    for file in String::from_utf8(output.stdout)?.lines() {
        let path = Path::new(file);
        if !path.exists() || file.contains("/tests/") || file.ends_with("/tests.rs") {
            continue;
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
        let code = text
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]"))
            .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
            .count();
        if code > MAX_CODE_LINES {
            failures.push(format!(
                "{file} has {code} lines of code, more than {MAX_CODE_LINES}: split it"
            ));
        }
        for forbidden in ["todo!(", "unimplemented!(", "#[ignore"] {
            if text.contains(forbidden) && file != "xtask/src/check.rs" {
                failures.push(format!("{file} contains {forbidden}"));
            }
        }
    }
    Ok(())
}
