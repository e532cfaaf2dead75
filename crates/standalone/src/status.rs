//! `ferrovirt status`: one screen that says what is the case, with and without a running control plane.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use indicatif::{BinaryBytes, HumanDuration};
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use serde_json::Value;

use crate::images::ImageStore;
use crate::lock::{self, Running};
use crate::paths::DataDir;
use crate::pods::clean::running_pods;
use crate::quantity;
use crate::up::checks;

/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a VM's status says when something is wrong, besides everything that begins with `Err`.
const TROUBLE: [&str; 4] = ["CrashLoopBackOff", "ImagePullBackOff", "DataVolumeError", "Unknown"];

/// Runs `ferrovirt status`.
///
/// # Errors
/// The data directory cannot be read at all.
pub fn run(data_dir: PathBuf) -> anyhow::Result<()> {
    let data = DataDir::new(std::path::absolute(data_dir)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = runtime.block_on(report(&data));
    print!("{text}");
    Ok(())
}

async fn report(data: &DataDir) -> String {
    let mut out = String::new();
    let mut problems = checks::all(data);
    let _ = match lock::running(data) {
        Some(Some(running)) => {
            line(&mut out, "Control plane", &control_plane(&running));
            line(&mut out, "KUBECONFIG", &data.kubeconfig().display().to_string());
            match tokio::time::timeout(PATIENCE, Seen::gather(data)).await {
                Ok(Ok(seen)) => seen.show(&mut out, &mut problems),
                Ok(Err(error)) => problems.push(format!("the API server cannot be asked: {error:#}")),
                Err(_) => problems.push(format!("the API server did not answer within {}s", PATIENCE.as_secs())),
            }
            Ok(())
        }
        Some(None) => {
            line(&mut out, "Control plane", "starting");
            Ok(())
        }
        None => {
            line(&mut out, "Control plane", "not running; `ferrovirt up` starts it");
            still_running(data, &mut out)
        }
    };
    images(data, &mut out);
    if !problems.is_empty() {
        out.push_str("\nProblems\n");
        for problem in problems {
            let _ = writeln!(out, "  - {problem}");
        }
    }
    out
}

fn line(out: &mut String, what: &str, text: &str) {
    let _ = writeln!(out, "{what:<14} {text}");
}

fn control_plane(running: &Running) -> String {
    let seconds = running.since.duration_until(Timestamp::now()).as_secs();
    let up = HumanDuration(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let state = if running.ready { "running" } else { "not ready" };
    format!(
        "{state}, version {}, pid {}, up {up}, {}",
        running.version, running.pid, running.url
    )
}

/// Guests outlive the control plane.
fn still_running(data: &DataDir, out: &mut String) -> std::fmt::Result {
    let pods = running_pods(data);
    if pods.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nThese guests go on running:")?;
    for pod in pods {
        writeln!(
            out,
            "  {}/{} since {}",
            pod.namespace,
            pod.name,
            pod.since.strftime("%Y-%m-%d %H:%M:%SZ")
        )?;
    }
    Ok(())
}

fn images(data: &DataDir, out: &mut String) {
    if !data.images().exists() {
        return;
    }
    let list = ImageStore::open(&data.images())
        .and_then(|store| store.list())
        .unwrap_or_default();
    let size: u64 = list.values().map(|entry| entry.size).sum();
    let text = format!(
        "{} ({}); `ferrovirt image list` shows them",
        list.len(),
        BinaryBytes(size)
    );
    line(out, "Images", &text);
}

/// What the API says.
struct Seen {
    nodes: Vec<DynamicObject>,
    pods: Vec<DynamicObject>,
    machines: Vec<DynamicObject>,
    instances: Vec<DynamicObject>,
}

impl Seen {
    async fn gather(data: &DataDir) -> anyhow::Result<Self> {
        let kubeconfig =
            kube::config::Kubeconfig::read_from(data.kubeconfig()).context("cannot read the kubeconfig")?;
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let client = Client::try_from(config)?;
        let list = |group: &str, kind: &str| {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
            let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
            async move { api.list(&ListParams::default()).await.map(|list| list.items) }
        };
        let (nodes, pods, machines, instances) = tokio::try_join!(
            list("", "Node"),
            list("", "Pod"),
            list("kubevirt.io", "VirtualMachine"),
            list("kubevirt.io", "VirtualMachineInstance"),
        )?;
        Ok(Self {
            nodes,
            pods,
            machines,
            instances,
        })
    }

    fn show(&self, out: &mut String, problems: &mut Vec<String>) {
        for node in &self.nodes {
            let kvm = node.labels().get("ferrovirt.node.kubevirt.io/kvm").map(String::as_str);
            let why = node
                .annotations()
                .get("ferrovirt.node.kubevirt.io/kvm-reason")
                .map_or("", String::as_str);
            let how = match kvm {
                Some("true") => "KVM".to_owned(),
                Some(_) => format!("emulated (TCG), {why}"),
                None => "being found out".to_owned(),
            };
            line(out, "Guests run", &how);
            line(out, "Node", &self.node(node));
        }
        let rows = self.rows(problems);
        if rows.is_empty() {
            out.push_str("\nNo virtual machines. `kubectl apply -f vm.yaml` makes one.\n\n");
        } else {
            let header = ["NAMESPACE", "NAME", "STATUS", "IP", "CPU", "MEMORY"].map(str::to_owned);
            out.push('\n');
            out.push_str(&table(&header, &rows));
            out.push('\n');
        }
    }

    fn node(&self, node: &DynamicObject) -> String {
        let name = node.name_any();
        let mine = |pod: &&DynamicObject| pod.data["spec"]["nodeName"] == name.as_str() && !is_over(pod);
        let requested = self
            .pods
            .iter()
            .filter(mine)
            .filter_map(|pod| serde_json::from_value(pod.data["spec"].clone()).ok());
        let mut used = crate::scheduler::Amounts::new();
        for spec in requested {
            crate::scheduler::add(&mut used, &crate::scheduler::requests(&spec));
        }
        let of = |resource: &str| used.get(resource).copied().unwrap_or(0);
        let memory = amount(&node.data["status"]["allocatable"]["memory"]);
        format!(
            "{name}: {} CPUs ({:.1} requested), {} memory for guests ({} requested)",
            node.data["status"]["allocatable"]["cpu"].as_str().unwrap_or("?"),
            // Thousandths of a processor are few enough for an f64.
            of("cpu") as f64 / 1000.0,
            BinaryBytes(memory),
            BinaryBytes(of("memory")),
        )
    }

    fn rows(&self, problems: &mut Vec<String>) -> Vec<[String; 6]> {
        let instance = |of: &DynamicObject| {
            self.instances
                .iter()
                .find(|vmi| (vmi.namespace(), vmi.name_any()) == (of.namespace(), of.name_any()))
        };
        let row = |object: &DynamicObject, vmi: Option<&DynamicObject>, status: &str| {
            let template = &object.data["spec"]["template"]["spec"];
            let spec = vmi.map_or(template, |vmi| &vmi.data["spec"]);
            let ip = vmi
                .and_then(|vmi| vmi.data["status"]["interfaces"][0]["ipAddress"].as_str())
                .unwrap_or("");
            let namespace = object.namespace().unwrap_or_default();
            [
                namespace,
                object.name_any(),
                status.to_owned(),
                ip.to_owned(),
                cpus(spec),
                memory(spec),
            ]
        };
        let mut rows = Vec::new();
        for vm in &self.machines {
            let status = vm.data["status"]["printableStatus"].as_str().unwrap_or("");
            if status.starts_with("Err") || TROUBLE.contains(&status) {
                problems.push(trouble(vm, status));
            }
            rows.push(row(vm, instance(vm), status));
        }
        let alone = |vmi: &&DynamicObject| {
            !self
                .machines
                .iter()
                .any(|vm| (vm.namespace(), vm.name_any()) == (vmi.namespace(), vmi.name_any()))
        };
        for vmi in self.instances.iter().filter(alone) {
            rows.push(row(vmi, Some(vmi), vmi.data["status"]["phase"].as_str().unwrap_or("")));
        }
        rows
    }
}

fn is_over(pod: &DynamicObject) -> bool {
    matches!(pod.data["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// A VM in trouble, its reason if it gives one, and where to look.
fn trouble(vm: &DynamicObject, status: &str) -> String {
    let conditions = vm.data["status"]["conditions"].as_array().into_iter().flatten();
    let message = conditions
        .filter(|condition| condition["status"] == "False")
        .find_map(|condition| condition["message"].as_str().filter(|message| !message.is_empty()));
    let (namespace, name) = (vm.namespace().unwrap_or_default(), vm.name_any());
    let why = message.map_or_else(String::new, |message| format!(" ({message})"));
    format!("VM {namespace}/{name} is {status}{why}; look at: kubectl describe vmi -n {namespace} {name}")
}

fn cpus(spec: &Value) -> String {
    let cpu = &spec["domain"]["cpu"];
    let of = |field: &str| cpu[field].as_u64().unwrap_or(1).max(1);
    (of("cores") * of("sockets") * of("threads")).to_string()
}

fn memory(spec: &Value) -> String {
    let domain = &spec["domain"];
    let guest = domain["memory"]["guest"].as_str();
    guest
        .or(domain["resources"]["requests"]["memory"].as_str())
        .unwrap_or("")
        .to_owned()
}

fn amount(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_default().to_owned();
    quantity::bytes(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(text)).unwrap_or(0)
}

fn table(header: &[String; 6], rows: &[[String; 6]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .chain([header])
            .map(|row| row[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    for row in [header].into_iter().chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn machines_and_lone_instances_are_shown() {
        let spec = json!({"domain": {"cpu": {"cores": 2, "sockets": 2}, "memory": {"guest": "1Gi"}}});
        let seen = Seen {
            nodes: Vec::new(),
            pods: Vec::new(),
            machines: vec![
                object(json!({
                    "metadata": {"namespace": "a", "name": "up"}, "spec": {"template": {"spec": spec}},
                    "status": {"printableStatus": "Running"},
                })),
                object(json!({
                    "metadata": {"namespace": "a", "name": "ill"}, "spec": {"template": {"spec": {"domain": {}}}},
                    "status": {"printableStatus": "ErrImagePull", "conditions": [
                        {"type": "Ready", "status": "False", "message": "no such image"}]},
                })),
            ],
            instances: vec![
                object(json!({
                    "metadata": {"namespace": "a", "name": "up"}, "spec": spec,
                    "status": {"phase": "Running", "interfaces": [{"ipAddress": "10.88.0.2"}]},
                })),
                object(json!({
                    "metadata": {"namespace": "b", "name": "alone"}, "spec": spec, "status": {"phase": "Scheduled"},
                })),
            ],
        };
        let mut problems = Vec::new();
        let rows = seen.rows(&mut problems);
        let header = ["NAMESPACE", "NAME", "STATUS", "IP", "CPU", "MEMORY"].map(str::to_owned);
        insta::assert_snapshot!(table(&header, &rows), @"
        NAMESPACE  NAME   STATUS        IP         CPU  MEMORY
        a          up     Running       10.88.0.2  4    1Gi
        a          ill    ErrImagePull             1
        b          alone  Scheduled                4    1Gi
        ");
        assert_eq!(
            problems,
            ["VM a/ill is ErrImagePull (no such image); look at: kubectl describe vmi -n a ill"]
        );
    }
}
