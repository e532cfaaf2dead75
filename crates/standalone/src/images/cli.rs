//! `ferrovirt image import|list|rm`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::{ImageStore, Origin};

/// Images of this machine. They may be changed while `ferrovirt up` runs.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Bring an OCI layout in under a name that manifests can use as `containerDisk.image`
    #[command(after_help = "Example:\n  ferrovirt image import target/guests/tiny.oci.tar --name demo/tiny:1")]
    Import {
        /// A directory or a tar archive that holds an OCI layout
        path: PathBuf,
        /// The reference it gets, such as demo/tiny:1
        #[arg(long)]
        name: String,
    },
    /// Show what is here
    #[command(alias = "ls")]
    List,
    /// Forget a name, and delete the image when no other name stands for it
    #[command(alias = "remove", after_help = "Example:\n  ferrovirt image rm demo/tiny:1")]
    Rm {
        /// The reference
        name: String,
    },
}

/// Runs one command on the store of `data_dir`.
///
/// # Errors
/// With the name or path and what to do about it.
pub fn run(command: &ImageCommand, data_dir: &Path) -> anyhow::Result<()> {
    let dir = data_dir.join("images");
    let store = ImageStore::open(&dir).with_context(|| format!("cannot use {} (are you root?)", dir.display()))?;
    match command {
        ImageCommand::Import { path, name } => {
            let total = if path.is_file() {
                std::fs::metadata(path).map_or(0, |m| m.len())
            } else {
                0
            };
            let bar = ProgressBar::new(total.saturating_mul(2));
            if let Ok(style) = ProgressStyle::with_template("importing {bytes} {elapsed} {bar:30}") {
                bar.set_style(style);
            }
            let entry = store.import(path, name, &|n| bar.inc(n))?;
            bar.finish_and_clear();
            println!("{name} is {} ({} on disk)", entry.digest, HumanBytes(entry.size));
        }
        ImageCommand::List => {
            let index = store.list()?;
            if index.is_empty() {
                println!("No images. `ferrovirt image import` brings one in; VMs pull theirs when they start.");
                return Ok(());
            }
            let width = index.keys().map(String::len).max().unwrap_or(0).max(4);
            println!("{:width$}  {:<19}  {:>9}  FROM", "NAME", "DIGEST", "SIZE");
            for (name, entry) in index {
                let from = match entry.origin {
                    Origin::Registry => "registry",
                    Origin::Import => "import",
                };
                let digest: String = entry.digest.chars().take(19).collect();
                println!(
                    "{name:width$}  {digest:<19}  {:>9}  {from}",
                    HumanBytes(entry.size).to_string()
                );
            }
        }
        ImageCommand::Rm { name } => {
            store.remove(name)?;
            println!("removed {name}");
        }
    }
    Ok(())
}
