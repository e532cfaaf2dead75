//! `virtctl`, also `kubectl virt`.

use std::process::ExitCode;

fn main() -> ExitCode {
    virtctl::main(std::env::args_os())
}
