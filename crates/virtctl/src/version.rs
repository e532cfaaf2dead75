//! `virtctl version`.

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::{self, Global};
use crate::connection::Connection;
use crate::{note, say};

const CLIENT: &str = concat!("v", env!("CARGO_PKG_VERSION"));

pub(crate) async fn run(global: &Global, arguments: &cli::Version) -> anyhow::Result<()> {
    say(format_args!("Client Version: {}", info(&client())))?;
    if arguments.client {
        return Ok(());
    }
    let connection = Connection::open(global)?;
    let found = connection
        .group("version")
        .await
        .context("cannot get the server's version")?;
    say(format_args!("Server Version: {}", info(&found)))?;
    let server = field(&found, "gitVersion");
    if server != CLIENT {
        note(format_args!(
            "Warning: this client is {CLIENT} and the server is {server}: some commands may not work together"
        ));
    }
    Ok(())
}

/// Of this program, with the fields that servers answer with.
fn client() -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "gitVersion": CLIENT,
        "compiler": "rustc",
        "platform": format!("{}/{architecture}", std::env::consts::OS),
    })
}

fn field<'a>(version: &'a Value, name: &str) -> &'a str {
    version.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// As Go prints it: scripts look for `GitVersion:"v…"`.
fn info(version: &Value) -> String {
    let fields = [
        ("GitVersion", "gitVersion"),
        ("GitCommit", "gitCommit"),
        ("GitTreeState", "gitTreeState"),
        ("BuildDate", "buildDate"),
        ("GoVersion", "goVersion"),
        ("Compiler", "compiler"),
        ("Platform", "platform"),
    ];
    let parts = fields.map(|(name, key)| format!("{name}:{:?}", field(version, key)));
    format!("version.Info{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_printed_as_go_does() {
        let version = json!({"gitVersion": "v1.2.0", "compiler": "rustc", "platform": "linux/amd64"});
        assert_eq!(
            info(&version),
            "version.Info{GitVersion:\"v1.2.0\", GitCommit:\"\", GitTreeState:\"\", BuildDate:\"\", GoVersion:\"\", \
             Compiler:\"rustc\", Platform:\"linux/amd64\"}"
        );
    }
}
