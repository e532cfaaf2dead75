//! Pod networks: a network namespace per pod, wired by the standard CNI plugins.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::TryStreamExt;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkUnspec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Name of the pod's interface.
const INTERFACE: &str = "eth0";
/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;
/// Longest run of one plugin.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Where distributions put CNI plugins.
pub const PLUGIN_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
/// Plugins that a pod network needs.
pub const PLUGINS: [&str; 3] = ["bridge", "host-local", "portmap"];
const CNI_VERSION: &str = "1.0.0";

/// The pod network of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Bridge that pods are on; also the name of our nftables table.
    pub bridge: String,
    /// IPv4 network that pods get addresses of, as `A.B.C.D/N`.
    pub subnet: String,
    /// Configuration and reservations.
    pub directory: PathBuf,
    /// Named network namespaces are mounted here.
    pub netns: PathBuf,
}

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A namespace could not be made.
    #[error("cannot make the network namespace {path}")]
    Namespace {
        /// Where it would be mounted.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin is not installed.
    #[error("the CNI plugin {plugin} is in none of {}; install containernetworking-plugins", PLUGIN_DIRS.join(", "))]
    Missing {
        /// Its name.
        plugin: String,
    },
    /// A plugin refused.
    #[error("CNI plugin {plugin}: {message}")]
    Plugin {
        /// Its name.
        plugin: String,
        /// What it said.
        message: String,
    },
    /// The machine could not be prepared.
    #[error("cannot prepare the pod network: {what}")]
    Machine {
        /// What was done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod's addresses, without prefix length.
    pub ips: Vec<IpAddr>,
    /// Interfaces and routes as the plugins gave them, which the later plugins and the removal want to see.
    pub result: Value,
}

/// A port of the host that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// On the host.
    pub host_port: i32,
    /// In the pod.
    pub container_port: i32,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Address of the host, if not all.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
}

/// Who a network is for.
#[derive(Clone, Debug)]
pub struct Sandbox<'a> {
    /// Pod UID, which is also the name of the namespace.
    pub uid: &'a str,
    /// Pod namespace.
    pub namespace: &'a str,
    /// Pod name.
    pub name: &'a str,
    /// Host ports.
    pub ports: &'a [PortMapping],
}

impl NetworkConfig {
    /// Where the namespace of a pod is mounted.
    #[must_use]
    pub fn netns_of(&self, uid: &str) -> PathBuf {
        self.netns.join(uid)
    }

    /// Prepares the machine: directories, forwarding, address translation for what leaves the pod network.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub async fn prepare(&self) -> Result<(), NetworkError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| NetworkError::Machine { what, source }
        };
        for plugin in PLUGINS {
            find_plugin(plugin)?;
        }
        fs::create_dir_all(&self.directory).map_err(failed("create the CNI directory"))?;
        fs::create_dir_all(&self.netns).map_err(failed("create the directory of namespaces"))?;
        let text =
            serde_json::to_vec_pretty(&self.conflist()).map_err(|error| failed("write the network")(error.into()))?;
        fs::write(self.directory.join("10-ferrovirt.conflist"), text).map_err(failed("write the network"))?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(failed("let the kernel forward packets"))?;
        let rules = self.rules();
        let output = run(Command::new("nft").args(["-f", "-"]), rules.as_bytes())
            .await
            .map_err(failed("run nft"))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed("install the address translation")(io::Error::other(message)));
        }
        Ok(())
    }

    /// One rule for all pods, instead of one set of rules per pod.
    fn rules(&self) -> String {
        let Self { bridge, subnet, .. } = self;
        format!(
            "table ip {bridge} {{}}\n\
             delete table ip {bridge}\n\
             table ip {bridge} {{\n\
             chain postrouting {{\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             ip saddr {subnet} ip daddr != {subnet} ip daddr != 224.0.0.0/4 masquerade\n\
             }}\n\
             }}\n"
        )
    }

    fn conflist(&self) -> Value {
        json!({
            "cniVersion": CNI_VERSION,
            "name": self.bridge,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "isGateway": true,
                    "ipMasq": false,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.reservations(),
                        "ranges": [[{ "subnet": self.subnet }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        })
    }

    fn reservations(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Makes the pod's namespace and wires it. Does so anew if a half-made one is there.
    ///
    /// # Errors
    /// See [`NetworkError`]; nothing of the attempt is left.
    pub async fn attach(&self, sandbox: &Sandbox<'_>) -> Result<Attachment, NetworkError> {
        let path = self.netns_of(sandbox.uid);
        if path.exists() {
            self.detach(sandbox, None).await;
        }
        let made = create_netns(path.clone()).await;
        made.map_err(|source| NetworkError::Namespace {
            path: path.clone(),
            source,
        })?;
        match self.add(sandbox).await {
            Ok(attachment) => Ok(attachment),
            Err(error) => {
                self.detach(sandbox, None).await;
                Err(error)
            }
        }
    }

    async fn add(&self, sandbox: &Sandbox<'_>) -> Result<Attachment, NetworkError> {
        let mut result = Value::Null;
        for plugin in self.chain(sandbox.ports) {
            result = self.plugin("ADD", sandbox, &plugin, Some(&result)).await?;
        }
        let ips = addresses(&result);
        if ips.is_empty() {
            return Err(NetworkError::Plugin {
                plugin: "bridge".into(),
                message: "it gave no address".into(),
            });
        }
        Ok(Attachment { ips, result })
    }

    /// Takes the pod off the network and removes its namespace. What is gone already is not missed.
    pub async fn detach(&self, sandbox: &Sandbox<'_>, attachment: Option<&Attachment>) {
        let result = attachment.map(|attachment| &attachment.result);
        for plugin in self.chain(sandbox.ports).into_iter().rev() {
            if let Err(error) = self.plugin("DEL", sandbox, &plugin, result).await {
                tracing::warn!(pod = sandbox.name, namespace = sandbox.namespace, %error, "cannot undo the network");
            }
        }
        remove_netns(&self.netns_of(sandbox.uid));
    }

    /// Removes the bridge and the address translation, when no pod is left. What is gone already is not missed.
    pub async fn remove(&self) {
        let rules = format!("table ip {0} {{}}\ndelete table ip {0}\n", self.bridge);
        if let Err(error) = run(Command::new("nft").args(["-f", "-"]), rules.as_bytes()).await {
            tracing::warn!(%error, "cannot remove the address translation");
        }
        let removed = async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let mut found = handle.link().get().match_name(self.bridge.clone()).execute();
            if let Ok(Some(bridge)) = found.try_next().await {
                handle
                    .link()
                    .del(bridge.header.index)
                    .execute()
                    .await
                    .map_err(io::Error::other)?;
            }
            connection.abort();
            Ok::<_, io::Error>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(bridge = self.bridge, %error, "cannot remove the bridge");
        }
    }

    /// Frees what belongs to none of the pods `live`: addresses and namespaces of an earlier boot.
    pub fn collect_garbage(&self, live: &HashSet<String>) {
        for entry in fs::read_dir(&self.netns).into_iter().flatten().flatten() {
            if !live.contains(entry.file_name().to_string_lossy().as_ref()) {
                remove_netns(&entry.path());
            }
        }
        for entry in fs::read_dir(self.reservations().join(&self.bridge))
            .into_iter()
            .flatten()
            .flatten()
        {
            // A reservation is a file named by the address; its first line is the pod's UID.
            if entry.file_name().to_string_lossy().parse::<IpAddr>().is_err() {
                continue;
            }
            let owner = fs::read_to_string(entry.path()).unwrap_or_default();
            if !owner.lines().next().is_some_and(|uid| live.contains(uid.trim())) {
                tracing::info!(address = ?entry.file_name(), "freeing an address that no pod has");
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The plugins to run; port mappings cost a process, so their plugin only runs when there are some.
    fn chain(&self, ports: &[PortMapping]) -> Vec<Value> {
        let conflist = self.conflist();
        let plugins = conflist["plugins"].as_array().cloned().unwrap_or_default();
        plugins
            .into_iter()
            .filter(|plugin| plugin["type"] != "portmap" || !ports.is_empty())
            .collect()
    }

    async fn plugin(
        &self,
        command: &str,
        sandbox: &Sandbox<'_>,
        config: &Value,
        previous: Option<&Value>,
    ) -> Result<Value, NetworkError> {
        let name = config["type"].as_str().unwrap_or_default();
        let executable = find_plugin(name)?;
        let failed = |message: String| NetworkError::Plugin {
            plugin: name.to_owned(),
            message,
        };
        let input = plugin_input(&self.bridge, config, sandbox.ports, previous).to_string();
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            sandbox.namespace, sandbox.name, sandbox.uid, sandbox.uid
        );
        let mut process = Command::new(&executable);
        process
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", sandbox.uid)
            .env("CNI_NETNS", self.netns_of(sandbox.uid))
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", arguments)
            .env("CNI_PATH", PLUGIN_DIRS.join(":"));
        let output = tokio::time::timeout(PLUGIN_TIMEOUT, run(&mut process, input.as_bytes()))
            .await
            .map_err(|_| failed(format!("{command} did not end within {}s", PLUGIN_TIMEOUT.as_secs())))?
            .map_err(|error| failed(format!("cannot run {}: {error}", executable.display())))?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() {
            return Ok(answer);
        }
        Err(failed(complaint(&answer, &output.stderr)))
    }
}

/// The words of a plugin that failed.
fn complaint(answer: &Value, stderr: &[u8]) -> String {
    let words = [answer["msg"].as_str(), answer["details"].as_str()];
    let words: Vec<&str> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        String::from_utf8_lossy(stderr).trim().to_owned()
    } else {
        words.join(": ")
    }
}

fn plugin_input(network: &str, config: &Value, ports: &[PortMapping], previous: Option<&Value>) -> Value {
    let mut input = config.clone();
    input["cniVersion"] = CNI_VERSION.into();
    input["name"] = network.into();
    if config["capabilities"]["portMappings"] == true {
        input["runtimeConfig"] = json!({ "portMappings": ports });
    }
    if let Some(object) = input.as_object_mut() {
        object.remove("capabilities");
    }
    if let Some(previous) = previous.filter(|previous| previous.is_object()) {
        input["prevResult"] = previous.clone();
    }
    input
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect()
}

/// The executable of a plugin.
///
/// # Errors
/// It is not installed.
pub fn find_plugin(plugin: &str) -> Result<PathBuf, NetworkError> {
    PLUGIN_DIRS
        .iter()
        .map(|directory| Path::new(directory).join(plugin))
        .find(|path| path.is_file())
        .ok_or_else(|| NetworkError::Missing {
            plugin: plugin.to_owned(),
        })
}

async fn run(command: &mut Command, input: &[u8]) -> io::Result<std::process::Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that does not read its input says why in its output.
        let _ = stdin.write_all(input).await;
    }
    child.wait_with_output().await
}

/// Makes a namespace with `lo` up, kept by a mount at `path`.
async fn create_netns(path: PathBuf) -> io::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let made = (|| {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            File::create(&path)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?;
            let _runtime = runtime.enter();
            rtnetlink::new_connection()
        })();
        let _ = sender.send(made);
    })?;
    let (connection, handle, _) = receiver.await.map_err(io::Error::other)??;
    let connection = tokio::spawn(connection);
    let up = handle
        .link()
        .set(LinkUnspec::new_with_index(LOOPBACK).up().build())
        .execute()
        .await;
    connection.abort();
    up.map_err(io::Error::other)
}

fn remove_netns(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a network namespace");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NetworkConfig {
        NetworkConfig {
            bridge: "fvtest".into(),
            subnet: "10.88.0.0/16".into(),
            directory: "/data/cni".into(),
            netns: "/run/ferrovirt/netns".into(),
        }
    }

    #[test]
    fn port_mappings_decide_whether_portmap_runs() {
        assert_eq!(config().chain(&[]).len(), 1);
        let port = PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: "tcp".into(),
            host_ip: None,
        };
        let chain = config().chain(std::slice::from_ref(&port));
        assert_eq!(chain.len(), 2);
        let input = plugin_input("n", &chain[1], &[port], Some(&json!({"ips": []})));
        assert_eq!(input["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
        assert_eq!(input["prevResult"], json!({"ips": []}));
        assert!(input.get("capabilities").is_none());
    }

    #[test]
    fn addresses_lose_their_prefix() {
        let result = json!({"ips": [{"address": "10.88.0.7/16"}, {"address": "fd00::7/64"}]});
        let expected: Vec<IpAddr> = vec!["10.88.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(addresses(&result), expected);
    }

    #[test]
    fn a_complaint_prefers_the_plugins_own_words() {
        assert_eq!(
            complaint(&json!({"msg": "no", "details": "range full"}), b"noise"),
            "no: range full"
        );
        assert_eq!(complaint(&Value::Null, b" noise\n"), "noise");
    }
}
