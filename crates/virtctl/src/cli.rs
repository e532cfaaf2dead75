//! The command line: commands, flags, help. Names and defaults are those of KubeVirt's virtctl.

#![allow(rustdoc::broken_intra_doc_links, reason = "brackets in usage texts are no links")]

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

mod create;
mod objects;

pub use create::{CloudInit, Create, CreateVm};
pub use objects::{EvacuateCancel, Expand, Format, Screenshot, Usbredir, Validate, VncCommand};

use crate::ports::Forward;
use crate::target::Target;

/// Controls virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "virtctl",
    about = "virtctl controls virtual machine related operations on your Kubernetes cluster.",
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
    #[arg(long, global = true, value_name = "FILE", hide = true)]
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
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    pub client_certificate: Option<PathBuf>,
    /// Path to the client certificate's key
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    pub client_key: Option<PathBuf>,
    /// Path to a certificate authority's certificate
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    pub certificate_authority: Option<PathBuf>,
    /// Do not check the server's certificate: this makes connections insecure
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, hide = true, value_name = "BOOL",
          hide_default_value = true, hide_possible_values = true)]
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
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false,
          action = ArgAction::Set, value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
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
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false,
          action = ArgAction::Set, value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
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
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false,
          action = ArgAction::Set, value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
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

/// Arguments of `vnc`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Vnc {
    /// What else to do with the display.
    #[command(subcommand)]
    pub command: Option<VncCommand>,
    /// Name of the virtual machine instance
    #[arg(value_name = "VMI", required = true)]
    pub name: Option<String>,
    /// Start no viewer: print {"port":N} and serve one connection
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false,
          action = ArgAction::Set, value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
    pub proxy_only: bool,
    /// Local port to listen on; 0: any free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Local address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
    /// Do not take the display over from somebody who is connected
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false,
          action = ArgAction::Set, value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
    pub preserve_session: bool,
    /// Which viewer --vnc-path is: remote-viewer (called with a URL) or vncviewer (HOST::PORT)
    #[arg(long, value_name = "TYPE", value_parser = ["remote-viewer", "vncviewer"])]
    pub vnc_type: Option<String>,
    /// The viewer to start
    #[arg(long, value_name = "FILE")]
    pub vnc_path: Option<PathBuf>,
}

/// Flags that `ssh` and `scp` share.
#[derive(Debug, Args)]
pub struct SshFlags {
    /// User to log in as
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
    /// Further option for the local ssh or scp; can be repeated
    #[arg(
        short = 't',
        long = "local-ssh-opts",
        value_name = "OPTION",
        allow_hyphen_values = true
    )]
    pub local_ssh_opts: Vec<String>,
    /// The local ssh is always used (accepted for scripts)
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
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
          default_value_t = false, action = ArgAction::Set, value_name = "BOOL", hide_default_value = true,
          hide_possible_values = true)]
    pub recursive: bool,
    /// Keep times and modes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false,
          action = ArgAction::Set, value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
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
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false,
          action = ArgAction::Set, value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
    pub stdio: bool,
    /// Local address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
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
    /// Port of the Service
    #[arg(long)]
    pub port: u16,
    /// Port of the guest, or its name [default: --port]
    #[arg(long, value_name = "PORT")]
    pub target_port: Option<String>,
    /// Network protocol
    #[arg(long, default_value = "TCP", ignore_case = true, value_parser = ["TCP", "UDP"])]
    pub protocol: String,
    /// Type of the Service
    #[arg(long, default_value = "ClusterIP", value_parser = ["ClusterIP", "NodePort", "LoadBalancer"])]
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
}

/// Arguments of `version`.
#[derive(Debug, Args)]
pub struct Version {
    /// Do not ask the server
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_name = "BOOL", hide_default_value = true,
          hide_possible_values = true)]
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
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words = std::iter::once("virtctl").chain(line.split_whitespace());
        Cli::from_arg_matches(&command("virtctl").try_get_matches_from(words)?)
    }

    #[test]
    fn lines_that_people_type() {
        for line in [
            "start vm",
            "start vm --paused",
            "start --paused=true vm -n ns",
            "-n ns start vm",
            "--namespace=ns start vm --dry-run=false",
            "stop vm --force --grace-period=0",
            "stop vm --force=true --grace-period 0",
            "stop vm --grace-period -1",
            "restart vm --grace-period=-1",
            "pause vm name",
            "pause vmi/name --dry-run",
            "console vmi --timeout=5",
            "console --timeout 30s vmi --kubeconfig /k --context c",
            "vnc vmi --proxy-only --port=5900 --address=0.0.0.0",
            "vnc vmi --proxy-only=true --preserve-session",
            "vnc screenshot vmi --file=-",
            "vnc screenshot vmi -f a.png -m -n ns",
            "evacuate-cancel vmi name --dry-run",
            "evacuate-cancel vm/name",
            "create vm --name=a --volume-containerdisk=src:image:1,bootorder:1 --memory=1Gi",
            "create vm --infer-instancetype=true --volume-pvc=src:a",
            "validate -f a.yaml -f -",
            "validate --file a.yaml --feature-gates A,B",
            "usbredir 0951:1666 vmi",
            "usbredir --no-launch vmi",
            "expand --vm name",
            "expand -f vm.yaml -o json",
            "ssh user@vm/name --identity-file=k -p 2222 --local-ssh-opts=-oA=b -t -v",
            "ssh vmi/name/ns --username u --known-hosts= -i k -c id",
            "scp file user@vm/name:dir --recursive --preserve",
            "scp -r vm/name:dir .",
            "port-forward vm/name 8080:80 udp/53 --address ::1",
            "port-forward --stdio=true vmi/name/ns 22",
            "expose vmi name --port 22 --name n --protocol udp --type NodePort",
            "version -c",
            "version --client=true -v 4",
            "version --request-timeout=5 --client-certificate c --client-key k",
            "completion bash",
            "options",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn lines_that_make_no_sense() {
        for (line, why) in [
            ("", "Usage"),
            ("begin vm", "unrecognized subcommand"),
            ("start", "<VM>"),
            ("start a b", "unexpected argument"),
            ("start vm --paused=maybe", "invalid value"),
            ("pause vm a b", "unexpected"),
            ("console vmi --timeout=soon", "is no duration"),
            ("vnc vmi --port 70000", "not in 0..=65535"),
            ("vnc", "<VMI>"),
            ("vnc screenshot vmi", "--file"),
            ("create", "Usage"),
            ("create vm --cloud-init=floppy", "invalid value"),
            ("validate", "--file"),
            ("expand", "--vm"),
            ("expand --vm a -f b", "cannot be used with"),
            ("port-forward vm/name", "<PORTS>"),
            ("port-forward name 80", "type and name"),
            ("port-forward vm/name 80:x", "no port"),
            ("expose vm name --port 1", "--name"),
        ] {
            let error = parse(line).err().map(|error| error.to_string());
            let error = error.unwrap_or_else(|| panic!("{line} was accepted"));
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn help() {
        let mut all = command("virtctl").term_width(100).render_help().to_string();
        for sub in command("virtctl").get_subcommands() {
            let mut found = command("virtctl").term_width(100);
            found.build();
            let found = found.find_subcommand_mut(sub.get_name()).unwrap();
            all.push_str(&format!("\n---- {}\n{}", sub.get_name(), found.render_help()));
            for inner in found.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
                let name = inner.get_name().to_owned();
                all.push_str(&format!("\n---- {} {name}\n{}", sub.get_name(), inner.render_help()));
            }
        }
        insta::assert_snapshot!(all);
    }

    #[test]
    fn the_grammar_is_consistent() {
        command("virtctl").debug_assert();
        command("kubectl virt").debug_assert();
    }

    #[test]
    fn names_of_the_program() {
        for (path, name) in [
            ("/usr/bin/virtctl", "virtctl"),
            ("kubectl-virt", "kubectl virt"),
            ("/x/kubectl_virt", "kubectl virt"),
        ] {
            assert_eq!(program_name(Some(&path.into())), name);
        }
    }
}
