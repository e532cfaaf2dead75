//! A guest's serial console through `virtctl console`, in a terminal of its own.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A busy guest answers Enter within this time, or is asked again.
const PATIENCE: Duration = Duration::from_secs(3);

/// A running `virtctl console`.
pub struct Console {
    child: Child,
    terminal: std::fs::File,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Console {
    /// Starts the command with a pseudo-terminal as its standard streams.
    ///
    /// # Errors
    /// There is no terminal, or the command cannot be run.
    pub fn open(command: &mut Command) -> Result<Self> {
        let pty = nix::pty::openpty(None, None).context("no pseudo-terminal")?;
        let slave = |fd: &OwnedFd| -> Result<Stdio> { Ok(Stdio::from(fd.try_clone()?)) };
        let child = command
            .stdin(slave(&pty.slave)?)
            .stdout(slave(&pty.slave)?)
            .stderr(slave(&pty.slave)?)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        drop(pty.slave);
        let terminal = std::fs::File::from(pty.master);
        let mut reader = terminal.try_clone()?;
        let (send, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            terminal,
            output,
            seen: String::new(),
        })
    }

    /// Waits for the prompt of a root shell, pressing Enter: a guest drops what is typed before its shell has the terminal.
    ///
    /// # Errors
    /// There is none within `limit`, or the command ends; then with what was seen.
    pub fn shell(&mut self, limit: Duration) -> Result<()> {
        self.expect("exit console", limit)?;
        let end = Instant::now() + limit;
        loop {
            self.send("\n")?;
            match self.expect("# ", PATIENCE) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end || self.child.try_wait()?.is_some() => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Types a line.
    ///
    /// # Errors
    /// The command has ended.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.terminal
            .write_all(text.as_bytes())
            .context("the console has ended")
    }

    /// Waits until `text` appears, and gives what came up to it.
    ///
    /// # Errors
    /// It does not within `limit`, or the command ends; then with what was seen.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.seen, rest));
            }
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => bail!("no {text:?} within {limit:?}; saw {:?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => bail!("the console ended without {text:?}; saw {:?}", self.seen),
            }
        }
    }

    /// Leaves with Ctrl+] and gives the exit code.
    ///
    /// # Errors
    /// The command does not end within 10 s.
    pub fn leave(mut self) -> Result<i32> {
        self.send("\u{1d}")?;
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            if Instant::now() > end {
                bail!("virtctl console goes on after Ctrl+]; saw {:?}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
