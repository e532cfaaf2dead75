//! Tests with real guests in the embedded home. One home is shared; each test has a namespace of its own.

mod lifecycle;

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context, Result};
use ferrovirt_e2e::{Home, Options};
use libtest_mimic::{Arguments, Failed, Trial};

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
        let outcome = shared.home.namespace(name).and_then(|()| {
            let inner = Arc::clone(&shared);
            // One runtime for all: the client's connections live on it.
            shared.runtime.block_on(test(inner, name))
        });
        // The namespace takes everything in it along; what is left over would disturb the next tests.
        let _ = ferrovirt_e2e::run(&mut shared.home.kubectl(&["delete", "namespace", name, "--timeout=90s"]));
        outcome.map_err(|error| Failed::from(format!("{error:#}")))
    })
}

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    let tiny = std::env::var("FERROVIRT_TINY")
        .context("FERROVIRT_TINY must name the archive that `images/guests/build tiny` prints")?;
    // Two cores emulate two guests well, and ten badly.
    arguments.test_threads.get_or_insert(3);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let home = runtime.block_on(Home::start(Options::new(16443)?))?;
    home.import(&tiny, "test/tiny:1")?;
    let shared = Arc::new(Shared { home, runtime });
    let trials = lifecycle::trials(&shared);
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        eprintln!("e2e: the log of ferrovirt up:\n{}", shared.home.log());
    }
    drop(shared);
    conclusion.exit()
}
