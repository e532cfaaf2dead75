//! Commands that change the state of a machine.

use anyhow::{Context, bail};
use ferrovirt_api::v1::{
    EvacuateCancelOptions, PauseOptions, RestartOptions, StartOptions, StopOptions, UnpauseOptions,
};
use serde_json::json;

use crate::cli::{self, DryRun};
use crate::connection::Connection;
use crate::say;
use crate::target::{Kind, Target};

/// The `dryRun` of the options, told to the user.
fn dry_run(flag: DryRun) -> anyhow::Result<Vec<String>> {
    if !flag.dry_run {
        return Ok(Vec::new());
    }
    say("Dry Run execution")?;
    Ok(vec!["All".to_owned()])
}

pub(crate) async fn start(connection: &Connection, arguments: &cli::Start) -> anyhow::Result<()> {
    let name = &arguments.name;
    let options = StartOptions {
        dry_run: dry_run(arguments.dry_run)?,
        paused: arguments.paused.then_some(true),
        ..StartOptions::default()
    };
    let path = connection.path(Kind::Vm, name, None, "start")?;
    let started = connection.put(&path, &options).await;
    started.with_context(|| format!("cannot start VirtualMachine {name}"))?;
    say(format_args!("VM {name} was scheduled to start"))
}

/// The seconds that a forced stop or restart gives the guest.
///
/// # Errors
/// Force and grace period only make sense together.
fn grace_period(arguments: &cli::Stop, what: &str) -> anyhow::Result<Option<i64>> {
    match (arguments.force, arguments.grace_period) {
        (false, -1) => Ok(None),
        (false, _) => bail!("cannot set --grace-period without --force"),
        (true, -1) => bail!("cannot force {what} without --grace-period"),
        (true, seconds) if seconds < 0 => bail!("--grace-period must not be negative"),
        (true, seconds) => Ok(Some(seconds)),
    }
}

pub(crate) async fn stop(connection: &Connection, arguments: &cli::Stop) -> anyhow::Result<()> {
    let name = &arguments.name;
    let options = StopOptions {
        grace_period: grace_period(arguments, "stop")?,
        dry_run: dry_run(arguments.dry_run)?,
        ..StopOptions::default()
    };
    let path = connection.path(Kind::Vm, name, None, "stop")?;
    let stopped = connection.put(&path, &options).await;
    stopped.with_context(|| format!("cannot stop VirtualMachine {name}"))?;
    say(format_args!("VM {name} was scheduled to stop"))
}

pub(crate) async fn restart(connection: &Connection, arguments: &cli::Stop) -> anyhow::Result<()> {
    let name = &arguments.name;
    let options = RestartOptions {
        grace_period_seconds: grace_period(arguments, "restart")?,
        dry_run: dry_run(arguments.dry_run)?,
        ..RestartOptions::default()
    };
    let path = connection.path(Kind::Vm, name, None, "restart")?;
    let restarted = connection.put(&path, &options).await;
    restarted.with_context(|| format!("cannot restart VirtualMachine {name}"))?;
    say(format_args!("VM {name} was scheduled to restart"))
}

/// Reads `TYPE NAME` or `TYPE/NAME`.
fn target(words: &[String]) -> anyhow::Result<Target> {
    let text = words.join("/");
    Target::parse(&text).map_err(anyhow::Error::msg)
}

/// The instance of a target: that of a VM has its name, and the VM has to exist.
async fn instance(connection: &Connection, target: &Target) -> anyhow::Result<Connection> {
    let mut connection = connection.clone();
    if let Some(namespace) = &target.namespace {
        connection.namespace.clone_from(namespace);
    }
    if target.kind == Kind::Vm {
        let found = connection.objects(Kind::Vm).get_metadata(&target.name).await;
        found.with_context(|| format!("cannot get VirtualMachine {}", target.name))?;
    }
    Ok(connection)
}

pub(crate) async fn pause(connection: &Connection, arguments: &cli::Pause) -> anyhow::Result<()> {
    let target = target(&arguments.target)?;
    let name = &target.name;
    let options = PauseOptions {
        dry_run: dry_run(arguments.dry_run)?,
        ..PauseOptions::default()
    };
    let connection = instance(connection, &target).await?;
    let path = connection.path(Kind::Vmi, name, None, "pause")?;
    let paused = connection.put(&path, &options).await;
    paused.with_context(|| format!("cannot pause VirtualMachineInstance {name}"))?;
    say(format_args!("VMI {name} was scheduled to pause"))
}

pub(crate) async fn unpause(connection: &Connection, arguments: &cli::Pause) -> anyhow::Result<()> {
    let target = target(&arguments.target)?;
    let name = &target.name;
    let options = UnpauseOptions {
        dry_run: dry_run(arguments.dry_run)?,
        ..UnpauseOptions::default()
    };
    let connection = instance(connection, &target).await?;
    let path = connection.path(Kind::Vmi, name, None, "unpause")?;
    let unpaused = connection.put(&path, &options).await;
    unpaused.with_context(|| format!("cannot unpause VirtualMachineInstance {name}"))?;
    say(format_args!("VMI {name} was scheduled to unpause"))
}

pub(crate) async fn evacuate_cancel(connection: &Connection, arguments: &cli::EvacuateCancel) -> anyhow::Result<()> {
    let target = target(&arguments.target)?;
    let options = EvacuateCancelOptions {
        dry_run: dry_run(arguments.dry_run)?,
        ..EvacuateCancelOptions::default()
    };
    let namespace = target.namespace.as_deref().unwrap_or(&connection.namespace);
    let name = &target.name;
    let path = connection.path(target.kind, name, Some(namespace), "evacuate/cancel")?;
    let cancelled = connection.put(&path, &options).await;
    let kind = target.kind.short();
    cancelled.with_context(|| format!("cannot cancel the evacuation of {kind} {namespace}/{name}"))?;
    let kind = kind.to_uppercase();
    say(format_args!("{kind} {namespace}/{name} was canceled evacuation"))
}

/// `soft-reboot` and `reset`.
pub(crate) async fn on_instance(connection: &Connection, name: &str, what: &str) -> anyhow::Result<()> {
    let path = connection.path(Kind::Vmi, name, None, &what.replace('-', ""))?;
    let done = connection.put(&path, &json!({})).await;
    done.with_context(|| format!("cannot {what} VirtualMachineInstance {name}"))?;
    say(format_args!("VMI {name} was scheduled to {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn force_and_grace_period_go_together() {
        let stop = |force, grace_period| cli::Stop {
            name: "x".into(),
            force,
            grace_period,
            dry_run: DryRun { dry_run: false },
        };
        for (force, seconds, expected) in [
            (false, -1, Some(None)),
            (true, 0, Some(Some(0))),
            (true, 5, Some(Some(5))),
            (true, -1, None),
            (true, -2, None),
            (false, 0, None),
        ] {
            assert_eq!(
                grace_period(&stop(force, seconds), "stop").ok(),
                expected,
                "{force} {seconds}"
            );
        }
    }
}
