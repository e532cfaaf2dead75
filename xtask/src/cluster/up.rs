//! Starting and ending the cluster.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::fetch::{self, Programs};
use super::layout::{Layout, Node, write};
use super::process::{Process, ensure, tail};
use super::run::{input, step, until};
use super::status::{kubectl, probe};
use super::{cgroup, control, images, net, node, pki, status};

/// Holds the directory of the machine's cluster, and is locked by who changes it.
const MARKER: &str = "/run/ferrovirt-cluster";
const OBJECTS: &str = include_str!("../../cluster/cluster.yaml");

/// Makes and starts what is missing. `one_use`: not with what an interrupted use has left behind.
///
/// # Errors
/// Not root; another cluster runs; something does not become ready: then with the end of its log.
pub fn up(layout: &Layout, wanted: Option<u8>, without_image_volumes: bool, one_use: bool) -> Result<()> {
    let start = Instant::now();
    let _lock = lock()?;
    let mut there = layout.nodes()?;
    if one_use && !there.is_empty() && (layout.one_use().exists() || !cgroup::any_process()?) {
        println!(
            "cluster: the one in {} was left over; it is ended first",
            layout.dir.display()
        );
        remove(&layout.dir)?;
        there = Vec::new();
    }
    let one_use = one_use && there.is_empty();
    let nodes = Node::first(wanted.unwrap_or(0).max(u8::try_from(there.len())?).max(1));
    if let Some(wanted) = wanted
        && usize::from(wanted) < there.len()
    {
        bail!(
            "the cluster has {} nodes already; for fewer, end it first: cargo xtask cluster down",
            there.len()
        );
    }
    if without_image_volumes && layout.has_image_volumes() && !there.is_empty() {
        bail!("the cluster has image volumes; for one without, end it first: cargo xtask cluster down");
    }
    if nodes == there && status::look(layout, &nodes).iter().all(|line| line.problem.is_none()) {
        println!("cluster: runs already, {} nodes are ready", nodes.len());
        return done(layout);
    }
    claim(layout, &there)?;
    if one_use {
        write(&layout.one_use(), "")?;
    }
    let programs = fetch::all(&layout.cache)?;
    layout.set_nodes(nodes.len())?;
    if without_image_volumes {
        write(&layout.without_image_volumes(), "")?;
    }
    step("certificates and network", || {
        pki::create(layout, &nodes)?;
        cgroup::create(&nodes)?;
        net::create(&nodes)
    })?;
    start_store(layout, &programs, &nodes)?;
    start_agents(layout, &programs, &nodes)?;
    println!("cluster: ready after {:.1} s", start.elapsed().as_secs_f32());
    done(layout)
}

/// What needs no API, and the API.
fn start_store(layout: &Layout, programs: &Programs, nodes: &[Node]) -> Result<()> {
    for name in control::STORE {
        ensure(layout, control::component(layout, programs, name)?)?;
    }
    for node in nodes {
        step(&format!("{} and its containerd", node.name()), || {
            node::boot(layout, programs, *node)
        })?;
    }
    step("the registry and the images pause and busybox", || {
        ready(layout, nodes, "registry", 15)?;
        images::push_own(&layout.cache, programs)
    })?;
    step("etcd and the API server", || {
        node::wait(layout, "kube-apiserver", Duration::from_secs(90), || {
            if Process::of(layout, "etcd").is_none() {
                bail!("etcd has ended; the end of {}", tail(&layout.log("etcd")));
            }
            Ok(probe(layout, nodes, "kube-apiserver"))
        })
    })
}

/// What needs the API.
fn start_agents(layout: &Layout, programs: &Programs, nodes: &[Node]) -> Result<()> {
    step("the objects of the nodes and of DNS", || apply(layout, nodes))?;
    for name in control::CONTROLLERS {
        ensure(layout, control::component(layout, programs, name)?)?;
    }
    for node in nodes {
        for what in node::AGENTS {
            ensure(layout, node::agent(layout, programs, *node, what))?;
        }
    }
    for name in control::CONTROLLERS {
        step(name, || ready(layout, nodes, name, 60))?;
    }
    for node in nodes {
        for what in node::AGENTS {
            let name = node.component(what);
            step(&name, || ready(layout, nodes, &name, 60))?;
        }
        step(&format!("{} Ready", node.name()), || {
            let name = node.component("kubelet");
            node::wait(layout, &name, Duration::from_secs(60), || {
                Ok(status::node_problem(layout, *node))
            })
        })?;
    }
    step("the default service account", || {
        node::wait(layout, "kube-controller-manager", Duration::from_secs(30), || {
            let found = kubectl(layout, &["get", "serviceaccount", "default", "--namespace=default"]);
            Ok(found.err().map(|error| error.to_string()))
        })
    })
}

fn ready(layout: &Layout, nodes: &[Node], component: &str, seconds: u64) -> Result<()> {
    node::wait(layout, component, Duration::from_secs(seconds), || {
        Ok(probe(layout, nodes, component))
    })
}

/// The namespaces that they belong to come a little after the API server itself.
fn apply(layout: &Layout, nodes: &[Node]) -> Result<()> {
    let mut documents = OBJECTS.to_owned();
    for node in nodes {
        documents.push_str(&format!("---\n{}\n", control::node_object(*node)));
    }
    let admin = layout.admin().display().to_string();
    let flags = "apply --server-side --force-conflicts --field-manager=ferrovirt-cluster -f -";
    let mut args = vec!["--kubeconfig", &admin];
    args.extend(flags.split(' '));
    until(Duration::from_secs(20), || {
        Ok(input("kubectl", &args, &documents).err().map(|error| error.to_string()))
    })
}

fn done(layout: &Layout) -> Result<()> {
    println!("  export KUBECONFIG={}", layout.admin().display());
    Ok(())
}

/// Ends all processes of the cluster and removes all that it has made, whatever state it is in. `one_use`: unless it is
/// kept.
///
/// # Errors
/// Not root; something cannot be removed.
pub fn down(layout: &Layout, one_use: bool) -> Result<()> {
    let _lock = lock()?;
    if one_use && !layout.one_use().exists() {
        println!("cluster: it is somebody's, and goes on; cargo xtask cluster down ends it");
        return Ok(());
    }
    let marked = marked();
    let dir = marked.as_deref().map_or(layout.dir.as_path(), Path::new);
    if dir != layout.dir {
        println!("cluster: the one that runs has its state in {}", dir.display());
    }
    remove(dir)?;
    fs::remove_file(MARKER).with_context(|| format!("cannot remove {MARKER}"))
}

fn remove(dir: &Path) -> Result<()> {
    step("ending all processes", cgroup::destroy)?;
    step("removing the network", net::destroy)?;
    step("removing the state", || {
        if dir.join("nodes").exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        Ok(())
    })
}

/// The directory becomes that of the machine's cluster.
fn claim(layout: &Layout, there: &[Node]) -> Result<()> {
    if let Some(other) = marked()
        && Path::new(&other) != layout.dir
        && cgroup::any_process()?
    {
        bail!("this machine's cluster runs with its state in {other}; end it first: cargo xtask cluster down");
    }
    let used = || fs::read_dir(&layout.dir).is_ok_and(|mut entries| entries.next().is_some());
    if there.is_empty() && used() {
        bail!(
            "{} holds something else than a cluster; name another directory with --dir",
            layout.dir.display()
        );
    }
    write(Path::new(MARKER), &layout.dir.display().to_string())
}

fn marked() -> Option<String> {
    fs::read_to_string(MARKER).ok().filter(|text| !text.is_empty())
}

fn lock() -> Result<File> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster takes root; try: sudo -E cargo xtask cluster …");
    }
    loop {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(MARKER)
            .with_context(|| format!("cannot open {MARKER}"))?;
        if file.try_lock().is_err() {
            println!("cluster: waiting for another `cargo xtask cluster` to end");
            file.lock().with_context(|| format!("cannot lock {MARKER}"))?;
        }
        // `down` removes the file: then the lock is one of a file that nobody else sees.
        let own = file.metadata()?.ino();
        if fs::metadata(MARKER).is_ok_and(|now| now.ino() == own) {
            return Ok(file);
        }
    }
}
