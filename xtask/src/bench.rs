//! Benchmarks: measured by the e2e crate's `bench` executable, through public interfaces only.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

/// What is measured.
#[derive(Clone, Copy, ValueEnum)]
enum Home {
    /// `ferrovirt up` on this machine
    Standalone,
    /// A Kubernetes cluster of two nodes, with Ferrovirt installed for it
    Cluster,
}

/// Arguments of `cargo xtask bench`.
#[derive(Args)]
#[command(after_help = "Example:\n  cargo xtask bench standalone --runs 5\n  cargo xtask bench cluster --print")]
pub struct Bench {
    home: Home,
    /// Runs of each measurement; medians are reported
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Only print; leave docs/performance.md as it is
    #[arg(long)]
    print: bool,
}

impl Bench {
    /// Builds the release executables and measures them.
    pub fn run(&self) -> Result<()> {
        let tiny = super::ci::guest("tiny")?;
        cargo(
            &[
                "build",
                "--release",
                "--locked",
                "-p",
                "ferrovirt",
                "-p",
                "virt-launcher",
                "-p",
                "virtctl",
            ],
            &[],
        )?;
        let runs = self.runs.to_string();
        let mut args = vec![
            "run",
            "--release",
            "--locked",
            "-q",
            "-p",
            "ferrovirt-e2e",
            "--bin",
            "bench",
            "--",
            "--runs",
            &runs,
        ];
        if !self.print {
            args.extend(["--write", "docs/performance.md"]);
        }
        let env = [("FERROVIRT_TINY", tiny.as_str()), ("FERROVIRT_BIN", "target/release")];
        match self.home {
            Home::Standalone => cargo(&args, &env),
            Home::Cluster => super::e2e::with_cluster(Some(Path::new("target/release")), false, |installed| {
                let manifests = installed.manifests.path().to_str().context("a path of UTF-8")?;
                let cluster = [
                    ("FERROVIRT_CLUSTER", installed.kubeconfig.as_str()),
                    ("FERROVIRT_MANIFESTS", manifests),
                ];
                cargo(&args, &[env.as_slice(), &cluster].concat())
            }),
        }
    }
}

fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let status = super::cargo::cargo()
        .args(args)
        .envs(env.iter().copied())
        .status()
        .with_context(|| format!("cannot run cargo {}", args.join(" ")))?;
    if !status.success() {
        bail!("failed: cargo {}", args.join(" "));
    }
    Ok(())
}
