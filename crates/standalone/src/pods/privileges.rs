//! Giving up privileges: groups, user, capabilities, system calls.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::init::{InitError, Step};
use super::spec::User;

/// System calls that no guest's processes need and that reach beyond a container. They give `EPERM`.
/// (`userfaultfd`, `io_uring` and `memfd` stay: QEMU uses them.)
const DENIED: [i64; 36] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_writev,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
];

/// Becomes `user` for good: no set-uid program or file capability can give anything back.
pub(super) fn become_user(user: &User) -> Result<(), InitError> {
    let mut kept = CapsHashSet::new();
    for name in &user.capabilities {
        kept.insert(
            name.parse::<Capability>()
                .step(|| format!("read the capability {name}"))?,
        );
    }
    for capability in caps::runtime::procfs_all_supported(None).step(|| "list the kernel's capabilities".into())? {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).step(|| format!("drop {capability}"))?;
        }
    }
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).step(|| "set the groups".into())?;
    setgid(Gid::from_raw(user.gid)).step(|| format!("become group {}", user.gid))?;
    caps::securebits::set_keepcaps(true).step(|| "keep capabilities over the change of user".into())?;
    setuid(Uid::from_raw(user.uid)).step(|| format!("become user {}", user.uid))?;
    for set in [
        CapSet::Effective,
        CapSet::Permitted,
        CapSet::Inheritable,
        CapSet::Ambient,
    ] {
        // Effective must shrink before permitted does, and inheritable be set before ambient.
        caps::set(None, set, &kept).step(|| format!("set the {set:?} capabilities"))?;
    }
    prctl::set_no_new_privs().step(|| "refuse new privileges".into())?;
    seccompiler::apply_filter(&filter()?).step(|| "install the system call filter".into())
}

fn filter() -> Result<BpfProgram, InitError> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .step(|| format!("filter system calls of {}", std::env::consts::ARCH))?;
    let rules = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let errno = u32::try_from(libc::EPERM).unwrap_or(1);
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch)
        .and_then(BpfProgram::try_from)
        .step(|| "compile the system call filter".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles() {
        filter().unwrap();
    }
}
