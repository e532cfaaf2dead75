//! The life of a VM as a user drives it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use ferrovirt_e2e::{Console, run};
use libtest_mimic::Trial;

use super::{Shared, trial};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    vec![trial(shared, "demo-vm-answers", demo_vm_answers)]
}

const BOOT: Duration = Duration::from_secs(120);

async fn demo_vm_answers(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let manifest = std::fs::read_to_string("../../examples/vm-demo.yaml")?.replace("demo/tiny:1", "test/tiny:1");
    home.apply(ns, &manifest)?;
    home.wait_status(ns, "demo", "Running", BOOT).await?;
    home.wait_serial(ns, "demo", "demo: user-data ran", BOOT).await?;
    let table = run(&mut home.kubectl(&["get", "vm,vmi", "-n", ns]))?;
    ensure!(table.contains("Running") && table.contains("10."), "{table}");
    let mut console = Console::open(&mut home.virtctl(&["console", "-n", ns, "demo"]))?;
    console.expect("escape", Duration::from_secs(20))?;
    console.send("\necho $((6*7))-from-console\n")?;
    console.expect("42-from-console", Duration::from_secs(20))?;
    ensure!(console.leave()? == 0, "virtctl console ended with an error");
    Ok(())
}
