//! `create`: manifests from flags.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::boolean;

/// What is created.
#[derive(Debug, Subcommand)]
pub enum Create {
    /// Print the manifest of a virtual machine.
    #[command(after_help = "Examples:
  # A machine from an image, with a user who may log in by key:
  virtctl create vm --name=myvm --volume-containerdisk=src:quay.io/containerdisks/debian:12 \\
    --user=cloud --ssh-key='ssh-ed25519 AAAA…' | kubectl create -f -

  # From a claim, with more memory, started by hand:
  virtctl create vm --volume-pvc=src:myclaim,bootorder:1 --memory=2Gi --run-strategy=Manual

  # With a disk that is imported, and an empty one:
  virtctl create vm --volume-import=type:http,url:https://example.com/image.qcow2,size:10Gi \\
    --volume-import=type:blank,size:50Gi

  # With a password from a Secret, set by the guest agent:
  virtctl create vm --volume-containerdisk=src:image:1 --access-cred=type:password,src:mysecret")]
    Vm(Box<CreateVm>),
}

/// Where cloud-init finds its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CloudInit {
    /// A NoCloud disk.
    #[value(name = "nocloud")]
    NoCloud,
    /// A config drive.
    #[value(name = "configdrive")]
    ConfigDrive,
    /// Nowhere.
    None,
}

/// Arguments of `create vm`.
#[derive(Debug, Args)]
pub struct CreateVm {
    /// Name of the virtual machine [default: a random one]
    #[arg(long)]
    pub name: Option<String>,
    /// When it runs
    #[arg(long, default_value = "Always",
          value_parser = ["Always", "Halted", "Manual", "Once", "RerunOnFailure", "WaitAsReceiver"])]
    pub run_strategy: String,
    /// Seconds that the guest has to shut down
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(i64).range(0..))]
    pub termination_grace_period: i64,
    /// Memory of the guest [default: 512Mi, or what the instancetype says]
    #[arg(long, value_name = "QUANTITY", conflicts_with_all = ["instancetype", "infer_instancetype", "infer_instancetype_from"])]
    pub memory: Option<String>,
    /// Instancetype to use: [KIND/]NAME
    #[arg(long, value_name = "NAME", conflicts_with_all = ["infer_instancetype", "infer_instancetype_from"])]
    pub instancetype: Option<String>,
    /// Take the instancetype that the boot volume names
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub infer_instancetype: bool,
    /// Take the instancetype that this volume names
    #[arg(long, value_name = "VOLUME", conflicts_with = "infer_instancetype")]
    pub infer_instancetype_from: Option<String>,
    /// Preference to use: [KIND/]NAME
    #[arg(long, value_name = "NAME", conflicts_with_all = ["infer_preference", "infer_preference_from"])]
    pub preference: Option<String>,
    /// Take the preference that the boot volume names
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set, value_parser = boolean, value_name = "BOOL",
          hide_default_value = true)]
    pub infer_preference: bool,
    /// Take the preference that this volume names
    #[arg(long, value_name = "VOLUME", conflicts_with = "infer_preference")]
    pub infer_preference_from: Option<String>,
    /// Disk from a container image: src:IMAGE[,name:NAME][,bootorder:N]; can be repeated
    #[arg(long, value_name = "PARAMS")]
    pub volume_containerdisk: Vec<String>,
    /// Disk of a claim: src:CLAIM[,name:NAME][,bootorder:N]; can be repeated
    #[arg(long, value_name = "PARAMS")]
    pub volume_pvc: Vec<String>,
    /// Disk that is imported: type:TYPE,… with TYPE blank, ds, gcs, http, imageio, pvc, registry, s3, snapshot or vddk;
    /// can be repeated
    #[arg(long, value_name = "PARAMS")]
    pub volume_import: Vec<String>,
    /// Answers for Windows' Sysprep: src:NAME[,type:configmap|secret]
    #[arg(long, value_name = "PARAMS")]
    pub volume_sysprep: Option<String>,
    /// Deprecated for --volume-import=type:ds
    #[arg(long, value_name = "PARAMS", hide = true)]
    pub volume_datasource: Vec<String>,
    /// Deprecated for --volume-import=type:pvc
    #[arg(long, value_name = "PARAMS", hide = true)]
    pub volume_clone_pvc: Vec<String>,
    /// Deprecated for --volume-import=type:blank
    #[arg(long, value_name = "PARAMS", hide = true)]
    pub volume_blank: Vec<String>,
    /// User that cloud-init sets up
    #[arg(long, value_name = "NAME", conflicts_with = "cloud_init_user_data")]
    pub user: Option<String>,
    /// File with that user's password, which the manifest then holds in clear text
    #[arg(long, value_name = "FILE", conflicts_with = "cloud_init_user_data")]
    pub password_file: Option<PathBuf>,
    /// SSH key that cloud-init lets in, or more with commas; can be repeated
    #[arg(
        long,
        value_name = "KEY",
        value_delimiter = ',',
        conflicts_with = "cloud_init_user_data"
    )]
    pub ssh_key: Vec<String>,
    /// Let the guest agent manage SSH keys under SELinux [default: if --access-cred has it bring keys]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          value_name = "BOOL")]
    pub ga_manage_ssh: Option<bool>,
    /// Credentials from a Secret: src:SECRET[,type:ssh|password][,method:ga|nocloud|configdrive][,user:NAME]; can be
    /// repeated
    #[arg(long, value_name = "PARAMS")]
    pub access_cred: Vec<String>,
    /// Where cloud-init finds its data [default: nocloud, or what --access-cred says]
    #[arg(long, value_name = "SOURCE", ignore_case = true)]
    pub cloud_init: Option<CloudInit>,
    /// User data of cloud-init, in base64
    #[arg(long, value_name = "BASE64")]
    pub cloud_init_user_data: Option<String>,
    /// Network data of cloud-init, in base64
    #[arg(long, value_name = "BASE64")]
    pub cloud_init_network_data: Option<String>,
}
