//! `cargo xtask e2e cluster`: the tests with real guests, on a real Kubernetes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

/// Where the cluster's registry is, for this machine and for its nodes.
const REGISTRY: &str = "registry.local:5000/ferrovirt";
/// How long the operator has to make everything available, the nodes pulling their images meanwhile.
const AVAILABLE: &str = "--timeout=300s";

#[derive(Clone, Copy, ValueEnum)]
enum Home {
    /// A Kubernetes cluster of two nodes
    Cluster,
}

/// Options of `cargo xtask e2e`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask e2e cluster\n  cargo xtask e2e cluster --keep --install-only\n  \
                        cargo xtask e2e cluster --keep -- drain killed"
)]
pub struct E2e {
    home: Home,
    /// Leave the cluster, and what was installed, as they are at the end
    #[arg(long)]
    keep: bool,
    /// Install, and run no test
    #[arg(long)]
    install_only: bool,
    /// Directory of executables that are built already; else debug ones are built
    #[arg(long, value_name = "DIR", env = "FERROVIRT_BIN")]
    bin: Option<PathBuf>,
    /// Which tests, and options of the test executable
    #[arg(last = true)]
    tests: Vec<String>,
}

impl E2e {
    /// Brings up a cluster, installs Ferrovirt as a user does, and runs the suite. The cluster ends with it if it began
    /// with it.
    pub fn run(self) -> Result<()> {
        let Home::Cluster = self.home;
        run(
            self.bin.as_deref(),
            self.keep,
            (!self.install_only).then_some(self.tests.as_slice()),
        )
    }
}

/// As [`E2e::run`]; `tests`: `None` runs none.
pub fn run(bin: Option<&Path>, keep: bool, tests: Option<&[String]>) -> Result<()> {
    let guests = [
        ("FERROVIRT_TINY", super::ci::guest("tiny")?),
        ("FERROVIRT_DEBIAN", super::ci::guest("debian")?),
    ];
    with_cluster(bin, keep, |installed| match tests {
        Some(tests) => suite(bin, &installed.kubeconfig, &guests, tests),
        None => Ok(()),
    })
}

/// Ferrovirt on a cluster.
pub struct Installed {
    /// The administrator's.
    pub kubeconfig: String,
    /// What was applied: `ferrovirt-operator.yaml` and `kubevirt-cr.yaml`.
    pub manifests: tempfile::TempDir,
}

/// Does `work` with Ferrovirt installed on a cluster: the one that somebody runs, or a new one, which ends with it
/// unless `keep`. What an interrupted run has left behind is not used: objects that it has made would be taken for ours.
pub fn with_cluster(bin: Option<&Path>, keep: bool, work: impl FnOnce(&Installed) -> Result<()>) -> Result<()> {
    let outcome = install(bin, keep).and_then(|installed| work(&installed));
    if keep {
        println!("e2e: the cluster goes on; cargo xtask cluster down ends it");
        return outcome;
    }
    let down = step("the cluster ends", &mut xtask(&["cluster", "down", "--one-use"]));
    outcome.and(down)
}

fn install(bin: Option<&Path>, keep: bool) -> Result<Installed> {
    let mut up = xtask(&["cluster", "up", "--nodes", "2"]);
    if !keep {
        up.arg("--one-use");
    }
    step("a cluster of two nodes", &mut up)?;
    let kubeconfig = output(&mut xtask(&["cluster", "kubeconfig"]))?;
    let tag = new_tag();
    let mut images = xtask(&["images", "--push", REGISTRY, "--plain-http", "--tag", &tag]);
    match bin {
        Some(bin) => images.arg("--bin").arg(bin),
        None => images.args(["--profile", "dev"]),
    };
    step("images into its registry", &mut images)?;
    let manifests = tempfile::tempdir().context("no temporary directory")?;
    let mut deploy = xtask(&["deploy", "--registry", REGISTRY, "--tag", &tag]);
    step("manifests", deploy.arg("--directory").arg(manifests.path()))?;
    for file in ["ferrovirt-operator.yaml", "kubevirt-cr.yaml"] {
        let mut apply = kubectl(&kubeconfig, &["apply", "-f"]);
        step("installation", apply.arg(manifests.path().join(file)))?;
    }
    // These machines have no KVM to lend; and on clusters some volumes are behind gates.
    let gates = [
        "ContainerPathVolumes",
        "EnableVirtioFsStorageVolumes",
        "HostDisk",
        "Sidecar",
    ];
    let developer = json!({"useEmulation": true, "featureGates": gates});
    let configuration = json!({"spec": {"configuration": {"developerConfiguration": developer}}}).to_string();
    let patch = [
        "patch",
        "kv/kubevirt",
        "-n",
        "kubevirt",
        "--type=merge",
        "-p",
        &configuration,
    ];
    step("configuration", &mut kubectl(&kubeconfig, &patch))?;
    let wait = [
        "wait",
        "kv/kubevirt",
        "-n",
        "kubevirt",
        "--for=condition=Available",
        AVAILABLE,
    ];
    if let Err(error) = step("everything is available", &mut kubectl(&kubeconfig, &wait)) {
        for what in [
            &["get", "pods", "-n", "kubevirt", "-o", "wide"][..],
            &["describe", "kv,deploy,ds", "-n", "kubevirt"],
        ] {
            // Only to tell more; the error is what it is.
            let _ = kubectl(&kubeconfig, what).status();
        }
        return Err(error);
    }
    Ok(Installed { kubeconfig, manifests })
}

fn suite(bin: Option<&Path>, kubeconfig: &str, guests: &[(&str, String); 2], tests: &[String]) -> Result<()> {
    let mut suite = Command::new(executable()?);
    suite.args(tests).current_dir("tests/e2e");
    suite.envs(guests.iter().map(|(name, path)| (*name, path.as_str())));
    suite.env("FERROVIRT_CLUSTER", kubeconfig);
    if let Some(bin) = bin {
        suite.env("FERROVIRT_BIN", bin);
    }
    step("tests with real guests on the cluster", &mut suite)
}

/// The test executable, built together with all other tests: with its own dependencies' features alone, many crates
/// would be built a second time.
fn executable() -> Result<PathBuf> {
    println!("e2e: the tests are built");
    let mut build = super::cargo::cargo();
    build.args([
        "test",
        "--workspace",
        "--locked",
        "--no-run",
        "--message-format",
        "json",
    ]);
    let output = build
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests cannot be built: {build:?}");
    }
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = messages.filter(|m| m["target"]["name"] == "e2e" && m["target"]["kind"][0] == "test");
    let path = found
        .find_map(|m| m["executable"].as_str().map(PathBuf::from))
        .context("cargo names no test executable e2e")?;
    Ok(path)
}

/// Tag of the images, and version that is installed: a new one each time, so that nodes pull what was just built, and
/// an older installation is upgraded.
fn new_tag() -> String {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("v{}-e2e.{}", env!("CARGO_PKG_VERSION"), since.as_secs())
}

fn xtask(args: &[&str]) -> Command {
    let mut command = super::cargo::cargo();
    command
        .args(["run", "--quiet", "--locked", "-p", "xtask", "--"])
        .args(args);
    command
}

fn kubectl(kubeconfig: &str, args: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(args).env("KUBECONFIG", kubeconfig);
    command
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("e2e: {name}");
    let start = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{name} failed: {command:?}");
    }
    println!("e2e: {name}: {} s", start.elapsed().as_secs());
    Ok(())
}
