//! The CPUs that this pod may use.

use std::fs;
use std::path::Path;

use ferrovirt_domain::HostCpu;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Where the kernel describes its CPUs.
const CPUS: &str = "/sys/devices/system/cpu";

/// All of them, those of one core side by side.
pub fn own() -> Vec<HostCpu> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    let ids = (0..CpuSet::count()).filter(|id| set.is_set(*id).unwrap_or_default());
    let ids = ids.filter_map(|id| u32::try_from(id).ok()).collect();
    ordered(ids, Path::new(CPUS))
}

fn ordered(ids: Vec<u32>, root: &Path) -> Vec<HostCpu> {
    let mut cpus: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let directory = root.join(format!("cpu{id}"));
            let number = |file: &str| {
                let text = fs::read_to_string(directory.join("topology").join(file)).ok()?;
                text.trim().parse::<u32>().ok()
            };
            let node = node(&directory);
            let package = number("physical_package_id").unwrap_or_default();
            let core = number("core_id").unwrap_or(id);
            (node, package, core, HostCpu { id, node })
        })
        .collect();
    cpus.sort_by_key(|(node, package, core, cpu)| (*node, *package, *core, cpu.id));
    cpus.into_iter().map(|(.., cpu)| cpu).collect()
}

/// A CPU's directory has a link to that of its NUMA node.
fn node(directory: &Path) -> u32 {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut nodes = names.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok());
    nodes.next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_are_neighbours() {
        let root = tempfile::tempdir().unwrap();
        // Two nodes of two cores of two threads, numbered as most firmware does.
        for id in 0..8 {
            let directory = root.path().join(format!("cpu{id}"));
            fs::create_dir_all(directory.join("topology")).unwrap();
            fs::create_dir(directory.join(format!("node{}", id % 2))).unwrap();
            fs::write(directory.join("topology/physical_package_id"), format!("{}\n", id % 2)).unwrap();
            fs::write(directory.join("topology/core_id"), format!("{}\n", id / 2 % 2)).unwrap();
        }
        let ids = |given: &[u32]| -> Vec<(u32, u32)> {
            let cpus = ordered(given.to_vec(), root.path());
            cpus.iter().map(|cpu| (cpu.id, cpu.node)).collect()
        };
        assert_eq!(
            ids(&[0, 1, 2, 3, 4, 5, 6, 7]),
            [(0, 0), (4, 0), (2, 0), (6, 0), (1, 1), (5, 1), (3, 1), (7, 1)]
        );
        assert_eq!(ids(&[6, 2, 0]), [(0, 0), (2, 0), (6, 0)]);
        assert_eq!(
            ordered(vec![9], root.path()),
            [HostCpu { id: 9, node: 0 }],
            "unknown to the kernel"
        );
    }

    #[test]
    fn this_process_runs_somewhere() {
        assert!(!own().is_empty());
    }
}
