//! What the pod runner writes down about a pod, to find it again: `state.json` in the pod's directory.
//!
//! It is written before a container's process runs anything, and after each exit that was seen. It names processes
//! by pid and start time, within one boot of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ferrovirt_protocol::paths;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::network::{Attachment, PortMapping};
use super::process::{Exit, ProcessId};
use super::volumes::Volumes;

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
    /// Where its volumes are, for the case that they cannot be prepared again while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Volumes>,
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

/// What earlier pod runners wrote down, by pod UID.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub records: BTreeMap<String, PodRecord>,
    /// Pods of which something may run, but nobody can tell what.
    pub unreadable: BTreeSet<String>,
}

impl Found {
    /// Reads the records in the kubelet layout's `pods` directory. `may_run` tells of a pod, by its UID, whether
    /// anything of it can run at all: if not, a record that cannot be read is as good as none.
    pub(super) fn look(pods: &Path, may_run: impl Fn(&str) -> bool) -> Self {
        let mut found = Self::default();
        for directory in fs::read_dir(pods).into_iter().flatten().flatten() {
            let error = match PodRecord::load(&directory.path()) {
                Ok(record) => {
                    let record = record.map(|record| (record.uid.clone(), record));
                    found.records.extend(record);
                    continue;
                }
                Err(error) => error,
            };
            let (uid, path) = (directory.file_name(), directory.path().join(FILE));
            let (uid, path) = (uid.to_string_lossy().into_owned(), path.display());
            if may_run(&uid) {
                error!(
                    uid, %path, %error,
                    "cannot read what runs of a pod; it is left as it is. Repair the file, or end the processes of the \
                     pod's cgroups (ferrovirt/UID in /sys/fs/cgroup) and remove it; then start `ferrovirt up` again"
                );
                found.unreadable.insert(uid);
            } else {
                warn!(uid, %path, %error, "cannot read what ran of a pod; nothing of it is left");
            }
        }
        found
    }
}

/// What a launcher that has ended says its exit code was, in its volume in a pod's directory.
pub(super) fn said_exit(pod: &Path) -> Exit {
    let directory = format!("volumes/kubernetes.io~empty-dir/{}", paths::SOCKETS_VOLUME);
    // Whatever a launcher may have put there is not followed, not waited for, and not read to its end.
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(pod.join(directory).join(paths::EXIT_CODE));
    let mut said = String::new();
    let code = file.and_then(|file| file.take(8).read_to_string(&mut said)).ok();
    let code = code.and_then(|_| said.trim().parse::<u8>().ok());
    code.map_or(Exit::Unknown, |code| Exit::Code(code.into()))
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
    use crate::pods::volumes::Source;

    fn record(uid: &str) -> PodRecord {
        let source = Source {
            path: "/volumes/v".into(),
            read_only: true,
        };
        PodRecord {
            uid: uid.into(),
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
            volumes: Some(Volumes {
                sources: [("v".to_owned(), source)].into(),
                images: BTreeMap::new(),
            }),
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
        }
    }

    #[test]
    fn a_record_survives_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(PodRecord::load(directory.path()).unwrap(), None);
        let record = record("u");
        record.save(directory.path()).unwrap();
        assert_eq!(PodRecord::load(directory.path()).unwrap(), Some(record));
    }

    #[test]
    fn a_launcher_says_how_it_ended() {
        let pod = tempfile::tempdir().unwrap();
        assert_eq!(said_exit(pod.path()), Exit::Unknown);
        let volume = pod.path().join("volumes/kubernetes.io~empty-dir/sockets");
        fs::create_dir_all(&volume).unwrap();
        let file = volume.join("exit-code");
        for (content, expected) in [
            ("0", Exit::Code(0)),
            ("1\n", Exit::Code(1)),
            ("256", Exit::Unknown),
            ("", Exit::Unknown),
            ("0000000000000000", Exit::Code(0)),
            ("no", Exit::Unknown),
        ] {
            fs::write(&file, content).unwrap();
            assert_eq!(said_exit(pod.path()), expected, "{content}");
        }
        fs::remove_file(&file).unwrap();
        fs::write(volume.join("other"), "0").unwrap();
        std::os::unix::fs::symlink("other", &file).unwrap();
        assert_eq!(said_exit(pod.path()), Exit::Unknown, "a link");
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(said_exit(pod.path()), Exit::Unknown, "nobody writes");
    }

    #[test]
    fn a_record_of_an_earlier_version_says_nothing_of_volumes() {
        let directory = tempfile::tempdir().unwrap();
        let mut earlier = serde_json::to_value(record("u")).unwrap();
        earlier.as_object_mut().unwrap().remove("volumes").unwrap();
        fs::write(directory.path().join(FILE), earlier.to_string()).unwrap();
        let loaded = PodRecord::load(directory.path()).unwrap().unwrap();
        assert_eq!(loaded.volumes, None);
        assert_eq!(loaded.containers, record("u").containers);
    }

    #[test]
    fn a_record_that_cannot_be_read_matters_where_something_may_run() {
        let pods = tempfile::tempdir().unwrap();
        for uid in ["sound", "runs", "rebooted", "unstarted"] {
            fs::create_dir(pods.path().join(uid)).unwrap();
        }
        record("sound").save(&pods.path().join("sound")).unwrap();
        fs::write(pods.path().join("runs").join(FILE), "{\"uid\": \"runs\"").unwrap();
        fs::write(pods.path().join("rebooted").join(FILE), "").unwrap();
        let found = Found::look(pods.path(), |uid| uid != "rebooted");
        assert_eq!(found.records, [("sound".to_owned(), record("sound"))].into());
        assert_eq!(found.unreadable, ["runs".to_owned()].into());
        assert!(Found::look(&pods.path().join("missing"), |_| true).records.is_empty());
    }
}
