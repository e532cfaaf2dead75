#![doc = env!("CARGO_PKG_DESCRIPTION")]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    virt_launcher::run(virt_launcher::Args::parse()).unwrap_or_else(|error| {
        eprintln!("virt-launcher: {error:#}");
        ExitCode::FAILURE
    })
}
