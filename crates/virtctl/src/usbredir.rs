//! `virtctl usbredir`: a local USB device in a guest.

use std::net::Ipv4Addr;

use anyhow::{Context, bail};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::cli;
use crate::connection::Connection;
use crate::say;
use crate::target::Kind;
use crate::vnc::in_path;
use crate::websocket::{self, End};

/// What speaks for the device.
const CLIENT: &str = "usbredirect";

/// Serves one device.
pub(crate) async fn run(connection: &Connection, arguments: &cli::Usbredir) -> anyhow::Result<()> {
    let (device, name) = match (arguments.words.as_slice(), arguments.no_launch) {
        ([device, name], false) => (Some(device), name),
        ([name], true) => (None, name),
        ([_], false) => bail!("usbredir needs a device, such as 0951:1666, and the name of an instance"),
        _ => bail!("with --no-launch usbredir takes only the name of an instance"),
    };
    let path = connection.path(Kind::Vmi, name, None, "usbredir")?;
    let program = match device {
        None => None,
        Some(_) => Some(in_path(CLIENT).with_context(|| {
            format!("{CLIENT} was not found: install it (for example the package usbredirect), or use --no-launch")
        })?),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.context("cannot listen on a local port")?;
    let address = listener.local_addr().context("cannot find out the local port")?;
    let (Some(program), Some(device)) = (program, device) else {
        say(address)?;
        let (accepted, _) = listener.accept().await.context("cannot accept the connection")?;
        return serve(connection, &path, name, accepted).await;
    };
    let mut child = Command::new(&program)
        .args(["--device", device, "--to", &address.to_string()])
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let accepted = tokio::select! {
        accepted = listener.accept() => accepted,
        status = child.wait() => bail!("{CLIENT} ended before it connected: {}", status?),
    };
    let (accepted, _) = accepted.context("cannot accept the connection")?;
    tokio::select! {
        served = serve(connection, &path, name, accepted) => served,
        _ = child.wait() => Ok(()),
    }
}

async fn serve(connection: &Connection, path: &str, name: &str, accepted: TcpStream) -> anyhow::Result<()> {
    let socket = websocket::open(connection, path)
        .await
        .with_context(|| format!("cannot redirect a USB device to {name}"))?;
    let (read, write) = accepted.into_split();
    match websocket::pump(socket, read, write, None).await {
        End::Local | End::Output | End::Closed => Ok(()),
        End::Broken => bail!("the connection to {name} broke"),
    }
}
