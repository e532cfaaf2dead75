//! `ferrovirt up`: the whole control plane in one process.
//!
//! ```text
//!  checks ──► lock, port ──► API server ──► KubeVirt and Node objects ──► ready
//!    │ all problems at once          every part below one supervisor; the first that fails ends the process
//!    ▼                                                                  │ SIGTERM, SIGINT
//!  exit 1                                                               ▼
//!                                             control plane stops, guests run on
//! ```

mod assemble;
mod background;
pub(crate) mod checks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ferrovirt_runtime::logs::{self, LogArgs};
use jiff::Timestamp;
use tokio::net::TcpListener;

use crate::lock::{Lock, LockError, Running};
use crate::paths::DataDir;

/// Repository of our image, without a tag.
pub(crate) const IMAGE: &str = "ferrovirt/virt-launcher";

/// Whether guests use KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kvm {
    /// A tiny guest proves once per boot that KVM works; otherwise guests are emulated
    Probe,
    /// Guests are emulated
    Off,
    /// Guests use KVM without proof
    Force,
}

/// Start the control plane
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Without --background it runs until Ctrl+C; guests go on running, and the next `ferrovirt up` finds them again.

Examples:
  ferrovirt up                                     # in the foreground, state in /var/lib/ferrovirt
  ferrovirt up --background                        # returns when the API server is ready; log in DIR/logs
  ferrovirt up --data-dir /tmp/try --listen 127.0.0.1:7443"
)]
pub struct UpArgs {
    /// Address of the API server
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:6443")]
    pub listen: SocketAddr,
    /// Return when it is ready, and leave it running
    #[arg(short, long)]
    pub background: bool,
    /// Set in the process that --background leaves running.
    #[arg(long, hide = true)]
    pub detached: bool,
    /// Name of the node, for good [default: the name it had before, at first the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// IPv4 network of the pods [default: the first free one of 10.88.0.0/16, 10.89.0.0/16 …]
    #[arg(long, value_name = "A.B.C.D/N")]
    pub pod_subnet: Option<String>,
    /// Whether guests use KVM
    #[arg(long, value_enum, default_value_t = Kvm::Probe)]
    pub kvm: Kvm,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// Runs `ferrovirt up`.
///
/// # Errors
/// With everything that is in the way and what to do about it.
pub fn run(args: &UpArgs, data_dir: PathBuf) -> anyhow::Result<()> {
    let data = DataDir::new(std::path::absolute(data_dir)?);
    let begun = Instant::now();
    if !args.detached {
        if let Some(Some(running)) = crate::lock::running(&data) {
            return already(&running, &data, args.background);
        }
        let problems = checks::all(&data);
        if !problems.is_empty() {
            let list: Vec<String> = problems.iter().map(|problem| format!("\n  - {problem}")).collect();
            bail!("this machine is not ready for guests:{}", list.concat());
        }
        if args.background {
            return background::start(args, &data);
        }
    }
    if args.detached {
        background::detach()?;
    }
    logs::init(args.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(
            std::thread::available_parallelism()
                .map_or(2, std::num::NonZero::get)
                .clamp(2, 4),
        )
        .enable_all()
        .build()?;
    runtime.spawn(ferrovirt_runtime::memory::keep_small());
    runtime.block_on(serve(args, &data, begun))
}

fn already(running: &Running, data: &DataDir, background: bool) -> anyhow::Result<()> {
    let message = format!(
        "ferrovirt is already running on {}: pid {}, {}\n  export KUBECONFIG={}",
        data.path().display(),
        running.pid,
        running.url,
        data.kubeconfig().display()
    );
    if background {
        // What was asked for is the case.
        println!("{message}");
        return Ok(());
    }
    bail!("{message}")
}

async fn serve(args: &UpArgs, data: &DataDir, begun: Instant) -> anyhow::Result<()> {
    std::fs::create_dir_all(data.path()).with_context(|| format!("cannot create {}", data.path().display()))?;
    private(data)?;
    let mut lock = match Lock::take(data) {
        Err(LockError::Held(Some(running))) => return already(&running, data, false),
        other => other?,
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| match checks::is_taken(args.listen) {
            true => format!(
                "another program listens on {}; choose another address with --listen",
                args.listen
            ),
            false => format!("cannot listen on {}", args.listen),
        })?;
    let url = format!("https://{}", listener.local_addr()?);
    let mut running = Running {
        pid: i32::try_from(std::process::id())?,
        url: url.clone(),
        since: Timestamp::now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: false,
    };
    lock.tell(&running)?;
    let termination = ferrovirt_runtime::signals::Termination::install()?;
    let home = assemble::Home::open(args, data, &url).await?;
    running.ready = true;
    lock.tell(&running)?;
    summary(&url, data, begun);
    if args.detached {
        background::let_go(&data.log())?;
    }
    let outcome = home.run(listener, termination).await;
    running.ready = false;
    lock.tell(&running)?;
    Ok(outcome?)
}

/// Only root looks into it: it holds secrets, and disks of guests.
fn private(data: &DataDir) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for directory in [data.path().join("kubelet"), data.apiserver(), data.path().join("logs")] {
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)))
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    Ok(())
}

fn summary(url: &str, data: &DataDir, begun: Instant) {
    use std::io::Write;
    let text = format!(
        "Ferrovirt {} is ready at {url} ({:.2} s)\n\n  \
         export KUBECONFIG={}\n  \
         kubectl apply -f vm.yaml        # a kubevirt.io/v1 VirtualMachine, such as examples/vm-demo.yaml\n  \
         kubectl get vm,vmi -w\n  \
         virtctl console NAME\n\n\
         Guests go on running when this ends; `ferrovirt down --vms` stops them, too.\n",
        env!("CARGO_PKG_VERSION"),
        begun.elapsed().as_secs_f64(),
        data.kubeconfig().display(),
    );
    // Nobody need be there to read it.
    let _ = std::io::stdout()
        .write_all(text.as_bytes())
        .and_then(|()| std::io::stdout().flush());
}
