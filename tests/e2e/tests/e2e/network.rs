//! Guests on the pod network.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use ferrovirt_api::v1::KubeVirt;
use ferrovirt_e2e::{Home, eventually};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use libtest_mimic::Trial;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::manifest::{spec, vmi};
use super::{BOOT, SOON, Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![
        trial(shared, "masquerade", masquerade),
        trial(shared, "masquerade-ports", masquerade_ports),
        trial(shared, "bridge", bridge),
        trial(shared, "binding-plugin", binding_plugin),
        trial(shared, "passt", passt),
        trial(shared, "vnc", vnc),
    ]
}

/// GETs a file of the guest's web server through `virtctl port-forward`.
pub async fn http(home: &Home, ns: &str, target: &str, file: &str) -> Result<String> {
    let mut child = home
        .virtctl(&["port-forward", "-n", ns, target, "0:80"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run virtctl")?;
    let stdout = child.stdout.take().context("standard output is piped")?;
    // virtctl says which port it took.
    let port = BufReader::new(stdout).lines().map_while(Result::ok).find_map(|line| {
        let at = line.find("127.0.0.1:")? + "127.0.0.1:".len();
        line[at..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse::<u16>()
            .ok()
    });
    let answer = match port {
        None => Err(anyhow::anyhow!("virtctl port-forward names no port")),
        Some(port) => {
            eventually("the guest's web server answers", BOOT, || async {
                get(&format!("127.0.0.1:{port}"), file)
                    .await
                    .map_err(|e| format!("{e:#}"))
            })
            .await
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    answer
}

/// One HTTP/1.0 GET.
async fn get(address: &str, file: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(format!("GET /{file} HTTP/1.0\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(SOON, exchange)
        .await
        .context("no answer in time")??;
    if !answer.starts_with("HTTP/1.") || !answer.contains("200 OK") {
        bail!("the answer is {answer:?}");
    }
    Ok(answer)
}

/// Shows `spec.domain.devices.interfaces[].masquerade`.
async fn masquerade(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vmi("a", spec()))?;
    let running = home.wait_phase(ns, "a", "Running", BOOT).await?;
    let interface = &running["status"]["interfaces"][0];
    let ip = interface["ipAddress"]
        .as_str()
        .context("the interface has an address")?
        .to_owned();
    ensure!(
        interface["name"] == "default" && interface["mac"].is_string(),
        "{interface}"
    );
    home.wait_serial(ns, "a", "is ready at 10.0.2.2", BOOT).await?;
    // From the host to the pod's address, translated to the guest's.
    let answer = eventually("the guest answers", SOON, || async {
        get(&format!("{ip}:80"), "index.html")
            .await
            .map_err(|e| format!("{e:#}"))
    })
    .await?;
    ensure!(answer.contains("hello from tiny"), "{answer}");
    Ok(())
}

/// Shows `spec.domain.devices.interfaces[].ports[].port`.
async fn masquerade_ports(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["domain"]["devices"]["interfaces"][0]["ports"] = json!([{"name": "echo", "port": 7}]);
    home.apply(ns, &vmi("a", spec))?;
    let running = home.wait_phase(ns, "a", "Running", BOOT).await?;
    let ip = running["status"]["interfaces"][0]["ipAddress"]
        .as_str()
        .context("the interface has an address")?
        .to_owned();
    home.wait_serial(ns, "a", "is ready at", BOOT).await?;
    eventually("port 7 is forwarded", SOON, || async {
        let mut stream = TcpStream::connect(format!("{ip}:7")).await.map_err(|e| e.to_string())?;
        stream.write_all(b"ping\n").await.map_err(|e| e.to_string())?;
        let mut answer = [0; 5];
        tokio::time::timeout(SOON, stream.read_exact(&mut answer))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        if &answer == b"ping\n" {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        }
    })
    .await?;
    ensure!(
        get(&format!("{ip}:80"), "index.html").await.is_err(),
        "port 80 is not listed but answers"
    );
    Ok(())
}

/// Shows `spec.domain.devices.interfaces[].bridge`.
async fn bridge(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    spec["domain"]["devices"]["interfaces"][0] = json!({"name": "default", "bridge": {}});
    home.apply(ns, &vmi("a", spec))?;
    let running = home.wait_phase(ns, "a", "Running", BOOT).await?;
    let ip = running["status"]["interfaces"][0]["ipAddress"]
        .as_str()
        .context("the interface has an address")?
        .to_owned();
    // The guest itself has the pod's address.
    home.wait_serial(ns, "a", &format!("is ready at {ip}"), BOOT).await?;
    let answer = http(home, ns, "vmi/a", "index.html").await?;
    ensure!(answer.contains("hello from tiny"), "{answer}");
    Ok(())
}

/// A plugin that an administrator registers, and which leaves bridge and tap to us.
/// The one test's part of the KubeVirt object.
struct Plugin {
    api: Api<KubeVirt>,
    kubevirt: String,
}

impl Plugin {
    async fn new(home: &Home) -> Result<Self> {
        let kubevirt = Api::<KubeVirt>::all(home.client()).list(&ListParams::default()).await?;
        let kubevirt = kubevirt.items.first().context("there is a KubeVirt object")?;
        Ok(Self {
            api: Api::namespaced(home.client(), &kubevirt.namespace().unwrap_or_default()),
            kubevirt: kubevirt.name_any(),
        })
    }

    /// Registers it; null takes it away.
    async fn register(&self, plugin: serde_json::Value) -> kube::Result<()> {
        let binding = json!({"e2e-managed": plugin});
        let change = json!({"spec": {"configuration": {"network": {"binding": binding}}}});
        let patch = Patch::Merge(change);
        self.api
            .patch(&self.kubevirt, &PatchParams::default(), &patch)
            .await
            .map(drop)
    }
}

async fn binding_plugin(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let plugin = Plugin::new(&shared.home).await?;
    // An interrupted run may have left it.
    plugin.register(serde_json::Value::Null).await?;
    let outcome = guest_with_plugin(&shared.home, ns, &plugin).await;
    let gone = plugin.register(serde_json::Value::Null).await;
    outcome.and(gone.context("the plugin stays registered"))
}

async fn guest_with_plugin(home: &Home, ns: &str, plugin: &Plugin) -> Result<()> {
    let mut spec = spec();
    spec["domain"]["devices"]["interfaces"][0] = json!({"name": "default", "binding": {"name": "e2e-managed"}});
    let refused = home.apply(ns, &vmi("a", spec.clone()));
    let refused = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(
        refused.contains("no network binding plugin \"e2e-managed\" is registered"),
        "a VMI with a plugin that is not registered is not refused with the reason: {refused:?}"
    );
    let wrong = plugin.register(json!({"domainAttachmentType": "cable"})).await;
    let wrong = wrong.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(
        wrong.contains("\"cable\" is not one of tap, managedTap"),
        "a plugin with a type that does not exist is not refused with the reason: {wrong:?}"
    );
    plugin
        .register(json!({"domainAttachmentType": "managedTap", "migration": {}}))
        .await?;
    eventually("the plugin is known", SOON, || async {
        home.apply(ns, &vmi("a", spec.clone())).map_err(|e| format!("{e:#}"))
    })
    .await?;
    let running = home.wait_phase(ns, "a", "Running", BOOT).await?;
    let ip = running["status"]["interfaces"][0]["ipAddress"]
        .as_str()
        .context("the interface has an address")?
        .to_owned();
    // The guest itself has the pod's address.
    home.wait_serial(ns, "a", &format!("is ready at {ip}"), BOOT).await?;
    let answer = http(home, ns, "vmi/a", "index.html").await?;
    ensure!(answer.contains("hello from tiny"), "{answer}");
    Ok(())
}

/// The guest has the pod's address by DHCP from passt, which forwards the ports that are listed and no others.
///
/// Shows `spec.domain.devices.interfaces[].passtBinding`, `spec.domain.devices.interfaces[].ports[].port`.
async fn passt(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let mut spec = spec();
    let nic =
        json!({"name": "default", "passtBinding": {}, "macAddress": "02:00:00:00:0a:01", "ports": [{"port": 80}]});
    spec["domain"]["devices"]["interfaces"] = json!([nic]);
    home.apply(ns, &vmi("a", spec))?;
    let running = home.wait_phase(ns, "a", "Running", BOOT).await?;
    let interface = &running["status"]["interfaces"][0];
    let ip = interface["ipAddress"]
        .as_str()
        .context("the interface has an address")?;
    ensure!(
        interface["mac"] == "02:00:00:00:0a:01" && interface["podInterfaceName"] == "eth0",
        "{interface}"
    );
    home.wait_serial(ns, "a", &format!("is ready at {ip}"), BOOT).await?;
    let answer = http(home, ns, "vmi/a", "index.html").await?;
    ensure!(answer.contains("hello from tiny"), "{answer}");
    // From outside of the pod: the one that is listed shows that there is a way.
    TcpStream::connect(format!("{ip}:80"))
        .await
        .context("port 80 is listed but refuses")?;
    ensure!(
        TcpStream::connect(format!("{ip}:7")).await.is_err(),
        "port 7 is not listed but answers"
    );
    Ok(())
}

/// A viewer's first words through `virtctl vnc --proxy-only` (RFC 6143, 7.1.1).
async fn vnc(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    home.apply(ns, &vmi("a", spec()))?;
    home.wait_phase(ns, "a", "Running", BOOT).await?;
    let mut child = home
        .virtctl(&["vnc", "-n", ns, "a", "--proxy-only"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run virtctl")?;
    let stdout = child.stdout.take().context("standard output is piped")?;
    let line = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("port"));
    let greeting = async {
        let told: serde_json::Value = serde_json::from_str(&line.context("virtctl tells no port")?)?;
        let port = told["port"].as_u64().context("the port is a number")?;
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).await?;
        let mut greeting = [0; 12];
        tokio::time::timeout(SOON, stream.read_exact(&mut greeting))
            .await
            .context("no greeting in time")??;
        anyhow::Ok(greeting)
    };
    let greeting = greeting.await;
    let _ = child.kill();
    let _ = child.wait();
    ensure!(&greeting? == b"RFB 003.008\n", "this is no VNC server");
    Ok(())
}
