//! What a machine needs to run guests: looked at before anything is started, told all at once.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use crate::paths::DataDir;
use crate::pods::network::{PLUGINS, find_plugin};

/// Less free space than this is too little to begin with.
const LEAST_FREE: u64 = 512 << 20;

/// Everything that is in the way, each with what to do about it.
pub(crate) fn all(data: &DataDir) -> Vec<String> {
    let mut problems = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        // Without being root, what follows cannot be told.
        return vec!["you are not root: run it with sudo".into()];
    }
    problems.extend(qemu_missing());
    problems.extend(missing(
        "libvirtd",
        &["/usr/sbin/libvirtd", "/usr/bin/libvirtd"],
        "libvirt-daemon",
    ));
    problems.extend(missing(
        "nft",
        &["/usr/sbin/nft", "/usr/bin/nft", "/sbin/nft"],
        "nftables",
    ));
    problems.extend(
        PLUGINS
            .iter()
            .find_map(|plugin| find_plugin(plugin).err())
            .map(|error| error.to_string()),
    );
    if !Path::new("/dev/net/tun").exists() {
        problems.push("there is no /dev/net/tun, which guests' network needs: modprobe tun".into());
    }
    if !has_overlay() {
        problems.push("the kernel has no overlay file system: modprobe overlay".into());
    }
    problems.extend(launcher().err());
    problems.extend(no_space(data.path()));
    problems
}

fn qemu_missing() -> Option<String> {
    let system = format!("qemu-system-{}", std::env::consts::ARCH);
    let package = if std::env::consts::ARCH == "aarch64" {
        "qemu-system-arm"
    } else {
        "qemu-system-x86"
    };
    let path = format!("/usr/bin/{system}");
    missing(&system, &[&path], package).or_else(|| missing("qemu-img", &["/usr/bin/qemu-img"], "qemu-utils"))
}

fn missing(what: &str, places: &[&str], package: &str) -> Option<String> {
    let there = places.iter().any(|place| Path::new(place).is_file());
    (!there).then(|| {
        format!(
            "{what} is not installed: apt install {package} (on Debian 12: apt install -t bookworm-backports {package})"
        )
    })
}

fn has_overlay() -> bool {
    let known = || std::fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("\toverlay"));
    // The module may be there without being loaded; mounting would load it, but telling is better before.
    known()
        || (std::process::Command::new("modprobe")
            .arg("overlay")
            .status()
            .is_ok_and(|status| status.success())
            && known())
}

/// The launcher's executable: beside this one.
pub(crate) fn launcher() -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|error| format!("cannot tell where this executable is: {error}"))?;
    let launcher = me.with_file_name("virt-launcher");
    if launcher.is_file() {
        Ok(launcher)
    } else {
        Err(format!(
            "virt-launcher is not beside {}: build or install both (cargo build -p virt-launcher)",
            me.display()
        ))
    }
}

fn no_space(data: &Path) -> Option<String> {
    let existing = data.ancestors().find(|path| path.exists())?;
    let found = nix::sys::statvfs::statvfs(existing).ok()?;
    let free = found.blocks_available() * found.fragment_size();
    (free < LEAST_FREE).then(|| {
        format!(
            "only {} MiB are free in {}: make room, or choose another place with --data-dir",
            free >> 20,
            existing.display()
        )
    })
}

/// Another program listens there.
pub(crate) fn is_taken(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let problem = missing("frobnicator", &["/nonexistent/frobnicator"], "frob-tools").unwrap();
        assert!(problem.contains("frobnicator is not installed") && problem.contains("apt install frob-tools"));
        assert_eq!(missing("sh", &["/bin/sh"], "dash"), None);
    }

    #[test]
    fn a_taken_port_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(is_taken(listener.local_addr().unwrap()));
        assert!(!is_taken("127.0.0.1:0".parse().unwrap()));
    }
}
