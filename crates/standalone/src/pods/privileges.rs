//! Giving up privileges: groups, user, capabilities, system calls.

use std::collections::BTreeMap;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::init::{InitError, Step};
use super::spec::User;

/// System calls that no guest's processes need and that reach beyond a container. They give `EPERM`.
/// (`userfaultfd`, `io_uring` and `memfd` stay: QEMU uses them.)
const DENIED: [i64; 37] = [
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
    libc::SYS_unshare,
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
    for filter in [denied()?, unknown()?] {
        seccompiler::apply_filter(&filter).step(|| "install the system call filter".into())?;
    }
    Ok(())
}

fn denied() -> Result<BpfProgram, InitError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    // A new user namespace would give all capabilities inside of it, and much of the kernel to try them on.
    let flag = u64::from(libc::CLONE_NEWUSER.cast_unsigned());
    let new_user = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)
        .and_then(|condition| SeccompRule::new(vec![condition]));
    rules.insert(
        libc::SYS_clone,
        vec![new_user.step(|| "describe the system call filter".into())?],
    );
    filter(rules, libc::EPERM)
}

/// A filter cannot see the flags of `clone3`; C libraries use `clone` where the kernel does not know it.
fn unknown() -> Result<BpfProgram, InitError> {
    filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, InitError> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .step(|| format!("filter system calls of {}", std::env::consts::ARCH))?;
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        arch,
    )
    .and_then(BpfProgram::try_from)
    .step(|| "compile the system call filter".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile() {
        denied().unwrap();
        unknown().unwrap();
    }
}
