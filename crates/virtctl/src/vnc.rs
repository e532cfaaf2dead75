//! `virtctl vnc`: the display on a local port, and a viewer for it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::cli::{self, VncCommand};
use crate::connection::Connection;
use crate::console::wait_until_running;
use crate::target::Kind;
use crate::websocket::{self, End};
use crate::{note, say};

/// A machine that is being started may be looked at as soon as it runs.
const RUN_DEADLINE: Duration = Duration::from_mins(5);
/// A viewer that was started connects in this time.
const VIEWER_DEADLINE: Duration = Duration::from_mins(1);

/// How a viewer is told where to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Viewer {
    /// `remote-viewer vnc://HOST:PORT`.
    Remote,
    /// `vncviewer HOST::PORT`.
    Vnc,
}

impl Viewer {
    fn argument(self, address: SocketAddr) -> String {
        match self {
            Self::Remote => format!("vnc://{address}"),
            Self::Vnc => format!("{}::{}", address.ip(), address.port()),
        }
    }

    /// By its file name.
    fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains("vncviewer") {
            Self::Vnc
        } else {
            Self::Remote
        }
    }
}

/// The viewers that are looked for, the best first.
const VIEWERS: [&str; 4] = ["remote-viewer", "vncviewer", "xtigervncviewer", "tigervncviewer"];

/// Saves a picture of the display.
async fn screenshot(connection: &Connection, arguments: &cli::Screenshot) -> anyhow::Result<()> {
    let name = &arguments.name;
    let mut path = connection.path(Kind::Vmi, name, None, "vnc/screenshot")?;
    if arguments.move_cursor {
        path.push_str("?moveCursor=true");
    }
    let picture = connection.get_bytes(&path).await;
    let picture = picture.with_context(|| format!("cannot get a screenshot of VirtualMachineInstance {name}"))?;
    if arguments.file == Path::new("-") {
        let written = std::io::stdout().write_all(&picture);
        return written.context("cannot write to standard output");
    }
    let file = &arguments.file;
    std::fs::write(file, picture).with_context(|| format!("cannot write {}", file.display()))
}

/// Serves one connection of a viewer, or does what else there is to do with a display.
pub(crate) async fn run(connection: &Connection, arguments: &cli::Vnc) -> anyhow::Result<()> {
    if let Some(VncCommand::Screenshot(arguments)) = &arguments.command {
        return screenshot(connection, arguments).await;
    }
    let name = arguments.name.as_deref().unwrap_or_default();
    let mut path = connection.path(Kind::Vmi, name, None, "vnc")?;
    if arguments.preserve_session {
        path.push_str("?preserveSession=true");
    }
    let viewer = if arguments.proxy_only {
        None
    } else {
        Some(viewer(arguments)?)
    };
    wait_until_running(connection, name, RUN_DEADLINE).await?;
    let wanted = SocketAddr::new(arguments.address, arguments.port);
    let listener = TcpListener::bind(wanted)
        .await
        .with_context(|| format!("cannot listen on {wanted}"))?;
    let address = listener.local_addr().context("cannot find out the local port")?;
    let Some((viewer, program)) = viewer else {
        say(json!({"port": address.port()}))?;
        let (accepted, _) = listener
            .accept()
            .await
            .context("cannot accept the viewer's connection")?;
        return serve(connection, &path, name, accepted).await;
    };
    let mut child = Command::new(&program)
        .arg(viewer.argument(address))
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(VIEWER_DEADLINE, listener.accept()) => accepted,
        status = child.wait() => bail!("{} ended before it connected: {}", program.display(), status?),
    };
    let Ok(accepted) = accepted else {
        bail!("{} did not connect to {address}", program.display())
    };
    let (accepted, _) = accepted.context("cannot accept the viewer's connection")?;
    let served = tokio::select! {
        served = serve(connection, &path, name, accepted) => served,
        _ = child.wait() => Ok(()),
    };
    if served.is_ok() {
        // It may still show why the display is gone.
        let _ = child.wait().await;
    }
    served
}

async fn serve(connection: &Connection, path: &str, name: &str, accepted: TcpStream) -> anyhow::Result<()> {
    let socket = websocket::open(connection, path)
        .await
        .with_context(|| format!("cannot open the display of {name}"))?;
    let (read, write) = accepted.into_split();
    match websocket::pump(socket, read, write, None).await {
        End::Local | End::Output => Ok(()),
        End::Closed => {
            note(format_args!(
                "The display of {name} was closed: the machine stopped, or somebody else connected to it."
            ));
            Ok(())
        }
        End::Broken => bail!("the connection to the display of {name} broke"),
    }
}

fn viewer(arguments: &cli::Vnc) -> anyhow::Result<(Viewer, PathBuf)> {
    let kind = arguments.vnc_type.as_deref().map(|kind| match kind {
        "vncviewer" => Viewer::Vnc,
        _ => Viewer::Remote,
    });
    let program = match &arguments.vnc_path {
        Some(path) => Some(path.clone()),
        None => VIEWERS
            .iter()
            .filter(|name| kind.is_none_or(|kind| Viewer::of(Path::new(name)) == kind))
            .find_map(|name| in_path(name)),
    };
    match program {
        Some(program) => Ok((kind.unwrap_or_else(|| Viewer::of(&program)), program)),
        None => bail!(
            "no VNC viewer was found ({}): install one (for example the package virt-viewer or tigervnc-viewer), \
             name yours with --vnc-path, or use --proxy-only and connect a viewer to the printed port",
            VIEWERS.join(", ")
        ),
    }
}

/// Finds a program as the shell does.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viewers_are_told_where_to_connect() {
        let address: SocketAddr = "127.0.0.1:5901".parse().unwrap();
        assert_eq!(
            Viewer::of(Path::new("/usr/bin/remote-viewer")).argument(address),
            "vnc://127.0.0.1:5901"
        );
        assert_eq!(
            Viewer::of(Path::new("xtigervncviewer")).argument(address),
            "127.0.0.1::5901"
        );
    }
}
