//! Mistakes of users are refused, and change nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrovirt_e2e::{fails, run};
use libtest_mimic::Trial;
use serde::Deserialize;
use serde_json::Value;

use super::{Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![trial(shared, "invalid-manifests", invalid_manifests)]
}

/// One row of the table in `crates/core/tests/invalid`.
#[derive(Deserialize)]
struct Invalid {
    name: String,
    field: String,
    manifest: Value,
}

fn table() -> Result<Vec<Invalid>> {
    let mut rows = Vec::new();
    for file in std::fs::read_dir(Path::new("../../crates/core/tests/invalid"))? {
        let path = file?.path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            rows.extend(Option::<Invalid>::deserialize(document).with_context(|| path.display().to_string())?);
        }
    }
    Ok(rows)
}

/// The whole table against the real API with the real kubectl: each is refused, names its field, and changes nothing.
async fn invalid_manifests(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let rows = table()?;
    let before = run(&mut home.kubectl(&["get", "vm,vmi", "-n", ns, "-o", "name"]))?;
    // One kubectl sends them all, and says for each file why it was refused.
    let directory = tempfile::tempdir()?;
    let mut files: Vec<(&Invalid, PathBuf)> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let file = directory.path().join(format!("{number:04}.json"));
        std::fs::write(&file, row.manifest.to_string())?;
        files.push((row, file));
    }
    let path = directory.path().to_string_lossy();
    let (_, said) = fails(&mut home.kubectl(&["create", "-n", ns, "-f", &path]))?;
    let mut wrong = Vec::new();
    for (row, file) in &files {
        let name = format!("\"{}\"", file.display());
        let Some((_, answer)) = said.split_once(&name) else {
            wrong.push(format!("{}: was accepted", row.name));
            continue;
        };
        // Up to the answer for the next file.
        let answer = answer.split(&*path).next().unwrap_or_default();
        if !answer.contains(&row.field) {
            wrong.push(format!(
                "{}: {} is not named in: {}",
                row.name,
                row.field,
                answer.trim()
            ));
        }
    }
    let after = run(&mut home.kubectl(&["get", "vm,vmi", "-n", ns, "-o", "name"]))?;
    ensure!(rows.len() >= 200, "the table has only {} rows", rows.len());
    ensure!(
        wrong.is_empty(),
        "{} of {}:\n{}\n\nkubectl said:\n{said}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    ensure!(before == after, "something was created: {after}");
    Ok(())
}
