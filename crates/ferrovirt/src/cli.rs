//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ferrovirt_standalone::images::{self, ImageCommand};
use ferrovirt_standalone::paths::DEFAULT_DATA_DIR;

/// Virtual machines through the Kubernetes API, on this machine.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Directory of all state
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR, env = "FERROVIRT_DATA_DIR", global = true)]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Images of this machine
    #[command(subcommand)]
    Image(ImageCommand),
}

pub(crate) fn main() -> ExitCode {
    let Cli { data_dir, command } = Cli::parse();
    let outcome = match command {
        Command::Image(command) => images::run(&command, &data_dir),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
