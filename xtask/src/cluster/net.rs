//! The cluster's network: a bridge on the host, and on it one cable into the namespace of the control plane and of each
//! node. Routes lead from everywhere to every node's pods, and to Services through the first node.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::layout::{BRIDGE, CONTROL, CONTROL_NAMESPACE, HOST, MAX_NODES, Node, REGISTRY_NAME, SERVICES};
use super::run::{input, output};

const PREFIX: &str = "16";
const CONTROL_CABLE: &str = "fvc-control";
const HOSTS: &str = "/etc/hosts";
const HOSTS_MARK: &str = "# ferrovirt cluster";

/// Makes what is missing.
pub fn create(nodes: &[Node]) -> Result<()> {
    if !exists(BRIDGE) {
        ip(&format!(
            "link add {BRIDGE} type bridge\naddr add {HOST}/{PREFIX} dev {BRIDGE}\nlink set {BRIDGE} up\n"
        ))?;
    }
    join(CONTROL_NAMESPACE, CONTROL_CABLE, &CONTROL.to_string())?;
    for node in nodes {
        join(&node.namespace(), &node.cable(), &node.address().to_string())?;
    }
    routes(None, None, nodes)?;
    routes(Some(CONTROL_NAMESPACE), None, nodes)?;
    for node in nodes {
        routes(Some(&node.namespace()), Some(*node), nodes)?;
    }
    let hosts = fs::read_to_string(HOSTS).unwrap_or_default();
    let wanted = with_registry(&hosts);
    if hosts != wanted {
        fs::write(HOSTS, wanted).context("cannot write /etc/hosts")?;
    }
    Ok(())
}

/// Removes everything that [`create`] makes for any number of nodes.
pub fn destroy() -> Result<()> {
    let mut names: Vec<String> = Node::first(MAX_NODES).iter().map(|node| node.namespace()).collect();
    names.push(CONTROL_NAMESPACE.to_owned());
    for name in names {
        if namespace_exists(&name) {
            output("ip", &["netns", "delete", &name])?;
        }
    }
    // The kernel may still be taking the namespaces down, which would remove these ends as well.
    let mut links: Vec<String> = Node::first(MAX_NODES).iter().map(|node| node.cable()).collect();
    links.extend([CONTROL_CABLE.to_owned(), BRIDGE.to_owned()]);
    for link in links {
        if exists(&link)
            && let Err(error) = output("ip", &["link", "delete", &link])
            && exists(&link)
        {
            return Err(error);
        }
    }
    let hosts = fs::read_to_string(HOSTS).unwrap_or_default();
    if hosts.contains(HOSTS_MARK) {
        fs::write(HOSTS, without_registry(&hosts)).context("cannot write /etc/hosts")?;
    }
    Ok(())
}

/// The hosts file of a node.
pub fn node_hosts(node: Node) -> String {
    format!(
        "127.0.0.1 localhost\n{} {}\n{CONTROL} {REGISTRY_NAME}\n",
        node.address(),
        node.name()
    )
}

fn with_registry(hosts: &str) -> String {
    let mut text = without_registry(hosts);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + &format!("{CONTROL} {REGISTRY_NAME} {HOSTS_MARK}\n")
}

fn without_registry(hosts: &str) -> String {
    hosts
        .split_inclusive('\n')
        .filter(|line| !line.contains(HOSTS_MARK))
        .collect()
}

fn join(namespace: &str, cable: &str, address: &str) -> Result<()> {
    if !namespace_exists(namespace) {
        output("ip", &["netns", "add", namespace])?;
    }
    if exists(cable) {
        return Ok(());
    }
    ip(&format!(
        "link add {cable} type veth peer name eth0 netns {namespace}\nlink set {cable} master {BRIDGE} up\n"
    ))?;
    input(
        "ip",
        &["-n", namespace, "-batch", "-"],
        &format!(
            "link set lo up\naddr add {address}/{PREFIX} dev eth0\nlink set eth0 up\nroute replace default via {HOST}\n"
        ),
    )?;
    Ok(())
}

fn routes(namespace: Option<&str>, own: Option<Node>, nodes: &[Node]) -> Result<()> {
    let mut batch = String::new();
    for node in nodes.iter().filter(|node| Some(**node) != own) {
        batch.push_str(&format!("route replace {} via {}\n", node.pods(), node.address()));
        if node.is_first() && own.is_none() {
            batch.push_str(&format!("route replace {SERVICES} via {}\n", node.address()));
        }
    }
    match namespace {
        Some(name) => input("ip", &["-n", name, "-batch", "-"], &batch)?,
        None => input("ip", &["-batch", "-"], &batch)?,
    };
    Ok(())
}

fn ip(batch: &str) -> Result<String> {
    input("ip", &["-batch", "-"], batch)
}

fn exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

fn namespace_exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file() {
        for (before, with) in [
            (
                "127.0.0.1 localhost\n",
                "127.0.0.1 localhost\n10.100.0.2 registry.local # ferrovirt cluster\n",
            ),
            ("", "10.100.0.2 registry.local # ferrovirt cluster\n"),
        ] {
            assert_eq!(with_registry(before), with);
            assert_eq!(with_registry(with), with);
            assert_eq!(without_registry(with), before);
        }
    }
}
