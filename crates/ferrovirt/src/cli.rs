//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use ferrovirt_standalone::down::{self, DownArgs};
use ferrovirt_standalone::images::{self, ImageCommand};
use ferrovirt_standalone::paths::DEFAULT_DATA_DIR;
use ferrovirt_standalone::status;
use ferrovirt_standalone::up::{self, UpArgs};
use serde_json::Value;

use crate::manifests;

/// Virtual machines through the Kubernetes API, on this machine.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  ferrovirt up --background
  export KUBECONFIG=/var/lib/ferrovirt/kubeconfig
  kubectl apply -f examples/vm-demo.yaml
  ferrovirt status
  ferrovirt down --vms")]
struct Cli {
    /// Directory of all state
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR, env = "FERROVIRT_DATA_DIR", global = true)]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(UpArgs),
    Down(DownArgs),
    /// Show what runs, and what is wrong
    Status,
    /// Images of this machine
    #[command(subcommand)]
    Image(ImageCommand),
    VirtApi(virt_api::server::Args),
    VirtController(virt_controller::server::Args),
    VirtOperator(virt_controller::operator::Args),
    /// Write the manifests of the operator
    #[command(hide = true)]
    Manifests(manifests::Args),
    VirtHandler(virt_handler::server::Args),
    /// Print the CustomResourceDefinitions
    #[command(after_help = "Example:\n  ferrovirt crds | kubectl apply -f -")]
    Crds,
    /// Compare the API with a reference: print what is missing, and exit with 1 if something is
    #[command(
        after_help = "Example:\n  ferrovirt api-coverage kubevirt-api.json --roots v1.VirtualMachine,v1.KubeVirt"
    )]
    ApiCoverage {
        /// JSON with the definitions of an API
        reference: PathBuf,
        /// Only these definitions and what they reach
        #[arg(long, value_delimiter = ',', value_name = "DEFINITION")]
        roots: Option<Vec<String>>,
    },
}

pub(crate) fn main() -> ExitCode {
    let Cli { data_dir, command } = Cli::parse();
    let outcome = match command {
        Command::Up(args) => up::run(&args, data_dir),
        Command::Down(args) => down::run(&args, data_dir),
        Command::Status => status::run(data_dir),
        Command::Image(command) => images::run(&command, &data_dir),
        Command::VirtApi(args) => virt_api::server::run(&args).map_err(Into::into),
        Command::VirtController(args) => virt_controller::server::run(args),
        Command::VirtOperator(args) => virt_controller::operator::run(args),
        Command::Manifests(args) => manifests::run(&args),
        Command::VirtHandler(args) => virt_handler::server::run(args),
        Command::Crds => crds(),
        Command::ApiCoverage { reference, roots } => match api_coverage(&reference, roots.as_deref()) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn crds() -> anyhow::Result<()> {
    for crd in ferrovirt_api::crds().iter().chain([&ferrovirt_api::cdi_crd()]) {
        print!("---\n{}", serde_yaml_ng::to_string(&crd)?);
    }
    Ok(())
}

/// Whether nothing is missing.
fn api_coverage(reference: &std::path::Path, roots: Option<&[String]>) -> anyhow::Result<bool> {
    let text = std::fs::read(reference).with_context(|| format!("cannot read {}", reference.display()))?;
    let reference: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", reference.display()))?;
    let mut crds = ferrovirt_api::crds();
    crds.push(ferrovirt_api::cdi_crd());
    let coverage = ferrovirt_api::coverage::coverage(&reference, roots, &crds)?;
    for gap in &coverage.gaps {
        println!("{gap}");
    }
    println!("{} of {} fields", coverage.covered, coverage.total);
    Ok(coverage.covered == coverage.total)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn no_two_arguments_of_a_command_have_the_same_name() {
        Cli::command().debug_assert();
    }
}
