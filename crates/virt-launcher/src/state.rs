//! What firmware and TPM need before the guest starts; for what outlives its pod, directories in the claim for it.

use std::fs;
use std::io;
use std::path::PathBuf;

use ferrovirt_core::machine::{Boot, Machine};

use crate::layout::Layout;
use crate::swtpm;

/// A place that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare {} for firmware and TPM", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Makes the directories that are not there yet; libvirt and swtpm make what is in them.
pub fn prepare(layout: &Layout, machine: &Machine) -> Result<(), Error> {
    let nvram = matches!(machine.boot, Boot::Efi { persistent: true, .. }).then(|| layout.kept_nvram());
    let tpm = machine.tpm.filter(|tpm| tpm.persistent);
    let tpm = tpm.map(|_| layout.kept_tpm(&machine.uuid.to_string()));
    for path in nvram.iter().chain(&tpm).filter_map(|path| path.parent()) {
        fs::create_dir_all(path).map_err(|source| Error {
            path: path.to_owned(),
            source,
        })?;
    }
    if machine.tpm.is_some() {
        swtpm::configure(&layout.private()).map_err(|(path, source)| Error { path, source })?;
    }
    Ok(())
}
