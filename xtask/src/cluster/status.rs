//! What runs, and what is wrong.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::layout::{CONTROL, Layout, Node};
use super::process::Process;
use super::run::output;
use super::{control, node};

const TIMEOUT: Duration = Duration::from_secs(2);

/// One line of the table.
pub struct Line {
    /// The component.
    pub name: String,
    /// Its process, if it runs.
    pub pid: Option<i32>,
    /// Why it is not ready.
    pub problem: Option<String>,
}

/// All components of a cluster.
pub fn components(nodes: &[Node]) -> Vec<String> {
    let mut names: Vec<String> = control::STORE
        .iter()
        .chain(&control::CONTROLLERS)
        .map(|name| (*name).to_owned())
        .collect();
    for node in nodes {
        names.push(node::init_name(*node));
        names.push(node.component("containerd"));
        names.extend(node::AGENTS.map(|what| node.component(what)));
    }
    names
}

/// Looks at every component and, through the API, at every node.
pub fn look(layout: &Layout, nodes: &[Node]) -> Vec<Line> {
    let mut lines: Vec<Line> = components(nodes)
        .into_iter()
        .map(|name| {
            let pid = Process::of(layout, &name).map(|process| process.pid);
            let problem = match pid {
                Some(_) => probe(layout, nodes, &name),
                None => Some(format!("does not run; see {}", layout.log(&name).display())),
            };
            Line { name, pid, problem }
        })
        .collect();
    let ready = readiness(layout);
    for node in nodes {
        lines.push(Line {
            name: node.name(),
            pid: None,
            problem: match &ready {
                Ok(list) => problem(list, *node),
                Err(error) => Some(error.to_string()),
            },
        });
    }
    lines
}

/// Prints the table. True when nothing is wrong.
pub fn print(layout: &Layout, nodes: &[Node]) -> bool {
    let lines = look(layout, nodes);
    println!("{:<26} {:>8}  READY", "NAME", "PID");
    for line in &lines {
        let pid = line.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        println!(
            "{:<26} {pid:>8}  {}",
            line.name,
            line.problem.as_deref().unwrap_or("yes")
        );
    }
    println!("kubeconfig: {}", layout.admin().display());
    lines.iter().all(|line| line.problem.is_none())
}

/// Runs kubectl as administrator.
pub fn kubectl(layout: &Layout, args: &[&str]) -> Result<String> {
    let admin = layout.admin().display().to_string();
    let mut all = vec!["--kubeconfig", &admin, "--request-timeout=5s"];
    all.extend(args);
    output("kubectl", &all)
}

/// Why a component that runs is not ready, as far as it can be asked.
pub fn probe(layout: &Layout, nodes: &[Node], component: &str) -> Option<String> {
    let control = |port: u16| SocketAddr::from((CONTROL, port));
    let connect = |address: SocketAddr| {
        TcpStream::connect_timeout(&address, TIMEOUT)
            .err()
            .map(|error| format!("{address}: {error}"))
    };
    let on = |what: &str| nodes.iter().find(|node| node.component(what) == component);
    match component {
        "kube-apiserver" => connect(control(6443)).or_else(|| {
            kubectl(layout, &["get", "--raw", "/readyz"])
                .err()
                .map(|e| e.to_string())
        }),
        "kube-controller-manager" => connect(control(10257)),
        "kube-scheduler" => connect(control(10259)),
        "registry" => get(control(5000), "/v2/").err(),
        "coredns" => get(control(8181), "/ready").err(),
        _ => {
            if let Some(node) = on("kubelet") {
                get(SocketAddr::from((node.address(), 10248)), "/healthz").err()
            } else if let Some(node) = on("kube-proxy") {
                get(SocketAddr::from((node.address(), 10256)), "/livez").err()
            } else {
                None
            }
        }
    }
}

/// A request to a health endpoint.
///
/// # Errors
/// In words: nobody listens, or the answer is not 200.
fn get(address: SocketAddr, path: &str) -> Result<(), String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask().map_err(|error| format!("http://{address}{path}: {error}"))?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(())
    } else {
        let reason = answer.lines().last().unwrap_or_default();
        Err(format!("http://{address}{path}: {status}: {reason}"))
    }
}

/// Why a node is not ready, by the API.
pub fn node_problem(layout: &Layout, node: Node) -> Option<String> {
    match readiness(layout) {
        Ok(list) => problem(&list, node),
        Err(error) => Some(error.to_string()),
    }
}

fn readiness(layout: &Layout) -> Result<Value> {
    Ok(serde_json::from_str(&kubectl(
        layout,
        &["get", "nodes", "-o", "json"],
    )?)?)
}

fn problem(list: &Value, node: Node) -> Option<String> {
    let name = node.name();
    let Some(object) = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|object| object["metadata"]["name"] == name.as_str())
    else {
        return Some("the API has no such node".to_owned());
    };
    let conditions = object["status"]["conditions"].as_array();
    match conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready")
    {
        Some(condition) if condition["status"] == "True" => None,
        Some(condition) => Some(format!(
            "{}: {}",
            condition["reason"].as_str().unwrap_or("NotReady"),
            condition["message"].as_str().unwrap_or_default()
        )),
        None => Some("kubelet has not reported yet".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn why_a_node_is_not_ready() {
        let node = Node::first(1)[0];
        let with = |conditions: Value| json!({"items": [{"metadata": {"name": "node1"}, "status": {"conditions": conditions}}]});
        for (list, expected) in [
            (with(json!([{"type": "Ready", "status": "True"}])), None),
            (
                with(json!([{"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "no CNI"}])),
                Some("KubeletNotReady: no CNI"),
            ),
            (with(json!(null)), Some("kubelet has not reported yet")),
            (json!({"items": []}), Some("the API has no such node")),
        ] {
            assert_eq!(problem(&list, node).as_deref(), expected, "{list}");
        }
    }

    #[test]
    fn every_component_once() {
        let names = components(&Node::first(2));
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        assert!(names.contains(&"kubelet-node2".to_owned()));
    }
}
