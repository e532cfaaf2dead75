//! Processes of this machine, which the nodes of a cluster share.

use std::path::Path;

use anyhow::{Result, bail};

/// All processes: their pids and the words of their command lines.
pub fn all() -> Result<Vec<(i32, Vec<String>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else {
            continue;
        };
        // Processes come and go while we look.
        let Ok(line) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let words = line
            .split(|b| *b == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned());
        found.push((pid, words.collect()));
    }
    Ok(found)
}

/// Those that run `component` of a cluster.
pub fn components(component: &str) -> Result<Vec<i32>> {
    let runs = |words: &[String]| match words {
        [program, first, ..] => Path::new(program).file_name().is_some_and(|n| n == "ferrovirt") && first == component,
        _ => false,
    };
    let found = all()?.into_iter().filter(|(_, words)| runs(words));
    Ok(found.map(|(pid, _)| pid).collect())
}

/// The QEMUs of a VM.
pub fn qemus(ns: &str, vm: &str) -> Result<Vec<i32>> {
    let name = format!("guest={ns}_{vm},");
    let runs = |words: &[String]| {
        words.first().is_some_and(|program| program.contains("qemu-system"))
            && words.iter().any(|word| word.contains(&name))
    };
    let found = all()?.into_iter().filter(|(_, words)| runs(words));
    Ok(found.map(|(pid, _)| pid).collect())
}

/// The QEMU of a VM that runs.
pub fn qemu(ns: &str, vm: &str) -> Result<i32> {
    match qemus(ns, vm)?.as_slice() {
        [pid] => Ok(*pid),
        other => bail!("{ns}/{vm} has {} QEMUs: {other:?}", other.len()),
    }
}
