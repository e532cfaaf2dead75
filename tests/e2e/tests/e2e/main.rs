//! Tests with real guests, in the embedded home, or, where `FERROVIRT_CLUSTER` names the kubeconfig of a cluster that
//! Ferrovirt is installed on, there. One home is shared; each test has a namespace of its own. What kills parts of the
//! home comes last, one test at a time.

mod agent;
mod claims;
mod cluster;
mod debian;
mod disks;
mod filesystems;
mod hardware;
mod lifecycle;
mod manifest;
mod network;
mod probes;
mod processes;
mod refusals;
mod registry;
mod restart;
mod status;
mod volumes;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferrovirt_e2e::{Home, Options};
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};

/// An emulated tiny guest boots in seconds when alone; several share two cores.
const BOOT: Duration = Duration::from_secs(180);
/// What needs no guest to boot.
const SOON: Duration = Duration::from_secs(40);

/// What every test gets.
struct Shared {
    home: Home,
    runtime: tokio::runtime::Runtime,
}

/// A test: its name is its namespace, too.
fn trial<F, T>(shared: &Arc<Shared>, name: &'static str, test: T) -> Trial
where
    T: FnOnce(Arc<Shared>, &'static str) -> F + Send + 'static,
    F: Future<Output = Result<()>> + 'static,
{
    let shared = Arc::clone(shared);
    Trial::test(name, move || {
        let start = Instant::now();
        let outcome = shared.home.namespace(name).and_then(|()| {
            let inner = Arc::clone(&shared);
            // One runtime for all: the client's connections live on it.
            shared.runtime.block_on(test(inner, name))
        });
        let evidence = outcome.as_ref().err().map(|_| shared.home.evidence(name));
        // The namespace takes everything in it along; what is left over would disturb the next tests.
        let gone = ferrovirt_e2e::run(&mut shared.home.kubectl(&["delete", "namespace", name, "--timeout=120s"]));
        let seconds = start.elapsed().as_secs();
        eprintln!("e2e: {name}: {seconds} s");
        outcome.and(gone.map(drop)).map_err(|error| {
            let said = format!("{error:#}\n{}after {seconds} s", evidence.unwrap_or_default());
            FAILURES
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(format!("{name}: {said}"));
            Failed::from(said)
        })
    })
}

/// What failed and why, to be said once more as the last thing, and in the file that `FERROVIRT_FAILURES` names: where
/// only the end of a log is kept, that is what it should hold.
static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn archive(variable: &str, guest: &str) -> Result<String> {
    std::env::var(variable)
        .with_context(|| format!("{variable} must name the archive that `images/guests/build {guest}` prints"))
}

/// The tests to run, of those whose names contain any of the arguments' words; the rest of the arguments are options,
/// each one word (`--test-threads=2`).
struct Chosen {
    names: Vec<String>,
    options: Arguments,
}

impl Chosen {
    fn from_args() -> Self {
        let mut words = std::env::args();
        let program = words.next();
        let (names, options) = words.partition(|word| !word.starts_with('-'));
        Self {
            names,
            options: Arguments::from_iter(program.into_iter().chain::<Vec<String>>(options)),
        }
    }

    fn run(&self, mut trials: Vec<Trial>) -> Conclusion {
        trials.retain(|trial| self.names.is_empty() || self.names.iter().any(|name| trial.name().contains(name)));
        libtest_mimic::run(&self.options, trials)
    }
}

fn main() -> Result<()> {
    let mut chosen = Chosen::from_args();
    // Two cores emulate two guests well, and ten badly.
    chosen.options.test_threads.get_or_insert(3);
    let (tiny, debian) = (
        archive("FERROVIRT_TINY", "tiny")?,
        archive("FERROVIRT_DEBIAN", "debian")?,
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let home = runtime.block_on(async {
        match Home::cluster().await? {
            Some(cluster) => Ok(cluster),
            None => {
                hardware::reserve_huge_pages()?;
                Home::start(Options::new(16443)?).await
            }
        }
    })?;
    home.import(&tiny, "test/tiny:1")?;
    home.import(&debian, "test/debian:12")?;
    let shared = Arc::new(Shared { home, runtime });
    let mut trials = debian::trials(&shared);
    trials.extend(agent::trials(&shared));
    trials.extend(claims::trials(&shared));
    trials.extend(filesystems::trials(&shared));
    trials.extend(lifecycle::trials(&shared));
    trials.extend(network::trials(&shared));
    trials.extend(probes::trials(&shared));
    trials.extend(refusals::trials(&shared));
    trials.extend(volumes::trials(&shared));
    if shared.home.is_cluster() {
        trials.extend(cluster::trials(&shared));
    } else {
        trials.extend(disks::trials(&shared));
        trials.extend(hardware::trials(&shared));
        trials.extend(registry::trials(&shared));
        trials.extend(status::trials(&shared));
    }
    let conclusion = chosen.run(trials);
    if conclusion.has_failed() {
        eprintln!("e2e: the log of the home:\n{}", shared.home.log());
    }
    chosen.options.test_threads = Some(1);
    let alone = if shared.home.is_cluster() {
        cluster::alone(&shared)
    } else {
        // Each has a home of its own.
        drop(shared);
        restart::trials(&tiny)
    };
    let alone = chosen.run(alone);
    let failures: String = FAILURES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .map(|failure| format!("e2e: failed: {failure}\n"))
        .collect();
    eprint!("{failures}");
    if let Some(file) = std::env::var_os("FERROVIRT_FAILURES") {
        std::fs::write(&file, failures).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if conclusion.has_failed() {
        conclusion.exit();
    }
    conclusion.exit_if_failed();
    alone.exit()
}
