//! `adm`: what administrators do.

use clap::{ArgAction, Args, Subcommand};

use super::boolean;

/// What is administrated.
#[derive(Debug, Subcommand)]
pub enum Adm {
    /// Show or set how much the components log.
    #[command(after_help = "Examples:
  # Show it of one component, or of all:
  virtctl adm log-verbosity --virt-handler
  virtctl adm log-verbosity --all

  # Set it:
  virtctl adm log-verbosity --virt-handler=7 --virt-launcher=4

  # Give all their defaults back, and then set one:
  virtctl adm log-verbosity --reset --virt-api=3")]
    LogVerbosity(LogVerbosity),
}

/// Arguments of `adm log-verbosity`. A flag without a number shows.
#[derive(Debug, Default, Args)]
pub struct LogVerbosity {
    /// virt-operator
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "LEVEL", value_parser = level)]
    pub virt_operator: Option<Option<i32>>,
    /// virt-api
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "LEVEL", value_parser = level)]
    pub virt_api: Option<Option<i32>>,
    /// virt-controller
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "LEVEL", value_parser = level)]
    pub virt_controller: Option<Option<i32>>,
    /// virt-handler
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "LEVEL", value_parser = level)]
    pub virt_handler: Option<Option<i32>>,
    /// virt-launcher
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "LEVEL", value_parser = level)]
    pub virt_launcher: Option<Option<i32>>,
    /// All of them, before the others are set
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "LEVEL", value_parser = level)]
    pub all: Option<Option<i32>>,
    /// Give all of them their defaults back, before others are set
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub reset: bool,
}

fn level(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(level @ 0..=9) => Ok(level),
        _ => Err("a level is a number from 0 to 9".to_owned()),
    }
}
