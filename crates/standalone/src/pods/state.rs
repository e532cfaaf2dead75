//! What the pod runner writes down about a pod, to find it again: `state.json` in the pod's directory.
//!
//! It is written before a container's process runs anything, and after each exit that was seen. It names processes
//! by pid and start time, within one boot of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::network::{Attachment, PortMapping};
use super::process::{Exit, ProcessId};

const FILE: &str = "state.json";

/// A pod that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodRecord {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The kernel's id of the boot in which it was written.
    pub boot: String,
    pub started_at: Timestamp,
    /// Time to end, when somebody stops it without the API server.
    #[serde(default)]
    pub grace_seconds: u64,
    pub ports: Vec<PortMapping>,
    pub network: Option<Attachment>,
    /// Digests of the image volumes, by volume name.
    #[serde(default)]
    pub images: BTreeMap<String, String>,
    pub containers: BTreeMap<String, ContainerRecord>,
}

/// A container that was started at least once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerRecord {
    /// Names this instance in `containerID`.
    pub id: String,
    pub process: ProcessId,
    pub started_at: Timestamp,
    pub restarts: i32,
    /// How it ended, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// How the instance before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<ContainerRecord>>,
}

/// The end of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ended {
    pub exit: Exit,
    pub at: Timestamp,
    /// The kernel killed it for want of memory.
    pub out_of_memory: bool,
}

impl PodRecord {
    /// Reads the record of a pod's directory; `None` if it has none (nothing was started).
    pub(super) fn load(directory: &Path) -> io::Result<Option<Self>> {
        match fs::read(directory.join(FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the record so that either the old or the new one is there, whatever happens.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        let temporary = directory.join(".state.json.new");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        // Without fsync: after a power loss no process of it is left anyhow.
        fs::rename(temporary, directory.join(FILE))
    }

    /// Removes the record.
    pub(super) fn remove(directory: &Path) {
        let _ = fs::remove_file(directory.join(FILE));
    }
}

/// The kernel's id of this boot.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Where containers of a pod log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogDir(PathBuf);

impl LogDir {
    pub(super) fn new(root: &Path, namespace: &str, name: &str, uid: &str) -> Self {
        Self(root.join(format!("{namespace}_{name}_{uid}")))
    }

    /// The log of one instance of a container.
    pub(super) fn file(&self, container: &str, restarts: i32) -> PathBuf {
        self.0.join(container).join(format!("{restarts}.log"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(PodRecord::load(directory.path()).unwrap(), None);
        let record = PodRecord {
            uid: "u".into(),
            namespace: "ns".into(),
            name: "p".into(),
            boot: boot_id(),
            started_at: Timestamp::UNIX_EPOCH,
            grace_seconds: 30,
            ports: Vec::new(),
            network: Some(Attachment {
                ips: vec!["10.88.0.2".parse().unwrap()],
                result: serde_json::json!({}),
            }),
            images: BTreeMap::new(),
            containers: [(
                "compute".to_owned(),
                ContainerRecord {
                    id: "c".into(),
                    process: ProcessId { pid: 7, start_time: 8 },
                    started_at: Timestamp::UNIX_EPOCH,
                    restarts: 1,
                    ended: Some(Ended {
                        exit: Exit::Signal(9),
                        at: Timestamp::UNIX_EPOCH,
                        out_of_memory: false,
                    }),
                    previous: None,
                },
            )]
            .into(),
        };
        record.save(directory.path()).unwrap();
        assert_eq!(PodRecord::load(directory.path()).unwrap(), Some(record));
    }
}
