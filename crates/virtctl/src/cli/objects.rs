//! Commands about what machines are: pictures, specifications, files.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::{DryRun, boolean};

/// What else to do with a display.
#[derive(Debug, Subcommand)]
pub enum VncCommand {
    /// Save a picture of the display, as PNG.
    #[command(after_help = "Examples:
  virtctl vnc screenshot myvmi --file=screen.png

  # Wake the display first:
  virtctl vnc screenshot myvmi --file=screen.png --move-cursor")]
    Screenshot(Screenshot),
}

/// Arguments of `vnc screenshot`.
#[derive(Debug, Args)]
pub struct Screenshot {
    /// Name of the virtual machine instance
    #[arg(value_name = "VMI")]
    pub name: String,
    /// File to write; -: standard output
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Move the pointer first, so that a display that is asleep wakes
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub move_cursor: bool,
}

/// Arguments of `evacuate-cancel`.
#[derive(Debug, Args)]
pub struct EvacuateCancel {
    /// `vm` or `vmi` and a name, or TYPE/NAME
    #[arg(value_name = "TYPE NAME", num_args = 1..=2, required = true)]
    pub target: Vec<String>,
    /// Whether something is changed.
    #[command(flatten)]
    pub dry_run: DryRun,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// YAML.
    Yaml,
    /// JSON, indented.
    Json,
}

/// Arguments of `expand`.
#[derive(Debug, Args)]
pub struct Expand {
    /// Name of a virtual machine of the cluster
    #[arg(long, value_name = "VM", required_unless_present = "file", conflicts_with = "file")]
    pub vm: Option<String>,
    /// File of a virtual machine, in YAML or JSON; -: standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How it is printed
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    pub output: Format,
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub struct Validate {
    /// File of manifests, in YAML or JSON; -: standard input; can be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Feature gates that are on in the cluster
    #[arg(long, value_name = "GATES", value_delimiter = ',')]
    pub feature_gates: Vec<String>,
    /// Architecture of the cluster, for manifests that name none
    #[arg(long, value_name = "ARCH", default_value = "amd64", value_parser = ["amd64", "arm64", "s390x"])]
    pub architecture: String,
}

/// Arguments of `usbredir`.
#[derive(Debug, Args)]
pub struct Usbredir {
    /// Device, as VENDOR:PRODUCT or BUS-DEVICE (not with --no-launch), and name of the virtual machine instance
    #[arg(value_name = "DEVICE VMI", num_args = 1..=2, required = true)]
    pub words: Vec<String>,
    /// Start no usbredirect: print the address to connect to
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub no_launch: bool,
}
