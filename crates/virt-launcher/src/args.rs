//! The command line.

use std::path::PathBuf;

use clap::Parser;
use tracing::level_filters::LevelFilter;

/// Runs one virtual machine, from its disks to its end
#[derive(Parser)]
#[command(version)]
pub struct Args {
    /// Name of the VirtualMachineInstance
    #[arg(long, default_value = "", required_unless_present = "prepare_capabilities")]
    pub name: String,
    /// Its namespace
    #[arg(long, default_value = "default")]
    pub namespace: String,
    /// Its UID
    #[arg(long, default_value = "", required_unless_present = "prepare_capabilities")]
    pub uid: String,
    /// Seconds the guest has to shut down when the pod is stopped before the guest's own grace period is known
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub grace_period_seconds: u64,
    /// Hook sidecars of the pod; default: as many as the VirtualMachineInstance's annotation lists
    #[arg(long, value_name = "COUNT")]
    pub hook_sidecars: Option<usize>,
    /// Whether a container of the pod reads the log of a serial console that does not say itself if it has one
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub console_log: bool,
    /// Directory that stands for the pod's root; for use outside a pod
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub root: PathBuf,
    /// User to become when started as root
    #[arg(long, default_value_t = crate::user::POD_USER, value_name = "UID")]
    pub user: u32,
    /// Least important messages that are logged: off, error, warn, info, debug, trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log_level: LevelFilter,
    /// Probe what QEMU can do, store it in DIR for later launchers, and end
    #[arg(long, value_name = "DIR")]
    pub prepare_capabilities: Option<PathBuf>,
    /// Probe as in a pod without /dev/kvm, even if it is here
    #[arg(long, requires = "prepare_capabilities")]
    pub without_kvm: bool,
}

/// The log level of a verbosity, on KubeVirt's scale as in our other processes: 2 is normal. `None`: not a number.
pub fn level(verbosity: &str) -> Option<LevelFilter> {
    Some(match verbosity.parse::<u8>().ok()? {
        0..=2 => LevelFilter::INFO,
        3..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for (verbosity, expected) in [
            ("0", Some(LevelFilter::INFO)),
            ("2", Some(LevelFilter::INFO)),
            ("4", Some(LevelFilter::DEBUG)),
            ("9", Some(LevelFilter::TRACE)),
            ("", None),
            ("-1", None),
            ("loud", None),
        ] {
            assert_eq!(level(verbosity), expected, "{verbosity}");
        }
    }
}
