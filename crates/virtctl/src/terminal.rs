//! The terminal in raw mode.

use std::io::{IsTerminal, stdin};

use anyhow::Context;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// While it lives, keys reach us one by one and unchanged; dropping it gives the terminal back as it was.
pub(crate) struct RawMode {
    before: Option<Termios>,
}

impl RawMode {
    /// Does nothing when standard input is no terminal.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).context("cannot put the terminal into raw mode")?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone; then there is nothing to give back.
            let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

/// Columns and rows of the terminal that standard input is.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
