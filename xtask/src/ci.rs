//! The gate.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Runs every step and stops at the first that fails.
pub fn run(quick: bool) -> Result<()> {
    let start = Instant::now();
    step("format", &["fmt", "--all", "--check"], &[])?;
    super::check::run()?;
    step(
        "lints",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
        &[],
    )?;
    step(
        "documentation",
        &[
            "doc",
            "--workspace",
            "--no-deps",
            "--locked",
            "--document-private-items",
        ],
        &[("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links")],
    )?;
    // One selection of packages for everything: another one would build the dependencies again with other features.
    step("build", &["build", "--workspace", "--locked"], &[])?;
    super::deploy::check()?;
    println!("ci: docs/compat.md says what the tests show");
    super::compat::run(true)?;
    if quick {
        step(
            "tests",
            &[
                "test",
                "--workspace",
                "--locked",
                "--no-fail-fast",
                "--exclude",
                "ferrovirt-e2e",
            ],
            &[],
        )?;
    } else {
        let (tiny, arm, debian) = (guest("tiny")?, guest("tiny-arm64")?, guest("debian")?);
        let failures = tempfile::NamedTempFile::new().context("no temporary file")?;
        let guests = [
            ("FERROVIRT_TINY", tiny.as_str()),
            ("FERROVIRT_TINY_ARM64", arm.as_str()),
            ("FERROVIRT_DEBIAN", debian.as_str()),
            ("FERROVIRT_FAILURES", path(failures.path())?),
        ];
        let tests = step(
            "tests, with real guests",
            &["test", "--workspace", "--locked", "--no-fail-fast"],
            &guests,
        );
        if tests.is_err() {
            // Where only the end of a log is kept, what failed should be in it.
            eprint!("{}", std::fs::read_to_string(failures.path()).unwrap_or_default());
        }
        tests?;
        // The same suite in its other home. The first time on a machine, Kubernetes is built.
        super::e2e::run(None, false, Some(&[]))?;
    }
    println!("ci: all green after {} s", start.elapsed().as_secs());
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The archive of a guest, built if it is not in the cache.
pub fn guest(name: &str) -> Result<String> {
    println!("ci: guest {name} (built once per machine)");
    guest_in(None, name)
}

/// As [`guest`]; `cache`: the directory of what need not be made again, if it is not the usual one.
pub fn guest_in(cache: Option<&Path>, name: &str) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/guests/build");
    let output = Command::new(script)
        .arg(name)
        .envs(cache.map(|cache| ("FERROVIRT_CACHE", cache)))
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run images/guests/build")?;
    if !output.status.success() {
        bail!("images/guests/build {name} failed");
    }
    let path = String::from_utf8(output.stdout)?.trim().to_owned();
    Ok(path)
}

fn step(name: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    println!("ci: {name}: cargo {}", args.join(" "));
    let start = Instant::now();
    let status = super::cargo::cargo()
        .args(args)
        .envs(env.iter().copied())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("{name} failed: cargo {}", args.join(" "));
    }
    println!("ci: {name}: {} s", start.elapsed().as_secs());
    Ok(())
}
