//! `cargo xtask cluster`: a real Kubernetes, of one or more nodes, on one machine.
//!
//! The control plane runs in a network namespace of its own; each node is a set of namespaces (network, mounts,
//! processes) with its own containerd, kubelet and kube-proxy. `up` makes what is missing and starts what does not run,
//! so it also repairs; `down` removes all of it and needs no state to do so.
//!
//! ```text
//!   host ── fv-cluster0 (10.100.0.1) ─┬─ fv-cluster        10.100.0.2   etcd, API server, …, CoreDNS, registry, volumes
//!                                     ├─ fv-cluster-node1  10.100.0.11  containerd, kubelet, kube-proxy; 10.244.1.0/24
//!                                     └─ fv-cluster-node2  10.100.0.12  …                                10.244.2.0/24
//! ```

mod cgroup;
mod control;
mod fetch;
mod images;
mod layout;
mod net;
mod node;
mod pki;
mod process;
mod run;
mod status;
mod up;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use layout::{Layout, MAX_NODES};

/// A real Kubernetes cluster on this machine, one at a time
#[derive(Args)]
#[command(after_help = "Examples:\n  cargo xtask cluster up --nodes 2\n  \
                  export KUBECONFIG=$(cargo xtask cluster kubeconfig)\n  \
                  cargo xtask cluster load image.tar --name example:1\n  cargo xtask cluster down")]
pub struct Cluster {
    #[command(subcommand)]
    action: Action,
    /// The state of the cluster
    #[arg(long, global = true, default_value = "/var/lib/ferrovirt-cluster")]
    dir: PathBuf,
    /// What is built or downloaded once per machine
    #[arg(long, global = true, default_value = "/var/cache/ferrovirt")]
    cache: PathBuf,
}

#[derive(Subcommand)]
enum Action {
    /// Build what is not built yet; start, enlarge or repair the cluster
    Up {
        /// How many nodes; as many as there are, or one
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
        nodes: Option<u8>,
        /// Have an API server that knows no image volumes, as those before Kubernetes 1.35
        #[arg(long)]
        without_image_volumes: bool,
        /// Have a cluster for one use: one that is there already and was left over (of one use, too, or nothing of it
        /// runs) is ended first; one that somebody else runs is used, and stays theirs
        #[arg(long)]
        one_use: bool,
    },
    /// Build and download only
    Fetch,
    /// End the cluster and remove everything of it
    Down {
        /// Only if it is for one use
        #[arg(long)]
        one_use: bool,
    },
    /// What runs, and what is wrong
    Status,
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Push an image archive or OCI layout into the cluster's registry
    Load {
        /// The archive or directory
        image: PathBuf,
        /// Its name in the registry, without the registry's
        #[arg(long)]
        name: Option<String>,
    },
}

impl Cluster {
    /// Does it.
    pub fn run(self) -> Result<()> {
        let layout = Layout {
            dir: std::path::absolute(self.dir)?,
            cache: std::path::absolute(self.cache)?,
        };
        match self.action {
            Action::Up {
                nodes,
                without_image_volumes,
                one_use,
            } => up::up(&layout, nodes, without_image_volumes, one_use),
            Action::Fetch => fetch::all(&layout.cache).map(drop),
            Action::Down { one_use } => up::down(&layout, one_use),
            Action::Status => {
                let nodes = layout.nodes()?;
                if nodes.is_empty() {
                    bail!(
                        "there is no cluster in {}; start one: cargo xtask cluster up",
                        layout.dir.display()
                    );
                }
                if !status::print(&layout, &nodes) {
                    bail!("not everything is ready; cargo xtask cluster up starts what does not run");
                }
                Ok(())
            }
            Action::Kubeconfig => {
                let path = layout.admin();
                if !path.exists() {
                    bail!(
                        "there is no cluster in {}; start one: cargo xtask cluster up",
                        layout.dir.display()
                    );
                }
                println!("{}", path.display());
                Ok(())
            }
            Action::Load { image, name } => {
                println!("{}", images::load(&image, name.as_deref())?);
                Ok(())
            }
        }
    }
}
