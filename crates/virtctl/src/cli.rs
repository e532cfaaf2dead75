//! The command line: commands, flags, help. Names and defaults are those of KubeVirt's virtctl.

#![allow(rustdoc::broken_intra_doc_links, reason = "brackets in usage texts are no links")]

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

mod administration;
mod create;
mod credentials;
mod guestfs;
mod objects;
mod streams;

pub use administration::{Adm, LogVerbosity};
pub use create::{CloudInit, Create, CreateVm};
pub use credentials::{AddSshKey, Credentials, Goal, Key, RemoveSshKey, SetPassword, Way};
pub use guestfs::Guestfs;
pub use objects::{EvacuateCancel, Expand, Format, Screenshot, Usbredir, Validate, VncCommand};
pub use streams::{Console, Expose, PortForward, Scp, Ssh, SshFlags, Vnc, VncType};

/// Controls virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "virtctl",
    about = "virtctl controls virtual machine related operations on your Kubernetes cluster.",
    args_override_self = true,
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 120,
    after_help = "Use \"virtctl options\" for a list of options that apply to all commands."
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command: kubectl's.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Path to the kubeconfig file to use
    #[arg(long, global = true, value_name = "FILE", value_parser = path(), hide = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The name of the kubeconfig context to use
    #[arg(long, global = true, value_name = "NAME", hide = true)]
    pub context: Option<String>,
    /// The name of the kubeconfig cluster to use
    #[arg(long, global = true, value_name = "NAME", hide = true)]
    pub cluster: Option<String>,
    /// The name of the kubeconfig user to use
    #[arg(long, global = true, value_name = "NAME", hide = true)]
    pub user: Option<String>,
    /// The namespace to work in
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The address and port of the Kubernetes API server
    #[arg(short, long, global = true, value_name = "URL", hide = true)]
    pub server: Option<String>,
    /// Bearer token for authentication to the API server
    #[arg(long, global = true, value_name = "TOKEN", hide = true)]
    pub token: Option<String>,
    /// Username to impersonate for the operation
    #[arg(long = "as", global = true, value_name = "USER", hide = true)]
    pub impersonate: Option<String>,
    /// Group to impersonate for the operation; can be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP", hide = true)]
    pub impersonate_groups: Vec<String>,
    /// Path to a client certificate for TLS
    #[arg(long, global = true, value_name = "FILE", value_parser = path(), hide = true)]
    pub client_certificate: Option<PathBuf>,
    /// Path to the client certificate's key
    #[arg(long, global = true, value_name = "FILE", value_parser = path(), hide = true)]
    pub client_key: Option<PathBuf>,
    /// Path to a certificate authority's certificate
    #[arg(long, global = true, value_name = "FILE", value_parser = path(), hide = true)]
    pub certificate_authority: Option<PathBuf>,
    /// Do not check the server's certificate: this makes connections insecure
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide = true, hide_default_value = true)]
    pub insecure_skip_tls_verify: bool,
    /// Name that the server's certificate is checked against
    #[arg(long, global = true, value_name = "NAME", hide = true)]
    pub tls_server_name: Option<String>,
    /// How long one request may take, for example 30s; 0: as long as it likes. Streams have no limit
    #[arg(long, global = true, value_name = "TIME", value_parser = crate::duration::parse_seconds, hide = true)]
    pub request_timeout: Option<std::time::Duration>,
    /// Log level, from 0 to 9 (accepted for scripts)
    #[arg(short = 'v', long = "v", global = true, value_name = "LEVEL", hide = true)]
    pub verbosity: Option<u8>,
}

/// A path that may be empty: unset.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Booleans, as Go spells them.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(true),
        "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

impl Cli {
    /// Takes the flags as they are meant.
    pub fn tidy(&mut self) {
        self.global.tidy();
        if matches!(self.command, Command::Create(_) | Command::Credentials(_)) {
            // Their own --user is one of the guest, and hides that of the kubeconfig.
            self.global.user = None;
        }
    }
}

impl Global {
    /// What is given and empty is as if it were not given: scripts pass variables on.
    fn tidy(&mut self) {
        for text in [
            &mut self.context,
            &mut self.cluster,
            &mut self.user,
            &mut self.namespace,
            &mut self.server,
            &mut self.token,
            &mut self.impersonate,
            &mut self.tls_server_name,
        ] {
            text.take_if(|text| text.is_empty());
        }
        for path in [
            &mut self.kubeconfig,
            &mut self.client_certificate,
            &mut self.client_key,
            &mut self.certificate_authority,
        ] {
            path.take_if(|path| path.as_os_str().is_empty());
        }
        self.impersonate_groups.retain(|group| !group.is_empty());
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a virtual machine.
    #[command(after_help = "Examples:
  # Start the virtual machine 'myvm':
  virtctl start myvm

  # Start it paused, to look at it over VNC before it boots:
  virtctl start myvm --paused")]
    Start(Start),
    /// Stop a virtual machine.
    #[command(after_help = "Examples:
  # Stop the virtual machine 'myvm':
  virtctl stop myvm

  # Stop it at once, without waiting for its guest:
  virtctl stop myvm --force --grace-period=0")]
    Stop(Stop),
    /// Restart a virtual machine.
    #[command(after_help = "Examples:
  # Restart the virtual machine 'myvm':
  virtctl restart myvm

  # Restart it at once, without waiting for its guest:
  virtctl restart myvm --force --grace-period=0")]
    Restart(Stop),
    /// Pause a virtual machine or its instance.
    #[command(after_help = "Examples:
  # Pause the virtual machine 'myvm':
  virtctl pause vm myvm

  # Pause the instance 'myvmi':
  virtctl pause vmi myvmi")]
    Pause(Pause),
    /// Unpause a virtual machine or its instance.
    #[command(after_help = "Examples:
  # Let the virtual machine 'myvm' run on:
  virtctl unpause vm myvm")]
    Unpause(Pause),
    /// Ask the guest of an instance to reboot.
    #[command(after_help = "Examples:
  # Reboot the guest of 'myvmi' through its agent, or else ACPI:
  virtctl soft-reboot myvmi")]
    SoftReboot(Instance),
    /// Reset an instance, like the button on a computer.
    #[command(after_help = "Examples:
  # Reset 'myvmi'; its guest is not asked:
  virtctl reset myvmi")]
    Reset(Instance),
    /// Connect to the serial console of an instance.
    #[command(after_help = "Examples:
  # Connect to the console of 'myvmi'; Ctrl+] or Ctrl+5 leaves it:
  virtctl console myvmi

  # Wait at most one minute for it to run:
  virtctl console --timeout=1m myvmi")]
    Console(Console),
    /// Open a VNC connection to the display of an instance.
    #[command(after_help = "Examples:
  # Start remote-viewer or vncviewer on the display of 'myvmi':
  virtctl vnc myvmi

  # Only offer the display on a local port, for a viewer of your own:
  virtctl vnc myvmi --proxy-only --port=5900

  # Save a picture of it:
  virtctl vnc screenshot myvmi --file=screen.png")]
    Vnc(Vnc),
    /// Open an SSH connection to a virtual machine or instance.
    #[command(after_help = "Examples:
  # Log in to 'myvm' as user 'cloud':
  virtctl ssh cloud@vm/myvm

  # Run one command with a key of your own:
  virtctl ssh -i ~/.ssh/id_ed25519 -c 'uname -a' cloud@vmi/myvmi/mynamespace")]
    Ssh(Ssh),
    /// Copy files from or to a virtual machine or instance.
    #[command(after_help = "Examples:
  # Copy a file to 'myvm':
  virtctl scp myfile.txt cloud@vm/myvm:myfile.txt

  # Copy a directory from 'myvmi':
  virtctl scp --recursive cloud@vmi/myvmi:mydir/ .")]
    Scp(Scp),
    /// Forward local ports to a virtual machine or instance.
    #[command(after_help = "Examples:
  # Forward the local port 8080 to port 80 of 'myvm':
  virtctl port-forward vm/myvm 8080:80

  # UDP, on all local addresses:
  virtctl port-forward --address=0.0.0.0 vmi/myvmi udp/5353:53

  # As ssh's ProxyCommand:
  ssh -o 'ProxyCommand=virtctl port-forward --stdio=true vmi/myvmi 22' cloud@myvmi")]
    PortForward(PortForward),
    /// Print what the guest agent of an instance knows about its system.
    #[command(after_help = "Examples:\n  virtctl guestosinfo myvmi")]
    Guestosinfo(Instance),
    /// Print the users that are logged in to an instance.
    #[command(after_help = "Examples:\n  virtctl userlist myvmi")]
    Userlist(Instance),
    /// Print the file systems of an instance.
    #[command(after_help = "Examples:\n  virtctl fslist myvmi")]
    Fslist(Instance),
    /// Redirect a local USB device to an instance.
    #[command(after_help = "Examples:
  # The device with this vendor and product; the program usbredirect is started as root:
  virtctl usbredir 0951:1666 myvmi

  # Only print where a program of your own is to connect:
  virtctl usbredir --no-launch myvmi")]
    Usbredir(Usbredir),
    /// Take a virtual machine or instance back from the evacuation of its node.
    #[command(after_help = "Examples:
  # Let 'myvm' stay where it is:
  virtctl evacuate-cancel vm myvm")]
    EvacuateCancel(EvacuateCancel),
    /// Print a virtual machine with what it takes from its instancetype and preference.
    #[command(after_help = "Examples:
  # One of the cluster:
  virtctl expand --vm myvm

  # One of a file, as JSON:
  virtctl expand --file=myvm.yaml --output=json")]
    Expand(Expand),
    /// Print the manifest of a new object.
    #[command(subcommand)]
    Create(Create),
    /// Judge manifests as the cluster would, without one.
    #[command(after_help = "Examples:
  # Every mistake, with file and line:
  virtctl validate --file=myvm.yaml

  # In a cluster where hostDisks are allowed:
  virtctl validate --file=myvm.yaml --feature-gates=HostDisk")]
    Validate(Validate),
    /// Expose a virtual machine or instance by a Service.
    #[command(after_help = "Examples:
  # Give SSH of 'myvm' an address in the cluster:
  virtctl expose vm myvm --name=myvm-ssh --port=22

  # On every node, at another port:
  virtctl expose vmi myvmi --name=myvmi-http --type=NodePort --port=8080 --target-port=80")]
    Expose(Expose),
    /// Change the SSH keys and passwords that a virtual machine takes from Secrets.
    #[command(subcommand)]
    Credentials(Credentials),
    /// Open a shell with libguestfs' tools and the disk of a claim.
    #[command(after_help = "Examples:
  # Look into the disk of the claim 'mydisk', which nothing else may use at the same time:
  virtctl guestfs mydisk

  # On nodes without virtualization, with an image of your own:
  virtctl guestfs mydisk --kvm=false --image=registry.example.com/libguestfs-tools:1

  # As root, for a disk whose files belong to root:
  virtctl guestfs mydisk --root

  # On a node where the virtual machine 'myvm' may run:
  virtctl guestfs mydisk --vm=myvm")]
    Guestfs(Guestfs),
    /// Print the devices of nodes that virtual machines may have.
    #[command(after_help = "Examples:\n  virtctl permitted-devices")]
    PermittedDevices,
    /// Administrate the installation.
    #[command(subcommand)]
    Adm(Adm),
    /// Print the client's and the server's version.
    #[command(after_help = "Examples:
  virtctl version

  # Without asking the server:
  virtctl version -c")]
    Version(Version),
    /// Print a shell completion script.
    #[command(after_help = "Examples:
  # In bash:
  source <(virtctl completion bash)")]
    Completion(Completion),
    /// List the options that apply to all commands.
    Options,
}

/// Arguments of `start`.
#[derive(Debug, Args)]
pub struct Start {
    /// Name of the virtual machine
    #[arg(value_name = "VM")]
    pub name: String,
    /// Start it paused
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub paused: bool,
    /// Whether something is changed.
    #[command(flatten)]
    pub dry_run: DryRun,
}

/// Arguments of `stop` and `restart`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Name of the virtual machine
    #[arg(value_name = "VM")]
    pub name: String,
    /// Do not wait for the guest: needs --grace-period
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub force: bool,
    /// Seconds that the guest has to shut down, with --force; -1: what its specification says
    #[arg(long, value_name = "SECONDS", default_value_t = -1, allow_negative_numbers = true)]
    pub grace_period: i64,
    /// Whether something is changed.
    #[command(flatten)]
    pub dry_run: DryRun,
}

/// `--dry-run`.
#[derive(Clone, Copy, Debug, Args)]
pub struct DryRun {
    /// Let the server check the request, and change nothing
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub dry_run: bool,
}

/// Arguments of `pause` and `unpause`.
#[derive(Debug, Args)]
pub struct Pause {
    /// `vm` or `vmi` and a name, or TYPE/NAME
    #[arg(value_name = "TYPE NAME", num_args = 1..=2, required = true)]
    pub target: Vec<String>,
    /// Whether something is changed.
    #[command(flatten)]
    pub dry_run: DryRun,
}

/// The name of an instance.
#[derive(Debug, Args)]
pub struct Instance {
    /// Name of the virtual machine instance
    #[arg(value_name = "VMI")]
    pub name: String,
}

/// Arguments of `version`.
#[derive(Debug, Args)]
pub struct Version {
    /// Do not ask the server
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub client: bool,
}

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub struct Completion {
    /// Shell to complete in
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// How the user calls this program: as a plugin it is `kubectl virt`.
pub fn program_name(argument: Option<&OsString>) -> &'static str {
    let name = argument
        .and_then(|path| Path::new(path).file_name())
        .unwrap_or_default();
    if name.to_string_lossy().starts_with("kubectl") {
        "kubectl virt"
    } else {
        "virtctl"
    }
}

/// The command line's grammar, with help and examples as the user calls the program.
pub fn command(program: &'static str) -> clap::Command {
    as_called(Cli::command().bin_name(program), program)
}

/// Examples name the program as it is called.
fn as_called(mut command: clap::Command, program: &str) -> clap::Command {
    if program == "virtctl" {
        return command;
    }
    if let Some(help) = command.get_after_help().map(ToString::to_string) {
        command = command.after_help(help.replace("virtctl ", &format!("{program} ")));
    }
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, |sub| as_called(sub, program));
    }
    command
}

/// Prints a completion script.
pub(crate) fn completion(arguments: &Completion) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "virtctl", &mut script);
    std::io::stdout()
        .write_all(&script)
        .context("cannot write to standard output")
}

/// Prints the flags of every command.
pub(crate) fn options() -> anyhow::Result<()> {
    let mut command = clap::Command::new("virtctl")
        .help_template("The following options can be passed to any command:\n\n{options}\n")
        .disable_help_flag(true);
    for argument in Cli::command().get_arguments() {
        if argument.is_global_set() {
            command = command.arg(argument.clone().hide(false));
        }
    }
    crate::say(command.render_help())
}

#[cfg(test)]
mod tests;
