//! The cluster's budgets: what the control plane costs, and what it adds to what Kubernetes does anyway.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ferrovirt_e2e::Home;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::runtime::watcher;
use serde_json::json;

use super::{GUEST_MIB, Row, delete, median, one_by_one, post, process, ten_beside_each_other, vmi, vmis};

const COMPONENTS: [&str; 4] = ["virt-operator", "virt-api", "virt-controller", "virt-handler"];
/// How many VMIs that fit nowhere are made at once, and how many exist in the end.
const UNSCHEDULABLE: usize = 900;
const PENDING: usize = 1000;
/// By then events are written, too.
const SETTLED: Duration = Duration::from_secs(3);

/// Everything about a cluster that Ferrovirt is installed on.
pub async fn measure(home: &Home, runs: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    installation(home, runs, &mut rows).await?;
    idle(home, &mut rows).await?;
    // What is promised here is the time beyond a bare pod's, and the kubelet writes its pods, too.
    one_by_one(home, runs, [f64::NAN; 3], &mut rows).await?;
    requests_per_vmi(home, runs, &mut rows).await?;
    beyond_a_pod(home, runs, &mut rows).await?;
    ten_running(home, runs, &mut rows).await?;
    ten_beside_each_other(home, 1, f64::NAN, &mut rows).await?;
    overhead(home, &mut rows).await?;
    many_pending(home, &mut rows).await?;
    Ok(rows)
}

/// Removes Ferrovirt and installs it again: its images are on the nodes by then.
async fn installation(home: &Home, runs: usize, rows: &mut Vec<Row>) -> Result<()> {
    let manifests = std::env::var("FERROVIRT_MANIFESTS")
        .context("FERROVIRT_MANIFESTS names the directory of ferrovirt-operator.yaml and kubevirt-cr.yaml")?;
    let [operator, cr] = ["ferrovirt-operator.yaml", "kubevirt-cr.yaml"].map(|file| format!("{manifests}/{file}"));
    let kubevirt = ["kv/kubevirt", "-n", "kubevirt"];
    let configuration = ferrovirt_e2e::run(home.kubectl(&["get"]).args(kubevirt).args(["-o", "jsonpath={.spec}"]))?;
    let configuration = format!(r#"{{"spec":{configuration}}}"#);
    let mut took = vec![];
    for run in 0..runs {
        ferrovirt_e2e::run(&mut home.kubectl(&["delete", "-f", &cr, "--timeout=180s"]))?;
        ferrovirt_e2e::run(&mut home.kubectl(&["delete", "-f", &operator, "--timeout=180s"]))?;
        let start = Instant::now();
        for file in [&operator, &cr] {
            ferrovirt_e2e::run(&mut home.kubectl(&["apply", "-f", file]))?;
        }
        let wait = ["--for=condition=Available", "--timeout=180s"];
        ferrovirt_e2e::run(home.kubectl(&["wait"]).args(kubevirt).args(wait))?;
        took.push(start.elapsed().as_secs_f64());
        eprintln!("bench: installation: Available after {:.1} s", took[run]);
        let mut patch = home.kubectl(&["patch"]);
        ferrovirt_e2e::run(patch.args(kubevirt).args(["--type=merge", "-p", &configuration]))?;
    }
    let wait = ["--for=condition=Progressing=false", "--timeout=180s"];
    ferrovirt_e2e::run(home.kubectl(&["wait"]).args(kubevirt).args(wait))?;
    rows.push(Row::new(
        "operator and CR applied → Available, images present",
        "s",
        20.0,
        median(took),
        "75.8",
    ));
    // What starts once is over by then.
    tokio::time::sleep(Duration::from_secs(60)).await;
    Ok(())
}

/// Sum over all processes of all components.
fn rss() -> Result<f64> {
    let mut sum = 0.0;
    for component in COMPONENTS {
        let pids = process::of_component(component);
        if pids.is_empty() {
            bail!("{component} does not run on this machine");
        }
        for pid in pids {
            let rss = process::rss_mib(pid)?;
            eprintln!("bench: {component} {pid}: RSS {rss:.1} MiB");
            sum += rss;
        }
    }
    Ok(sum)
}

/// What all components have asked the API server so far, as they count it themselves: numbers by `verb resource`. Asked at
/// the same time, so that little happens meanwhile.
async fn requests(home: &Home) -> Result<BTreeMap<String, f64>> {
    let pods: Api<Pod> = Api::namespaced(home.client(), "kubevirt");
    let labels = format!("kubevirt.io in ({})", COMPONENTS.join(", "));
    let pods = pods.list(&ListParams::default().labels(&labels)).await?;
    let texts = pods.items.into_iter().map(|pod| async move {
        let name = pod.metadata.name.context("a pod has a name")?;
        let path = format!("/api/v1/namespaces/kubevirt/pods/https:{name}:8443/proxy/metrics");
        let request = http::Request::get(&path).body(Vec::new())?;
        let text = home.client().request_text(request).await;
        text.with_context(|| format!("metrics of {name}"))
    });
    let mut counts = BTreeMap::new();
    for text in futures::future::try_join_all(texts).await? {
        for line in text
            .lines()
            .filter(|line| line.starts_with("rest_client_requests_total{"))
        {
            let label = |name: &str| {
                let rest = line.split_once(&format!("{name}=\""))?.1;
                Some(rest.split_once('"')?.0)
            };
            let what = format!(
                "{} {}",
                label("verb").context("a request has a verb")?,
                label("resource").context("a request has a resource")?
            );
            let count = line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
            *counts.entry(what).or_insert(0.0) += count.with_context(|| format!("{line:?} has no number"))?;
        }
    }
    Ok(counts)
}

/// How many more there are than `before`, leaving out what does not pass `counted`.
fn more(now: &BTreeMap<String, f64>, before: &BTreeMap<String, f64>, counted: impl Fn(&str) -> bool) -> f64 {
    now.iter()
        .filter(|(what, _)| counted(what))
        .map(|(what, count)| count - before.get(what).unwrap_or(&0.0))
        .sum()
}

/// Whether a request is made for a VMI: leaders renew their leases and watches are begun again all the time, which the
/// row of the idle cluster counts.
fn for_a_vmi(what: &str) -> bool {
    !what.ends_with(" leases") && !what.starts_with("watch ")
}

/// How often the API server called our webhooks so far.
async fn webhook_calls(home: &Home) -> Result<f64> {
    let text = home
        .client()
        .request_text(http::Request::get("/metrics").body(Vec::new())?)
        .await
        .context("the API server's metrics")?;
    let calls = text
        .lines()
        .filter(|line| line.starts_with("apiserver_admission_webhook_request_total{") && line.contains("kubevirt.io"));
    Ok(calls
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}

/// What one VMI makes our components ask, until it runs and until nothing is left of it.
async fn requests_per_vmi(home: &Home, runs: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (mut until_running, mut whole_life) = (0.0, 0.0);
    let first = requests(home).await?;
    let called = webhook_calls(home).await?;
    for run in 0..runs {
        let name = format!("counted-{run}");
        let before = requests(home).await?;
        post(home, std::slice::from_ref(&name)).await?;
        home.wait_phase("default", &name, "Running", Duration::from_secs(60))
            .await?;
        until_running += more(&requests(home).await?, &before, for_a_vmi);
        tokio::time::sleep(SETTLED).await;
        delete(home, &[name]).await?;
        tokio::time::sleep(SETTLED).await;
        whole_life += more(&requests(home).await?, &before, for_a_vmi);
    }
    let last = requests(home).await?;
    for what in last.keys() {
        let each = more(&last, &first, |other| other == what) / runs as f64;
        if each > 0.0 {
            eprintln!("bench: requests per VMI: {each:4.1} {what}");
        }
    }
    let calls = webhook_calls(home).await? - called;
    for (what, budget, measured, upstream) in [
        ("our requests per VMI, create → Running", 6.0, until_running, "11.2"),
        ("our requests per VMI, whole life", 14.0, whole_life, "28.6"),
        ("webhook calls per VMI, whole life", 4.0, calls, ""),
    ] {
        rows.push(Row::new(what, "", budget, measured / runs as f64, upstream));
    }
    Ok(())
}

/// What a launcher pod asks for beyond its guest's memory.
async fn overhead(home: &Home, rows: &mut Vec<Row>) -> Result<()> {
    let name = "overhead".to_owned();
    post(home, std::slice::from_ref(&name)).await?;
    home.wait_phase("default", &name, "Running", Duration::from_secs(60))
        .await?;
    let pods: Api<Pod> = Api::default_namespaced(home.client());
    let labelled = ListParams::default().labels("vm.kubevirt.io/name=overhead");
    let pod = pods.list(&labelled).await?.items.pop().context("the VMI has no pod")?;
    let spec = pod.spec.unwrap_or_default();
    // Containers that are started first and stay are counted like all others.
    let stay = |c: &Container| c.restart_policy.as_deref() == Some("Always");
    let first = spec.init_containers.unwrap_or_default().into_iter().filter(stay);
    let mut sum = 0.0;
    for container in first.chain(spec.containers) {
        let requests = container.resources.and_then(|r| r.requests).unwrap_or_default();
        if let Some(memory) = requests.get("memory") {
            sum += mebibytes(&memory.0)?;
        }
    }
    rows.push(Row::new(
        "memory request of a launcher pod beyond its guest",
        "MiB",
        110.0,
        sum - GUEST_MIB as f64,
        "324",
    ));
    delete(home, &[name]).await
}

fn mebibytes(quantity: &str) -> Result<f64> {
    let digits = quantity.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &quantity[digits.len()..] {
        "" => 1.0,
        "k" => 1000.0,
        "M" => 1e6,
        "Ki" => 1024.0,
        "Mi" => 1048576.0,
        other => bail!("{quantity}: {other:?} is not a unit known here"),
    };
    Ok(digits.parse::<f64>()? * unit / 1048576.0)
}

async fn idle(home: &Home, rows: &mut Vec<Row>) -> Result<()> {
    const SECONDS: f64 = 60.0;
    let (asked, cpu) = (requests(home).await?, cpu()?);
    tokio::time::sleep(Duration::from_secs_f64(SECONDS)).await;
    let (asked, cpu) = (more(&requests(home).await?, &asked, |_| true), self::cpu()? - cpu);
    rows.push(Row::new("requests per second, idle", "", 0.5, asked / SECONDS, "4"));
    rows.push(Row::new(
        "CPU of all components, idle",
        "cores",
        0.005,
        cpu / SECONDS,
        "0.025",
    ));
    rows.push(Row::new("RSS of all components, idle", "MiB", 120.0, rss()?, "737"));
    Ok(())
}

fn cpu() -> Result<f64> {
    COMPONENTS
        .into_iter()
        .flat_map(process::of_component)
        .map(process::cpu_seconds)
        .sum()
}

/// Create → Running, compared with create → Ready of a bare pod of the launcher's image.
async fn beyond_a_pod(home: &Home, runs: usize, rows: &mut Vec<Row>) -> Result<()> {
    let image = launcher_image(home).await?;
    let (mut bare, mut running) = (vec![], vec![]);
    for run in 0..runs {
        let name = format!("bare-{run}");
        bare.push(pod_ready(home, &name, &image).await?);
        let name = format!("vmi-{run}");
        let start = Instant::now();
        post(home, std::slice::from_ref(&name)).await?;
        home.wait_phase("default", &name, "Running", Duration::from_secs(60))
            .await?;
        running.push(start.elapsed().as_secs_f64());
        delete(home, &[name]).await?;
        eprintln!(
            "bench: bare pod Ready after {:.2} s, VMI Running after {:.2} s",
            bare[run], running[run]
        );
    }
    let more = median(running) - median(bare.clone());
    rows.push(Row::new(
        "bare pod of the launcher's image: create → Ready",
        "s",
        f64::NAN,
        median(bare),
        "0.60",
    ));
    rows.push(Row::new(
        "VMI Running, later than a bare pod Ready by",
        "s",
        1.0,
        more,
        "3.3",
    ));
    Ok(())
}

async fn launcher_image(home: &Home) -> Result<String> {
    let operator = home.deployment("kubevirt", "virt-operator").await?;
    let env = operator["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .cloned();
    let env = env.unwrap_or_default();
    let entry = env.iter().find(|entry| entry["name"] == "VIRT_LAUNCHER_IMAGE");
    let image = entry.and_then(|entry| entry["value"].as_str());
    Ok(image.context("virt-operator has no VIRT_LAUNCHER_IMAGE")?.to_owned())
}

async fn pod_ready(home: &Home, name: &str, image: &str) -> Result<f64> {
    let api: Api<Pod> = Api::default_namespaced(home.client());
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": image, "command": ["/usr/bin/virt-tail", "--logfile", "/etc/passwd"],
                "securityContext": {"runAsUser": 107}
            }]
        }
    }))?;
    let mut events = watcher(
        api.clone(),
        watcher::Config::default().fields(&format!("metadata.name={name}")),
    )
    .boxed();
    while !matches!(
        events.try_next().await?.context("the watch ended")?,
        watcher::Event::InitDone
    ) {}
    let start = Instant::now();
    api.create(&PostParams::default(), &pod).await?;
    let ready = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    let seen = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            if let watcher::Event::Apply(pod) = events.try_next().await?.context("the watch ended")?
                && ready(&pod)
            {
                return anyhow::Ok(());
            }
        }
    });
    seen.await.with_context(|| format!("pod {name} is not ready"))??;
    let took = start.elapsed().as_secs_f64();
    api.delete(name, &Default::default()).await?;
    home.wait_gone("Pod", "default", name, Duration::from_secs(60)).await?;
    Ok(took)
}

async fn ten_running(home: &Home, runs: usize, rows: &mut Vec<Row>) -> Result<()> {
    let mut took = vec![];
    for run in 0..runs {
        let names: Vec<_> = (0..10).map(|i| format!("all-{run}-{i}")).collect();
        let start = Instant::now();
        post(home, &names).await?;
        for name in &names {
            home.wait_phase("default", name, "Running", Duration::from_secs(120))
                .await?;
        }
        took.push(start.elapsed().as_secs_f64());
        eprintln!("bench: ten at once: all Running after {:.1} s", took[run]);
        delete(home, &names).await?;
    }
    rows.push(Row::new(
        "10 VMIs posted at once → all Running",
        "s",
        12.0,
        median(took),
        "34 (max 43)",
    ));
    Ok(())
}

/// VMIs that fit on no node: what the control plane pays for each.
async fn many_pending(home: &Home, rows: &mut Vec<Row>) -> Result<()> {
    let controller = || -> Result<f64> {
        process::of_component("virt-controller")
            .into_iter()
            .map(process::cpu_seconds)
            .sum()
    };
    create_unschedulable(home, 0..PENDING - UNSCHEDULABLE).await?;
    all_have_pods(home, PENDING - UNSCHEDULABLE).await?;
    let (start, before) = (Instant::now(), controller()?);
    create_unschedulable(home, PENDING - UNSCHEDULABLE..PENDING).await?;
    all_have_pods(home, PENDING).await?;
    let took = start.elapsed().as_secs_f64();
    // Until the last of them has its condition.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let each = (controller()? - before) * 1000.0 / UNSCHEDULABLE as f64;
    eprintln!("bench: {UNSCHEDULABLE} more unschedulable VMIs have pods after {took:.1} s");
    rows.push(Row::new(
        "CPU of virt-controller per unschedulable VMI (900)",
        "ms",
        5.0,
        each,
        "14.4",
    ));
    rows.push(Row::new(
        "RSS of all components with 1 000 pending VMIs",
        "MiB",
        250.0,
        rss()?,
        "1 014",
    ));
    let all = vmis(home);
    all.delete_collection(&Default::default(), &ListParams::default().labels("bench=pending"))
        .await?;
    let gone = async {
        loop {
            let left = all
                .list(&ListParams::default().labels("bench=pending").limit(1))
                .await?;
            if left.items.is_empty() {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), gone)
        .await
        .context("pending VMIs do not go away")?
}

async fn create_unschedulable(home: &Home, range: std::ops::Range<usize>) -> Result<()> {
    let api = vmis(home);
    let objects = range.map(|i| -> DynamicObject {
        let mut object = vmi(&format!("pending-{i}"));
        object.metadata.labels = Some(BTreeMap::from([("bench".to_owned(), "pending".to_owned())]));
        object.data["spec"]["nodeSelector"] = json!({"bench": "nowhere"});
        object
    });
    // As many posters as upstream was measured with.
    futures::stream::iter(objects.map(Ok))
        .try_for_each_concurrent(8, |object| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &object).await?;
                anyhow::Ok(())
            }
        })
        .await
}

async fn all_have_pods(home: &Home, count: usize) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(home.client());
    let labelled = ListParams::default().labels("bench=pending");
    let there = async {
        loop {
            let found = pods.list_metadata(&labelled).await?.items.len();
            if found >= count {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), there)
        .await
        .with_context(|| format!("not all of {count} VMIs have a pod"))?
}
