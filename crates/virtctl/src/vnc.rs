//! `virtctl vnc`: the display on a local port, and a viewer for it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::cli::{self, VncCommand, VncType};
use crate::connection::{Connection, code};
use crate::console::{absent, warn_if_paused};
use crate::listen;
use crate::target::Kind;
use crate::websocket::{self, End, Socket};
use crate::{note, say};

/// A viewer that was started connects in this time.
const VIEWER_DEADLINE: Duration = Duration::from_mins(1);

/// What a viewer is told, so that it shows the display on `address`.
fn words(kind: VncType, address: SocketAddr) -> Vec<String> {
    let (ip, port) = (address.ip(), address.port());
    match kind {
        VncType::RemoteViewer => vec![format!("vnc://{address}")],
        VncType::Tiger | VncType::VncViewer => vec![format!("{ip}::{port}")],
        VncType::Chicken => vec![format!("{ip}:{port}")],
        // No word about encryption, which is the API server's, and no other session beside this.
        VncType::Real => {
            let quiet = ["-WarnUnencrypted=0", "-Shared=0", "-ShareFiles=0"];
            let mut words = vec![format!("{ip}::{port}")];
            words.extend(quiet.map(str::to_owned));
            words
        }
    }
}

/// What a program is, by its file name.
fn kind_of(path: &Path) -> VncType {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    match name.as_str() {
        name if name.contains("tiger") => VncType::Tiger,
        name if name.contains("vncviewer") => VncType::VncViewer,
        name if name.contains("chicken") => VncType::Chicken,
        name if name.contains("vnc viewer") => VncType::Real,
        _ => VncType::RemoteViewer,
    }
}

/// The viewers that are looked for, the best first.
const VIEWERS: [(VncType, &str); 8] = [
    (VncType::RemoteViewer, "remote-viewer"),
    (VncType::Tiger, "tigervncviewer"),
    (VncType::Tiger, "xtigervncviewer"),
    (VncType::Tiger, "vncviewer"),
    (VncType::VncViewer, "vncviewer"),
    (VncType::Real, "vncviewer"),
    (VncType::Real, "/Applications/VNC Viewer.app/Contents/MacOS/vncviewer"),
    (VncType::Chicken, "/Applications/Chicken.app/Contents/MacOS/Chicken"),
];

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
    // Somebody who may do this may do nothing else; and there is nothing to show of a machine that does not run.
    let socket = match websocket::open(connection, &path).await {
        Ok(socket) => Ok(socket),
        Err(error) if code(&error) == Some(404) => Err(absent(connection, name, error).await),
        Err(error) => Err(error),
    };
    let socket = socket.with_context(|| format!("cannot open the display of {name}"))?;
    warn_if_paused(connection, name).await;
    let Some((kind, program)) = viewer else {
        let listener = listen::tcp(&arguments.address, arguments.port).await?;
        let address = listener.local_addr().context("cannot find out the local port")?;
        say(json!({"port": address.port()}))?;
        let (accepted, _) = listener
            .accept()
            .await
            .context("cannot accept the viewer's connection")?;
        return serve(socket, name, accepted).await;
    };
    let listener = listen::tcp("127.0.0.1", arguments.port).await?;
    let address = listener.local_addr().context("cannot find out the local port")?;
    let mut child = Command::new(&program)
        .args(words(kind, address))
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
        served = serve(socket, name, accepted) => served,
        _ = child.wait() => Ok(()),
    };
    if served.is_ok() {
        // It may still show why the display is gone.
        let _ = child.wait().await;
    }
    served
}

async fn serve(socket: Socket, name: &str, accepted: TcpStream) -> anyhow::Result<()> {
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

fn viewer(arguments: &cli::Vnc) -> anyhow::Result<(VncType, PathBuf)> {
    if let Some(path) = &arguments.vnc_path {
        return Ok((arguments.vnc_type.unwrap_or_else(|| kind_of(path)), path.clone()));
    }
    let wanted = |kind: VncType| arguments.vnc_type.is_none_or(|wanted| wanted == kind);
    let mut candidates = VIEWERS.iter().filter(|(kind, _)| wanted(*kind));
    match candidates.find_map(|(kind, name)| Some((*kind, in_path(name)?))) {
        Some(found) => Ok(found),
        None => bail!(
            "no VNC viewer was found (remote-viewer, vncviewer and others): install one (for example the package \
             virt-viewer or tigervnc-viewer), name yours with --vnc-path, or use --proxy-only and connect a viewer to the \
             printed port"
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
        for (path, kind, first) in [
            ("/usr/bin/remote-viewer", VncType::RemoteViewer, "vnc://127.0.0.1:5901"),
            ("xtigervncviewer", VncType::Tiger, "127.0.0.1::5901"),
            ("/opt/vncviewer", VncType::VncViewer, "127.0.0.1::5901"),
            ("Chicken", VncType::Chicken, "127.0.0.1:5901"),
            ("/x/VNC Viewer", VncType::Real, "127.0.0.1::5901"),
        ] {
            assert_eq!(kind_of(Path::new(path)), kind, "{path}");
            assert_eq!(words(kind, address)[0], first, "{path}");
        }
        assert_eq!(words(VncType::Real, address).len(), 4);
    }
}
