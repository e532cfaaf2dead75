//! Cargo, as called by hand.

use std::process::Command;

/// Cargo without what `cargo run` tells its program of the package it belongs to (`CARGO_PKG_NAME` and so on). The build
/// scripts of some crates, ring's among them, look at the same variables: handed on, they would have these crates, and
/// all that depends on them, built a second time.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let of_package = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"].contains(&name)
        });
        if of_package {
            command.env_remove(name);
        }
    }
    command
}
