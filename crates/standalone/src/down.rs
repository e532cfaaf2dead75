//! `ferrovirt down`: stops the control plane, and if asked the guests, and if asked removes all state.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::paths::DataDir;
use crate::pods::clean::{remove_pods, running_pods, stop_pods, unmount_below};
use crate::{home_network, lock};

/// How long the control plane may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(15);

/// Stop the control plane
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  ferrovirt down                    # guests go on running; `ferrovirt up` finds them again
  ferrovirt down --vms              # guests are shut down, too; those that should run start again with `ferrovirt up`
  ferrovirt down --purge            # and all state is removed, after asking")]
pub struct DownArgs {
    /// Shut the guests down, too
    #[arg(long)]
    pub vms: bool,
    /// Remove all state: objects, disks, images. Implies --vms
    #[arg(long)]
    pub purge: bool,
    /// Do not ask
    #[arg(short, long, requires = "purge")]
    pub yes: bool,
}

/// Runs `ferrovirt down`.
///
/// # Errors
/// The control plane cannot be stopped, or the state not be removed.
pub fn run(args: &DownArgs, data_dir: PathBuf) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("you are not root: run it with sudo");
    }
    let data = DataDir::new(std::path::absolute(data_dir)?);
    if args.purge && !args.yes && !confirmed(&data)? {
        bail!("nothing was changed");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        stop_control_plane(&data).await?;
        if args.vms || args.purge {
            let stopped = stop_pods(&data, |pod| println!("stopping {}/{}", pod.namespace, pod.name)).await;
            println!(
                "{}",
                if stopped == 0 {
                    "no guest was running".into()
                } else {
                    format!("{stopped} guests stopped")
                }
            );
        } else {
            let left = running_pods(&data).len();
            if left > 0 {
                println!(
                    "{left} guests go on running; `ferrovirt down --vms` stops them, `ferrovirt up` finds them again"
                );
            }
        }
        if args.purge { purge(&data).await } else { Ok(()) }
    })
}

fn confirmed(data: &DataDir) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "--purge removes all VMs, disks and images in {}; add --yes to do so without asking",
            data.path().display()
        );
    }
    print!("Remove all VMs, disks and images in {}? [y/N] ", data.path().display());
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn stop_control_plane(data: &DataDir) -> anyhow::Result<()> {
    let running = match lock::running(data) {
        None => {
            println!("no control plane is running on {}", data.path().display());
            return Ok(());
        }
        Some(None) => bail!(
            "a control plane is just starting on {}; try again in a second",
            data.path().display()
        ),
        Some(Some(running)) => running,
    };
    let pid = Pid::from_raw(running.pid).context("the lock file names no process")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).context("cannot find the control plane's process")?;
    // The lock is held, so the pid is the holder's: it cannot have been given to another process.
    pidfd_send_signal(&process, Signal::TERM).context("cannot signal the control plane")?;
    let ended = crate::pods::process::ended(process.try_clone()?);
    if tokio::time::timeout(PATIENCE, ended).await.is_err() {
        println!("the control plane does not stop by itself and is killed");
        pidfd_send_signal(&process, Signal::KILL)?;
        crate::pods::process::ended(process).await?;
    }
    println!("control plane stopped (pid {})", running.pid);
    Ok(())
}

async fn purge(data: &DataDir) -> anyhow::Result<()> {
    if !data.path().exists() {
        println!("{} does not exist", data.path().display());
        return Ok(());
    }
    // A mistyped --data-dir must not cost anything.
    if !data.lock().exists() || !data.path().join("kubelet").exists() {
        bail!(
            "{} is no data directory of ferrovirt; nothing was removed",
            data.path().display()
        );
    }
    if let Some(network) = home_network::known(data) {
        remove_pods(data, &network).await;
        network.remove().await;
        home_network::release(&network);
    }
    unmount_below(data.path())
        .with_context(|| format!("cannot unmount what is mounted in {}", data.path().display()))?;
    for entry in std::fs::read_dir(data.path())? {
        let path = entry?.path();
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    // Somebody may have made the directory itself for us, as a mount point for example.
    let _ = std::fs::remove_dir(data.path());
    println!("all state in {} is removed", data.path().display());
    Ok(())
}
