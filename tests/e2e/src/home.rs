//! A home: a `ferrovirt up` with a directory of its own, or a Kubernetes cluster that Ferrovirt is installed on.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures::TryStreamExt;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Client, Config};
use serde_json::Value;

use crate::{eventually, run};

/// What distinguishes homes that run at the same time.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port of the API server on loopback.
    pub port: u16,
    /// Where the executables are.
    pub bin: PathBuf,
    /// Further arguments of `ferrovirt up`.
    pub args: Vec<String>,
}

impl Options {
    /// The executables of this build (or of `FERROVIRT_BIN`), on `port`.
    ///
    /// # Errors
    /// The directory of this executable cannot be told.
    pub fn new(port: u16) -> Result<Self> {
        Ok(Self {
            port,
            bin: executables()?,
            args: Vec::new(),
        })
    }
}

fn executables() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("FERROVIRT_BIN") {
        return Ok(std::path::absolute(PathBuf::from(dir))?);
    }
    let me = std::env::current_exe()?;
    let dir = me.ancestors().find(|d| d.join("ferrovirt").is_file());
    dir.map(Path::to_owned)
        .ok_or_else(|| anyhow!("no ferrovirt near {}: build it or set FERROVIRT_BIN", me.display()))
}

/// Of the events of a test that failed, so many are shown.
const EVENTS: usize = 30;

/// A running home. Dropping an embedded one stops guests and control plane and removes all state; a cluster is left as
/// it is.
pub struct Home {
    bin: PathBuf,
    kubeconfig: PathBuf,
    client: Client,
    embedded: Option<Embedded>,
}

/// What only a home on one machine has.
struct Embedded {
    options: Options,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

/// Where the tests' cluster has its registry, for this machine.
const REGISTRY: &str = "registry.local:5000";

impl Home {
    /// The cluster that `FERROVIRT_CLUSTER`, a kubeconfig, leads to; `None` if it is not set.
    ///
    /// # Errors
    /// It is set, and the cluster does not answer.
    pub async fn cluster() -> Result<Option<Self>> {
        let Some(kubeconfig) = std::env::var_os("FERROVIRT_CLUSTER") else {
            return Ok(None);
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = std::path::absolute(PathBuf::from(kubeconfig))?;
        let client = connect(&kubeconfig).await.context("the cluster does not answer")?;
        Ok(Some(Self {
            bin: executables()?,
            kubeconfig,
            client,
            embedded: None,
        }))
    }

    fn embedded(&self) -> Result<&Embedded> {
        self.embedded.as_ref().context("this is a cluster, not one machine")
    }

    /// Whether this is a cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.embedded.is_none()
    }

    /// Starts `ferrovirt up` and waits until the API server is ready.
    ///
    /// # Errors
    /// It does not start within 60 s; then with the end of its log.
    pub async fn start(options: Options) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("ferrovirt-e2e-").tempdir()?;
        // Guests' processes run as another uid and must be able to pass.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let child = spawn(&options, dir.path())?;
        let client = match ready(dir.path(), &options).await {
            Ok(client) => client,
            Err(error) => {
                let log = std::fs::read_to_string(dir.path().join("up.log")).unwrap_or_default();
                bail!("{error:#}\n{log}");
            }
        };
        Ok(Self {
            bin: options.bin.clone(),
            kubeconfig: dir.path().join("kubeconfig"),
            client,
            embedded: Some(Embedded {
                options,
                dir,
                child: Some(child),
            }),
        })
    }

    /// A client of the API server, as administrator, over TLS.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The state directory.
    ///
    /// # Errors
    /// This is a cluster.
    pub fn data_dir(&self) -> Result<&Path> {
        Ok(self.embedded()?.dir.path())
    }

    /// The pid of `ferrovirt up`.
    ///
    /// # Errors
    /// It is not running.
    pub fn pid(&self) -> Result<i32> {
        let child = self.embedded()?.child.as_ref();
        let child = child.context("ferrovirt up is not running")?;
        Ok(i32::try_from(child.id())?)
    }

    /// All that `ferrovirt up`, or the components on the cluster, have logged.
    #[must_use]
    pub fn log(&self) -> String {
        match &self.embedded {
            Some(embedded) => std::fs::read_to_string(embedded.dir.path().join("up.log")).unwrap_or_default(),
            None => {
                let components = "kubevirt.io in (virt-operator, virt-api, virt-controller, virt-handler)";
                let args = ["logs", "-n", "kubevirt", "-l", components, "--prefix", "--tail=200"];
                run(&mut self.kubectl(&args)).unwrap_or_else(|error| format!("{error:#}"))
            }
        }
    }

    /// SIGKILL of the control plane.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self) -> Result<()> {
        let embedded = self.embedded.as_mut().context("this is a cluster, not one machine")?;
        let mut child = embedded.child.take().context("ferrovirt up is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts the control plane again on the same state.
    ///
    /// # Errors
    /// As [`Home::start`].
    pub async fn restart(&mut self) -> Result<()> {
        let embedded = self.embedded.as_mut().context("this is a cluster, not one machine")?;
        embedded.child = Some(spawn(&embedded.options, embedded.dir.path())?);
        ready(embedded.dir.path(), &embedded.options).await?;
        Ok(())
    }

    /// `ferrovirt …`, on one machine with this home's directory.
    #[must_use]
    pub fn ferrovirt(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("ferrovirt"));
        command.args(args);
        if let Some(embedded) = &self.embedded {
            command.arg("--data-dir").arg(embedded.dir.path());
        }
        command
    }

    /// The real kubectl, as administrator.
    #[must_use]
    pub fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(args).env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Our virtctl, as administrator.
    #[must_use]
    pub fn virtctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("virtctl"));
        command.args(args).env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    /// Makes an image archive known under a name: imports it, or pushes it to the cluster's registry, which its nodes
    /// ask for every image.
    ///
    /// # Errors
    /// `ferrovirt image import`, or skopeo, fails.
    pub fn import(&self, archive: &str, name: &str) -> Result<()> {
        if self.is_cluster() {
            let mut push = Command::new("skopeo");
            push.args(["copy", "-q", "--dest-tls-verify=false"])
                .arg(format!("oci-archive:{archive}"))
                .arg(format!("docker://{REGISTRY}/{name}"));
            return run(&mut push).map(drop);
        }
        run(&mut self.ferrovirt(&["image", "import", archive, "--name", name])).map(drop)
    }

    /// The directory of a claim's volume.
    ///
    /// # Errors
    /// The claim has none.
    pub async fn volume(&self, namespace: &str, claim: &str) -> Result<PathBuf> {
        let claim = self.get("PersistentVolumeClaim", namespace, claim).await?;
        let name = claim.unwrap_or_default()["spec"]["volumeName"]
            .as_str()
            .context("the claim has no volume")?
            .to_owned();
        if !self.is_cluster() {
            return Ok(self.data_dir()?.join("volumes").join(name));
        }
        let path = run(&mut self.kubectl(&["get", "pv", &name, "-o", "jsonpath={.spec.local.path}"]))?;
        Ok(PathBuf::from(path))
    }

    /// Makes a namespace for one test. One that an interrupted run has left behind goes first.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn namespace(&self, name: &str) -> Result<()> {
        let left = ["delete", "namespace", name, "--ignore-not-found", "--timeout=120s"];
        run(&mut self.kubectl(&left))?;
        run(&mut self.kubectl(&["create", "namespace", name])).map(drop)
    }

    /// `kubectl apply -f -` of a manifest.
    ///
    /// # Errors
    /// kubectl fails; then with what it printed.
    pub fn apply(&self, namespace: &str, manifest: &str) -> Result<String> {
        let path = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(path.path(), manifest)?;
        let file = path.path().to_string_lossy().into_owned();
        run(&mut self.kubectl(&["apply", "-n", namespace, "-f", &file]))
    }

    /// An object as JSON; `None` if it does not exist.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let object = self.api(kind, namespace)?.get_opt(name).await?;
        Ok(object.map(serde_json::to_value).transpose()?)
    }

    /// A Deployment as JSON.
    ///
    /// # Errors
    /// There is none.
    pub async fn deployment(&self, namespace: &str, name: &str) -> Result<Value> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment"));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        Ok(serde_json::to_value(api.get(name).await?)?)
    }

    /// Watches one object until `condition` holds and gives it; `Value::Null` stands for an object that does not exist.
    ///
    /// # Errors
    /// Not within `limit`; then with the object's status as last seen and the events about it.
    pub async fn wait(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        limit: Duration,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let stream = watcher::watch_object(self.api(kind, namespace)?, name);
        let found = tokio::time::timeout(limit, async {
            let mut stream = std::pin::pin!(stream);
            loop {
                match stream.try_next().await {
                    Ok(Some(object)) => {
                        last = serde_json::to_value(object)?;
                        if condition(&last) {
                            return anyhow::Ok(());
                        }
                    }
                    Ok(None) => bail!("the watch ended"),
                    // watch_object starts again by itself.
                    Err(_) => {}
                }
            }
        })
        .await;
        match found {
            Ok(Ok(())) => Ok(last),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let events = run(&mut self.kubectl(&["get", "events", "-n", namespace])).unwrap_or_default();
                bail!(
                    "{kind} {namespace}/{name}: {what}: not within {limit:?}; last saw {:#}\n{events}",
                    last["status"]
                )
            }
        }
    }

    /// Waits for `status.printableStatus` of a VM.
    ///
    /// # Errors
    /// As [`Home::wait`].
    pub async fn wait_status(&self, namespace: &str, vm: &str, status: &str, limit: Duration) -> Result<Value> {
        self.wait(
            "VirtualMachine",
            namespace,
            vm,
            limit,
            &format!("status {status}"),
            |o| o["status"]["printableStatus"] == status,
        )
        .await
    }

    /// Waits for `status.phase` of a VMI.
    ///
    /// # Errors
    /// As [`Home::wait`].
    pub async fn wait_phase(&self, namespace: &str, vmi: &str, phase: &str, limit: Duration) -> Result<Value> {
        self.wait(
            "VirtualMachineInstance",
            namespace,
            vmi,
            limit,
            &format!("phase {phase}"),
            |o| o["status"]["phase"] == phase,
        )
        .await
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// As [`Home::wait`].
    pub async fn wait_gone(&self, kind: &str, namespace: &str, name: &str, limit: Duration) -> Result<()> {
        self.wait(kind, namespace, name, limit, "gone", Value::is_null)
            .await
            .map(drop)
    }

    /// The serial log as `kubectl logs` shows it.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn serial_log(&self, namespace: &str, vmi: &str) -> Result<String> {
        let selector = format!("vm.kubevirt.io/name={vmi}");
        run(&mut self.kubectl(&[
            "logs",
            "-n",
            namespace,
            "-l",
            &selector,
            "-c",
            "guest-console-log",
            "--tail=-1",
        ]))
    }

    /// What a namespace's guests wrote to their serial consoles last, and its events, for the message of a test that
    /// failed.
    #[must_use]
    pub fn evidence(&self, namespace: &str) -> String {
        let said = |arguments: &[&str]| run(&mut self.kubectl(arguments)).unwrap_or_else(|error| format!("{error:#}"));
        let guests = said(&["get", "vmi", "-n", namespace, "-o", "name"]);
        let name = |guest: &str| guest.rsplit_once('/').map(|(_, name)| name.to_owned());
        let console = |guest: String| {
            let log = self
                .serial_log(namespace, &guest)
                .unwrap_or_else(|error| format!("{error:#}"));
            let skip = log.chars().count().saturating_sub(1500);
            let end: String = log.chars().skip(skip).collect();
            format!("the console of {guest} ends with:\n{end}\n")
        };
        let consoles: String = guests.lines().filter_map(name).map(console).collect();
        let columns = "custom-columns=:.lastTimestamp,:.involvedObject.kind,:.involvedObject.name,:.reason,:.message";
        let events = said(&[
            "get",
            "events",
            "-n",
            namespace,
            "--sort-by=.lastTimestamp",
            "-o",
            columns,
        ]);
        let skip = events.lines().count().saturating_sub(EVENTS);
        let events: Vec<&str> = events.lines().skip(skip).collect();
        format!("{consoles}the last events:\n{}\n", events.join("\n"))
    }

    /// Waits until the serial log contains `text`.
    ///
    /// # Errors
    /// Not within `limit`; then with the end of the log.
    pub async fn wait_serial(&self, namespace: &str, vmi: &str, text: &str, limit: Duration) -> Result<String> {
        let what = format!("the serial log of {namespace}/{vmi} contains {text:?}");
        eventually(&what, limit, || async {
            let log = self.serial_log(namespace, vmi).map_err(|e| format!("{e:#}"))?;
            if log.contains(text) {
                return Ok(log);
            }
            let skip = log.chars().count().saturating_sub(800);
            Err(log.chars().skip(skip).collect::<String>())
        })
        .await
    }

    fn api(&self, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
        let (group, version, plural) = match kind {
            "VirtualMachine" => ("kubevirt.io", "v1", "virtualmachines"),
            "VirtualMachineInstance" => ("kubevirt.io", "v1", "virtualmachineinstances"),
            "KubeVirt" => ("kubevirt.io", "v1", "kubevirts"),
            "Pod" => ("", "v1", "pods"),
            "Secret" => ("", "v1", "secrets"),
            "PersistentVolumeClaim" => ("", "v1", "persistentvolumeclaims"),
            "Namespace" => ("", "v1", "namespaces"),
            "Node" => ("", "v1", "nodes"),
            other => bail!("the tests know no kind {other}"),
        };
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Ok(match kind {
            "Namespace" | "Node" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), namespace, &resource),
        })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.is_cluster() {
            return;
        }
        let mut down = self.ferrovirt(&["down", "--vms", "--purge", "--yes"]);
        if let Err(error) = run(&mut down) {
            eprintln!("e2e: {error:#}");
        }
        if let Some(mut child) = self.embedded.as_mut().and_then(|embedded| embedded.child.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(options: &Options, dir: &Path) -> Result<Child> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("up.log"))?;
    Command::new(options.bin.join("ferrovirt"))
        .arg("up")
        .arg("--data-dir")
        .arg(dir)
        .arg("--listen")
        .arg(format!("127.0.0.1:{}", options.port))
        .args(&options.args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run {}", options.bin.join("ferrovirt").display()))
}

async fn ready(dir: &Path, options: &Options) -> Result<Client> {
    let limit = Duration::from_secs(60);
    let start = Instant::now();
    let kubeconfig = dir.join("kubeconfig");
    let url = format!("https://127.0.0.1:{}", options.port);
    loop {
        match connect(&kubeconfig).await {
            Ok(client) => return Ok(client),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("{url} is not ready after {limit:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A client as a kubeconfig says.
///
/// # Errors
/// It cannot be read, or the API server does not answer.
pub async fn connect(kubeconfig: &Path) -> Result<Client> {
    let file = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    client.apiserver_version().await?;
    Ok(client)
}
