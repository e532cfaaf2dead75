//! System calls that no crate of ours wraps safely.
#![expect(
    unsafe_code,
    reason = "ioctl on a pidfd, which neither nix nor rustix offers yet; registration of descriptors"
)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::process::Exit;

/// `PIDFD_INFO_EXIT`: the exit code is wanted, and on return: is there.
const INFO_EXIT: u64 = 1 << 3;

/// `struct pidfd_info`, version 0.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

nix::ioctl_readwrite!(pidfd_get_info, 0xFF, 11, PidfdInfo);

/// The exit of a process that was not our child, once its parent has reaped it; `None` before.
///
/// # Errors
/// The kernel (before 6.15) does not keep it.
pub(super) fn exit_of_reaped(pidfd: BorrowedFd<'_>) -> nix::Result<Option<Exit>> {
    let mut info = PidfdInfo {
        mask: INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the descriptor is open for the whole call, and `info` is a writable value of the size that is
    // part of the request's number, so the kernel writes no more than that.
    unsafe { pidfd_get_info(pidfd.as_raw_fd(), &raw mut info) }?;
    if info.mask & INFO_EXIT == 0 {
        return Ok(None);
    }
    let status = info.exit_code;
    Ok(Some(match status & 0x7f {
        0 => Exit::Code((status >> 8) & 0xff),
        signal => Exit::Signal(signal),
    }))
}

/// The process has ended, and waits for its parent to notice.
pub(super) fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['Z', 'X'])))
        .unwrap_or(true)
}

/// Makes readiness of a descriptor awaitable.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same, until the `AsyncFd` that owns it drops it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
