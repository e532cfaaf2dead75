//! `virtctl expand`.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::cli::{self, Format};
use crate::connection::Connection;
use crate::say;
use crate::target::Kind;

/// Prints a VM with what it takes from its instancetype and preference.
pub(crate) async fn run(connection: &Connection, arguments: &cli::Expand) -> anyhow::Result<()> {
    let expanded = match (&arguments.vm, &arguments.file) {
        (Some(name), _) => {
            let path = connection.path(Kind::Vm, name, None, "expand-spec")?;
            let found = connection.get(&path).await;
            found.with_context(|| format!("cannot expand VirtualMachine {name}"))?
        }
        (None, file) => {
            let file = file.as_deref().unwrap_or(Path::new("-"));
            let text = read(file)?;
            let vm: Value =
                serde_yaml_ng::from_str(&text).with_context(|| format!("cannot read {}", file.display()))?;
            let path = format!("namespaces/{}/expand-vm-spec", connection.namespace);
            let found = connection.put_object(&path, &vm).await;
            found.with_context(|| format!("cannot expand {}", file.display()))?
        }
    };
    print(&expanded, arguments.output)
}

/// Prints an object.
pub(crate) fn print(object: &Value, format: Format) -> anyhow::Result<()> {
    let text = match format {
        Format::Yaml => serde_yaml_ng::to_string(object).context("cannot print the object")?,
        Format::Json => serde_json::to_string_pretty(object).context("cannot print the object")?,
    };
    say(text.trim_end())
}

/// A file, or standard input for `-`.
pub(crate) fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        let read = std::io::stdin().read_to_string(&mut text);
        read.context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
