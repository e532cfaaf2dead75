//! `guestfs`.

use clap::{ArgAction, Args, ValueEnum};

use super::boolean;

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Each time.
    #[value(name = "Always")]
    Always,
    /// If the node does not have it.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Never.
    #[value(name = "Never")]
    Never,
}

/// Arguments of `guestfs`.
#[derive(Debug, Args)]
pub struct Guestfs {
    /// Name of the claim whose disk it is about
    #[arg(value_name = "PVC")]
    pub claim: String,
    /// Image with the tools [default: the installation's]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// When the image is pulled
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent", ignore_case = true)]
    pub pull_policy: PullPolicy,
    /// Use the node's virtualization
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = true, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL")]
    pub kvm: bool,
    /// Run as root
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub root: bool,
    /// User to run as [default: 107, who owns the disks of virtual machines]
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(i64).range(0..))]
    pub uid: Option<i64>,
    /// Group to run as, with --uid
    #[arg(long, value_name = "GID", value_parser = clap::value_parser!(i64).range(0..))]
    pub gid: Option<i64>,
    /// Group that files of the claim get
    #[arg(long = "fsGroup", value_name = "GID", value_parser = clap::value_parser!(i64).range(0..))]
    pub fs_group: Option<i64>,
    /// Virtual machine whose tolerations, affinity, node selector and labels the pod gets
    #[arg(long, value_name = "VM")]
    pub vm: Option<String>,
}
