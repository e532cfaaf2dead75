#![doc = env!("CARGO_PKG_DESCRIPTION")]

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    // Another container of the pod, with as few threads as possible.
    if Path::new(&name)
        .file_name()
        .is_some_and(|name| name == virtiofs_server::NAME)
    {
        return virtiofs_server::main(arguments);
    }
    virt_launcher::run(virt_launcher::Args::parse()).unwrap_or_else(|error| {
        eprintln!("virt-launcher: {error:#}");
        ExitCode::FAILURE
    })
}
