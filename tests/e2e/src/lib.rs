//! Verbs for tests with real guests: start a home, apply manifests with the real kubectl, drive guests with virtctl,
//! wait for conditions with a deadline. Only public interfaces are used.

mod console;
mod home;

use std::fmt::Debug;
use std::future::Future;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use console::Console;
pub use home::{Home, Options, connect};

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// It cannot be run, or ends with another status than 0: then with all that it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that is expected to fail and gives its exit code and what it wrote to standard error.
///
/// # Errors
/// It cannot be run, or it succeeds.
pub fn fails(command: &mut Command) -> Result<(i32, String)> {
    let output = output(command)?;
    if output.status.success() {
        bail!(
            "{command:?} was expected to fail, but printed:\n{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok((
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))
}

/// The condition of that type in an object's status; null if there is none.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array();
    all.and_then(|all| all.iter().find(|c| c["type"] == kind))
        .unwrap_or(&Value::Null)
}

/// Asks `probe` until it gives a value, at most for `limit`; says what it saw last when it never does.
///
/// For what has no event to wait for (a guest's network, a console). Kubernetes objects are waited for with a watch:
/// see [`Home::wait`].
///
/// # Errors
/// The limit has passed.
pub async fn eventually<T, P, F, S>(what: &str, limit: Duration, mut probe: P) -> Result<T>
where
    P: FnMut() -> F,
    F: Future<Output = Result<T, S>>,
    S: Debug,
{
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(saw) if start.elapsed() > limit => bail!("{what}: not within {limit:?}; last saw {saw:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
