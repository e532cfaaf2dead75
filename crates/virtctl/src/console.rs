//! `virtctl console`.
//!
//! The stream is simply opened: who may only do that needs no other right. While the server says that the instance does
//! not run yet, its phase is watched, if that is allowed.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::{StreamExt, TryStreamExt};
use kube::api::{DynamicObject, WatchEvent, WatchParams};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli;
use crate::connection::{Connection, code, explain};
use crate::note;
use crate::target::Kind;
use crate::terminal::RawMode;
use crate::websocket::{self, End, Socket};

/// Ctrl+] and, on most terminals, Ctrl+5.
const ESCAPE: u8 = 29;
/// Between two attempts of somebody who may not watch, and between two watches.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const BAD_REQUEST: u16 = 400;
const NOT_FOUND: u16 = 404;

/// Joins the terminal with the console of an instance.
pub(crate) async fn run(connection: &Connection, arguments: &cli::Console) -> anyhow::Result<()> {
    let name = &arguments.name;
    let path = connection.path(Kind::Vmi, name, None, "console")?;
    let socket = connect(connection, name, &path, arguments.timeout)
        .await
        .with_context(|| format!("cannot open the console of {name}"))?;
    warn_if_paused(connection, name).await;
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
            note(
                "\nYou were disconnected from the console. This could be caused by one of the following:\
                 \n - the machine was stopped, restarted or deleted, or its guest shut down\
                 \n - it moved to another node\
                 \n - somebody else connected to the console, which only one can use at a time\
                 \n - a connection on the way was cut: a proxy's limit, a restarted server",
            );
            bail!("the console of {name} was closed")
        }
        End::Broken => bail!("the connection to the console of {name} broke"),
    }
}

/// What is known of an instance that does not run yet.
#[derive(Default)]
struct Seen {
    phase: Option<String>,
    /// The server's last refusal.
    refusal: String,
}

/// Opens the stream as soon as the instance runs.
///
/// # Errors
/// It does not exist, it does not run in time, or the server refuses for another reason.
async fn connect(connection: &Connection, name: &str, path: &str, limit: Duration) -> anyhow::Result<Socket> {
    let error = match websocket::open(connection, path).await {
        Ok(socket) => return Ok(socket),
        Err(error) => error,
    };
    let mut seen = Seen::default();
    match tokio::time::timeout(limit, retry(connection, name, path, error, &mut seen)).await {
        Ok(result) => result,
        Err(_) => {
            let why = seen.phase.map(|phase| format!("its phase is {phase}"));
            let why = why.unwrap_or(seen.refusal);
            bail!("{name} does not run after {} s: {why}", limit.as_secs())
        }
    }
}

async fn retry(
    connection: &Connection,
    name: &str,
    path: &str,
    mut error: anyhow::Error,
    seen: &mut Seen,
) -> anyhow::Result<Socket> {
    let mut settled = false;
    loop {
        match code(&error) {
            // An instance that runs and is refused nevertheless has no console.
            Some(BAD_REQUEST) if !settled => {}
            Some(NOT_FOUND) => return Err(absent(connection, name, error).await),
            _ => return Err(error),
        }
        seen.refusal = explain(&error);
        settled = watch(connection, name, seen).await?;
        error = match websocket::open(connection, path).await {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
    }
}

/// Returns when the instance may have changed; whether it is known to run, or to have ended.
async fn watch(connection: &Connection, name: &str, seen: &mut Seen) -> anyhow::Result<bool> {
    let objects = connection.objects(Kind::Vmi);
    let Ok(Some(found)) = objects.get_opt(name).await else {
        // Not allowed, or just gone: the next attempt tells.
        tokio::time::sleep(LOOK_AGAIN).await;
        return Ok(false);
    };
    if settled(&found, seen) {
        return Ok(true);
    }
    let phase = seen.phase.as_deref().unwrap_or_default();
    note(format_args!("Waiting for {name} to run; its phase is {phase}."));
    let version = found.metadata.resource_version.clone().unwrap_or_default();
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    if let Ok(events) = objects.watch(&parameters, &version).await {
        let mut events = events.boxed();
        while let Ok(Some(event)) = events.try_next().await {
            match event {
                WatchEvent::Added(found) | WatchEvent::Modified(found) => {
                    if settled(&found, seen) {
                        return Ok(true);
                    }
                }
                WatchEvent::Deleted(_) => bail!("{name} was deleted before it ran"),
                WatchEvent::Bookmark(_) => {}
                // Too old a version, or the server goes away: look again.
                WatchEvent::Error(_) => break,
            }
        }
    }
    // A server that ends every watch at once must not be asked without pause.
    tokio::time::sleep(LOOK_AGAIN).await;
    Ok(false)
}

/// Why there is no instance: most often its machine is off.
pub(crate) async fn absent(connection: &Connection, name: &str, refusal: anyhow::Error) -> anyhow::Error {
    match connection.objects(Kind::Vm).get_opt(name).await {
        Ok(Some(_)) => anyhow!("VirtualMachine {name} is not running: start it with virtctl start {name}"),
        Ok(None) | Err(_) => refusal,
    }
}

fn settled(found: &DynamicObject, seen: &mut Seen) -> bool {
    let phase = found.data.pointer("/status/phase").and_then(|phase| phase.as_str());
    let phase = phase.unwrap_or("Pending");
    seen.phase = Some(phase.to_owned());
    matches!(phase, "Running" | "Failed" | "Succeeded")
}

/// A paused guest shows nothing new and takes no keys: say why, to those who may know.
pub(crate) async fn warn_if_paused(connection: &Connection, name: &str) {
    let Ok(Some(found)) = connection.objects(Kind::Vmi).get_opt(name).await else {
        return;
    };
    let conditions = found
        .data
        .pointer("/status/conditions")
        .and_then(|list| list.as_array());
    let paused = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Paused" && condition["status"] == "True");
    if paused {
        note(format_args!(
            "Warning: {name} is paused. Console will be active after unpause: virtctl unpause vmi {name}"
        ));
    }
}
