//! The terminal, or what is piped in, joined with the shell of a pod.

use std::io::{IsTerminal, stdin};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::SinkExt;
use futures::channel::mpsc::Sender;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, TerminalSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::pod::CONTAINER;
use crate::note;
use crate::terminal::{self, RawMode};

const CHUNK: usize = 16 * 1024;
/// A shell that has shown nothing after this time showed its prompt before anybody listened.
const PROMPT_DEADLINE: Duration = Duration::from_secs(2);
/// What ends the shell when there is no more input: it reads a terminal, which has no end.
const GOODBYE: &[u8] = b"exit\n";

/// Returns when the shell ends.
pub(super) async fn run(pods: &Api<Pod>, name: &str) -> anyhow::Result<()> {
    let parameters = AttachParams {
        container: Some(CONTAINER.to_owned()),
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
        max_stdin_buf_size: Some(CHUNK),
        max_stdout_buf_size: Some(CHUNK),
        max_stderr_buf_size: None,
    };
    let attached = pods.attach(name, &parameters).await;
    let mut attached = attached.with_context(|| format!("cannot attach to pod {name}"))?;
    let (Some(shell), Some(mut screen)) = (attached.stdin(), attached.stdout()) else {
        bail!("pod {name} has no terminal");
    };
    let status = attached.take_status();
    let sizes = attached.terminal_size();
    let interactive = stdin().is_terminal();
    if interactive {
        note("The disk is at /disk or at /dev/vda. If you do not see a command prompt, try pressing enter.");
    }
    let raw = RawMode::enter()?;
    let mut output = tokio::io::stdout();
    if !interactive {
        // What is typed before a shell has set up its terminal may be lost.
        let mut first = vec![0; CHUNK];
        if let Ok(Ok(length)) = tokio::time::timeout(PROMPT_DEADLINE, screen.read(&mut first)).await {
            output
                .write_all(&first[..length])
                .await
                .context("cannot write to standard output")?;
        }
    }
    let inward = async {
        let copied = tokio::io::copy(&mut screen, &mut output).await;
        copied.context("cannot write to standard output")?;
        output.flush().await.context("cannot write to standard output")
    };
    let shown = tokio::select! {
        shown = inward => shown,
        () = type_in(tokio::io::stdin(), shell) => unreachable!("it waits for the shell"),
        () = resize(sizes) => unreachable!("it waits for the shell"),
    };
    drop(raw);
    shown?;
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    if let Some(failed) = status.filter(|status| status.status.as_deref() == Some("Failure")) {
        bail!("the shell ended: {}", failed.message.unwrap_or_default());
    }
    let joined = attached.join().await;
    joined.with_context(|| format!("the connection to pod {name} broke"))
}

/// Types what comes from `input`; at its end, ends the shell. Never returns: what the shell still shows is waited for.
async fn type_in(mut input: impl AsyncRead + Unpin, mut shell: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; CHUNK];
    let mut last = b'\n';
    while let Ok(length @ 1..) = input.read(&mut buffer).await {
        last = buffer[length - 1];
        if shell.write_all(&buffer[..length]).await.is_err() || shell.flush().await.is_err() {
            break;
        }
    }
    // A shell that is gone already needs no goodbye.
    if last != b'\n' {
        let _ = shell.write_all(b"\n").await;
    }
    let _ = shell.write_all(GOODBYE).await;
    let _ = shell.flush().await;
    std::future::pending::<()>().await;
}

/// Tells the shell the size of the terminal, now and each time that it changes. Never returns.
async fn resize(sizes: Option<Sender<TerminalSize>>) {
    if let (Some(mut sizes), Ok(mut changes)) = (sizes, signal(SignalKind::window_change())) {
        while let Some((width, height)) = terminal::size() {
            if sizes.send(TerminalSize { width, height }).await.is_err() {
                break;
            }
            if changes.recv().await.is_none() {
                break;
            }
        }
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_the_input_ends_the_shell() {
        for (input, typed) in [
            (&b"ls\n"[..], &b"ls\nexit\n"[..]),
            (b"ls", b"ls\nexit\n"),
            (b"", b"exit\n"),
        ] {
            let (near, mut far) = tokio::io::duplex(64);
            let mut found = vec![0; typed.len()];
            tokio::select! {
                () = type_in(input, near) => panic!("it waits"),
                read = far.read_exact(&mut found) => drop(read.unwrap()),
            }
            assert_eq!(found, typed);
        }
    }
}
