//! Hook sidecars that are scripts of a ConfigMap, in the image that comes with the installation.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::manifest::{add_script, spec, vmi};
use crate::{BOOT, Shared};

/// Gives the guest another mainboard.
const DEFINE: &str = "#!/usr/bin/env python3
import sys
import xml.etree.ElementTree as tree
domain = tree.fromstring(sys.argv[sys.argv.index('--domain') + 1])
domain.find(\"sysinfo/baseBoard/entry[@name='manufacturer']\").text = 'Hooks and Sons'
print(tree.tostring(domain, encoding='unicode'))
";
const CLOUD_INIT: &str = "#!/bin/sh
echo \"$4\" | sed s/unhooked/hooked/
";
const FAILS: &str = "#!/bin/sh
echo this is no day for guests >&2
exit 3
";

pub async fn hook_sidecars(shared: Arc<Shared>, ns: &'static str) -> Result<()> {
    let home = &shared.home;
    let scripts = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"},
        "data": {"define.py": DEFINE, "seed.sh": CLOUD_INIT, "fails.sh": FAILS},
    });
    home.apply(ns, &scripts.to_string())?;
    let hooked = |name: &str, hooks: &[(&str, &str)]| {
        let sidecar = |(key, program): &(&str, &str)| {
            let path = format!("/usr/bin/{program}");
            json!({"args": ["--version", "v1alpha2"], "configMap": {"name": "scripts", "key": key, "hookPath": path}})
        };
        let sidecars: Vec<Value> = hooks.iter().map(sidecar).collect();
        let mut spec = spec();
        add_script(&mut spec, "echo board=$(cat /sys/class/dmi/id/board_vendor)= unhooked");
        let mut vmi: Value = serde_json::from_str(&vmi(name, spec))?;
        vmi["metadata"]["annotations"]["hooks.kubevirt.io/hookSidecars"] = Value::String(json!(sidecars).to_string());
        home.apply(ns, &vmi.to_string())
    };
    hooked("a", &[("define.py", "onDefineDomain"), ("seed.sh", "preCloudInitIso")])?;
    let log = home.wait_serial(ns, "a", "board=", BOOT).await?;
    ensure!(log.contains("board=Hooks and Sons= hooked"), "{log}");

    hooked("b", &[("fails.sh", "onDefineDomain")])?;
    let failed = |o: &Value| o["status"]["phase"] == "Failed";
    let vmi = home
        .wait("VirtualMachineInstance", ns, "b", BOOT, "it fails", failed)
        .await?;
    let why = "hook-sidecar-0 failed at OnDefineDomain: /usr/bin/onDefineDomain: it ended with exit status: 3";
    let status = vmi["status"].to_string();
    ensure!(
        status.contains(why) && vmi["status"]["reason"] == "GuestStartFailed",
        "{status}"
    );
    Ok(())
}
