//! `credentials`: keys and passwords that guests take from Secrets.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};

use super::boolean;

/// What is done with credentials.
#[derive(Debug, Subcommand)]
pub enum Credentials {
    /// Let an SSH key in.
    #[command(after_help = "Examples:
  # Let a key in to 'myvm' as user 'cloud'; a Secret is made if there is none to add it to:
  virtctl credentials add-ssh-key --user=cloud -f ~/.ssh/id_ed25519.pub myvm

  # Into a Secret of your own:
  virtctl credentials add-ssh-key --user=cloud --value='ssh-ed25519 AAAA…' --secret=mykeys --force myvm")]
    AddSshKey(AddSshKey),
    /// Let an SSH key in no more.
    #[command(after_help = "Examples:
  virtctl credentials remove-ssh-key --user=cloud -f ~/.ssh/id_ed25519.pub myvm")]
    RemoveSshKey(RemoveSshKey),
    /// Set a user's password.
    #[command(after_help = "Examples:
  virtctl credentials set-password --user=cloud --password=secret myvm")]
    SetPassword(SetPassword),
}

/// Whose credentials, and in which Secret.
#[derive(Debug, Args)]
pub struct Goal {
    /// Name of the virtual machine
    #[arg(value_name = "VM")]
    pub vm: String,
    /// User in the guest
    #[arg(short, long, value_name = "USER")]
    pub user: String,
    /// Secret to change or to create [default: what the virtual machine uses, or a new one]
    #[arg(long, value_name = "NAME")]
    pub secret: Option<String>,
    /// Change the Secret even if it does not belong to the virtual machine alone
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub force: bool,
}

/// An SSH key.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Key {
    /// File with the public key
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The public key itself
    #[arg(long, value_name = "KEY")]
    pub value: Option<String>,
}

/// Whether a Secret is made or changed.
#[derive(Debug, Args)]
pub struct Way {
    /// Make a new Secret and let the virtual machine use it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub create_secret: bool,
    /// Change a Secret that the virtual machine uses
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub update_secret: bool,
}

/// Arguments of `credentials add-ssh-key`.
#[derive(Debug, Args)]
pub struct AddSshKey {
    /// Whose key.
    #[command(flatten)]
    pub goal: Goal,
    /// The key.
    #[command(flatten)]
    pub key: Key,
    /// How.
    #[command(flatten)]
    pub way: Way,
}

/// Arguments of `credentials remove-ssh-key`.
#[derive(Debug, Args)]
pub struct RemoveSshKey {
    /// Whose key.
    #[command(flatten)]
    pub goal: Goal,
    /// The key.
    #[command(flatten)]
    pub key: Key,
}

/// Arguments of `credentials set-password`.
#[derive(Debug, Args)]
pub struct SetPassword {
    /// Whose password.
    #[command(flatten)]
    pub goal: Goal,
    /// The password
    #[arg(short, long, value_name = "PASSWORD")]
    pub password: String,
    /// How.
    #[command(flatten)]
    pub way: Way,
}
