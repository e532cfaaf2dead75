//! `ferrovirt up --background`: the same process again, in a session of its own, logging to a file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::UpArgs;
use crate::paths::DataDir;

/// How much of the log is shown when it does not start.
const LOG_END: usize = 2000;

/// Starts it, shows what it says until it is ready, and leaves it running.
pub(super) fn start(args: &UpArgs, data: &DataDir) -> anyhow::Result<()> {
    let path = data.log();
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write the log {}", path.display()))?;
    let begin = log.metadata()?.len();
    let executable = std::env::current_exe().context("cannot tell where this executable is")?;
    let mut command = Command::new(executable);
    command
        .arg0("ferrovirt")
        .args(["up", "--detached", "--data-dir"])
        .arg(data.path());
    command.arg("--listen").arg(args.listen.to_string());
    command.arg(format!("--v={}", args.log.verbosity));
    for (option, value) in [("--node-name", &args.node_name), ("--pod-subnet", &args.pod_subnet)] {
        if let Some(value) = value {
            command.args([option, value]);
        }
    }
    if let Some(kvm) = clap::ValueEnum::to_possible_value(&args.kvm) {
        command.args(["--kvm", kvm.get_name()]);
    }
    let child = command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn();
    let mut child = child.context("cannot start the control plane")?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        // Ends when the child lets go of it: ready, or gone.
        stdout.read_to_string(&mut said)?;
    }
    io::stdout().write_all(said.as_bytes())?;
    if said.is_empty() {
        let status = child.wait()?;
        let text = fs::read(&path).unwrap_or_default();
        let new = text.get(usize::try_from(begin).unwrap_or(0)..).unwrap_or_default();
        let end = String::from_utf8_lossy(&new[new.len().saturating_sub(LOG_END)..])
            .trim()
            .to_owned();
        bail!(
            "the control plane did not start ({status}); the end of {}:\n{end}",
            path.display()
        );
    }
    println!("Log: {}", path.display());
    Ok(())
}

/// In the process that stays, at once: neither Ctrl+C nor a hang-up of the starter's terminal reaches it.
pub(super) fn detach() -> anyhow::Result<()> {
    nix::unistd::setsid().map(drop).context("cannot leave the terminal")
}

/// In the process that stays: the starter has heard enough.
pub(super) fn let_go(log: &Path) -> anyhow::Result<()> {
    let log = File::options()
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write the log {}", log.display()))?;
    nix::unistd::dup2_stdout(log)?;
    Ok(())
}
