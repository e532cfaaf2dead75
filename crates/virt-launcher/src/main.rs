#![doc = env!("CARGO_PKG_DESCRIPTION")]

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default();
    // Another container of the pod, with as few threads as possible.
    if name == virtiofs_server::NAME {
        return virtiofs_server::main(arguments);
    }
    if name == virt_launcher::passt::NAME {
        return virt_launcher::passt::main(arguments);
    }
    virt_launcher::run(virt_launcher::Args::parse()).unwrap_or_else(|error| {
        eprintln!("virt-launcher: {error:#}");
        ExitCode::FAILURE
    })
}
