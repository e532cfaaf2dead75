//! `ferrovirt container-init`: turns a fresh process into a container.
//!
//! It is started by [`super::process`] as process 1 of a new PID namespace, with one thread. It reads a
//! [`ContainerSpec`] from standard input (end of file without one: the pod runner died before it could note this
//! process, so nothing may run), builds the container's root in a private mount namespace, gives up privileges and
//! executes the command. Standard output is a pipe to the pod runner: it is closed by the execution, or says what failed.
//!
//! The root is a read-only tmpfs with the host's `/usr` (our executables laid over it), a few files of the host's
//! `/etc`, own `/dev`, `/proc`, `/sys`, `/tmp` and `/run`, and the volumes. Nothing else of the host can be seen.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::unistd::{Gid, Uid, chdir, chown, pivot_root, sethostname, setsid};

use super::privileges;
use super::spec::{ContainerSpec, Device, ExecSpec, Mount};

/// Where the host's root is while volumes are mounted.
const OLD_ROOT: &str = "/.host";
/// What the container sees of the host's `/etc`, as far as it exists.
const HOST_ETC: [&str; 12] = [
    "alternatives",
    "ca-certificates",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "pki",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
];
/// Directories of the host's root that are links into `/usr` (or, on older systems, real directories).
const ROOT_DIRECTORIES: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Devices every container has: name, major, minor.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Files of `/proc` that tell too much about the host.
const MASKED_PROC: [&str; 6] = [
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "timer_list",
    "kallsyms",
];
/// Parts of `/proc` that would change the host.
const READ_ONLY_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Why a container could not be made, for the pod runner: what was tried, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {cause}")]
pub(super) struct InitError {
    step: String,
    cause: String,
}

pub(super) trait Step<T> {
    /// Names what failed.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, InitError>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, InitError> {
        self.map_err(|cause| InitError {
            step: step(),
            cause: cause.to_string(),
        })
    }
}

/// Becomes the container that standard input describes. Returns only when that failed, with the exit code.
#[must_use]
pub fn main() -> i32 {
    let mut text = String::new();
    if std::io::stdin().read_to_string(&mut text).is_err() || text.is_empty() {
        return 1;
    }
    let Ok(status) = std::io::stdout().as_fd().try_clone_to_owned() else {
        return 1;
    };
    let error = match become_container(&text) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // Nobody is left to tell when this fails too.
    let _ = File::from(status).write_all(error.to_string().as_bytes());
    1
}

/// Hidden subcommand that [`main`] answers.
pub const INIT_SUBCOMMAND: &str = "container-init";
/// Hidden subcommand that [`exec_main`] answers.
pub const EXEC_SUBCOMMAND: &str = "container-exec";

/// `ferrovirt container-exec SPEC`: enters the namespaces of a running container, of which the process is a member of the PID
/// namespace already, and executes a command there. Returns only when that failed, with the exit code.
#[must_use]
pub fn exec_main(text: &str) -> i32 {
    let error = match enter_container(text) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("{error}");
    126
}

fn enter_container(text: &str) -> Result<std::convert::Infallible, InitError> {
    let spec: ExecSpec = serde_json::from_str(text).step(|| "read the command".into())?;
    // We are in the container's PID namespace, where its first process is number 1.
    let container = rustix::process::pidfd_open(rustix::process::Pid::INIT, rustix::process::PidfdFlags::empty())
        .step(|| "find the container".into())?;
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    setns(container, namespaces).step(|| "enter the container".into())?;
    chdir("/").step(|| "enter the root".into())?;
    setsid().step(|| "start a session".into())?;
    if spec.tty {
        rustix::process::ioctl_tiocsctty(std::io::stdin()).step(|| "take the terminal".into())?;
    }
    privileges::become_user(&spec.user)?;
    let (program, arguments) = spec
        .command
        .split_first()
        .ok_or("empty")
        .step(|| "read the command".into())?;
    let error = Command::new(program).args(arguments).env_clear().envs(&spec.env).exec();
    Err(error).step(|| format!("execute {program}"))
}

fn become_container(text: &str) -> Result<std::convert::Infallible, InitError> {
    let spec: ContainerSpec = serde_json::from_str(text).step(|| "read the container's description".into())?;
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&spec.log)
        .step(|| format!("open the log {}", spec.log.display()))?;
    umask(Mode::empty());
    setsid().step(|| "start a session".into())?;
    for cgroup in &spec.cgroups {
        fs::write(cgroup, "0").step(|| format!("enter the cgroup {}", cgroup.display()))?;
    }
    let netns = File::open(&spec.netns).step(|| format!("open the network namespace {}", spec.netns.display()))?;
    setns(netns, CloneFlags::CLONE_NEWNET).step(|| "enter the pod's network namespace".into())?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
        .step(|| "make namespaces".into())?;
    sethostname(&spec.hostname).step(|| format!("set the host name {}", spec.hostname))?;
    build_root(&spec)?;
    umask(Mode::from_bits_truncate(0o022));
    chdir(&spec.cwd).step(|| format!("enter the working directory {}", spec.cwd.display()))?;
    privileges::become_user(&spec.user)?;
    let (program, arguments) = spec
        .command
        .split_first()
        .ok_or("empty")
        .step(|| "read the command".into())?;
    let output = log.try_clone().step(|| "share the log".into())?;
    let error = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(&spec.env)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(log)
        .exec();
    Err(error).step(|| format!("execute {program}"))
}

fn build_root(spec: &ContainerSpec) -> Result<(), InitError> {
    mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_SLAVE, None)?;
    let root = &spec.mount_point;
    mount_at(
        Some("tmpfs"),
        root,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=0755,size=1m"),
    )?;
    for directory in [
        "usr", "etc", "dev", "proc", "sys", "tmp", "run", "root", "home", "mnt", "opt", "srv",
    ] {
        make_directory(&root.join(directory))?;
    }
    for directory in ["var/lib", "var/cache", "var/log", "var/spool"] {
        make_directory(&root.join(directory))?;
    }
    link("../run", &root.join("var/run"))?;
    link("../run/lock", &root.join("var/lock"))?;
    link("../tmp", &root.join("var/tmp"))?;
    mount_usr(spec, root)?;
    make_directory(&root.join(&OLD_ROOT[1..]))?;
    pivot_root(root, &root.join(&OLD_ROOT[1..])).step(|| format!("make {} the root", root.display()))?;
    chdir("/").step(|| "enter the new root".into())?;
    host_directories()?;
    etc(spec)?;
    dev(&spec.devices)?;
    proc_and_sys()?;
    let owner = format!("mode=0755,size=64m,uid={},gid={}", spec.user.uid, spec.user.gid);
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at(Some("tmpfs"), Path::new("/run"), Some("tmpfs"), quiet, Some(&owner))?;
    mount_at(
        Some("tmpfs"),
        Path::new("/tmp"),
        Some("tmpfs"),
        quiet,
        Some("mode=1777,size=64m"),
    )?;
    make_directory(Path::new("/run/lock"))?;
    for (source, target) in &spec.executables {
        bind(&Mount {
            source: source.clone(),
            target: target.clone(),
            read_only: true,
        })?;
    }
    let mut mounts: Vec<&Mount> = spec.mounts.iter().collect();
    // A parent before what is mounted inside it.
    mounts.sort_by_key(|mount| mount.target.components().count());
    for mount in mounts {
        bind(mount)?;
    }
    umount2(OLD_ROOT, MntFlags::MNT_DETACH).step(|| "let go of the host's root".into())?;
    fs::remove_dir(OLD_ROOT).step(|| "remove the host root's mount point".into())?;
    remount_read_only(Path::new("/"))
}

/// The host's `/usr` with the placeholders of our executables laid over it.
fn mount_usr(spec: &ContainerSpec, root: &Path) -> Result<(), InitError> {
    let layers = format!("lowerdir={}:/usr", spec.skeleton.display());
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at(
        Some("overlay"),
        &root.join("usr"),
        Some("overlay"),
        flags,
        Some(&layers),
    )
}

fn host_directories() -> Result<(), InitError> {
    for name in ROOT_DIRECTORIES {
        let host = Path::new(OLD_ROOT).join(name);
        let here = Path::new("/").join(name);
        match fs::symlink_metadata(&host) {
            Ok(metadata) if metadata.is_symlink() => {
                let target = fs::read_link(&host).step(|| format!("read the link /{name}"))?;
                link(&target, &here)?;
            }
            Ok(metadata) if metadata.is_dir() => {
                bind(&Mount {
                    source: Path::new("/").join(name),
                    target: here,
                    read_only: true,
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn etc(spec: &ContainerSpec) -> Result<(), InitError> {
    for name in HOST_ETC {
        let host = Path::new("/etc").join(name);
        // Follows links (localtime), which must be resolved on the host's side.
        let seen = Path::new(OLD_ROOT).join("etc").join(name);
        match fs::read_link(&seen) {
            Ok(target) if target.is_absolute() && target.starts_with("/usr") => link(&target, &host)?,
            Ok(_) => {}
            Err(_) if seen.exists() => {
                bind(&Mount {
                    source: host.clone(),
                    target: host,
                    read_only: true,
                })?;
            }
            Err(_) => {}
        }
    }
    for (name, content) in &spec.etc {
        let path = Path::new("/etc").join(name);
        fs::write(&path, content).step(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .step(|| format!("set the mode of {}", path.display()))?;
    }
    Ok(())
}

fn dev(more: &[Device]) -> Result<(), InitError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_at(
        Some("tmpfs"),
        Path::new("/dev"),
        Some("tmpfs"),
        flags,
        Some("mode=0755,size=64k"),
    )?;
    let standard = DEVICES.map(|(name, major, minor)| Device {
        name: name.into(),
        major,
        minor,
        mode: 0o666,
        gid: 0,
    });
    for device in standard.iter().chain(more) {
        let path = Path::new("/dev").join(&device.name);
        if let Some(parent) = path.parent() {
            make_directory(parent)?;
        }
        let mode = Mode::from_bits_truncate(device.mode);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(device.major, device.minor))
            .step(|| format!("make the device {}", path.display()))?;
        chown(&path, Some(Uid::from_raw(0)), Some(Gid::from_raw(device.gid)))
            .step(|| format!("give away {}", path.display()))?;
    }
    make_directory(Path::new("/dev/pts"))?;
    make_directory(Path::new("/dev/shm"))?;
    mount_at(
        Some("devpts"),
        Path::new("/dev/pts"),
        Some("devpts"),
        flags,
        Some("newinstance,ptmxmode=0666,mode=0620"),
    )?;
    let shm = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at(
        Some("tmpfs"),
        Path::new("/dev/shm"),
        Some("tmpfs"),
        shm,
        Some("mode=1777,size=64m"),
    )?;
    link("pts/ptmx", Path::new("/dev/ptmx"))?;
    link("/proc/self/fd", Path::new("/dev/fd"))?;
    link("/proc/self/fd/0", Path::new("/dev/stdin"))?;
    link("/proc/self/fd/1", Path::new("/dev/stdout"))?;
    link("/proc/self/fd/2", Path::new("/dev/stderr"))?;
    remount(Path::new("/dev"), flags | MsFlags::MS_RDONLY)
}

fn proc_and_sys() -> Result<(), InitError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at(Some("proc"), Path::new("/proc"), Some("proc"), flags, None)?;
    for name in MASKED_PROC {
        let path = Path::new("/proc").join(name);
        if path.exists() {
            mount_at(Some("/dev/null"), &path, None, MsFlags::MS_BIND, None)?;
        }
    }
    for name in READ_ONLY_PROC {
        let path = Path::new("/proc").join(name);
        if path.exists() {
            let source = path.to_string_lossy();
            mount_at(Some(source.as_ref()), &path, None, MsFlags::MS_BIND, None)?;
            remount(&path, flags | MsFlags::MS_RDONLY)?;
        }
    }
    mount_at(
        Some("sysfs"),
        Path::new("/sys"),
        Some("sysfs"),
        flags | MsFlags::MS_RDONLY,
        None,
    )
}

/// Mounts `mount.source` of the host; its target is created as a directory or file, whatever the source is.
fn bind(mount: &Mount) -> Result<(), InitError> {
    let Mount {
        source,
        target,
        read_only,
    } = mount;
    let host = in_old_root(source);
    let metadata = fs::metadata(&host).step(|| format!("find {} on the host", source.display()))?;
    if metadata.is_dir() {
        make_directory(target)?;
    } else if !target.exists() {
        target.parent().map_or(Ok(()), make_directory)?;
        File::create(target).step(|| format!("make the mount point {}", target.display()))?;
    }
    let from = host.to_string_lossy();
    mount_at(
        Some(from.as_ref()),
        target,
        None,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None,
    )?;
    if *read_only {
        remount(target, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
    } else {
        Ok(())
    }
}

fn in_old_root(path: &Path) -> PathBuf {
    Path::new(OLD_ROOT).join(path.strip_prefix("/").unwrap_or(path))
}

fn remount(target: &Path, flags: MsFlags) -> Result<(), InitError> {
    mount_at(None, target, None, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, None)
}

fn remount_read_only(target: &Path) -> Result<(), InitError> {
    remount(target, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID)
}

fn mount_at(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), InitError> {
    mount(source, target, kind, flags, data)
        .step(|| format!("mount {} at {}", source.or(kind).unwrap_or("flags"), target.display()))
}

fn make_directory(path: &Path) -> Result<(), InitError> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_directory)?;
    fs::create_dir(path).step(|| format!("make the directory {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).step(|| format!("set the mode of {}", path.display()))
}

fn link(target: impl AsRef<Path>, path: &Path) -> Result<(), InitError> {
    symlink(target, path).step(|| format!("make the link {}", path.display()))
}
