//! The system calls that no safe wrapper offers.
#![expect(
    unsafe_code,
    reason = "tap ioctls, SO_PEERPIDFD and mounts by descriptor have no safe wrapper"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Not yet among libc's constants for every target: `SO_PEERPIDFD` (Linux 6.5).
const SO_PEERPIDFD: libc::c_int = 77;

/// Creates (or adopts) the persistent tap device `name` in the calling thread's network namespace and lets
/// `uid` and `gid` attach to it, with several queues if `many_queues`. Fails with `EBUSY` while somebody is attached.
pub(crate) fn create_tap(name: &str, uid: u32, gid: u32, many_queues: bool) -> io::Result<()> {
    let tun: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: ifreq is plain data for which all-zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let queues = if many_queues { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = tun.as_raw_fd();
    // SAFETY: fd is open, and request outlives the call, which reads and writes one ifreq.
    check(unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: these three take an integer by value.
    check(unsafe { libc::ioctl(fd, libc::TUNSETOWNER, libc::c_ulong::from(uid)) })?;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(fd, libc::TUNSETGROUP, libc::c_ulong::from(gid)) })?;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, 1 as libc::c_ulong) })
}

/// A pidfd of the process that listens on the other end of a connected unix socket: unlike the pid of
/// `SO_PEERCRED` it cannot come to mean another process.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `length` bytes, the size of `fd`.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    })?;
    // SAFETY: the call succeeded, so fd is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pidfd of a process, for kernels before 6.5. The pid may have come to mean another process meanwhile.
pub(crate) fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers by value.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0 as libc::c_uint) };
    let fd = libc::c_int::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    check(fd)?;
    // SAFETY: the call succeeded, so fd is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the end of a process something to wait for: its pidfd becomes readable.
pub(crate) fn await_process(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, stays the same descriptor, and nobody else closes it.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

/// The directory behind `root` as a mount that is nowhere yet: what is mounted below it is not part of it, nothing in it
/// can be written, run or used as a device. The calling thread must be in the mount namespace of `root`.
pub(crate) fn detached_copy(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: root is open, and the path is an empty string that lives longer than the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, root.as_raw_fd(), c"".as_ptr(), flags) };
    let tree = libc::c_int::try_from(tree).map_err(|_| io::ErrorKind::InvalidData)?;
    check(tree)?;
    // SAFETY: the call succeeded, so it is a new descriptor that nobody else owns.
    let tree = unsafe { OwnedFd::from_raw_fd(tree) };
    // SAFETY: mount_attr is plain data for which all-zero is a valid value.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: tree is open, the path is an empty string, and attributes is as large as said; both outlive the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw mut attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(libc::c_int::try_from(set).map_err(|_| io::ErrorKind::InvalidData)?)?;
    Ok(tree)
}

/// Mounts what [`detached_copy`] returned on the directory `target`. The calling thread must be in its mount namespace.
pub(crate) fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open, and the paths are empty strings that live longer than the call.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    check(libc::c_int::try_from(moved).map_err(|_| io::ErrorKind::InvalidData)?)
}

/// Raises a limit of another process, soft and hard; one that is higher already stays.
pub(crate) fn raise_limit(pid: libc::pid_t, resource: libc::__rlimit_resource_t, to: u64) -> io::Result<()> {
    let mut old = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: old is valid for the kernel to write, and nothing is read.
    check(unsafe { libc::prlimit(pid, resource, std::ptr::null(), &raw mut old) })?;
    let new = libc::rlimit {
        rlim_cur: old.rlim_cur.max(to),
        rlim_max: old.rlim_max.max(to),
    };
    // SAFETY: new is valid for the kernel to read, and nothing is written.
    check(unsafe { libc::prlimit(pid, resource, &raw const new, std::ptr::null_mut()) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
