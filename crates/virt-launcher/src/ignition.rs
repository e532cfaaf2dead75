//! Configuration for Ignition, as a file that QEMU shows to the guest.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use ferrovirt_core::machine::Machine;

use crate::layout::Layout;

/// The file cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Writes the machine's configuration, if it has one; nobody but the launcher's user reads it.
pub fn prepare(layout: &Layout, machine: &Machine) -> Result<(), Error> {
    let Some(data) = &machine.ignition else {
        return Ok(());
    };
    let path = layout.ignition();
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(data.as_bytes())
    };
    write().map_err(|source| Error {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_what_the_annotation_says_and_private() {
        let data = r#"{"ignition":{"version":"3.2.0"}}"#;
        let vmi = serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "annotations": {"kubevirt.io/ignitiondata": data}},
            "spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}}},
        });
        let machine = crate::machine::parse(
            &serde_json::from_value(vmi).unwrap(),
            &crate::machine::config(None, true),
        )
        .unwrap();
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "ns", "vm", "u");
        prepare(&layout, &machine).unwrap();
        assert_eq!(fs::read_to_string(layout.ignition()).unwrap(), data);
        let mode = fs::metadata(layout.ignition()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let without = Machine {
            ignition: None,
            ..machine
        };
        let other = Layout::new(root.path(), "ns", "other", "u");
        prepare(&other, &without).unwrap();
        assert!(!other.ignition().exists());
    }
}
