//! What a pod's network looked like before it was changed, kept on the node until the pod is gone.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;
use super::facts::PodInterface;

/// The record of one pod. Stored before the first change and once more when all is done.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// [`super::NetworkNamespace::id`] it belongs to.
    pub namespace: String,
    /// As the CNI plugins had left it.
    pub interface: PodInterface,
    /// As Multus had left the others.
    #[serde(default)]
    pub others: Vec<PodInterface>,
    /// Preparing came to its end.
    pub done: bool,
}

impl Record {
    /// Reads the record, if there is one. One that cannot be understood counts as none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, Error> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File {
                what: "read",
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Writes it, all or nothing.
    pub(super) fn store(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::File {
            what: "write",
            path: path.to_owned(),
            source,
        };
        let bytes = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let staging = path.with_extension("new");
        std::fs::write(&staging, bytes)
            .and_then(|()| std::fs::rename(&staging, path))
            .map_err(failed)
    }
}
