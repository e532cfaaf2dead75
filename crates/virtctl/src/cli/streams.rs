//! Commands about what machines are connected to: consoles, displays, ports, Services.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use super::{VncCommand, boolean};
use crate::ports::Forward;
use crate::target::Target;

/// Arguments of `console`.
#[derive(Debug, Args)]
pub struct Console {
    /// Name of the virtual machine instance
    #[arg(value_name = "VMI")]
    pub name: String,
    /// How long to wait for the instance to run: minutes, or a duration such as 30s, 5m, 1h
    #[arg(long, default_value = "5", value_parser = crate::duration::parse, value_name = "TIME")]
    pub timeout: std::time::Duration,
}

/// A viewer of displays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VncType {
    /// TigerVNC.
    Tiger,
    /// remote-viewer of the package virt-viewer, which takes a URL.
    RemoteViewer,
    /// Chicken of the VNC.
    Chicken,
    /// RealVNC.
    Real,
    /// Any other program that takes HOST::PORT.
    #[value(name = "vncviewer")]
    VncViewer,
}

/// Arguments of `vnc`.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true)]
pub struct Vnc {
    /// What else to do with the display.
    #[command(subcommand)]
    pub command: Option<VncCommand>,
    /// Name of the virtual machine instance
    #[arg(value_name = "VMI", required = true)]
    pub name: Option<String>,
    /// Start no viewer: print {"port":N} and serve one connection
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub proxy_only: bool,
    /// Local port to listen on; 0: any free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Local address or name to listen on with --proxy-only; otherwise it is always 127.0.0.1
    #[arg(long, default_value = "127.0.0.1")]
    pub address: String,
    /// Do not take the display over from somebody who is connected
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub preserve_session: bool,
    /// Which viewer is started, or which one --vnc-path is
    #[arg(long, value_name = "TYPE", ignore_case = true)]
    pub vnc_type: Option<VncType>,
    /// The viewer to start [default: what is found in PATH]
    #[arg(long, value_name = "FILE")]
    pub vnc_path: Option<PathBuf>,
}

/// Flags that `ssh` and `scp` share.
#[derive(Debug, Args)]
pub struct SshFlags {
    /// User to log in as, if the target names none
    #[arg(short = 'l', long, value_name = "USER")]
    pub username: Option<String>,
    /// Private key to log in with [default: what the local ssh tries]
    #[arg(short, long, value_name = "FILE")]
    pub identity_file: Option<PathBuf>,
    /// File of known host keys; empty: what the local ssh uses [default: ~/.ssh/kubevirt_known_hosts]
    #[arg(long, value_name = "FILE", value_parser = clap::builder::StringValueParser::new())]
    pub known_hosts: Option<String>,
    /// Port of the guest's SSH server
    #[arg(short, long, default_value_t = 22)]
    pub port: u16,
    /// Connect to the guest's virtual socket instead of its network
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub vsock: bool,
    /// Further option for the local ssh or scp; can be repeated
    #[arg(
        short = 't',
        long = "local-ssh-opts",
        value_name = "OPTION",
        allow_hyphen_values = true
    )]
    pub local_ssh_opts: Vec<String>,
    /// The local ssh is always used (accepted for scripts)
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = boolean)]
    pub local_ssh: Option<bool>,
}

/// Arguments of `ssh`.
#[derive(Debug, Args)]
pub struct Ssh {
    /// [USER@]vm/NAME[/NAMESPACE] or [USER@]vmi/NAME[/NAMESPACE]
    pub target: String,
    /// Flags of `scp`, too.
    #[command(flatten)]
    pub flags: SshFlags,
    /// Command to run instead of a shell
    #[arg(short, long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub command: Option<String>,
}

/// Arguments of `scp`.
#[derive(Debug, Args)]
pub struct Scp {
    /// A local path, or [USER@]TYPE/NAME[/NAMESPACE]:PATH
    pub source: String,
    /// A local path, or [USER@]TYPE/NAME[/NAMESPACE]:PATH
    pub destination: String,
    /// Flags of `ssh`, too.
    #[command(flatten)]
    pub flags: SshFlags,
    /// Copy directories with what is in them
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub recursive: bool,
    /// Keep times and modes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub preserve: bool,
}

/// Arguments of `port-forward`.
#[derive(Debug, Args)]
pub struct PortForward {
    /// vm/NAME[/NAMESPACE] or vmi/NAME[/NAMESPACE]
    #[arg(value_parser = Target::parse)]
    pub target: Target,
    /// [tcp/|udp/]LOCAL[:REMOTE]
    #[arg(required = true, value_parser = Forward::parse)]
    pub ports: Vec<Forward>,
    /// Join one port with standard input and output, as ssh's ProxyCommand wants it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub stdio: bool,
    /// Local address or name to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub address: String,
    /// Reach ports of the guest's virtual socket instead of its network
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub vsock: bool,
    /// With --vsock: speak TLS with the guest
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = true, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL")]
    pub vsock_tls: bool,
}

/// Arguments of `expose`.
#[derive(Debug, Args)]
pub struct Expose {
    /// vm or vmi
    #[arg(value_name = "TYPE")]
    pub kind: String,
    /// Name of the virtual machine or instance
    #[arg(value_name = "NAME")]
    pub object: String,
    /// Name of the Service to create
    #[arg(long)]
    pub name: String,
    /// Port of the Service [default: the ports that the interface of the pod network lists]
    #[arg(long)]
    pub port: Option<u16>,
    /// Port of the guest, or its name [default: that of the Service]
    #[arg(long, value_name = "PORT")]
    pub target_port: Option<String>,
    /// Network protocol
    #[arg(long, default_value = "TCP", ignore_case = true, value_parser = ["TCP", "UDP"])]
    pub protocol: String,
    /// Type of the Service
    #[arg(long, default_value = "ClusterIP", ignore_case = true,
          value_parser = crate::expose::TYPES)]
    pub r#type: String,
    /// Name of the Service's port
    #[arg(long, value_name = "NAME")]
    pub port_name: Option<String>,
    /// Address of the Service in the cluster; None: headless
    #[arg(long, value_name = "IP")]
    pub cluster_ip: Option<String>,
    /// Additional address that the Service accepts traffic for
    #[arg(long, value_name = "IP")]
    pub external_ip: Option<String>,
    /// IP family of the Service: IPv4, IPv6, or both with a comma, the first one preferred
    #[arg(long, value_name = "FAMILIES", value_parser = crate::expose::families)]
    pub ip_family: Option<crate::expose::Families>,
    /// Whether the Service has one family or two [default with two in --ip-family: PreferDualStack]
    #[arg(long, value_name = "POLICY", ignore_case = true,
          value_parser = crate::expose::POLICIES)]
    pub ip_family_policy: Option<String>,
}
