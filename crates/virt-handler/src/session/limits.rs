//! What the processes of a launcher may do beyond what the container runtime allowed them: lock memory that devices
//! reach by themselves, run vCPUs before everything else, and forward all ports. libvirt, which has no privileges here,
//! hands the limits on to QEMU and passt.

use std::io;

use ferrovirt_core::machine::{Binding, Machine};

use super::launcher::Launcher;
use super::peer::PeerError;
use crate::syscall::raise_limit;

/// What libvirt adds for devices that reach memory by themselves: their registers are locked, too.
const DEVICES: u64 = 1 << 30;

/// Open files of passt where it forwards all ports but those that the kernel gives to connections: one for each port of
/// TCP and of UDP, and some for connections.
const ALL_PORTS: u64 = 1 << 17;

/// Limits of a launcher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of memory that may be locked.
    memory: Option<u64>,
    /// Highest real-time priority.
    priority: Option<u64>,
    /// Files that may be open.
    files: Option<u64>,
}

impl Limits {
    /// What QEMU needs for this machine.
    pub(crate) fn of(machine: &Machine) -> Self {
        let locks = machine.memory.lockable || machine.has_vfio() || machine.launch_security.is_some();
        let all_ports = machine
            .interfaces
            .iter()
            .any(|nic| nic.binding == Binding::Passt && nic.ports.is_empty());
        let memory = machine.memory.max_guest.unwrap_or(machine.memory.guest);
        Self {
            memory: locks.then(|| memory.saturating_add(DEVICES)),
            priority: (!machine.cpu.realtime.is_empty()).then_some(1),
            files: all_ports.then_some(ALL_PORTS),
        }
    }

    /// Gives them to the launcher and all that it has started.
    pub(crate) fn give(self, launcher: &Launcher) -> Result<(), PeerError> {
        if self == Self::default() {
            return Ok(());
        }
        for pid in launcher.processes()? {
            match self.give_one(pid) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn give_one(self, pid: i32) -> io::Result<()> {
        if let Some(bytes) = self.memory {
            raise_limit(pid, libc::RLIMIT_MEMLOCK, bytes)?;
        }
        if let Some(priority) = self.priority {
            raise_limit(pid, libc::RLIMIT_RTPRIO, priority)?;
        }
        if let Some(files) = self.files {
            raise_limit(pid, libc::RLIMIT_NOFILE, files)?;
        }
        Ok(())
    }
}

/// A process and all that descend from it.
pub(crate) fn family(pid: i32) -> io::Result<Vec<i32>> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(parent) = all.get(next) {
        next += 1;
        let tasks = match std::fs::read_dir(format!("/proc/{parent}/task")) {
            Ok(tasks) => tasks,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for task in tasks {
            // A thread that has ended has no children left.
            let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        found.retain(|pid| !all.contains(pid));
        all.extend(found);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use ferrovirt_core::ClusterConfig;
    use serde_json::{Value, json};

    use super::*;

    fn limits(domain: &Value) -> Limits {
        let networks = match domain["devices"]["interfaces"].is_array() {
            true => json!([{"name": "default", "pod": {}}]),
            false => json!([]),
        };
        let vmi = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"},
            "spec": {"domain": domain, "networks": networks},
        }));
        Limits::of(&Machine::parse(&vmi.unwrap(), &ClusterConfig::permissive()).unwrap())
    }

    /// Shows `spec.domain.memory.reservedOverhead.memLock`.
    #[test]
    fn what_a_machine_needs() {
        let none = Limits::default();
        let memory = |lock: &str| json!({"guest": "1Gi", "maxGuest": "1Gi", "reservedOverhead": {"memLock": lock}});
        let cpu =
            json!({"cores": 2, "dedicatedCpuPlacement": true, "numa": {"guestMappingPassthrough": {}}, "realtime": {}});
        let huge = json!({"guest": "64Mi", "hugepages": {"pageSize": "2Mi"}});
        let locked = Limits {
            memory: Some(2 << 30),
            ..none
        };
        let prior = Limits {
            priority: Some(1),
            ..none
        };
        let all_ports = Limits {
            files: Some(ALL_PORTS),
            ..none
        };
        let passt = |ports: &Value| {
            let nic = json!({"name": "default", "passtBinding": {}, "ports": ports});
            json!({"devices": {"interfaces": [nic]}, "memory": {"guest": "1Gi"}})
        };
        for (domain, expected) in [
            (json!({"devices": {}, "memory": {"guest": "1Gi"}}), none),
            (json!({"devices": {}, "memory": memory("NotRequired")}), none),
            (json!({"devices": {}, "memory": memory("Required")}), locked),
            (
                json!({"devices": {"gpus": [{"name": "g", "deviceName": "ex.com/g"}]}, "memory": memory("")}),
                locked,
            ),
            (json!({"devices": {}, "memory": huge, "cpu": cpu}), prior),
            (passt(&json!([])), all_ports),
            (passt(&json!([{"port": 80}])), none),
        ] {
            assert_eq!(limits(&domain), expected, "{domain}");
        }
    }

    #[test]
    fn children_and_theirs_are_found() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let grandchild: i32 = line.trim().parse().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = family(pid).unwrap();
        for pid in &found {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        child.wait().unwrap();
        assert_eq!(found, [pid, grandchild]);
    }

    #[test]
    fn limits_are_raised_and_never_lowered() {
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -S -c 0; echo; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut String::new()).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut seen = Vec::new();
        for to in [8192, 4096] {
            raise_limit(pid, libc::RLIMIT_CORE, to).unwrap();
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let line = limits
                .lines()
                .find(|line| line.starts_with("Max core file size"))
                .unwrap();
            seen.push(line.split_whitespace().nth(4).unwrap().to_owned());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, ["8192", "8192"]);
    }
}
