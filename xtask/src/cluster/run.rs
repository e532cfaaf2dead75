//! Short-lived programs.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Runs a program to its end and gives what it printed.
///
/// # Errors
/// It cannot be started, or fails: then with what it said.
pub fn output(program: &str, args: &[&str]) -> Result<String> {
    input(program, args, "")
}

/// Like [`output`], with a standard input.
pub fn input(program: &str, args: &[&str], text: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why itself.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Says what is being done, and how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("cluster: {what} … ");
    std::io::stdout().flush()?;
    let start = Instant::now();
    let result = work();
    match &result {
        Ok(_) => println!("{:.1} s", start.elapsed().as_secs_f32()),
        Err(_) => println!("failed"),
    }
    result
}

/// Asks `ready` until it says yes.
///
/// # Errors
/// `ready` fails, or `limit` is over: then with the last reason that `ready` gave.
pub fn until(limit: Duration, mut ready: impl FnMut() -> Result<Option<String>>) -> Result<()> {
    let start = Instant::now();
    loop {
        let Some(reason) = ready()? else { return Ok(()) };
        if start.elapsed() > limit {
            bail!("after {} s: {reason}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
