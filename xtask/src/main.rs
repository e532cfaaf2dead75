//! `cargo xtask`: checks, the gate, images, a cluster for tests, benchmarks.

mod bench;
mod cargo;
mod check;
mod ci;
mod cluster;
mod compat;
mod deploy;
mod e2e;
mod images;

use clap::Parser;

/// The project's own tasks
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Examples:\n  cargo xtask check\n  cargo xtask ci\n  cargo xtask cluster up --nodes 2\n  cargo xtask images --push localhost:5000\n  cargo xtask bench standalone"
)]
enum Task {
    /// House rules: who may depend on whom, file sizes, sorted manifests
    Check,
    /// All that the gate runs: fmt, check, clippy, docs, tests
    Ci {
        /// Leave out the tests with real guests
        #[arg(long)]
        quick: bool,
    },
    /// A real Kubernetes cluster on this machine
    Cluster(cluster::Cluster),
    /// Build the OCI images of all components, and push them
    Images(images::Images),
    /// The tests with real guests on a real Kubernetes
    E2e(e2e::E2e),
    /// Write deploy/: the operator's manifests and Helm chart
    Deploy(deploy::Deploy),
    /// Measure, and write docs/performance.md
    Bench(bench::Bench),
    /// Write docs/compat.md: every field of a VMI, its effect and the tests that show it
    Compat(compat::Compat),
}

fn main() -> std::process::ExitCode {
    let outcome = match Task::parse() {
        Task::Check => check::run(),
        Task::Ci { quick } => ci::run(quick),
        Task::Cluster(cluster) => cluster.run(),
        Task::Images(images) => images.run(),
        Task::E2e(e2e) => e2e.run(),
        Task::Deploy(deploy) => deploy.run(),
        Task::Bench(bench) => bench.run(),
        Task::Compat(compat) => compat.run(),
    };
    // The causes alone: a backtrace would push what a failed test said out of sight.
    if let Err(error) = outcome {
        eprintln!("xtask: {error:#}");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}
