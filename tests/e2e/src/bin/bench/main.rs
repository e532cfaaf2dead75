//! Measures a home against its budgets, through public interfaces and /proc, and writes them down.

mod cluster;
mod process;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use ferrovirt_e2e::{Home, Options};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher;
use serde_json::json;

/// Measures `ferrovirt up`, or the cluster that `FERROVIRT_CLUSTER` leads to; see docs/performance.md
#[derive(Parser)]
struct Args {
    /// Runs of each measurement; medians are reported
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Write the table to this file
    #[arg(long)]
    write: Option<PathBuf>,
}

/// One budget and what was measured.
struct Row {
    what: &'static str,
    unit: &'static str,
    /// Not a number where nothing was promised.
    budget: f64,
    measured: f64,
    /// What upstream KubeVirt needs on the same kind of machine, if comparable.
    upstream: &'static str,
}

impl Row {
    fn new(what: &'static str, unit: &'static str, budget: f64, measured: f64, upstream: &'static str) -> Self {
        Self {
            what,
            unit,
            budget,
            measured,
            upstream,
        }
    }
}

const PORT: u16 = 16444;
/// Memory of every guest.
const GUEST_MIB: u64 = 128;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let tiny = std::env::var("FERROVIRT_TINY").context("FERROVIRT_TINY names the archive of the tiny guest")?;
    let (rows, what) = if let Some(home) = Home::cluster().await? {
        home.import(&tiny, "bench/tiny:1")?;
        (cluster::measure(&home, args.runs).await?, "cluster")
    } else {
        (standalone(&tiny, args.runs).await?, "standalone")
    };
    let table = render(&rows, args.runs);
    println!("{table}");
    if let Some(path) = args.write {
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, replaced(&old, what, &table)?)?;
    }
    Ok(())
}

async fn standalone(tiny: &str, runs: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    start_and_idle(runs, &mut rows).await?;
    let home = Home::start(Options::new(PORT)?).await?;
    home.import(tiny, "bench/tiny:1")?;
    one_by_one(&home, runs, [0.7, 1.0, 2.0], &mut rows).await?;
    ten_beside_each_other(&home, runs, 5.0, &mut rows).await?;
    twenty_at_once(&home, &mut rows).await?;
    Ok(rows)
}

/// `text` with what is between the markers of `what` replaced.
fn replaced(text: &str, what: &str, table: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- measured: {what} -->"), format!("<!-- end: {what} -->"));
    let (head, rest) = text
        .split_once(&begin)
        .with_context(|| format!("there is no {begin}"))?;
    let (_, tail) = rest.split_once(&end).with_context(|| format!("there is no {end}"))?;
    Ok(format!("{head}{begin}\n\n{table}\n{end}{tail}"))
}

async fn start_and_idle(runs: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (mut ready, mut rss, mut cores, mut writes) = (vec![], vec![], vec![], vec![]);
    for run in 0..runs {
        let start = Instant::now();
        let home = Home::start(Options::new(PORT)?).await?;
        ready.push(start.elapsed().as_secs_f64());
        eprintln!("bench: start {}/{runs}: ready after {:.2} s", run + 1, ready[run]);
        // The first start also probes KVM and prepares caches; idle is what comes after.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let pid = home.pid()?;
        let (cpu, revision) = (process::cpu_seconds(pid)?, revision(&home).await?);
        tokio::time::sleep(Duration::from_secs(10)).await;
        cores.push((process::cpu_seconds(pid)? - cpu) / 10.0);
        writes.push((self::revision(&home).await? - revision) as f64);
        rss.push(process::rss_mib(pid)?);
    }
    rows.push(Row {
        what: "`ferrovirt up` ready to serve (fresh directory)",
        unit: "s",
        budget: 1.0,
        measured: median(ready),
        upstream: "",
    });
    rows.push(Row {
        what: "RSS of `ferrovirt up`, idle",
        unit: "MiB",
        budget: 60.0,
        measured: median(rss),
        upstream: "737 (control plane)",
    });
    rows.push(Row {
        what: "CPU when idle",
        unit: "cores",
        budget: 0.005,
        measured: median(cores),
        upstream: "0.025",
    });
    rows.push(Row {
        what: "objects written in 10 s when idle",
        unit: "",
        budget: 0.0,
        measured: median(writes),
        upstream: "",
    });
    Ok(())
}

/// `budgets`: seconds until QEMU runs, and until the phase says so; writes of the pod.
async fn one_by_one(home: &Home, runs: usize, budgets: [f64; 3], rows: &mut Vec<Row>) -> Result<()> {
    let (mut qemu, mut running, mut vmi_writes, mut pod_writes, mut gone) = (vec![], vec![], vec![], vec![], vec![]);
    // One run more than is counted: the first fills caches of the file system.
    for run in 0..=runs {
        let name = format!("one-{run}");
        let measured = start_one(home, &name).await?;
        eprintln!(
            "bench: {name}: QEMU after {:.2} s, Running after {:.2} s, writes {} + {}",
            measured.qemu, measured.running, measured.vmi_writes, measured.pod_writes
        );
        let start = Instant::now();
        vmis(home).delete(&name, &Default::default()).await?;
        home.wait_gone("VirtualMachineInstance", "default", &name, Duration::from_secs(60))
            .await?;
        if run > 0 {
            gone.push(start.elapsed().as_secs_f64());
            qemu.push(measured.qemu);
            running.push(measured.running);
            vmi_writes.push(measured.vmi_writes as f64);
            pod_writes.push(measured.pod_writes as f64);
        }
    }
    rows.push(Row {
        what: "POST of a VMI → QEMU running",
        unit: "s",
        budget: budgets[0],
        measured: median(qemu),
        upstream: "3.60",
    });
    rows.push(Row {
        what: "POST of a VMI → phase Running",
        unit: "s",
        budget: budgets[1],
        measured: median(running),
        upstream: "3.94",
    });
    rows.push(Row {
        what: "VMI writes from create to Running",
        unit: "",
        budget: 3.0,
        measured: median(vmi_writes),
        upstream: "",
    });
    rows.push(Row {
        what: "pod writes from create to Running",
        unit: "",
        budget: budgets[2],
        measured: median(pod_writes),
        upstream: "",
    });
    rows.push(Row {
        what: "DELETE of a VMI → gone (grace 0)",
        unit: "s",
        budget: 1.5,
        measured: median(gone),
        upstream: "3.0",
    });
    Ok(())
}

struct OneStart {
    qemu: f64,
    running: f64,
    vmi_writes: usize,
    pod_writes: usize,
}

/// Starts one VMI, with watches that count each write after the create.
async fn start_one(home: &Home, name: &str) -> Result<OneStart> {
    let config = watcher::Config::default();
    let mut vmi_events = watcher(vmis(home), config.clone().fields(&format!("metadata.name={name}"))).boxed();
    let pods: Api<Pod> = Api::default_namespaced(home.client());
    let selector = format!("vm.kubevirt.io/name={name}");
    let mut pod_events = watcher(pods, config.labels(&selector)).boxed();
    loop {
        if let watcher::Event::InitDone = vmi_events.try_next().await?.context("the watch ended")? {
            break;
        }
    }
    loop {
        if let watcher::Event::InitDone = pod_events.try_next().await?.context("the watch ended")? {
            break;
        }
    }
    let start = Instant::now();
    vmis(home).create(&PostParams::default(), &vmi(name)).await?;
    let (mut qemu, mut vmi_writes, mut pod_writes) = (None, 0, 0);
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        tokio::select! {
            event = vmi_events.try_next() => {
                if let Some(watcher::Event::Apply(object)) = event? {
                    vmi_writes += 1;
                    if object.data["status"]["phase"] == "Running" {
                        break;
                    }
                }
            }
            event = pod_events.try_next() => {
                if let Some(watcher::Event::Apply(_)) = event? {
                    pod_writes += 1;
                }
            }
            _ = tick.tick(), if qemu.is_none() => {
                qemu = process::qemu_of(&format!("default_{name}")).map(|_| start.elapsed().as_secs_f64());
            }
        }
        if start.elapsed() > Duration::from_secs(60) {
            bail!("{name} does not run after 60 s:\n{}", home.log());
        }
    }
    let running = start.elapsed().as_secs_f64();
    // The creates themselves are not counted.
    Ok(OneStart {
        qemu: qemu.unwrap_or(running),
        running,
        vmi_writes: vmi_writes - 1,
        pod_writes: pod_writes - 1,
    })
}

/// `budget`: seconds until all their QEMUs run.
async fn ten_beside_each_other(home: &Home, runs: usize, budget: f64, rows: &mut Vec<Row>) -> Result<()> {
    let (mut started, mut pss, mut rss, mut qemu) = (vec![], vec![], vec![], vec![]);
    for run in 0..runs {
        let names: Vec<_> = (0..10).map(|i| format!("ten-{run}-{i}")).collect();
        let start = Instant::now();
        post(home, &names).await?;
        loop {
            if names
                .iter()
                .all(|n| process::qemu_of(&format!("default_{n}")).is_some())
            {
                break;
            }
            if start.elapsed() > Duration::from_secs(120) {
                bail!("not all of ten guests started within 120 s");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        started.push(start.elapsed().as_secs_f64());
        for name in &names {
            home.wait_phase("default", name, "Running", Duration::from_secs(120))
                .await?;
        }
        // Guests boot and touch memory of theirs, not of ours; libvirt's first questions are over by then.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let beside = names
            .iter()
            .map(|n| process::beside_qemu(&format!("default_{n}")))
            .collect::<Result<Vec<_>>>()?;
        pss.push(beside.iter().map(|m| m.pss).sum::<f64>() / 10.0);
        rss.push(beside.iter().map(|m| m.rss).sum::<f64>() / 10.0);
        let themselves = names
            .iter()
            .map(|n| process::qemu_itself(&format!("default_{n}"), GUEST_MIB))
            .collect::<Result<Vec<_>>>()?;
        qemu.push(themselves.iter().sum::<f64>() / 10.0);
        eprintln!(
            "bench: ten at once {}/{runs}: QEMU after {:.2} s, PSS {:.1}, RSS {:.1}, QEMU itself {:.1} MiB",
            run + 1,
            started[run],
            pss[run],
            rss[run],
            qemu[run]
        );
        if run == 0 {
            for line in process::list_beside(&format!("default_{}", names[0]))? {
                eprintln!("bench:   {line}");
            }
        }
        delete(home, &names).await?;
    }
    rows.push(Row {
        what: "10 VMIs posted at once → QEMU running for all",
        unit: "s",
        budget,
        measured: median(started),
        upstream: "12 (max 37)",
    });
    rows.push(Row {
        what: "beside QEMU, per VM with 10 VMs, PSS",
        unit: "MiB",
        budget: 24.0,
        measured: median(pss),
        upstream: "44",
    });
    rows.push(Row {
        what: "beside QEMU, per VM with 10 VMs, RSS",
        unit: "MiB",
        budget: 60.0,
        measured: median(rss),
        upstream: "131",
    });
    rows.push(Row {
        what: "QEMU without its guest's memory, per VM with 10 VMs, PSS",
        unit: "MiB",
        budget: f64::NAN,
        measured: median(qemu),
        upstream: "",
    });
    Ok(())
}

async fn twenty_at_once(home: &Home, rows: &mut Vec<Row>) -> Result<()> {
    let names: Vec<_> = (0..20).map(|i| format!("twenty-{i}")).collect();
    let start = Instant::now();
    post(home, &names).await?;
    let mut running = 0.0;
    for name in &names {
        home.wait_phase("default", name, "Running", Duration::from_secs(180))
            .await?;
        running += 1.0;
    }
    eprintln!(
        "bench: twenty at once: all Running after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    rows.push(Row {
        what: "20 VMIs posted at once: not Running in the end",
        unit: "",
        budget: 0.0,
        measured: 20.0 - running,
        upstream: "",
    });
    delete(home, &names).await
}

async fn post(home: &Home, names: &[String]) -> Result<()> {
    let api = vmis(home);
    let (api, params) = (&api, &PostParams::default());
    futures::future::try_join_all(
        names
            .iter()
            .map(|name| async move { api.create(params, &vmi(name)).await }),
    )
    .await?;
    Ok(())
}

async fn delete(home: &Home, names: &[String]) -> Result<()> {
    let api = vmis(home);
    for name in names {
        api.delete(name, &Default::default()).await?;
    }
    for name in names {
        home.wait_gone("VirtualMachineInstance", "default", name, Duration::from_secs(120))
            .await?;
    }
    Ok(())
}

/// The newest revision of the whole store.
async fn revision(home: &Home) -> Result<i64> {
    let api: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::default_namespaced(home.client());
    let list = api.list(&kube::api::ListParams::default().limit(1)).await?;
    let revision = list.metadata.resource_version.context("a list has a resourceVersion")?;
    Ok(revision.parse()?)
}

fn vmis(home: &Home) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachineInstance");
    Api::default_namespaced_with(
        home.client(),
        &ApiResource::from_gvk_with_plural(&gvk, "virtualmachineinstances"),
    )
}

/// The guest shape that upstream was measured with: 1 vCPU, 128 MiB, masquerade, containerDisk, rng.
fn vmi(name: &str) -> DynamicObject {
    let spec = json!({
        "terminationGracePeriodSeconds": 0,
        "domain": {
            "cpu": {"cores": 1},
            "memory": {"guest": format!("{GUEST_MIB}Mi")},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "masquerade": {}}],
                "rng": {}
            }
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "containerDisk": {"image": "bench/tiny:1"}}]
    });
    let gvk = GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachineInstance");
    DynamicObject::new(
        name,
        &ApiResource::from_gvk_with_plural(&gvk, "virtualmachineinstances"),
    )
    .data(json!({"spec": spec}))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn render(rows: &[Row], runs: usize) -> String {
    let mut text = format!(
        "Medians of {runs} runs on {} cores, {} (emulation unless the probe found KVM to work). Upstream: KubeVirt on the same\n\
         kind of machine, same guest shape.\n\n\
         | what | budget | measured | met | upstream |\n|---|---|---|---|---|\n",
        std::thread::available_parallelism().map_or(0, usize::from),
        jiff::Zoned::now().date(),
    );
    for row in rows {
        let (budget, met) = if row.budget.is_nan() {
            (row.unit.to_owned(), "")
        } else {
            let met = if row.measured <= row.budget { "yes" } else { "**no**" };
            (format!("≤ {} {}", row.budget, row.unit), met)
        };
        let _ = writeln!(
            text,
            "| {} | {budget} | {:.3} | {met} | {} |",
            row.what, row.measured, row.upstream
        );
    }
    text
}
