//! The cluster's long-running processes: each has a file with its pid and start time, a log, and a place in the
//! cluster's control groups and namespaces.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};

use super::layout::{CONTROL_NAMESPACE, Layout, Node, write};
use super::{cgroup, node};

/// In which namespaces a component runs.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// The control plane's network, otherwise the host.
    Control,
    /// All namespaces of a node, whose first process is there already.
    Node(Node),
    /// New namespaces around a node's network: its first process.
    NewNode(Node),
}

/// A component of the cluster.
pub struct Component {
    /// Also the name of its log and of its pid file.
    pub name: String,
    /// Where it runs.
    pub place: Place,
    /// What runs.
    pub command: Command,
}

/// A process that this program started, now or earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// As the host counts.
    pub pid: i32,
    started: u64,
}

impl Process {
    /// The component's process, if it still runs. A pid that the system gave to another process since is not it.
    pub fn of(layout: &Layout, component: &str) -> Option<Self> {
        let text = fs::read_to_string(layout.pid_file(component)).ok()?;
        let mut words = text.split_whitespace();
        let process = Self {
            pid: words.next()?.parse().ok()?,
            started: words.next()?.parse().ok()?,
        };
        (words.next()? == boot_id() && process.runs()).then_some(process)
    }

    /// Whether it has not ended.
    pub fn runs(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// Starts the component unless it runs. True when it was started.
///
/// # Errors
/// Its program or its namespaces are missing.
pub fn ensure(layout: &Layout, component: Component) -> Result<bool> {
    if Process::of(layout, &component.name).is_some() {
        return Ok(false);
    }
    start(layout, component)?;
    Ok(true)
}

fn start(layout: &Layout, component: Component) -> Result<()> {
    let Component { name, place, command } = component;
    let log = layout.log(&name);
    if log.exists() {
        // Why the one before has ended.
        fs::rename(&log, log.with_extension("previous.log"))?;
    }
    write(&log, "")?;
    let file = OpenOptions::new().append(true).open(&log)?;
    // Its own session: a terminal that closes takes nothing with it.
    let mut detached = Command::new("setsid");
    detached
        .arg(command.get_program())
        .args(command.get_args())
        .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let namespaces = namespaces(layout, place)?;
    let new = matches!(place, Place::NewNode(_));
    // Namespaces belong to threads: a thread that ends takes its new ones with it, and the child inherits them.
    let child = std::thread::spawn(move || -> Result<_> {
        let mut flags = CloneFlags::CLONE_FS;
        for (file, kind) in namespaces {
            if kind == CloneFlags::CLONE_NEWNS {
                unshare(CloneFlags::CLONE_FS)?;
            }
            setns(file, kind)?;
        }
        if new {
            flags |= CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS;
        }
        unshare(flags)?;
        Ok(detached.spawn()?)
    })
    .join()
    .map_err(|_| anyhow!("the thread that starts {name} ended early"))?
    .with_context(|| format!("cannot start {name}"))?;
    let pid = i32::try_from(child.id())?;
    cgroup::adopt(pid)?;
    let started = started(pid).with_context(|| format!("{name} ended at once; see {}", log.display()))?;
    write(&layout.pid_file(&name), &format!("{pid} {started} {}\n", boot_id()))
}

fn namespaces(layout: &Layout, place: Place) -> Result<Vec<(File, CloneFlags)>> {
    let open = |path: PathBuf| File::open(&path).with_context(|| format!("cannot open {}", path.display()));
    let network = |name: &str| open(PathBuf::from("/run/netns").join(name));
    Ok(match place {
        Place::Control => vec![(network(CONTROL_NAMESPACE)?, CloneFlags::CLONE_NEWNET)],
        Place::NewNode(node) => vec![(network(&node.namespace())?, CloneFlags::CLONE_NEWNET)],
        Place::Node(node) => {
            let name = node::init_name(node);
            let Some(init) = Process::of(layout, &name) else {
                bail!(
                    "the first process of {} has ended; see {}",
                    node.name(),
                    layout.log(&name).display()
                );
            };
            let entry = |file: &str| open(PathBuf::from(format!("/proc/{}/ns/{file}", init.pid)));
            vec![
                (entry("pid")?, CloneFlags::CLONE_NEWPID),
                (entry("ipc")?, CloneFlags::CLONE_NEWIPC),
                (entry("uts")?, CloneFlags::CLONE_NEWUTS),
                (entry("net")?, CloneFlags::CLONE_NEWNET),
                // Last: it changes what paths mean.
                (entry("mnt")?, CloneFlags::CLONE_NEWNS),
            ]
        }
    })
}

/// The end of a log, for an error message.
pub fn tail(log: &Path) -> String {
    const BYTES: u64 = 8192;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(12)..).unwrap_or_default();
            format!("{}:\n  {}", log.display(), last.join("\n  "))
        }
        Err(error) => format!("{}: {error}", log.display()),
    }
}

/// When a process started, in clock ticks since boot; nothing for one that has ended, reaped or not.
fn started(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times() {
        let fields = "1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0";
        for (stat, expected) in [
            (format!("7 (sh) S {fields} 4711 0 0"), Some(4711)),
            (format!("7 (a) b) R {fields} 12 0 0"), Some(12)),
            (format!("7 (sh) Z {fields} 4711 0 0"), None),
            ("7 (sh) S 1".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_stat(&stat), expected, "{stat}");
        }
    }
}
