//! Another version is installed while guests run and users work: nobody notices.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use ferrovirt_e2e::{Console, Home, run};
use serde_json::{Value, json};

use super::release::{Release, patch_kubevirt, pods};
use crate::cluster::ask_guest;
use crate::manifest::{spec, vm};
use crate::processes::qemu;
use crate::{BOOT, SOON, Shared};

const COMPONENTS: &str = "virt-api, virt-controller, virt-handler";

pub async fn upgrade(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let older = Release::of_operator(home)?;
    let newer = older.later()?;
    let outcome = there_and_back(home, ns, &older, &newer).await;
    if outcome.is_err() {
        older.restore(home).await.context("the cluster is not as it was")?;
    }
    outcome
}

async fn there_and_back(home: &Home, ns: &str, older: &Release, newer: &Release) -> Result<()> {
    for name in ["a", "b"] {
        home.apply(ns, &vm(name, "Always", spec()))?;
    }
    for name in ["a", "b"] {
        home.wait_serial(ns, name, "is ready at", BOOT).await?;
    }
    let before = [Guest::see(home, ns, "a").await?, Guest::see(home, ns, "b").await?];
    let mut open = Console::open(&mut home.virtctl(&["console", "-n", ns, "a"]))?;
    open.shell(SOON)?;
    open.send("echo open-$((40+2))\n")?;
    open.expect("open-42", SOON)?;
    let users = Users::begin(home, ns)?;

    // By the KubeVirt object, under an operator that stays as it is.
    let old_pods = components(home, older)?;
    patch_kubevirt(home, &json!({"imageTag": newer.tag}))?;
    let kubevirt = newer.deployed(home).await?;
    ensure!(
        kubevirt["status"]["operatorVersion"] == older.tag.as_str(),
        "{}",
        kubevirt["status"]
    );
    let new_pods = components(home, newer)?;
    ensure!(old_pods.is_disjoint(&new_pods), "{old_pods:?} and {new_pods:?}");
    // A stream goes through components that were replaced: it may end, and must not hang.
    open.send("\necho still-$((40+2))\n").ok();
    if let Err(error) = open.expect("still-42", SOON) {
        ensure!(format!("{error:#}").contains("the console ended"), "{error:#}");
    }
    drop(open);
    untouched(home, ns, "a", &before[0]).await?;
    run_anew(home, ns, "b", &before[1], newer).await?;

    // The operator follows. What it would install is there, so nothing else happens.
    newer.install_operator(home)?;
    patch_kubevirt(home, &json!({"imageTag": null}))?;
    let operator = |o: &Value| o["status"]["operatorVersion"] == newer.tag.as_str();
    let what = "the new operator leads";
    home.wait("KubeVirt", "kubevirt", "kubevirt", BOOT, what, operator)
        .await?;
    newer.deployed(home).await?;
    ensure!(components(home, newer)? == new_pods, "components were replaced again");

    // And back, all at once.
    let b = Guest::see(home, ns, "b").await?;
    older.install_operator(home)?;
    let kubevirt = older.deployed(home).await?;
    ensure!(
        kubevirt["status"]["operatorVersion"] == older.tag.as_str(),
        "{}",
        kubevirt["status"]
    );
    ensure!(components(home, older)?.is_disjoint(&new_pods), "components remain");
    let failures = users.end()?;
    ensure!(failures.is_empty(), "users were refused:\n{}", failures.join("\n"));
    untouched(home, ns, "a", &before[0]).await?;
    untouched(home, ns, "b", &b).await?;
    run_anew(home, ns, "b", &b, older).await
}

/// What stays the same as long as a guest runs.
#[derive(Debug, PartialEq)]
struct Guest {
    vmi: Value,
    pod: Value,
    qemu: i32,
    boot: String,
}

impl Guest {
    async fn see(home: &Home, ns: &str, name: &str) -> Result<Self> {
        let vmi = home.get("VirtualMachineInstance", ns, name).await?;
        let vmi = vmi.context("the VMI is there")?;
        ensure!(vmi["status"]["phase"] == "Running", "{}", vmi["status"]);
        let said = ask_guest(home, ns, name, "echo boot=$(cat /proc/sys/kernel/random/boot_id)=")?;
        let boot = said.rsplit("boot=").next().and_then(|rest| rest.split('=').next());
        Ok(Self {
            vmi: vmi["metadata"]["uid"].clone(),
            pod: vmi["status"]["activePods"].clone(),
            qemu: qemu(ns, name)?,
            boot: boot.context("the guest says which boot this is")?.to_owned(),
        })
    }
}

async fn untouched(home: &Home, ns: &str, name: &str, before: &Guest) -> Result<()> {
    let now = Guest::see(home, ns, name).await?;
    ensure!(now == *before, "{name} was touched: {before:?} became {now:?}");
    Ok(())
}

/// Stops and starts a VM, which then runs with the launcher of `release`.
async fn run_anew(home: &Home, ns: &str, name: &str, before: &Guest, release: &Release) -> Result<()> {
    run(&mut home.virtctl(&["stop", "-n", ns, name]))?;
    home.wait_gone("VirtualMachineInstance", ns, name, BOOT).await?;
    run(&mut home.virtctl(&["start", "-n", ns, name]))?;
    home.wait_status(ns, name, "Running", BOOT).await?;
    home.wait_serial(ns, name, "is ready at", BOOT).await?;
    let after = Guest::see(home, ns, name).await?;
    ensure!(
        after.vmi != before.vmi && after.boot != before.boot,
        "{name} did not start anew"
    );
    let selector = format!("vm.kubevirt.io/name={name}");
    let path = "jsonpath={.items[*].spec.containers[?(@.name=='compute')].image}";
    let image = run(&mut home.kubectl(&["get", "pod", "-n", ns, "-l", &selector, "-o", path]))?;
    ensure!(
        image == format!("{}/virt-launcher:{}", release.registry, release.tag),
        "{image}"
    );
    Ok(())
}

/// UIDs of the components' pods, which must all be of a release and ready.
fn components(home: &Home, release: &Release) -> Result<BTreeSet<String>> {
    let mut uids = BTreeSet::new();
    for pod in pods(home, COMPONENTS)? {
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        ensure!(
            image.ends_with(&format!(":{}", release.tag)),
            "{} has the image {image}, not {}",
            pod["metadata"]["name"],
            release.tag
        );
        let ready = ferrovirt_e2e::condition(&pod, "Ready");
        ensure!(ready["status"] == "True", "{}: {ready}", pod["metadata"]["name"]);
        uids.insert(uid.to_owned());
    }
    // On two nodes there are two of each.
    ensure!(uids.len() == 6, "there are {} pods of components", uids.len());
    Ok(uids)
}

/// Users who work all the time: they write VMs, which webhooks look at, and ask the aggregated API.
struct Users {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(usize, Vec<String>)>>,
}

impl Users {
    fn begin(home: &Home, ns: &str) -> Result<Self> {
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        std::fs::write(file.path(), vm("tried", "Halted", spec()))?;
        let path = file.path().to_string_lossy().into_owned();
        let mut commands = [
            home.kubectl(&["create", "--dry-run=server", "-n", ns, "-f", &path]),
            home.kubectl(&["get", "--raw", "/apis/subresources.kubevirt.io/v1/version"]),
        ];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut asked, mut failures) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                for command in &mut commands {
                    asked += 1;
                    failures.extend(run(command).err().map(|error| format!("{error:#}")));
                }
                std::thread::park_timeout(Duration::from_millis(500));
            }
            drop(file);
            (asked, failures)
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// What they were refused.
    fn end(mut self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("they have begun")?;
        thread.thread().unpark();
        let (asked, failures) = thread.join().map_err(|_| anyhow!("the users' thread panicked"))?;
        ensure!(asked >= 20, "users asked only {asked} times");
        Ok(failures)
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
