//! Limits: one cgroup per container, below `ferrovirt/<pod uid>` of each hierarchy.
//!
//! Version 2 is used where it has controllers, else version 1's memory, cpu and pids hierarchies. What is not there
//! is left out with one warning per start: a missing controller must not keep a guest from running.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::ResourceRequirements;

use crate::quantity;

const ROOT: &str = "/sys/fs/cgroup";
/// Our part of each hierarchy.
const SLICE: &str = "ferrovirt";
/// One scheduling period, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// Processes and threads of one container.
const PIDS: u64 = 32_768;

/// What a container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes.
    memory: Option<u64>,
    /// Thousandths of a processor.
    cpu: Option<u64>,
    /// Thousandths of a processor it may count on.
    cpu_request: Option<u64>,
}

impl Limits {
    pub(super) fn of(resources: Option<&ResourceRequirements>) -> Self {
        let limit = |name: &str| resources?.limits.as_ref()?.get(name);
        let request = |name: &str| resources?.requests.as_ref()?.get(name);
        Self {
            memory: limit("memory").and_then(quantity::bytes),
            cpu: limit("cpu").and_then(quantity::millis),
            cpu_request: request("cpu").or(limit("cpu")).and_then(quantity::millis),
        }
    }

    /// Files of version 2 and what they get.
    fn v2(self) -> Vec<(&'static str, String)> {
        let mut files = vec![("pids.max", PIDS.to_string())];
        if let Some(bytes) = self.memory {
            files.push(("memory.max", bytes.to_string()));
        }
        if let Some(millis) = self.cpu {
            files.push(("cpu.max", format!("{} {CPU_PERIOD}", quota(millis))));
        }
        if let Some(millis) = self.cpu_request {
            // The mapping that container runtimes use between version 1's shares and version 2's weight.
            let weight = 1 + (shares(millis).saturating_sub(2) * 9_999) / 262_142;
            files.push(("cpu.weight", weight.to_string()));
        }
        files
    }

    /// Controllers of version 1 with their files.
    fn v1(self) -> [(&'static str, Vec<(&'static str, String)>); 3] {
        let memory = self.memory.map(|bytes| ("memory.limit_in_bytes", bytes.to_string()));
        let mut cpu = Vec::new();
        if let Some(millis) = self.cpu {
            cpu.push(("cpu.cfs_period_us", CPU_PERIOD.to_string()));
            cpu.push(("cpu.cfs_quota_us", quota(millis).to_string()));
        }
        if let Some(millis) = self.cpu_request {
            cpu.push(("cpu.shares", shares(millis).to_string()));
        }
        [
            ("memory", memory.into_iter().collect()),
            ("cpu", cpu),
            ("pids", vec![("pids.max", PIDS.to_string())]),
        ]
    }
}

fn quota(millis: u64) -> u64 {
    (millis * CPU_PERIOD / 1000).max(1000)
}

fn shares(millis: u64) -> u64 {
    (millis * 1024 / 1000).clamp(2, 262_144)
}

/// The cgroups of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cgroup {
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the cgroups of a container with its limits.
    pub(super) fn create(uid: &str, container: &str, limits: Limits) -> Self {
        let root = Path::new(ROOT);
        let relative = Path::new(SLICE).join(uid).join(container);
        let mut directories = Vec::new();
        if root.join("cgroup.controllers").exists() {
            directories.extend(create_v2(root, &relative, &limits.v2()));
        } else {
            for (controller, files) in limits.v1() {
                directories.extend(create(&root.join(controller), &relative, &files));
            }
        }
        Self { directories }
    }

    /// The files that a process writes itself to.
    pub(super) fn procs(&self) -> Vec<PathBuf> {
        self.directories
            .iter()
            .map(|directory| directory.join("cgroup.procs"))
            .collect()
    }
}

/// How many processes of a container the kernel has killed for want of memory.
pub(super) fn oom_kills(uid: &str, container: &str) -> u64 {
    let relative = Path::new(SLICE).join(uid).join(container);
    let v2 = Path::new(ROOT).join(&relative).join("memory.events");
    let v1 = Path::new(ROOT)
        .join("memory")
        .join(&relative)
        .join("memory.oom_control");
    let text = fs::read_to_string(v2)
        .or_else(|_| fs::read_to_string(v1))
        .unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

/// Removes the cgroups of a pod whose processes are gone.
pub(super) fn remove(uid: &str) {
    let root = Path::new(ROOT);
    for hierarchy in [
        root.to_owned(),
        root.join("memory"),
        root.join("cpu"),
        root.join("pids"),
    ] {
        let pod = hierarchy.join(SLICE).join(uid);
        for entry in fs::read_dir(&pod).into_iter().flatten().flatten() {
            // Only directories of a cgroup file system can be removed, and only when they are empty.
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&pod);
    }
}

fn create_v2(root: &Path, relative: &Path, files: &[(&str, String)]) -> Option<PathBuf> {
    let mut directory = root.to_owned();
    for component in relative.components() {
        for controller in ["+memory", "+cpu", "+pids"] {
            let _ = fs::write(directory.join("cgroup.subtree_control"), controller);
        }
        directory.push(component);
        if let Err(error) = create_directory(&directory) {
            tracing::warn!(cgroup = %directory.display(), %error, "a container runs without limits");
            return None;
        }
    }
    set(&directory, files);
    Some(directory)
}

fn create(root: &Path, relative: &Path, files: &[(&str, String)]) -> Option<PathBuf> {
    let directory = root.join(relative);
    if !root.join("cgroup.procs").exists() {
        return None;
    }
    if let Err(error) = fs::create_dir_all(&directory) {
        tracing::warn!(cgroup = %directory.display(), %error, "a container runs without these limits");
        return None;
    }
    set(&directory, files);
    Some(directory)
}

fn create_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn set(directory: &Path, files: &[(&str, String)]) {
    for (file, value) in files {
        if let Err(error) = fs::write(directory.join(file), value) {
            tracing::warn!(cgroup = %directory.display(), file, value, %error, "a limit is not in force");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    #[test]
    fn limits_become_files() {
        let resources = ResourceRequirements {
            limits: Some(
                [
                    ("memory".into(), Quantity("60M".into())),
                    ("cpu".into(), Quantity("15m".into())),
                ]
                .into(),
            ),
            requests: Some([("cpu".into(), Quantity("5m".into()))].into()),
            ..ResourceRequirements::default()
        };
        let limits = Limits::of(Some(&resources));
        let v2 = limits.v2();
        assert!(v2.contains(&("memory.max", "60000000".into())));
        assert!(v2.contains(&("cpu.max", "1500 100000".into())));
        assert!(v2.contains(&("cpu.weight", "1".into())));
        assert!(limits.v1()[1].1.contains(&("cpu.shares", "5".into())));
    }

    #[test]
    fn without_limits_only_processes_are_bounded() {
        assert_eq!(Limits::of(None).v2().len(), 1);
    }
}
