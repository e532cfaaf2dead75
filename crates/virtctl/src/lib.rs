#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! Everything goes through the Kubernetes API, with the kubeconfig that kubectl uses; streams are websockets
//! of `subresources.kubevirt.io`.

pub mod cli;
mod connection;
mod console;
mod create;
mod credentials;
mod duration;
mod expand;
mod expose;
mod guest;
mod guestfs;
mod kubevirt;
mod lifecycle;
mod listen;
mod log_verbosity;
mod port_forward;
mod ports;
mod ssh;
mod target;
mod terminal;
mod usbredir;
mod validate;
mod version;
mod vnc;
mod websocket;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::FromArgMatches;
use clap::error::ErrorKind;

use cli::{Cli, Command};
use connection::Connection;

/// Runs one command line; the first argument is the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = cli::command(cli::program_name(arguments.first()));
    let cli = match command
        .try_get_matches_from(arguments)
        .and_then(|found| Cli::from_arg_matches(&found))
    {
        Ok(mut cli) => {
            cli.tidy();
            cli
        }
        Err(error) => return usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start")),
    };
    let result = runtime.block_on(run(cli));
    // A thread may still sit in a read of standard input: it must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

/// Help goes to standard output with code 0, mistakes to standard error with code 1.
fn usage(error: &clap::Error) -> ExitCode {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // A command that only groups others.
        return match write!(std::io::stdout(), "{}", error.render()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let printed = error.print();
    match (error.use_stderr(), printed) {
        (false, Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // Nothing is left to do when even standard error is closed.
    let _ = writeln!(std::io::stderr(), "Error: {}", connection::explain(error));
    ExitCode::FAILURE
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    let command = match cli.command {
        Command::Completion(arguments) => return cli::completion(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Options => return cli::options().map(|()| ExitCode::SUCCESS),
        Command::Create(arguments) => {
            return create::run(&arguments, global.namespace.as_deref()).map(|()| ExitCode::SUCCESS);
        }
        Command::Validate(arguments) => return validate::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Version(arguments) => return version::run(global, &arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Ssh(arguments) => return ssh::ssh(global, &arguments),
        Command::Scp(arguments) => return ssh::scp(global, &arguments),
        other => other,
    };
    let connection = Connection::open(global)?;
    match command {
        Command::Start(arguments) => lifecycle::start(&connection, &arguments).await?,
        Command::Stop(arguments) => lifecycle::stop(&connection, &arguments).await?,
        Command::Restart(arguments) => lifecycle::restart(&connection, &arguments).await?,
        Command::Pause(arguments) => lifecycle::pause(&connection, &arguments).await?,
        Command::Unpause(arguments) => lifecycle::unpause(&connection, &arguments).await?,
        Command::SoftReboot(arguments) => lifecycle::on_instance(&connection, &arguments.name, "soft-reboot").await?,
        Command::Reset(arguments) => lifecycle::on_instance(&connection, &arguments.name, "reset").await?,
        Command::Console(arguments) => console::run(&connection, &arguments).await?,
        Command::Vnc(arguments) => vnc::run(&connection, &arguments).await?,
        Command::PortForward(arguments) => port_forward::run(&connection, &arguments).await?,
        Command::Guestosinfo(arguments) => guest::print(&connection, &arguments.name, "guestosinfo").await?,
        Command::Userlist(arguments) => guest::print(&connection, &arguments.name, "userlist").await?,
        Command::Fslist(arguments) => guest::print(&connection, &arguments.name, "filesystemlist").await?,
        Command::Usbredir(arguments) => usbredir::run(&connection, &arguments).await?,
        Command::EvacuateCancel(arguments) => lifecycle::evacuate_cancel(&connection, &arguments).await?,
        Command::Expand(arguments) => expand::run(&connection, &arguments).await?,
        Command::Expose(arguments) => expose::run(&connection, &arguments).await?,
        Command::Credentials(arguments) => credentials::run(&connection, &arguments).await?,
        Command::Guestfs(arguments) => guestfs::run(&connection, &arguments).await?,
        Command::PermittedDevices => kubevirt::permitted_devices(&connection).await?,
        Command::Adm(cli::Adm::LogVerbosity(arguments)) => log_verbosity::run(&connection, &arguments).await?,
        Command::Completion(_)
        | Command::Create(_)
        | Command::Options
        | Command::Scp(_)
        | Command::Ssh(_)
        | Command::Validate(_)
        | Command::Version(_) => {
            unreachable!("answered above")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line of the answer.
fn say(line: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
}

/// Tells the person at the terminal something that is no part of the answer.
fn note(line: impl std::fmt::Display) {
    // Without standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}
