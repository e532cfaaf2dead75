//! What the guest agent knows.

use anyhow::Context;

use crate::connection::Connection;
use crate::say;
use crate::target::Kind;

/// Prints a subresource as indented JSON.
pub(crate) async fn print(connection: &Connection, name: &str, what: &str) -> anyhow::Result<()> {
    let path = connection.path(Kind::Vmi, name, None, what)?;
    let found = connection.get(&path).await;
    let found = found.with_context(|| format!("cannot get {what} of VirtualMachineInstance {name}"))?;
    say(serde_json::to_string_pretty(&found).context("cannot print the answer")?)
}
