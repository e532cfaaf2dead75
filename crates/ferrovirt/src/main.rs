#![doc = env!("CARGO_PKG_DESCRIPTION")]

use std::path::Path;
use std::process::ExitCode;

use ferrovirt_standalone::pods::init;
use ferrovirt_standalone::tail;

mod cli;
mod freezer;
mod launcher;
mod manifests;
mod probe;
mod shim;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_owned();
    let first = std::env::args_os().nth(1).unwrap_or_default();
    // These run beside or become containers, with one thread and as little memory as possible.
    if name == "virt-tail" {
        return exit(tail::main(std::env::args_os()));
    }
    if name == "virt-probe" {
        return probe::main();
    }
    if name == "virt-freezer" {
        return freezer::main();
    }
    if name == "sidecar-shim" {
        return shim::main();
    }
    if first == init::INIT_SUBCOMMAND {
        return exit(init::main());
    }
    if first == init::EXEC_SUBCOMMAND {
        return exit(init::exec_main(&std::env::args().nth(2).unwrap_or_default()));
    }
    cli::main()
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
