//! `virtctl console`.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::{StreamExt, TryStreamExt};
use kube::api::{DynamicObject, WatchEvent, WatchParams};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli;
use crate::connection::Connection;
use crate::note;
use crate::target::Kind;
use crate::terminal::RawMode;
use crate::websocket::{self, End};

/// Ctrl+] and, on most terminals, Ctrl+5.
const ESCAPE: u8 = 29;
/// Between two watches.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Joins the terminal with the console of an instance.
pub(crate) async fn run(connection: &Connection, arguments: &cli::Console) -> anyhow::Result<()> {
    let name = &arguments.name;
    let path = connection.path(Kind::Vmi, name, None, "console")?;
    wait_until_running(connection, name, arguments.timeout).await?;
    let socket = websocket::open(connection, &path)
        .await
        .with_context(|| format!("cannot open the console of {name}"))?;
    note(format_args!(
        "Successfully connected to {name} console. Press Ctrl+] or Ctrl+5 to exit console."
    ));
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch signals")?;
    let raw = RawMode::enter()?;
    let end = tokio::select! {
        end = websocket::pump(socket, tokio::io::stdin(), tokio::io::stdout(), Some(ESCAPE)) => end,
        _ = hangup.recv() => End::Local,
        _ = terminate.recv() => End::Local,
    };
    drop(raw);
    match end {
        End::Local | End::Output => {
            note("");
            Ok(())
        }
        End::Closed => {
            note(format_args!(
                "\nThe console of {name} was closed: the machine stopped, or somebody else connected to it."
            ));
            Ok(())
        }
        End::Broken => bail!("the connection to the console of {name} broke"),
    }
}

/// Returns when the instance runs or cannot run any more; the server then says what is wrong.
///
/// # Errors
/// It does not exist, or it does not run in time.
pub(crate) async fn wait_until_running(connection: &Connection, name: &str, limit: Duration) -> anyhow::Result<()> {
    let mut seen = String::new();
    match tokio::time::timeout(limit, watch(connection, name, &mut seen)).await {
        Ok(result) => result,
        Err(_) => bail!("{name} does not run after {} s: its phase is {seen}", limit.as_secs()),
    }
}

async fn watch(connection: &Connection, name: &str, seen: &mut String) -> anyhow::Result<()> {
    let objects = connection.objects(Kind::Vmi);
    loop {
        let found = match objects.get_opt(name).await? {
            Some(found) => found,
            None => return Err(absent(connection, name).await),
        };
        if settled(&found, seen) {
            warn_if_paused(&found);
            return Ok(());
        }
        note(format_args!("Waiting for {name} to run; its phase is {seen}."));
        let version = found.metadata.resource_version.clone().unwrap_or_default();
        let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = objects.watch(&parameters, &version).await?.boxed();
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(found) | WatchEvent::Modified(found) => {
                    if settled(&found, seen) {
                        warn_if_paused(&found);
                        return Ok(());
                    }
                }
                WatchEvent::Deleted(_) => bail!("{name} was deleted before it ran"),
                WatchEvent::Bookmark(_) => {}
                // Too old a version, or the server goes away: look again.
                WatchEvent::Error(_) => break,
            }
        }
        // A server that ends every watch at once must not be asked without pause.
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Why there is no instance: most often its machine is off.
async fn absent(connection: &Connection, name: &str) -> anyhow::Error {
    match connection.objects(Kind::Vm).get_opt(name).await {
        Ok(Some(_)) => anyhow!("VirtualMachine {name} is not running: start it with virtctl start {name}"),
        Ok(None) => anyhow!("virtualmachineinstances.kubevirt.io \"{name}\" not found"),
        Err(error) => error.into(),
    }
}

fn settled(found: &DynamicObject, seen: &mut String) -> bool {
    let phase = found
        .data
        .pointer("/status/phase")
        .and_then(|phase| phase.as_str())
        .unwrap_or("Pending");
    phase.clone_into(seen);
    matches!(phase, "Running" | "Failed" | "Succeeded")
}

/// A paused guest shows nothing new and takes no keys: say why.
fn warn_if_paused(found: &DynamicObject) {
    let conditions = found
        .data
        .pointer("/status/conditions")
        .and_then(|list| list.as_array());
    let paused = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Paused" && condition["status"] == "True");
    if paused {
        let name = found.metadata.name.as_deref().unwrap_or_default();
        note(format_args!(
            "Warning: {name} is paused. Console will be active after unpause: virtctl unpause vmi {name}"
        ));
    }
}
