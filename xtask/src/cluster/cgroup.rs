//! The cluster's control groups. Every process of the cluster is in them from its beginning and cannot leave, so they
//! also tell, without any pid file, which processes are ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{CGROUP, Node};
use super::run::until;

/// The control group, below the root, that a node's pods are in.
pub fn of_node(node: Node) -> String {
    format!("/{CGROUP}/{}", node.name())
}

/// Makes the groups of the host's processes and of the nodes in every hierarchy.
pub fn create(nodes: &[Node]) -> Result<()> {
    for root in hierarchies()? {
        let own = root.join(CGROUP);
        for name in nodes.iter().map(|node| node.name()).chain(["system".to_owned()]) {
            let path = own.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
    }
    Ok(())
}

/// Moves a process, with the children that it will have, into the cluster's groups.
pub fn adopt(pid: i32) -> Result<()> {
    let path = tracking()?.join(CGROUP).join("system/cgroup.procs");
    match fs::write(&path, pid.to_string()) {
        // ESRCH: it has ended already, which its starter notices.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        result => result.with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Removes the groups of a node's pods, which have outlived it: a machine that was off begins with none.
pub fn clear(node: Node) -> Result<()> {
    let own = Path::new(CGROUP).join(node.name());
    let roots: Vec<PathBuf> = hierarchies()?.iter().map(|root| root.join(&own)).collect();
    until(Duration::from_secs(5), || {
        let mut pods = roots.iter().flat_map(|root| children(root));
        let busy = pods.find(|group| !remove(group));
        Ok(busy.map(|group| format!("{} is busy", group.display())))
    })
}

/// Ends every process of the cluster and removes its groups. Nothing happens without any.
pub fn destroy() -> Result<()> {
    let roots: Vec<PathBuf> = hierarchies()?.iter().map(|root| root.join(CGROUP)).collect();
    until(Duration::from_secs(20), || {
        let mut left = Vec::new();
        for root in &roots {
            for pid in processes(root) {
                // One that ended in between is no failure.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                left.push(pid);
            }
        }
        left.sort_unstable();
        left.dedup();
        Ok((!left.is_empty()).then(|| format!("processes {left:?} do not end")))
    })?;
    until(Duration::from_secs(5), || {
        Ok(roots
            .iter()
            .find(|root| !remove(root))
            .map(|root| format!("{} is busy", root.display())))
    })
}

/// Whether any process of a cluster runs.
pub fn any_process() -> Result<bool> {
    Ok(!processes(&tracking()?.join(CGROUP)).is_empty())
}

/// Where cgroup hierarchies are mounted.
fn hierarchies() -> Result<Vec<PathBuf>> {
    Ok(parse_mounts(&fs::read_to_string("/proc/self/mounts")?))
}

fn parse_mounts(mounts: &str) -> Vec<PathBuf> {
    let mut v2 = Vec::new();
    let mut v1 = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        match (fields.next(), fields.next(), fields.next()) {
            (_, Some(path), Some("cgroup2")) => v2.push(PathBuf::from(path)),
            (_, Some(path), Some("cgroup")) => v1.push(PathBuf::from(path)),
            _ => {}
        }
    }
    v2.extend(v1);
    v2
}

/// The hierarchy whose membership says which processes are ours: the unified one where there is one.
fn tracking() -> Result<PathBuf> {
    hierarchies()?
        .into_iter()
        .next()
        .context("no control groups are mounted below /sys/fs/cgroup")
}

fn processes(group: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_to_string(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        // 0 is a process of a PID namespace that we do not see; to kill it would kill ourselves.
        .filter(|pid| *pid > 0)
        .collect();
    for child in children(group) {
        found.extend(processes(&child));
    }
    found
}

fn remove(group: &Path) -> bool {
    let busy = children(group).iter().filter(|child| !remove(child)).count();
    busy == 0
        && match fs::remove_dir(group) {
            Ok(()) => true,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
}

fn children(group: &Path) -> Vec<PathBuf> {
    fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_all_kinds_of_hosts() {
        for (mounts, expected) in [
            (
                "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nproc /proc proc rw 0 0\n",
                &["/sys/fs/cgroup"][..],
            ),
            (
                "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                 cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
                &["/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu"][..],
            ),
            ("", &[][..]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(parse_mounts(mounts), expected, "{mounts}");
        }
    }
}
