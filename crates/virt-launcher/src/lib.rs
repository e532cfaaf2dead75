#![doc = env!("CARGO_PKG_DESCRIPTION")]
//!
//! ```text
//!  virt-handler ──gRPC──► rpc ──► driver ──► hypervisor ──► libvirtd ──► QEMU
//!                          ▲        │  ├────► disks, dhcp
//!                          └─state──┘  └────► agent
//! ```
//!
//! As PID 1 of its container the launcher also reaps what ends and keeps libvirtd alive. Its user needs an entry in
//! the container's `/etc/passwd`, and `CAP_NET_BIND_SERVICE` (or `net.ipv4.ip_unprivileged_port_start` ≤ 67 in the
//! pod's network namespace) where the guest gets its address by DHCP.

mod agent;
mod appeared;
mod args;
mod capabilities;
mod children;
mod cpus;
mod credentials;
mod dhcp;
mod disks;
mod downward_metrics;
mod driver;
mod filesystems;
mod hooks;
mod host_devices;
mod hypervisor;
mod ignition;
mod layout;
mod libvirtd;
mod machine;
pub mod passt;
mod rpc;
mod screen;
mod state;
mod swtpm;
mod user;
mod virtual_functions;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use ferrovirt_protocol::launcher::GuestState;
use nix::sys::prctl;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

pub use args::Args;

use crate::driver::{Driver, Input, Outcome, Parts};
use crate::layout::Layout;

/// How long the last state may take to reach virt-handler.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs the launcher to the end of its guest. The exit code is 0 when the guest ended on request or by itself.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Ours at the level asked for; the transport's frames help no one.
    let asked = std::env::var("VIRT_LAUNCHER_LOG_VERBOSITY").ok();
    let level = asked.as_deref().and_then(args::level).unwrap_or(args.log_level);
    let quiet = level.min(LevelFilter::INFO);
    let levels = Targets::new()
        .with_default(level)
        .with_targets(["h2", "hyper", "tonic", "tower"].map(|name| (name, quiet)));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(levels)).init();
    if let Some(asked) = asked.filter(|asked| args::level(asked).is_none()) {
        tracing::warn!(asked, "the label logVerbosity is not a number from 0 to 255");
    }
    hypervisor::forbid_autostart();
    if let Some(dir) = &args.prepare_capabilities {
        return prepare_capabilities(dir, args.user, !args.without_kvm);
    }
    let layout = Layout::new(&args.root, &args.namespace, &args.name, &args.uid);
    user::settle(&layout, args.user)?;
    prctl::set_child_subreaper(true).context("cannot adopt orphaned processes")?;
    runtime()?.block_on(launch(&args, layout))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_secs(1))
        .thread_stack_size(256 << 10)
        .build()
}

fn prepare_capabilities(dir: &Path, user: u32, kvm: bool) -> anyhow::Result<ExitCode> {
    let scratch = nix::unistd::mkdtemp(&std::env::temp_dir().join("virt-launcher-XXXXXX"))?;
    capabilities::make_dir(&scratch, user)?;
    let layout = Layout::new(&scratch, "default", "capabilities", "capabilities");
    capabilities::make_dir(dir, user)?;
    user::show_kvm(&scratch, user, kvm).context("cannot arrange /dev/kvm as it is in pods")?;
    user::settle(&layout, user)?;
    let prepared = runtime()?.block_on(capabilities::prepare(&layout, dir));
    if let Err(error) = std::fs::remove_dir_all(&scratch) {
        tracing::debug!(%error, "left {} behind", scratch.display());
    }
    prepared?;
    Ok(ExitCode::SUCCESS)
}

/// The label `debugLogs` asks for all that libvirt has to say.
fn verbose_libvirt() -> bool {
    std::env::var("LIBVIRT_DEBUG_LOGS").is_ok_and(|value| value == "1")
}

async fn launch(args: &Args, layout: Layout) -> anyhow::Result<ExitCode> {
    let children = children::Children::default();
    tokio::spawn(children.clone().reap());
    let daemon = libvirtd::Libvirtd::prepare(&layout, children.clone(), verbose_libvirt())?;
    let (events_to, events) = mpsc::unbounded_channel();
    let hypervisor = hypervisor::Hypervisor::start(
        &layout.libvirt_socket(),
        ferrovirt_domain::domain_name(layout.namespace(), layout.name()),
        events_to,
    )?;
    let socket = layout.launcher_socket();
    let listener = rpc::listen(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let (termination_log, exit_code) = (layout.termination_log(), layout.exit_code());
    let parts = Parts {
        layout,
        children,
        hypervisor,
        events,
        agent: agent::Agent::start()?,
        default_grace: Duration::from_secs(args.grace_period_seconds),
        hook_sidecars: args.hook_sidecars,
        console_log: args.console_log,
    };
    let (driver, inputs, published) = Driver::new(parts);
    let stop = CancellationToken::new();
    let mut daemon = tokio::spawn(daemon.supervise(published.clone(), stop.clone()));
    tokio::spawn(forward_signals(inputs.clone()));
    let served = CancellationToken::new();
    let server = tokio::spawn(rpc::serve(listener, inputs, published.clone(), served.clone()));

    let outcome = tokio::select! {
        outcome = driver.run() => outcome,
        ended = &mut daemon => {
            ended.context("libvirtd's supervisor failed")??;
            anyhow::bail!("libvirtd's supervisor ended");
        }
    };
    leave_word(&termination_log, &published);
    let code: u8 = match outcome {
        Outcome::ShutOff => 0,
        Outcome::Failed => 1,
    };
    if let Err(error) = std::fs::write(&exit_code, code.to_string()) {
        tracing::debug!(%error, "cannot write {}", exit_code.display());
    }
    served.cancel();
    let _ = tokio::time::timeout(LAST_WORDS, server).await;
    stop.cancel();
    let _ = tokio::time::timeout(LAST_WORDS, daemon).await;
    Ok(ExitCode::from(code))
}

async fn forward_signals(inputs: mpsc::UnboundedSender<Input>) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if inputs.send(Input::Terminate).is_err() {
            return Ok(());
        }
    }
}

/// Tells the kubelet why the container ended, where it asks for it.
fn leave_word(path: &Path, published: &watch::Receiver<GuestState>) {
    let state = published.borrow();
    if path.exists()
        && let Err(error) = std::fs::write(path, format!("{}: {}", state.reason, state.message))
    {
        tracing::debug!(%error, "cannot write the termination message");
    }
}
