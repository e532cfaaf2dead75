//! `cargo xtask deploy`: what users apply to a cluster, written by the executable that knows it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

/// Options of `cargo xtask deploy`.
#[derive(Args)]
pub struct Deploy {
    /// Write nothing; fail if something is not as it would be written
    #[arg(long)]
    check: bool,
    /// Registry and path of the images
    #[arg(long)]
    registry: Option<String>,
    /// Tag of the images, and version that is installed
    #[arg(long)]
    tag: Option<String>,
    /// Where to
    #[arg(long, value_name = "DIR", default_value = "deploy")]
    directory: PathBuf,
}

impl Deploy {
    /// Builds the executable and has it write.
    pub fn run(&self) -> Result<()> {
        // The whole workspace's features, so that no dependency is built twice.
        let build = ["build", "--workspace", "--bin", "ferrovirt", "--locked"];
        let status = super::cargo::cargo().args(build).status().context("cannot run cargo")?;
        if !status.success() {
            bail!("cargo {} failed", build.join(" "));
        }
        self.write()
    }

    fn write(&self) -> Result<()> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        let mut command = Command::new(target.join("debug/ferrovirt"));
        command.arg("manifests").arg(&self.directory);
        for (flag, value) in [("--registry", &self.registry), ("--tag", &self.tag)] {
            if let Some(value) = value {
                command.args([flag, value]);
            }
        }
        if self.check {
            command.arg("--check");
        }
        let status = command.status().context("cannot run target/debug/ferrovirt")?;
        if !status.success() {
            bail!("ferrovirt manifests failed");
        }
        Ok(())
    }
}

/// Fails if `deploy/` is stale. The executable has been built.
pub fn check() -> Result<()> {
    println!("ci: deploy/ is what the operator says");
    let check = Deploy {
        check: true,
        registry: None,
        tag: None,
        directory: PathBuf::from("deploy"),
    };
    check.write()
}
