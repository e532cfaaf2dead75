//! Starts passt for libvirt, which believes that this is passt.
//!
//! passt wants namespaces of its own, and would not run without them. A pod has no right to make any, and gets none for
//! this: the kernel tells passt that it has them. So it stays in the namespaces of its container, without capabilities
//! and below the container's filter of system calls; the filter that it lays on itself when it has started, which leaves
//! it no files to open and nothing to execute, is in force as everywhere.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// The name by which libvirt looks for it, and by which an executable knows that it shall be this.
pub const NAME: &str = "passt";
/// Where the real one is; one of Debian 12's own would be too old.
const PLACES: [&str; 2] = ["/usr/local/bin/passt", "/usr/bin/passt"];
/// What makes namespaces and empties them.
const ISOLATION: [nix::libc::c_long; 4] = [
    nix::libc::SYS_mount,
    nix::libc::SYS_pivot_root,
    nix::libc::SYS_umount2,
    nix::libc::SYS_unshare,
];
/// Open files for one socket per port of TCP and of UDP, less the ports that the kernel gives to connections.
const ALL_PORTS: u64 = 80_000;

/// Becomes passt with these arguments. Returns only if that fails.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Err(error) = become_passt(arguments.collect());
    eprintln!("passt: {error:#}");
    ExitCode::FAILURE
}

fn become_passt(arguments: Vec<OsString>) -> anyhow::Result<std::convert::Infallible> {
    let Some(program) = PLACES.iter().find(|place| Path::new(place).is_file()) else {
        bail!("passt is not installed; scripts/packages of Ferrovirt installs it");
    };
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if forwards_all(&arguments) && files < ALL_PORTS {
        bail!(
            "forwarding all ports needs {ALL_PORTS} open files, but the node allows {files}: list those that are needed \
             in spec.domain.devices.interfaces[].ports"
        );
    }
    let more = more(&arguments, |interface| {
        std::fs::read_to_string(Path::new("/sys/class/net").join(interface).join("mtu")).ok()
    });
    seccompiler::apply_filter(&filter()?).context("cannot install the filter of system calls")?;
    let error = Command::new(program).args(&arguments).args(more).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

/// The value that follows an option.
fn value<'a>(arguments: &'a [OsString], option: &str) -> Option<&'a OsStr> {
    let at = arguments.iter().position(|argument| argument == option)?;
    arguments.get(at + 1).map(OsString::as_os_str)
}

fn forwards_all(arguments: &[OsString]) -> bool {
    let all = |option| value(arguments, option).is_some_and(|ports| ports == "all");
    all("--tcp-ports") || all("--udp-ports")
}

/// What libvirt does not say: the guest's gateway is the pod's, and no way to what listens on the pod's loopback; and the
/// MTU that DHCP announces is the pod's. (Were it in the domain, libvirt would look for a tap to give it to.)
fn more(arguments: &[OsString], mtu: impl Fn(&OsStr) -> Option<String>) -> Vec<OsString> {
    let mut more = vec!["--no-map-gw".into()];
    if let Some(mtu) = value(arguments, "--interface").and_then(mtu) {
        more.extend(["--mtu".into(), mtu.trim().into()]);
    }
    more
}

fn filter() -> anyhow::Result<BpfProgram> {
    let rules: BTreeMap<i64, _> = ISOLATION.iter().map(|call| (*call, Vec::new())).collect();
    let architecture = std::env::consts::ARCH.try_into().context("filter system calls")?;
    // Of several filters' errors the newest counts, so this is not the container's; and error 0 is success.
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(0), architecture);
    filter
        .and_then(BpfProgram::try_from)
        .context("cannot compile the filter of system calls")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn what_libvirt_does_not_say() {
        let mtu = |interface: &OsStr| (interface == "eth0").then(|| "1480\n".to_owned());
        let given = arguments("--one-off --interface eth0 --tcp-ports 80");
        assert_eq!(more(&given, mtu), arguments("--no-map-gw --mtu 1480"));
        assert_eq!(more(&arguments("--one-off"), mtu), arguments("--no-map-gw"));
    }

    #[test]
    fn all_ports_are_told_from_some() {
        assert!(forwards_all(&arguments("--one-off --tcp-ports 80 --udp-ports all")));
        assert!(!forwards_all(&arguments("--tcp-ports 80,443 --interface all")));
        assert!(!forwards_all(&arguments("--tcp-ports")));
    }

    #[test]
    fn the_filter_compiles() {
        filter().unwrap();
    }
}
