//! What executables and shared libraries need, as `readelf` of binutils (without which nothing is linked) tells it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// One file's needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elf {
    /// File names of libraries.
    pub needed: Vec<String>,
    /// Directories where it looks for them first.
    pub run_path: Vec<String>,
    /// The newest symbol version of glibc that it asks for, as (2, 36).
    pub glibc: Option<(u32, u32)>,
}

/// Whether it is one at all.
pub fn is_elf(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.take(4).read_to_end(&mut magic)?;
    Ok(magic == *b"\x7fELF")
}

/// Reads the files, in their order.
pub fn read(paths: &[&Path]) -> Result<Vec<Elf>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let output = Command::new("readelf")
        .args(["-dVW", "/dev/null"])
        .args(paths)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run readelf; install binutils")?;
    // `/dev/null` makes it name the file above each part, also when there is only one.
    let text = String::from_utf8_lossy(&output.stdout);
    let elves = parse(&text);
    if elves.len() != paths.len() {
        bail!(
            "readelf read {} of {} files: {}",
            elves.len(),
            paths.len(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(elves)
}

fn parse(text: &str) -> Vec<Elf> {
    let mut all: Vec<Elf> = Vec::new();
    for line in text.lines() {
        if let Some(file) = line.strip_prefix("File: ") {
            if file != "/dev/null" {
                all.push(Elf::default());
            }
            continue;
        }
        let Some(elf) = all.last_mut() else { continue };
        let bracketed = || {
            line.split_once('[')
                .and_then(|(_, rest)| rest.split_once(']'))
                .map(|(value, _)| value)
        };
        if line.contains("(NEEDED)") {
            elf.needed.extend(bracketed().map(str::to_owned));
        } else if line.contains("(RUNPATH)") || line.contains("(RPATH)") {
            let dirs = bracketed().into_iter().flat_map(|dirs| dirs.split(':'));
            elf.run_path.extend(dirs.map(str::to_owned));
        } else if let Some(version) = line.split("Name: GLIBC_").nth(1) {
            elf.glibc = elf.glibc.max(glibc(version));
        }
    }
    all
}

/// `2.36` and what follows.
fn glibc(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().next()?;
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_of_files() {
        let text = "File: /dev/null\n\nFile: a\n 0x1 (NEEDED)  Shared library: [libc.so.6]\n\
                    0x1d (RUNPATH) Library runpath: [/a:/b]\n\
                      0x0010:   Name: GLIBC_2.9  Flags: none  Version: 3\n\
                      0x0020:   Name: GLIBC_2.34  Flags: none  Version: 2\n\
                    \nFile: b\nThere is no dynamic section\n";
        let elf = Elf {
            needed: vec!["libc.so.6".to_owned()],
            run_path: vec!["/a".to_owned(), "/b".to_owned()],
            glibc: Some((2, 34)),
        };
        assert_eq!(parse(text), [elf, Elf::default()]);
    }

    #[test]
    fn this_program_needs_glibc() {
        let elves = read(&[&std::env::current_exe().unwrap()]).unwrap();
        assert!(elves[0].needed.iter().any(|name| name == "libc.so.6"), "{elves:?}");
        assert!(elves[0].glibc > Some((2, 2)), "{elves:?}");
    }
}
