//! `virtctl version`.

use anyhow::Context;
use serde_json::Value;

use crate::cli::{self, Global};
use crate::connection::Connection;
use crate::{note, say};

const CLIENT: &str = concat!("v", env!("CARGO_PKG_VERSION"));

pub(crate) async fn run(global: &Global, arguments: &cli::Version) -> anyhow::Result<()> {
    say(format_args!(
        "Client Version: {CLIENT} ({}/{})",
        std::env::consts::OS,
        std::env::consts::ARCH
    ))?;
    if arguments.client {
        return Ok(());
    }
    let connection = Connection::open(global)?;
    let found = connection
        .group("version")
        .await
        .context("cannot get the server's version")?;
    let field = |name: &str| found.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let server = field("gitVersion");
    say(format_args!("Server Version: {server} ({})", field("platform")))?;
    if server != CLIENT {
        note(format_args!(
            "Warning: this client is {CLIENT} and the server is {server}: some commands may not work together"
        ));
    }
    Ok(())
}
