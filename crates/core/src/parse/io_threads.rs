//! `spec.domain.ioThreadsPolicy`, `ioThreads` and the disks' `dedicatedIOThread`: which thread serves which disk.

use ferrovirt_api::v1::{DiskIOThreads, ResourceRequirements};

use super::Cx;
use crate::cause::FieldPath;
use crate::machine::{Bus, Machine};

const POLICIES: [&str; 3] = ["auto", "shared", "supplementalPool"];
/// More threads than this help nobody.
const MAX_POOL: i64 = 256;

impl Cx<'_> {
    /// Counts the threads of `machine` and gives its disks theirs. Its disks and processors are known.
    pub(super) fn io_threads(
        &mut self,
        policy: Option<&str>,
        threads: Option<&DiskIOThreads>,
        resources: Option<&ResourceRequirements>,
        machine: &mut Machine,
        path: &FieldPath,
    ) {
        let policy = policy.filter(|p| !p.is_empty());
        let field = path.child("ioThreadsPolicy");
        if let Some(policy) = policy {
            self.causes.one_of(&field, policy, &POLICIES);
        }
        let count = threads.and_then(
            |DiskIOThreads {
                 supplemental_pool_thread_count,
             }| *supplemental_pool_thread_count,
        );
        let field = path.child("ioThreads.supplementalPoolThreadCount");
        let pool = match (policy, count) {
            (Some("supplementalPool"), None) => {
                self.causes
                    .required(&field, "ioThreadsPolicy supplementalPool needs a number of threads");
                None
            }
            (Some("supplementalPool"), Some(count)) => {
                if !(1..=MAX_POOL).contains(&count) {
                    self.causes
                        .invalid(&field, format!("{count} is not between 1 and {MAX_POOL}"));
                }
                // Threads are listed disk by disk, also of a spec that is refused: there must not be billions.
                Some(Pool::All(u32::try_from(count.clamp(1, MAX_POOL)).unwrap_or(1)))
            }
            // The number is that policy's, and waits for it.
            (Some("shared"), _) => Some(Pool::Turns(1)),
            (Some(_), _) => Some(Pool::Turns(most(machine, resources))),
            // What a disk has of its own shall not make the others wait for QEMU's main loop.
            (None, _) => {
                let own = machine.disks.iter().any(|disk| disk.dedicated_io_thread);
                own.then_some(Pool::Turns(1))
            }
        };
        assign(machine, pool);
    }
}

/// How many threads the policy `auto` makes at most: two for each CPU that the guest is sure to have. An emulator with a
/// CPU of its own shares it with one thread.
fn most(machine: &Machine, resources: Option<&ResourceRequirements>) -> u32 {
    if machine.cpu.pinning.is_some_and(|pinning| pinning.isolate_emulator) {
        return 1;
    }
    let cpus = resources.and_then(|r| r.requests.get("cpu").or(r.limits.get("cpu"))?.millis().ok());
    let cpus = cpus.and_then(|millis| Some(u32::try_from(millis).ok()?.max(1).div_ceil(1000)));
    cpus.unwrap_or(1).saturating_mul(2)
}

/// Threads that disks share.
#[derive(Clone, Copy)]
enum Pool {
    /// At most so many with those of single disks; each disk has one, in turns.
    Turns(u32),
    /// So many, and all of them serve every disk.
    All(u32),
}

/// The threads of the pool come first, then one for each disk that wants its own.
fn assign(machine: &mut Machine, pool: Option<Pool>) {
    let own = machine.disks.iter().filter(|d| d.dedicated_io_thread).count();
    let own = u32::try_from(own).unwrap_or(u32::MAX);
    // All SCSI disks hang on one controller, which has one thread.
    let scsi = machine.disks.iter().any(|d| d.bus == Bus::Scsi);
    let sharing = |d: &&crate::machine::Disk| d.bus == Bus::Virtio && !d.dedicated_io_thread;
    let sharing = machine.disks.iter().filter(sharing).count() + usize::from(scsi);
    let sharing = u32::try_from(sharing).unwrap_or(u32::MAX);
    let shared = match pool {
        None => 0,
        Some(Pool::All(count)) => count,
        Some(Pool::Turns(limit)) => sharing.min(limit.saturating_sub(own).max(1)),
    };
    let (mut turn, mut next_own) = (0, shared);
    for disk in machine.disks.iter_mut().filter(|d| d.bus == Bus::Virtio) {
        disk.io_threads = if disk.dedicated_io_thread {
            next_own += 1;
            vec![next_own]
        } else {
            match pool {
                Some(Pool::All(count)) => (1..=count).collect(),
                Some(Pool::Turns(_)) if shared > 0 => {
                    turn = turn % shared + 1;
                    vec![turn]
                }
                _ => Vec::new(),
            }
        };
    }
    machine.scsi_io_thread = (scsi && shared > 0).then(|| turn % shared + 1);
    machine.io_threads = next_own;
}
